"""What can be seen and heard of a VM: events, registers, memory, console.

:class:`View` is the part of :class:`kvmkit.VM` that looks; ``kvmkit/vm.py`` has
the part that acts.
"""

from __future__ import annotations

from _thread import get_ident
from time import monotonic

from kvmkit.errors import (
    BootTimeout,
    CommandTimeout,
    GuestAddressError,
    UsageError,
    ending_error,
)
from kvmkit.events import EVENTS, Events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.board.power import Ending
    from kvmkit.control.point import ControlPoint
    from kvmkit.engine.cpu import CpuState
    from kvmkit.events import Event
    from kvmkit.expect import ConsoleView

__all__ = ["MemoryView", "VcpuView", "View"]

_POLL = 0.02  # seconds between two looks at what tells nobody that it changed
_LOOK_AT_CPUS = 0.1
_HELPERS_LAST = 2.0
_LAST_WORDS = 0.1


class View:
    """The base of :class:`kvmkit.VM`."""

    if TYPE_CHECKING:
        _board: Board | None

        @property
        def board(self) -> Board: ...
        @property
        def ending(self) -> Ending | None: ...
        def wait(self, timeout: float | None = None) -> Ending | None: ...

    def __init__(self, name: str) -> None:
        self._name = name
        self._events = Events()
        self._checks: dict[int, Callable[[], None]] = {}
        self._console_view: ConsoleView | None = None
        self.control: ControlPoint | None = None
        """Its end of ``$XDG_RUNTIME_DIR/kvmkit/NAME``, between start and close."""

    # Name

    @property
    def name(self) -> str:
        """What ``kvmkit list`` and everybody calls it."""
        return self._name

    def rename(self, name: str) -> None:
        """Take another name. Raises UsageError for a bad one, NameTaken for a running VM's."""
        from kvmkit.control.names import check_name

        check_name(name)
        if self.control is not None:
            self.control.rename(name)
        self._name = name

    # Events

    def on(self, kind: str | None, listener: Callable[[Event], object]) -> None:
        """Call ``listener(event)`` whenever ``kind`` happens; for None, whenever anything does.

        Kinds: ``"stop"``, ``"resume"``, ``"reset"``, ``"powerdown"``, ``"panic"``,
        ``"shutdown"``. The listener runs on the VM's I/O thread with no lock held;
        it may use the VM, but not close it, and must not wait for it. Raises
        UsageError for another kind.
        """
        if kind is not None and kind not in EVENTS:
            raise UsageError(f"no event is called {kind!r}, expected one of {', '.join(EVENTS)}")
        self._events.add(kind, listener)

    def off(self, listener: Callable[[Event], object]) -> None:
        """Call ``listener`` no more. Harmless when it is not called."""
        self._events.remove(listener)

    def wait_for(
        self, what: str | Callable[[], object], timeout: float | None = None
    ) -> Event | object:
        """Wait for an event of that kind from now on, or until ``what()`` is true.

        Returns the event, or what the call gave. ``"up"`` waits until the guest runs
        processes. Raises CommandTimeout (BootTimeout for ``"up"``) after ``timeout``
        seconds, and GuestPanic, TripleFault, GuestHang or GuestEnded when the VM
        ends and that is not what was waited for.
        """
        if what == "up":
            return self._wait_up(timeout)
        if not isinstance(what, str):
            return self.wait_until(what, timeout, "the condition", _POLL)
        seen: list[Event] = []
        self.on(what, seen.append)
        try:
            name = f"the event {what!r}"
            return self.wait_until(lambda: seen and seen[0], timeout, name, _POLL)
        finally:
            self.off(seen.append)

    def wait_until(
        self, test: Callable[[], object], timeout: float | None, name: str, step: float
    ) -> object:
        """Call ``test`` every ``step`` seconds until it gives something true, which is returned.

        Raises as :meth:`wait_for`; ``name`` says in an error what did not come.
        """
        limit = None if timeout is None else monotonic() + timeout
        checks = self._checks
        while not (found := test()):
            if checks and (check := checks.get(get_ident())) is not None:
                check()
            if self.ending is not None and not (found := self._last_look(test)):
                raise ending_error(self.ending)
            if found:
                break
            left = None if limit is None else limit - monotonic()
            if left is not None and left <= 0:
                raise CommandTimeout(f"{name} did not come within {timeout:g} s")
            self.wait(step if left is None else min(left, step))
        return found

    def interruptible(self, check: Callable[[], None]) -> _Interruptible:
        """In this block, on this thread, ``check()`` may end what waits by an exception."""
        return _Interruptible(self._checks, check)

    def _last_look(self, test: Callable[[], object]) -> object:
        """It has ended: what it said on the way may still be under way to us."""
        from time import sleep

        limit = monotonic() + _LAST_WORDS
        while not (found := test()) and self._board is not None and monotonic() < limit:
            sleep(_LAST_WORDS / 100)
        return found

    def _wait_up(self, timeout: float | None) -> object:
        """Until our init says so, or a CPU is seen running a process.

        A kernel starts helpers before its init, and opens the console for it; one of
        the two alone does not count, unless the first goes on for a while.
        """
        from kvmkit.board.watch import in_user_mode

        board = self.board
        ready: list[str] = []
        board.serial.reports.listen(lambda word, rest: ready.append(word))
        look_at = monotonic()
        since: float | None = None

        def is_up() -> bool:
            nonlocal look_at, since
            if ready:
                return True
            now = monotonic()
            if now < look_at:
                return False
            look_at = now + _LOOK_AT_CPUS
            if not any(in_user_mode(cpu, board.ram) for cpu in board.sample() or ()):
                since = None
                return False
            since = since or now
            return board.serial.ports[0].listening or now - since > _HELPERS_LAST

        try:
            return self.wait_until(is_up, timeout, "the guest's first process", _POLL)
        except CommandTimeout as error:
            raise BootTimeout(str(error)) from None

    # CPUs and memory

    @property
    def vcpus(self) -> Sequence[VcpuView]:
        """The CPUs, to look at. Raises UsageError when it does not run."""
        return [VcpuView(self.board, index) for index in range(len(self.board.engine.vcpus))]

    @property
    def memory(self) -> MemoryView:
        """The guest's physical memory: ``vm.memory[0x1000:0x2000]``."""
        return MemoryView(self.board)

    # Console

    @property
    def console(self) -> ConsoleView:
        """The first serial line: ``vm.console.expect("login:")``."""
        if self._console_view is None:
            from kvmkit.expect import ConsoleView

            self._console_view = ConsoleView(self, self.board)
        return self._console_view


