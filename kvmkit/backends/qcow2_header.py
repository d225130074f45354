"""The header of a qcow2 image: what it says of the disk, and what we refuse.

QEMU, ``docs/interop/qcow2.rst``, "Header" and "Header extensions". Numbers are
big-endian. Everything here comes from a file that anybody may have made: sizes are
limited as QEMU limits them, so that no table takes unbounded memory.
"""

from __future__ import annotations

import os
from struct import Struct

from kvmkit.errors import FileTrouble
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

__all__ = ["Header", "read_header"]

MAGIC: Final = b"QFI\xfb"
VERSIONS: Final = (2, 3)
MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
MAX_L1_BYTES: Final = 32 << 20
MAX_REFTABLE_BYTES: Final = 8 << 20
MAX_BACKING_NAME: Final = 1023
MAX_REFCOUNT_ORDER: Final = 6
MAX_SIZE: Final = 1 << 63

_V2 = Struct(">4sIQIIQIIQQIIQ")
_V3 = Struct(">QQQII")
V2_LENGTH: Final = 72
V3_LENGTH: Final = 104

# Incompatible features
DIRTY: Final = 1 << 0
CORRUPT: Final = 1 << 1
DATA_FILE: Final = 1 << 2
COMPRESSION: Final = 1 << 3
EXTENDED_L2: Final = 1 << 4

AUTOCLEAR_OFFSET: Final = 88
REFTABLE_OFFSET: Final = 48
"""Where the header keeps the refcount table's offset (8 bytes) and clusters (4 bytes)."""

# Header extensions
EXT_END: Final = 0x0000_0000
EXT_BACKING_FORMAT: Final = 0xE279_2ACA
EXT_FEATURE_NAMES: Final = 0x6803_F857
_FEATURE = 48  # bytes of an entry: kind, bit, name

ZLIB: Final = 0
ZSTD: Final = 1
_CRYPT = {1: "AES", 2: "LUKS"}
_REPAIR = "qemu-img check -r all repairs it"


class Header(Record, kw_only=True):
    """What matters of it; offsets in bytes, ``refcount_bits`` and ``cluster_bits`` in bits."""

    version: int
    cluster_bits: int
    size: int
    l1_offset: int
    l1_entries: int
    reftable_offset: int
    reftable_clusters: int
    refcount_order: int
    compression: int
    autoclear: int
    snapshots: int
    backing: str | None
    backing_format: str | None


def read_header(fd: int, path: str, *, write: bool) -> Header:
    """The header of the image open as ``fd``. Raises FileTrouble for what we cannot use."""
    reader = _Reader(fd, path)
    (
        magic, version, backing_offset, backing_size, cluster_bits, size, crypt, l1_entries,
        l1_offset, reftable_offset, reftable_clusters, snapshots, _,
    ) = _V2.unpack(reader.bytes(0, V2_LENGTH))  # fmt: skip
    if magic != MAGIC:
        raise reader.bad(f"expected the mark of qcow2, found {magic!r}", "add ,format=raw")
    if version not in VERSIONS:
        raise reader.bad(f"expected qcow2 version 2 or 3, found {version}", _convert(path))
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise reader.bad(f"expected clusters of 512 to 2097152 bytes, found 2**{cluster_bits}")
    cluster = 1 << cluster_bits
    incompatible = autoclear = compression = 0
    order, length = 4, V2_LENGTH
    if version > 2:
        incompatible, _, autoclear, order, length = _V3.unpack(
            reader.bytes(V2_LENGTH, V3_LENGTH - V2_LENGTH)
        )
        if not V3_LENGTH <= length <= cluster or length % 8:
            raise reader.bad(f"expected a header of {V3_LENGTH} bytes or more, found {length}")
        if length > V3_LENGTH:
            compression = reader.bytes(V3_LENGTH, 1)[0]
    extensions = dict(_extensions(reader, length, min(cluster, backing_offset or cluster)))
    if crypt:
        kind = _CRYPT.get(crypt, f"method {crypt}")
        raise reader.bad(f"the image is encrypted ({kind})", _convert(path))
    _check_features(reader, incompatible, extensions, write=write)
    if compression not in (ZLIB, ZSTD) or bool(compression) != bool(incompatible & COMPRESSION):
        raise reader.bad(f"expected compression by zlib or zstd, found type {compression}")
    if order > MAX_REFCOUNT_ORDER:
        raise reader.bad(f"expected refcounts of at most 64 bits, found 2**{order}")
    if not 512 <= size < MAX_SIZE:
        raise reader.bad(f"a disk has at least 512 bytes and less than 2**63, this one {size}")
    needed = -(-size // (cluster * (cluster // 8)))
    if needed > l1_entries or needed * 8 > MAX_L1_BYTES:
        raise reader.bad(
            f"expected an L1 table of {needed} entries for {size} bytes, "
            f"at most {MAX_L1_BYTES // 8}, found {l1_entries}"
        )
    reader.place("L1 table", l1_offset, needed * 8, cluster)
    reftable_bytes = reftable_clusters << cluster_bits
    if not 0 < reftable_bytes <= max(MAX_REFTABLE_BYTES, cluster):
        raise reader.bad(f"expected a refcount table of at most 8 MiB, found {reftable_bytes}")
    reader.place("refcount table", reftable_offset, reftable_bytes, cluster)
    backing = None
    if backing_offset:
        if not 0 < backing_size <= MAX_BACKING_NAME or backing_offset + backing_size > cluster:
            raise reader.bad("the backing file's name is not in the first cluster")
        backing = os.fsdecode(reader.bytes(backing_offset, backing_size))
    formatted = extensions.get(EXT_BACKING_FORMAT)
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size - size % 512,
        l1_offset=l1_offset,
        l1_entries=needed,
        reftable_offset=reftable_offset,
        reftable_clusters=reftable_clusters,
        refcount_order=order,
        compression=compression,
        autoclear=autoclear,
        snapshots=snapshots,
        backing=backing,
        backing_format=formatted.decode("ascii", "replace") if formatted else None,
    )


