"""PCI: a mock driver enumerates, sizes and programs BARs, and gets interrupts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.device import Device
from kvmkit.devices.pci import BarKind, PciFunction, intx_line
from kvmkit.devices.pci_assign import assign_bars
from kvmkit.errors import UsageError
from tests.devices.pci_mock import ECAM, MEMORY_WINDOWS, Driver, Machine, TestDevice

WAYS = ["ports", ECAM]
SLOT1 = 1 << 3
MEMORY, PORTS, MEMORY64 = 0xC100_0000, 0x2000, 0x41_0000_0000


def plugged(way: str = ECAM) -> tuple[Machine, TestDevice, Driver]:
    """A machine with one test device in slot 1, not programmed."""
    machine = Machine()
    device = TestDevice(machine)
    machine.bus.add(device)
    return machine, device, Driver(machine, way)


def programmed() -> tuple[Machine, TestDevice, Driver]:
    """The same with its BARs mapped and enabled."""
    machine, device, driver = plugged()
    driver.program(SLOT1, MEMORY, PORTS, MEMORY64)
    return machine, device, driver


@pytest.mark.parametrize("way", WAYS)
def test_host_bridge_identity(way: str) -> None:
    """Function 00:00.0 is the generic host bridge."""
    driver = Driver(Machine(), way)
    assert driver.read(0, 0, 4) == 0x0008_1B36
    assert driver.read(0, 0x0A, 2) == 0x0600
    assert driver.read(0, 0x0E, 1) == 0


@pytest.mark.parametrize("way", WAYS)
def test_enumeration_finds_what_is_plugged_in(way: str) -> None:
    """Absent functions and other buses read all ones; functions 1 to 7 need bit 7."""
    machine = Machine()
    driver = Driver(machine, way)
    for slot, number in ((3, 0), (5, 2), (5, 0)):
        machine.bus.add(TestDevice(machine), slot, number)
    assert driver.enumerate() == [0, 3 << 3, 5 << 3, 5 << 3 | 2]
    assert driver.read(0, 0, 4, bus=1) == 0xFFFF_FFFF


def test_slots_are_handed_out_and_guarded() -> None:
    """The first free slot is used; a taken or missing one is a clear error."""
    machine = Machine()
    assert machine.bus.add(TestDevice(machine)) == 1
    assert machine.bus.add(TestDevice(machine), slot=2) == 2
    assert machine.bus.add(TestDevice(machine)) == 3
    with pytest.raises(UsageError, match=r"00:02\.0 is taken"):
        machine.bus.add(TestDevice(machine), slot=2)
    with pytest.raises(UsageError, match="slot"):
        machine.bus.add(TestDevice(machine), slot=32)
    for _ in range(28):
        machine.bus.add(TestDevice(machine))
    with pytest.raises(UsageError, match="free slot"):
        machine.bus.add(TestDevice(machine))


@pytest.mark.parametrize("way", WAYS)
def test_bar_sizing(way: str) -> None:
    """Writing all ones shows flags and size; nothing is mapped meanwhile."""
    machine, _, driver = plugged(way)
    assert driver.size_bar(SLOT1, 0) == (0, 4096)
    assert driver.size_bar(SLOT1, 1) == (1, 32)
    assert driver.size_bar(SLOT1, 2) == (0xC, 1 << 16)
    driver.write(SLOT1, 0x1C, 4, 0xFFFF_FFFF)
    assert driver.read(SLOT1, 0x1C, 4) == 0xFFFF_FFFF
    assert driver.size_bar(SLOT1, 4) == (0, 4096)
    driver.write(SLOT1, 0x24, 4, 0xFFFF_FFFF)
    assert driver.read(SLOT1, 0x24, 4) == 0
    assert driver.read(SLOT1, 0x30, 4) == 0
    assert machine.mapped == {}


@pytest.mark.parametrize("way", WAYS)
def test_decoding_maps_moves_and_unmaps(way: str) -> None:
    """BARs appear with the command register's enables, follow their address, and go."""
    machine, device, driver = plugged(way)
    driver.program(SLOT1, MEMORY, PORTS, MEMORY64)
    assert machine.mapped == {
        (device, 0): MEMORY,
        (device, 1): PORTS,
        (device, 2): MEMORY64,
        (device, 4): MEMORY + 0x1000,
    }
    driver.write(SLOT1, 0x10, 4, MEMORY + 0x10_0000)
    assert machine.mapped[device, 0] == MEMORY + 0x10_0000
    driver.write(SLOT1, 0x04, 2, 0x0001)
    assert machine.mapped == {(device, 1): PORTS}
    driver.write(SLOT1, 0x04, 2, 0)
    assert machine.mapped == {}


