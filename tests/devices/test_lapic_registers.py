"""The local APIC's registers, modes and addresses (Intel SDM vol. 3, 11.4, 11.6, 11.12)."""

from __future__ import annotations

import pytest

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import BROADCAST, ApicMessage, DeliveryMode, Shorthand
from tests.devices.lapic_rig import MASKED, Rig, enabled_rig, x2apic_rig


@pytest.fixture
def rig() -> Rig:
    return enabled_rig()


@pytest.fixture
def x2() -> Rig:
    return x2apic_rig()


# --- reset values ---


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (reg.ID, 5 << 24), (reg.VERSION, 0x01060014), (reg.TPR, 0), (reg.PPR, 0), (reg.LDR, 0),
        (reg.DFR, 0xFFFFFFFF), (reg.SVR, 0xFF), (reg.ESR, 0), (reg.ICR_LOW, 0),
        (reg.ICR_HIGH, 0), (reg.LVT_TIMER, MASKED), (reg.LVT_LINT0, MASKED),
        (reg.LVT_LINT1, MASKED), (reg.LVT_ERROR, MASKED), (reg.LVT_PMC, MASKED),
        (reg.LVT_THERMAL, MASKED), (reg.LVT_CMCI, MASKED), (reg.INITIAL_COUNT, 0),
        (reg.CURRENT_COUNT, 0), (reg.DIVIDE, 0), (reg.ISR + 0x70, 0), (reg.IRR, 0),
    ],
)  # fmt: skip
def test_registers_after_power_up(offset: int, value: int) -> None:
    """Every register has the value of 11.4.7.1."""
    assert Rig(5).read(offset) == value


def test_base_register_after_power_up() -> None:
    """Only the CPU with ID 0 is the bootstrap CPU; all start in xAPIC mode at 0xfee00000."""
    assert Rig(0).apic.read_msr(reg.MSR_APIC_BASE) == 0xFEE00900
    assert Rig(1).apic.read_msr(reg.MSR_APIC_BASE) == 0xFEE00800
    assert Rig(1).apic.base == 0xFEE00000


# --- interrupt commands ---


def test_icr_of_xapic(rig: Rig) -> None:
    """The high half names the destination, the low half sends; delivery status reads idle."""
    rig.write(reg.ICR_HIGH, 0x03FFFFFF)
    rig.write(reg.ICR_LOW, 0xFFF00000 | reg.ICR_ASSERT | 1 << 12 | reg.ICR_LOGICAL | 0x55)
    message = ApicMessage(3, True, DeliveryMode.FIXED, 0x55)
    assert rig.sent == [(message, Shorthand.NONE)]
    assert rig.read(reg.ICR_HIGH) == 3 << 24
    assert rig.read(reg.ICR_LOW) == reg.ICR_ASSERT | reg.ICR_LOGICAL | 0x55


def test_icr_broadcast_of_xapic(rig: Rig) -> None:
    """Destination 0xff is everyone, whatever mode they are in."""
    rig.write(reg.ICR_HIGH, 0xFF000000)
    rig.write(reg.ICR_LOW, reg.ICR_ASSERT | 0x55)
    assert rig.sent[0][0].destination == BROADCAST


def test_icr_of_x2apic(x2: Rig) -> None:
    """One 64-bit write; shorthands, modes and 32-bit destinations come through."""
    assert x2.apic.write_msr(reg.MSR_ICR, 0x12345 << 32 | 0xC4500)
    message = ApicMessage(0x12345, False, DeliveryMode.INIT, 0)
    assert x2.sent == [(message, Shorthand.OTHERS)]
    assert x2.apic.read_msr(reg.MSR_ICR) == 0x12345 << 32 | 0xC4500


def test_init_deassert_is_sent_as_such(x2: Rig) -> None:
    """Level and trigger mode matter for INIT only."""
    x2.write(reg.ICR_LOW, reg.ICR_LEVEL | 0x500)
    x2.write(reg.ICR_LOW, reg.ICR_LEVEL | 0x40)
    assert (x2.sent[0][0].level, x2.sent[0][0].trigger_level) == (False, True)
    assert (x2.sent[1][0].level, x2.sent[1][0].trigger_level) == (True, False)


