"""Unpacked kernels, kept on disk.

An entry is the unpacked ELF file as it is (``readelf`` and ``gdb`` read it),
with its empty parts as holes, and a trailer that says which parts are not
empty. Its name is the SHA-256 of the compressed payload.

To hash 14 MB takes longer than everything else a warm start does, so a hit is
also reachable by the *file's* identity: a symbolic link whose name is the
file's device, inode, size, modification and change time (what make and git go
by), and a checksum of samples of the payload. A link is made only if the file
last changed well before it was read, so that no change can hide in the clock's
granularity. The samples are for what is written through a mapping without a new
change time: at the end of compressed data gzip, xz and zstd have a checksum of
the whole, and lz4's and lzo's lengths change. A CRC of all would take 6 ms.

Entries are written aside and renamed; a damaged one is noticed by its length,
magic numbers and the trailer's checksum, and made again. The 8 used last stay.
"""

from __future__ import annotations

import os
import stat
import struct
import time
import zlib

from kvmkit.boot.decompress import unpack, unpacked_size
from kvmkit.boot.extents import Extent, nonzero_extents
from kvmkit.boot.files import map_file, steady
from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import TypeAlias

__all__ = ["Unpacked", "fetch"]

KEEP = 8
SETTLED_NS = 3_000_000_000
"""Older changes than this are seen in the change time (FAT's is the coarsest: 2 s)."""

ABANDONED_NS = 3600_000_000_000
"""A file aside that is older was left behind by a process that died."""

MAGIC = b"kvmkit-1"
EXTENT = struct.Struct("<QQ")
FOOTER = struct.Struct("<QIIQ8s")  # ELF's bytes, extents, CRC-32, payload's bytes, magic
HEAD = 4096

SAMPLE = 4096
SAMPLE_STEP = 1 << 18
"""Bytes of a payload that are looked at, every so many bytes."""

Unpacked: TypeAlias = "tuple[memoryview, Sequence[Extent]]"
"""An unpacked kernel and its parts that are not zero."""


def fetch(payload: memoryview, status: os.stat_result, directory: Path | None) -> Unpacked:
    """The unpacked ``payload`` of a file with ``status``, from the cache where it can be.

    A cache that cannot be written is no error: it just does not help. Raises BadKernel for a
    payload that cannot be unpacked.
    """
    if directory is None:
        return _unpack(steady([payload]))
    samples = _samples(payload)
    size = unpacked_size(samples[: min(SAMPLE, len(payload))])
    link = os.path.join(directory, _identity(samples, status))
    found = _load(link, payload, size)
    if found is not None:
        _touch(link)
        return found
    from hashlib import sha256

    payload = steady([payload])  # what is hashed is what is unpacked, whoever writes meanwhile
    name = f"{sha256(payload).hexdigest()}.elf"
    entry = os.path.join(directory, name)
    found = _load(entry, payload, size)
    if found is not None:
        _touch(entry)
    else:
        fresh = _unpack(payload)
        if not _store(entry, payload, *fresh):
            return fresh
        # read back, so that the pages are the file's and not this process's own
        found = _load(entry, payload, size) or fresh
    if stat.S_ISREG(status.st_mode) and time.time_ns() - status.st_ctime_ns > SETTLED_NS:
        _link(link, name)
    return found


def _unpack(payload: memoryview) -> Unpacked:
    data = memoryview(unpack(payload))
    return data, nonzero_extents(data)


def _identity(samples: memoryview, status: os.stat_result) -> str:
    # No CRC-32: that of data with its own CRC-32 behind it, as gzip has it, is always the same.
    fields = (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        zlib.adler32(samples),
    )  # fmt: skip
    return "-".join([f"{field:x}" for field in fields]) + ".of"


def _samples(payload: memoryview) -> memoryview:
    """The end, the beginning, and what lies evenly between; the last 4 KiB come first."""
    starts = range(0, len(payload), SAMPLE_STEP)
    return steady([payload[-SAMPLE:], *(payload[at : at + SAMPLE] for at in starts)])


def _load(path: str, payload: memoryview, size: int) -> Unpacked | None:
    try:
        data, _ = map_file(path, FileTrouble, "the cached kernel")
    except FileTrouble:
        return None
    if len(data) < size + FOOTER.size:
        return None
    stored, count, crc, packed, magic = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    if (stored, packed, magic) != (size, len(payload), MAGIC):
        return None
    if len(data) != size + count * EXTENT.size + FOOTER.size or bytes(data[:4]) != b"\x7fELF":
        return None
    table = data[size : len(data) - FOOTER.size]
    if crc != zlib.crc32(data[:HEAD], zlib.crc32(table)):
        return None
    return data[:size], list(EXTENT.iter_unpack(table))


def _store(path: str, payload: memoryview, data: memoryview, extents: Sequence[Extent]) -> bool:
    table = b"".join(EXTENT.pack(*extent) for extent in extents)
    crc = zlib.crc32(data[:HEAD], zlib.crc32(table))
    footer = FOOTER.pack(len(data), len(extents), crc, len(payload), MAGIC)
    directory = os.path.dirname(path)
    aside = _aside(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(aside, "xb", buffering=0) as file:
            for start, length in extents:
                _write(file.fileno(), data[start : start + length], start)
            _write(file.fileno(), memoryview(table + footer), len(data))
        os.rename(aside, path)
    except OSError:
        _remove(aside)
        return False
    _prune(directory)
    return True


def _aside(path: str) -> str:
    # unlike that of any other process or thread
    return f"{path}.{os.getpid()}.{time.monotonic_ns():x}.new"


def _touch(path: str) -> None:
    try:
        os.utime(path)
    except OSError:
        pass


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    # a write can be short (2 GiB limit, signals, a disk that fills up)
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written


def _link(link: str, target: str) -> None:
    aside = _aside(link)
    try:
        os.symlink(target, aside)
        os.rename(aside, link)
    except OSError:
        _remove(aside)


def _prune(directory: str) -> None:
    """Leave the entries used last, the links that lead to them, and files being written."""
    entries: list[tuple[int, str]] = []
    links: list[str] = []
    try:
        for item in os.scandir(directory):
            if item.name.endswith(".elf"):
                entries.append((item.stat().st_mtime_ns, item.path))
            elif item.name.endswith(".of"):
                links.append(item.path)
            elif item.name.endswith(".new") and _age_ns(item) > ABANDONED_NS:
                _remove(item.path)
    except OSError:
        return
    for _, path in sorted(entries, reverse=True)[KEEP:]:
        _remove(path)
    for path in links:
        if not os.path.exists(path):
            _remove(path)


def _age_ns(item: os.DirEntry[str]) -> int:
    return time.time_ns() - item.stat(follow_symlinks=False).st_mtime_ns


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
