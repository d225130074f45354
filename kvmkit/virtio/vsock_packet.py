"""Packets of the socket device.

Virtio 1.2, section 5.10.6 (device operation): ``struct virtio_vsock_hdr``.
"""

from __future__ import annotations

from struct import Struct

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["HEADER", "Header"]

HEADER: Final = Struct("<QQIIIHHIII")
"""src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt"""

HOST_CID: Final = 2

TYPE_STREAM: Final = 1

# Operations
OP_REQUEST: Final = 1
OP_RESPONSE: Final = 2
OP_RST: Final = 3
OP_SHUTDOWN: Final = 4
OP_RW: Final = 5
OP_CREDIT_UPDATE: Final = 6
OP_CREDIT_REQUEST: Final = 7

# Flags of SHUTDOWN: the sender will not receive, or not send, any more
SHUTDOWN_RECEIVE: Final = 1
SHUTDOWN_SEND: Final = 2
SHUTDOWN_BOTH: Final = 3

EVENT_TRANSPORT_RESET: Final = 0


class Header(Record):
    """A packet's header, the fields in their order."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    size: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0
