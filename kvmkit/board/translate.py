"""A machine that was saved on one engine goes on on the other, as far as it can.

Registers have the same names on both. The interrupt chips are translated
(:mod:`~kvmkit.board.translate_chips`, :mod:`~kvmkit.board.translate_lapic`). What has no
counterpart is refused before anything runs: registers that the software CPU lacks (AVX
and later, by CR4.OSXSAVE), instructions that this host's processor lacks, and a
time-stamp counter of another frequency, for a guest that counts on it.
"""

from __future__ import annotations

from kvmkit.board import translate_chips as chips_of
from kvmkit.board.state import CHIPS
from kvmkit.board.translate_lapic import lapic_to_kvm, lapic_to_model
from kvmkit.devices import lapic_registers as reg
from kvmkit.engine.kvm.run_structs import kvm_vcpu_events
from kvmkit.errors import BadSnapshot
from kvmkit.frozen import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.board.state import BoardState
    from kvmkit.devices.lapic_registers import LapicState
    from kvmkit.engine.cpu import CpuState, Segment

__all__ = ["restore_into_kvm", "restore_into_models"]

MSR_TSC = 0x10
MSR_KVM_SYSTEM_TIME = 0x4B564D01

CR4_OSFXSR, CR4_OSXSAVE = 1 << 9, 1 << 18
_CR4_NAMES = {
    11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 17: "PCIDE", 18: "OSXSAVE", 21: "SMAP",
    22: "PKE", 23: "CET", 24: "PKS", 28: "LAM",
}  # fmt: skip
"""What the software CPU does not announce, and a guest of KVM may have switched on."""

_EFER_SOFT = 0xD01  # SCE, LME, LMA, NXE
_PRESENT, _UNUSABLE = 1 << 7, 1 << 16
_TOLERANCE = 500  # parts per million of the counter's frequency, what NTP corrects


def restore_into_models(board: Board, state: BoardState) -> None:
    """Let a board on the software CPU become a state of one on KVM. Raises BadSnapshot."""
    engine: Any = board.engine
    kernel, rests = state.engine_devices
    own = [events(rest.events) for rest in rests]
    for index, (cpu, event) in enumerate(zip(state.cpus, own, strict=True)):
        _check_for_soft(index, cpu, event)
    devices = board.devices
    for name, device in devices.items():
        if name not in CHIPS and not name.startswith("lapic"):
            device.restore(state.devices[name])
    now = state.now
    devices["pit"].restore(chips_of.pit_to_model(kernel.pit, now))
    lines = devices["ioapic"].state().lines
    pic = chips_of.pic_to_model(kernel.pic_primary, kernel.pic_secondary, devices["pic"].state())
    apics = [
        lapic_to_model(
            rest.lapic,
            base=cpu.msrs[reg.MSR_APIC_BASE],
            deadline=cpu.msrs.get(reg.MSR_TSC_DEADLINE, 0),
            now=now,
            tsc=cpu.msrs[MSR_TSC],
            tsc_hz=engine.tsc_hz,
            lint0=False,
        )
        for cpu, rest in zip(state.cpus, rests, strict=True)
    ]
    for apic in apics:
        _check_tsc(apic, state.tsc_hz, engine.tsc_hz)
    devices["ioapic"].restore(chips_of.ioapic_to_model(kernel.ioapic, lines))
    for index, (apic, event) in enumerate(zip(apics, own, strict=True)):
        if event.interrupt.injected and not event.interrupt.soft:
            apic, pic = _take_back(apic, pic, event.interrupt.nr)
        devices[f"lapic{index}"].restore(apic)
    devices["pic"].restore(pic)  # drives the first local APIC's LINT0
    for vcpu, cpu, event in zip(engine.vcpus, state.cpus, own, strict=True):
        vcpu.restore(cpu)
        if event.nmi.pending or event.nmi.injected:
            vcpu.nmi()


def restore_into_kvm(board: Board, state: BoardState) -> None:
    """Let a board on KVM become a state of one on the software CPU. Raises BadSnapshot."""
    engine: Any = board.engine
    saved = state.devices
    apics: list[LapicState] = [saved[f"lapic{index}"] for index in range(len(state.cpus))]
    _announce_soft_cpu(engine, state, apics)
    for name, device in board.devices.items():
        device.restore(saved[name])
    fresh = engine.chips()
    first, second = chips_of.pic_to_kvm(saved["pic"], fresh.pic_primary, fresh.pic_secondary)
    engine.restore_chips(
        replace(
            fresh,
            pic_primary=first,
            pic_secondary=second,
            ioapic=chips_of.ioapic_to_kvm(saved["ioapic"], fresh.ioapic),
            pit=chips_of.pit_to_kvm(saved["pit"], fresh.pit),
            clock=state.now,
        )
    )
    for vcpu, cpu, apic in zip(engine.vcpus, state.cpus, apics, strict=True):
        cpu = _for_kvm(cpu, apic)
        vcpu.restore(cpu)
        rest = vcpu.rest()
        page = lapic_to_kvm(apic, vcpu.index, state.now, rest.lapic)
        vcpu.restore_rest(replace(rest, lapic=page), cpu)


def events(record: bytes) -> kvm_vcpu_events:
    """What was being delivered to a vCPU of KVM. Raises BadSnapshot for no such record."""
    if len(record) != kvm_vcpu_events.SIZE:
        raise BadSnapshot("the snapshot's vCPU events are not those of KVM")
    return kvm_vcpu_events(bytearray(record))


