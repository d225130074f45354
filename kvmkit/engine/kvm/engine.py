"""The KVM engine: :class:`kvmkit.engine.engine.Engine` on the host's ``/dev/kvm``.

Interrupt chips and the 8254 are the kernel's. A thread per vCPU, named ``vcpuN``,
runs :func:`kvmkit.engine.kvm.loop.run_vcpu`. GSI 0 (the 8254) goes to input 0 of
the 8259A and pin 2 of the I/O APIC, GSIs 1 and 3 to 15 to both chips' equal pins,
16 to 23 to the I/O APIC; GSIs from 24 on are for messages (:meth:`route_msi`).
"""

from __future__ import annotations

import threading
from time import monotonic

from kvmkit.engine.engine import CpuEnd, CpuEndReason
from kvmkit.engine.kvm import abi, loop
from kvmkit.engine.kvm.cpuid import guest_cpuid
from kvmkit.engine.kvm.kvm import DEVICE, System
from kvmkit.engine.kvm.run_structs import kvm_irqchip, kvm_pit_state2
from kvmkit.engine.kvm.vm_fd import ChipRoute, MsiRoute
from kvmkit.errors import EngineUnavailable, UsageError
from kvmkit.frozen import Record
from kvmkit.threads import join

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence

    from kvmkit.engine.cpu import CpuState
    from kvmkit.engine.engine import Bus, Vcpu
    from kvmkit.engine.kvm.kvm import CpuidEntry
    from kvmkit.engine.kvm.loop import Handler
    from kvmkit.engine.kvm.state import VcpuRest
    from kvmkit.engine.kvm.vcpu_fd import VcpuFd
else:
    import _signal as signal  # without its enumerations: 1.5 ms of a start

__all__ = ["FIRST_MSI_GSI", "KvmChips", "KvmEngine", "KvmVcpu"]

FIRST_MSI_GSI = abi.KVM_IOAPIC_NUM_PINS
"""The first GSI that is no pin of the I/O APIC."""

# KVM's own choice for its identity map (api.rst 4.61), and the three pages above it.
IDENTITY_MAP = 0xFFFBC000
TSS = 0xFFFBD000

_MSR_MISC_ENABLE = 0x1A0
_FAST_STRING = 1  # without it Linux does not use REP MOVSB
_MSR_MTRR_DEF_TYPE = 0x2FF
_WRITE_BACK = 1 << 11 | 6  # enabled, and all memory write-back, as firmware leaves it

_LAPIC_LINT0 = 0x350
_LAPIC_LINT1 = 0x360
_EXTINT = (0x700).to_bytes(4, "little")  # "virtual wire": the 8259A's interrupts (SDM 3, 11.5.1)
_NMI = (0x400).to_bytes(4, "little")

_SHORT_STOP = 0.05
"""Seconds. The guest's clock goes on through shorter stops: those of a debugger's look or a
profiler's sample, for which it should not be torn from the TSC."""


class KvmChips(Record):
    """The in-kernel chips, in KVM's own layout; ``clock`` is kvmclock in nanoseconds."""

    pic_primary: bytes
    pic_secondary: bytes
    ioapic: bytes
    pit: bytes
    clock: int


class KvmVcpu:
    """One vCPU of a :class:`KvmEngine`."""

    def __init__(self, engine: KvmEngine, fd: VcpuFd) -> None:
        self.index = fd.index
        self.fd = fd
        self._engine = engine
        self._thread: threading.Thread | None = None
        self._running = False
        self._ended = False

    def state(self) -> CpuState:
        """All registers by name; only while the engine stands."""
        from kvmkit.engine.kvm.state import read_state

        return read_state(self.fd, self._engine.msr_indices())

    def restore(self, state: CpuState) -> None:
        """Set all registers; one that had ended runs again when the engine does.

        Raises EngineUnavailable if this host's KVM or CPU cannot be in that state.
        """
        from kvmkit.engine.kvm.state import write_state

        try:
            refused = write_state(self.fd, state, keep_tsc=self._engine.started)
        except OSError as error:
            raise EngineUnavailable(
                f"vCPU {self.index} cannot be put in this state: {error}"
            ) from None
        if lost := [index for index in refused if state.msrs[index]]:
            names = ", ".join(f"{index:#x}" for index in lost)
            raise EngineUnavailable(f"this host's KVM cannot set vCPU {self.index}'s MSRs {names}")
        self._ended = False

    def rest(self) -> VcpuRest:
        """What :meth:`state` leaves out, for a restore into KVM; only while the engine stands."""
        from kvmkit.engine.kvm.state import read_rest

        return read_rest(self.fd, self._engine.xsave_size)

    def restore_rest(self, rest: VcpuRest, state: CpuState) -> None:
        """Complete a :meth:`restore` of ``state``."""
        from kvmkit.engine.kvm.state import write_rest

        write_rest(self.fd, rest, state)

    def _kick(self) -> None:
        """Turn the thread back; under the engine's lock, while ``_running``."""
        self.fd.map[loop.IMMEDIATE_EXIT] = 1
        if self._thread is not None and self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, loop.KICK)