def test_registers_behind_a_bar() -> None:
    """The device's registers answer at the BAR's address."""
    machine, device, _ = programmed()
    machine.access(MEMORY, 4, 0xCAFE_F00D)
    assert device.value == 0xCAFE_F00D
    assert machine.access(MEMORY64, 4) == 0xCAFE_F00D


@pytest.mark.parametrize(
    "address", [0, 0x1000, 0xFEE0_0000, 0xFFFF_F000, 0xE000_0000, 0xDFFF_F000 + 0x1000]
)
def test_bar_outside_the_windows_is_not_mapped(address: int) -> None:
    """The host bridge does not forward RAM's, APICs' or ECAM's addresses to a BAR."""
    machine, device, driver = programmed()
    driver.write(SLOT1, 0x10, 4, address)
    assert (device, 0) not in machine.mapped
    driver.write(SLOT1, 0x10, 4, MEMORY)
    assert machine.mapped[device, 0] == MEMORY


def test_of_overlapping_bars_one_is_mapped() -> None:
    """The lower slot wins; the other appears once there is room."""
    machine, device, driver = programmed()
    other = TestDevice(machine)
    machine.bus.add(other)
    driver.program(2 << 3, MEMORY, PORTS, MEMORY64)
    assert {function for function, _ in machine.mapped} == {device}
    driver.write(SLOT1, 0x04, 2, 0)
    assert {function for function, _ in machine.mapped} == {other}


def test_read_only_and_writable_bits() -> None:
    """Identity cannot be written; reserved command bits stay 0; the interrupt line is kept."""
    _, _, driver = plugged()
    before = driver.read(SLOT1, 0, 4)
    driver.write(SLOT1, 0, 4, 0)
    driver.write(SLOT1, 0x04, 2, 0xFFFF)
    driver.write(SLOT1, 0x3C, 2, 0xFFFF)
    assert driver.read(SLOT1, 0, 4) == before
    assert driver.read(SLOT1, 0x04, 2) == 0x0547
    assert driver.read(SLOT1, 0x3C, 2) == 0x01FF


def test_status_errors_are_cleared_by_ones() -> None:
    """Error bits go when written with 1; the capability bit stays."""
    _, device, driver = plugged()
    device.config.poke(0x06, b"\x10\xf9")
    driver.write(SLOT1, 0x06, 2, 0x0800)
    assert driver.read(SLOT1, 0x06, 2) == 0xF110
    driver.write(SLOT1, 0x06, 2, 0xFFFF)
    assert driver.read(SLOT1, 0x06, 2) == 0x0010


def test_capability_list() -> None:
    """All capabilities are linked, aligned, and writable where their mask says."""
    _, _, driver = plugged()
    found = dict(driver.capabilities(SLOT1))
    assert list(found) == [0x11, 0x10, 0x09]
    assert all(at % 4 == 0 for at in found.values())
    vendor = found[0x09]
    driver.write(SLOT1, vendor + 2, 4, 0xFFFF_FFFF)
    assert driver.read(SLOT1, vendor + 2, 4) == int.from_bytes(b"\x06\0\xffb", "little")


def test_extended_capabilities() -> None:
    """They begin at 0x100, are linked by their headers, and only ECAM reaches them."""
    machine, device, driver = plugged()
    first = device.config.add_extended_capability(0x000B, 1, bytes(8))
    second = device.config.add_extended_capability(0x0003, 1, bytes(range(8)))
    assert (first, second) == (0x100, 0x10C)
    assert driver.read(SLOT1, 0x100, 4) == 0x10C1_000B
    assert driver.read(SLOT1, 0x10C, 4) == 0x0001_0003
    assert driver.read(SLOT1, 0x110, 8) == 0x0706_0504_0302_0100
    assert machine.bus.ecam.read(SLOT1 << 12 | 0xFFE, 4) == 0xFFFF_FFFF


def test_capabilities_that_do_not_fit() -> None:
    """The lists end where their spaces do."""
    _, device, _ = plugged()
    with pytest.raises(ValueError, match="no space"):
        device.add_capability(0x09, bytes(200))
    with pytest.raises(ValueError, match="no space"):
        device.config.add_extended_capability(0x0B, 1, bytes(3840))


