"""The compressed kernel in a bzImage: every format, and what is wrong with it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.decompress import UNPACKED_MAX, compression, unpack, unpacked_size
from kvmkit.errors import BadKernel, KvmkitError
from tests.boot.kernel_images import MIB, PACKERS, elf64, pack_lz4

KERNEL = elf64() + bytes(70_000) + bytes(range(256)) * 40


@pytest.mark.parametrize("name", sorted(PACKERS))
def test_unpack_restores_each_format(name: str) -> None:
    """Each of Linux's seven compressions is recognised and unpacked."""
    payload = memoryview(PACKERS[name](KERNEL))

    assert compression(payload) == name
    assert bytes(unpack(payload)) == KERNEL


def test_unpack_joins_lz4_blocks() -> None:
    """A legacy frame of several blocks is one kernel."""
    payload = memoryview(pack_lz4(KERNEL, block=1000))

    assert bytes(unpack(payload)) == KERNEL


def test_unpack_continues_at_a_second_lz4_magic() -> None:
    """Two legacy frames behind each other are one stream."""
    first, second = pack_lz4(KERNEL)[:-4], pack_lz4(KERNEL)[:-4]
    payload = memoryview(first + second + struct.pack("<I", 2 * len(KERNEL)))

    assert bytes(unpack(payload)) == KERNEL * 2


@pytest.mark.parametrize("name", sorted(PACKERS))
@pytest.mark.parametrize("by", [-1, 1])
def test_unpack_rejects_a_wrong_size_field(name: str, by: int) -> None:
    """The unpacked length must be the one the kernel claims."""
    payload = PACKERS[name](KERNEL)[:-4] + struct.pack("<I", len(KERNEL) + by)

    with pytest.raises(BadKernel, match="damaged"):
        unpack(memoryview(payload))


@pytest.mark.parametrize("name", sorted(PACKERS))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_unpack_rejects_a_cut_stream(name: str, share: float) -> None:
    """A stream that ends early is damage, whatever the format."""
    whole = PACKERS[name](KERNEL)
    payload = whole[: max(16, int(len(whole) * share))] + whole[-4:]

    with pytest.raises(BadKernel):
        unpack(memoryview(payload))


@pytest.mark.parametrize("start", [b"\0" * 16, b"Salted__abcdefgh", b"\xff" * 16])
def test_unpack_names_the_bytes_of_an_unknown_compression(start: bytes) -> None:
    """An encrypted or unknown payload is shown by its first bytes, with what is known."""
    with pytest.raises(BadKernel, match=start[:4].hex(" ")) as caught:
        unpack(memoryview(start + bytes(32)))

    assert "zstd" in caught.value.hint


@pytest.mark.parametrize("size", [0, UNPACKED_MAX + 1, 0xFFFF_FFFF])
def test_unpacked_size_rejects_the_impossible(size: int) -> None:
    """No memory is asked for on the word of a damaged size field."""
    with pytest.raises(BadKernel, match=str(size)):
        unpacked_size(memoryview(bytes(8) + struct.pack("<I", size)))


def test_unpack_stops_a_bomb_early() -> None:
    """A stream larger than it claims is given up at the first byte too many."""
    bomb = PACKERS["gzip"](bytes(200 * MIB))
    payload = bomb[:-4] + struct.pack("<I", 4096)

    with pytest.raises(BadKernel, match="more than the 4096 bytes"):
        unpack(memoryview(payload))


SMALL: dict[str, bytes] = {}


def _small(name: str) -> bytes:
    if name not in SMALL:
        SMALL[name] = PACKERS[name](KERNEL[:3000])
    return SMALL[name]


@pytest.mark.parametrize("name", sorted(PACKERS))
def test_mutated_streams_raise_nothing_else(name: str) -> None:
    """Whatever is changed in a stream: it unpacks, or is a BadKernel."""
    whole = _small(name)

    @settings(deadline=None, max_examples=150)
    @given(
        st.lists(
            st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=6
        )
    )
    def check(changes: list[tuple[int, int]]) -> None:
        payload = bytearray(whole)
        for at, value in changes:
            payload[at] = value
        payload[-2:] = b"\0\0"  # keeps the claimed size, and the test's memory, small
        try:
            unpack(memoryview(payload))
        except KvmkitError as error:
            assert str(error)

    check()
