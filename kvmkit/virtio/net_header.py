"""The header before each packet, and the checksum it may leave to others.

Virtio 1.2, section 5.1.6: ``struct virtio_net_hdr``. Checksums are those of RFC 1071.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["HEADER", "HEADER_SIZE", "complete_checksum", "only_checksum"]

HEADER: Final = Struct("<BBHHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers"""
HEADER_SIZE: Final = HEADER.size

# flags
HDR_NEEDS_CSUM: Final = 1
HDR_DATA_VALID: Final = 2

GSO_NONE: Final = 0
NUM_BUFFERS: Final = 10  # offset


def only_checksum(header: bytes | memoryview, size: int) -> bytes:
    """``header`` of a frame of ``size`` bytes reduced to a checksum that is to be completed,
    if it lies in the frame; else to nothing."""
    flags, _, _, _, start, offset, _ = HEADER.unpack(header)
    if flags & HDR_NEEDS_CSUM and start + offset + 2 <= size:
        return HEADER.pack(HDR_NEEDS_CSUM, GSO_NONE, 0, 0, start, offset, 1)
    return HEADER.pack(0, GSO_NONE, 0, 0, 0, 0, 1)


def complete_checksum(frame: bytearray | memoryview, start: int, offset: int) -> None:
    """Store the checksum of what comes from ``start`` on at ``start + offset``, where the
    pseudo header's sum is (5.1.6.2.1). Nothing happens if that is not in the frame."""
    place = start + offset
    if place + 2 > len(frame):
        return
    data = bytes(frame[start:])
    if len(data) & 1:
        data += b"\0"
    # The one's complement sum of 16-bit words is the whole number modulo 0xffff, as
    # 0x10000 is 1 there; the one difference is which of the two zeros comes out.
    total = int.from_bytes(data, "big") % 0xFFFF
    value = 0xFFFF - total
    frame[place : place + 2] = value.to_bytes(2, "big")
