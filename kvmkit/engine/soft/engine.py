"""The software CPU as an engine: one thread runs all vCPUs in turn.

Interrupt controllers and time are handed in (:meth:`SoftEngine.attach_chips`);
the engine's thread also fires the clock's timers, between two blocks of guest
code.
"""

from __future__ import annotations

import time
from threading import Condition, Thread, get_ident

from kvmkit.engine.cpu import CpuState, Segment
from kvmkit.engine.engine import CpuEnd, CpuEndReason
from kvmkit.engine.soft._core import STOP_DEADLINE, STOP_TRIPLE_FAULT, Machine
from kvmkit.engine.soft.cpuid import TSC_HZ, cpuid_leaves
from kvmkit.engine.soft.msrs import Msrs
from kvmkit.engine.soft.state import pack_state, unpack_state
from kvmkit.frozen import replace
from kvmkit.threads import join, leave_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Protocol

    from kvmkit.engine.engine import Bus

    class Apic(Protocol):
        """What the engine asks of a local APIC."""

        @property
        def base(self) -> int: ...
        @property
        def enabled(self) -> bool: ...
        @property
        def x2apic(self) -> bool: ...
        def read(self, offset: int, size: int) -> int: ...
        def write(self, offset: int, size: int, value: int) -> None: ...
        def read_msr(self, index: int) -> int | None: ...
        def write_msr(self, index: int, value: int) -> bool: ...
        def acknowledge(self) -> int | None: ...
        def tsc_changed(self) -> None: ...
        @property
        def cr8(self) -> int: ...
        def set_cr8(self, value: int) -> None: ...

    class EngineClock(Protocol):
        """What the engine asks of the board's clock."""

        changed: Callable[[], None]

        def now(self) -> int: ...
        def wall(self) -> int: ...
        def next_deadline(self) -> int | None: ...
        def run_due(self) -> None: ...


__all__ = ["SoftEngine", "SoftVcpu"]

_NOWHERE = (1 << 64) - 1
_MSR_APIC_BASE, _MSR_TSC, _MSR_TSC_DEADLINE = 0x1B, 0x10, 0x6E0
_MSR_X2APIC, _MSR_X2APIC_END = 0x800, 0x900


class SoftVcpu:
    """One vCPU: its registers, and the wires from its local APIC."""

    def __init__(self, engine: SoftEngine, index: int) -> None:
        self.index = index
        self._engine = engine
        self._core = engine.core
        self.msrs = Msrs(self._core.write, self._tsc_at_zero, engine.wall_at_zero)
        self.apic: Apic | None = None

    # What the board and debugging views use

    def state(self) -> CpuState:
        """All registers, by name."""
        record = self._core.get_state(self.index)
        apic = self.apic
        return unpack_state(record, apic.cr8 if apic else 0, dict(self.msrs.values), self.tsc())

    def restore(self, state: CpuState) -> None:
        """Set all registers."""
        tsc = self._engine.tsc()
        self._core.set_state(self.index, pack_state(state, tsc))
        self._core.set_tsc_offset(self.index, state.msrs.get(_MSR_TSC, tsc) - tsc & _NOWHERE)
        self.msrs.values = {
            index: value for index, value in state.msrs.items() if self.msrs.read(index) is not None
        }
        self._engine.set_task_priority(self.index, state.cr8)

    def tsc(self) -> int:
        """The time-stamp counter, as the guest reads it."""
        return self._engine.tsc() + self._core.tsc_offset(self.index) & _NOWHERE

    def _tsc_at_zero(self) -> int:
        return self._core.tsc_offset(self.index)

    # devices.lapic.Cpu

    def interrupt(self, pending: bool) -> None:
        """The INTR wire."""
        self._core.interrupt(self.index, pending)

    def nmi(self) -> None:
        """A non-maskable interrupt."""
        self._core.nmi(self.index)

    def init(self) -> None:
        """INIT: reset, then wait for a start-up message."""
        self._engine.event(self._init)

    def startup(self, vector: int) -> None:
        """Start at ``vector << 12`` in real mode, if waiting for it."""
        self._engine.event(lambda: self._startup(vector))

    def smi(self) -> None:
        """System management: there is none."""

    def _init(self) -> None:
        self._restart(CpuState(waiting_for_sipi=self.index != 0))

    def _startup(self, vector: int) -> None:
        if self.state().waiting_for_sipi:
            cs = Segment(vector << 8, vector << 12, 0xFFFF, 0x9B)
            self._restart(CpuState(rip=0, cs=cs))

    def _restart(self, state: CpuState) -> None:
        # INIT leaves MSRs, the TSC and the FPU alone (SDM vol. 3, table 9-1).
        old, offset = self.state(), self._core.tsc_offset(self.index)
        self.restore(replace(state, msrs=old.msrs, fpu=old.fpu))
        self._core.set_tsc_offset(self.index, offset)


