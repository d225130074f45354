"""A guest that waits for orders, booted once and restored as often as one likes.

The guest is our initramfs with the agent, which takes its orders on COM3
(``docs/guest-protocol.md``). Booted, it is saved where the agent has said hello; from
then on a fresh one is a matter of milliseconds.
"""

from __future__ import annotations

import os
from threading import Event

from kvmkit.errors import CommandTimeout, EngineUnavailable, FileTrouble, ending_error
from kvmkit.frozen import Record
from kvmkit.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from kvmkit.guest.client import AgentClient, Session

__all__ = ["Done", "ReadyVM", "boot", "restored"]

LINK = "/dev/ttyS2"
BOOT_PATIENCE = 60.0
"""Seconds until the agent has said hello."""

TIMEOUT = 60.0
"""Seconds a program may run, unless told otherwise."""


class Done(Record):
    """A program that ran in the guest, as ``subprocess.CompletedProcess`` tells it."""

    args: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The output as text, without the last line's end."""
        return self.stdout.decode(errors="replace").rstrip("\n")


class ReadyVM(VM):
    """A VM whose guest takes orders: :meth:`execute`. Made by :func:`boot` or :func:`restored`."""

    _client: AgentClient
    _answered: Event

    def join_agent(self, *, opened: bool) -> None:
        """Talk with the agent; ``opened`` if it was there before us. After the start.

        Raises GuestEnded or CommandTimeout when it does not answer.
        """
        from kvmkit.guest.client import AgentClient

        serial = self.board.serial
        self._answered = Event()
        self._client = AgentClient(serial.link_input.feed, lambda client: self._answered.set())
        self.on_end(lambda ending: self._answered.set())
        with self.board.lock:
            serial.on_link = self._client.receive
            if opened:
                self._client.hello()

    def wait_ready(self, timeout: float = BOOT_PATIENCE) -> None:
        """Until the agent has said hello. Raises GuestEnded or CommandTimeout."""
        if not self._answered.wait(timeout):
            raise CommandTimeout(f"the guest's agent did not answer within {timeout:g} s")
        self._look_at_end()

    def execute(
        self,
        args: Sequence[str] | str,
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = TIMEOUT,
        check: bool = False,
    ) -> Done:
        """Run a program in the guest to its end; text is a line for its shell.

        Raises CommandTimeout (the program is killed), GuestEnded when the guest ends
        first, and ``subprocess.CalledProcessError`` with ``check`` for a status that is not 0.
        """
        from kvmkit.guest.instructions import order_records

        words = ["sh", "-c", args] if isinstance(args, str) else list(args)
        self.wait_ready()
        streams: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        over = Event()
        self.on_end(lambda ending: over.set())
        order = order_records(words, env, cwd, mode="pipe")
        with self.board.lock:
            session = self._client.start(
                order, lambda stream, data: streams[stream].extend(data), lambda _: over.set()
            )
            if input:
                session.write(input)
            session.close_input()
        if not over.wait(timeout):
            with self.board.lock:
                session.signal(9)
                session.close()
            raise CommandTimeout(f"{words[0]} did not end within {timeout:g} s")
        return self._outcome(words, session, streams, check)

    def begin(
        self,
        order: list[tuple[str, str]],
        on_output: Callable[[int, bytes], None],
        on_end: Callable[[Session], None],
    ) -> Session:
        """Start a program; see :meth:`kvmkit.guest.client.AgentClient.start`. The callables
        run under the board's lock, which the session's methods need as well."""
        self.wait_ready()
        with self.board.lock:
            return self._client.start(order, on_output, on_end)

    def _outcome(
        self, words: list[str], session: Session, streams: dict[int, bytearray], check: bool
    ) -> Done:
        if session.status is None:
            self._look_at_end()
            raise FileTrouble(f"{words[0]} cannot be run in the guest: {session.problem}")
        output, errors = bytes(streams[1]), bytes(streams[2])
        if check and session.status:
            from subprocess import CalledProcessError

            raise CalledProcessError(session.status, words, output, errors)
        return Done(tuple(words), session.status, output, errors)

    def _look_at_end(self) -> None:
        if self.ending is not None:
            raise ending_error(self.ending)


def boot(kernel: str | os.PathLike[str], folder: str, **options: Any) -> ReadyVM:
    """A guest that was booted and waits for orders; ``folder`` keeps a file of its initrd.

    ``options`` are those of :class:`kvmkit.VM`; ``initrd`` comes behind ours. Raises what
    starting a VM raises, GuestEnded and CommandTimeout.
    """
    given = options.pop("initrd", ())
    more = [given] if isinstance(given, str | os.PathLike) else list(given)
    vm = ReadyVM(kernel, initrd=[_initrd(folder), *more], **options)
    _run(vm, opened=False)
    return vm


def restored(path: str | os.PathLike[str], **options: Any) -> ReadyVM:
    """A guest that waits for orders, as it was when it was saved at ``path``; see VM.restore."""
    vm = ReadyVM.restore(path, **options)
    assert isinstance(vm, ReadyVM)
    _run(vm, opened=True)
    return vm


def _run(vm: ReadyVM, *, opened: bool) -> None:
    try:
        vm.start()
        vm.join_agent(opened=opened)
        vm.wait_ready()
    except BaseException:
        vm.close()
        raise


def _initrd(folder: str) -> str:
    """The archive: busybox, the agent, and the instruction to listen on COM3."""
    from kvmkit.guest.initramfs import agent_program, busybox_initramfs
    from kvmkit.guest.instructions import agent_instructions, instructions_archive
    from kvmkit.images import default_busybox

    busybox = default_busybox()
    if busybox is None:
        raise FileTrouble(
            "no busybox for the guest, neither pulled nor in /bin",
            "kvmkit image pull busybox-static",
        )
    if agent_program() is None:
        raise EngineUnavailable("the guest's agent was not built with this kvmkit")
    path = os.path.join(folder, "ready.cpio")
    data = busybox_initramfs(busybox)
    data += bytes(-len(data) % 4) + instructions_archive(agent_instructions(link=LINK))
    aside = f"{path}.{os.getpid()}"
    with open(aside, "wb") as file:
        file.write(data)
    os.replace(aside, path)
    return path
