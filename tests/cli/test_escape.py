"""The escape key: what goes to the guest and what is ours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.backends.escape import EscapeKeys


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (b"ls\r", [b"ls\r"]),
        (b"\x01x", ["quit"]),
        (b"a\x01cb", [b"a", "monitor", b"b"]),
        (b"\x01h\x01?", ["help", "help"]),
        (b"\x01\x01", [b"\x01"]),
        (b"\x01a", [b"\x01"]),
        (b"1\x01a2", [b"1\x012"]),
        (b"\x01z!", [b"!"]),
        (b"\x03\x04\x1a", [b"\x03\x04\x1a"]),
    ],
)
def test_keys(typed: bytes, found: list[bytes | str]) -> None:
    """Each key after Ctrl-a does what the help says; all else is the guest's."""
    assert EscapeKeys().feed(typed) == found


@settings(deadline=None)
@given(st.binary(), st.integers(min_value=0, max_value=64))
def test_pieces_mean_the_same_as_the_whole(data: bytes, cut: int) -> None:
    """Where the bytes are split makes no difference."""
    whole, pieces = EscapeKeys(), EscapeKeys()

    split = pieces.feed(data[:cut]) + pieces.feed(data[cut:])

    assert _joined(split) == _joined(whole.feed(data))


def _joined(parts: list[bytes | str]) -> list[bytes | str]:
    """Neighbouring runs of bytes as one."""
    joined: list[bytes | str] = []
    for part in parts:
        if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
