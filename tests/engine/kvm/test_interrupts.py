"""Interrupts and event descriptors, with the in-kernel chips."""

from __future__ import annotations

import os
import select
import time

import pytest

from kvmkit.engine.kvm.engine import FIRST_MSI_GSI
from kvmkit.engine.kvm.structs import kvm_irqchip, kvm_lapic_state, kvm_pit_state2
from kvmkit.errors import UsageError
from tests.engine.kvm.guest import (
    HLT,
    IRETQ,
    NOP,
    STI,
    forever,
    load,
    mov,
    needs_kvm,
    out,
    store,
    wrmsr,
)
from tests.engine.kvm.machine import PATIENCE, Machine, machine

pytestmark = needs_kvm

IOAPIC = 0xFEC00000
MSI = 0xFEE00000

X2APIC_ON = wrmsr(0x1B, 0xFEE00D00) + wrmsr(0x80F, 0x1FF)
X2APIC_EOI = wrmsr(0x80B, 0)
WAIT = STI + forever(HLT)

# 8259A pair: ICW1-4, vectors 0x20 and 0x28, all inputs unmasked (82C59A data sheet)
PIC_ON = (
    out(0x20, 0x11) + out(0x21, 0x20) + out(0x21, 4) + out(0x21, 1) + out(0x21, 0)
    + out(0xA0, 0x11) + out(0xA1, 0x28) + out(0xA1, 2) + out(0xA1, 1) + out(0xA1, 0)
)  # fmt: skip
PIC_OFF = out(0x21, 0xFF) + out(0xA1, 0xFF)  # all inputs masked
PIC_EOI = out(0x20, 0x20) + out(0xA0, 0x20)


def redirect(pin: int, vector: int, *, level: bool = False) -> bytes:
    """Write an I/O APIC redirection entry: fixed, to APIC 0 (82093AA, 3.2.4)."""
    low = mov("eax", 0x10 + 2 * pin) + store(IOAPIC)
    low += mov("eax", vector | (0x8000 if level else 0)) + store(IOAPIC + 0x10)
    high = mov("eax", 0x11 + 2 * pin) + store(IOAPIC) + mov("eax", 0) + store(IOAPIC + 0x10)
    return high + low


def says(value: int, eoi: bytes = X2APIC_EOI) -> bytes:
    """A handler that writes ``value`` to port 0x80 and ends the interrupt."""
    return out(0x80, value) + eoi + IRETQ


def signalled(fd: int) -> int:
    """How often the eventfd was signalled; waits for the first time. 0 if never."""
    if not select.select([fd], [], [], PATIENCE)[0]:
        return 0
    return int.from_bytes(os.read(fd, 8), "little")


def ready(m: Machine) -> None:
    """Wait for the guest's word that it is set up."""
    assert m.bus.value() == 1


def test_isa_line_reaches_the_8259() -> None:
    """GSI 5 is the primary's input 5, GSI 10 the secondary's input 2."""
    handlers = {0x25: says(0x25, PIC_EOI), 0x2A: says(0x2A, PIC_EOI)}
    with machine(PIC_ON + out(0x80, 1) + WAIT, handlers=handlers) as m:
        ready(m)
        m.engine.set_line(5, True)
        m.engine.set_line(5, False)
        assert m.bus.value() == 0x25
        m.engine.set_line(10, True)
        m.engine.set_line(10, False)
        assert m.bus.value() == 0x2A


def test_line_reaches_the_io_apic() -> None:
    """GSI 16 is a pin of the I/O APIC alone; level-triggered it comes again until released."""
    code = X2APIC_ON + redirect(16, 0x50, level=True) + out(0x80, 1) + WAIT
    with machine(code, handlers={0x50: says(0x50)}) as m:
        ready(m)
        m.engine.set_line(16, True)
        assert [m.bus.value() for _ in range(3)] == [0x50] * 3
        m.engine.set_line(16, False)


def test_timer_is_on_pin_two_of_the_io_apic() -> None:
    """The in-kernel 8254 interrupts at GSI 0, which is the I/O APIC's pin 2."""
    one_shot = out(0x43, 0x30) + out(0x40, 0x00) + out(0x40, 0x10)
    code = PIC_OFF + X2APIC_ON + redirect(2, 0x52) + out(0x80, 1) + one_shot + WAIT
    with machine(code, handlers={0x52: says(0x52)}) as m:
        ready(m)
        assert m.bus.value() == 0x52


def test_timer_reaches_the_8259() -> None:
    """And input 0 of the primary 8259A."""
    one_shot = out(0x43, 0x30) + out(0x40, 0x00) + out(0x40, 0x10)
    code = PIC_ON + out(0x80, 1) + one_shot + WAIT
    with machine(code, handlers={0x20: says(0x20, PIC_EOI)}) as m:
        ready(m)
        assert m.bus.value() == 0x20


