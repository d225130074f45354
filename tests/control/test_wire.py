"""QMP's framing under what clients send, and what nobody should."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.control.wire import DEEPEST, LONGEST, BadInput, InputSplitter, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)


def split(data: bytes, size: int = 1 << 16) -> list[object]:
    splitter = InputSplitter()
    found: list[object] = []
    for start in range(0, len(data), size):
        found += splitter.feed(data[start : start + size])
    return found


@given(st.lists(OBJECTS, max_size=5), st.integers(1, 7), st.sampled_from(["", "\n", "\r\n", " "]))
@settings(deadline=None)
def test_values_come_out_as_they_went_in(values: list[object], size: int, gap: str) -> None:
    """However the stream is cut, and whatever stands between two values."""
    text = gap.join(json.dumps(value) for value in values)

    assert split(text.encode(), size) == values


@given(st.lists(OBJECTS, max_size=3), st.booleans())
@settings(deadline=None)
def test_unescaped_text(values: list[object], pretty: bool) -> None:
    """UTF-8 as it is, and values over several lines."""
    text = "\n".join(
        json.dumps(value, ensure_ascii=False, indent=1 if pretty else None) for value in values
    )
    data = text.encode(errors="surrogatepass")
    if b"\xed" not in data:  # lone surrogates are no UTF-8
        assert split(data, 3) == values


@given(st.binary(max_size=200), st.integers(1, 9))
@settings(deadline=None, max_examples=300)
def test_any_bytes(data: bytes, size: int) -> None:
    """Never an exception, and the cut makes no difference."""
    found = split(data, size)

    assert [repr(value) for value in found] == [repr(value) for value in split(data)]


@given(st.binary(max_size=60).filter(lambda data: b"\xff" not in data))
@settings(deadline=None, max_examples=300)
def test_byte_ff_begins_anew(data: bytes) -> None:
    """After it, a good command is understood whatever came before (but in a skipped line)."""
    found = split(data + b"\n\xff" + b'{"execute": "stop"}\n')

    assert found[-1] == {"execute": "stop"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{]", "parse error"), (b"}", "unexpected closing"), (b'{"a": nope}', "parse error"),
        (b"{'a': 1}", "parse error"), (b'{"a": "\n', "control character"), (b"hello\n", "error"),
        (b'"\xc3\x28"', "UTF-8"), (b'{"a": NaN}', "invalid word NaN"), (b'{"a" 1}', "error"),
        (b"[" * (DEEPEST + 1), "nested too deeply"), (b'"' + b"x" * LONGEST, "more than"),
        (b'"\\u12"', "error"), (b"12a4 ", "error"), (b"x{", "invalid word"),
    ],
)  # fmt: skip
def test_what_is_no_json(text: bytes, words: str) -> None:
    """An error that says why, and the next line counts again."""
    first, *rest = split(text + b'\n{"execute": "cont"}\n')

    assert isinstance(first, BadInput) and words in str(first)
    assert rest[-1] == {"execute": "cont"}


def test_messages_are_lines_of_ascii() -> None:
    """As QEMU sends them."""
    assert encode({"a": "ü\n"}) == b'{"a": "\\u00fc\\n"}\r\n'
