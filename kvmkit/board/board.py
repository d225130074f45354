"""A board: memory, buses, chips and devices around an engine, and the switch that turns it on.

The order of assembly is the order of this file. Locks: see
:mod:`kvmkit.board`. Threads: the engine's vCPUs come in through the bus, the
I/O thread runs :class:`~kvmkit.board.loop.EventLoop`, and the caller's thread
holds the switches.
"""

from __future__ import annotations

from collections import deque
from os import urandom
from threading import RLock

from kvmkit.board import layout
from kvmkit.board.bus import BoardBus
from kvmkit.board.clock import BoardClock
from kvmkit.board.firmware import acpi_tables
from kvmkit.board.loop import EventLoop
from kvmkit.board.memory import GuestMemory
from kvmkit.board.pci_root import PciRoot
from kvmkit.board.power import Ending, EndKind, Power
from kvmkit.board.serials import SerialPorts
from kvmkit.board.watch import HangWatch, PanicWatch
from kvmkit.devices.acpi_pm import AcpiPm
from kvmkit.devices.debug_ports import DebugConsole, ExitPort, PostCode
from kvmkit.devices.i8042 import I8042
from kvmkit.devices.reset_control import ResetControl
from kvmkit.devices.rtc import Rtc
from kvmkit.engine.cpu import CpuState
from kvmkit.engine.engine import CpuEndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from kvmkit.board.call_fds import CallFds
    from kvmkit.board.config import BoardConfig
    from kvmkit.board.interrupts import Chips
    from kvmkit.boot.plan import BootPlan
    from kvmkit.devices.pci_device import PciDevice
    from kvmkit.engine.engine import Bus, CpuEnd, Engine
    from kvmkit.virtio.device import VirtioDevice
    from kvmkit.virtio.pci import VirtioPci

__all__ = ["Board"]

_SECOND = 1_000_000_000
GENERATION_SIZE = 16
"""Bytes of a VM generation ID."""

_WARNINGS = 100  # lines kept


