"""Model-specific registers of the software CPU that are neither the core's nor the APIC's.

Intel SDM vol. 4, table 2-2; KVM's clocks: Linux ``virt/kvm/x86/msr.rst``. A
register that is not here faults (#GP), as on a processor that lacks it.
"""

from __future__ import annotations

from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KVM_SYSTEM_TIME", "KVM_WALL_CLOCK", "Msrs"]

PLATFORM_ID = 0x17
FEATURE_CONTROL = 0x3A
UCODE_REVISION = 0x8B
MTRR_CAP = 0xFE
MTRR_DEFAULT_TYPE = 0x2FF
KVM_WALL_CLOCK = 0x4B564D00
KVM_SYSTEM_TIME = 0x4B564D01

MTRR_COUNT = 8
_MTRR_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MTRR_VARIABLE = range(0x200, 0x200 + 2 * MTRR_COUNT)
_WRITE_BACK = 0x0606060606060606

# Value at reset, and the bits that can be written (others must be as they are).
_TABLE: dict[int, tuple[int, int]] = {
    PLATFORM_ID: (0, 0),
    FEATURE_CONTROL: (1, 0),  # locked, nothing enabled
    UCODE_REVISION: (1 << 32, 0xFFFFFFFFFFFFFFFF),
    MTRR_CAP: (MTRR_COUNT | 1 << 8 | 1 << 10, 0),
    MTRR_DEFAULT_TYPE: (6 | 1 << 11 | 1 << 10, 0xCFF),  # all write-back, enabled
    **dict.fromkeys(_MTRR_FIXED, (_WRITE_BACK, 0xFFFFFFFFFFFFFFFF)),
    **dict.fromkeys(_MTRR_VARIABLE, (0, 0xFFFFFFFFFF)),
    KVM_WALL_CLOCK: (0, 0xFFFFFFFFFFFFFFFF),
    KVM_SYSTEM_TIME: (0, 0xFFFFFFFFFFFFFFFF),
}

# pvclock_vcpu_time_info: with a TSC of 1 GHz, ns = ((tsc - start) << 1) * 2**31 >> 32
_MULTIPLIER, _SHIFT = 1 << 31, 1
_STABLE = 1  # PVCLOCK_TSC_STABLE_BIT


class Msrs:
    """The registers of one CPU. ``write_ram(address, data)`` ignores what is not RAM."""

    def __init__(self, write_ram: Callable[[int, bytes], None], clock_start: Callable[[], int],
                 wall_at_zero: Callable[[], int]) -> None:
        """``clock_start``: the TSC at guest time 0; ``wall_at_zero``: ns since 1970 then."""
        self._write_ram = write_ram
        self._clock_start = clock_start
        self._wall_at_zero = wall_at_zero
        self.values: dict[int, int] = {}

    def read(self, index: int) -> int | None:
        """RDMSR; None is #GP."""
        entry = _TABLE.get(index)
        return None if entry is None else self.values.get(index, entry[0])

    def write(self, index: int, value: int) -> bool:
        """WRMSR; False is #GP."""
        entry = _TABLE.get(index)
        if entry is None:
            return False
        old = self.values.get(index, entry[0])
        if (value ^ old) & ~entry[1]:
            return False
        self.values[index] = value
        if index in (KVM_SYSTEM_TIME, KVM_WALL_CLOCK):
            self.publish_clock(index)
        return True

    def publish_clock(self, index: int = KVM_SYSTEM_TIME) -> None:
        """Write the clock page the guest asked for; again whenever its TSC was set."""
        value = self.values.get(index, 0)
        if index == KVM_WALL_CLOCK:
            seconds, nanoseconds = divmod(self._wall_at_zero(), 1_000_000_000)
            self._write_ram(value, pack("<III", 2, seconds & 0xFFFFFFFF, nanoseconds))
        elif value & 1:
            start = self._clock_start() & 0xFFFFFFFFFFFFFFFF
            page = pack("<IIQQIbBH", 2, 0, start, 0, _MULTIPLIER, _SHIFT, _STABLE, 0)
            self._write_ram(value & ~1, page)

    def reset(self) -> None:
        """Go to the power-on state."""
        self.values.clear()