class SoftEngine:
    """The software CPU; keeps the promise of :class:`kvmkit.engine.engine.Engine`."""

    name = "soft"
    tsc_hz = TSC_HZ

    def __init__(self, vcpus: int) -> None:
        """Raises ValueError for fewer than 1 or more than 64 vCPUs."""
        self.core = Machine(vcpus)
        self._clock: EngineClock | None = None
        self._lock: AbstractContextManager[object] | None = None
        self.vcpus: Sequence[SoftVcpu] = tuple(SoftVcpu(self, i) for i in range(vcpus))
        self._events: list[Callable[[], None]] = []
        self._thread: Thread | None = None
        self._state = Condition()
        self._pause = self._standing = self._stop = False
        self._ended: Callable[[CpuEnd], None] = _ignore
        for vcpu in self.vcpus:
            self.core.set_cpuid(vcpu.index, cpuid_leaves(vcpu.index, vcpus))
            vcpu.restore(CpuState(waiting_for_sipi=vcpu.index != 0))

    def attach_chips(
        self, apics: Sequence[Apic], clock: EngineClock, *, lock: AbstractContextManager[object]
    ) -> None:
        """Wire the local APICs, in the order of the vCPUs, and the clock; before :meth:`start`.

        ``lock`` is held around every call into an APIC. The clock's timers fire
        on the engine's thread from now on.
        """
        self._clock = clock
        self._lock = lock
        clock.changed = self._clock_changed
        for vcpu, apic in zip(self.vcpus, apics, strict=True):
            vcpu.apic = apic

    def add_ram(
        self, slot: int, address: int, host: int, size: int, *, readonly: bool = False
    ) -> None:
        """Map host memory into the guest; see the promise."""
        self.core.add_ram(slot, address, host, size, readonly)

    def remove_ram(self, slot: int) -> None:
        """Undo :meth:`add_ram`."""
        self.core.remove_ram(slot)

    def memory_written(self, address: int, size: int) -> None:
        """RAM was written by other than a vCPU: forget code that was translated from there.

        From any thread, after the write and before the guest can learn of it. A vCPU
        that runs meanwhile finishes its block at most: it looks at the kick before the
        next one, so no code that it finds through what it is told is old.
        """
        if not self.core.has_code(address, size):
            return
        if self._thread is not None and self._thread.ident == get_ident():
            self.core.invalidate(address, size)
        else:
            self.event(lambda: self.core.invalidate(address, size))

    def quick_port(self, port: int, answer: int | None, collect: bool) -> None:
        """Spare the bus the calls for a port whose answers are known.

        With ``answer``, 1-byte reads of ``port`` give it; with ``collect``, bytes
        written there are handed over together, by ``bus.port_written``, before
        the next call of the bus and whenever the guest stops. With neither, the
        bus is called each time again.
        """
        if answer is not None:
            self.core.port_quick(port, 1, answer)
        else:
            self.core.port_quick(port, 2 if collect else 0)

    # Time

    def sync_tsc(self) -> None:
        """Let the counter be 0 at guest time 0, wherever guest time stands."""
        clock = self._clock
        if clock is None:
            return
        # The host may take the processor from us between two readings: the closest of three.
        readings = []
        for _ in range(3):
            before, now = time.monotonic_ns(), clock.now()
            readings.append((time.monotonic_ns() - before, before - now))
        self.core.set_tsc_base(min(readings)[1])

    def tsc(self) -> int:
        """The counter without a vCPU's offset: guest time. Stands still while the clock does."""
        return self._clock.now() if self._clock is not None else self.core.tsc()

    def wall_at_zero(self) -> int:
        """Nanoseconds since 1970 at guest time 0."""
        clock = self._clock
        return clock.wall() - clock.now() if clock else time.time_ns()

    def _clock_changed(self) -> None:
        """The clock has a new next deadline: the guest must stop for it."""
        clock = self._clock
        assert clock is not None
        deadline = clock.next_deadline()
        if deadline is None:
            self.core.set_deadline(None)
        else:
            self.core.set_deadline(time.monotonic_ns() + deadline - clock.now())

    # Running

    def start(self, bus: Bus, ended: Callable[[CpuEnd], None]) -> None:
        """Run all vCPUs on one thread; returns at once."""
        core = self.core
        self._ended = ended
        core.port_read, core.port_write = bus.port_read, bus.port_write
        core.port_collected = bus.port_written
        core.memory_read, core.memory_write = bus.memory_read, bus.memory_write
        core.apic_read, core.apic_write = self._apic_read, self._apic_write
        core.msr_read, core.msr_write = self._msr_read, self._msr_write
        core.acknowledge = self._acknowledge
        core.tpr_read, core.tpr_write = self._tpr_read, self._tpr_write
        self._thread = Thread(target=self._run, name="vcpu", daemon=True)
        self._thread.start()

    @property
    def threads(self) -> list[Thread]:
        """The one thread that runs all vCPUs; empty before :meth:`start`."""
        return [self._thread] if self._thread is not None else []

    def event(self, action: Callable[[], None]) -> None:
        """Do something to a vCPU between two blocks of guest code, on the engine's thread."""
        if self._thread is None or not self._thread.is_alive():
            action()
            return
        self._events.append(action)
        self.core.kick()

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; returns when they stand."""
        with self._state:
            self._pause = True
            if self._thread is None:
                return
            self.core.kick()
            while not self._standing and self._thread.is_alive():
                self._state.wait(0.5)
                if not self._standing:
                    self.core.kick()

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        with self._state:
            self._pause = False
            self._state.notify_all()

    def close(self) -> None:
        """Stop for good and free everything."""
        thread = self._thread
        with self._state:
            self._stop = True
            self._state.notify_all()
        if thread is not None:
            self.core.kick()
            while not join(thread, 0.05):
                self.core.kick()
        self.core.close()

    def _run(self) -> None:
        leave_signals()
        core = self.core
        run, clock = core.run, self._clock
        self._sync()
        while not self._stop:
            if self._pause:
                with self._state:
                    self._standing = True
                    self._state.notify_all()
                    self._state.wait_for(lambda: self._stop or not self._pause)
                    self._standing = False
                self._sync()
                continue
            try:
                reason = run()
                if reason == STOP_DEADLINE and clock is not None:
                    clock.run_due()
                    self._clock_changed()
                while self._events:
                    self._events.pop(0)()
            except Exception as error:  # a defect in a handler: say so, stand still
                self._end(CpuEndReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
                continue
            if reason == STOP_TRIPLE_FAULT:
                self._end(CpuEndReason.TRIPLE_FAULT)

    def _end(self, reason: CpuEndReason, detail: str = "") -> None:
        """A vCPU can go no further: all stand until somebody pauses and resumes us."""
        self._pause = True
        self._ended(CpuEnd(self.core.current(), reason, detail))

    def _sync(self) -> None:
        """After a time in which anybody may have changed anything."""
        if self._clock is None:
            return
        self.sync_tsc()
        self._clock_changed()
        for vcpu in self.vcpus:
            self._place_apic(vcpu)
            if vcpu.msrs.values:
                vcpu.msrs.publish_clock()

    def _place_apic(self, vcpu: SoftVcpu) -> None:
        apic = vcpu.apic
        mapped = apic is not None and apic.enabled and not apic.x2apic
        self.core.set_apic_page(vcpu.index, apic.base if mapped and apic else _NOWHERE)

    # Called by the core, on the engine's thread

    def _apic_read(self, index: int, offset: int, size: int) -> int:
        apic, lock = self.vcpus[index].apic, self._lock
        assert apic is not None and lock is not None
        with lock:
            return apic.read(offset, size)

    def _apic_write(self, index: int, offset: int, size: int, value: int) -> None:
        apic, lock = self.vcpus[index].apic, self._lock
        assert apic is not None and lock is not None
        with lock:
            apic.write(offset, size, value)

    def _acknowledge(self, index: int) -> int | None:
        apic, lock = self.vcpus[index].apic, self._lock
        assert apic is not None and lock is not None
        with lock:
            return apic.acknowledge()

    def _msr_read(self, index: int, msr: int) -> int | None:
        vcpu = self.vcpus[index]
        if _MSR_X2APIC <= msr < _MSR_X2APIC_END or msr in (_MSR_APIC_BASE, _MSR_TSC_DEADLINE):
            if vcpu.apic is None or self._lock is None:
                return None
            with self._lock:
                return vcpu.apic.read_msr(msr)
        return vcpu.msrs.read(msr)

    def _msr_write(self, index: int, msr: int, value: int) -> bool:
        vcpu = self.vcpus[index]
        if _MSR_X2APIC <= msr < _MSR_X2APIC_END or msr in (_MSR_APIC_BASE, _MSR_TSC_DEADLINE):
            if vcpu.apic is None or self._lock is None:
                return False
            with self._lock:
                done = vcpu.apic.write_msr(msr, value)
            if msr == _MSR_APIC_BASE and done:
                self._place_apic(vcpu)
            return done
        if msr == _MSR_TSC:
            self.core.set_tsc_offset(index, value - self.core.tsc() & _NOWHERE)
            vcpu.msrs.publish_clock()
            if vcpu.apic is not None and self._lock is not None:
                with self._lock:
                    vcpu.apic.tsc_changed()
            return True
        return vcpu.msrs.write(msr, value)

    def _tpr_read(self, index: int) -> int:
        apic, lock = self.vcpus[index].apic, self._lock
        if apic is None or lock is None:
            return 0
        with lock:
            return apic.cr8

    def set_task_priority(self, index: int, value: int) -> None:
        """CR8 of a vCPU, which its local APIC holds."""
        if self._tpr_read(index) != value:
            self._tpr_write(index, value)

    def _tpr_write(self, index: int, value: int) -> None:
        apic, lock = self.vcpus[index].apic, self._lock
        if apic is not None and lock is not None:
            with lock:
                apic.set_cr8(value)


def _ignore(end: CpuEnd) -> None:
    """Default for ``ended``."""
