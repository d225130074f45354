"""The 8259A pair, the I/O APIC and the 8254: our models' records and KVM's, either way.

KVM's are ``struct kvm_pic_state``, ``kvm_ioapic_state`` and ``kvm_pit_state2`` (Linux
``arch/x86/include/uapi/asm/kvm.h``; what the fields mean is in ``arch/x86/kvm/i8259.c``,
``ioapic.c`` and ``i8254.c``). Interrupt inputs are wires: their levels come from the
devices, which are restored before the chips.

KVM does not tell how far its 8254 has counted, and lets every count begin again when it
is set: the first interrupt after a translation may be a period late.
"""

from __future__ import annotations

from kvmkit.board import layout
from kvmkit.devices.ioapic import LEVEL, REMOTE_IRR, WRITABLE, IoApicState
from kvmkit.devices.pic import CASCADE, PicPairState
from kvmkit.devices.pic_chip import (
    ICW1,
    ICW1_LEVEL,
    ICW1_SINGLE,
    ICW2_VECTOR,
    ICW4_AUTO_EOI,
    ICW4_SPECIAL_FULLY_NESTED,
    PicChipState,
)
from kvmkit.devices.pit import PIT_HZ, PORT_B_GATE2, SECOND, PitState, PortBState
from kvmkit.devices.pit_counter import (
    ACCESS_BOTH,
    ACCESS_HIGH,
    ACCESS_LOW,
    ACCESS_SHIFT,
    BCD,
    MODE_SHIFT,
    TERMINAL_COUNT,
    CounterState,
    PitCounter,
)
from kvmkit.engine.kvm.run_structs import kvm_irqchip, kvm_pit_state2
from kvmkit.errors import BadSnapshot

__all__ = [
    "ioapic_to_kvm",
    "ioapic_to_model",
    "pic_to_kvm",
    "pic_to_model",
    "pit_to_kvm",
    "pit_to_model",
]

_ICW4_8086 = 1
_PORT_B_SPEAKER = 1 << 1
_KVM_SPEAKER_ON = 1 << 1  # KVM_PIT_FLAGS_SPEAKER_DATA_ON
_FULL = 0x10000

# RW_STATE_... of i8254.h
_LOW, _HIGH, _WORD_LOW, _WORD_HIGH = 1, 2, 3, 4
_NOT_SET_UP = 6  # modes are 0 to 5; KVM has 0xff after power-on


def pic_to_model(primary: bytes, secondary: bytes, lines: PicPairState) -> PicPairState:
    """KVM's pair as ours; ``lines`` has the inputs' levels."""
    cascade = 1 << CASCADE
    first = _pic_to_model(primary, lines.primary.lines & ~cascade, icw3=cascade)
    return PicPairState(first, _pic_to_model(secondary, lines.secondary.lines, icw3=CASCADE))


def _pic_to_model(record: bytes, lines: int, *, icw3: int) -> PicChipState:
    p = kvm_irqchip(bytearray(record)).chip.pic
    icw4 = _ICW4_8086
    icw4 |= ICW4_AUTO_EOI if p.auto_eoi else 0
    icw4 |= ICW4_SPECIAL_FULLY_NESTED if p.special_fully_nested_mode else 0
    return PicChipState(
        lines=lines,
        latch=p.irr & lines,  # a request whose line has gone is none
        elcr=p.elcr,
        imr=p.imr,
        isr=p.isr,
        step=p.init_state & 3,
        icw1=ICW1 | bool(p.init4),
        icw2=p.irq_base & ICW2_VECTOR,
        icw3=icw3,
        icw4=icw4,
        lowest=p.priority_add + 7 & 7,
        rotate_auto=bool(p.rotate_on_auto_eoi),
        special_mask=bool(p.special_mask),
        poll=bool(p.poll),
        read_isr=bool(p.read_reg_select),
    )


def pic_to_kvm(state: PicPairState, primary: bytes, secondary: bytes) -> tuple[bytes, bytes]:
    """Our pair as KVM's; the records handed in are those of a fresh VM.

    Raises BadSnapshot for what KVM's has not.
    """
    return _pic_to_kvm(state.primary, primary), _pic_to_kvm(state.secondary, secondary)


def _pic_to_kvm(state: PicChipState, fresh: bytes) -> bytes:
    if state.icw1 & (ICW1_LEVEL | ICW1_SINGLE):
        raise BadSnapshot("the 8259A is in a mode (level-triggered or single) that KVM's has not")
    record = kvm_irqchip(bytearray(fresh))
    p = record.chip.pic
    p.last_irr = state.lines
    p.irr = state.lines & (state.latch | state.elcr)
    p.imr = state.imr
    p.isr = state.isr
    p.priority_add = state.lowest + 1 & 7
    p.irq_base = state.icw2 & ICW2_VECTOR
    p.read_reg_select = state.read_isr
    p.poll = state.poll
    p.special_mask = state.special_mask
    p.init_state = state.step
    p.auto_eoi = bool(state.icw4 & ICW4_AUTO_EOI)
    p.rotate_on_auto_eoi = state.rotate_auto
    p.special_fully_nested_mode = bool(state.icw4 & ICW4_SPECIAL_FULLY_NESTED)
    p.init4 = state.icw1 & 1
    p.elcr = state.elcr
    return bytes(record.memory)