def _check_for_soft(index: int, cpu: CpuState, event: kvm_vcpu_events) -> None:
    odd = [name for bit, name in _CR4_NAMES.items() if cpu.cr4 >> bit & 1]
    if cpu.cr4 & CR4_OSXSAVE:
        raise BadSnapshot(
            f"CPU {index} uses XSAVE (AVX and later registers), which the software CPU has not",
            "restore it with --engine kvm, or save a guest started with the parameter noxsave",
        )
    if odd:
        raise BadSnapshot(
            f"CPU {index} uses what the software CPU has not: CR4.{', CR4.'.join(odd)}",
            "restore it with --engine kvm",
        )
    if cpu.efer & ~_EFER_SOFT or event.smi.smm:
        raise BadSnapshot(f"CPU {index} is in a mode that the software CPU has not")


def _check_tsc(apic: LapicState, there: int, here: int) -> None:
    """A timer that compares with the counter is set for a moment on the old one."""
    entry = apic.lvt[list(reg.LVT_WRITABLE).index(reg.LVT_TIMER)]
    uses = entry & reg.LVT_TIMER_MODE == reg.TIMER_TSC_DEADLINE
    if uses and not _same_frequency(there, here):
        _refuse_tsc(there, here)


def _same_frequency(one: int, other: int) -> bool:
    return abs(one - other) * 1_000_000 <= other * _TOLERANCE


def _refuse_tsc(there: int, here: int) -> None:
    raise BadSnapshot(
        f"the guest's clock counts on a time-stamp counter of {there // 1000} kHz, "
        f"here it has {here // 1000} kHz",
        "restore it on the engine and on a host like those it was saved on",
    )


def _take_back(apic: LapicState, pic: Any, vector: int) -> tuple[LapicState, Any]:
    """An interrupt that KVM had taken from its chip, and not yet given to the guest."""
    bit = 1 << vector
    if apic.isr & bit:
        return replace(apic, isr=apic.isr ^ bit, irr=apic.irr | bit), pic
    for name in ("primary", "secondary"):
        chip = getattr(pic, name)
        pin = 1 << (vector & 7)
        if chip.icw2 == vector & ~7:
            taken = replace(chip, isr=chip.isr & ~pin, latch=chip.latch | pin & chip.lines)
            return apic, replace(pic, **{name: taken})
    return apic, pic


def _for_kvm(cpu: CpuState, apic: LapicState) -> CpuState:
    """With the registers that on the software CPU are the local APIC's, and null segments."""

    def usable(segment: Segment) -> Segment:
        if segment.attributes & _PRESENT:
            return segment
        return replace(segment, attributes=segment.attributes | _UNUSABLE)

    msrs = {**cpu.msrs, reg.MSR_APIC_BASE: apic.base}
    if apic.timer.deadline:
        msrs[reg.MSR_TSC_DEADLINE] = apic.timer.deadline
    names = ("ds", "es", "fs", "gs", "ss", "ldt")
    return replace(cpu, msrs=msrs, **{name: usable(getattr(cpu, name)) for name in names})


def _announce_soft_cpu(engine: Any, state: BoardState, apics: list[LapicState]) -> None:
    """Let KVM's vCPUs be the processor that the guest knows, as far as this host's can."""
    from struct import iter_unpack

    from kvmkit.engine.kvm.kvm import CpuidEntry
    from kvmkit.engine.soft.cpuid import cpuid_leaves

    count = len(state.cpus)
    host = {(entry.leaf, entry.subleaf): entry for entry in engine.supported_cpuid()}
    for vcpu in engine.vcpus:
        entries = [
            CpuidEntry(leaf, subleaf, 1 if indexed else 0, eax, ebx, ecx, edx)
            for leaf, subleaf, indexed, eax, ebx, ecx, edx in iter_unpack(
                "<7I", cpuid_leaves(vcpu.index, count)
            )
        ]
        if state.cpus[vcpu.index].cr4 & CR4_OSFXSR:
            _check_features(entries, host)
        vcpu.fd.set_cpuid(entries)
    here = engine.set_tsc_hz(state.tsc_hz)
    if state.cpus[0].msrs.get(MSR_KVM_SYSTEM_TIME, 0) & 1 and not _same_frequency(
        state.tsc_hz, here
    ):
        _refuse_tsc(state.tsc_hz, here)
    for apic in apics:
        _check_tsc(apic, state.tsc_hz, here)


_HYPERVISOR, _APIC_DEADLINE, _X2APIC = 1 << 31, 1 << 24, 1 << 21  # KVM's own, whatever it says


def _check_features(entries: list[Any], host: dict[tuple[int, int], Any]) -> None:
    """Raise BadSnapshot for instructions that the guest was told of and this host lacks."""
    for entry in entries:
        if entry.leaf not in (1, 7, 0x80000001):
            continue
        there = host.get((entry.leaf, entry.subleaf))
        words = {"ECX": entry.ecx, "EDX": entry.edx}
        if entry.leaf == 7:
            words["EBX"] = entry.ebx
        if entry.leaf == 1:
            words["ECX"] &= ~(_HYPERVISOR | _APIC_DEADLINE | _X2APIC)
        for name, value in words.items():
            lacking = value & ~(getattr(there, name.lower()) if there is not None else 0)
            if lacking:
                raise BadSnapshot(
                    "the guest was started on the software CPU and may use instructions that "
                    f"this host's KVM lacks (CPUID {entry.leaf:#x}, {name} {lacking:#x})",
                    "restore it with --engine soft",
                )
