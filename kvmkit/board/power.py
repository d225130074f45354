"""How a machine ends, as a value: why, the exit code, and what there is to say about it.

Exit codes, where a command's own status does not decide: 0 for a machine that
switched itself off or was ended by its user, 110 to 114 for one that failed,
124 for a time limit, as timeout(1) has it.
"""

from __future__ import annotations

import time
from threading import Condition

from kvmkit.named import Named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EndKind", "Ending", "Power"]


class EndKind(Named):
    """Why a VM runs no longer."""

    POWERED_OFF = "powered off"
    REBOOT = "rebooted"
    PANIC = "kernel panic"
    TRIPLE_FAULT = "triple fault"
    HUNG = "hung"
    TIMED_OUT = "timed out"
    EXITED = "exited"
    KILLED = "killed"
    ENGINE_ERROR = "engine error"


_EXIT_CODES = {
    EndKind.POWERED_OFF: 0,
    EndKind.REBOOT: 113,
    EndKind.PANIC: 110,
    EndKind.TRIPLE_FAULT: 111,
    EndKind.HUNG: 112,
    EndKind.TIMED_OUT: 124,
    EndKind.KILLED: 0,
    EndKind.ENGINE_ERROR: 114,
}

_REASONS = {
    EndKind.POWERED_OFF: "the guest powered off",
    EndKind.REBOOT: "the guest asked for a reboot",
    EndKind.PANIC: "the guest's kernel panicked",
    EndKind.TRIPLE_FAULT: "the guest's CPU met a triple fault",
    EndKind.HUNG: "the guest hangs",
    EndKind.TIMED_OUT: "the time limit was reached",
    EndKind.EXITED: "the guest's command exited",
    EndKind.KILLED: "the VM was ended by its user",
    EndKind.ENGINE_ERROR: "the CPU engine cannot go on",
}


class Ending:
    """The end of a VM: immutable, comparable.

    ``reason`` is one line for people, ``detail`` what else is known (the last
    lines of the log, registers) and may be empty; ``status`` is the command's
    for EXITED, 0 to 255.
    """

    __slots__ = ("detail", "kind", "reason", "status")

    kind: EndKind
    reason: str
    detail: str
    status: int

    def __init__(self, kind: EndKind, reason: str = "", detail: str = "", status: int = 0) -> None:
        put = super().__setattr__
        put("kind", kind)
        put("status", status & 0xFF)
        if not reason:
            reason = _REASONS[kind]
            if kind is EndKind.EXITED:
                reason = f"{reason} with status {status & 0xFF}"
        put("reason", reason)
        put("detail", detail)

    @property
    def exit_code(self) -> int:
        """What the shell gets."""
        return self.status if self.kind is EndKind.EXITED else _EXIT_CODES[self.kind]

    @property
    def ok(self) -> bool:
        """Whether the machine ended as it should: exit code 0."""
        return self.exit_code == 0

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Ending does not change: {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ending):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"Ending({self.kind.name}, {self.reason!r}, exit_code={self.exit_code})"

    def __str__(self) -> str:
        return self.reason

    def _values(self) -> tuple[EndKind, str, str, int]:
        return self.kind, self.reason, self.detail, self.status


class Power:
    """The machine's end: the first one told counts, later ones are dropped."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._ending: Ending | None = None
        self._listeners: list[Callable[[Ending], None]] = []

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        return self._ending

    def end(self, ending: Ending) -> bool:
        """Note the end of the machine; False if it had ended already. From any thread."""
        with self._changed:
            if self._ending is not None:
                return False
            self._ending = ending
            listeners = tuple(self._listeners)
            self._changed.notify_all()
        for listener in listeners:
            listener(ending)
        return True

    def on_end(self, listener: Callable[[Ending], None]) -> None:
        """Call ``listener(ending)`` on the thread that ends the machine; it must not block."""
        self._listeners.append(listener)

    def wait(self, timeout: float | None = None) -> Ending | None:
        """Wait for the end, at most ``timeout`` seconds; None if it did not come."""
        limit = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._ending is None:
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return self._ending
