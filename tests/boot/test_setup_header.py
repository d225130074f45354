"""The setup header: fields, defaults of old protocols, damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.setup_header import is_bzimage, parse_setup_header
from kvmkit.errors import BadKernel, KvmkitError
from tests.boot.kernel_images import bzimage

PAYLOAD = b"\x1f\x8b" + bytes(100)


def test_parse_reads_all_fields() -> None:
    """A current kernel's fields come out as they stand in the file."""
    header = parse_setup_header(memoryview(bzimage(PAYLOAD)))

    assert header.protocol == 0x20F
    assert header.code_offset == 5 * 512
    assert header.entry_64
    assert header.above_4g
    assert header.relocatable
    assert header.alignment == 0x20_0000
    assert header.cmdline_size == 2047
    assert header.initrd_addr_max == 0x7FFF_FFFF
    assert (header.payload_offset, header.payload_length) == (0x300, len(PAYLOAD))
    assert header.pref_address == 0x100_0000
    assert header.version == "6.9.1-test (me@here) #1 SMP"
    assert header.raw[0x202 - 0x1F1 :][:4] == b"HdrS"
    assert len(header.raw) == 0x26C - 0x1F1


def test_parse_gives_old_protocols_their_defaults() -> None:
    """Fields a protocol does not have yet are not read, whatever stands there."""
    header = parse_setup_header(memoryview(bzimage(PAYLOAD, protocol=0x204)))

    assert not header.entry_64
    assert not header.relocatable
    assert header.cmdline_size == 255
    assert header.payload_length == 0
    assert header.pref_address == 0x10_0000


def test_parse_takes_zero_sectors_for_four() -> None:
    """setup_sects 0 means 4 (boot.rst)."""
    image = bytearray(bzimage(PAYLOAD))
    image[0x1F1] = 0

    assert parse_setup_header(memoryview(image)).code_offset == 5 * 512


def test_parse_rejects_an_old_protocol() -> None:
    """A kernel from before 2.6.14 is named as such."""
    with pytest.raises(BadKernel, match=r"2\.03.*2\.04"):
        parse_setup_header(memoryview(bzimage(PAYLOAD, protocol=0x203)))


def test_parse_rejects_a_zimage() -> None:
    """A kernel to be loaded low is refused."""
    with pytest.raises(BadKernel, match="zImage"):
        parse_setup_header(memoryview(bzimage(PAYLOAD, loadflags=0)))


@pytest.mark.parametrize("size", [0x210, 0x300, 5 * 512])
def test_parse_rejects_a_file_cut_in_its_setup_code(size: int) -> None:
    """A file that ends in the setup code is truncated."""
    with pytest.raises(BadKernel, match="truncated"):
        parse_setup_header(memoryview(bzimage(PAYLOAD)[:size]))


def test_parse_rejects_a_file_cut_in_its_payload() -> None:
    """The message says how long the file should be, and is."""
    image = bzimage(PAYLOAD)[: 5 * 512 + 0x300 + 50]

    with pytest.raises(BadKernel, match=f"ends at byte {5 * 512 + 0x300 + 102}.*{len(image)}"):
        parse_setup_header(memoryview(image))


@pytest.mark.parametrize("jump", [0, 10, 0x20])
def test_parse_rejects_a_header_that_ends_too_early(jump: int) -> None:
    """The jump over the header tells its end; one inside the old fields is damage."""
    image = bytearray(bzimage(PAYLOAD))
    image[0x201] = jump

    with pytest.raises(BadKernel, match="damaged"):
        parse_setup_header(memoryview(image))


def test_version_is_printable() -> None:
    """Control characters of a version string do not reach a terminal."""
    header = parse_setup_header(memoryview(bzimage(PAYLOAD, version=b"6.1\x1b[2J\xff")))

    assert header.version.startswith("6.1?[2J")


def test_version_may_be_missing() -> None:
    """kernel_version 0 means there is none."""
    assert parse_setup_header(memoryview(bzimage(PAYLOAD, version=b""))).version == ""


@settings(deadline=None, max_examples=400)
@given(
    st.dictionaries(st.integers(0x1F1, 0x270), st.integers(0, 255), max_size=12),
    st.integers(0x208, 5000),
)
def test_parse_survives_any_header(changes: dict[int, int], size: int) -> None:
    """A mutated, cut header gives a header inside the file, or a BadKernel."""
    image = bytearray(bzimage(PAYLOAD))
    for at, value in changes.items():
        image[at] = value
    data = memoryview(image)[:size]
    if not is_bzimage(data):
        return

    try:
        header = parse_setup_header(data)
    except KvmkitError as error:
        assert str(error)
        return

    start = header.code_offset + header.payload_offset
    assert header.code_offset < len(data)
    assert not header.payload_length or start + header.payload_length <= len(data)


def test_is_bzimage_needs_both_signatures() -> None:
    """Boot sector and header magic."""
    image = bytearray(bzimage(PAYLOAD))
    struct.pack_into("<H", image, 0x1FE, 0)

    assert not is_bzimage(memoryview(image))
    assert not is_bzimage(memoryview(b""))
