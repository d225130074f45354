"""Disk I/O in the guest, on kvmkit's software CPU and on QEMU's, raw and qcow2.

One boot does all of it, past the guest's page cache (O_DIRECT; ``disk_io.c``):
sequential and random requests of one and of 16 processes on a virtio disk whose
image is in the host's page cache. The init says a mark between them on the serial
console; the host's clock and the process's CPU time are read as the marks arrive.
QEMU is q35 with a modern virtio-blk-pci, its default cache mode (writeback) and aio
(threads). The figures are times: less is better, below 1 we are faster.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import machines
from paired import Command, NotSeen, Run, alternate, ratio, spread, table, told

from kvmkit.guest.modinfo import read_module
from kvmkit.guest.modules import find_module_tree

SIZE = 512 << 20
WORK = {
    "read 512 MiB, 1 MiB each": "read seq 1048576 512 1",
    "write 512 MiB, 1 MiB each": "write seq 1048576 512 1",
    "read 4 KiB 4000 times at random": "read rand 4096 4000 1",
    "write 4 KiB 4000 times at random": "write rand 4096 4000 1",
    "read 4 KiB 16000 times, 16 at a time": "read rand 4096 16000 16",
    "write 4 KiB 16000 times, 16 at a time": "write rand 4096 16000 16",
}
MARK = "@done"
MARKS = (MARK.encode(),) * (len(WORK) + 1)
HEAD = ("work", "kvmkit s (quartiles)", "QEMU s", "kvmkit's by it", "the same in CPU time")
PREPARE = """
mount -t devtmpfs dev /dev; mount -t proc proc /proc
for m in $(cat /order); do insmod /$m.ko; done
"""


def main() -> int:
    parser = machines.arguments(__doc__ or "", rounds=5)
    parser.add_argument("kernels", nargs="*", type=Path, metavar="BZIMAGE")
    parser.add_argument("--format", choices=("raw", "qcow2"), help="only this one")
    options = parser.parse_args()
    kernels = options.kernels or machines.default_kernels()[:1]
    if not kernels:
        sys.exit("no kernel: kvmkit image pull linux-image-cloud-amd64, or name bzImages")
    if shutil.which("gcc") is None or shutil.which("qemu-img") is None:
        sys.exit("gcc and qemu-img are needed (apt install gcc libc6-dev qemu-utils)")
    failed = False
    for kernel in kernels:
        for format in [options.format] if options.format else ["raw", "qcow2"]:
            release = machines.release(kernel)
            print(f"Kernel {release}, {format}, {options.rounds} rounds\n")
            try:
                print(compare(kernel, format, options), end="\n\n", flush=True)
            except NotSeen as error:
                print(f"failed: {error}\n", flush=True)
                failed = True
    return int(failed)


def compare(kernel: Path, format: str, options: Namespace) -> str:
    """The table for one kernel and format. Raises NotSeen."""
    with tempfile.TemporaryDirectory(prefix="kvmkit-disk-", dir="/var/tmp") as name:
        place = Path(name)
        initrd = guest(place, kernel)
        ours, theirs = (image(place / title, format) for title in ("kvmkit", "qemu"))
        line = machines.soft(options, kernel, initrd, "quiet")
        commands = {"kvmkit": Command([*line, "--disk", f"{ours},format={format}"], MARKS)}
        if machines.has_qemu(options):
            line = machines.qemu_q35(options, kernel, initrd, "quiet")
            drive = f"file={theirs},format={format},if=none,id=d"
            line += ["-drive", drive, "-device", "virtio-blk-pci,drive=d,disable-legacy=on"]
            commands["QEMU"] = Command(line, MARKS)
        runs = alternate(commands, options.rounds)
    return table(
        HEAD,
        [row(title, index, runs["kvmkit"], runs.get("QEMU")) for index, title in enumerate(WORK)],
    )


def image(path: Path, format: str) -> Path:
    """A disk with data everywhere, as one in use has."""
    raw = path.with_suffix(".data")
    with raw.open("wb") as file:
        for number in range(SIZE >> 20):
            file.write(number.to_bytes(4, "little") * (1 << 18))
    if format == "raw":
        return raw.rename(path)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    return path


def guest(place: Path, kernel: Path) -> Path:
    """The initramfs: the drivers, ``disk_io``, and an init that does the work."""
    program = place / "disk_io"
    source = Path(__file__).with_name("disk_io.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    tree = find_module_tree(kernel)
    if tree is None:
        sys.exit(f"{kernel}: its modules are not there")
    modules = tree.resolve(("virtio_pci", "virtio_blk"))
    files = {f"{module.name}.ko": read_module(module.path) for module in modules}
    files |= {"disk_io": program.read_bytes()}
    files["order"] = " ".join(module.name for module in modules).encode()
    steps = [f"/run /dev/vda {words} && echo {MARK}" for words in WORK.values()]
    start = "cp /disk_io /run; chmod 755 /run"
    script = "\n".join((PREPARE, start, f"echo {MARK}", *steps, "poweroff -f\n"))
    return machines.initramfs(place, script, files)


def row(title: str, index: int, ours: list[Run], theirs: list[Run] | None) -> list[str]:
    """One kind of work."""

    def wall(run: Run) -> float:
        return run.marks[index + 1].wall - run.marks[index].wall

    def cpu(run: Run) -> float:
        return run.marks[index + 1].cpu - run.marks[index].cpu

    cells = [title, told(spread([wall(run) for run in ours]))]
    if theirs is None:
        return cells
    cells.append(told(spread([wall(run) for run in theirs])))
    return [*cells, told(ratio(ours, theirs, wall)), told(ratio(ours, theirs, cpu))]


if __name__ == "__main__":
    sys.exit(main())