class Board:
    """One machine around ``engine``, which the board owns from now on.

    ``plan(board)`` says what to load and where CPU 0 starts; it is asked at
    power-on and at every reset. Raises what the plan raises, and NotEnoughMemory
    or UsageError for memory that cannot be had; everything is freed then.
    """

    def __init__(
        self,
        config: BoardConfig,
        engine: Engine,
        plan: Callable[[Board], BootPlan],
        *,
        source: int | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self._plan = plan
        self._source = source
        self.lock = RLock()
        """The second lock of the order: around every call of a device."""
        self.control = RLock()
        """The first: pause, resume, reset and close, one at a time."""
        self.power = Power()
        self.observers: list[Callable[[str, bool], None]] = []
        """Each hears ``(event, guest)``: "stop", "resume", "reset" or "powerdown", and whether
        the guest asked for it; on the thread that switches, which it must not hold up."""
        self.memory: GuestMemory | None = None
        self._started = self._paused = self._resetting = self._closed = False
        self.loop = EventLoop(self._defect)
        try:
            self._assemble()
        except BaseException:
            self.close()
            raise

    def _assemble(self) -> None:
        config, engine = self.config, self.engine
        self.clock = BoardClock(self.lock, running=False)
        self.clock.failed = self._defect
        self.host_clock = BoardClock(self.lock)
        self.host_clock.failed = self._defect
        self.loop.add_clock(self.host_clock)
        self.bus = BoardBus(self.lock, self._defect)
        self.devices: dict[str, Any] = {}
        """Everything with a state record, by name, in the order of reset."""
        self.virtio: list[VirtioDevice] = []
        """The virtio devices, in the order in which they were added."""
        self._extras: list[Any] = []  # to be closed at the end
        self._call_fds: dict[VirtioPci, CallFds] = {}
        self._next_gsi = layout.GSI_COUNT  # for messages
        self.warnings: deque[str] = deque(maxlen=_WARNINGS)
        """The last lines of :meth:`warn`."""
        self.warning_listeners: list[Callable[[str], None]] = []

        self.ram = GuestMemory(config.memory, huge_pages=config.huge_pages, source=self._source)
        self.memory = self.ram
        self.ram.on_write = getattr(engine, "memory_written", None)
        for slot in self.ram.slots:
            engine.add_ram(slot.slot, slot.address, slot.host, slot.size)

        self.chips = self._make_chips()
        self._add_devices()
        self._add_pci()
        self._add_watches()
        self.acpi = acpi_tables(config.cpus)
        if self._source is None:
            self._load(first=True)

    def _make_chips(self) -> Chips:
        """In the kernel, if the engine has them there; else our models."""
        attach = getattr(self.engine, "attach_chips", None)
        if attach is None:
            from kvmkit.board.interrupts import KernelChips

            self.loop.add_clock(self.clock)
            self._models = None
            return KernelChips(self.engine)  # type: ignore[arg-type]
        from kvmkit.board.model_chips import ModelChips

        engine: Any = self.engine
        models = ModelChips(
            self.clock,
            engine.vcpus,
            tsc=[vcpu.tsc for vcpu in engine.vcpus],
            tsc_hz=engine.tsc_hz,
        )
        models.map(self.bus)
        self.devices.update(models.devices())
        attach(models.apics, self.clock, lock=self.lock)
        self._models = models
        return models

    def _add_devices(self) -> None:
        chips, bus = self.chips, self.bus
        self.serial = SerialPorts(
            self.config,
            bus,
            chips,
            self.loop,
            self.lock,
            self.clock,
            self.host_clock,
            self._exited,
        )
        quick_port = getattr(self.engine, "quick_port", None)
        if quick_port is not None:
            self.serial.hasten(quick_port)
        self.rtc = Rtc(
            self.clock,
            chips.isa_line(layout.IRQ_RTC),
            below_4g=self.ram.low_size,
            above_4g=self.ram.size - self.ram.low_size,
        )
        self.i8042 = I8042(
            chips.isa_line(layout.IRQ_KEYBOARD),
            chips.isa_line(layout.IRQ_MOUSE),
            self._reset_wanted,
        )
        self.pm = AcpiPm(
            self.clock,
            chips.line(layout.IRQ_SCI),
            self._power_off,
            s5_type=layout.S5_SLEEP_TYPE,
        )
        self.reset_control = ResetControl(self._reset_wanted)
        self.post_code = PostCode()
        debug = DebugConsole(self.serial.console.write)
        bus.map_ports(layout.RTC, 2, self.rtc)
        bus.map_ports(layout.I8042_DATA, 1, self.i8042.data)
        bus.map_ports(layout.I8042_COMMAND, 1, self.i8042.command)
        bus.map_ports(layout.PM1A_EVENT, 4, self.pm.event, sizes=(1, 2, 4))
        bus.map_ports(layout.PM1A_CONTROL, 2, self.pm.control, sizes=(1, 2))
        bus.map_ports(layout.PM_TIMER, 4, self.pm.timer, sizes=(1, 2, 4))
        bus.map_ports(layout.GPE0, 4, self.pm.gpe0, sizes=(1, 2, 4))
        bus.map_ports(layout.RESET, 1, self.reset_control)
        bus.map_ports(layout.POST_CODE, 1, self.post_code)
        bus.map_ports(layout.DEBUG_CONSOLE, 1, debug)
        bus.map_ports(layout.EXIT, 4, ExitPort(self._exited), sizes=(1, 2, 4))
        for number, port in enumerate(self.serial.ports, 1):
            self.devices[f"com{number}"] = port
        self.devices["rtc"] = self.rtc
        self.devices["i8042"] = self.i8042
        self.devices["pm"] = self.pm
        self.devices["reset"] = self.reset_control
        self.devices["post"] = self.post_code

    def _add_pci(self) -> None:
        """The host bridge, and the bus that further functions are added to before the start."""
        self.pci = PciRoot(self.bus, self.chips)
        self.devices["pci"] = self.pci.bus

    def add_virtio(
        self, device: VirtioDevice, *, slot: int | None = None, packed: bool = False
    ) -> VirtioPci:
        """Plug ``device`` into PCI ``slot``, or the first free one; before :meth:`start`.

        With ``packed``, its queues may be packed ones. Raises UsageError when there is no
        free slot.
        """
        from kvmkit.board.devices import BoardHost
        from kvmkit.virtio.pci import VirtioPci

        function = VirtioPci(device, BoardHost(self), self.chips.msi, packed=packed)
        self.pci.bus.add(function, slot)
        if hasattr(self.engine, "ioeventfd") and device.queue_sizes:
            from kvmkit.board.devices import KernelNotify

            notify = KernelNotify(self, function)
            self._extras.append(notify)
            self.pci.follow(function, notify.moved)
        self.pci.assign()
        self.virtio.append(device)
        self._extras.append(device)
        return function

    def call_fd(self, function: VirtioPci, queue: int) -> int:
        """An eventfd that interrupts for ``queue``, for a backend that is another process.

        It stays the board's to close. With KVM the kernel reads it, where it can.
        """
        with self.lock:
            call_fds = self._call_fds.get(function)
            if call_fds is None:
                from kvmkit.board.call_fds import CallFds

                call_fds = self._call_fds[function] = CallFds(self, function, self._new_gsi)
                self._extras.append(call_fds)
            return call_fds.fd(queue)

    def _new_gsi(self) -> int:
        self._next_gsi += 1
        return self._next_gsi - 1

    def add_pci(self, device: PciDevice, *, slot: int | None = None) -> None:
        """Plug a device of one's own into PCI ``slot``, or the first free one; before
        :meth:`start`. Raises UsageError when there is no free slot."""
        from kvmkit.board.devices import BoardHost

        device.attach(BoardHost(self), self.chips.msi)
        self.pci.bus.add(device, slot)
        self.pci.assign()
        self._extras.append(device)

    def add_device(self, device: VirtioDevice | PciDevice, **options: Any) -> None:
        """:meth:`add_virtio` or :meth:`add_pci`, as the device is."""
        add: Any = self.add_virtio if hasattr(device, "queue_sizes") else self.add_pci
        add(device, **options)

    def warn(self, text: str) -> None:
        """Note one line about what the guest did wrong, for whoever asks; from any thread."""
        self.warnings.append(text)
        for listener in self.warning_listeners:
            listener(text)

    def _add_watches(self) -> None:
        serial = self.serial
        self.panic_watch = PanicWatch(
            self.power, self.host_clock, self.loop.call_soon, self.sample, lambda: serial.log
        )
        if self.config.kernel_log is None:
            serial.console.add_tap(self.panic_watch.tap)
        else:
            serial.kernel_log.add_tap(self.panic_watch.tap)
        self._hang_watch: HangWatch | None = None
        if self.config.hang_timeout is not None:
            self._hang_watch = HangWatch(
                self.power,
                self.host_clock,
                self.loop.call_soon,
                self.ram,
                lambda: self.sample(wait=False),
                timeout=int(self.config.hang_timeout * _SECOND),
                activity=lambda: serial.activity,
                alive=lambda: serial.ports[0].listening,
                paused=lambda: self._paused or self.bus.slow,
                log=lambda: serial.log,
            )
        self._limit = self.host_clock.timer(lambda: self._end(Ending(EndKind.TIMED_OUT)))
        self.power.on_end(self._ended)

    # Loading

    def _load(self, *, first: bool) -> None:
        """Put tables, kernel and entry state where they belong: power-on, and every reset."""
        plan = self._plan(self)
        if not first:  # RAM keeps what it holds through a reset, as a PC's does
            for start, size in plan.zero:
                self.ram.fill(start, size)
            self._forget_code()
        for load in (*self.acpi.blobs, *plan.loads):
            self.ram.write(load.address, load.data)
        if first:
            self.ram.write(layout.VM_GENERATION, urandom(GENERATION_SIZE))
        self.pci.assign()
        vcpus = self.engine.vcpus
        vcpus[0].restore(plan.entry)
        if not first:
            for vcpu in vcpus[1:]:
                vcpu.restore(CpuState(waiting_for_sipi=True))

    def renew_generation(self) -> None:
        """Tell the guest, by the VM generation ID, that it is a copy; before :meth:`start`.

        Linux then reseeds its random numbers: no two guests shall have the same.
        """
        self.ram.write(layout.VM_GENERATION, urandom(GENERATION_SIZE))
        with self.lock:
            self.pm.raise_gpe(layout.GPE_GENERATION)

    def _forget_code(self) -> None:
        """Plug the RAM out and in: a software CPU forgets what it translated of the old kernel."""
        if self._models is not None:
            for slot in self.ram.slots:
                self.engine.remove_ram(slot.slot)
                self.engine.add_ram(slot.slot, slot.address, slot.host, slot.size)

    # Switches; each from any thread but a vCPU's

    def start(self, bus: Bus | None = None) -> None:
        """Power on. ``bus`` stands between engine and board, to trace for instance."""
        with self.control:
            if self._started or self._closed:
                raise RuntimeError("a board starts once")
            self._started = True
            self.clock.resume()
            if self.config.timeout is not None:
                now = self.host_clock.now()
                self._limit.arm(now + int(self.config.timeout * _SECOND))
            if self._hang_watch is not None:
                self._hang_watch.start()
            # The CPUs first: a thread's start waits for it to be scheduled, and what they hand
            # to the loop before it runs waits in its queue.
            self.engine.start(bus or self.bus, self._cpu_ended)
            self.loop.start()

    def pause(self) -> None:
        """Stop the CPUs and guest time. Harmless when they stand."""
        with self.control:
            if self._started and not self._paused and not self._closed:
                self._paused = True
                self._stop_cpus()
                self.clock.pause()
                if self.power.ending is None:
                    self._tell("stop")

    def resume(self) -> None:
        """Undo :meth:`pause`. A machine that has ended stays where it is."""
        with self.control:
            if self._paused and not self._closed and self.power.ending is None:
                self._paused = False
                self.clock.resume()
                self._let_cpus_run()
                for device in self.virtio:
                    device.resumed()
                self._tell("resume")

    def _stop_cpus(self) -> None:
        self.bus.hurry = True  # a CPU that waits for a slow reader must stand, too
        self.engine.pause()

    def _let_cpus_run(self) -> None:
        self.bus.hurry = False
        self.engine.resume()

    @property
    def paused(self) -> bool:
        """Whether guest time stands still."""
        return self._paused

    def reset(self, *, guest: bool = False) -> None:
        """Press the reset button: devices and CPUs start afresh, RAM is loaded again.

        ``guest`` says for the observers that it was the guest who pressed it.
        """
        with self.control:
            if not self._started or self._closed or self.power.ending is not None:
                return
            if not self._paused:
                self._stop_cpus()
            try:
                for device in self.virtio:
                    device.drain()
                with self.lock:
                    self._reset_devices()
                    self._load(first=False)
                    self._resetting = False
                    self.bus.thaw()
            except Exception as error:
                self._end(Ending(EndKind.ENGINE_ERROR, f"the reset failed: {error}"))
                return
            if self._hang_watch is not None:
                self._hang_watch.start()
            if not self._paused:
                self._let_cpus_run()
            self._tell("reset", guest)

    def _tell(self, event: str, guest: bool = False) -> None:
        for observer in self.observers:
            observer(event, guest)

    def _reset_devices(self) -> None:
        for device in self.devices.values():
            device.reset()
        if self._models is not None:
            self._models.reset_done()
        else:
            reset = getattr(self.engine, "reset_chips", None)
            if reset is not None:
                reset()
                self.chips.restate()
        self.serial.reports.reset()
        self.panic_watch.reset()

    def power_button(self) -> bool:
        """Press it; False if the guest does not listen."""
        with self.lock:
            heard = self.pm.press_power_button()
        self._tell("powerdown")
        return heard

    def sample(self, *, wait: bool = True) -> Sequence[CpuState] | None:
        """The CPUs' states, stopping them for a moment.

        None if the machine does not run, or somebody else holds the switches and
        we do not ``wait`` for them.
        """
        if not self.control.acquire(blocking=wait):
            return None
        try:
            if not self._started or self._closed:
                return None
            running = not self._paused
            if running:
                self._stop_cpus()
            try:
                return [vcpu.state() for vcpu in self.engine.vcpus]
            finally:
                if running:
                    self._let_cpus_run()
        finally:
            self.control.release()

    def close(self, patience: float | None = 2.0) -> None:
        """Switch off and free everything. Callable twice; not from the I/O thread.

        Readers of the consoles get ``patience`` seconds to take what is left, None as long
        as they need.
        """
        self.loop.stop()
        with self.control:
            if self._closed:
                return
            self._closed = True
            bus = getattr(self, "bus", None)
            if bus is not None:
                bus.hurry = True
            self.engine.close()
            for extra in getattr(self, "_extras", ()):
                extra.close()
            if self.memory is not None:
                serial = getattr(self, "serial", None)
                if serial is not None:
                    serial.close(patience)
                self.memory.close()
            self.loop.close()

    # What the guest asks for: on a vCPU's thread, under the lock

    def _power_off(self) -> None:
        self._end(Ending(EndKind.POWERED_OFF))

    def _exited(self, status: int) -> None:
        self._end(Ending(EndKind.EXITED, status=status))

    def _reset_wanted(self) -> None:
        if self._resetting or self.panic_watch.conclude():
            return
        if not self.config.reboot:
            self._end(Ending(EndKind.REBOOT))
            return
        self._resetting = True
        self.bus.freeze()
        self.loop.call_soon(self._guest_reset)

    def _guest_reset(self) -> None:
        if self._resetting:  # nobody pressed the button meanwhile
            self.reset(guest=True)

    # The end

    def _end(self, ending: Ending) -> None:
        self.bus.freeze()
        self.power.end(ending)

    def _ended(self, ending: Ending) -> None:
        """Whatever ended the machine: let its CPUs stand, for a look at them."""
        self.bus.freeze()
        self.loop.call_soon(self.pause)

    def _cpu_ended(self, end: CpuEnd) -> None:
        """A vCPU's thread tells that it can go no further."""
        self.loop.call_soon(lambda: self._examine(end))

    def _examine(self, end: CpuEnd) -> None:
        if self._resetting or self.power.ending is not None:
            return
        from kvmkit.board.postmortem import describe_cpu

        kind = EndKind.ENGINE_ERROR
        reason = f"{end.reason.value} on CPU {end.vcpu}"
        if end.reason is CpuEndReason.TRIPLE_FAULT:
            kind, reason = EndKind.TRIPLE_FAULT, f"triple fault on CPU {end.vcpu}"
        states = self.sample()
        detail = [end.detail] if end.detail else []
        if states is not None:
            detail.append(describe_cpu(end.vcpu, states[end.vcpu], self.ram))
        self._end(Ending(kind, reason, "\n".join(detail)))

    def _defect(self, error: Exception) -> None:
        """A model or a backend let an exception out: end, saying where."""
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" in {frame[0].name} ({frame[0].filename}:{frame[0].lineno})" if frame else ""
        reason = f"a defect of kvmkit: {type(error).__name__}: {error}{where}"
        detail = "".join(traceback.format_exception(error))
        self.power.end(Ending(EndKind.ENGINE_ERROR, reason, detail))