def test_sending_an_illegal_vector(x2: Rig) -> None:
    """Nothing is sent and ESR bit 5 is set; start-up vectors below 16 are legal."""
    x2.write(reg.ICR_LOW, 0x0F)
    x2.write(reg.SELF_IPI, 0x0F)
    x2.write(reg.ESR, 0)
    assert x2.sent == [] and x2.read(reg.ESR) == reg.ESR_SEND_ILLEGAL_VECTOR
    x2.write(reg.ICR_LOW, 0x608)
    assert x2.sent[0][0].vector == 8


def test_self_ipi(x2: Rig) -> None:
    """SELF IPI interrupts its own CPU as an edge."""
    x2.write(reg.SELF_IPI, 0x66)
    assert x2.apic.acknowledge() == 0x66 and x2.sent == []


# --- addressing ---


def accepts(rig: Rig, destination: int, logical: bool) -> bool:
    return rig.apic.accepts(ApicMessage(destination, logical, DeliveryMode.FIXED, 0x40))


def test_physical_destination() -> None:
    """The ID, 0xff and the long broadcast; nothing else."""
    rig = Rig(5)
    assert [accepts(rig, d, False) for d in (5, 0xFF, BROADCAST, 4, 0x105)] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_flat_logical_destination(rig: Rig) -> None:
    """Any common bit of LDR and destination."""
    rig.write(reg.LDR, 0x0A123456)
    assert rig.read(reg.LDR) == 0x0A000000
    assert accepts(rig, 0x08, True) and not accepts(rig, 0x05, True)
    assert accepts(rig, 0xFF, True) and not accepts(rig, 0x108, True)


def test_cluster_logical_destination(rig: Rig) -> None:
    """The cluster must be equal, and a bit within it common."""
    rig.write(reg.DFR, 0)
    assert rig.read(reg.DFR) == 0x0FFFFFFF
    rig.write(reg.LDR, 0x24000000)
    assert accepts(rig, 0x2C, True)
    assert not accepts(rig, 0x3C, True) and not accepts(rig, 0x23, True)


def test_undefined_destination_model(rig: Rig) -> None:
    """A DFR that is neither flat nor cluster matches broadcasts only."""
    rig.write(reg.DFR, 0x50000000)
    rig.write(reg.LDR, 0xFF000000)
    assert not accepts(rig, 0x01, True) and accepts(rig, 0xFF, True)


def test_x2apic_logical_destination(x2: Rig) -> None:
    """LDR is derived from the ID: cluster 2, bit 5 (11.12.10.2)."""
    assert x2.read(reg.LDR) == 2 << 16 | 1 << 5
    assert accepts(x2, 0x20030, True) and accepts(x2, BROADCAST, True)
    assert not accepts(x2, 0x30020, True) and not accepts(x2, 0x2001F, True)
    assert accepts(x2, 0x25, False) and not accepts(x2, 0xFF, False)


# --- modes ---


def test_mode_changes() -> None:
    """Only the transitions of figure 11-27 are allowed."""
    off, xapic, x2apic, invalid = (0xFEE00000 | bits for bits in (0, 0x800, 0xC00, 0x400))
    allowed = {(off, xapic), (xapic, off), (xapic, x2apic), (x2apic, off)}
    paths = {off: [off], xapic: [], x2apic: [x2apic]}
    for start, path in paths.items():
        for target in (off, xapic, x2apic, invalid):
            rig = Rig(1)
            for step in path:
                assert rig.apic.write_msr(reg.MSR_APIC_BASE, step)
            ok = rig.apic.write_msr(reg.MSR_APIC_BASE, target)
            assert ok == (start == target or (start, target) in allowed), (start, target)
            assert rig.apic.read_msr(reg.MSR_APIC_BASE) == (target if ok else start)


@pytest.mark.parametrize("bit", [0, 7, 9, 52, 63])
def test_reserved_bits_of_the_base_fault(rig: Rig, bit: int) -> None:
    """Reserved bits and addresses beyond MAXPHYADDR raise #GP."""
    assert not rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00900 | 1 << bit)


def test_base_moves(rig: Rig) -> None:
    """The page can be anywhere below MAXPHYADDR."""
    assert rig.apic.write_msr(reg.MSR_APIC_BASE, 0x12_3456_7900)
    assert rig.apic.base == 0x12_3456_7000


