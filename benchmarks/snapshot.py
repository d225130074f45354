"""Restore: from process start to the first line of a guest that goes on, and forks' memory.

The guest is Linux with a busybox, busy in a shell loop that says a character now and
then. kvmkit saves and restores it on the software CPU; QEMU's TCG has it migrated to a
file (``migrate exec:``) and from there (``-incoming``), which is its own way to do the
same. Each restores with 512 MiB and with 4 GiB of guest memory; the rounds alternate.

The guest's first line comes later than its first instruction: the loop must be
translated and come round. What kvmkit takes until it lets the CPU run is given as well.

Memory is that of one process, its proportional set size (proc(5), ``smaps_rollup``) with
all of the guest's memory file: with one VM, and with it and ten forks that run for two seconds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import machines
from paired import MIB, Command, NotSeen, Run, alternate, ratio, spread, table, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.vm import VM

MARK = b"@"
MS = 1e-3
SIZES = (512, 4096)
FORKS = 10
SCRIPT = "i=0; while :; do i=$((i + 1)); [ $((i % 100)) = 0 ] && echo @; done\n"
HEAD = ("restore", "first line, ms (quartiles)", "kvmkit's by it", "CPU ms", "saved, MiB")

STARTED = """
import sys, time
sys.path.insert(0, {root!r})
from kvmkit.vm import VM
import kvmkit.board.board as board
def start(self, bus=None):
    print("@", flush=True)
    sys.exit()
board.Board.start = start
VM.restore({path!r}).start()
"""


def main() -> int:
    parser = machines.arguments(__doc__ or "", rounds=10)
    parser.add_argument("kernels", nargs="*", type=Path, metavar="BZIMAGE")
    parser.add_argument("--forks", type=Path, help="(of itself: measure forks of this snapshot)")
    options = parser.parse_args()
    if options.forks:
        print(json.dumps(forks(options.forks)))
        return 0
    kernel = (options.kernels or machines.default_kernels() or [None])[0]
    if kernel is None:
        print("no kernel: kvmkit image pull linux-image-cloud-amd64")
        return 0
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="kvmkit-snapshot-") as name:
        place = Path(name)
        initrd = machines.initramfs(place, SCRIPT)
        try:
            for size in SIZES:
                rows += measured(options, kernel, initrd, place / str(size), size)
            memory = in_a_process(place / str(SIZES[0]) / "kvmkit")
        except NotSeen as error:
            print(f"failed: {error}")
            return 1
    print(f"{machines.release(kernel)}, {options.rounds} rounds\n\n{table(HEAD, rows)}\n")
    one, all_of_them = memory["one"], memory["all"]
    print(
        f"Memory of one {SIZES[0]} MiB guest: {one / MIB:.0f} MiB; with {FORKS} forks of it: "
        f"{all_of_them / MIB:.0f} MiB, {all_of_them / one:.2f} times that. "
        f"{FORKS} forks took {memory['seconds'] * 1000:.0f} ms."
    )
    return 0


def measured(
    options: Namespace, kernel: Path, initrd: Path, place: Path, size: int
) -> list[list[str]]:
    """The rows for one size of memory."""
    place.mkdir()
    ours = save_ours(kernel, initrd, place / "kvmkit", size)
    words = [*machines.kvmkit_run(options)[:-1], "snapshot", "restore", str(ours)]
    started = [sys.executable, "-c", STARTED.format(root=str(machines.ROOT), path=str(ours))]
    commands = {
        f"kvmkit, {size} MiB": Command(words, (MARK,)),
        f"kvmkit until the CPU runs, {size} MiB": Command(started, (MARK,)),
    }
    saved = {name: disk(ours / "memory") for name in commands}
    if machines.has_qemu(options):
        name = f"QEMU microvm, {size} MiB"
        commands[name] = save_theirs(options, kernel, initrd, place, size)
        saved[name] = disk(place / "qemu")
    runs = alternate(commands, options.rounds)
    mine = runs[next(iter(runs))]
    return [row(name, mine, theirs, saved[name]) for name, theirs in runs.items()]


def row(name: str, mine: list[Run], theirs: list[Run], saved: int) -> list[str]:
    """One command's figures."""
    return [
        name,
        told(spread([run.marks[0].wall for run in theirs]), MS, 0),
        "" if theirs is mine else told(ratio(mine, theirs, lambda run: run.marks[0].wall)),
        told(spread([run.cpu for run in theirs]), MS, 0),
        f"{saved / MIB:.0f}",
    ]


