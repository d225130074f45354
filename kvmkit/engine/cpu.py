"""The state of one x86-64 CPU, by register name (Intel SDM vol. 3, 2 and 3.4-3.5).

No engine's private layout: the same record is read from, and restored to, KVM
and the software CPU, printed by debugging views and written to snapshots.
"""

from __future__ import annotations

from kvmkit.frozen import Record, field, replace

__all__ = ["CpuState", "DescriptorTable", "Fpu", "Segment", "flat_long_mode", "flat_protected_mode"]

GPRS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""The names of the general registers, in the order of ``CpuState.gprs``."""


class Segment(Record):
    """A segment register with its hidden part (SDM vol. 3, 3.4.3, 3.4.5).

    ``attributes`` are bits 8-15 and 20-23 of the descriptor's upper half, moved
    down by 8, as in VMX's access rights: type 0-3, S 4, DPL 5-6, P 7, AVL 12,
    L 13, D/B 14, G 15; bit 16 set means unusable. ``limit`` is in bytes.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    attributes: int = 0x93


class DescriptorTable(Record):
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0xFFFF


class Fpu(Record):
    """x87 and SSE state: ``st`` 10 bytes each, in stack order ST0-ST7; ``xmm`` 16 bytes each."""

    fcw: int = 0x37F
    fsw: int = 0
    ftw: int = 0  # abridged: a set bit is a register in use (FXSAVE's form)
    fop: int = 0
    fip: int = 0
    fdp: int = 0
    mxcsr: int = 0x1F80
    st: tuple[bytes, ...] = (bytes(10),) * 8
    xmm: tuple[bytes, ...] = (bytes(16),) * 16


class CpuState(Record):
    """A CPU at rest between two instructions; by default after INIT (SDM vol. 3, 9.1.1)."""

    gprs: tuple[int, ...] = (0, 0, 0, 0x600) + (0,) * 12
    rip: int = 0xFFF0
    rflags: int = 2
    cs: Segment = Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    ds: Segment = Segment()
    es: Segment = Segment()
    fs: Segment = Segment()
    gs: Segment = Segment()
    ss: Segment = Segment()
    ldt: Segment = Segment(0, 0, 0xFFFF, 0x82)
    tr: Segment = Segment(0, 0, 0xFFFF, 0x8B)
    gdt: DescriptorTable = DescriptorTable()
    idt: DescriptorTable = DescriptorTable()
    cr0: int = 0x60000010
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    dr: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0xFFFF0FF0, 0x400)  # DR0-3, 6, 7
    fpu: Fpu = Fpu()
    msrs: dict[int, int] = field(default_factory=dict)
    halted: bool = False
    waiting_for_sipi: bool = False
    interrupt_shadow: bool = False
    nmi_masked: bool = False

    def __getattr__(self, name: str) -> int:
        """General registers by name: ``state.rax``."""
        if name in GPRS:
            return self.gprs[GPRS.index(name)]
        raise AttributeError(name)

    def with_gprs(self, **values: int) -> CpuState:
        """A copy with some general registers changed: ``state.with_gprs(rsi=0x7000)``.

        Raises ValueError for a name that is none.
        """
        gprs = list(self.gprs)
        for name, value in values.items():
            gprs[GPRS.index(name) if name in GPRS else _unknown(name)] = value & (1 << 64) - 1
        return replace(self, gprs=tuple(gprs))


def _unknown(name: str) -> int:
    raise ValueError(f"{name} is not a general register")


def flat_long_mode(rip: int, *, cr3: int, gdt: int, stack: int) -> CpuState:
    """A CPU in 64-bit mode with paging on, as Linux's 64-bit entry wants it.

    Linux ``Documentation/arch/x86/boot.rst``, "64-bit Boot Protocol": CS 0x10,
    DS, ES and SS 0x18, interrupts off, identity-mapped page tables at ``cr3``.
    """
    data = Segment(0x18, 0, 0xFFFFFFFF, 0xC093)
    return CpuState(
        rip=rip,
        cs=Segment(0x10, 0, 0xFFFFFFFF, 0xA09B),
        ds=data, es=data, fs=data, gs=data, ss=data,
        ldt=Segment(0, 0, 0, 0x82),
        tr=Segment(0, 0, 0xFFFF, 0x8B),
        gdt=DescriptorTable(gdt, 31),
        idt=DescriptorTable(0, 0),
        cr0=0x80000011, cr3=cr3, cr4=0x20, efer=0x500,
    ).with_gprs(rsp=stack, rdx=0)  # fmt: skip


def flat_protected_mode(rip: int, *, gdt: int) -> CpuState:
    """A CPU in 32-bit protected mode without paging, for PVH (Xen ``docs/misc/pvh.pandoc``)."""
    data = Segment(0x18, 0, 0xFFFFFFFF, 0xC093)
    return CpuState(
        rip=rip,
        cs=Segment(0x10, 0, 0xFFFFFFFF, 0xC09B),
        ds=data, es=data, fs=data, gs=data, ss=data,
        ldt=Segment(0, 0, 0, 0x82),
        tr=Segment(0, 0, 0x67, 0x8B),
        gdt=DescriptorTable(gdt, 31),
        idt=DescriptorTable(0, 0),
        cr0=0x11, cr4=0,
    ).with_gprs(rdx=0)  # fmt: skip
