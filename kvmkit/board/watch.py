"""Watchdogs: a kernel that panicked, and a boot that hangs.

A panic is read from the kernel's own words (Linux ``kernel/panic.c``): the line
``Kernel panic - not syncing``, then either the closing line, or the reboot that
``panic=-1`` brings, or silence. Because a program may print the same words, the
last two count only if the CPUs look like a panicked kernel's.

A boot hangs when nothing was printed for a time although no process ever ran.
Once one did, or somebody listens at the console, silence means nothing.
"""

from __future__ import annotations

from kvmkit.board.power import Ending, EndKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvmkit.board.clock import BoardClock
    from kvmkit.board.memory import GuestMemory
    from kvmkit.board.power import Power
    from kvmkit.engine.cpu import CpuState

    Sample = Callable[[], Sequence[CpuState] | None]

__all__ = ["HangWatch", "PanicWatch", "in_user_mode"]

PANIC = b"Kernel panic - not syncing"
PANIC_END = b"---[ end Kernel panic"
PANIC_PATIENCE = 1_000_000_000
"""Nanoseconds after its first line in which a panic prints the others."""

_TAIL = len(PANIC) + 8
_RFLAGS_IF = 1 << 9
_CR0_PE = 1


def in_user_mode(cpu: CpuState, memory: GuestMemory) -> bool:
    """Whether this CPU runs a process, or idles in one's address space."""
    if cpu.cr0 & _CR0_PE and cpu.cs.selector & 3 == 3:
        return True
    from kvmkit.board.paging import has_user_half

    return has_user_half(memory, cpu)


class PanicWatch:
    """Reads one stream of kernel messages; ``log`` gives what came so far.

    ``sample`` looks at the CPUs, briefly stopping them; ``call_soon`` runs on
    the I/O thread, where that is allowed.
    """

    def __init__(
        self,
        power: Power,
        host_clock: BoardClock,
        call_soon: Callable[[Callable[[], None]], None],
        sample: Sample,
        log: Callable[[], bytes],
    ) -> None:
        self._power = power
        self._clock = host_clock
        self._call_soon = call_soon
        self._sample = sample
        self._log = log
        self._tail = b""
        self._timer = host_clock.timer(self._judge_soon)
        self._judging = False
        self.seen = False
        """The first line of a panic has come by."""

    def tap(self, data: bytes) -> None:
        """Take a piece of the stream. Under the board's lock."""
        text = self._tail + data
        self._tail = text[-_TAIL:]
        if not self.seen and PANIC in text:
            self.seen = True
            self._timer.arm(self._clock.now() + PANIC_PATIENCE)
        if self.seen and PANIC_END in text:
            self._judge_soon()

    def conclude(self) -> bool:
        """The guest asks for a reset: is a panic why? If so, end with it."""
        if self.seen:
            self._end()
        return self.seen

    def reset(self) -> None:
        """A new boot begins."""
        self.seen = False
        self._tail = b""
        self._timer.cancel()

    def _judge_soon(self) -> None:
        if not self._judging:  # a program may print the words faster than we can look
            self._judging = True
            self._call_soon(self._judge)

    def _judge(self) -> None:
        """A panicked kernel's CPUs spin in the kernel, or are halted for good."""
        self._judging = False
        if not self.seen or self._power.ending is not None:
            return
        for cpu in self._sample() or ():
            user = cpu.cr0 & _CR0_PE and cpu.cs.selector & 3 == 3
            idle = cpu.halted and cpu.rflags & _RFLAGS_IF
            if user or idle:
                self.reset()  # somebody printed the words
                return
        self._end()

    def _end(self) -> None:
        from kvmkit.board.postmortem import panic_lines

        log = self._log()
        place = log.rfind(PANIC)
        line = log[place:].split(b"\n", 1)[0].decode(errors="replace").strip() if place >= 0 else ""
        self._power.end(Ending(EndKind.PANIC, line, panic_lines(log)))


class HangWatch:
    """Ends a machine that was silent for ``timeout`` nanoseconds without ever running a process.

    ``activity`` is a number that changes with every output, ``alive`` tells of
    other signs that the boot is over, ``paused`` whether time stands still.
    """

    STEPS = 8
    """How often within the timeout the CPUs are looked at."""

    def __init__(
        self,
        power: Power,
        host_clock: BoardClock,
        call_soon: Callable[[Callable[[], None]], None],
        memory: GuestMemory,
        sample: Sample,
        *,
        timeout: int,
        activity: Callable[[], int],
        alive: Callable[[], bool],
        paused: Callable[[], bool],
        log: Callable[[], bytes],
    ) -> None:
        self._power = power
        self._clock = host_clock
        self._memory = memory
        self._sample = sample
        self._timeout = timeout
        self._activity = activity
        self._alive = alive
        self._paused = paused
        self._log = log
        self._timer = host_clock.timer(lambda: call_soon(self._look))
        self._last = -1
        self._silent = 0  # steps

    def start(self) -> None:
        """Watch a boot from now on."""
        self._last = self._activity()
        self._silent = 0
        self._timer.arm(self._clock.now() + self._timeout // self.STEPS)

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._power.ending is not None or self._alive():
            return
        now = self._activity()
        if now != self._last or self._paused():
            self._silent = 0
        else:
            self._silent += 1
            cpus = self._sample()
            if cpus is None:
                self._silent = 0
            elif any(in_user_mode(cpu, self._memory) for cpu in cpus):
                return
            elif self._silent >= self.STEPS:
                self._end(cpus)
                return
        self._last = now
        self._timer.arm(self._clock.now() + self._timeout // self.STEPS)

    def _end(self, cpus: Sequence[CpuState]) -> None:
        from kvmkit.board.postmortem import describe_cpu, last_lines

        reason = (
            f"the guest hangs: no output for {self._timeout / 1e9:g} s, and no process ever ran"
        )
        parts = [describe_cpu(index, cpu, self._memory) for index, cpu in enumerate(cpus)]
        log = last_lines(self._log())
        if log:
            parts.append(f"last output:\n{log}")
        self._power.end(Ending(EndKind.HUNG, reason, "\n".join(parts)))
