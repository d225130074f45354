"""What an exit that ends a vCPU means, in words; imported only when one happens."""

from __future__ import annotations

from kvmkit.engine.kvm import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.engine.kvm.vcpu_fd import VcpuFd

__all__ = ["describe_exit", "describe_position"]

_SUBERRORS = {
    abi.KVM_INTERNAL_ERROR_EMULATION: "an instruction that KVM must emulate and cannot",
    abi.KVM_INTERNAL_ERROR_SIMUL_EX: "two exceptions at once",
    abi.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit while an event was being delivered",
    abi.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit of the CPU that KVM does not know",
}


def describe_exit(vcpu: VcpuFd, reason: int) -> str:
    """One line: the exit reason's name, its details, and where the CPU stood."""
    run = vcpu.run
    name = abi.EXIT_REASONS.get(reason, f"exit reason {reason}")
    detail = ""
    if reason == abi.KVM_EXIT_INTERNAL_ERROR:
        error = run.internal
        meaning = _SUBERRORS.get(error.suberror, f"suberror {error.suberror}")
        detail = f": {meaning}"
        failure = run.emulation_failure
        if (
            error.suberror == abi.KVM_INTERNAL_ERROR_EMULATION
            and error.ndata >= 3
            and failure.flags & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        ):
            size = min(failure.insn_size, 15)
            detail += f" ({bytes(failure.insn_bytes[:size]).hex(' ')})"
        elif error.ndata:
            detail += " (" + ", ".join(f"{n:#x}" for n in error.data[: min(error.ndata, 16)]) + ")"
    elif reason == abi.KVM_EXIT_FAIL_ENTRY:
        why = run.fail_entry.hardware_entry_failure_reason
        detail = f": the CPU refused to enter the guest, hardware reason {why:#x}"
    elif reason == abi.KVM_EXIT_UNKNOWN:
        detail = f": hardware exit reason {run.hw.hardware_exit_reason:#x}"
    elif reason == abi.KVM_EXIT_EXCEPTION:
        detail = f": exception {run.ex.exception}, error code {run.ex.error_code:#x}"
    elif reason == abi.KVM_EXIT_SYSTEM_EVENT:
        detail = f": type {run.system_event.type}"
    elif reason in (abi.KVM_EXIT_X86_RDMSR, abi.KVM_EXIT_X86_WRMSR):
        detail = f": MSR {run.msr.index:#x}"
    elif reason == abi.KVM_EXIT_HYPERCALL:
        detail = f": hypercall {run.hypercall.nr:#x}"
    return f"{name}{detail}, {describe_position(vcpu)}"


def describe_position(vcpu: VcpuFd) -> str:
    """Where the CPU stands: CS:RIP and the control registers that say in which mode."""
    regs = vcpu.regs()
    sregs = vcpu.sregs()
    control = f"cr0={sregs.cr0:#x} cr2={sregs.cr2:#x} cr3={sregs.cr3:#x}"
    return f"at {sregs.cs.selector:#x}:{regs.rip:#x}, {control}"
