"""ACPI tables: what an operating system checks before it believes them."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kvmkit.board import layout
from kvmkit.boot.acpi import AcpiConfig, table_block
from kvmkit.errors import UsageError

needs_iasl = pytest.mark.skipif(
    shutil.which("iasl") is None, reason="needs iasl (Debian package acpica-tools)"
)


def machine(cpus: int = 4, tables_size: int = layout.ACPI_TABLES_SIZE) -> AcpiConfig:
    """The board's numbers, as the board hands them in."""
    return AcpiConfig(
        tables=layout.ACPI_TABLES,
        tables_size=tables_size,
        cpus=cpus,
        lapic=layout.LAPIC,
        ioapic=layout.IOAPIC,
        ioapic_id=layout.IOAPIC_ID,
        gsi_pit=layout.GSI_PIT,
        sci_irq=layout.IRQ_SCI,
        pm1a_event=layout.PM1A_EVENT,
        pm1a_control=layout.PM1A_CONTROL,
        pm_timer=layout.PM_TIMER,
        gpe0=layout.GPE0,
        reset_port=layout.RESET,
        reset_value=layout.RESET_VALUE,
        s5_sleep_type=layout.S5_SLEEP_TYPE,
        ecam=layout.PCI_ECAM,
        ecam_size=layout.PCI_ECAM_SIZE,
        pci_window_32=layout.PCI_WINDOW_32,
        pci_window_32_size=layout.PCI_WINDOW_32_SIZE,
        pci_window_64=layout.PCI_WINDOW_64,
        pci_window_64_size=layout.PCI_WINDOW_64_SIZE,
        pci_config_port=layout.PCI_CONFIG_ADDRESS,
        gsi_pci=layout.GSI_PCI,
        serial_ports=layout.SERIAL_PORTS,
        rtc=layout.RTC,
        rtc_irq=layout.IRQ_RTC,
    )


def split(block: bytes) -> dict[str, bytes]:
    """Every table of ``block`` by signature, found as a guest finds them: from the RSDP."""

    def at(address: int) -> bytes:
        start = address - layout.ACPI_TABLES
        (length,) = struct.unpack_from("<I", block, start + 4)
        return block[start : start + length]

    xsdt = at(struct.unpack_from("<Q", block, 24)[0])
    addresses = struct.unpack_from(f"<{(len(xsdt) - 36) // 8}Q", xsdt, 36)
    found = {"XSDT": xsdt} | {at(address)[:4].decode(): at(address) for address in addresses}
    facs, dsdt = struct.unpack_from("<II", found["FACP"], 36)
    return found | {"FACS": at(facs), "DSDT": at(dsdt)}


def test_rsdp_comes_first_and_both_its_checksums_hold() -> None:
    """A guest that scans 0xE0000 upwards finds the RSDP at once."""
    block = table_block(machine())
    assert block[:8] == b"RSD PTR "
    assert sum(block[:20]) & 0xFF == 0
    assert sum(block[:36]) & 0xFF == 0
    assert layout.ACPI_TABLES % 16 == 0


@pytest.mark.parametrize("cpus", [1, 4, 64])
def test_all_tables_are_reachable_with_good_checksums(cpus: int) -> None:
    """Every table sums to zero over the length its header gives."""
    tables = split(table_block(machine(cpus)))
    assert set(tables) == {"XSDT", "FACP", "APIC", "MCFG", "FACS", "DSDT"}
    assert all(sum(data) & 0xFF == 0 for name, data in tables.items() if name != "FACS")


@pytest.mark.parametrize("cpus", [1, 4, 64])
def test_tables_fit_the_space_of_the_layout(cpus: int) -> None:
    """128 KiB below 1 MiB are enough for the largest machine."""
    assert len(table_block(machine(cpus))) <= layout.ACPI_TABLES_SIZE


def test_fadt_describes_fixed_hardware_in_acpi_mode() -> None:
    """Revision 6, SCI 9, no SMI command, the ports of the layout in both sizes of field."""
    fadt = split(table_block(machine()))["FACP"]
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 5)
    assert struct.unpack_from("<H", fadt, 46) == (9,)
    assert struct.unpack_from("<I", fadt, 48) == (0,)
    assert struct.unpack_from("<I", fadt, 56) == (0x600,)
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<II", fadt, 76) == (0x608, 0x620)
    assert bytes(fadt[88:93]) == bytes([4, 2, 0, 4, 4])
    assert struct.unpack_from("<BBBBQ", fadt, 148) == (1, 32, 0, 2, 0x600)
    assert struct.unpack_from("<BBBBQ", fadt, 172) == (1, 16, 0, 2, 0x604)
    assert struct.unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 3, 0x608)
    assert struct.unpack_from("<BBBBQ", fadt, 220) == (1, 32, 0, 1, 0x620)


def test_fadt_reset_register_and_flags() -> None:
    """Reset by 6 to port 0xCF9; no 8042, no VGA; power button fixed; not hardware-reduced."""
    fadt = split(table_block(machine()))["FACP"]
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)
    assert struct.unpack_from("<H", fadt, 109) == (0b1_0101,)
    assert struct.unpack_from("<I", fadt, 112) == (0x565,)


