"""One VM from the command line: what to boot, who sits in front of it, how it ended."""

from __future__ import annotations

import gc
import os
import sys

from kvmkit.backends.terminal import Terminal
from kvmkit.cli.console import Console, Stopped, stopping_signals
from kvmkit.errors import FileTrouble, UsageError
from kvmkit.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.board.power import Ending
    from kvmkit.cli.options import Parsed

__all__ = ["Stage", "find_kernel", "first_kernel", "report", "run", "tell_unused"]

QUIET = "loglevel=1"
"""For a command's output to be only that. Not 0, with which even a panic is
silent: Linux ``include/linux/printk.h``, ``console_verbose()``."""

_NEEDS = "  hint: its kernel needs CONFIG_VIRTIO_{} and CONFIG_VIRTIO_PCI, built in or loaded\n"

HASTE = 0.1
"""Seconds the reader of our output gets when a signal has told us to end."""

LOG_ONLY = "console=ttyS1 KVMKIT_CONSOLE=ttyS0"
"""With a kernel log: the kernel's messages to it, the command to the console."""

SCRIPT = ["sh", "-c", ". /proc/self/fd/0"]
"""A shell that reads commands from its input. Plain ``sh`` would take the guest's
terminal, which carries the pipe, for a person and greet him."""

ENDS_OF_INPUT = 32
"""A pipe ends for everyone who reads on, a terminal once per Ctrl-d."""


def run(options: Parsed) -> int:
    """Boot, attend, report; the exit code."""
    try:
        return _run(options)
    except Stopped as stopped:  # while the VM was prepared
        return 128 + stopped.number


def _run(options: Parsed) -> int:
    with Terminal() as terminal, stopping_signals(terminal.restore) as signals:
        with Stage(options, terminal) as stage:
            vm = stage.make_vm()
            console = Console(terminal, vm, vm.send, lambda *size: _resize(vm, *size))
            vm.on_end(lambda ending: console.end())
            stage.prepare(vm)
            patience: float | None = HASTE
            try:
                vm.start()
                stage.connect(vm)
                gc.freeze()  # what is here now stays: it need not be looked through
                gc.enable()
                console.serve()
                code, patience = None, None
            except Stopped as stopped:
                code = 128 + stopped.number
            finally:
                signals.last()
                vm.close(patience)
            terminal.restore()
        ending = vm.ending
        if code is not None or ending is None:
            return code or 0
        report(ending, command=options.rest is not None, fresh_line=_fresh_line(vm, terminal))
        if vm.output_trouble:
            _tell(f"kvmkit: output was lost: {vm.output_trouble}\n")
        tell_unused(vm)
        return ending.exit_code or (FileTrouble.exit_code if vm.output_trouble else 0)


