"""A vCPU's registers to and from :class:`~kvmkit.engine.cpu.CpuState`.

The x87 and SSE part is the legacy region of the XSAVE area, which has FXSAVE's
layout (Intel SDM vol. 1, 10.5.1, and vol. 1, 13.4.2 for XSTATE_BV).
"""

from __future__ import annotations

from struct import Struct

from kvmkit.engine.cpu import CpuState, DescriptorTable, Fpu, Segment
from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.run_structs import (
    kvm_dtable,
    kvm_lapic_state,
    kvm_regs,
    kvm_segment,
    kvm_vcpu_events,
    kvm_xcrs,
)
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.engine.kvm.vcpu_fd import VcpuFd

__all__ = ["VcpuRest", "read_rest", "read_state", "write_rest", "write_state"]

MSR_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0

_REGS = Struct("<18Q")
_FXSAVE = Struct("<HHBxHQQI")  # FCW FSW FTW FOP FIP FDP MXCSR
_ST = 32  # 8 registers, 16 bytes each, 10 of them used
_XMM = 160
_XSTATE_BV = 512
_X87_AND_SSE = 3

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")


class VcpuRest(Record):
    """What KVM knows of a vCPU beyond :class:`CpuState`, in KVM's own layout.

    ``xsave`` holds the AVX and later registers, ``events`` what was being
    delivered to the CPU when it stopped, ``lapic`` its local APIC ("" without one).
    """

    xsave: bytes
    xcrs: bytes
    events: bytes
    mp_state: int
    lapic: bytes


def read_state(vcpu: VcpuFd, msrs: list[int]) -> CpuState:
    """All registers of a vCPU that does not run, with those of ``msrs`` that can be read."""
    regs = _REGS.unpack(vcpu.regs().memory)
    sregs = vcpu.sregs()
    debug = vcpu.debugregs()
    events = vcpu.events()
    mp_state = vcpu.mp_state()
    values = vcpu.msrs(msrs)
    values[MSR_APIC_BASE] = sregs.apic_base
    return CpuState(
        gprs=regs[:16],
        rip=regs[16],
        rflags=regs[17],
        cs=_segment(sregs.cs),
        ds=_segment(sregs.ds),
        es=_segment(sregs.es),
        fs=_segment(sregs.fs),
        gs=_segment(sregs.gs),
        ss=_segment(sregs.ss),
        ldt=_segment(sregs.ldt),
        tr=_segment(sregs.tr),
        gdt=DescriptorTable(sregs.gdt.base, sregs.gdt.limit),
        idt=DescriptorTable(sregs.idt.base, sregs.idt.limit),
        cr0=sregs.cr0,
        cr2=sregs.cr2,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        cr8=sregs.cr8,
        efer=sregs.efer,
        dr=(*debug.db, debug.dr6, debug.dr7),  # type: ignore[arg-type]
        fpu=_fpu(vcpu.xsave()),
        msrs=values,
        halted=mp_state == abi.KVM_MP_STATE_HALTED,
        waiting_for_sipi=mp_state
        in (abi.KVM_MP_STATE_UNINITIALIZED, abi.KVM_MP_STATE_INIT_RECEIVED),
        interrupt_shadow=bool(events.interrupt.shadow),
        nmi_masked=bool(events.nmi.masked),
    )


def write_state(
    vcpu: VcpuFd, state: CpuState, *, keep_tsc: bool = False, irqchip: bool = True
) -> list[int]:
    """Make a vCPU that does not run what ``state`` says; the MSRs that KVM refused.

    What the state does not name (AVX registers, pending events) stays. An MSR is
    written only if it differs, since some act on being written. With ``keep_tsc``
    the time-stamp counter goes on: setting back that of a running machine would
    tear its vCPUs' counters apart. Raises OSError if KVM finds the state impossible.
    """
    sregs = vcpu.sregs()
    for name in _SEGMENTS:
        _set_segment(getattr(sregs, name), getattr(state, name))
    _set_table(sregs.gdt, state.gdt)
    _set_table(sregs.idt, state.idt)
    for name in _CONTROL:
        setattr(sregs, name, getattr(state, name))
    sregs.apic_base = state.msrs.get(MSR_APIC_BASE, sregs.apic_base)
    sregs.interrupt_bitmap = (0, 0, 0, 0)  # what is being delivered is in the events
    vcpu.set_sregs(sregs)

    area = vcpu.xsave()
    _set_fpu(area, state.fpu)
    vcpu.set_xsave(area)

    wanted = {index: value for index, value in state.msrs.items() if index != MSR_APIC_BASE}
    if keep_tsc:
        wanted.pop(MSR_TSC, None)
    refused: list[int] = []
    if wanted:
        if MSR_TSC_DEADLINE in wanted:  # counts only with the TSC in place
            wanted[MSR_TSC_DEADLINE] = wanted.pop(MSR_TSC_DEADLINE)
        current = vcpu.msrs(wanted)
        changed = {index: value for index, value in wanted.items() if current.get(index) != value}
        refused = vcpu.set_msrs(changed)

    regs = kvm_regs()
    _REGS.pack_into(regs.memory, 0, *state.gprs, state.rip, state.rflags)
    vcpu.set_regs(regs)

    debug = vcpu.debugregs()
    debug.db = state.dr[:4]
    debug.dr6, debug.dr7 = state.dr[4:]
    vcpu.set_debugregs(debug)

    events = vcpu.events()
    if not state.interrupt_shadow:
        events.interrupt.shadow = 0
    elif not events.interrupt.shadow:
        events.interrupt.shadow = abi.KVM_X86_SHADOW_INT_STI
    events.nmi.masked = state.nmi_masked
    vcpu.set_events(events)

    if irqchip or not state.waiting_for_sipi:
        vcpu.set_mp_state(
            abi.KVM_MP_STATE_UNINITIALIZED
            if state.waiting_for_sipi
            else abi.KVM_MP_STATE_HALTED
            if state.halted and irqchip
            else abi.KVM_MP_STATE_RUNNABLE
        )
    return refused


