"""LZO1X, as ``lzop`` writes it.

The stream is specified in Linux ``Documentation/staging/lzo.rst``. The
container has no document but lzop's source; its fields are named in Linux
``lib/decompress_unlzo.c``. All numbers of the container are big-endian.

A decoder in plain Python: kernels with LZO are rare, a few seconds go into one,
once (see ``cache``).
"""

from __future__ import annotations

import struct
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAGIC", "LzoError", "decompress_block", "decompress_lzop"]

MAGIC = b"\x89LZO\0\r\n\x1a\n"

ADLER32_UNPACKED = 1 << 0
ADLER32_PACKED = 1 << 1
EXTRA_FIELD = 1 << 6
CRC32_UNPACKED = 1 << 8
CRC32_PACKED = 1 << 9
MULTIPART = 1 << 10
FILTER = 1 << 11

HAS_LEVEL = 0x0940
"""From this version on the header has "version needed", level and 64-bit time."""

BLOCK_MAX = 64 << 20


class LzoError(ValueError):
    """The stream is damaged, in the words of the message."""


def decompress_lzop(data: memoryview) -> Iterator[bytes]:
    """The blocks of an lzop file, unpacked. Raises LzoError."""
    try:
        yield from _blocks(data, *_header(data))
    except (IndexError, struct.error):
        raise LzoError("it is cut off") from None


def _header(data: memoryview) -> tuple[int, int]:
    """The offset of the first block, and the flags."""
    if bytes(data[:9]) != MAGIC:
        raise LzoError("no lzop header")
    version = struct.unpack_from(">H", data, 9)[0]
    at = 13  # behind the library's version
    if version >= HAS_LEVEL:
        at += 2
    method = data[at]
    if method not in (1, 2, 3):  # LZO1X-1, LZO1X-1(15), LZO1X-999: one stream format
        raise LzoError(f"method {method} is not LZO1X")
    at += 2 if version >= HAS_LEVEL else 1
    flags: int = struct.unpack_from(">I", data, at)[0]
    at += 4
    if flags & FILTER:
        raise LzoError("it has a filter")
    at += 12 if version >= HAS_LEVEL else 8  # mode, time
    at += 1 + data[at]  # name
    at += 4  # header checksum
    if flags & EXTRA_FIELD:
        at += 4 + struct.unpack_from(">I", data, at)[0] + 4
    return at, flags


def _blocks(data: memoryview, at: int, flags: int) -> Iterator[bytes]:
    while True:
        size: int = struct.unpack_from(">I", data, at)[0]
        at += 4
        if size == 0:
            return
        packed: int = struct.unpack_from(">I", data, at)[0]
        at += 4
        if not 0 < packed <= size <= BLOCK_MAX:
            raise LzoError(f"a block of {packed} bytes for {size}")
        sums: list[tuple[bool, int]] = []
        for flag in (ADLER32_UNPACKED, CRC32_UNPACKED):
            if flags & flag:
                sums.append((flag == CRC32_UNPACKED, struct.unpack_from(">I", data, at)[0]))
                at += 4
        if packed < size:  # stored blocks have no second checksum
            at += 4 * bool(flags & ADLER32_PACKED) + 4 * bool(flags & CRC32_PACKED)
        block = data[at : at + packed]
        if len(block) != packed:
            raise LzoError("it is cut off")
        at += packed
        unpacked = bytes(block) if packed == size else decompress_block(bytes(block), size)
        for is_crc, expected in sums:
            if (zlib.crc32(unpacked) if is_crc else zlib.adler32(unpacked)) != expected:
                raise LzoError("a block whose checksum is wrong")
        yield unpacked


def decompress_block(data: bytes, size: int) -> bytes:
    """One LZO1X stream of exactly ``size`` bytes unpacked. Raises LzoError."""
    try:
        out = _decode(data, size)
    except IndexError:
        raise LzoError("a block that is cut off") from None
    if len(out) != size:
        raise LzoError(f"a block with {len(out)} bytes instead of {size}")
    return bytes(out)


def _decode(data: bytes, size: int) -> bytearray:
    # "state" is lzo.rst's: 0 to 3 literals were copied with the last instruction, 4 means more.
    out = bytearray()
    at = 0
    state = 0
    if data[0] > 17:
        count = data[0] - 17
        out += data[1 : 1 + count]
        at = 1 + count
        state = min(count, 4)
    while True:
        code = data[at]
        at += 1
        if code >= 64:
            distance = (data[at] << 3) + (code >> 2 & 7) + 1
            at += 1
            length = (code >> 5) + 1
            state = code & 3
        elif code >= 16:
            mask = 31 if code >= 32 else 7
            length = code & mask
            if not length:
                extra, at = _long_count(data, at)
                length = mask + extra
            length += 2
            low = data[at] | data[at + 1] << 8
            at += 2
            state = low & 3
            if mask == 31:
                distance = (low >> 2) + 1
            else:
                distance = 16384 + ((code & 8) << 11) + (low >> 2)
                if distance == 16384:
                    if at != len(data):
                        raise LzoError("a block with something behind its end")
                    return out
        elif state == 0:
            if not code:
                extra, at = _long_count(data, at)
                code = 15 + extra
            code += 3
            out += data[at : at + code]
            at += code
            if len(out) > size:
                raise LzoError("a block with more bytes than it claims")
            state = 4
            continue
        else:
            distance = (data[at] << 2) + (code >> 2) + 1
            length = 2
            if state == 4:
                distance += 2048
                length = 3
            at += 1
            state = code & 3

        end = len(out)
        start = end - distance
        if start < 0 or end + length > size:
            raise LzoError("a block that refers to what is not there")
        if length <= distance:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]
        if state:
            out += data[at : at + state]
            at += state


def _long_count(data: bytes, at: int) -> tuple[int, int]:
    # A run of n zero bytes and one more byte b stands for 255 n + b.
    start = at
    while not data[at]:
        at += 1
    return 255 * (at - start) + data[at], at + 1