class KvmEngine:
    """A VM of ``vcpus`` vCPUs on ``/dev/kvm``.

    Raises EngineUnavailable or PermissionTrouble if there is no KVM to use, and
    UsageError for more vCPUs than it takes.
    """

    name = "kvm"

    def __init__(
        self,
        vcpus: int,
        *,
        device: str = DEVICE,
        identity_map: int = IDENTITY_MAP,
        tss: int = TSS,
    ) -> None:
        self._cpus: list[KvmVcpu] = []
        self.vcpus: Sequence[Vcpu] = self._cpus
        self.started = False
        self.thread_name = "vcpu{}"
        """How the kernel shows the vCPUs' threads, with their number; 15 bytes count."""
        # Lock order: _switch, then _stands. The first is held through a whole pause, resume or
        # close, the second guards what the vCPUs' threads look at too.
        self._switch = threading.Lock()
        self._stands = threading.Condition()
        self._halt = False
        self._closing = False
        self._stopped_at = 0.0
        self._clock_at_stop = 0
        self._slots: dict[int, tuple[int, int, int, int]] = {}
        self._messages: dict[int, MsiRoute] = {}
        self._msr_indices: list[int] | None = None
        self._handlers: dict[int, Handler] = {}
        self._system = System(device)
        try:
            most = self._system.check(abi.KVM_CAP_MAX_VCPUS) or 4
            if not 1 <= vcpus <= most:
                raise UsageError(f"KVM takes 1 to {most} vCPUs, not {vcpus}")
            self._vm = self._system.create_vm()
        except BaseException:
            self._system.close()
            raise
        try:
            self._vm.set_identity_map(identity_map)
            self._vm.set_tss(tss)
            self._vm.create_irqchip()
            self._vm.create_pit()
            self._set_routing()
            self._create_vcpus(vcpus)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise EngineUnavailable(f"KVM cannot make this VM: {error}") from None
            raise

    def _create_vcpus(self, count: int) -> None:
        supported = self._system.supported_cpuid()
        deadline = bool(self._system.check(abi.KVM_CAP_TSC_DEADLINE_TIMER))
        self.xsave_size = max(self._vm.check(abi.KVM_CAP_XSAVE2), 4096)
        for index in range(count):
            fd = self._vm.create_vcpu(index)
            fd.set_cpuid(guest_cpuid(supported, index, count, tsc_deadline=deadline))
            # As firmware leaves them; a KVM without one of these refuses, and does not need it.
            fd.set_msrs({_MSR_MISC_ENABLE: _FAST_STRING, _MSR_MTRR_DEF_TYPE: _WRITE_BACK})
            if index == 0:
                lapic = fd.lapic()
                lapic.memory[_LAPIC_LINT0 : _LAPIC_LINT0 + 4] = _EXTINT
                lapic.memory[_LAPIC_LINT1 : _LAPIC_LINT1 + 4] = _NMI
                fd.set_lapic(lapic)
            self._cpus.append(KvmVcpu(self, fd))

    @property
    def threads(self) -> list[threading.Thread]:
        """The vCPUs' threads, in their order; empty before :meth:`start`."""
        return [vcpu._thread for vcpu in self._cpus if vcpu._thread is not None]

    def vcpu(self, index: int) -> KvmVcpu:
        """A vCPU with what only KVM's have."""
        return self._cpus[index]

    # Memory

    def add_ram(
        self, slot: int, address: int, host: int, size: int, *, readonly: bool = False
    ) -> None:
        """Map host memory into the guest (:meth:`Engine.add_ram`). Raises OSError if KVM cannot."""
        flags = abi.KVM_MEM_READONLY if readonly else 0
        self._vm.set_memory(slot, address, host, size, flags)
        self._slots[slot] = (address, host, size, flags)

    def remove_ram(self, slot: int) -> None:
        """Undo :meth:`add_ram`. Raises KeyError for a slot that is not there."""
        address, host, _, _ = self._slots.pop(slot)
        self._vm.set_memory(slot, address, host, 0)

    def track_dirty(self, slot: int, on: bool = True) -> None:
        """Record, or no longer record, which pages of the slot the guest writes."""
        address, host, size, flags = self._slots[slot]
        flags = flags & ~abi.KVM_MEM_LOG_DIRTY_PAGES | (abi.KVM_MEM_LOG_DIRTY_PAGES if on else 0)
        self._vm.set_memory(slot, address, host, size, flags)
        self._slots[slot] = (address, host, size, flags)

    def dirty_log(self, slot: int) -> bytes:
        """A bit per page of the slot, bit 0 first: written since the last call.

        Needs :meth:`track_dirty`; raises OSError without. Callable while the guest runs.
        """
        return self._vm.dirty_log(slot, self._slots[slot][2])

    # Interrupts and events; callable from any thread, while the guest runs

    def set_line(self, gsi: int, level: bool) -> None:
        """Assert or release an interrupt line."""
        self._vm.irq_line(gsi, level)

    def msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt; whether a CPU took it."""
        try:
            return self._vm.signal_msi(address, data) > 0
        except OSError:
            return False  # a destination that is not there, which is the guest's affair

    def route_msi(self, gsi: int, address: int, data: int) -> None:
        """Let ``gsi``, 24 or above, send this message, for :meth:`irqfd`.

        Raises UsageError for a GSI that is a pin or above KVM's limit.
        """
        limit = self._system.check(abi.KVM_CAP_IRQ_ROUTING)
        if not FIRST_MSI_GSI <= gsi < limit:
            raise UsageError(f"GSIs for messages are {FIRST_MSI_GSI} to {limit - 1}, not {gsi}")
        route = MsiRoute(gsi, address, data)
        with self._stands:
            if self._messages.get(gsi) != route:
                self._messages[gsi] = route
                self._set_routing()

    def _set_routing(self) -> None:
        """The whole table; KVM has no call for one entry."""
        chips = [
            ChipRoute(0, abi.KVM_IRQCHIP_PIC_MASTER, 0),
            ChipRoute(0, abi.KVM_IRQCHIP_IOAPIC, 2),
        ]
        for gsi in (1, *range(3, FIRST_MSI_GSI)):
            if gsi < 16:
                pic = abi.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else abi.KVM_IRQCHIP_PIC_SLAVE
                chips.append(ChipRoute(gsi, pic, gsi & 7))
            chips.append(ChipRoute(gsi, abi.KVM_IRQCHIP_IOAPIC, gsi))
        self._vm.set_routing([*chips, *self._messages.values()])

    def irqfd(
        self, fd: int, gsi: int, *, resample: int | None = None, remove: bool = False
    ) -> None:
        """A write to the eventfd ``fd`` interrupts at ``gsi``; see :meth:`Vm.irqfd`."""
        self._vm.irqfd(fd, gsi, resample=resample, remove=remove)

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
        """Guest writes at ``address`` signal the eventfd ``fd``; see :meth:`Vm.ioeventfd`."""
        self._vm.ioeventfd(fd, address, size, port=port, value=value, remove=remove)

    # Running

    def on_exit(self, reason: int, handler: Handler | None) -> None:
        """Let ``handler`` take exits of this reason (KVM_EXIT_...); before :meth:`start`.

        It is called on the vCPU's thread and returns whether the vCPU goes on.
        """
        if handler is None:
            self._handlers.pop(reason, None)
        else:
            self._handlers[reason] = handler

    def start(self, bus: Bus, ended: Callable[[CpuEnd], None]) -> None:
        """Run all vCPUs; see :meth:`Engine.start`."""
        with self._stands:
            if self.started or self._closing:
                raise RuntimeError("an engine starts once")
            self.started = True
        for vcpu in self._cpus:
            vcpu._thread = threading.Thread(
                target=self._thread, args=(vcpu, bus, ended), name=f"vcpu{vcpu.index}", daemon=True
            )
            vcpu._thread.start()

    def _thread(self, vcpu: KvmVcpu, bus: Bus, ended: Callable[[CpuEnd], None]) -> None:
        """What a vCPU's thread does: run, end, and wait to be restored or closed."""
        loop.block_signals()
        vcpu.fd.set_signal_mask(loop.signals_in_guest())
        try:
            with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as name:
                name.write(self.thread_name.format(vcpu.index))
        except OSError:
            pass  # only a name in ps
        while not self._stand(vcpu):
            end: CpuEnd | None
            try:
                end = loop.run_vcpu(vcpu.fd, bus, lambda: self._stand(vcpu), self._handlers)
            except Exception as error:  # the bus broke its promise
                text = f"{type(error).__name__} in a device: {error}"
                end = CpuEnd(vcpu.index, CpuEndReason.INTERNAL_ERROR, text)
            if end is None:
                return
            vcpu._ended = True
            ended(end)

    def _stand(self, vcpu: KvmVcpu) -> bool:
        """Wait, on the vCPU's thread, until it may run; True if it shall leave instead."""
        loop.drain_kicks()
        with self._stands:
            vcpu._running = False
            self._stands.notify_all()
            while (self._halt or vcpu._ended) and not self._closing:
                self._stands.wait()
            if self._closing:
                return True
            vcpu.fd.map[loop.IMMEDIATE_EXIT] = 0
            vcpu._running = True
            return False

    def _not_from_vcpu(self) -> None:
        if any(vcpu._thread is threading.current_thread() for vcpu in self._cpus):
            raise RuntimeError("a vCPU's own thread cannot stop the engine")

    def _halt_all(self) -> None:
        """Turn every vCPU back and wait until they stand; under both locks."""
        self._halt = True
        for vcpu in self._cpus:
            if vcpu._running:
                vcpu._kick()
        while any(vcpu._running for vcpu in self._cpus):
            self._stands.wait()

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; see :meth:`Engine.pause`. Callable twice."""
        self._not_from_vcpu()
        with self._switch, self._stands:
            if self._halt or self._closing:
                return
            self._halt_all()
            self._stopped_at = monotonic()
            self._clock_at_stop = self._vm.clock().clock

    def resume(self) -> None:
        """Undo :meth:`pause`. The guest's kvmclock stood too, unless the stop was very short."""
        self._not_from_vcpu()
        with self._switch, self._stands:
            if not self._halt or self._closing:
                return
            if self.started and monotonic() - self._stopped_at > _SHORT_STOP:
                self._vm.set_clock(self._clock_at_stop)
                for vcpu in self._cpus:
                    try:
                        vcpu.fd.kvmclock_control()
                    except OSError:
                        pass  # a guest that does not use kvmclock
            self._halt = False
            self._stands.notify_all()

    def close(self) -> None:
        """Stop for good and free everything. Callable twice, not from a vCPU's thread."""
        self._not_from_vcpu()
        with self._switch, self._stands:
            if self._closing:
                return
            self._halt_all()
            self._closing = True
            self._stands.notify_all()
        for vcpu in self._cpus:
            if vcpu._thread is not None:
                join(vcpu._thread)
        self._vm.close()
        self._system.close()

    # State beyond the vCPUs'; only while the engine stands

    def msr_indices(self) -> list[int]:
        """The MSRs that make up a vCPU's state on this host."""
        if self._msr_indices is None:
            self._msr_indices = self._system.msr_indices()
        return self._msr_indices

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What this host's KVM and processor could announce to a guest."""
        return self._system.supported_cpuid()

    @property
    def tsc_hz(self) -> int:
        """The frequency of the vCPUs' time-stamp counters; 0 if KVM does not tell."""
        try:
            return self._cpus[0].fd.tsc_khz() * 1000
        except OSError:
            return 0

    def set_tsc_hz(self, hz: int) -> int:
        """Ask for counters of another frequency, which takes a processor that can scale them;
        before :meth:`start`. The frequency they have then."""
        if hz and hz != self.tsc_hz:
            try:
                for vcpu in self._cpus:
                    vcpu.fd.set_tsc_khz(hz // 1000)
            except OSError:
                pass  # not with this processor
        return self.tsc_hz

    def chips(self) -> KvmChips:
        """The in-kernel interrupt chips, timer and clock."""
        vm = self._vm
        return KvmChips(
            pic_primary=bytes(vm.irqchip(abi.KVM_IRQCHIP_PIC_MASTER).memory),
            pic_secondary=bytes(vm.irqchip(abi.KVM_IRQCHIP_PIC_SLAVE).memory),
            ioapic=bytes(vm.irqchip(abi.KVM_IRQCHIP_IOAPIC).memory),
            pit=bytes(vm.pit().memory),
            clock=vm.clock().clock,
        )

    def restore_chips(self, chips: KvmChips, *, clock: bool = True) -> None:
        """Set the in-kernel chips, and the clock unless told not to."""
        for record in (chips.pic_primary, chips.pic_secondary, chips.ioapic):
            self._vm.set_irqchip(kvm_irqchip(bytearray(record)))
        self._vm.set_pit(kvm_pit_state2(bytearray(chips.pit)))
        if clock:
            self._vm.set_clock(chips.clock)
            self._clock_at_stop = chips.clock

    def reset_chips(self) -> None:
        """Put chips and vCPUs in their state at power-on; the clock goes on.

        That state is read from a new VM, so that it is this KVM's own.
        """
        fresh = KvmEngine(len(self._cpus))
        try:
            self.restore_chips(fresh.chips(), clock=False)
            for vcpu, model in zip(self._cpus, fresh._cpus, strict=True):
                state = model.state()
                vcpu.restore(state)
                vcpu.restore_rest(model.rest(), state)
        finally:
            fresh.close()