def ioapic_to_model(record: bytes, lines: int) -> IoApicState:
    """KVM's I/O APIC as ours; ``lines`` are the pins' levels."""
    chip = kvm_irqchip(bytearray(record)).chip.ioapic
    return IoApicState(
        ident=chip.id & 0xF,
        select=chip.ioregsel & 0xFF,
        redirections=tuple(entry.bits & (WRITABLE | REMOTE_IRR) for entry in chip.redirtbl),
        lines=lines,
    )


def ioapic_to_kvm(state: IoApicState, fresh: bytes) -> bytes:
    """Our I/O APIC as KVM's; ``fresh`` is the record of a fresh VM."""
    record = kvm_irqchip(bytearray(fresh))
    chip = record.chip.ioapic
    chip.id = state.ident
    chip.ioregsel = state.select
    chip.irr = 0  # edges were delivered when they came; levels stay until their lines go
    for pin, (entry, value) in enumerate(zip(chip.redirtbl, state.redirections, strict=True)):
        entry.bits = value
        if value & LEVEL:
            chip.irr |= state.lines & 1 << pin
    return bytes(record.memory)


def pit_to_model(record: bytes, now: int) -> PitState:
    """KVM's 8254 as ours at guest time ``now``, in nanoseconds."""
    pit = kvm_pit_state2(bytearray(record))
    tick = now * PIT_HZ // SECOND
    counters = []
    for channel in pit.channels:
        if channel.mode >= _NOT_SET_UP:
            counters.append(CounterState(gate=bool(channel.gate)))
            continue
        count = channel.count & 0xFFFF
        access = channel.rw_mode & ACCESS_BOTH
        control = access << ACCESS_SHIFT | channel.mode << MODE_SHIFT | (BCD if channel.bcd else 0)
        counters.append(
            CounterState(
                gate=bool(channel.gate),
                control=control,
                count=count,
                loaded=channel.count or _FULL,
                origin=tick,
                held=None if channel.gate or channel.mode in (1, 5) else 0,
                write_low=channel.write_latch if channel.write_state == _WORD_HIGH else None,
                read_high=channel.read_state == _WORD_HIGH
                or (access == ACCESS_BOTH and channel.count_latched == _HIGH),
                output=channel.latched_count if channel.count_latched else None,
                status=channel.status if channel.status_latched else None,
            )
        )
    first = PitCounter(True)
    first.restore(counters[0])
    rise = first.next_rise(tick)
    return PitState(
        counters=(counters[0], counters[1], counters[2]),
        irq0=first.mode != TERMINAL_COUNT or first.out(tick),
        alarm=None if rise is None else -(-rise * SECOND // PIT_HZ),
        port_b=PortBState(
            (PORT_B_GATE2 if counters[2].gate else 0)
            | (_PORT_B_SPEAKER if pit.flags & _KVM_SPEAKER_ON else 0)
        ),
    )


def pit_to_kvm(state: PitState, fresh: bytes) -> bytes:
    """Our 8254 as KVM's; ``fresh`` is the record of a fresh VM."""
    record = kvm_pit_state2(bytearray(fresh))
    for channel, counter in zip(record.channels, state.counters, strict=True):
        channel.gate = counter.gate
        if counter.count is None:
            continue
        access = counter.control >> ACCESS_SHIFT & ACCESS_BOTH
        mode = counter.control >> MODE_SHIFT & 7
        channel.count = counter.count or _FULL
        channel.mode = mode & 3 if mode & 2 else mode
        channel.bcd = counter.control & BCD
        channel.rw_mode = access
        both = access == ACCESS_BOTH
        channel.read_state = (_WORD_HIGH if counter.read_high else _WORD_LOW) if both else access
        channel.write_state = (
            (_WORD_LOW if counter.write_low is None else _WORD_HIGH) if both else access
        )
        channel.write_latch = counter.write_low or 0
        if counter.output is not None:
            channel.latched_count = counter.output
            half = {ACCESS_LOW: _LOW, ACCESS_HIGH: _HIGH}
            channel.count_latched = half.get(access, _HIGH if counter.read_high else _WORD_LOW)
            if both:
                channel.read_state = _WORD_LOW
        if counter.status is not None:
            channel.status, channel.status_latched = counter.status, 1
    record.flags = _KVM_SPEAKER_ON if state.port_b.bits & _PORT_B_SPEAKER else 0
    return bytes(record.memory)


assert layout.GSI_COUNT == 24  # as many as kvm_ioapic_state has