def test_message_reaches_a_cpu() -> None:
    """An MSI runs its vector's handler; one to a switched-off APIC is not taken."""
    with machine(X2APIC_ON + out(0x80, 1) + WAIT, handlers={0x60: says(0x60)}) as m:
        ready(m)
        assert m.engine.msi(MSI, 0x60)
        assert m.bus.value() == 0x60
        assert not m.engine.msi(MSI | 0x77 << 12, 0x60)


def test_irqfd_with_routed_message() -> None:
    """Writing the eventfd sends the message, without a call of ours."""
    event = os.eventfd(0)
    try:
        with machine(X2APIC_ON + out(0x80, 1) + WAIT, handlers={0x61: says(0x61)}) as m:
            ready(m)
            m.engine.route_msi(FIRST_MSI_GSI + 3, MSI, 0x61)
            m.engine.irqfd(event, FIRST_MSI_GSI + 3)
            os.eventfd_write(event, 1)
            assert m.bus.value() == 0x61
            m.engine.irqfd(event, FIRST_MSI_GSI + 3, remove=True)
            os.eventfd_write(event, 1)
            time.sleep(0.05)
            assert m.bus.seen.empty()
    finally:
        os.close(event)


def test_rerouted_message_has_its_new_vector() -> None:
    """A driver that moves its MSI-X entry: the same GSI, another vector."""
    event = os.eventfd(0)
    handlers = {0x62: says(0x62), 0x63: says(0x63)}
    try:
        with machine(X2APIC_ON + out(0x80, 1) + WAIT, handlers=handlers) as m:
            ready(m)
            m.engine.route_msi(30, MSI, 0x62)
            m.engine.irqfd(event, 30)
            m.engine.route_msi(30, MSI, 0x63)
            os.eventfd_write(event, 1)
            assert m.bus.value() == 0x63
    finally:
        os.close(event)


def test_irqfd_with_resampling() -> None:
    """A level line by eventfd: high until the guest's EOI, which is told to the other eventfd."""
    event, resample = os.eventfd(0), os.eventfd(0)
    code = X2APIC_ON + redirect(17, 0x64, level=True) + out(0x80, 1) + WAIT
    try:
        with machine(code, handlers={0x64: says(0x64)}) as m:
            ready(m)
            m.engine.irqfd(event, 17, resample=resample)
            os.eventfd_write(event, 1)
            assert m.bus.value() == 0x64
            assert signalled(resample) >= 1
            time.sleep(0.05)
            assert m.bus.seen.empty()
    finally:
        os.close(event)
        os.close(resample)


@pytest.mark.parametrize("gsi", [0, 23, 1 << 20])
def test_message_routes_stay_off_the_pins(gsi: int) -> None:
    """A GSI that is a pin, or beyond KVM's table, is refused."""
    with machine(HLT, start=False) as m, pytest.raises(UsageError, match="GSIs for messages"):
        m.engine.route_msi(gsi, MSI, 0x60)


def test_port_ioeventfd_takes_the_write() -> None:
    """A doorbell port signals and does not reach the bus; another value does, with a match."""
    event = os.eventfd(0)
    try:
        code = out(0x500, 7, 2) + out(0x500, 8, 2) + out(0x80, 1) + HLT
        with machine(code, start=False) as m:
            m.engine.ioeventfd(event, 0x500, 2, port=True, value=7)
            m.start()
            assert m.bus.next() == ("out", 0x500, 2, 8)
            assert signalled(event) == 1
    finally:
        os.close(event)


@pytest.mark.parametrize("width", [0, 4])
def test_memory_ioeventfd_takes_the_write(width: int) -> None:
    """A doorbell in memory, of one width or of any; removed, it is the bus's again."""
    event = os.eventfd(0)
    doorbell = 0xD0000100
    try:
        code = (
            mov("eax", 3) + store(doorbell) + out(0x80, 1) + mov("eax", 4) + store(doorbell) + HLT
        )
        with machine(code, start=False) as m:
            m.engine.ioeventfd(event, doorbell, width)
            original = m.bus.port_write

            def write(port: int, size: int, value: int) -> None:
                m.engine.ioeventfd(event, doorbell, width, remove=True)
                original(port, size, value)

            m.bus.port_write = write  # type: ignore[method-assign]
            m.start()
            ready(m)
            assert signalled(event) == 1
            assert m.bus.next() == ("store", doorbell, 4, 4)
    finally:
        os.close(event)


