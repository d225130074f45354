"""VM: one virtual machine, the object users hold.

    with kvmkit.VM("bzImage", initrd=["root.cpio"], memory="1G") as vm:
        ending = vm.run()

Everything ``kvmkit run`` does is a method here. A VM is assembled by
:meth:`VM.start`, belongs to this process, and is gone after :meth:`VM.close`.
"""

from __future__ import annotations

import os

from kvmkit.control.names import check_name, generate_name
from kvmkit.errors import EngineUnavailable, FileTrouble, UsageError
from kvmkit.peripherals import Peripherals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self

    from kvmkit.backends.disk_options import DiskOptions
    from kvmkit.backends.net.options import NetOptions
    from kvmkit.board.board import Board
    from kvmkit.board.console import Sink
    from kvmkit.board.power import Ending
    from kvmkit.boot.image import KernelImage
    from kvmkit.boot.plan import BootPlan
    from kvmkit.config import VmConfig
    from kvmkit.devices.pci_device import PciDevice
    from kvmkit.engine.engine import Engine
    from kvmkit.snapshot.fork import Moment
    from kvmkit.snapshot.format import Snapshot
    from kvmkit.virtio.block import Block
    from kvmkit.virtio.device import VirtioDevice
    from kvmkit.virtio.net import Net

    PathLike = str | os.PathLike[str]

__all__ = ["VM", "command_line", "memory_size"]

MIB = 1 << 20
HANG_TIMEOUT = 60.0
"""Seconds of silence, before any process ran, that count as a boot that hangs."""

ENGINES = ("auto", "kvm", "soft")

DEFAULTS = ("console=ttyS0", "panic=-1")
"""Kernel parameters every Linux guest gets unless the user gives them himself.

``panic=-1`` resets at once after a panic, which tells us it is over.
"""

LOG_CONSOLE = "console=ttyS1"
"""Put before ``console=ttyS0`` when a kernel log is asked for; ``/dev/console`` is the last."""

_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SEED_SIZE = 32