@pytest.mark.parametrize(
    ("index", "size", "kind"),
    [
        (5, 3000, BarKind.MEMORY32),
        (5, 4096, BarKind.MEMORY64),
        (0, 4096, BarKind.MEMORY32),
        (3, 4096, BarKind.MEMORY32),
        (5, 512, BarKind.IO),
        (6, 4096, BarKind.MEMORY32),
    ],
)
def test_bars_that_cannot_be(index: int, size: int, kind: BarKind) -> None:
    """Odd sizes, taken registers and too wide ones are refused."""
    machine, device, _ = plugged()
    with pytest.raises(ValueError, match=r"expected|no free BAR"):
        device.add_bar(index, size, device.add_express_capability, kind=kind)  # type: ignore[arg-type]
    assert machine.mapped == {}


def test_config_address_takes_dwords_only() -> None:
    """Byte and word accesses are plain I/O; reserved bits read 0; no enable, no data."""
    bus = Machine().bus
    bus.config_address.write(0, 4, 0xFFFF_FFFF)
    assert bus.config_address.read(0, 4) == 0x80FF_FFFC
    bus.config_address.write(0, 4, 0x8000_0000)
    bus.config_address.write(0, 1, 0x55)
    bus.config_address.write(1, 1, 0x06)
    assert bus.config_address.read(0, 4) == 0x8000_0000
    assert bus.config_address.read(1, 1) == 0xFF
    assert bus.config_data.read(2, 2) == 0x0008
    assert bus.config_data.read(3, 1) == 0x00
    bus.config_address.write(0, 4, 0)
    assert bus.config_data.read(0, 4) == 0xFFFF_FFFF


def test_intx_reaches_the_line_of_slot_and_pin() -> None:
    """The line follows the pin; interrupt status tells of it."""
    machine, _, driver = programmed()
    machine.access(MEMORY + 4, 4, 0)
    assert [line.level for line in machine.lines] == [n == 1 for n in range(8)]
    assert driver.read(SLOT1, 0x06, 2) & 0x08
    machine.access(MEMORY + 8, 4, 0)
    assert not any(line.level for line in machine.lines)
    assert not driver.read(SLOT1, 0x06, 2) & 0x08


def test_intx_disable_silences_the_pin_not_the_status() -> None:
    """Command bit 10 gates the pin only."""
    machine, device, driver = programmed()
    device.set_intx(True)
    driver.write(SLOT1, 0x04, 2, 0x0407)
    assert machine.lines[1].changes == [True, False]
    assert driver.read(SLOT1, 0x06, 2) & 0x08
    driver.write(SLOT1, 0x04, 2, 0x0007)
    assert machine.lines[1].level


def test_shared_lines_are_wired_or() -> None:
    """A line stays up until the last of its functions lets it go."""
    machine = Machine()
    first, second = TestDevice(machine), TestDevice(machine, pin=2)
    machine.bus.add(first, slot=9)
    machine.bus.add(second, slot=8)
    first.set_intx(True)
    second.set_intx(True)
    first.set_intx(False)
    assert machine.lines[1].changes == [True]
    second.set_intx(False)
    assert machine.lines[1].changes == [True, False]


def test_line_of_slot_and_pin() -> None:
    """Slots and pins rotate over eight lines."""
    assert [intx_line(slot, 0) for slot in (0, 1, 7, 8, 31)] == [0, 1, 7, 0, 7]
    assert [intx_line(6, pin) for pin in range(4)] == [6, 7, 0, 1]


def test_msix_vector_reaches_the_cpu() -> None:
    """The driver programs a vector; the device's interrupt is its message, not INTx."""
    machine, _, driver = programmed()
    driver.enable_vector(SLOT1, MEMORY + 0x1000, 2, 0xFEE0_1000, 0x4041)
    machine.access(MEMORY + 4, 4, 2)
    assert machine.messages == [(0xFEE0_1000, 0x4041)]
    assert machine.vectors == [(2, 0xFEE0_1000, 0x4041, False)]
    assert machine.lines[1].changes == []


def test_msix_enable_takes_the_pin_down() -> None:
    """A function that uses MSI-X must not drive its pin."""
    machine, device, driver = programmed()
    device.set_intx(True)
    driver.enable_vector(SLOT1, MEMORY + 0x1000, 0, 0xFEE0_0000, 0x41)
    assert machine.lines[1].changes == [True, False]


def test_without_bus_master_vectors_wait() -> None:
    """A message is a write to memory: it needs the bus master bit."""
    machine, _, driver = programmed()
    driver.enable_vector(SLOT1, MEMORY + 0x1000, 0, 0xFEE0_0000, 0x41)
    driver.write(SLOT1, 0x04, 2, 0x0003)
    machine.access(MEMORY + 4, 4, 0)
    assert machine.messages == []
    driver.write(SLOT1, 0x04, 2, 0x0007)
    assert machine.messages == [(0xFEE0_0000, 0x41)]


