"""A kernel file, opened: which kind it is, and what its headers say.

Kinds: a ``bzImage`` (Linux ``Documentation/arch/x86/boot.rst``), an ELF
``vmlinux`` with Linux's 64-bit entry, and an ELF file with a ``pvh`` entry (Xen
``docs/misc/pvh.pandoc``).
"""

from __future__ import annotations

import os

from kvmkit.boot.elf import Elf, parse_elf
from kvmkit.boot.files import map_file
from kvmkit.boot.setup_header import SetupHeader, is_bzimage, parse_setup_header
from kvmkit.errors import BadKernel, KvmkitError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KernelImage", "open_kernel"]

LINUX_BANNER = b"Linux version "


class KernelImage(Record):
    """An opened kernel file. ``data`` is the whole file, mapped read-only.

    What came as a bzImage has a ``header``, what came as an ELF file an ``elf``. ``status`` is
    the file's, taken before it was read.
    """

    path: Path
    kind: str
    version: str
    data: memoryview
    status: os.stat_result
    header: SetupHeader | None = None
    elf: Elf | None = None

    @property
    def release(self) -> str:
        """The version's first word, as ``uname -r`` has it (``6.1.0-50-cloud-amd64``)."""
        return self.version.split(" ", 1)[0]

    @property
    def payload(self) -> memoryview:
        """A bzImage's compressed kernel; empty if there is none."""
        if self.header is None or not self.header.payload_length:
            return self.data[:0]
        start = self.header.code_offset + self.header.payload_offset
        return self.data[start : start + self.header.payload_length]


def open_kernel(path: Path, *, pvh: bool = False) -> KernelImage:
    """Open a kernel and tell its kind; ``pvh`` asks for the PVH entry.

    Raises BadKernel if it cannot be read or is nothing that can be started here.
    """
    data, status = map_file(path, BadKernel, "the kernel")
    try:
        if is_bzimage(data):
            header = parse_setup_header(data)
            kind = "pvh" if pvh else "bzImage"
            return KernelImage(path, kind, header.version, data, status, header=header)
        if bytes(data[:4]) == b"\x7fELF":
            elf = parse_elf(data)
            if elf.is_linux_64 and not pvh:
                return KernelImage(path, "vmlinux", _banner(data), data, status, elf=elf)
            if elf.pvh_entry is not None:
                return KernelImage(path, "pvh", _banner(data), data, status, elf=elf)
            raise BadKernel(_why_no_elf_entry(elf, pvh))
        from kvmkit.boot.foreign import describe

        what, hint = describe(data)
        raise BadKernel(f"expected a bzImage or an ELF kernel, found {what}", hint)
    except KvmkitError as error:
        raise type(error)(f"{path}: {error}", error.hint) from None


def _why_no_elf_entry(elf: Elf, pvh: bool) -> str:
    if pvh:
        return "the ELF file has no PVH entry (Linux: CONFIG_PVH)"
    if elf.bits == 32:
        return "the ELF file is 32-bit only and has no PVH entry; a 64-bit kernel is needed"
    return "the ELF file has neither Linux's 64-bit entry nor a PVH entry"


def _banner(data: memoryview) -> str:
    # "Linux version 6.1.0 (...)" stands in .rodata; the release is its third word.
    source = data.obj
    at = source.find(LINUX_BANNER) if hasattr(source, "find") else -1
    if at < 0:
        return ""
    text = bytes(data[at + len(LINUX_BANNER) : at + 256]).split(b"\0", 1)[0]
    return text.decode("utf-8", "replace").split(" ", 1)[0].strip()
