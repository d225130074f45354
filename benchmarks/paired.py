"""Measuring commands in turn: the same host, the same run, one after the other.

A figure from one day and one machine says little; the ratio of two commands
that were started alternately says how they compare, because whatever else the
host did happened to both. :func:`alternate` does that. A round starts each
command once, in rotating order; a ratio is taken within each round, and the
median of these ratios is told with their quartiles.

CPU time is user and system time of the process with its children (wait4(2)).
On a busy host it is the steadier figure. Peak memory is what the kernel calls
VmHWM (proc(5)), read at the last mark: ``ru_maxrss`` would count the memory of
the process that did the starting.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "MIB",
    "Command",
    "Mark",
    "NotSeen",
    "Run",
    "Spread",
    "alternate",
    "measure",
    "ratio",
    "spread",
    "table",
    "told",
]

MIB = 1 << 20
KIB = 1 << 10


class NotSeen(Exception):
    """A command ended, or its time was over, before it said what was waited for."""


class Command(NamedTuple):
    """What to start, and the marks to wait for on its standard output, in this order.

    ``to_end`` lets it end by itself after the last mark; otherwise it is killed
    there, so that CPU time and peak memory are those up to the mark.
    """

    words: Sequence[str]
    marks: Sequence[bytes]
    to_end: bool = False


class Mark(NamedTuple):
    """A mark: seconds from the start, the process's CPU seconds in steps of 10 ms, peak bytes.

    ``memory`` is 0 where the process had ended before it could be read.
    """

    wall: float
    cpu: float
    memory: int


class Run(NamedTuple):
    """One run: its marks, and seconds to its end and of CPU time in all."""

    marks: tuple[Mark, ...]
    wall: float
    cpu: float


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def measure(command: Command, timeout: float = 300) -> Run:
    """Start ``command`` and wait for its marks. Raises NotSeen, with what it said instead."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
        )
        assert process.stdout is not None
        output = _Output(process.pid, process.stdout.fileno(), start, start + timeout)
        ended = False
        try:
            if all(output.find(mark) for mark in command.marks):
                ended = command.to_end and output.drain()
        finally:
            if not ended:
                process.kill()
            # wait4, because only it tells the CPU time of this one child
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            process.stdout.close()
        if len(output.marks) < len(command.marks) or command.to_end > ended:
            errors.seek(0)
            raise NotSeen(_story(command, output, errors.read()))
    return Run(tuple(output.marks), wall, usage.ru_utime + usage.ru_stime)


class _Output:
    """What a process writes, and the marks that were seen in it."""

    def __init__(self, process: int, descriptor: int, start: float, limit: float) -> None:
        self._process = process
        self._descriptor = descriptor
        self._start = start
        self._limit = limit
        self._now = start
        self._searched = 0
        self.text = bytearray()
        self.marks: list[Mark] = []

    def find(self, mark: bytes) -> bool:
        """Read until ``mark`` was seen behind the last one; False if it does not come."""
        while (found := self.text.find(mark, self._searched)) < 0:
            if not self._read():
                return False
        self._searched = found + len(mark)
        used, peak = _cpu_time(self._process), _peak_memory(self._process)
        self.marks.append(Mark(self._now - self._start, used, peak))
        return True

    def drain(self) -> bool:
        """Read to the end; False if it does not come."""
        while self._read():
            pass
        return self._now < self._limit

    def _read(self) -> bool:
        left = self._limit - time.perf_counter()
        data = b""
        if left > 0 and select.select([self._descriptor], [], [], left)[0]:
            data = os.read(self._descriptor, 1 << 16)
        self._now = time.perf_counter()
        self.text += data
        return bool(data)


def _environment() -> dict[str, str]:
    # With this variable Python would compile each changed module anew at each start.
    return {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _cpu_time(process: int) -> float:
    # proc(5): utime and stime are fields 14 and 15, 12 and 13 behind the name in parentheses
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_memory(process: int) -> int:
    try:
        with open(f"/proc/{process}/status") as file:
            lines = [line for line in file if line.startswith("VmHWM:")]
    except OSError:
        return 0
    return int(lines[0].split()[1]) * KIB if lines else 0


def _story(command: Command, output: _Output, errors: bytes) -> str:
    """What a process said in place of what was waited for."""
    said = (bytes(output.text) + errors).decode(errors="replace").strip()
    last = "\n    ".join(said.splitlines()[-8:])
    missing = "that it ends"
    if len(output.marks) < len(command.marks):
        missing = repr(command.marks[len(output.marks)].decode(errors="replace"))
    return f"{command.words[0]} did not say {missing}, but\n    {last}"


def alternate(commands: Mapping[str, Command], rounds: int) -> dict[str, list[Run]]:
    """Each of ``commands`` once per round, in rotating order; one round before does not count.

    That round fills page cache, bytecode and caches of ours. Raises NotSeen.
    """
    names = list(commands)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run = measure(commands[name])
            if number:
                runs[name].append(run)
        _progress(f"round {number} of {rounds}")
    _progress("")
    return runs


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of fewer than 4 values, the extremes."""
    if len(values) < 4:
        return Spread(statistics.median(values), min(values), max(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(ours: Sequence[Run], theirs: Sequence[Run], figure: Callable[[Run], float]) -> Spread:
    """Ours by theirs of one figure, round by round."""
    return spread([figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True)])


def told(value: Spread, unit: float = 1.0, digits: int = 2) -> str:
    """A spread as text, ``1.02 (0.99-1.06)``; ``unit`` is what 1 stands for."""
    median, low, high = (f"{one / unit:.{digits}f}" for one in value)
    return f"{median} ({low}-{high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, also readable as it is."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)
