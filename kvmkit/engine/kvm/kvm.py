"""/dev/kvm: what the host's KVM can do, and where VMs come from (``virt/kvm/api.rst``, 4).

Usable on its own by people who test KVM::

    with System() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        memory = Memory(0x1000)
        memory.write(0xFF0, b"\\xf4")  # hlt, where the reset vector points
        vm.set_memory(0, 0xFFFFF000, memory.address, memory.size)
        assert vcpu.enter() == abi.KVM_EXIT_HLT

``System``, ``Vm`` and ``VcpuFd`` own one file descriptor each. A failing ioctl
raises OSError with the ioctl's name in its text.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.calls import Memory, call
from kvmkit.engine.kvm.vcpu_fd import VcpuFd
from kvmkit.engine.kvm.vm_fd import Vm
from kvmkit.errors import EngineUnavailable, KvmkitError, PermissionTrouble
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["DEVICE", "CpuidEntry", "Memory", "System", "VcpuFd", "Vm", "open_trouble"]

DEVICE = "/dev/kvm"

_CPUID_ENTRY = Struct("<7I12x")


class CpuidEntry(Record):
    """One CPUID answer (``struct kvm_cpuid_entry2``): leaf, subleaf, KVM's flags, registers."""

    leaf: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def pack_cpuid(entries: list[CpuidEntry]) -> bytearray:
    """``struct kvm_cpuid2`` holding the entries."""
    buffer = bytearray(8 + 40 * len(entries))
    buffer[0:4] = len(entries).to_bytes(4, "little")
    for n, entry in enumerate(entries):
        _CPUID_ENTRY.pack_into(
            buffer, 8 + 40 * n,
            entry.leaf, entry.subleaf, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx,
        )  # fmt: skip
    return buffer


def unpack_cpuid(buffer: bytearray) -> list[CpuidEntry]:
    """The entries of a ``struct kvm_cpuid2``."""
    count = int.from_bytes(buffer[0:4], "little")
    entries = _CPUID_ENTRY.iter_unpack(memoryview(buffer)[8 : 8 + 40 * count])
    return [CpuidEntry(*entry) for entry in entries]


class System:
    """The open ``/dev/kvm``.

    Raises EngineUnavailable if there is none or it speaks another API, and
    PermissionTrouble if this user may not open it.
    """

    def __init__(self, path: str = DEVICE) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise open_trouble(error, path) from None
        try:
            version = self.api_version()
        except OSError:
            os.close(self.fd)
            self.fd = -1
            raise EngineUnavailable(f"{path} is not KVM's device") from None
        if version != abi.KVM_API_VERSION:
            os.close(self.fd)
            self.fd = -1
            raise EngineUnavailable(
                f"KVM's API version is {version}, expected {abi.KVM_API_VERSION}",
                "a kernel of 2007 or later is needed",
            )

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 since 2007."""
        return call(self.fd, abi.KVM_GET_API_VERSION)

    def check(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if the host lacks it, else 1 or the capability's number."""
        return call(self.fd, abi.KVM_CHECK_EXTENSION, capability)

    def capabilities(self) -> dict[str, int]:
        """Every capability this KVM has, by name."""
        names = [name for name in vars(abi) if name.startswith("KVM_CAP_")]
        found = {name: self.check(getattr(abi, name)) for name in names}
        return {name: value for name, value in found.items() if value}

    def create_vm(self, kind: int = 0) -> Vm:
        """KVM_CREATE_VM."""
        while True:
            try:
                return Vm(self, call(self.fd, abi.KVM_CREATE_VM, kind))
            except InterruptedError:
                continue  # a signal during creation; nothing was created

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of ``kvm_run`` and what follows it."""
        return call(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: all that KVM and the host's CPU can give to a guest."""
        return self._cpuid(abi.KVM_GET_SUPPORTED_CPUID)

    def emulated_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_EMULATED_CPUID: what KVM emulates where the CPU lacks it."""
        return self._cpuid(abi.KVM_GET_EMULATED_CPUID)

    def _cpuid(self, request: int) -> list[CpuidEntry]:
        count = 128
        while True:
            buffer = bytearray(8 + 40 * count)
            buffer[0:4] = count.to_bytes(4, "little")
            try:
                call(self.fd, request, buffer)
                return unpack_cpuid(buffer)
            except OSError as error:
                if error.errno != errno.E2BIG or count >= 4096:
                    raise
                count *= 2

    def msr_indices(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that make up a vCPU's state."""
        return self._msr_list(abi.KVM_GET_MSR_INDEX_LIST)

    def feature_msr_indices(self) -> list[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: MSRs that describe features, as CPUID does."""
        return self._msr_list(abi.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def _msr_list(self, request: int) -> list[int]:
        buffer = bytearray(4 + 4 * 1024)
        buffer[0:4] = (1024).to_bytes(4, "little")
        call(self.fd, request, buffer)
        count = int.from_bytes(buffer[0:4], "little")
        return memoryview(buffer)[4 : 4 + 4 * count].cast("I").tolist()

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Close the descriptor. Callable twice; VMs made from it live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_trouble(error: OSError, path: str = DEVICE) -> KvmkitError:
    """What a failed open of ``/dev/kvm`` means to its user, and the command that mends it."""
    if error.errno in (errno.EACCES, errno.EPERM):
        from kvmkit.engine.kvm.mend import permission_hint

        return PermissionTrouble(f"{path} exists but may not be opened", permission_hint(path))
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        from kvmkit.engine.kvm.mend import missing_hint

        return EngineUnavailable(f"{path} is missing: this host offers no KVM", missing_hint(path))
    return EngineUnavailable(f"{path} cannot be opened: {error.strerror}")
