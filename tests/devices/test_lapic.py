"""How a local APIC accepts and ranks interrupts (Intel SDM vol. 3, 11.5-11.8)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import ApicMessage, DeliveryMode
from tests.devices.lapic_rig import ENABLED, MASKED, Rig, enabled_rig, x2apic_rig


@pytest.fixture
def rig() -> Rig:
    return enabled_rig()


@pytest.fixture
def x2() -> Rig:
    return x2apic_rig()


# --- acceptance and priority ---


def test_interrupt_is_acknowledged_and_ended(rig: Rig) -> None:
    """A fixed interrupt goes IRR, ISR, nowhere, and the CPU hears of each change once."""
    assert rig.fixed(0x41)
    assert rig.pending() and rig.read(reg.IRR + 0x20) == 2
    assert rig.apic.acknowledge() == 0x41
    assert not rig.pending()
    assert (rig.read(reg.IRR + 0x20), rig.read(reg.ISR + 0x20), rig.read(reg.PPR)) == (0, 2, 0x40)
    rig.eoi()
    assert (rig.read(reg.ISR + 0x20), rig.read(reg.PPR)) == (0, 0)
    assert rig.cpu.changes == 2


def test_same_class_waits_for_eoi(rig: Rig) -> None:
    """A vector of the class in service is held back until the EOI (11.8.3)."""
    rig.fixed(0x41)
    rig.apic.acknowledge()
    rig.fixed(0x4F)
    assert not rig.pending() and rig.apic.acknowledge() is None
    rig.eoi()
    assert rig.apic.acknowledge() == 0x4F


def test_higher_class_nests(rig: Rig) -> None:
    """A vector of a higher class interrupts the one in service; EOIs come highest first."""
    rig.fixed(0x41)
    rig.apic.acknowledge()
    rig.fixed(0x51)
    assert rig.apic.acknowledge() == 0x51
    rig.eoi()
    assert rig.read(reg.PPR) == 0x40
    rig.eoi()
    assert rig.read(reg.PPR) == 0


def test_task_priority_holds_back(rig: Rig) -> None:
    """TPR blocks its class and below; PPR shows all of TPR when no higher class is in service."""
    rig.write(reg.TPR, 0x4A)
    rig.fixed(0x4F)
    assert not rig.pending() and rig.read(reg.PPR) == 0x4A
    rig.fixed(0x50)
    assert rig.pending()
    rig.write(reg.TPR, 0x50)
    assert not rig.pending()
    rig.write(reg.TPR, 0x30)
    assert rig.apic.acknowledge() == 0x50


def test_cr8_is_the_class_of_tpr(rig: Rig) -> None:
    """CR8 and TPR are one register (11.8.6)."""
    rig.apic.set_cr8(5)
    assert rig.read(reg.TPR) == 0x50
    rig.write(reg.TPR, 0x7F)
    assert rig.apic.cr8 == 7


def test_eoi_without_interrupt_does_nothing(rig: Rig) -> None:
    """A stray EOI is harmless."""
    rig.eoi()
    assert rig.eois == [] and rig.cpu.changes == 0


def test_software_disabled_accepts_no_fixed_interrupt(rig: Rig) -> None:
    """With SVR bit 8 clear fixed messages are refused, NMIs are not (11.4.7.2)."""
    rig.write(reg.SVR, 0xFF)
    assert not rig.fixed(0x41)
    assert rig.apic.deliver(ApicMessage(0, False, DeliveryMode.NMI, 0))
    assert rig.cpu.events == ["nmi"] and not rig.pending()


def test_software_disable_masks_the_vector_table(rig: Rig) -> None:
    """Mask bits are set and stay set until the APIC is enabled again."""
    rig.write(reg.LVT_ERROR, 0x33)
    rig.write(reg.SVR, 0xFF)
    rig.write(reg.LVT_ERROR, 0x34)
    assert rig.read(reg.LVT_ERROR) == MASKED | 0x34


def test_vectors_below_16_are_errors(rig: Rig) -> None:
    """A received illegal vector sets ESR bit 6 after the latching write, and interrupts once."""
    rig.write(reg.LVT_ERROR, 0xFE)
    assert not rig.fixed(15)
    assert not rig.fixed(15)
    assert rig.read(reg.ESR) == 0
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == reg.ESR_RECEIVE_ILLEGAL_VECTOR
    assert rig.apic.acknowledge() == 0xFE
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == 0


def test_error_vector_itself_illegal(rig: Rig) -> None:
    """An error entry with an illegal vector does not loop."""
    rig.write(reg.LVT_ERROR, 3)
    rig.fixed(1)
    assert not rig.pending()


# --- level-triggered interrupts ---


def test_level_interrupt_broadcasts_eoi(rig: Rig) -> None:
    """TMR is set on acceptance, and the EOI is broadcast for such vectors only."""
    rig.fixed(0x61, level=True)
    rig.fixed(0x71)
    assert rig.read(reg.TMR + 0x30) == 2
    assert [rig.apic.acknowledge(), rig.apic.acknowledge()] == [0x71, None]
    rig.eoi()
    rig.apic.acknowledge()
    rig.eoi()
    assert rig.eois == [0x61]


def test_eoi_broadcast_can_be_suppressed(rig: Rig) -> None:
    """SVR bit 12 keeps the EOI local (11.8.5)."""
    rig.write(reg.SVR, ENABLED | reg.SVR_SUPPRESS_EOI)
    rig.fixed(0x61, level=True)
    rig.apic.acknowledge()
    rig.eoi()
    assert rig.eois == []


def test_edge_clears_the_trigger_mode(rig: Rig) -> None:
    """The same vector as an edge ends without a broadcast."""
    rig.fixed(0x61, level=True)
    rig.fixed(0x61)
    rig.apic.acknowledge()
    rig.eoi()
    assert rig.eois == []


# --- other deliveries ---


def test_startup_sequence_reaches_the_cpu(rig: Rig) -> None:
    """INIT resets the APIC, its de-assert does nothing, start-up carries the vector."""
    rig.write(reg.TPR, 0x80)
    init = ApicMessage(0, False, DeliveryMode.INIT, 0, level=True, trigger_level=True)
    rig.apic.deliver(init)
    rig.apic.deliver(replace(init, level=False))
    rig.apic.deliver(ApicMessage(0, False, DeliveryMode.STARTUP, 0x9A))
    rig.apic.deliver(ApicMessage(0, False, DeliveryMode.SMI, 0))
    assert rig.cpu.events == ["init", ("startup", 0x9A), "smi"]
    assert rig.read(reg.TPR) == 0 and rig.read(reg.SVR) == 0xFF


def test_init_keeps_x2apic_mode(x2: Rig) -> None:
    """INIT clears the registers but neither mode nor ID (11.12.5.1)."""
    x2.apic.deliver(ApicMessage(0x25, False, DeliveryMode.INIT, 0))
    assert x2.apic.x2apic and x2.read(reg.ID) == 0x25 and x2.read(reg.SVR) == 0xFF


def test_extint_from_lint0(rig: Rig) -> None:
    """LINT0 in ExtINT mode asks the 8259A, past any task priority, while its level lasts."""
    rig.write(reg.LVT_LINT0, 0x700)
    rig.write(reg.TPR, 0xFF)
    rig.apic.set_lint0(True)
    assert rig.pending() and rig.apic.acknowledge() == 0x20
    assert rig.pending()  # the model 8259A of this test did not lower its line
    rig.apic.set_lint0(False)
    assert not rig.pending() and rig.apic.acknowledge() is None


def test_extint_masked(rig: Rig) -> None:
    """A masked LINT0 keeps the 8259A out; unmasking lets a waiting request in."""
    rig.apic.set_lint0(True)
    assert not rig.pending()
    rig.write(reg.LVT_LINT0, 0x700)
    assert rig.pending()


def test_extint_message_asks_once(rig: Rig) -> None:
    """An ExtINT message from the I/O APIC is answered with one acknowledge of the 8259A."""
    rig.apic.deliver(ApicMessage(0, False, DeliveryMode.EXTINT, 0))
    assert rig.apic.acknowledge() == 0x20
    assert not rig.pending()


def test_disabled_apic_lets_the_pins_through(rig: Rig) -> None:
    """With IA32_APIC_BASE's enable clear LINT0 is INTR and LINT1 NMI (11.4.3)."""
    rig.apic.write_msr(reg.MSR_APIC_BASE, reg.BASE_DEFAULT | reg.BASE_BSP)
    rig.apic.set_lint0(True)
    rig.apic.set_lint1(True)
    rig.apic.set_lint1(True)
    assert rig.apic.acknowledge() == 0x20 and rig.cpu.events == ["nmi"]


