"""``kvmkit run`` with directories of the host: a program in the guest as if it were here.

The machine gets the shares and a console port; the guest's first process mounts them
and starts the program, whose streams, signals and status come over the port
(``docs/guest-protocol.md``). The kernel's own console stays out of it.
"""

from __future__ import annotations

import gc
import os

from kvmkit.backends.terminal import Terminal
from kvmkit.cli.console import Console, Stopped, stopping_signals
from kvmkit.cli.guest_command import GuestCommand
from kvmkit.cli.session import Stage, _tell, find_kernel, report, tell_unused
from kvmkit.errors import FileTrouble, KvmkitError, UsageError
from kvmkit.guest.instructions import agent_instructions, instructions_archive, order_records
from kvmkit.guest.root import plan_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.cli.options import Parsed
    from kvmkit.guest.root import Plan
    from kvmkit.vm import VM

__all__ = ["AgentStage", "run", "suits"]

HOST = "host"
"""The word for this machine's own root."""

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TERM", "TZ")
"""What a program in the guest gets of our environment, and all of ``LC_...``."""

KEPT_ELSEWHERE = ("LANG", "LANGUAGE", "TERM", "TZ")
"""The same where the files are not this host's."""

FAREWELL = 15.0
"""Seconds for a guest to write what it has to write."""

ENODEV = 19
LAST_WORDS = 2.0
"""Seconds from the agent's end to the guest's: a reboot, a panic."""

SHELL = "/bin/sh"


def suits(options: Parsed) -> bool:
    """Whether a plain command can be run this way: the agent is there, and the kernel is
    known to have what its port takes. Raises a KvmkitError for a kernel that is not there."""
    given = " ".join(options["params"]).split()
    if not options.rest or options["console"] != "tty":
        return False
    if any(word.startswith(("init=", "rdinit=")) for word in given):
        return False
    from kvmkit.guest.driver_archive import driver_archive
    from kvmkit.guest.initramfs import agent_program
    from kvmkit.guest.modules import find_module_tree

    kernel = find_kernel(options["kernel"], options.words, True)
    if agent_program() is None or find_module_tree(kernel) is None:
        return False
    try:
        driver_archive(kernel, ["console"], lambda archive: "")
    except KvmkitError:
        return False
    return True


def run(options: Parsed) -> int:
    """Boot, run the program, report; the exit code."""
    try:
        return _run(options)
    except Stopped as stopped:  # while the VM was prepared
        return 128 + stopped.number


def _run(options: Parsed) -> int:
    from kvmkit.board.power import EndKind

    with Terminal() as terminal, stopping_signals(terminal.restore) as signals:
        stage = AgentStage(options, terminal)
        with stage:
            vm = stage.make_vm()
            command = stage.command
            code: int | None = None
            lost = ""
            try:
                vm.start()
                gc.freeze()  # what is here now stays: it need not be looked through
                gc.enable()
                lost = stage.attend(vm)
                if command.status is None:
                    vm.wait(LAST_WORDS)
            except Stopped as stopped:
                code = 128 + stopped.number
            finally:
                signals.last()
                terminal.restore()
                if stage.keeps and vm.ending is None:
                    command.power_off()
                    vm.wait(FAREWELL)
                vm.close(0)
            if code is not None:
                return code
            if lost:
                _tell(f"kvmkit: output was lost: {lost}\n")
            tell_unused(vm)
            if command.status is not None:
                return command.status or (FileTrouble.exit_code if lost else 0)
            stage.explain()
            ending = vm.ending
            if ending is None or (ending.kind is EndKind.KILLED and command.problem):
                raise KvmkitError(command.problem or "the program did not start")
            report(ending, command=True, fresh_line=stage.streams != "tty")
            code = ending.exit_code
            return code


