"""LZO1X: the instructions of ``lzo.rst``, lzop's container, hostile streams."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.lzo import LzoError, decompress_block, decompress_lzop

END = bytes([0x11, 0, 0])


def _lzop(data: bytes, *options: str) -> memoryview:
    if shutil.which("lzop") is None:
        pytest.skip("lzop is not installed (apt install lzop)")
    done = subprocess.run(["lzop", "-c", *options], input=data, capture_output=True, check=True)
    return memoryview(done.stdout)


@pytest.mark.parametrize(
    ("stream", "unpacked"),
    [
        (bytes([17 + 5]) + b"hello", b"hello"),  # first byte above 17: literals
        (bytes([1]) + b"abcd", b"abcd"),  # 0 0 0 0 L: 4 literals
        (bytes([0, 1]) + bytes(range(19)), bytes(range(19))),  # long count: 15 + 1 + 3
        (bytes([17 + 4]) + b"abcd" + bytes([64 | 3 << 2, 0]), b"abcdabc"),  # M2: 3 of 4 back
        (bytes([17 + 4]) + b"abcd" + bytes([32 | 6, 0, 0]), b"abcd" + b"d" * 8),  # M3, overlap
        (bytes([17 + 1]) + b"a" + bytes([0, 0]), b"aaa"),  # M1 after 1 literal: 2 of 1 back
    ],
)
def test_decompress_block_follows_the_instructions(stream: bytes, unpacked: bytes) -> None:
    """Each kind of instruction does what lzo.rst says."""
    assert decompress_block(stream + END, len(unpacked)) == unpacked


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        bytes([17 + 5]) + b"he",  # cut in literals
        bytes([17 + 4]) + b"abcd" + bytes([64 | 4 << 2, 0]) + END,  # 5 back of 4
        bytes([17 + 4]) + b"abcd" + bytes([32, 0, 0, 0, 255, 0, 0]) + END,  # far too long
        bytes([17 + 4]) + b"abcd" + END + b"x",  # something behind the end
        bytes([17 + 4]) + b"abcd",  # no end
    ],
)
def test_decompress_block_rejects_what_cannot_be(stream: bytes) -> None:
    """A stream that reads or writes outside itself is an LzoError."""
    with pytest.raises(LzoError):
        decompress_block(stream, 4)


@pytest.mark.parametrize("options", [("-1",), ("-3",), ("-9",), ("-F",), ("--crc32", "-C")])
def test_decompress_lzop_reads_what_lzop_writes(options: tuple[str, ...]) -> None:
    """Levels, checksums of both kinds and stored blocks come back as they were."""
    chance = random.Random(1)
    text = bytes(chance.choice(b"abcd ") for _ in range(400_000))
    data = text + chance.randbytes(300_000) + bytes(300_000)

    assert b"".join(decompress_lzop(_lzop(data, *options))) == data


def test_decompress_lzop_checks_the_checksum() -> None:
    """A changed stored block is noticed."""
    packed = bytearray(_lzop(random.Random(2).randbytes(1000)))
    packed[-100] ^= 1

    with pytest.raises(LzoError, match="checksum"):
        list(decompress_lzop(memoryview(packed)))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 5000))
def test_decompress_block_survives_any_bytes(stream: bytes, size: int) -> None:
    """Random instructions end in the size asked for, or in an LzoError."""
    try:
        assert len(decompress_block(stream, size)) == size
    except LzoError:
        pass
