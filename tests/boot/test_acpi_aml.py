"""The AML encoder against the specification's rules and examples."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.acpi import aml, resources


def parse_pkg_length(data: bytes) -> tuple[int, int]:
    """Total length and size of the PkgLength at the start of ``data`` (ACPI 6.5, 20.2.4)."""
    extra = data[0] >> 6
    if extra == 0:
        return data[0] & 0x3F, 1
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + extra], "little") << 4, 1 + extra


@settings(deadline=None)
@given(st.integers(0, (1 << 28) - 5))
def test_pkg_length_counts_itself_and_the_body(size: int) -> None:
    """What a parser reads back is the body plus the PkgLength's own bytes."""
    encoded = aml.pkg_length(size)
    assert parse_pkg_length(encoded) == (size + len(encoded), len(encoded))
    assert encoded[0] & 0x30 == 0 or len(encoded) == 1


@pytest.mark.parametrize(
    ("size", "encoded"),
    [(0, "01"), (62, "3f"), (63, "4104"), (0xFFD, "4fff"), (0xFFE, "810001"), (0xFFFFC, "8fffff")],
)
def test_pkg_length_is_shortest_at_its_borders(size: int, encoded: str) -> None:
    """The form grows exactly when the shorter one cannot hold the total."""
    assert aml.pkg_length(size).hex() == encoded


@pytest.mark.parametrize("size", [-1, (1 << 28) - 4, 1 << 30])
def test_pkg_length_out_of_range_is_refused(size: int) -> None:
    """28 bits are all there is."""
    with pytest.raises(ValueError, match="bytes"):
        aml.pkg_length(size)


@settings(deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_integer_is_the_shortest_form_that_holds_it(value: int) -> None:
    """Zero and One have opcodes; all others a prefix and 1, 2, 4 or 8 bytes."""
    encoded = aml.integer(value)
    widths = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}
    if value < 2:
        assert encoded == bytes([value])
    else:
        width = widths[encoded[0]]
        assert int.from_bytes(encoded[1:], "little") == value
        assert len(encoded) == 1 + width
        assert width == 1 or value >> (4 * width)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_out_of_range_is_refused(value: int) -> None:
    """AML integers are unsigned, of 64 bits."""
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(value)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_S5", b"_S5_"),
        ("\\_SB", b"\\_SB_"),
        ("\\", b"\\\0"),
        ("^^A", b"^^A___"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("_SB.PCI0.COM1", b"\x2f\x03_SB_PCI0COM1"),
    ],
)
def test_name_strings(path: str, encoded: bytes) -> None:
    """Root and parent prefixes, single, dual and multiple segments."""
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["toolong", "abc", "1ABC", "A.", "A-B", "Ä"])
def test_bad_names_are_refused(path: str) -> None:
    """A segment is one to four of A-Z, 0-9, _ and starts with no digit."""
    with pytest.raises(ValueError, match="name segment"):
        aml.name_string(path)


def test_eisa_id_is_the_well_known_number() -> None:
    """EISAID("PNP0A03") is 0x030AD041 in every disassembly."""
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


def test_uuid_has_the_mixed_byte_order() -> None:
    """ToUUID: the first three groups little-endian, the others as written."""
    encoded = aml.uuid("33db4d5b-1ff7-401c-9657-7441c03dd766")
    assert encoded[-16:].hex() == "5b4ddb33f71f1c4096577441c03dd766"


def test_package_counts_its_elements() -> None:
    """A package of 256 elements needs VarPackage and is refused."""
    assert aml.package(aml.integer(5), aml.integer(0)) == b"\x12\x05\x02\x0a\x05\x00"
    with pytest.raises(ValueError, match="255"):
        aml.package(*[b"\0"] * 256)


def test_resource_template_ends_with_the_end_tag() -> None:
    """IO and IRQ descriptors as the tables of 6.4.2 have them."""
    encoded = resources.template(resources.io(0x3F8, 8), resources.irq(4, shared=True))
    assert encoded == bytes.fromhex("1111 0a0e 4701f803f8030108 23100011 7900")


def test_qword_memory_descriptor() -> None:
    """Length field, maximum and size of a 256 GiB window."""
    encoded = resources.qword_memory(0x40_0000_0000, 0x40_0000_0000)
    assert encoded[:6] == bytes.fromhex("8a2b00 00 0c 03")
    assert encoded[14:30] == bytes.fromhex("0000000040000000 ffffffff7f000000")
    assert encoded[-8:] == bytes.fromhex("0000000040000000")
