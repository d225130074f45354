"""Boot: from process start to the guest's first userspace line.

The clock starts before the process does and stops when the line that the
initramfs' init prints arrives at the other end of the pipe; the machine is
killed then. kvmkit starts from the bzImage with its cache warm, with ACPI, PCI
and all timers in place; QEMU both as microvm without ACPI from the ELF kernel,
its fastest, and as q35 from the bzImage. Peak memory is that of the process up
to the same moment. QEMU's CPU is its default one (qemu64).
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import machines
from paired import MIB, Command, NotSeen, Run, alternate, ratio, spread, table, told

MARK = b"@userspace"
INIT = "echo @userspace\nexec poweroff -f\n"
HEAD = (
    "machine",
    "wall s (quartiles)",
    "kvmkit's by it",
    "CPU s",
    "kvmkit's by it",
    "peak MiB",
)


def main() -> int:
    parser = machines.arguments(__doc__ or "", rounds=10)
    parser.add_argument("kernels", nargs="*", type=Path, metavar="BZIMAGE")
    parser.add_argument("-p", "--params", default="", help="more kernel parameters, for all")
    options = parser.parse_args()
    kernels = options.kernels or machines.default_kernels()
    if not kernels:
        sys.exit("no kernel: kvmkit image pull linux-image-cloud-amd64, or name bzImages")
    if not machines.has_qemu(options):
        print(f"{options.qemu} is not installed: kvmkit alone\n")
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
    with tempfile.TemporaryDirectory(prefix="kvmkit-boot-") as name:
        place = Path(name)
        initrd = machines.initramfs(place, INIT)
        words = {"kvmkit (soft)": machines.soft(options, kernel, initrd, options.params)}
        if machines.has_qemu(options):
            elf = machines.unpacked(kernel, place)
            words["QEMU microvm"] = machines.qemu_microvm(options, elf, initrd, options.params)
            words["QEMU q35"] = machines.qemu_q35(options, kernel, initrd, options.params)
        commands = {title: Command(line, (MARK,)) for title, line in words.items()}
        runs = alternate(commands, options.rounds)
    ours = next(iter(runs.values()))
    return table(HEAD, [row(title, ours, theirs) for title, theirs in runs.items()])


def row(title: str, ours: list[Run], theirs: list[Run]) -> list[str]:
    """One machine's figures."""
    return [
        title,
        told(spread([run.marks[0].wall for run in theirs])),
        "" if theirs is ours else told(ratio(ours, theirs, lambda run: run.marks[0].wall)),
        told(spread([run.cpu for run in theirs])),
        "" if theirs is ours else told(ratio(ours, theirs, lambda run: run.cpu)),
        f"{max(run.marks[0].memory for run in theirs) / MIB:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
