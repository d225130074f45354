"""What is compared: the guests, and how each machine is told to start them.

Same kernel, same initramfs, same command line, 512 MiB, one CPU. The init is
a shell script in a busybox that says a mark per step on the serial console.
"""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout is measured, installed or not

from kvmkit.boot.decompress import unpack  # noqa: E402
from kvmkit.boot.image import open_kernel  # noqa: E402
from kvmkit.errors import KvmkitError  # noqa: E402
from kvmkit.guest.cpio import Archive  # noqa: E402
from kvmkit.guest.initramfs import busybox_applets  # noqa: E402

__all__ = [
    "arguments",
    "default_kernels",
    "has_qemu",
    "initramfs",
    "kvmkit_run",
    "qemu_microvm",
    "qemu_q35",
    "release",
    "soft",
    "unpacked",
]

MEMORY = 512  # MiB
PARAMETERS = "console=ttyS0 panic=-1"  # what kvmkit run gives by itself
BUSYBOX = ("/bin/busybox", "/usr/bin/busybox")


def arguments(description: str, rounds: int) -> ArgumentParser:
    """The options all benchmarks have."""
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "-n", "--rounds", type=int, default=rounds, help="rounds that count (default: %(default)s)"
    )
    parser.add_argument("--kvmkit", help="the kvmkit command (default: beside this Python)")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="default: %(default)s")
    return parser


def kvmkit_run(options: Namespace) -> list[str]:
    """``kvmkit run`` as a user starts it, or the same without an installation."""
    installed = Path(options.kvmkit or Path(sys.executable).with_name("kvmkit"))
    if options.kvmkit or installed.exists():
        return [str(installed), "run"]
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from kvmkit.cli.main import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, "run"]


def has_qemu(options: Namespace) -> bool:
    """Whether QEMU is here."""
    return shutil.which(options.qemu) is not None


def qemu_microvm(options: Namespace, kernel: Path, initrd: Path, parameters: str) -> list[str]:
    """QEMU's smallest machine, which enters an ELF kernel directly (PVH)."""
    return [*_qemu(options, initrd, parameters), "-M", "microvm,acpi=off", "-kernel", str(kernel)]


def qemu_q35(options: Namespace, kernel: Path, initrd: Path, parameters: str) -> list[str]:
    """QEMU's usual PC, with firmware, from a bzImage."""
    return [*_qemu(options, initrd, parameters), "-M", "q35", "-kernel", str(kernel)]


def _qemu(options: Namespace, initrd: Path, parameters: str) -> list[str]:
    return [
        options.qemu, "-accel", "tcg", "-smp", "1", "-m", str(MEMORY), "-no-reboot",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-initrd", str(initrd), "-append", f"{PARAMETERS} {parameters}".strip(),
    ]  # fmt: skip


def soft(options: Namespace, kernel: Path, initrd: Path, parameters: str) -> list[str]:
    """kvmkit's software CPU, from a bzImage."""
    return [
        *kvmkit_run(options), "--engine", "soft", "-c", "1", "-m", f"{MEMORY}M", "--no-reboot",
        "-k", str(kernel), "-i", str(initrd), *(("-p", parameters) if parameters else ()),
    ]  # fmt: skip


# Guests


def default_kernels() -> list[Path]:
    """bzImages from KVMKIT_TEST_KERNELS (files or folders, colon-separated), or the pulled ones."""
    found: list[Path] = []
    for place in filter(None, os.environ.get("KVMKIT_TEST_KERNELS", "").split(":")):
        path = Path(place)
        found += sorted(path.glob("**/vmlinuz-*")) if path.is_dir() else [path]
    return found or sorted(_cache().glob("images/**/vmlinuz-*"))


def find_busybox() -> Path:
    """From KVMKIT_TEST_BUSYBOX, the pulled images or the host."""
    named = os.environ.get("KVMKIT_TEST_BUSYBOX")
    places = [Path(named)] if named else sorted(_cache().glob("images/**/bin/busybox"))
    for path in [*places, *map(Path, BUSYBOX)]:
        if path.is_file():
            return path
    sys.exit("no static busybox: kvmkit image pull busybox-static")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmkit"


def initramfs(directory: Path, script: str, files: Mapping[str, bytes] | None = None) -> Path:
    """An archive with busybox, its applets, ``files`` and ``script`` as its init."""
    busybox = find_busybox().read_bytes()
    archive = Archive()
    archive.file("init", f"#!/bin/busybox sh\n{script}".encode(), 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in busybox_applets(busybox):
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    for name in ("dev", "proc", "sys", "tmp"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    for name, data in (files or {}).items():
        archive.file(name, data)
    target = directory / "initramfs.cpio"
    target.write_bytes(archive.finish())
    return target


def unpacked(kernel: Path, directory: Path) -> Path:
    """The ELF kernel inside a bzImage, which QEMU's microvm wants."""
    image = open_kernel(kernel)
    target = directory / "vmlinux"
    target.write_bytes(unpack(image.payload))
    return target


def release(kernel: Path) -> str:
    """A kernel's ``uname -r``. Exits with a line for what is no kernel."""
    try:
        return open_kernel(kernel).release
    except KvmkitError as error:
        sys.exit(str(error))
