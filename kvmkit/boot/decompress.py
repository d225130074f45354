"""The compressed kernel in a bzImage, unpacked on the host.

The formats are those of Linux ``scripts/Makefile.lib`` ("Compression"): gzip,
bzip2, lzma (.lzma), xz, lzo (lzop), lz4 (legacy frame) and zstd. Behind the
stream stand 4 bytes with the unpacked size, little-endian (``size_append``);
gzip has them as its own last field (RFC 1952, ISIZE).

Doing this on the host saves the guest the time, and bypasses the kernel's
decompressor and with it KASLR: the kernel runs at the addresses it was linked
for. Whoever wants KASLR lets the guest unpack (``plan_linux(unpack=False)``).
"""

from __future__ import annotations

import mmap
import struct

from kvmkit.errors import BadKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

__all__ = ["UNPACKED_MAX", "compression", "unpack", "unpacked_size"]

UNPACKED_MAX = 1 << 30
"""A larger kernel is taken for damaged (the kernel's image area has 1 GiB, ``mm.rst``)."""

CHUNK = 1 << 20

Unpacker: TypeAlias = "Callable[[memoryview], Iterator[bytes]]"


def compression(payload: memoryview) -> str:
    """The name of the compression by the payload's first bytes; empty if unknown."""
    start = bytes(payload[:9])
    for magic, name in MAGICS:
        if start.startswith(magic):
            return name
    return ""


def unpacked_size(payload: memoryview) -> int:
    """The size in bytes that the payload says it unpacks to.

    Raises BadKernel if that cannot be.
    """
    if len(payload) < 8:
        raise BadKernel(f"the kernel's compressed part has {len(payload)} bytes only")
    size: int = struct.unpack_from("<I", payload, len(payload) - 4)[0]
    if not 0 < size <= UNPACKED_MAX:
        raise BadKernel(
            f"the kernel is damaged: it claims to unpack to {size} bytes", "Copy or build it again."
        )
    return size


def unpack(payload: memoryview) -> mmap.mmap:
    """The unpacked payload, in anonymous memory of exactly its size.

    Raises BadKernel for an unknown compression, a stream that is damaged, or one
    whose length is not the one it claims.
    """
    name = compression(payload)
    if not name:
        raise BadKernel(
            f"the kernel's compressed part starts with {bytes(payload[:8]).hex(' ')}, "
            "which is no known compression (encrypted?)",
            "Known are gzip, bzip2, lzma, xz, lzo, lz4 and zstd.",
        )
    size = unpacked_size(payload)
    target = mmap.mmap(-1, size)
    at = 0
    try:
        stream = payload if name == "gzip" else payload[:-4]
        for chunk in UNPACKERS[name](stream):
            if at + len(chunk) > size:
                raise _Damaged(f"more than the {size} bytes it claims")
            target[at : at + len(chunk)] = chunk
            at += len(chunk)
        if at != size:
            raise _Damaged(f"{at} bytes instead of {size}")
    except _Damaged as problem:
        target.close()
        raise BadKernel(
            f"the kernel is damaged: its {name} part unpacks to {problem}",
            "Copy or build it again.",
        ) from None
    return target


class _Damaged(Exception):
    """What is wrong with the stream, to follow "unpacks to"."""


def _lz4(payload: memoryview) -> Iterator[bytes]:
    # LZ4 "Legacy frame" (lz4_Frame_format.md): a magic number, then blocks of at most 8 MiB
    # unpacked, each behind its packed size. Streams may follow each other, magic included.
    try:
        from lz4.block import LZ4BlockError, decompress
    except ImportError:
        raise _missing("lz4") from None

    at, end = 4, len(payload)
    while at < end:
        if end - at < 4:
            raise _Damaged("a block that is cut off")
        length: int = struct.unpack_from("<I", payload, at)[0]
        at += 4
        if length == LZ4_LEGACY_MAGIC:
            continue
        if not 0 < length <= end - at:
            raise _Damaged("a block that is cut off")
        try:
            yield decompress(payload[at : at + length], uncompressed_size=LZ4_LEGACY_BLOCK)
        except LZ4BlockError:
            raise _Damaged("a damaged block") from None
        at += length


LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_LEGACY_BLOCK = 8 << 20


def _zstd(payload: memoryview) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise _missing("zstandard") from None

    try:
        with zstandard.ZstdDecompressor().stream_reader(payload) as reader:
            while chunk := reader.read(CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise _Damaged(f"nonsense ({error})") from None


def _gzip(payload: memoryview) -> Iterator[bytes]:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    rest: bytes | memoryview = payload
    try:
        while not stream.eof:
            chunk = stream.decompress(rest, CHUNK)
            rest = stream.unconsumed_tail
            if not chunk and not rest and not stream.eof:
                raise _Damaged("less than it should: it is cut off")
            yield chunk
    except zlib.error as error:
        raise _Damaged(f"nonsense ({error})") from None


def _bzip2(payload: memoryview) -> Iterator[bytes]:
    import bz2

    stream = bz2.BZ2Decompressor()
    rest: bytes | memoryview = payload
    try:
        while not stream.eof:
            if stream.needs_input and not rest:
                raise _Damaged("less than it should: it is cut off")
            yield stream.decompress(rest, CHUNK)
            rest = b""
    except OSError as error:
        raise _Damaged(f"nonsense ({error})") from None


def _xz(payload: memoryview) -> Iterator[bytes]:
    import lzma

    yield from _liblzma(payload, lzma.FORMAT_XZ)


def _lzma(payload: memoryview) -> Iterator[bytes]:
    import lzma

    yield from _liblzma(payload, lzma.FORMAT_ALONE)


def _liblzma(payload: memoryview, format_: int) -> Iterator[bytes]:
    import lzma

    stream = lzma.LZMADecompressor(format_, memlimit=LZMA_MEMORY)
    rest: bytes | memoryview = payload
    try:
        while not stream.eof:
            if stream.needs_input and not rest:
                raise _Damaged("less than it should: it is cut off")
            yield stream.decompress(rest, CHUNK)
            rest = b""
    except lzma.LZMAError as error:
        raise _Damaged(f"nonsense ({error})") from None


LZMA_MEMORY = 256 << 20
"""More than ``xz -9e`` needs with the kernel's 32 MiB dictionary, less than an attack wants."""


def _lzo(payload: memoryview) -> Iterator[bytes]:
    from kvmkit.boot.lzo import LzoError, decompress_lzop

    try:
        yield from decompress_lzop(payload)
    except LzoError as error:
        raise _Damaged(f"nonsense ({error})") from None


def _missing(package: str) -> BadKernel:
    return BadKernel(
        f"the kernel is compressed in a way that needs the Python package {package}",
        f"pip install {package}",
    )


MAGICS = (
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\x89LZO\0\r\n\x1a\n", "lzo"),
    (b"\x5d\0\0", "lzma"),
)

UNPACKERS: dict[str, Unpacker] = {
    "bzip2": _bzip2, "gzip": _gzip, "lz4": _lz4, "lzma": _lzma, "lzo": _lzo, "xz": _xz,
    "zstd": _zstd,
}  # fmt: skip