def test_disabling_loses_everything(rig: Rig) -> None:
    """After off and on again the APIC is as after power-up."""
    rig.fixed(0x41)
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 1 << 50)
    rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00100)
    assert not rig.pending() and rig.apic.read(reg.ID, 4) == 0xFFFFFFFF
    assert not accepts(rig, BROADCAST, False) and rig.clock.timers[0].deadline is None
    rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00900)
    assert rig.apic.state() == Rig().apic.state()


def test_entering_x2apic_keeps_interrupts(rig: Rig) -> None:
    """What is pending and in service survives the change of mode; ICR does not."""
    rig.fixed(0x41)
    rig.write(reg.ICR_HIGH, 0x03000000)
    rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00D00)
    assert rig.apic.acknowledge() == 0x41 and rig.apic.read_msr(reg.MSR_ICR) == 0


def test_msrs_fault_outside_x2apic_mode(rig: Rig) -> None:
    """0x800-0x8ff raise #GP in xAPIC mode."""
    for index in range(0x800, 0x900):
        assert rig.apic.read_msr(index) is None
        assert not rig.apic.write_msr(index, 0)


def test_readable_x2apic_registers(x2: Rig) -> None:
    """Exactly the registers of table 11-6 that are not write-only can be read."""
    readable = {0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F, *range(0x810, 0x829), 0x82F, 0x830,
                *range(0x832, 0x83A), 0x83E}  # fmt: skip
    assert {i for i in range(0x800, 0x900) if x2.apic.read_msr(i) is not None} == readable


def test_writable_x2apic_registers(x2: Rig) -> None:
    """Exactly the registers of table 11-6 that are not read-only can be written."""
    writable = {0x808, 0x80B, 0x80F, 0x828, 0x82F, 0x830, *range(0x832, 0x839), 0x83E, 0x83F}
    assert {i for i in range(0x800, 0x900) if x2.apic.write_msr(i, 0)} == writable


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x808, 0x100), (0x80B, 1), (0x80F, 1 << 10), (0x80F, 1 << 32), (0x828, 1),
        (0x830, 1 << 12), (0x830, 1 << 13), (0x830, 1 << 20), (0x832, 1 << 19), (0x835, 1 << 17),
        (0x837, 1 << 8), (0x838, 1 << 32), (0x83E, 4), (0x83F, 0x100), (0x83F, 1 << 63),
    ],
)  # fmt: skip
def test_reserved_bits_of_x2apic_fault(x2: Rig, index: int, value: int) -> None:
    """Reserved bits raise #GP and change nothing (11.12.1.3)."""
    before = x2.apic.state()
    assert not x2.apic.write_msr(index, value)
    assert x2.apic.state() == before


# --- the MMIO page ---


def test_mmio_access_widths(rig: Rig) -> None:
    """Bytes and halves of a register can be read; only whole aligned writes count (11.4.1)."""
    assert rig.apic.read(reg.VERSION, 1) == 0x14
    assert rig.apic.read(reg.VERSION + 2, 2) == 0x0106
    assert rig.apic.read(reg.VERSION, 8) == 0x01060014
    assert rig.apic.read(reg.VERSION + 4, 4) == 0
    rig.apic.write(reg.TPR, 1, 0x50)
    rig.apic.write(reg.TPR + 1, 4, 0x50)
    rig.apic.write(reg.TPR, 8, 0x50)
    assert rig.read(reg.TPR) == 0


def test_undefined_registers_are_errors(rig: Rig) -> None:
    """Access to a reserved offset sets ESR bit 7; a read-only register only ignores writes."""
    rig.write(reg.VERSION, 0)
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == 0
    assert rig.read(0x3F0) == 0
    rig.write(0x000, 1)
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == reg.ESR_ILLEGAL_REGISTER


def test_mmio_page_is_gone_in_x2apic_mode(x2: Rig) -> None:
    """Nobody answers there: all ones, writes do nothing."""
    x2.apic.write(reg.TPR, 4, 0x50)
    assert x2.apic.read(reg.TPR, 4) == 0xFFFFFFFF and x2.read(reg.TPR) == 0