class Stage:
    """What a VM is started with, from the options; files are let go of at the end."""

    def __init__(self, options: Parsed, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal
        self._files: list[int] = []
        self._attached = False
        self._to_terminal = options["console"] == "tty"
        self.mode = self._choose_mode()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            os.close(self._files.pop())

    def make_vm(self) -> VM:
        """The VM, not started. Raises a KvmkitError for what is not there."""
        options = self._options
        more = {} if options["mem"] is None else {"memory": options["mem"]}
        command = self._command()
        kernel = find_kernel(options["kernel"], options.words, command is not None)
        vm = VM(
            kernel,
            initrd=self._initrds(kernel, command),
            cmdline=self._parameters(command),
            cpus=options["cpus"],
            engine=options["engine"],
            name=options["name"],
            console=self._console(),
            kernel_log=options["kernel_log"],
            timeout=options["timeout"],
            hang_timeout=options["hang_timeout"],
            reboot=not options["no_reboot"],
            disks=options["disk"],
            nets=self._nets(),
            **more,
        )
        if options["device"]:
            from kvmkit.board.load_device import load_device

            for name, arguments in options["device"]:
                vm.add_device(load_device(name, arguments))
        return vm

    def prepare(self, vm: VM) -> None:
        """Join what is to be joined before the start: a pipe waits until the guest is ready."""
        if self.mode == "pipe":
            vm.on_report(lambda word, rest: self._attach_pipe(vm) if word == "ready" else None)

    def connect(self, vm: VM) -> None:
        """Join what needs a machine that is there: a look at what goes to the screen."""
        if self.mode == "tty":
            vm.board.serial.console.add_tap(self._terminal.note)

    def _attach_pipe(self, vm: VM) -> None:
        if self._attached:  # a guest may say often that it is ready
            return
        self._attached = True
        from kvmkit.guest.console_input import END_OF_INPUT, encode_input

        entry = vm.board.serial.input
        entry.attach(
            self._terminal.input,
            filter=encode_input,
            at_end=lambda: entry.feed(END_OF_INPUT * ENDS_OF_INPUT),
        )

    def _choose_mode(self) -> str:
        """How the guest sees its console, one of :data:`kvmkit.guest.command.MODES`."""
        if not self._to_terminal:
            return "null"
        if self._terminal.is_tty:
            return "tty"
        if not self._terminal.foreground or _is_null(self._terminal.input):
            return "null"
        return "pipe"

    def _command(self) -> list[str] | None:
        """What the guest is to run: the words after ``--``, or a shell that reads a pipe."""
        rest = self._options.rest
        if rest is not None:
            if not rest:
                raise UsageError("-- is followed by a command", "kvmkit run -- uname -a")
            return rest
        if self.mode == "pipe" and not self._options["initrd"]:
            return SCRIPT
        return None

    def _initrds(self, kernel: str, command: list[str] | None) -> list[str]:
        """The user's archives; ours as well for a command, and alone if there are none."""
        given: list[str] = self._options["initrd"]
        if given and command is None:
            return given
        from kvmkit.images import default_busybox

        busybox = default_busybox()
        if busybox is None:
            raise FileTrouble(
                "no busybox for the guest, neither pulled nor in /bin",
                "kvmkit image pull busybox-static, or name an initrd with -i",
            )
        archives = [*given, self._initramfs(busybox)]
        drivers = self._drivers()
        if drivers:
            from kvmkit.guest.driver_archive import driver_archive

            archives += driver_archive(kernel, drivers, self._memory_file)
        if command is not None:
            from kvmkit.guest.command import command_archive

            archive = command_archive(command, mode=self.mode)
            archives.append(self._memory_file(archive))
        return archives

    def _drivers(self) -> list[str]:
        """The kinds of devices that the guest must have drivers for."""
        kinds = ["block"] if self._options["disk"] else []
        return [*kinds, "network"] if self._nets() else kinds

    def _nets(self) -> tuple[str, ...]:
        """The networks, as a VM takes them."""
        options = self._options
        if not options["net"] and not options["publish"]:
            return ()
        from kvmkit.backends.net.options import net_words

        return net_words(options["net"], options["publish"])

    def _initramfs(self, busybox: str) -> str:
        """Our archive, from the cache, or made afresh where the cache cannot be used."""
        from kvmkit.guest.initramfs import busybox_initramfs, cached_initramfs

        cache = _cache_directory()
        if cache is not None:
            try:
                return cached_initramfs(busybox, cache)
            except FileTrouble:
                pass  # it cannot be written; or busybox is none, which is told below
        return self._memory_file(busybox_initramfs(busybox))

    def _terminal_parameters(self) -> list[str]:
        """What the guest's init is to know of the terminal. The kernel hands words with an
        equals sign that it does not know to init as environment (its ``kernel-parameters.rst``)."""
        size = self._terminal.size()
        words = [f"KVMKIT_ROWS={size[0]} KVMKIT_COLUMNS={size[1]}"] if size else []
        term = os.environ.get("TERM", "")
        if term.isascii() and term.replace("-", "").replace("+", "").replace(".", "").isalnum():
            words.append(f"TERM={term}")
        return words

    def _parameters(self, command: list[str] | None) -> str:
        """The kernel's parameters: ours, then the user's, which win."""
        given = " ".join(self._options["params"])
        words = []
        if command is not None:
            log = self._options["kernel_log"]
            words.append(QUIET if log is None else LOG_ONLY)
        nets = self._nets()
        if nets:
            from kvmkit.backends.net.options import parse_net

            told = [parse_net(net).guest_word(index) for index, net in enumerate(nets)]
            words.append(f"KVMKIT_NET={';'.join(told)}")
        if self.mode == "tty" and not self._options["initrd"]:
            words += self._terminal_parameters()
        return " ".join(filter(None, [*words, given]))

    def _console(self) -> int | None:
        where = self._options["console"]
        if where == "none":
            return None
        if self._to_terminal:
            return self._terminal.output
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
            self._files.append(os.open(where, flags, 0o644))
        except OSError as error:
            raise FileTrouble(f"{where}: the console's file: {error.strerror}") from None
        return self._files[-1]

    def _memory_file(self, data: bytes) -> str:
        """``data`` as a file that exists in this process only."""
        descriptor = os.memfd_create("kvmkit-command")
        self._files.append(descriptor)
        while data:
            data = data[os.write(descriptor, data) :]
        return f"/proc/self/fd/{descriptor}"


def find_kernel(named: str | None, words: list[str], has_command: bool) -> str:
    """The kernel's path: named with -k or as a word, or the first that is there.

    Raises UsageError for two kernels, BadKernel when none is found.
    """
    if words and named is not None:
        raise UsageError(f"two kernels, {named!r} and {words[0]!r}; expected one")
    name = words[0] if words else named
    if name is None:
        return first_kernel()
    if not os.path.lexists(name):
        if "/" not in name:
            from kvmkit.images import NoSuchImage, get_image

            try:
                image = get_image(name)
            except NoSuchImage:
                pass
            else:
                if image.kernel:
                    return image.kernel
        if words and not has_command:
            from kvmkit.errors import BadKernel

            raise BadKernel(
                f"{name}: the kernel does not exist",
                f"to run a command in the guest: kvmkit run -- {name}",
            )
    return name


def first_kernel() -> str:
    """The kernel that is booted when none is named. Raises BadKernel when there is none."""
    from kvmkit.boot.find import find_kernel as find
    from kvmkit.images import default_image

    image = default_image()
    return find([image.kernel] if image is not None and image.kernel else [])


def report(ending: Ending, *, command: bool, fresh_line: bool) -> None:
    """Tell on stderr how the VM ended, unless a command's own status says it all."""
    from kvmkit.board.power import EndKind

    if ending.kind in (EndKind.EXITED, EndKind.KILLED):
        return
    if ending.kind is EndKind.POWERED_OFF and command:
        return
    lines = [f"kvmkit: {_plain(ending.reason)}"]
    lines += [f"  {_plain(line)}" for line in ending.detail.splitlines()]
    _tell(("" if fresh_line else "\n") + "\n".join(lines) + "\n")


def tell_unused(vm: VM) -> None:
    """Say which devices no driver has taken up."""
    for path in vm.unused_disks:
        _tell(f"kvmkit: the guest has no driver for the disk {path}\n{_NEEDS.format('BLK')}")
    for net in vm.unused_nets:
        _tell(f"kvmkit: the guest has no driver for the network {net}\n{_NEEDS.format('NET')}")


def _plain(text: str) -> str:
    """Words of a guest's without what would steer the terminal that shows them."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _tell(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass


def _fresh_line(vm: VM, terminal: Terminal) -> bool:
    """Whether the cursor stands at the beginning of a line, as far as we know."""
    log = vm.console_log
    return not terminal.is_tty or not log or log.endswith(b"\n")


def _resize(vm: VM, rows: int, columns: int) -> None:
    """Tell the guest on COM3, if it listens there: a line "rows columns"."""
    port = vm.board.serial.ports[2]
    with vm.board.lock:
        if port.listening:
            port.receive(f"{rows} {columns}\n".encode())


def _is_null(descriptor: int) -> bool:
    """Whether it is /dev/null: nothing will ever be typed."""
    try:
        return os.fstat(descriptor).st_rdev == os.stat(os.devnull).st_rdev
    except OSError:
        return True


def _cache_directory() -> str | None:
    from kvmkit.cache_home import own_cache

    return own_cache("initramfs")
