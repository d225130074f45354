"""A local APIC: our model's record and KVM's, either way.

KVM's is ``struct kvm_lapic_state``, the register page of xAPIC (Intel SDM vol. 3, table
11-1) in either mode, the ICR in two halves and the ID in bits 31-24 (Linux
``virt/kvm/api.rst``, 4.57; ``arch/x86/kvm/lapic.c``). Both timers count at 1 GHz.
"""

from __future__ import annotations

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.lapic_registers import LapicState, LapicTimerState
from kvmkit.devices.lapic_timer import SECOND, divisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["current_count", "lapic_to_kvm", "lapic_to_model"]

BUS_HZ = 1_000_000_000

_ID_SHIFT = 24
_BANKS = 8  # of 32 bits, for 256 vectors


def lapic_to_model(
    page: bytes, *, base: int, deadline: int, now: int, tsc: int, tsc_hz: int, lint0: bool
) -> LapicState:
    """KVM's page as our record, at guest time ``now`` (ns) and the counter's value ``tsc``.

    ``base`` is IA32_APIC_BASE, ``deadline`` IA32_TSC_DEADLINE.
    """

    def get(offset: int) -> int:
        return int.from_bytes(page[offset : offset + 4], "little")

    def bits(offset: int) -> int:
        return sum(get(offset + 16 * bank) << 32 * bank for bank in range(_BANKS))

    lvt = {offset: get(offset) & (mask | reg.LVT_REMOTE_IRR) for offset, mask in
           reg.LVT_WRITABLE.items()}  # fmt: skip
    if not lvt[reg.LVT_CMCI]:
        lvt[reg.LVT_CMCI] = reg.LVT_RESET  # KVM has none
    return LapicState(
        base=base,
        timer=_timer_to_model(get, lvt[reg.LVT_TIMER], deadline, now, tsc, tsc_hz),
        tpr=get(reg.TPR) & 0xFF,
        ldr=0 if base & reg.BASE_X2APIC else get(reg.LDR),
        dfr=get(reg.DFR) | ~reg.DFR_MODEL & 0xFFFFFFFF,
        svr=get(reg.SVR) & reg.SVR_WRITABLE,
        isr=bits(reg.ISR),
        tmr=bits(reg.TMR),
        irr=bits(reg.IRR),
        esr=get(reg.ESR),
        icr=get(reg.ICR_LOW) & reg.ICR_WRITABLE | get(reg.ICR_HIGH) << 32,
        lvt=tuple(lvt.values()),
        lint0=lint0,
    )


def _timer_to_model(
    get: Callable[[int], int], entry: int, deadline: int, now: int, tsc: int, tsc_hz: int
) -> LapicTimerState:
    initial, divide = get(reg.INITIAL_COUNT), get(reg.DIVIDE) & reg.DIVIDE_WRITABLE
    masked = bool(entry & reg.LVT_MASKED)
    if entry & reg.LVT_TIMER_MODE == reg.TIMER_TSC_DEADLINE:
        alarm = None
        if deadline:
            alarm = now + max(0, -(-(deadline - tsc) * SECOND // tsc_hz))
        return LapicTimerState(0, divide, 0, 0, deadline, alarm)
    count = get(reg.CURRENT_COUNT)
    alarm = now + -(-count * divisor(divide) * SECOND // BUS_HZ) if count and not masked else None
    return LapicTimerState(initial, divide, now, count, 0, alarm)


def lapic_to_kvm(state: LapicState, ident: int, now: int, fresh: bytes) -> bytes:
    """Our record as KVM's page, of the APIC ``ident``; ``fresh`` is a fresh vCPU's."""
    page = bytearray(fresh)

    def put(offset: int, value: int) -> None:
        page[offset : offset + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    put(reg.ID, ident << _ID_SHIFT)
    put(reg.TPR, state.tpr)
    if not state.base & reg.BASE_X2APIC:
        put(reg.LDR, state.ldr)
    put(reg.DFR, state.dfr)
    put(reg.SVR, state.svr)
    for offset, bits in ((reg.ISR, state.isr), (reg.TMR, state.tmr), (reg.IRR, state.irr)):
        for bank in range(_BANKS):
            put(offset + 16 * bank, bits >> 32 * bank)
    put(reg.ESR, state.esr)
    put(reg.ICR_LOW, state.icr)
    put(reg.ICR_HIGH, state.icr >> 32)
    for offset, entry in zip(reg.LVT_WRITABLE, state.lvt, strict=True):
        if offset != reg.LVT_CMCI:  # KVM has none
            put(offset, entry)
    put(reg.INITIAL_COUNT, state.timer.initial)
    put(reg.CURRENT_COUNT, current_count(state, now))
    put(reg.DIVIDE, state.timer.divide)
    return bytes(page)


def current_count(state: LapicState, now: int) -> int:
    """The timer's current count at guest time ``now``."""
    timer = state.timer
    if not timer.counted_from:
        return 0
    elapsed = (now - timer.started) * BUS_HZ // (SECOND * divisor(timer.divide))
    if elapsed < timer.counted_from:
        return timer.counted_from - elapsed
    periodic = state.lvt[list(reg.LVT_WRITABLE).index(reg.LVT_TIMER)] & reg.LVT_TIMER_MODE
    if periodic != reg.TIMER_PERIODIC or not timer.initial:
        return 0
    return timer.initial - (elapsed - timer.counted_from) % timer.initial
