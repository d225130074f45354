"""A Linux guest that works: files in tmpfs, processes, timers, on every CPU."""

from __future__ import annotations

import re
import time
from pathlib import Path

from kvmkit import VM
from kvmkit.guest.cpio import Archive

__all__ = ["Watcher", "load_initrd"]

SCRIPT = """#!/bin/busybox sh
PATH=/bin
/bin/busybox --install /bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /tmp
dd if=/dev/urandom of=/tmp/first bs=65536 count=16 2>/dev/null
first=$(md5sum < /tmp/first)
work() {
    n=0
    while :; do
        n=$((n + 1))
        dd if=/dev/urandom of=/tmp/new$1 bs=16384 count=8 2>/dev/null
        sum=$(md5sum < /tmp/new$1)
        mv /tmp/new$1 /tmp/file$1
        sleep 0.01
        [ "$(md5sum < /tmp/file$1)" = "$sum" ] || echo "BAD file of worker $1, round $n"
        [ "$(md5sum < /tmp/first)" = "$first" ] || echo "BAD first file"
        echo $n > /tmp/count$1
    done
}
for cpu in $(seq $(nproc)); do work $cpu & done
while [ ! -f /tmp/count1 ]; do sleep 0.05; done
while :; do
    read up idle < /proc/uptime
    echo "tick $up $(cat /tmp/count*| tr '\\n' ' ')"
    sleep 0.05
done
"""

TROUBLE = re.compile(
    rb"BAD|rcu.*stall|soft lockup|hung_task|BUG:|Oops|Call Trace|clocksource: .*unstable"
    rb"|segfault|WARNING:"
)
TICK = re.compile(rb"tick (\d+\.\d+) ([\d ]+)\r\n")


def load_initrd(folder: Path, busybox: Path) -> Path:
    """The guest's archive."""
    archive = Archive()
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.file("init", SCRIPT.encode(), 0o755)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.character_device("dev/urandom", 1, 9)
    archive.directory("proc")
    archive.directory("tmp")
    path = folder / "initrd"
    path.write_bytes(archive.finish())
    return path


class Watcher:
    """Reads a guest's console, and compares its clock with the board's at each line."""

    def __init__(self) -> None:
        self.vm: VM | None = None
        self.text = b""
        self.lag: list[float] = []
        """Seconds by which each tick's time is behind the board's when it comes."""
        self.counts: list[tuple[int, ...]] = []

    def __call__(self, data: bytes) -> None:
        now = self.vm.board.clock.now() / 1e9 if self.vm is not None else 0.0
        self.text += data
        found = list(TICK.finditer(self.text))
        for tick in found[len(self.counts) :]:
            self.lag.append(now - float(tick[1]))
            self.counts.append(tuple(map(int, tick[2].split())))

    def wait(self, ticks: int, patience: float = 60.0) -> None:
        """Until the guest has ticked so often, each worker went on, and nothing went wrong."""
        limit = time.monotonic() + patience
        while True:
            assert not TROUBLE.search(self.text), self.text[-3000:].decode(errors="replace")
            counts = self.counts
            if len(counts) >= ticks and all(map(int.__gt__, counts[-1], counts[0])):
                return
            assert self.vm is not None
            assert self.vm.ending is None, (self.vm.ending, self.text[-1000:])
            assert time.monotonic() < limit, self.text[-1000:]
            time.sleep(0.01)

    def least_lag(self, before: float | None, step: float) -> float:
        """How far the guest's clock is behind the board's: a busy host makes lines late, so
        wait for one that comes as soon as they did ``before``. A step would stay."""
        for _ in range(20):
            if before is None or min(self.lag) < before + step:
                break
            self.wait(len(self.counts) + 2)
        return min(self.lag)
