"""A running VM's end of its directory: state and info files, and the door for QMP clients.

Cheap on purpose: a VM nobody asks about pays for a directory, a bound socket and
two small files. The server behind the socket is imported when somebody connects.
"""

from __future__ import annotations

import os
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.board.board import Board
    from kvmkit.board.power import Ending
    from kvmkit.control.claim import Claim
    from kvmkit.control.server import Server
    from kvmkit.vm import VM

__all__ = ["ControlPoint"]

_COMM = 15  # bytes of a thread's name that the kernel keeps (prctl(2), PR_SET_NAME)


class ControlPoint:
    """What stands between ``vm`` and those who look for it; owns ``claim``."""

    def __init__(self, vm: VM, claim: Claim) -> None:
        self.vm = vm
        self.claim = claim
        self.started = monotonic()
        self._server: Server | None = None
        self._board: Board | None = None

    def watch(self, board: Board) -> None:
        """Join the machine; before it starts."""
        # late: this file is imported before the board, which is while KVM settles its chips
        from kvmkit.board.loop import READABLE

        self._board = board
        assert self.claim.socket is not None
        board.loop.watch(self.claim.socket.fileno(), READABLE, self._knock)
        board.observers.append(self._observed)
        board.power.on_end(self._ended)
        if hasattr(board.engine, "thread_name"):
            board.engine.thread_name = _thread_name(self.claim.name, "{}", digits=2)
        board.loop.call_soon(self._publish)
        self.claim.set_state("running")

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return monotonic() - self.started

    def rename(self, name: str) -> None:
        """Take another name, also for the threads. Raises UsageError or NameTaken."""
        self.claim.rename(name)
        self._name_threads()

    def close(self) -> None:
        """Let clients go and give the name back. Once the loop has stopped; callable twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.claim.release()

    # On the I/O thread

    def _knock(self, events: int) -> None:
        """The first client: from now on the server answers the door."""
        from kvmkit.control.server import Server

        assert self._board is not None and self.claim.socket is not None
        self._server = Server(self.vm, self._board, self.claim.socket)
        self._server.answer(events)

    def _publish(self) -> None:
        """Write what does not change. By hand: the ``json`` package takes 3 ms to import."""
        from _json import encode_basestring_ascii as quote

        board, vm = self._board, self.vm
        assert board is not None
        threads = self._name_threads()
        fields = {
            "pid": os.getpid(),
            "kernel": quote(os.path.abspath(vm.kernel)),
            "engine": quote(board.engine.name),
            "cpus": board.config.cpus,
            "memory": board.config.memory,
            "memory_fd": board.ram.fd,
            "threads": threads,
            "started": self.started,
        }
        body = ", ".join(f'"{key}": {value}' for key, value in fields.items())
        self.claim.set_info(f"{{{body}}}\n")

    def _name_threads(self) -> list[int]:
        """Call the threads after the VM; returns their numbers, the CPUs' first."""
        assert self._board is not None
        threads = list(getattr(self._board.engine, "threads", ()))
        single = len(threads) == 1 and self._board.config.cpus > 1
        words = ["cpu"] if single else [str(index) for index in range(len(threads))]
        numbers = [thread.native_id for thread in threads]
        for number, word in zip((*numbers, None), (*words, "io"), strict=True):
            place = "thread-self" if number is None else f"self/task/{number}"
            try:
                with open(f"/proc/{place}/comm", "wb") as file:
                    file.write(_thread_name(self.claim.name, word).encode())
            except OSError:
                pass  # only a name in ps
        from threading import get_native_id

        return [*(number for number in numbers if number is not None), get_native_id()]

    # On any thread

    def _observed(self, event: str, guest: bool) -> None:
        if event == "stop":
            self.claim.set_state("paused")
        elif event == "resume":
            self.claim.set_state("running")

    def _ended(self, ending: Ending) -> None:
        self.claim.set_state("ended")


def _thread_name(name: str, word: str, *, digits: int = 0) -> str:
    """``name/word`` as far as it fits; a place to fill in counts ``digits``."""
    room = _COMM - 1 - (digits or len(word))
    return f"{name[:room]}/{word}"
