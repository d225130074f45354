"""Linear to guest-physical addresses, as the CPU's page tables have it now (SDM vol. 3, 4.3-4.5).

For looking at a stopped CPU: no access rights are checked, no bits are set.
"""

from __future__ import annotations

from kvmkit.errors import GuestAddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.board.memory import GuestMemory
    from kvmkit.engine.cpu import CpuState

__all__ = ["has_user_half", "translate"]

CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LMA = 1 << 10

PRESENT = 1 << 0
USER = 1 << 2
LARGE = 1 << 7
FRAME = 0x000F_FFFF_FFFF_F000


def translate(memory: GuestMemory, cpu: CpuState, linear: int) -> int | None:
    """The guest-physical address of ``linear``; None if it is not mapped."""
    if not cpu.cr0 & CR0_PG:
        return linear & 0xFFFF_FFFF
    try:
        if cpu.efer & EFER_LMA:
            levels = 5 if cpu.cr4 & CR4_LA57 else 4
            return _walk(memory, cpu.cr3 & FRAME, linear, levels, 9)
        if cpu.cr4 & CR4_PAE:
            entry = memory.read_u64((cpu.cr3 & 0xFFFF_FFE0) + (linear >> 30 & 3) * 8)
            return _walk(memory, entry & FRAME, linear, 2, 9) if entry & PRESENT else None
        return _walk(memory, cpu.cr3 & 0xFFFF_F000, linear, 2, 10)
    except GuestAddressError:  # a table outside RAM
        return None


def has_user_half(memory: GuestMemory, cpu: CpuState) -> bool:
    """Whether the CPU's address space has a process in it.

    True when an entry of the top table's lower half may be used from user mode.
    A kernel's own and a loader's identity mapping have none; an idle CPU keeps
    the last process's tables (lazy TLB, Linux ``arch/x86/mm/tlb.c``).
    """
    if not (cpu.cr0 & CR0_PG and cpu.efer & EFER_LMA):
        return False
    try:
        half = memory.read(cpu.cr3 & FRAME, 2048)
    except GuestAddressError:
        return False
    wanted = PRESENT | USER
    return any(half[offset] & wanted == wanted for offset in range(0, 2048, 8))


def _walk(memory: GuestMemory, table: int, linear: int, levels: int, bits: int) -> int | None:
    """Down ``levels`` tables of ``1 << bits`` entries each."""
    entry_size = 8 if bits == 9 else 4
    for level in range(levels - 1, -1, -1):
        shift = 12 + bits * level
        address = table + (linear >> shift & (1 << bits) - 1) * entry_size
        entry = memory.read_u64(address) if bits == 9 else memory.read_u32(address)
        if not entry & PRESENT:
            return None
        if level and level < 3 and entry & LARGE:
            inside = (1 << shift) - 1
            return entry & FRAME & ~inside | linear & inside
        table = entry & FRAME
    return table | linear & 0xFFF