class VM(Peripherals):
    """A virtual machine around a Linux or PVH kernel.

    ``kernel`` is a bzImage, an ELF vmlinux or a PVH kernel, ``initrd`` archives
    that are put one after the other. ``memory`` is in bytes, or text as
    ``"512M"`` (without a unit: MiB). ``engine`` is ``"auto"``, ``"kvm"`` or
    ``"soft"``. ``console`` is where the guest's first serial port goes: a file
    descriptor, or a callable that takes bytes and runs on the I/O thread.
    ``kernel_log`` is a file, descriptor or callable for the kernel's messages.
    ``timeout`` and ``hang_timeout`` are in seconds, None for no limit. Without
    ``reboot``, a guest that reboots ends. ``bare_cmdline`` gives the kernel
    ``cmdline`` and nothing else. ``disks`` are files, words as ``kvmkit run --disk``
    takes them, or :class:`~kvmkit.backends.disk_options.DiskOptions`; ``nets`` likewise
    are as for ``--net``, or :class:`~kvmkit.backends.net.options.NetOptions`.

    Raises UsageError for values that cannot be meant; nothing is opened before
    :meth:`start`.
    """

    def __init__(
        self,
        kernel: PathLike,
        *,
        initrd: PathLike | Sequence[PathLike] = (),
        cmdline: str = "",
        cpus: int = 1,
        memory: int | str = 512 * MIB,
        engine: str = "auto",
        name: str | None = None,
        console: Sink | None = None,
        kernel_log: PathLike | Sink | None = None,
        timeout: float | None = None,
        hang_timeout: float | None = HANG_TIMEOUT,
        reboot: bool = True,
        huge_pages: str | None = None,
        bare_cmdline: bool = False,
        disks: Sequence[PathLike | DiskOptions] = (),
        nets: Sequence[str | NetOptions] = (),
    ) -> None:
        from kvmkit.board.config import BoardConfig
        from kvmkit.board.memory import check_size

        if engine not in ENGINES:
            raise UsageError(f"the engine is one of {', '.join(ENGINES)}, not {engine!r}")
        super().__init__(generate_name() if name is None else check_name(name))
        self._named = name is not None
        if "\0" in cmdline or "\n" in cmdline:
            raise UsageError("a kernel command line is one line without zero bytes")
        size = memory_size(memory)
        check_size(size, huge_pages)
        self.kernel = os.fspath(kernel)
        paths = [initrd] if isinstance(initrd, str | os.PathLike) else initrd
        self.initrds = tuple(os.fspath(path) for path in paths)
        self.cmdline = cmdline
        if not bare_cmdline:
            self.cmdline = command_line(cmdline, log=kernel_log is not None)
        self.disks = tuple([_disk(disk) for disk in disks])
        self._blocks: list[Block] = []
        self.nets = tuple([_net(net) for net in nets])
        self._cards: list[Net] = []
        self.engine_wanted = engine
        self._huge_pages = huge_pages
        self._bare_cmdline = bare_cmdline
        self._given_cmdline = cmdline
        self._board_config = BoardConfig(
            cpus=cpus,
            memory=size,
            huge_pages=huge_pages,
            console=() if console is None else (console,),
            reboot=reboot,
            timeout=timeout,
            hang_timeout=hang_timeout,
            hold_input=True,
        )
        self._image: KernelImage | None = None
        self._snapshot: Snapshot | Moment | None = None
        self._kernel_log = kernel_log
        self._log_fd = -1
        self._board: Board | None = None
        self._devices: list[tuple[VirtioDevice | PciDevice, dict[str, Any]]] = []
        self._listeners: list[Callable[[Ending], None]] = []
        self._report_listeners: list[Callable[[str, str], None]] = []
        self._closed = False
        self._last_log = b""
        self.output_trouble = ""
        """After :meth:`close`: which output of the guest could not be written, and why."""
        self._ending: Ending | None = None

    @classmethod
    def from_config(cls, config: VmConfig, *, console: Sink | None = None) -> Self:
        """A VM as ``config`` says. Raises UsageError, naming the field that cannot be meant."""
        if not config.kernel:
            raise UsageError("kernel: expected a path, found nothing")
        return cls(**config.check().arguments(), console=console)

    @property
    def config(self) -> VmConfig:
        """What it was made to be, as a value; without sinks and devices, which are no values."""
        from kvmkit.config import VmConfig

        log = self._kernel_log
        board = self._board_config
        return VmConfig(
            kernel=self.kernel,
            initrd=self.initrds,
            cmdline=self._given_cmdline,
            cpus=board.cpus,
            memory=board.memory,
            engine=self.engine_wanted,
            name=self.name if self._named else "",
            kernel_log=os.fspath(log) if isinstance(log, str | os.PathLike) else "",
            timeout=board.timeout or 0,
            hang_timeout=board.hang_timeout or 0,
            reboot=board.reboot,
            huge_pages=self._huge_pages or "",
            bare_cmdline=self._bare_cmdline,
            disks=tuple([str(disk) for disk in self.disks]),
            nets=tuple([str(net) for net in self.nets]),
        )

    # Life

    def start(self) -> None:
        """Assemble the machine and let it run. Returns at once.

        Raises BadKernel, BadInitrd, NotEnoughMemory, EngineUnavailable,
        PermissionTrouble, FileTrouble, UsageError, and NameTaken if a running VM has
        its name; nothing is left behind then.
        """
        if self._board is not None or self._closed:
            raise UsageError("a VM starts once; make a new one")
        if self._snapshot is None:
            self._open_kernel()
        try:
            self._claim_name()
            self._open_log()
            self._open_nets()
            self._open_disks()
            board = self._assemble(self._make_engine())
        except BaseException:
            self._let_go()
            raise
        self._board = board
        try:
            for block in self._blocks:
                board.add_device(block)
            for card in self._cards:
                board.add_device(card)
            for device, options in self._devices:
                board.add_device(device, **options)
            for listener in self._listeners:
                board.power.on_end(listener)
            for report in self._report_listeners:
                board.serial.reports.listen(report)
            if self._snapshot is not None:
                from kvmkit.board.state import restore_board, state_of

                restore_board(board, self._snapshot.state(state_of(board)))
                board.renew_generation()
            self._events.watch(board)
            if self.control is not None:
                self.control.watch(board)
            board.start()
        except BaseException:
            self.close()
            raise

    @classmethod
    def restore(
        cls,
        path: PathLike,
        *,
        engine: str = "auto",
        name: str | None = None,
        console: Sink | None = None,
        kernel_log: PathLike | Sink | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> VM:
        """A VM that goes on, when it is started, where :meth:`snapshot` left another.

        ``"auto"`` is the engine it was saved on. Without ``check`` the memory is
        taken unread; with it, it is read unless it was before and did not change
        since. Devices that were added are added again, to the same slots. Raises
        BadSnapshot for a snapshot that is damaged, FileTrouble for one that cannot
        be read.
        """
        from kvmkit.snapshot.machine import open_vm

        vm, snapshot = open_vm(
            cls,
            os.fspath(path),
            engine=engine,
            check=check,
            name=name,
            console=console,
            kernel_log=kernel_log,
            timeout=timeout,
        )
        vm._snapshot = snapshot
        return vm

    def fork(
        self,
        count: int = 1,
        *,
        consoles: Sequence[Sink | None] = (),
        prepare: Callable[[VM, int], None] | None = None,
    ) -> list[VM]:
        """``count`` running copies of this VM, which runs on; the caller closes them.

        They share its memory until they or it write to it. ``consoles`` are where their
        consoles go, in order; ``prepare(copy, index)`` is called for each before it
        starts, to give it the devices that this VM has. Each has a name of its own.
        Raises NotEnoughMemory, BadSnapshot for a device that is missing, UsageError.
        """
        from kvmkit.snapshot.fork import fork

        return fork(self, count, consoles, prepare)

    def snapshot(self, path: PathLike) -> None:
        """Save it in directory ``path``, in place of a snapshot there, and let it run on.

        Raises FileTrouble when it cannot be written.
        """
        from kvmkit.board.state import state_of
        from kvmkit.snapshot.format import save
        from kvmkit.snapshot.machine import about, loose_initrds

        board = self.board
        with board.control:
            running = not board.paused
            board.pause()
            try:
                for device in board.virtio:
                    device.drain()
                files = loose_initrds(self)
                save(os.fspath(path), board.ram, state_of(board), about(self), files=files)
            finally:
                if running:
                    board.resume()

    def add_virtio(self, device: VirtioDevice, *, packed: bool = False) -> None:
        """Give the machine this device, which then belongs to it; before :meth:`start`.

        With ``packed``, its queues may be packed ones. Raises UsageError after the start.
        """
        self.add_device(device, packed=packed)

    def add_device(self, device: VirtioDevice | PciDevice, **options: Any) -> None:
        """Give the machine a PCI or virtio device of one's own (``docs/devices.md``).

        ``options`` are those of the board's ``add_virtio`` and ``add_pci``. Raises
        UsageError after the start.
        """
        if self._board is not None or self._closed:
            raise UsageError("devices are added before a VM starts")
        self._devices.append((device, options))

    def wait(self, timeout: float | None = None) -> Ending | None:
        """Wait for the end, at most ``timeout`` seconds; None if it did not come."""
        if self._ending is None and self._board is not None:
            self._ending = self._board.power.wait(timeout)
        return self._ending

    def run(self) -> Ending:
        """Start, wait for the end, close."""
        try:
            self.start()
            ending = self.wait()
            assert ending is not None
            return ending
        finally:
            self.close()

    def run_until_exit(self, timeout: float | None = None) -> Ending:
        """Wait for the end, and raise unless it is a good one; starts it if need be, and closes.

        Raises GuestPanic, GuestHang, TripleFault, GuestEnded for an exit code other
        than 0, and CommandTimeout after ``timeout`` seconds or at its own limit.
        """
        from kvmkit.board.power import EndKind
        from kvmkit.errors import CommandTimeout, ending_error

        try:
            if self._board is None:
                self.start()
            ending = self.wait(timeout)
            if ending is None:
                raise CommandTimeout(f"{self.name} has not ended within {timeout:g} s")
            if ending.kind is EndKind.TIMED_OUT:
                raise CommandTimeout(ending.reason)
            if not ending.ok:
                raise ending_error(ending)
            return ending
        finally:
            self.close()

    def close(self, patience: float | None = 2.0) -> None:
        """Switch off and free everything. Callable twice.

        A slow reader of the console gets ``patience`` seconds to take what the
        guest has written, None as long as he needs.
        """
        board, self._board = self._board, None
        self._closed = True
        if board is not None:
            from kvmkit.board.power import Ending, EndKind

            board.power.end(Ending(EndKind.KILLED))
            self._ending = board.power.ending
            board.close(patience)
            self._last_log = board.serial.console.log
            self.output_trouble = board.serial.trouble
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def unused_disks(self) -> list[str]:
        """The files of disks that no driver of the guest's has taken up, from the start on."""
        blocks = zip(self.disks, self._blocks, strict=False)
        return [disk.path for disk, block in blocks if not block.taken_up]

    @property
    def unused_nets(self) -> list[str]:
        """The networks whose card no driver of the guest's has taken up, from the start on."""
        cards = zip(self.nets, self._cards, strict=False)
        return [net.kind for net, card in cards if not card.taken_up]

    # Switches

    @property
    def board(self) -> Board:
        """The machine's inside. Raises UsageError before :meth:`start` and after :meth:`close`."""
        if self._board is None:
            raise UsageError("this VM does not run")
        return self._board

    @property
    def engine(self) -> str:
        """The CPU engine that runs it, ``"kvm"`` or ``"soft"``; what was asked for before."""
        return self._board.engine.name if self._board is not None else self.engine_wanted

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        return self._board.power.ending if self._board is not None else self._ending

    @property
    def running(self) -> bool:
        """Whether it was started, has not ended and is not paused."""
        return self._board is not None and self.ending is None and not self.paused

    @property
    def paused(self) -> bool:
        """Whether its CPUs and its time stand still."""
        return self._board is not None and self._board.paused

    def pause(self) -> None:
        """Stop the CPUs and the guest's time."""
        self.board.pause()

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self.board.resume()

    def powerdown(self) -> bool:
        """Press the power button; False if the guest does not listen to it."""
        return self.board.power_button()

    def reset(self) -> None:
        """Press the reset button."""
        self.board.reset()

    def kill(self) -> None:
        """End the VM at once. Harmless when it has ended."""
        from kvmkit.board.power import Ending, EndKind

        if self._board is not None:
            self._board.power.end(Ending(EndKind.KILLED))

    def on_end(self, listener: Callable[[Ending], None]) -> None:
        """Call ``listener(ending)`` when it ends, on the thread that finds out; do not block it."""
        self._listeners.append(listener)
        if self._board is not None:
            self._board.power.on_end(listener)

    def on_report(self, listener: Callable[[str, str], None]) -> None:
        """Call ``listener(word, rest)`` for each line ``kvmkit: WORD REST`` of the guest's COM4.

        Our guests' init says ``ready`` when their command may have its input. The
        listener runs on a vCPU's thread and must be quick.
        """
        self._report_listeners.append(listener)
        if self._board is not None:
            self._board.serial.reports.listen(listener)

    # Console

    def send(self, data: bytes) -> None:
        """Type ``data`` at the console; it waits until the guest takes it."""
        self.board.serial.input.feed(data)

    @property
    def console_log(self) -> bytes:
        """The last 256 KiB the guest wrote to its console; also after the end."""
        return self._board.serial.console.log if self._board is not None else self._last_log

    def describe(self) -> str:
        """The VM in a few lines."""
        state = "paused" if self.paused else "running" if self.running else "not running"
        if self.ending is not None:
            state = f"ended: {self.ending.reason}"
        lines = [
            f"{self.name}: {state}",
            f"kernel  {self.kernel}",
            f"engine  {self.engine}, {self._board_config.cpus} CPUs",
            f"memory  {self._board_config.memory // MIB} MiB",
        ]
        if self._board is not None:
            lines[-1] += f", {self._board.ram.resident() // MIB} MiB of the host's in use"
            lines.append(f"up      {self._board.clock.now() / 1e9:.1f} s")
        return "\n".join(lines)

    # Making

    def _assemble(self, engine: Engine) -> Board:
        # Imported after the engine was made: for 5 ms after making its chips KVM takes no
        # memory (a grace period of its SRCU), and the import takes as long.
        try:
            from kvmkit.board.board import Board
        except BaseException:
            engine.close()
            raise
        source = None if self._snapshot is None else self._snapshot.fd
        return Board(self._board_config, engine, self._plan, source=source)

    def _make_engine(self) -> Engine:
        return make_engine(self.engine_wanted, self._board_config.cpus)

    def _plan(self, board: Board) -> BootPlan:
        from kvmkit.board.firmware import loader_addresses
        from kvmkit.boot.linux import plan_linux

        if self._image is None:  # a reset after a restored snapshot
            self._open_kernel()
        assert self._image is not None
        initrds: Any = self.initrds
        cache: Any = cache_directory()
        return plan_linux(
            self._image,
            initrds=initrds,
            command_line=self.cmdline,
            ram=board.ram.usable,
            acpi_rsdp=board.acpi.rsdp,
            addresses=loader_addresses(),
            cache=cache,
            seed=os.urandom(_SEED_SIZE),
        )

    def _open_kernel(self) -> None:
        from kvmkit.boot.image import open_kernel

        path: Any = self.kernel
        self._image = open_kernel(path)

    def _claim_name(self) -> None:
        from kvmkit.control.claim import claim_name
        from kvmkit.control.point import ControlPoint

        claim = claim_name(self.name, insist=self._named)
        self._name = claim.name
        self.control = ControlPoint(self, claim)

    def _open_log(self) -> None:
        log = self._kernel_log
        if log is None:
            return
        if isinstance(log, str | os.PathLike):
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                log = self._log_fd = os.open(log, flags, 0o644)
            except OSError as error:
                raise FileTrouble(f"{log}: the kernel log: {error.strerror}") from None
        self._board_config.kernel_log = (log,)

    def _open_disks(self) -> None:
        for disk in self.disks:
            self._blocks.append(disk.open())

    def _open_nets(self) -> None:
        # First of all: passt gets ready while the machine is made.
        for net in self.nets:
            self._cards.append(net.open())

    def _let_go(self) -> None:
        """Give the name back, close the log if it is ours, and the kernel, which is mapped."""
        control, self.control = self.control, None
        if control is not None:
            control.close()
        self._image = None
        for block in self._blocks:
            block.close()
        for card in self._cards:
            card.close()
        if self._snapshot is not None:
            self._snapshot.close()
        fd, self._log_fd = self._log_fd, -1
        if fd >= 0:
            os.close(fd)


def _disk(disk: PathLike | DiskOptions) -> DiskOptions:
    from kvmkit.backends.disk_options import DiskOptions, parse_disk

    return disk.check() if isinstance(disk, DiskOptions) else parse_disk(disk)


def _net(net: str | NetOptions) -> NetOptions:
    from kvmkit.backends.net.options import NetOptions, parse_net

    return net.check() if isinstance(net, NetOptions) else parse_net(net)


def make_engine(wanted: str, cpus: int) -> Engine:
    """The engine ``wanted``: ``"auto"`` is KVM where it runs kernels natively.

    Raises EngineUnavailable or PermissionTrouble.
    """
    if wanted == "auto":
        from kvmkit.engine.kvm.probe import probe

        wanted = "kvm" if probe().native else "soft"
    if wanted == "kvm":
        from kvmkit.engine.kvm.engine import KvmEngine

        return KvmEngine(cpus)
    try:
        from kvmkit.engine.soft.engine import SoftEngine
    except ImportError as error:
        raise EngineUnavailable(
            f"the software CPU is not built here: {error}", "kvmkit doctor says what is missing"
        ) from None
    return SoftEngine(cpus)


def memory_size(memory: int | str) -> int:
    """Bytes of ``memory``: a number of bytes, or text as ``"512M"``, ``"1.5G"``, ``"512"`` (MiB).

    Raises UsageError for anything else.
    """
    if isinstance(memory, int):
        return memory
    text = memory.strip().upper().removesuffix("IB")
    scale = _UNITS.get(text[-1:])
    number = text if scale is None else text[:-1]
    whole, _, fraction = number.partition(".")
    if not (whole + fraction).isdecimal() or not whole or len(number) > 20:
        raise UsageError(f"memory is a size such as 512M or 4G, not {memory!r}")
    scale = scale or MIB
    tens: int = 10 ** len(fraction)
    return int(whole) * scale + int(fraction or 0) * scale // tens


def command_line(given: str, *, log: bool = False) -> str:
    """The kernel command line: :data:`DEFAULTS` that ``given`` does not override, then ``given``.

    With ``log``, the kernel's messages also go to the second serial port.
    """
    before, _, _ = given.partition(" -- ")
    names = {word.partition("=")[0] for word in before.split()}
    words = [word for word in DEFAULTS if word.partition("=")[0] not in names]
    if log and "console" not in names:
        words.insert(0, LOG_CONSOLE)
    return " ".join([*words, given] if given else words)


def cache_directory() -> str | None:
    """Where unpacked kernels are kept; None where there is no cache that could be trusted."""
    from kvmkit.cache_home import own_cache

    return own_cache("kernels")
