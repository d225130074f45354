"""One vCPU's descriptor: entering the guest, and every part of its state (``api.rst``, 4)."""

from __future__ import annotations

import mmap
import os
from fcntl import ioctl
from struct import Struct

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.calls import call
from kvmkit.engine.kvm.run_structs import (
    kvm_debugregs,
    kvm_fpu,
    kvm_guest_debug,
    kvm_lapic_state,
    kvm_regs,
    kvm_run,
    kvm_signal_mask,
    kvm_sregs,
    kvm_translation,
    kvm_vcpu_events,
    kvm_xcrs,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from kvmkit.engine.kvm.kvm import CpuidEntry

__all__ = ["VcpuFd"]

_MSR_ENTRY = Struct("<IIQ")


class VcpuFd:
    """A vCPU's descriptor and its mapped ``kvm_run``; made by :meth:`Vm.create_vcpu`."""

    def __init__(self, fd: int, index: int, mmap_size: int) -> None:
        self.fd = fd
        self.index = index
        self.map = mmap.mmap(fd, mmap_size, mmap.MAP_SHARED)
        self.run = kvm_run(self.map)

    # Running

    def enter(self) -> int:
        """KVM_RUN: run the guest until it exits; the exit reason (KVM_EXIT_...).

        KVM_EXIT_INTR if a signal or ``run.immediate_exit`` stopped it.
        """
        try:
            ioctl(self.fd, abi.KVM_RUN)
        except InterruptedError:
            return abi.KVM_EXIT_INTR
        except OSError as error:
            raise type(error)(error.errno, f"KVM_RUN: {error.strerror}") from None
        return self.run.exit_reason

    def io_data(self) -> memoryview:
        """The bytes of a KVM_EXIT_IO: ``io.count`` items of ``io.size`` bytes, for both ways."""
        io = self.run.io
        return memoryview(self.map)[io.data_offset : io.data_offset + io.count * io.size]

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """KVM_SET_SIGNAL_MASK: what is blocked inside KVM_RUN; None: no change there."""
        if signals is None:
            call(self.fd, abi.KVM_SET_SIGNAL_MASK, 0)
            return
        record = kvm_signal_mask.sized(8)
        record.len = 8
        mask = sum(1 << number - 1 for number in set(signals))
        record.sigset = mask.to_bytes(8, "little")
        call(self.fd, abi.KVM_SET_SIGNAL_MASK, record.memory)

    # Registers

    def regs(self) -> kvm_regs:
        """KVM_GET_REGS."""
        record = kvm_regs()
        call(self.fd, abi.KVM_GET_REGS, record.memory)
        return record

    def set_regs(self, record: kvm_regs) -> None:
        """KVM_SET_REGS."""
        call(self.fd, abi.KVM_SET_REGS, record.memory)

    def sregs(self) -> kvm_sregs:
        """KVM_GET_SREGS: segments, tables, control registers."""
        record = kvm_sregs()
        call(self.fd, abi.KVM_GET_SREGS, record.memory)
        return record

    def set_sregs(self, record: kvm_sregs) -> None:
        """KVM_SET_SREGS."""
        call(self.fd, abi.KVM_SET_SREGS, record.memory)

    def fpu(self) -> kvm_fpu:
        """KVM_GET_FPU: x87 and SSE; :meth:`xsave` has all."""
        record = kvm_fpu()
        call(self.fd, abi.KVM_GET_FPU, record.memory)
        return record

    def set_fpu(self, record: kvm_fpu) -> None:
        """KVM_SET_FPU."""
        call(self.fd, abi.KVM_SET_FPU, record.memory)

    def xsave(self, size: int = 4096) -> bytearray:
        """KVM_GET_XSAVE, or with a ``size`` from KVM_CAP_XSAVE2 above 4096, KVM_GET_XSAVE2."""
        buffer = bytearray(max(size, 4096))
        request = abi.KVM_GET_XSAVE2 if size > 4096 else abi.KVM_GET_XSAVE
        call(self.fd, request, buffer)
        return buffer

    def set_xsave(self, area: bytes | bytearray) -> None:
        """KVM_SET_XSAVE."""
        call(self.fd, abi.KVM_SET_XSAVE, bytearray(area))

    def xcrs(self) -> kvm_xcrs:
        """KVM_GET_XCRS."""
        record = kvm_xcrs()
        call(self.fd, abi.KVM_GET_XCRS, record.memory)
        return record

    def set_xcrs(self, record: kvm_xcrs) -> None:
        """KVM_SET_XCRS."""
        call(self.fd, abi.KVM_SET_XCRS, record.memory)

    def debugregs(self) -> kvm_debugregs:
        """KVM_GET_DEBUGREGS."""
        record = kvm_debugregs()
        call(self.fd, abi.KVM_GET_DEBUGREGS, record.memory)
        return record

    def set_debugregs(self, record: kvm_debugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        call(self.fd, abi.KVM_SET_DEBUGREGS, record.memory)

    def msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: the values of those that can be read; the others are left out."""
        wanted = list(indices)
        found: dict[int, int] = {}
        while wanted:
            buffer = self._pack_msrs((index, 0) for index in wanted)
            count = call(self.fd, abi.KVM_GET_MSRS, buffer)
            for index, _, value in _MSR_ENTRY.iter_unpack(memoryview(buffer)[8 : 8 + 16 * count]):
                found[index] = value
            wanted = wanted[count + 1 :]  # it stops at the first it cannot read
        return found

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        """KVM_SET_MSRS: the indices KVM refused; the others are set."""
        wanted = list(values.items())
        refused = []
        while wanted:
            count = call(self.fd, abi.KVM_SET_MSRS, self._pack_msrs(wanted))
            refused += [index for index, _ in wanted[count : count + 1]]
            wanted = wanted[count + 1 :]
        return refused

    @staticmethod
    def _pack_msrs(entries: Iterable[tuple[int, int]]) -> bytearray:
        packed = b"".join(_MSR_ENTRY.pack(index, 0, value) for index, value in entries)
        return bytearray((len(packed) // 16).to_bytes(8, "little") + packed)

    def cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_CPUID2."""
        from kvmkit.engine.kvm.kvm import unpack_cpuid

        buffer = bytearray(8 + 40 * 256)
        buffer[0:4] = (256).to_bytes(4, "little")
        call(self.fd, abi.KVM_GET_CPUID2, buffer)
        return unpack_cpuid(buffer)

    def set_cpuid(self, entries: list[CpuidEntry]) -> None:
        """KVM_SET_CPUID2; before the first KVM_RUN."""
        from kvmkit.engine.kvm.kvm import pack_cpuid

        call(self.fd, abi.KVM_SET_CPUID2, pack_cpuid(entries))

    # Interrupts and events

    def lapic(self) -> kvm_lapic_state:
        """KVM_GET_LAPIC: the local APIC's register page; needs an in-kernel one."""
        record = kvm_lapic_state()
        call(self.fd, abi.KVM_GET_LAPIC, record.memory)
        return record

    def set_lapic(self, record: kvm_lapic_state) -> None:
        """KVM_SET_LAPIC."""
        call(self.fd, abi.KVM_SET_LAPIC, record.memory)

    def events(self) -> kvm_vcpu_events:
        """KVM_GET_VCPU_EVENTS: pending exceptions, interrupts, NMI, SMI."""
        record = kvm_vcpu_events()
        call(self.fd, abi.KVM_GET_VCPU_EVENTS, record.memory)
        return record

    def set_events(self, record: kvm_vcpu_events) -> None:
        """KVM_SET_VCPU_EVENTS."""
        call(self.fd, abi.KVM_SET_VCPU_EVENTS, record.memory)

    def mp_state(self) -> int:
        """KVM_GET_MP_STATE: KVM_MP_STATE_..."""
        buffer = bytearray(4)
        call(self.fd, abi.KVM_GET_MP_STATE, buffer)
        return int.from_bytes(buffer, "little")

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        call(self.fd, abi.KVM_SET_MP_STATE, bytearray(state.to_bytes(4, "little")))

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: inject a vector; only without an in-kernel interrupt chip."""
        call(self.fd, abi.KVM_INTERRUPT, bytearray(vector.to_bytes(4, "little")))

    def nmi(self) -> None:
        """KVM_NMI."""
        call(self.fd, abi.KVM_NMI)

    def smi(self) -> None:
        """KVM_SMI."""
        call(self.fd, abi.KVM_SMI)

    def set_debug(self, control: int, registers: Iterable[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG: KVM_GUESTDBG_... and, for hardware breakpoints, DR0-DR7."""
        record = kvm_guest_debug()
        record.control = control
        record.arch.debugreg = registers
        call(self.fd, abi.KVM_SET_GUEST_DEBUG, record.memory)

    def kvmclock_control(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest it was stopped, so that no watchdog barks."""
        call(self.fd, abi.KVM_KVMCLOCK_CTRL)

    # Looking in from outside

    def translate(self, address: int) -> int | None:
        """KVM_TRANSLATE: the guest-physical address of a linear one; None if not mapped."""
        record = kvm_translation()
        record.linear_address = address
        call(self.fd, abi.KVM_TRANSLATE, record.memory)
        return record.physical_address if record.valid else None

    def tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ."""
        return call(self.fd, abi.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ. Raises OSError where the processor cannot scale its counter."""
        call(self.fd, abi.KVM_SET_TSC_KHZ, khz)

    def stats(self) -> dict[str, int]:
        """KVM_GET_STATS_FD: the vCPU's counters by name; of a histogram the sum."""
        from kvmkit.engine.kvm.stats import read_stats

        return read_stats(self.fd)

    def enable(self, capability: int, *arguments: int) -> None:
        """KVM_ENABLE_CAP for this vCPU."""
        from kvmkit.engine.kvm.run_structs import kvm_enable_cap

        record = kvm_enable_cap()
        record.cap = capability
        record.args = arguments
        call(self.fd, abi.KVM_ENABLE_CAP, record.memory)

    # The end

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Unmap and close. Callable twice."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.run.memory.release()
        try:
            self.map.close()
        except BufferError:
            pass  # somebody still holds a view; the map, and its own descriptor, go with the last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
