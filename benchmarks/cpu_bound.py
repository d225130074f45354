"""CPU-bound work inside the guest, on kvmkit's software CPU and on QEMU's.

One boot does all of it: a digest of 64 MiB in tmpfs, gzip of 16 MiB, a shell
loop of 100 000 turns, 300 times fork and exec. The init says a mark between
them on the serial console, and the host's clock and the process's CPU time are
read as the marks arrive, so the guest's idea of time plays no part. QEMU is the microvm without
ACPI with its default CPU (qemu64); the machine makes no difference here.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import machines
from paired import Command, NotSeen, Run, alternate, ratio, spread, table, told

WORK = {
    "sha256sum of 64 MiB": "sha256sum /tmp/64",
    "gzip of 16 MiB": "gzip -c /tmp/16",
    "shell loop, 100 000 turns": "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done",
    "fork and exec, 300 times": "for i in $(seq 300); do /bin/true; done",
}
PREPARE = """
mount -t tmpfs tmpfs /tmp
i=0; while [ $i -lt 64 ]; do cat /bin/busybox; i=$((i+1)); done | head -c 67108864 > /tmp/64
head -c 16777216 /tmp/64 > /tmp/16
"""
MARK = "@done"
MARKS = (MARK.encode(),) * (len(WORK) + 1)
HEAD = ("work", "kvmkit s (quartiles)", "QEMU s", "kvmkit's by it", "the same in CPU time")


def main() -> int:
    parser = machines.arguments(__doc__ or "", rounds=5)
    parser.add_argument("kernels", nargs="*", type=Path, metavar="BZIMAGE")
    options = parser.parse_args()
    kernels = options.kernels or machines.default_kernels()[:1]
    if not kernels:
        sys.exit("no kernel: kvmkit image pull linux-image-cloud-amd64, or name bzImages")
    failed = False
    for kernel in kernels:
        print(f"Kernel {machines.release(kernel)}, {options.rounds} rounds\n")
        try:
            print(compare(kernel, options), end="\n\n", flush=True)
        except NotSeen as error:
            print(f"failed: {error}\n", flush=True)
            failed = True
    return int(failed)


def compare(kernel: Path, options: Namespace) -> str:
    """The table for one kernel. Raises NotSeen."""
    script = "\n".join((PREPARE, f"echo {MARK}", *map(_step, WORK.values()), "poweroff -f\n"))
    with tempfile.TemporaryDirectory(prefix="kvmkit-cpu-") as name:
        place = Path(name)
        initrd = machines.initramfs(place, script)
        commands = {"kvmkit": Command(machines.soft(options, kernel, initrd, "quiet"), MARKS)}
        if machines.has_qemu(options):
            elf = machines.unpacked(kernel, place)
            line = machines.qemu_microvm(options, elf, initrd, "quiet")
            commands["QEMU"] = Command(line, MARKS)
        runs = alternate(commands, options.rounds)
    ours, theirs = runs["kvmkit"], runs.get("QEMU")
    return table(HEAD, [row(title, index, ours, theirs) for index, title in enumerate(WORK)])


def _step(work: str) -> str:
    return f"{{ {work}; }} > /dev/null\necho {MARK}"


def row(title: str, index: int, ours: list[Run], theirs: list[Run] | None) -> list[str]:
    """One kind of work."""

    def wall(run: Run) -> float:
        return run.marks[index + 1].wall - run.marks[index].wall

    def cpu(run: Run) -> float:
        return run.marks[index + 1].cpu - run.marks[index].cpu

    cells = [title, told(spread([*map(wall, ours)]))]
    if theirs is None:
        return [*cells, "not installed", "", ""]
    cells.append(told(spread([*map(wall, theirs)])))
    return [*cells, told(ratio(ours, theirs, wall)), told(ratio(ours, theirs, cpu))]


if __name__ == "__main__":
    sys.exit(main())