def disk(path: Path) -> int:
    """What a file takes there."""
    return path.stat().st_blocks * 512


def save_ours(kernel: Path, initrd: Path, path: Path, size: int) -> Path:
    """A snapshot of the guest in its loop."""
    from kvmkit.vm import VM

    with VM(kernel, initrd=initrd, memory=f"{size}M", engine="soft", cmdline="quiet") as vm:
        vm.start()
        while MARK not in vm.console_log:
            if vm.ending is not None:
                raise NotSeen(f"the guest ended: {vm.ending.reason}")
            time.sleep(0.01)
        vm.snapshot(path)
    time.sleep(0.1)
    return path


def save_theirs(
    options: Namespace, kernel: Path, initrd: Path, place: Path, size: int
) -> Command:
    """QEMU's migration to a file, and the command that goes on from there."""
    elf = machines.unpacked(kernel, place)
    words = machines.qemu_microvm(options, elf, initrd, "quiet")
    words[words.index("-m") + 1] = str(size)
    door = place / "monitor"
    process = subprocess.Popen(
        [*words, "-monitor", f"unix:{door},server=on,wait=off"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while MARK not in (said := process.stdout.read1(4096)):
            if not said:
                raise NotSeen("QEMU ended before its guest said anything")
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(door))
            prompt(monitor)
            ask(monitor, "migrate_set_parameter max-bandwidth 100g")
            ask(monitor, f'migrate "exec:cat > {place / "qemu"}"')
            if "completed" not in ask(monitor, "info migrate"):
                raise NotSeen("QEMU did not complete its migration")
            monitor.sendall(b"quit\n")
    finally:
        process.kill()
        process.communicate()
    return Command([*words, "-incoming", f"exec:cat {place / 'qemu'}"], (MARK,))


def ask(monitor: socket.socket, line: str) -> str:
    """One line for QEMU's monitor, and what it says up to its next prompt."""
    monitor.sendall(f"{line}\n".encode())
    return prompt(monitor)


def prompt(monitor: socket.socket) -> str:
    """What QEMU's monitor says up to its next prompt."""
    said = b""
    while not said.endswith(b"(qemu) "):
        data = monitor.recv(1 << 16)
        if not data:
            break
        said += data
    return said.decode(errors="replace")


def in_a_process(snapshot: Path) -> dict[str, float]:
    """:func:`forks` in a process that has done nothing else."""
    words = [sys.executable, __file__, "--forks", str(snapshot)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def forks(snapshot: Path) -> dict[str, float]:
    """Memory with a VM, and with it and its forks."""
    from kvmkit.vm import VM

    with VM.restore(snapshot) as vm:
        vm.start()
        time.sleep(2)
        first = vm.fork(1)[0]  # its memory is its own now, as a VM's that was booted
        first.close()
        one = occupied(vm)
        start = time.perf_counter()
        copies = vm.fork(FORKS)
        seconds = time.perf_counter() - start
        time.sleep(2)
        all_of_them = occupied(vm)
        for copy in copies:
            copy.close()
    return {"one": one, "all": all_of_them, "seconds": seconds}


def occupied(vm: VM) -> int:
    """Bytes of memory that are this process's, shared ones in part, and the guests' file."""
    found = os.fstat(vm.board.ram.fd).st_blocks * 512
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith(("Pss_Anon:", "Pss_File:")):
                found += int(line.split()[1]) << 10
    return found


if __name__ == "__main__":
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        del os.environ["PYTHONDONTWRITEBYTECODE"]
    sys.exit(main())
