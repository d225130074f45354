#!/usr/bin/env python3
"""Boot kernels to a shell command again and again, and count what went wrong.

    python benchmarks/soak.py --boots 20 --cpus 1,4 --memory 512M,6G KERNEL...

Each boot is a ``kvmkit run -- sh -c ...`` of its own that must print what it was
told to and end with the status it was told to. Prints a line per combination, and
the log of each failure; the exit status is the number of failures, at most 100.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

COMMAND = "cat /proc/uptime; nproc; echo lived through it; exit 42"


def boot(kernel: str, cpus: str, memory: str, engine: str) -> tuple[bool, float, str]:
    """One boot: whether all was as it should be, its seconds, and what it printed."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "kvmkit", "run", "--engine", engine, "-k", kernel, "-c", cpus,
         "-m", memory, "--timeout", "120", "--", "sh", "-c", COMMAND],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    lines = done.stdout.split("\n")
    good = done.returncode == 42 and lines[1:3] == [cpus, "lived through it"]
    return good, time.monotonic() - began, f"exit status {done.returncode}\n{done.stdout}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kernels", nargs="+", metavar="KERNEL")
    parser.add_argument("--boots", type=int, default=20)
    parser.add_argument("--cpus", default="1,4")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--engine", default="soft")
    options = parser.parse_args()
    failures = 0
    combinations = itertools.product(
        options.kernels, options.cpus.split(","), options.memory.split(",")
    )
    for kernel, cpus, memory in combinations:
        times = []
        failed = 0
        for _ in range(options.boots):
            good, seconds, output = boot(kernel, cpus, memory, options.engine)
            times.append(seconds)
            if not good:
                failed += 1
                print(output, flush=True)
        failures += failed
        times.sort()
        print(
            f"{Path(kernel).name:45} {cpus:>2} CPUs {memory:>5}: {options.boots - failed} of "
            f"{options.boots} good, median {times[len(times) // 2]:.2f} s, "
            f"longest {times[-1]:.2f} s",
            flush=True,
        )
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