def test_virtual_wire(rig: Rig) -> None:
    """What firmware leaves behind: LINT0 ExtINT, LINT1 NMI, enabled."""
    rig.apic.reset()
    rig.apic.virtual_wire()
    rig.apic.set_lint0(True)
    rig.apic.set_lint1(True)
    assert rig.pending() and rig.cpu.events == ["nmi"] and rig.apic.software_enabled


def test_lint_fixed_level_waits_for_eoi(rig: Rig) -> None:
    """A level-triggered LINT entry sets its remote IRR and comes again after the EOI."""
    rig.write(reg.LVT_LINT0, reg.LVT_LEVEL | 0x45)
    rig.apic.set_lint0(True)
    assert rig.read(reg.LVT_LINT0) == reg.LVT_LEVEL | reg.LVT_REMOTE_IRR | 0x45
    rig.apic.acknowledge()
    rig.apic.set_lint0(True)
    assert rig.read(reg.IRR + 0x20) == 0
    rig.eoi()
    assert rig.apic.acknowledge() == 0x45
    rig.apic.set_lint0(False)
    rig.eoi()
    assert rig.read(reg.LVT_LINT0) == reg.LVT_LEVEL | 0x45 and not rig.pending()


def test_lint_fixed_edge(rig: Rig) -> None:
    """An edge-triggered LINT entry interrupts at each rising edge."""
    rig.write(reg.LVT_LINT1, 0x46)
    rig.apic.set_lint1(True)
    rig.apic.acknowledge()
    rig.eoi()
    rig.apic.set_lint1(True)
    assert not rig.pending()


def test_performance_counter_masks_itself(rig: Rig) -> None:
    """Its entry delivers an NMI and sets its mask bit (11.5.1)."""
    rig.write(reg.LVT_PMC, DeliveryMode.NMI << 8)
    rig.apic.raise_local(reg.LVT_PMC)
    rig.apic.raise_local(reg.LVT_PMC)
    assert rig.cpu.events == ["nmi"] and rig.read(reg.LVT_PMC) & MASKED


def test_thermal_and_cmci(rig: Rig) -> None:
    """The other local sources deliver by their own entries."""
    rig.write(reg.LVT_THERMAL, 0xFA)
    rig.write(reg.LVT_CMCI, DeliveryMode.SMI << 8)
    rig.apic.raise_local(reg.LVT_THERMAL)
    rig.apic.raise_local(reg.LVT_CMCI)
    assert rig.apic.acknowledge() == 0xFA and rig.cpu.events == ["smi"]
