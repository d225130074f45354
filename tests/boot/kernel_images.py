"""Kernel images made in the test: bzImages, ELF files, PVH notes. Helpers, no tests."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from kvmkit.board import layout
from kvmkit.boot.plan import BootPlan, LoaderAddresses

MIB = 1 << 20
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
RAM_256 = ((0, 256 * MIB),)
RESERVED = ((layout.LOW_RAM_END, layout.HIGH_RAM_START - layout.LOW_RAM_END),)

ADDRESSES = LoaderAddresses(
    gdt=layout.BOOT_GDT,
    boot_params=layout.BOOT_PARAMS,
    start_info=layout.PVH_START_INFO,
    page_tables=layout.BOOT_PAGE_TABLES,
    stack=layout.BOOT_STACK,
    command_line=layout.COMMAND_LINE,
    command_line_max=layout.COMMAND_LINE_MAX,
    reserved=RESERVED,
)


@dataclass(frozen=True)
class Part:
    """A PT_LOAD segment to be made."""

    address: int
    data: bytes
    memory_size: int = 0
    virtual: int | None = None


TEXT = Part(0x100_0000, b"\x90" * 5000 + b"Linux version 6.9.1-test (me) #1\n\0", 0x4000)


def note(kind: int, description: bytes, owner: bytes = b"Xen\0") -> bytes:
    """One ELF note."""
    body = owner + bytes(-len(owner) % 4) + description + bytes(-len(description) % 4)
    return struct.pack("<III", len(owner), len(description), kind) + body


def elf64(
    parts: Sequence[Part] = (TEXT,),
    *,
    entry: int | None = None,
    notes: bytes = b"",
    machine: int = 62,
    kind: int = 2,
) -> bytes:
    """A 64-bit ELF file; by default linked as Linux links itself."""
    entry = parts[0].address if entry is None else entry
    count = len(parts) + bool(notes)
    at = 64 + 56 * count
    headers, body = b"", b""
    for part in parts:
        virtual = part.virtual or (KERNEL_MAP + part.address) % (1 << 64)
        size = max(part.memory_size, len(part.data))
        headers += struct.pack(
            "<IIQQQQQQ", 1, 7, at + len(body), virtual, part.address, len(part.data), size, 4096
        )
        body += part.data
    if notes:
        headers += struct.pack("<IIQQQQQQ", 4, 4, at + len(body), 0, 0, len(notes), len(notes), 4)
        body += notes
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    return header + headers + body


def elf32(part: Part, *, entry: int, notes: bytes = b"") -> bytes:
    """A 32-bit x86 ELF file with one segment and notes."""
    count = 1 + bool(notes)
    at = 52 + 32 * count
    size = len(part.data)
    headers = struct.pack("<8I", 1, at, part.address, part.address, size, size, 7, 4096)
    if notes:
        headers += struct.pack("<8I", 4, at + size, 0, 0, len(notes), len(notes), 4, 4)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, count, 0, 0, 0)
    return header + headers + part.data + notes


def pvh_note(entry: int, size: int = 8) -> bytes:
    """XEN_ELFNOTE_PHYS32_ENTRY behind another note."""
    return note(6, b"linux\0") + note(18, entry.to_bytes(size, "little"))


def bzimage(
    payload: bytes,
    *,
    protocol: int = 0x20F,
    xloadflags: int = 0x7F,
    loadflags: int = 1,
    relocatable: int = 1,
    cmdline_size: int = 2047,
    initrd_addr_max: int = 0x7FFF_FFFF,
    init_size: int = 4 * MIB,
    version: bytes = b"6.9.1-test (me@here) #1 SMP",
    payload_length: int | None = None,
    sectors: int = 4,
) -> bytes:
    """A bzImage around a compressed payload (its size field included)."""
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", setup, 0x200, 0xEB, 0x26C - 0x202, b"HdrS", protocol)
    struct.pack_into("<H", setup, 0x20E, 0x400 - 0x200 if version else 0)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x214, 0x10_0000)
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<IBBH", setup, 0x230, 0x20_0000, relocatable, 21, xloadflags)
    struct.pack_into("<I", setup, 0x238, cmdline_size)
    length = len(payload) if payload_length is None else payload_length
    struct.pack_into("<II", setup, 0x248, 0x300, length)
    struct.pack_into("<QQII", setup, 0x250, 0, 0x100_0000, init_size, 0)
    setup[0x400 : 0x400 + len(version) + 1] = version + b"\0"
    return bytes(setup) + b"\xcc" * 0x300 + payload + b"\x0f" * 64


def size_field(data: bytes) -> bytes:
    """What ``size_append`` puts behind a compressed kernel."""
    return struct.pack("<I", len(data))


def pack_lz4(data: bytes, block: int = 8 * MIB) -> bytes:
    """lz4's legacy frame."""
    lz4_block = pytest.importorskip("lz4.block", reason="the lz4 package is missing")
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), block):
        packed = lz4_block.compress(data[at : at + block], store_size=False)
        out += struct.pack("<I", len(packed)) + packed
    return out + size_field(data)


def pack_zstd(data: bytes) -> bytes:
    """A zstd frame."""
    zstandard = pytest.importorskip("zstandard", reason="the zstandard package is missing")
    packed: bytes = zstandard.ZstdCompressor().compress(data)
    return packed + size_field(data)


def pack_lzo(data: bytes) -> bytes:
    """What lzop makes; skips without lzop."""
    if shutil.which("lzop") is None:
        pytest.skip("lzop is not installed (apt install lzop)")
    packed = subprocess.run(["lzop", "-9", "-c"], input=data, capture_output=True, check=True)
    return packed.stdout + size_field(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "bzip2": lambda data: bz2.compress(data) + size_field(data),
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "lz4": pack_lz4,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + size_field(data),
    "lzo": pack_lzo,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32) + size_field(data),
    "zstd": pack_zstd,
}


class Memory:
    """Guest memory as a plan leaves it."""

    def __init__(self, plan: BootPlan) -> None:
        self.plan = plan

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address; what nobody wrote is zero."""
        out = bytearray(size)
        for load in self.plan.loads:
            low = max(address, load.address)
            high = min(address + size, load.address + len(load.data))
            if low < high:
                part = bytes(load.data[low - load.address : high - load.address])
                out[low - address : high - address] = part
        return bytes(out)

    def u32(self, address: int) -> int:
        """A little-endian 32-bit number."""
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """A little-endian 64-bit number."""
        return int.from_bytes(self.read(address, 8), "little")
