"""The local APIC's registers: offsets, bits, reset values, and the state record.

Intel SDM vol. 3, table 11-1 (xAPIC register map), table 11-6 (x2APIC MSRs) and
the figures of 11.4-11.12. An x2APIC MSR is 0x800 + offset / 16.
"""

from __future__ import annotations

from kvmkit.frozen import Record

__all__ = ["LapicState", "LapicTimerState"]

# Offsets in the MMIO page.
ID = 0x020
VERSION = 0x030
TPR = 0x080
APR = 0x090
PPR = 0x0A0
EOI = 0x0B0
RRD = 0x0C0
LDR = 0x0D0
DFR = 0x0E0
SVR = 0x0F0
ISR = 0x100
TMR = 0x180
IRR = 0x200
ESR = 0x280
LVT_CMCI = 0x2F0
ICR_LOW = 0x300
ICR_HIGH = 0x310
LVT_TIMER = 0x320
LVT_THERMAL = 0x330
LVT_PMC = 0x340
LVT_LINT0 = 0x350
LVT_LINT1 = 0x360
LVT_ERROR = 0x370
INITIAL_COUNT = 0x380
CURRENT_COUNT = 0x390
DIVIDE = 0x3E0
SELF_IPI = 0x3F0

# MSRs.
MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
MSR_X2APIC = 0x800
MSR_X2APIC_END = 0x900
MSR_EOI = MSR_X2APIC + (EOI >> 4)
MSR_ICR = MSR_X2APIC + (ICR_LOW >> 4)

# IA32_APIC_BASE (11.4.4, 11.12.1).
BASE_BSP = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLE = 1 << 11
BASE_DEFAULT = 0xFEE00000

# Version (11.4.8): an integrated APIC, 7 LVT entries, EOI broadcasts can be suppressed.
VERSION_VALUE = 0x14 | 6 << 16 | 1 << 24

# Spurious-interrupt vector (11.9). Bit 9 is focus checking, of P6: kept, without effect.
SVR_ENABLE = 1 << 8
SVR_SUPPRESS_EOI = 1 << 12
SVR_WRITABLE = 0x13FF
SVR_RESET = 0xFF

# Destination format (11.6.2.2): the model in bits 28-31, all others read as ones.
DFR_MODEL = 0xF << 28
DFR_FLAT = 0xF << 28
DFR_CLUSTER = 0
DFR_RESET = 0xFFFFFFFF

# Error status (11.5.3).
ESR_SEND_ILLEGAL_VECTOR = 1 << 5
ESR_RECEIVE_ILLEGAL_VECTOR = 1 << 6
ESR_ILLEGAL_REGISTER = 1 << 7

# Local vector table (11.5.1).
LVT_VECTOR = 0xFF
LVT_MODE_SHIFT = 8
LVT_REMOTE_IRR = 1 << 14
LVT_LEVEL = 1 << 15
LVT_MASKED = 1 << 16
LVT_TIMER_MODE = 3 << 17
LVT_RESET = LVT_MASKED
TIMER_ONE_SHOT = 0 << 17
TIMER_PERIODIC = 1 << 17
TIMER_TSC_DEADLINE = 2 << 17

LVT_WRITABLE = {
    LVT_CMCI: 0x107FF,
    LVT_TIMER: 0x700FF,
    LVT_THERMAL: 0x107FF,
    LVT_PMC: 0x107FF,
    LVT_LINT0: 0x1A7FF,
    LVT_LINT1: 0x1A7FF,
    LVT_ERROR: 0x100FF,
}
"""Each entry's bits that software may change; delivery status and remote IRR are read-only."""

LVT_READ_ONLY = 1 << 12 | LVT_REMOTE_IRR

# Interrupt command (11.6.1, figures 11-12 and 11-28).
ICR_VECTOR = 0xFF
ICR_MODE_SHIFT = 8
ICR_LOGICAL = 1 << 11
ICR_ASSERT = 1 << 14
ICR_LEVEL = 1 << 15
ICR_SHORTHAND_SHIFT = 18
ICR_WRITABLE = 0xCCFFF & ~(1 << 12)
ICR_X2APIC_RESERVED = 0xFFFFFFFF & ~ICR_WRITABLE
ICR_XAPIC_DESTINATION_SHIFT = 56
ICR_X2APIC_DESTINATION_SHIFT = 32

# Divide configuration (11.5.4): bits 0, 1 and 3 choose the divisor.
DIVIDE_WRITABLE = 0xB

X2APIC_RESERVED = {
    TPR: ~0xFF,
    EOI: ~0,
    SVR: ~SVR_WRITABLE,
    ESR: ~0,
    **{entry: ~(bits | LVT_READ_ONLY) for entry, bits in LVT_WRITABLE.items()},
    INITIAL_COUNT: ~0xFFFFFFFF,
    DIVIDE: ~DIVIDE_WRITABLE,
    SELF_IPI: ~0xFF,
}
"""The writable x2APIC registers other than the ICR, with the bits that fault when set."""


class LapicTimerState(Record):
    """The APIC timer. Times are nanoseconds of guest time.

    The count was ``counted_from`` at ``started`` (0: not counting);
    ``deadline`` is the IA32_TSC_DEADLINE register, ``alarm`` when it fires.
    """

    initial: int = 0
    divide: int = 0
    started: int = 0
    counted_from: int = 0
    deadline: int = 0
    alarm: int | None = None


class LapicState(Record):
    """A local APIC. ``isr``, ``tmr`` and ``irr`` are 256 bits, bit n is vector n."""

    base: int
    timer: LapicTimerState = LapicTimerState()
    tpr: int = 0
    ldr: int = 0
    dfr: int = DFR_RESET
    svr: int = SVR_RESET
    isr: int = 0
    tmr: int = 0
    irr: int = 0
    esr: int = 0
    errors: int = 0  # detected since ESR was last written
    icr: int = 0
    lvt: tuple[int, ...] = (LVT_RESET,) * 7  # in the order of LVT_WRITABLE
    lint0: bool = False
    lint1: bool = False
    extint: bool = False  # an ExtINT message that is not acknowledged yet