def test_fadt_points_at_dsdt_twice_and_at_an_aligned_facs() -> None:
    """DSDT and X_DSDT agree; the FACS lies on a 64-byte boundary."""
    fadt = split(table_block(machine()))["FACP"]
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert struct.unpack_from("<QQ", fadt, 132) == (0, dsdt)
    assert facs % 64 == 0


@pytest.mark.parametrize("cpus", [1, 4, 64])
def test_madt_has_one_enabled_local_apic_per_cpu(cpus: int) -> None:
    """Entries of type 0 carry the identifiers 0..cpus-1, all enabled."""
    madt = split(table_block(machine(cpus)))["APIC"]
    entries = [struct.unpack_from("<BBBBI", madt, 44 + 8 * index) for index in range(cpus)]
    assert entries == [(0, 8, index, index, 1) for index in range(cpus)]


def test_madt_routes_interrupts() -> None:
    """I/O APIC at GSI 0, IRQ 0 on pin 2, the SCI level and active high, NMI on LINT1."""
    madt = split(table_block(machine(1)))["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (layout.LAPIC, 1)
    assert struct.unpack_from("<BBBBII", madt, 52) == (1, 12, 0, 0, layout.IOAPIC, 0)
    assert struct.unpack_from("<BBBBIH", madt, 64) == (2, 10, 0, 0, 2, 0)
    assert struct.unpack_from("<BBBBIH", madt, 74) == (2, 10, 0, 9, 9, 0b1101)
    assert struct.unpack_from("<BBBHB", madt, 84) == (4, 6, 0xFF, 0, 1)
    assert len(madt) == 90


def test_mcfg_covers_all_buses_of_the_ecam() -> None:
    """One allocation: segment 0, one bus for each MiB."""
    config = dataclasses.replace(machine(), ecam_size=256 << 20)
    one, all_buses = split(table_block(machine()))["MCFG"], split(table_block(config))["MCFG"]
    assert struct.unpack_from("<QHBB", one, 44) == (layout.PCI_ECAM, 0, 0, 0)
    assert struct.unpack_from("<QHBB", all_buses, 44) == (layout.PCI_ECAM, 0, 0, 255)


def test_machine_without_pm_timer_says_so() -> None:
    """Address, length and extended address of an absent PM timer are all zero."""
    config = dataclasses.replace(machine(), pm_timer=0)
    fadt = split(table_block(config))["FACP"]
    assert struct.unpack_from("<I", fadt, 76) == (0,)
    assert fadt[91] == 0
    assert fadt[208:220] == bytes(12)


def test_same_machine_gives_same_bytes() -> None:
    """The tables depend on the configuration only, so that a caller may cache them."""
    assert table_block(machine()) == table_block(machine())


@pytest.mark.parametrize("cpus", [0, -1, 256])
def test_impossible_number_of_cpus_is_refused(cpus: int) -> None:
    """The short MADT entries name local APICs 0 to 254."""
    with pytest.raises(UsageError, match=f"not {cpus}"):
        table_block(machine(cpus))


def test_too_little_room_is_refused() -> None:
    """Tables that would run into the next region are an error, not an overlap."""
    with pytest.raises(UsageError, match="there is room for 1024"):
        table_block(machine(tables_size=1024))


def iasl(*arguments: str, cwd: Path) -> str:
    """Run iasl and return all it said."""
    done = subprocess.run(
        ["iasl", *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def disassemble(name: str, cpus: int, cwd: Path) -> str:
    """The source that iasl makes of a table of a machine with ``cpus`` CPUs."""
    (cwd / f"{name}.aml").write_bytes(split(table_block(machine(cpus)))[name])
    said = iasl("-d", f"{name}.aml", cwd=cwd)
    assert "rror" not in said
    assert "arning" not in said
    return (cwd / f"{name}.dsl").read_text()


@needs_iasl
@pytest.mark.parametrize("cpus", [1, 4, 64])
@pytest.mark.parametrize("name", ["DSDT", "FACP", "APIC", "MCFG", "FACS"])
def test_table_survives_disassembly_and_compilation(name: str, cpus: int, tmp_path: Path) -> None:
    """iasl reads the table, and compiles its own reading without a complaint."""
    disassemble(name, cpus, tmp_path)
    said = iasl("-p", "again", f"{name}.dsl", cwd=tmp_path)
    assert "0 Errors, 0 Warnings, 0 Remarks" in said


@needs_iasl
def test_dsdt_names_the_devices_of_the_board(tmp_path: Path) -> None:
    """Processors, host bridge, four serial ports, RTC, and no keyboard."""
    source = disassemble("DSDT", 4, tmp_path)
    assert source.count('"ACPI0007"') == 4
    assert source.count('EisaId ("PNP0501")') == 4
    assert 'EisaId ("PNP0A08")' in source
    assert 'EisaId ("PNP0B00")' in source
    assert "PNP0303" not in source
    assert "Name (\\_S5, Package (0x04)" in source


@needs_iasl
def test_interrupt_routes_swizzle_over_eight_gsis(tmp_path: Path) -> None:
    """Slot s, pin p goes to GSI 16 + (s + p) % 8."""
    source = "".join(disassemble("DSDT", 1, tmp_path).split())
    assert "Package(0x04){0xFFFF,Zero,Zero,0x10}" in source
    assert "Package(0x04){0x0001FFFF,0x03,Zero,0x14}" in source
    assert "Package(0x04){0x001FFFFF,One,Zero,0x10}" in source
