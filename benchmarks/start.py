"""Start: from process start to the guest's first instruction on /dev/kvm.

The guest is a few bytes: it writes one character to the serial port, then ends
its machine. The clock starts before the process does and stops when the
character arrives at the other end of the pipe. kvmkit is the command with its
option parsing, starting a PVH kernel; kvmtool starts the same bytes as a flat
binary; QEMU's microvm, which has no way to start them without firmware, starts
them as the firmware. The whole process, to its end, is given as well.

Each machine has its own way to end: a port of kvmkit's, QEMU's isa-debug-exit,
for kvmtool the keyboard controller's reset.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import machines
from paired import Command, NotSeen, Run, alternate, ratio, spread, table, told

MARK = b"@"
MS = 1e-3

SAY_16 = b"\xba\xf8\x03\xb0@\xee"  # mov dx, 0x3f8; mov al, '@'; out dx, al
SAY_32 = b"\x66" + SAY_16  # the same as 32-bit code
END_PORT = b"\xb0\x00\xe6\xf4"  # mov al, 0; out 0xf4, al
END_RESET = b"\xb0\xfe\xe6\x64"  # mov al, 0xfe; out 0x64, al
STAND = b"\xf4\xeb\xfd"  # hlt; jmp to it

ENTRY = 1 << 20
HEAD = ("command", "first instruction, ms (quartiles)", "kvmkit's by it", "CPU ms", "whole ms")


def main() -> int:
    parser = machines.arguments(__doc__ or "", rounds=40)
    parser.add_argument("--lkvm", default="lkvm", help="kvmtool's command (default: %(default)s)")
    options = parser.parse_args()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("/dev/kvm cannot be used here: nothing measured")
        return 0
    with tempfile.TemporaryDirectory(prefix="kvmkit-start-") as name:
        commands = {"kvmkit run": ours(options, Path(name))}
        if shutil.which(options.lkvm):
            commands["lkvm run"] = lkvm(options, Path(name))
        if machines.has_qemu(options):
            commands["QEMU microvm"] = qemu(options, Path(name))
        try:
            runs = alternate(commands, options.rounds)
        except NotSeen as error:
            print(f"failed: {error}")
            return 1
    print(f"{options.rounds} rounds\n")
    rows = [row(title, runs["kvmkit run"], theirs) for title, theirs in runs.items()]
    for title, program in (("lkvm run", options.lkvm), ("QEMU microvm", options.qemu)):
        if title not in commands:
            rows.append([title, f"{program}: not installed", "", "", ""])
    print(table(HEAD, rows))
    return 0


def ours(options: Namespace, place: Path) -> Command:
    """kvmkit with a PVH kernel and an initrd of a few bytes, which spares it our own."""
    kernel, initrd = place / "pvh.elf", place / "initrd"
    kernel.write_bytes(pvh_kernel(SAY_32 + END_PORT + STAND))
    initrd.write_bytes(bytes(16))
    words = [*machines.kvmkit_run(options), "--engine", "kvm", "-c", "1", "-m", "512M"]
    return Command([*words, "-k", str(kernel), "-i", str(initrd)], (MARK,), to_end=True)


def lkvm(options: Namespace, place: Path) -> Command:
    """kvmtool; with an initrd it leaves out the shared root directory."""
    kernel = place / "flat.bin"
    kernel.write_bytes(SAY_16 + END_RESET + STAND)
    words = [options.lkvm, "run", "-c", "1", "-m", "512", "--network", "mode=none"]
    return Command([*words, "-k", str(kernel), "-i", str(kernel)], (MARK,), to_end=True)


def qemu(options: Namespace, place: Path) -> Command:
    """QEMU; its firmware image is mapped so that it ends at 4 GiB, where the CPU starts."""
    firmware = place / "firmware.bin"
    image = bytearray(64 << 10)
    code = SAY_16 + END_PORT + STAND
    image[: len(code)] = code
    image[-16:-13] = b"\xe9" + struct.pack("<H", -(len(image) - 13) & 0xFFFF)  # jmp to the start
    firmware.write_bytes(image)
    words = [
        options.qemu, "-accel", "kvm", "-M", "microvm", "-smp", "1", "-m", "512",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-bios", str(firmware), "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]  # fmt: skip
    return Command(words, (MARK,), to_end=True)


def pvh_kernel(code: bytes) -> bytes:
    """An ELF file with ``code`` at 1 MiB and the note that says it is its PVH entry."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", ENTRY)  # XEN_ELFNOTE_PHYS32_ENTRY
    at = 64 + 2 * 56
    size = len(code)
    return (
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        + struct.pack("<IIQQQQQQ", 1, 5, at, ENTRY, ENTRY, size, size, 4096)
        + struct.pack("<IIQQQQQQ", 4, 4, at + size, 0, 0, len(note), len(note), 4)
        + code
        + note
    )


def row(title: str, mine: list[Run], theirs: list[Run]) -> list[str]:
    """One command's figures."""
    return [
        title,
        told(spread([run.marks[0].wall for run in theirs]), MS, 1),
        "" if theirs is mine else told(ratio(mine, theirs, lambda run: run.marks[0].wall)),
        told(spread([run.cpu for run in theirs]), MS, 1),
        told(spread([run.wall for run in theirs]), MS, 1),
    ]


if __name__ == "__main__":
    sys.exit(main())