def read_rest(vcpu: VcpuFd, xsave_size: int, *, irqchip: bool = True) -> VcpuRest:
    """What :func:`read_state` leaves out, for a restore into KVM."""
    return VcpuRest(
        xsave=bytes(vcpu.xsave(xsave_size)),
        xcrs=bytes(vcpu.xcrs().memory),
        events=bytes(vcpu.events().memory),
        mp_state=vcpu.mp_state(),
        lapic=bytes(vcpu.lapic().memory) if irqchip else b"",
    )


def write_rest(vcpu: VcpuFd, rest: VcpuRest, state: CpuState) -> None:
    """Complete a :func:`write_state` of ``state``."""
    vcpu.set_xcrs(kvm_xcrs(bytearray(rest.xcrs)))
    vcpu.set_xsave(rest.xsave)
    if rest.lapic:
        vcpu.set_lapic(kvm_lapic_state(bytearray(rest.lapic)))
        if deadline := state.msrs.get(MSR_TSC_DEADLINE):  # the APIC has its timer mode now
            vcpu.set_msrs({MSR_TSC_DEADLINE: deadline})
    vcpu.set_events(kvm_vcpu_events(bytearray(rest.events)))
    vcpu.set_mp_state(rest.mp_state)


def _segment(s: kvm_segment) -> Segment:
    attributes = (
        s.type
        | s.s << 4
        | s.dpl << 5
        | s.present << 7
        | s.avl << 12
        | s.l << 13
        | s.db << 14
        | s.g << 15
        | s.unusable << 16
    )
    return Segment(s.selector, s.base, s.limit, attributes)


def _set_segment(s: kvm_segment, value: Segment) -> None:
    attributes = value.attributes
    s.selector = value.selector
    s.base = value.base
    s.limit = value.limit
    s.type = attributes & 15
    s.s = attributes >> 4 & 1
    s.dpl = attributes >> 5 & 3
    s.present = attributes >> 7 & 1
    s.avl = attributes >> 12 & 1
    s.l = attributes >> 13 & 1
    s.db = attributes >> 14 & 1
    s.g = attributes >> 15 & 1
    s.unusable = attributes >> 16 & 1


def _set_table(table: kvm_dtable, value: DescriptorTable) -> None:
    table.base = value.base
    table.limit = value.limit


def _fpu(area: bytearray) -> Fpu:
    fcw, fsw, ftw, fop, fip, fdp, mxcsr = _FXSAVE.unpack_from(area)
    return Fpu(
        fcw,
        fsw,
        ftw,
        fop,
        fip,
        fdp,
        mxcsr,
        st=tuple(bytes(area[_ST + 16 * n : _ST + 16 * n + 10]) for n in range(8)),
        xmm=tuple(bytes(area[_XMM + 16 * n : _XMM + 16 * n + 16]) for n in range(16)),
    )


def _set_fpu(area: bytearray, fpu: Fpu) -> None:
    _FXSAVE.pack_into(area, 0, fpu.fcw, fpu.fsw, fpu.ftw, fpu.fop, fpu.fip, fpu.fdp, fpu.mxcsr)
    for n, value in enumerate(fpu.st):
        area[_ST + 16 * n : _ST + 16 * n + 10] = value
    for n, value in enumerate(fpu.xmm):
        area[_XMM + 16 * n : _XMM + 16 * n + 16] = value
    area[_XSTATE_BV] |= _X87_AND_SSE  # both parts are in the area, not in their initial state
