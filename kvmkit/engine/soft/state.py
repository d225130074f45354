"""Registers by name for the software CPU: packs and unpacks the core's record.

The layout is ``struct registers`` in ``core/state.c``.
"""

from __future__ import annotations

from struct import Struct

from kvmkit.engine.cpu import CpuState, DescriptorTable, Fpu, Segment

__all__ = ["pack_state", "unpack_state"]

_WORDS = 16 + 2 + 8 * 4 + 4 + 5 + 6 + 5 + 7 + 7 + 4
_RECORD = Struct(f"<{_WORDS}Q" + "16s" * 24)

_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")

# MSRs in the order of the record: star to tsc
_MSRS = (
    0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102,
    0x174, 0x175, 0x176, 0xC0000103, 0x277, 0x1A0, 0x10,
)  # fmt: skip
_MSR_TSC = 0x10
_MSR_DEFAULTS = {0x277: 0x0007040600070406, 0x1A0: 1}
_FS_BASE, _GS_BASE = 0xC0000100, 0xC0000101

# A loaded task register says "busy" (SDM vol. 3, 7.2.2; KVM insists); Unicorn holds
# it as available, and gives up on the process where it finds anything else.
_TSS_BUSY = 2
_TSS_TYPE, _TSS_16, _TSS_32 = 0xF, 1, 9


def unpack_state(record: bytes, cr8: int, msrs: dict[int, int], tsc: int) -> CpuState:
    """The core's record as a CpuState; ``msrs`` are those the core does not hold."""
    fields = _RECORD.unpack(record)
    words = iter(fields[:_WORDS])
    take = words.__next__
    gprs = [take() for _ in range(16)]
    # Unicorn: RAX RCX RDX RBX RSP RBP RSI RDI; CpuState: RAX RBX RCX RDX RSI RDI RSP RBP
    order = (0, 3, 1, 2, 6, 7, 4, 5, *range(8, 16))
    rip, rflags = take(), take()
    segments = {name: Segment(take(), take(), take(), take()) for name in _SEGMENTS}
    tr = segments["tr"]
    segments["tr"] = Segment(tr.selector, tr.base, tr.limit, tr.attributes | _TSS_BUSY)
    gdt, idt = DescriptorTable(take(), take()), DescriptorTable(take(), take())
    cr0, cr2, cr3, cr4, efer = (take() for _ in range(5))
    dr = (take(), take(), take(), take(), take(), take())
    held = {index: take() for index in _MSRS}
    fcw, fsw, ftw, fop, fip, fdp, mxcsr = (take() for _ in range(7))
    halted, waiting, shadow, masked = (bool(take()) for _ in range(4))
    st, xmm = fields[_WORDS : _WORDS + 8], fields[_WORDS + 8 :]
    return CpuState(
        gprs=tuple(gprs[i] for i in order), rip=rip, rflags=rflags, **segments,
        gdt=gdt, idt=idt, cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, cr8=cr8, efer=efer, dr=dr,
        fpu=Fpu(fcw, fsw, ftw, fop, fip, fdp, mxcsr, tuple(v[:10] for v in st), tuple(xmm)),
        msrs=msrs | held | {_MSR_TSC: tsc},
        halted=halted, waiting_for_sipi=waiting, interrupt_shadow=shadow, nmi_masked=masked,
    )  # fmt: skip


def pack_state(state: CpuState, tsc: int) -> bytes:
    """The core's record for a CpuState. ``tsc`` counts where the state names no TSC."""
    g = state.gprs
    order = (0, 2, 3, 1, 6, 7, 4, 5, *range(8, 16))
    words = [g[i] for i in order]
    words += [state.rip, state.rflags]
    for name in _SEGMENTS:
        s: Segment = getattr(state, name)
        base = s.base
        if name == "fs":
            base = state.msrs.get(_FS_BASE, base)
        elif name == "gs":
            base = state.msrs.get(_GS_BASE, base)
        attributes = _task_register(s.attributes) if name == "tr" else s.attributes
        words += [s.selector, base, s.limit, attributes]
    words += [state.gdt.base, state.gdt.limit, state.idt.base, state.idt.limit]
    words += [state.cr0, state.cr2, state.cr3, state.cr4, state.efer, *state.dr]
    for index in _MSRS:
        default = tsc if index == _MSR_TSC else _MSR_DEFAULTS.get(index, 0)
        words.append(state.msrs.get(index, default))
    f = state.fpu
    words += [f.fcw, f.fsw, f.ftw, f.fop, f.fip, f.fdp, f.mxcsr]
    words += [state.halted, state.waiting_for_sipi, state.interrupt_shadow, state.nmi_masked]
    return _RECORD.pack(*words, *f.st, *f.xmm)


def _task_register(attributes: int) -> int:
    """TR's attributes as Unicorn wants them: present, available, of 16 or 32/64 bits."""
    kind = _TSS_16 if attributes & _TSS_TYPE & ~_TSS_BUSY == _TSS_16 else _TSS_32
    return attributes & ~_TSS_TYPE | kind | 0x80