class _Interruptible:
    def __init__(self, checks: dict[int, Callable[[], None]], check: Callable[[], None]) -> None:
        self._checks = checks
        self._check = check

    def __enter__(self) -> None:
        self._checks[get_ident()] = self._check

    def __exit__(self, *_: object) -> None:
        del self._checks[get_ident()]


class VcpuView:
    """One CPU of a running VM, looked at; it is stopped for each look."""

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        self.index = index

    @property
    def regs(self) -> CpuState:
        """All its registers now: ``regs.rip``, ``regs.rax``, ``regs.cs.selector``."""
        states = self._board.sample()
        if states is None:
            raise UsageError("this VM does not run")
        return states[self.index]

    def translate(self, address: int) -> int | None:
        """The physical address behind a virtual one; None if it is not mapped."""
        from kvmkit.board.paging import translate

        return translate(self._board.ram, self.regs, address)

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of its address space. Raises GuestAddressError where it has none."""
        from kvmkit.control.look import read_virtual

        return read_virtual(self._board.ram, self.regs, address, size)

    def __repr__(self) -> str:
        return f"<CPU {self.index}>"


class MemoryView:
    """Physical memory by address: an index gives a byte, a slice bytes; both can be set.

    Raises GuestAddressError where there is no RAM.
    """

    def __init__(self, board: Board) -> None:
        self._ram = board.ram

    def __getitem__(self, where: int | slice) -> Any:
        if isinstance(where, slice):
            start, size = _range(where)
            return self._ram.read(start, size)
        return self._ram.read(_address(where), 1)[0]

    def __setitem__(self, where: int | slice, value: int | bytes) -> None:
        if isinstance(value, int):
            value = bytes((value,))
        if isinstance(where, slice):
            start, size = _range(where)
            if size != len(value):
                raise UsageError(f"{size} bytes of memory cannot hold {len(value)}")
            self._ram.write(start, value)
        else:
            self._ram.write(_address(where), value)

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``."""
        return self._ram.read(_address(address), size)

    def write(self, address: int, data: bytes) -> None:
        """Put ``data`` at ``address``."""
        self._ram.write(_address(address), data)


def _address(where: int) -> int:
    if where < 0:
        raise GuestAddressError(f"{where} is no address: they begin at 0")
    return where


def _range(where: slice) -> tuple[int, int]:
    if where.step not in (None, 1) or where.stop is None:
        raise UsageError("memory is read as memory[start:end]")
    start = _address(where.start or 0)
    return start, max(0, where.stop - start)
