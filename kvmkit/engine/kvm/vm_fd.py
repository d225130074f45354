"""One VM's descriptor: memory, interrupt chips, routing, event descriptors (``api.rst``, 4)."""

from __future__ import annotations

import os

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.calls import call, pointer_array
from kvmkit.engine.kvm.run_structs import (
    kvm_clear_dirty_log,
    kvm_clock_data,
    kvm_coalesced_mmio_zone,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irq_routing,
    kvm_irqchip,
    kvm_irqfd,
    kvm_msi,
    kvm_msr_filter,
    kvm_pit_config,
    kvm_pit_state2,
    kvm_userspace_memory_region,
)
from kvmkit.engine.kvm.vcpu_fd import VcpuFd
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from kvmkit.engine.kvm.kvm import System

__all__ = ["ChipRoute", "MsiRoute", "Vm"]


class ChipRoute(Record):
    """A GSI that is wired to a pin of an in-kernel chip (KVM_IRQCHIP_...)."""

    gsi: int
    chip: int
    pin: int


class MsiRoute(Record):
    """A GSI that sends a message."""

    gsi: int
    address: int
    data: int


class Vm:
    """A VM's descriptor; made by :meth:`System.create_vm`. Closing it closes its vCPUs."""

    def __init__(self, system: System, fd: int) -> None:
        self.fd = fd
        self._system = system
        self._vcpus: list[VcpuFd] = []

    # What the VM can do

    def check(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION for this VM."""
        return call(self.fd, abi.KVM_CHECK_EXTENSION, capability)

    def enable(self, capability: int, *arguments: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP with up to four arguments."""
        record = kvm_enable_cap()
        record.cap = capability
        record.flags = flags
        record.args = arguments
        call(self.fd, abi.KVM_ENABLE_CAP, record.memory)

    # Memory

    def set_memory(self, slot: int, address: int, host: int, size: int, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION: map host memory into the guest; size 0 removes the slot."""
        record = kvm_userspace_memory_region()
        record.slot = slot
        record.flags = flags
        record.guest_phys_addr = address
        record.memory_size = size
        record.userspace_addr = host
        call(self.fd, abi.KVM_SET_USER_MEMORY_REGION, record.memory)

    def dirty_log(self, slot: int, size: int) -> bytes:
        """KVM_GET_DIRTY_LOG: a bit per page of ``size`` bytes, set if written since the last call.

        The slot needs KVM_MEM_LOG_DIRTY_PAGES.
        """
        pages = (size + 4095) // 4096
        bitmap, address = pointer_array(bytes((pages + 63) // 64 * 8))
        record = kvm_dirty_log()
        record.slot = slot
        record.dirty_bitmap = address
        call(self.fd, abi.KVM_GET_DIRTY_LOG, record.memory)
        return bitmap.tobytes()[: (pages + 7) // 8]

    def clear_dirty_log(self, slot: int, first: int, pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG; needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 enabled."""
        padded = bitmap + bytes(-len(bitmap) % 8)
        buffer, address = pointer_array(padded)
        record = kvm_clear_dirty_log()
        record.slot = slot
        record.num_pages = pages
        record.first_page = first
        record.dirty_bitmap = address
        call(self.fd, abi.KVM_CLEAR_DIRTY_LOG, record.memory)
        del buffer

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: how many collected pages are now write-protected again."""
        return call(self.fd, abi.KVM_RESET_DIRTY_RINGS)

    def set_tss(self, address: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that Intel CPUs need for real mode."""
        call(self.fd, abi.KVM_SET_TSS_ADDR, address)

    def set_identity_map(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one more such page; before the first vCPU."""
        call(self.fd, abi.KVM_SET_IDENTITY_MAP_ADDR, bytearray(address.to_bytes(8, "little")))

    # Interrupts

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: 8259A pair, I/O APIC, and a local APIC in each vCPU made later."""
        call(self.fd, abi.KVM_CREATE_IRQCHIP)

    def create_pit(self, flags: int = abi.KVM_PIT_SPEAKER_DUMMY) -> None:
        """KVM_CREATE_PIT2: an 8254 at ports 0x40-0x43; by default with a stub of port 0x61."""
        record = kvm_pit_config()
        record.flags = flags
        call(self.fd, abi.KVM_CREATE_PIT2, record.memory)

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE."""
        record = kvm_irq_level()
        record.irq = gsi
        record.level = level
        call(self.fd, abi.KVM_IRQ_LINE, record.memory)

    def signal_msi(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI: above 0 if delivered, 0 if the guest blocked it."""
        record = kvm_msi()
        record.address_lo = address & 0xFFFFFFFF
        record.address_hi = address >> 32
        record.data = data
        return call(self.fd, abi.KVM_SIGNAL_MSI, record.memory)

    def set_routing(self, routes: Iterable[ChipRoute | MsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING: replaces the whole table. A GSI may have several chip routes."""
        table = list(routes)
        record = kvm_irq_routing.sized(len(table))
        record.nr = len(table)
        for entry, route in zip(record.entries, table, strict=True):
            entry.gsi = route.gsi
            if isinstance(route, ChipRoute):
                entry.type = abi.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip = route.chip
                entry.u.irqchip.pin = route.pin
            else:
                entry.type = abi.KVM_IRQ_ROUTING_MSI
                entry.u.msi.address_lo = route.address & 0xFFFFFFFF
                entry.u.msi.address_hi = route.address >> 32
                entry.u.msi.data = route.data
        call(self.fd, abi.KVM_SET_GSI_ROUTING, record.memory)

    def irqfd(
        self, fd: int, gsi: int, *, resample: int | None = None, remove: bool = False
    ) -> None:
        """KVM_IRQFD: a write to the eventfd pulses the GSI.

        With ``resample``, an eventfd too, the line stays high until the guest's EOI,
        which is reported there.
        """
        record = kvm_irqfd()
        record.fd = fd
        record.gsi = gsi
        if resample is not None:
            record.resamplefd = resample
            record.flags = abi.KVM_IRQFD_FLAG_RESAMPLE
        if remove:
            record.flags |= abi.KVM_IRQFD_FLAG_DEASSIGN
        call(self.fd, abi.KVM_IRQFD, record.memory)

    def ioeventfd(
        self,
        fd: int,
        address: int,
        size: int,
        *,
        port: bool = False,
        value: int | None = None,
        remove: bool = False,
    ) -> None:
        """KVM_IOEVENTFD: guest writes there signal the eventfd and never leave the kernel.

        ``size`` is 1, 2, 4 or 8 bytes, 0 for any; with ``value`` only writes of it.
        """
        record = kvm_ioeventfd()
        record.fd = fd
        record.addr = address
        record.len = size
        if port:
            record.flags |= abi.KVM_IOEVENTFD_FLAG_PIO
        if value is not None:
            record.flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH
            record.datamatch = value
        if remove:
            record.flags |= abi.KVM_IOEVENTFD_FLAG_DEASSIGN
        call(self.fd, abi.KVM_IOEVENTFD, record.memory)

    def coalesce(
        self, address: int, size: int, *, port: bool = False, remove: bool = False
    ) -> None:
        """KVM_REGISTER_COALESCED_MMIO: collect writes there in a ring instead of exits."""
        record = kvm_coalesced_mmio_zone()
        record.addr = address
        record.size = size
        record.pio = port
        request = abi.KVM_UNREGISTER_COALESCED_MMIO if remove else abi.KVM_REGISTER_COALESCED_MMIO
        call(self.fd, request, record.memory)

    # State of the in-kernel chips

    def irqchip(self, chip: int) -> kvm_irqchip:
        """KVM_GET_IRQCHIP: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""
        record = kvm_irqchip()
        record.chip_id = chip
        call(self.fd, abi.KVM_GET_IRQCHIP, record.memory)
        return record

    def set_irqchip(self, record: kvm_irqchip) -> None:
        """KVM_SET_IRQCHIP."""
        call(self.fd, abi.KVM_SET_IRQCHIP, record.memory)

    def pit(self) -> kvm_pit_state2:
        """KVM_GET_PIT2."""
        record = kvm_pit_state2()
        call(self.fd, abi.KVM_GET_PIT2, record.memory)
        return record

    def set_pit(self, record: kvm_pit_state2) -> None:
        """KVM_SET_PIT2."""
        call(self.fd, abi.KVM_SET_PIT2, record.memory)

    def clock(self) -> kvm_clock_data:
        """KVM_GET_CLOCK: the guest's kvmclock, in nanoseconds."""
        record = kvm_clock_data()
        call(self.fd, abi.KVM_GET_CLOCK, record.memory)
        return record

    def set_clock(self, nanoseconds: int) -> None:
        """KVM_SET_CLOCK."""
        record = kvm_clock_data()
        record.clock = nanoseconds
        call(self.fd, abi.KVM_SET_CLOCK, record.memory)

    # MSRs

    def filter_msrs(
        self, ranges: Iterable[tuple[int, int, bytes]], *, deny_others: bool = False
    ) -> None:
        """KVM_X86_SET_MSR_FILTER: up to 16 ranges: flags, first MSR, bitmap (a set bit allows)."""
        record = kvm_msr_filter()
        record.flags = (
            abi.KVM_MSR_FILTER_DEFAULT_DENY if deny_others else abi.KVM_MSR_FILTER_DEFAULT_ALLOW
        )
        buffers = []
        for entry, (flags, first, bitmap) in zip(record.ranges, ranges, strict=False):
            buffer, address = pointer_array(bitmap)
            buffers.append(buffer)
            entry.flags = flags
            entry.base = first
            entry.nmsrs = len(bitmap) * 8
            entry.bitmap = address
        call(self.fd, abi.KVM_X86_SET_MSR_FILTER, record.memory)

    # vCPUs and the end

    def create_vcpu(self, index: int) -> VcpuFd:
        """KVM_CREATE_VCPU; ``index`` is also its APIC ID."""
        fd = call(self.fd, abi.KVM_CREATE_VCPU, index)
        try:
            vcpu = VcpuFd(fd, index, self._system.vcpu_mmap_size())
        except BaseException:
            os.close(fd)
            raise
        self._vcpus.append(vcpu)
        return vcpu

    def stats(self) -> dict[str, int]:
        """KVM_GET_STATS_FD: the VM's counters by name; of a histogram the sum."""
        from kvmkit.engine.kvm.stats import read_stats

        return read_stats(self.fd)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Close the vCPUs and the VM. Callable twice."""
        for vcpu in self._vcpus:
            vcpu.close()
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