def test_assign_bars_as_firmware() -> None:
    """Every BAR gets a place in its window, a multiple of its size, and is enabled."""
    machine = Machine()
    devices = [TestDevice(machine) for _ in range(3)]
    for device in devices:
        machine.bus.add(device)
    left = assign_bars(
        machine.bus, memory32=MEMORY_WINDOWS[0], memory64=MEMORY_WINDOWS[1], io=(0x1000, 0xF000)
    )
    assert left == []
    assert len(machine.mapped) == 12
    assert len(set(machine.mapped.values())) == 12


def test_assign_bars_reports_what_does_not_fit() -> None:
    """A BAR without a place leaves its function off."""
    machine, device, driver = plugged()
    left = assign_bars(machine.bus, memory32=(0xC000_0000, 1 << 16), io=(0x1000, 0x100))
    assert [(function, bar.index) for function, bar in left] == [(device, 0), (device, 4)]
    assert driver.read(SLOT1, 0x04, 2) == 0
    assert machine.mapped == {}


def test_reset_unmaps_and_silences() -> None:
    """After a reset the device is as it was when plugged in."""
    machine, device, driver = programmed()
    fresh = plugged()[1].state()
    machine.access(MEMORY, 4, 5)
    device.set_intx(True)
    driver.enable_vector(SLOT1, MEMORY + 0x1000, 0, 0xFEE0_0000, 0x41)
    machine.bus.reset()
    assert machine.mapped == {}
    assert not machine.lines[1].level
    assert device.state() == fresh
    assert driver.read(SLOT1, 0, 2) == 0x1234


def test_restore_maps_and_raises() -> None:
    """A restored machine has the saved one's BARs, lines and vectors."""
    machine, device, driver = programmed()
    driver.enable_vector(SLOT1, MEMORY + 0x1000, 1, 0xFEE0_0000, 0x41)
    driver.write(SLOT1, dict(driver.capabilities(SLOT1))[0x11] + 2, 2, 0)
    device.set_intx(True)
    machine.access(MEMORY, 4, 77)
    copy, other, _ = plugged()
    copy.bus.restore(machine.bus.state())
    assert copy.bus.state() == machine.bus.state()
    assert sorted(copy.mapped.values()) == sorted(machine.mapped.values())
    assert copy.lines[1].level
    assert copy.access(MEMORY, 4) == 77
    assert other.state() == device.state()


def test_function_without_bus_keeps_quiet() -> None:
    """A function that is not plugged in can be built and used."""
    function = PciFunction(vendor=1, device=2, class_code=0, interrupt_pin=1)
    function.set_intx(True)
    function.write_config(4, 2, 7)
    assert function.bus_master


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["address", "data", "ecam", "memory"]),
            st.one_of(st.integers(0, 0x2FFFF), st.integers(0x8000, 0x8060), st.integers(0, 8)),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_any_accesses_and_state_round_trip(
    steps: list[tuple[str, int, int, int, bool]],
) -> None:
    """No access raises; BARs stay in the windows; the state's copy equals it."""
    machine, _, driver = programmed()
    driver.enable_vector(SLOT1, MEMORY + 0x1000, 1, 0xFEE0_0000, 0x41)
    windows: dict[str, Device] = {
        "address": machine.bus.config_address,
        "data": machine.bus.config_data,
        "ecam": machine.bus.ecam,
    }
    for where, offset, size, value, is_read in steps:
        if where == "memory":
            machine.access(MEMORY + offset % 0x2000, size, value >> 64 - 8 * size)
            machine.access(MEMORY + offset % 0x2000, size)
        elif is_read:
            assert 0 <= windows[where].read(offset, size) < 1 << 8 * size
        else:
            windows[where].write(offset, size, value & (1 << 8 * size) - 1)
    for (function, index), address in machine.mapped.items():
        bar = function.bars[index]
        assert bar is not None
        if not bar.is_io:
            assert any(base <= address <= base + size - bar.size for base, size in MEMORY_WINDOWS)
    copy, _, _ = plugged()
    copy.bus.restore(machine.bus.state())
    assert copy.bus.state() == machine.bus.state()
    assert sorted(copy.mapped.values()) == sorted(machine.mapped.values())
    assert [line.level for line in copy.lines] == [line.level for line in machine.lines]
