"""A stock kernel with an initramfs of busybox, the modules asked for, and a script."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest

from kvmkit.guest.cpio import Archive

__all__ = ["module_initrd"]


def module_initrd(
    tmp_path: Path, kernel: Path, busybox: Path, modules: tuple[str, ...], script: str
) -> Path:
    """An archive whose init loads ``modules``, and what they need, and runs ``script``."""
    archive = Archive()
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    lines = ["#!/bin/busybox sh", "PATH=/bin", "/bin/busybox --install /bin"]
    lines += ["mount -t proc proc /proc", "mount -t sysfs sys /sys", "mount -t devtmpfs dev /dev"]
    for name, data in _closure(kernel, modules):
        archive.file(f"lib/{name}.ko", data)
        lines.append(f"insmod /lib/{name}.ko")
    archive.file("init", "\n".join([*lines, script, "poweroff -f", ""]).encode(), 0o755)
    archive.character_device("dev/console", 5, 1)
    for name in ("proc", "sys", "mnt", "tmp"):
        archive.directory(name)
    path = tmp_path / "initrd"
    path.write_bytes(archive.finish())
    return path


def _closure(kernel: Path, wanted: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """The modules in an order in which each comes after those it depends on."""
    release = kernel.name.removeprefix("vmlinuz-")
    folders = [kernel.parent.parent / "lib/modules" / release, kernel.parent / "modules"]
    root = next((folder for folder in folders if folder.is_dir()), None)
    if root is None:
        pytest.skip(f"no modules beside {kernel}")
    builtin = (root / "modules.builtin").read_text()
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or re.search(rf"/{name.replace('_', '[-_]')}\.ko$", builtin, re.M):
            return
        paths = [path for path in root.rglob("*.ko*") if _name(path) == name]
        if not paths:
            pytest.skip(f"{release} has no module {name}")
        data = paths[0].read_bytes()
        if paths[0].suffix == ".xz":
            data = lzma.decompress(data)
        needs = re.search(rb"\0depends=([^\0]*)", data)
        for need in (needs[1].decode() if needs else "").split(","):
            if need:
                add(need.replace("-", "_"))
        found[name] = data

    for name in wanted:
        add(name)
    return list(found.items())


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")