class AgentStage(Stage):
    """What such a VM is started with."""

    def __init__(self, options: Parsed, terminal: Terminal) -> None:
        options.values["no_reboot"] = True  # a program is run once
        super().__init__(options, terminal)
        self._troubles: list[str] = []
        self.streams = self._choose_streams()
        self._plan = self._make_plan()
        self.command = GuestCommand(self._order(), terminal.wake)

    @property
    def keeps(self) -> bool:
        """Whether something that the guest writes is to be there after it."""
        words = [set(disk.split(",")[1:]) for disk in self._options["disk"]]
        return self._plan.keeps or not all(each & {"ro", "snapshot"} for each in words)

    # What is asked for

    def _make_plan(self) -> Plan:
        options = self._options
        root: str | None = options["root"]
        if root is not None:
            root = "/" if root == HOST else os.path.abspath(root)
        shares = [(os.path.realpath(path), True) for path in options["ro"]]
        shares += [(os.path.realpath(path), False) for path in options["rw"]]
        for path, _ in [(root or "/", True), *shares]:
            if not os.path.isdir(path):
                raise FileTrouble(f"{path}: expected a directory to share, found none")
        return plan_root(root, shares, temporary=os.path.isdir(f"{root}/tmp"))

    @property
    def _is_host(self) -> bool:
        return bool(self._options["root"] == HOST)

    def _order(self) -> list[tuple[str, str]]:
        options = self._options
        user, groups = options["user"], None
        names = KEPT if self._is_host and user is None else KEPT_ELSEWHERE
        if self._is_host and user is not None:
            names = ("PATH", *names)
        env = {name: os.environ[name] for name in names if name in os.environ}
        env |= {name: text for name, text in os.environ.items() if name.startswith("LC_")}
        for name, _, text in [word.partition("=") for word in options["env"]]:
            env[name] = text
        if self._is_host and user is None:
            user = f"{os.geteuid()}:{os.getegid()}"
            groups = os.getgroups()[:32]
        return order_records(
            self._program(),
            env,
            self._directory(),
            mode=self.streams,
            user=user,
            groups=groups,
            size=self._terminal.size() if self.streams == "tty" else None,
        )

    def _program(self) -> list[str]:
        rest: list[str] | None = self._options.rest
        if rest is not None:
            if not rest:
                raise UsageError("-- is followed by a command", "kvmkit run --root host -- ls")
            return rest
        shell = os.environ.get("SHELL", SHELL) if self._is_host else SHELL
        return [shell]

    def _directory(self) -> str | None:
        """Where the program starts: here, if the guest has this directory."""
        if self._options["cwd"] is not None:
            return str(self._options["cwd"])
        here = os.getcwd()
        places = [share.path for share in self._plan.shares if share.tag != "kvmkit-root"]
        if self._is_host or any(f"{here}/".startswith(f"{place}/") for place in places):
            return here
        return None

    def _choose_streams(self) -> str:
        """A terminal where all three streams are this one; else pipes."""
        terminal = self._terminal
        if terminal.is_tty and os.isatty(2) and terminal.foreground:
            return "tty"
        try:
            os.fstat(terminal.input)
        except OSError:
            return "null"
        return "pipe" if terminal.foreground else "null"

    # The machine

    def make_vm(self) -> VM:
        """See Stage."""
        from kvmkit.backends.fuse.share import Share
        from kvmkit.guest.protocol import PORT_NAME
        from kvmkit.virtio.console import Console as Ports

        vm = super().make_vm()
        told = agent_instructions(hostname=vm.name, mounts=self._plan.mounts, root=self._plan.root)
        vm.initrds = (*vm.initrds, self._memory_file(instructions_archive(told)))
        ports = Ports()
        ports.add_port(PORT_NAME, self.command.port)
        vm.add_virtio(ports)
        own = os.geteuid()
        owner = own if own and self._is_host else None
        for share in self._plan.shares:
            device = Share(share.path, tag=share.tag, read_only=share.read_only, owner=owner)
            vm.add_virtio(device)
        vm.on_report(self._note)
        return vm

    def _choose_mode(self) -> str:
        """The serial console carries no program."""
        return "null"

    def _command(self) -> list[str] | None:
        return self._options.rest or [SHELL]

    def _console(self) -> int | None:
        return None if self._to_terminal else super()._console()

    def _initrds(self, kernel: str, command: list[str] | None) -> list[str]:
        from kvmkit.guest.driver_archive import driver_archive

        archives: list[str] = [*self._options["initrd"], self._first_root()]
        return archives + driver_archive(kernel, self._drivers(), self._memory_file)

    def _first_root(self) -> str:
        from kvmkit.guest.initramfs import agent_initramfs, agent_program

        if agent_program() is None:
            raise FileTrouble(
                "the guest's agent was not built with this package, and --root, --rw, --ro, "
                "--user, --env and --cwd need it",
                "install a C compiler and then kvmkit again",
            )
        if self._plan.root is None:
            from kvmkit.images import default_busybox

            busybox = default_busybox()
            if busybox is None:
                raise FileTrouble(
                    "no busybox for the guest, neither pulled nor in /bin",
                    "kvmkit image pull busybox-static, or --root host",
                )
            return self._initramfs(busybox)
        archive = agent_initramfs()
        assert archive is not None
        return self._memory_file(archive)

    def _drivers(self) -> list[str]:
        kinds = ["console", *super()._drivers()]
        if self._plan.shares:
            kinds.append("fs")
        if self._plan.root is not None:
            kinds.append("overlay")
        return kinds

    # While it runs

    def attend(self, vm: VM) -> str:
        """Move the program's streams until its end; why output was lost, or nothing.
        Raises Stopped."""
        command, terminal = self.command, self._terminal

        if self.streams == "tty":
            return self._attend_terminal(vm)
        from kvmkit.cli.streams import Streams

        def ended() -> None:
            command.gone = True
            terminal.wake()

        vm.on_end(lambda ending: ended())
        source = None if self.streams == "null" else terminal.input
        streams = Streams(command, terminal.wake_descriptor, terminal.wake, terminal.woken, source)
        if vm.ending is not None:
            ended()
        streams.serve()
        return streams.trouble

    def _attend_terminal(self, vm: VM) -> str:
        command, terminal = self.command, self._terminal

        def put(stream: int, data: bytes) -> None:
            terminal.note(data)
            terminal.write(data)
            command.taken(stream, len(data))

        def woken() -> None:
            command.attend()
            if command.ended:
                console.end()

        command.on_output = put
        terminal.raw_output = True
        console = Console(
            terminal, vm, command.write, command.resize, woken=woken, signalled=command.signal
        )
        vm.on_end(lambda ending: console.end())
        if vm.ending is not None:
            console.end()
        console.serve()
        command.attend()
        return ""

    # What went wrong

    def _note(self, word: str, rest: str) -> None:
        # On a vCPU's thread. A guest may say a lot.
        if word in ("trouble", "failed") and len(self._troubles) < 16:
            self._troubles.append(f"{word} {rest}")

    def explain(self) -> None:
        """Raise what the guest's first process complained about, if it gave up."""
        from kvmkit.guest.modules import MissingDriver

        for trouble in self._troubles:
            word, _, rest = trouble.partition(" ")
            what, _, more = rest.partition(" ")
            target, _, number = more.rpartition(" ")
            if word == "failed" and "console port" in rest:
                raise MissingDriver(
                    "the guest's kernel has no console port for its agent",
                    "Build it with CONFIG_VIRTIO_CONSOLE and CONFIG_VIRTIO_PCI (=y or =m).",
                )
            if word == "failed":
                raise KvmkitError(f"the guest cannot go on: {rest}")
            if what in ("mount", "root", "move") and number.isdigit():
                self._explain_mount(target, int(number))

    def _explain_mount(self, target: str, number: int) -> None:
        from kvmkit.guest.drivers import OPTIONS
        from kvmkit.guest.modules import MissingDriver

        kind = next((m.type for m in self._plan.mounts if m.target == target), "none")
        message = f"the guest cannot mount {target} ({kind}): {os.strerror(number)}"
        if kind in OPTIONS and number == ENODEV:
            raise MissingDriver(message, f"Build its kernel with {OPTIONS[kind]} (=y or =m).")
        raise KvmkitError(message)