def _check_features(
    reader: _Reader, found: int, extensions: dict[int, bytes], *, write: bool
) -> None:
    if found & DATA_FILE:
        raise reader.bad("the data is in another file (data_file)", _convert(reader.path))
    if found & EXTENDED_L2:
        raise reader.bad("the image has extended L2 entries", _convert(reader.path))
    unknown = found & ~(DIRTY | CORRUPT | COMPRESSION)
    if unknown:
        bit = (unknown & -unknown).bit_length() - 1
        name = _feature_name(extensions.get(EXT_FEATURE_NAMES, b""), bit)
        raise reader.bad(f"the image needs a feature we do not have: {name}", _convert(reader.path))
    if found & CORRUPT and write:
        raise reader.bad("the image is marked as corrupt", _REPAIR)
    if found & DIRTY and write:
        raise reader.bad("the image was not closed, its refcounts are not up to date", _REPAIR)


def _feature_name(table: bytes, bit: int) -> str:
    for at in range(0, len(table) - _FEATURE + 1, _FEATURE):
        if table[at] == 0 and table[at + 1] == bit:
            return table[at + 2 : at + _FEATURE].rstrip(b"\0").decode("ascii", "replace")
    return f"incompatible bit {bit}"


def _extensions(reader: _Reader, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Kind and data of each; they end where the backing file's name or the cluster does."""
    at = start
    while at + 8 <= end:
        head = reader.bytes(at, 8, short=True)
        kind, size = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
        if kind == EXT_END:
            return
        if at + 8 + size > end:
            raise reader.bad(f"a header extension of {size} bytes does not fit")
        if kind in (EXT_BACKING_FORMAT, EXT_FEATURE_NAMES):
            yield kind, reader.bytes(at + 8, size)
        at += 8 + (size + 7 & ~7)


def _convert(path: str) -> str:
    return f"qemu-img convert -O qcow2 {path} NEW makes one that can be used"


class _Reader:
    """The file, with errors that name it."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.file_size = os.lseek(fd, 0, os.SEEK_END)

    def bad(self, text: str, hint: str = "") -> FileTrouble:
        return FileTrouble(f"{self.path}: {text}", hint)

    def bytes(self, offset: int, size: int, *, short: bool = False) -> bytes:
        """What is there; zeroes past the end of the file if it may be ``short``."""
        data = os.pread(self.fd, size, offset)
        if len(data) < size and not short:
            raise self.bad(f"the image ends in its header, at byte {self.file_size}")
        return data.ljust(size, b"\0")

    def place(self, what: str, offset: int, size: int, cluster: int) -> None:
        """FileTrouble unless a table can be there."""
        if offset % cluster or not 0 < offset < MAX_SIZE:
            raise self.bad(f"the {what} at {offset:#x} is not at a cluster")
        if offset + size > self.file_size:
            raise self.bad(
                f"the image is cut off: the {what} is at {offset:#x}, the end at "
                f"{self.file_size:#x}"
            )