def test_interrupt_wakes_a_halted_cpu_after_a_pause() -> None:
    """A message that comes while the engine stands is there when it goes on."""
    with machine(X2APIC_ON + out(0x80, 1) + WAIT, handlers={0x65: says(0x65)}) as m:
        ready(m)
        m.engine.pause()
        assert m.engine.msi(MSI, 0x65)
        m.engine.resume()
        assert m.bus.value() == 0x65


def test_chips_go_out_and_in_unchanged() -> None:
    """restore_chips(chips()) is the identity, with lines, masks and a running timer set up."""
    square = out(0x43, 0x36) + out(0x40, 0x34) + out(0x40, 0x12)
    code = PIC_ON + redirect(16, 0x50, level=True) + square + out(0x80, 1) + HLT
    with machine(code) as m:
        ready(m)
        m.engine.pause()
        m.engine.set_line(9, True)
        before = m.engine.chips()
        m.engine.restore_chips(before)
        after = m.engine.chips()
    assert after.pic_primary == before.pic_primary
    assert after.pic_secondary == before.pic_secondary
    assert after.ioapic == before.ioapic
    entry = kvm_irqchip(bytearray(after.ioapic)).chip.ioapic.redirtbl[16].fields
    assert (entry.vector, entry.trig_mode, entry.mask) == (0x50, 1, 0)
    channel = kvm_pit_state2(bytearray(after.pit)).channels[0]
    assert (channel.count, channel.mode) == (0x1234, 3)
    assert abs(after.clock - before.clock) < 1_000_000_000


def test_chips_move_to_another_engine() -> None:
    """What one engine's chips are, another's become: the interrupt still finds its handler."""
    code = X2APIC_ON + redirect(18, 0x66) + out(0x80, 1) + WAIT
    with machine(code, handlers={0x66: says(0x66)}) as old:
        ready(old)
        time.sleep(0.02)
        old.engine.pause()
        state = old.engine.vcpus[0].state()
        rest = old.engine.vcpu(0).rest()
        chips = old.engine.chips()
        content = bytes(old.memory.view)
    with machine(HLT, start=False) as new:
        new.memory.write(0, content)
        new.engine.vcpus[0].restore(state)
        new.engine.vcpu(0).restore_rest(rest, state)
        new.engine.restore_chips(chips)
        new.start()
        new.engine.set_line(18, True)
        assert new.bus.value() == 0x66


def test_reset_puts_everything_to_power_on() -> None:
    """Chips, local APIC and MSRs of a used machine equal a new one's."""
    code = X2APIC_ON + PIC_ON + redirect(16, 0x50) + wrmsr(0x174, 0x1234) + out(0x80, 1) + HLT
    with machine(code) as used, machine(HLT, start=False) as new:
        ready(used)
        used.engine.pause()
        used.engine.reset_chips()
        mine, theirs = used.engine.chips(), new.engine.chips()
        assert mine.pic_primary == theirs.pic_primary
        assert mine.ioapic == theirs.ioapic
        state = used.engine.vcpus[0].state()
        assert state.msrs[0x174] == 0
        assert state.msrs[0x1B] == new.engine.vcpus[0].state().msrs[0x1B]
        lapic = kvm_lapic_state(bytearray(used.engine.vcpu(0).rest().lapic))
        assert lapic == kvm_lapic_state(bytearray(new.engine.vcpu(0).rest().lapic))


def test_local_apic_of_the_boot_cpu_is_wired_as_firmware_leaves_it() -> None:
    """LINT0 takes the 8259A's interrupts, LINT1 is NMI."""
    with machine(HLT, start=False) as m:
        registers = m.engine.vcpu(0).fd.lapic().regs
        assert int.from_bytes(registers[0x350:0x354], "little") == 0x700
        assert int.from_bytes(registers[0x360:0x364], "little") == 0x400


def test_local_apic_answers_in_memory() -> None:
    """In xAPIC mode the in-kernel APIC is at its page: no exit, the version register is there."""
    with machine(load(MSI + 0x30) + mov("edx", 0x80) + b"\xef" + HLT) as m:
        assert m.bus.value() & 0xFF >= 0x10
        assert m.bus.seen.empty()


def test_pause_of_a_storm_of_interrupts() -> None:
    """Interrupts arrive all the time while the engine is paused and resumed; none is lost."""
    count = 200
    handler = b"\xff\x04\x25\x00\x90\x00\x00" + out(0x80, 0x67) + X2APIC_EOI + IRETQ
    with machine(X2APIC_ON + out(0x80, 1) + STI + forever(NOP), handlers={0x67: handler}) as m:
        ready(m)
        for _ in range(count):
            m.engine.msi(MSI, 0x67)
            m.engine.pause()
            m.engine.resume()
            assert m.bus.value() == 0x67
        assert m.word(0x9000) == count
