"""Frames of the agent's protocol: ``docs/guest-protocol.md``, ``agent/wire.h``.

Each has a header of 8 bytes, little-endian: length of the payload (4), session
(2), type (1), stream (1).
"""

from __future__ import annotations

import struct

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FRAME_MAX",
    "PORT_NAME",
    "VERSION",
    "WINDOW",
    "Decoder",
    "Frame",
    "ProtocolError",
    "encode",
    "order_frames",
    "records",
]

VERSION = 1
PORT_NAME = "org.kvmkit.agent"
"""The name of the virtio console's port that the agent opens."""

FRAME_MAX = 65536
WINDOW = 65536
"""Bytes of a stream that may be under way at first, if HELLO does not say else."""

HELLO, ORDER, START, DATA, END, WINDOW_MORE, SIGNAL, RESIZE = range(1, 9)
STARTED, EXITED, FAILED, CLOSE, POWER, PING, PONG = range(9, 16)
"""Types of frames; the comments in ``agent/wire.h`` say who sends which."""

INPUT, OUTPUT, ERROR = range(3)
POWER_OFF, POWER_REBOOT, POWER_HALT = range(3)

_HEADER = struct.Struct("<IHBB")
_TEXT = struct.Struct("<I")


class ProtocolError(Exception):
    """The guest sent what is no frame; nothing more can be understood."""


class Frame(Record):
    """One frame."""

    type: int
    session: int = 0
    stream: int = 0
    payload: bytes = b""

    @property
    def number(self) -> int:
        """The payload's first 4 bytes; 0 if there are fewer."""
        return int.from_bytes(self.payload[:4], "little") if len(self.payload) >= 4 else 0


def encode(kind: int, session: int = 0, stream: int = 0, payload: bytes | int = b"") -> bytes:
    """The bytes of a frame; a number becomes a payload of 4 bytes."""
    data = _TEXT.pack(payload) if isinstance(payload, int) else payload
    return _HEADER.pack(len(data), session, kind, stream) + data


def order_frames(session: int, text: bytes) -> bytes:
    """The frames that start a session: ``text`` is made by :func:`records`."""
    pieces = [text[at : at + FRAME_MAX] for at in range(0, len(text), FRAME_MAX)] or [b""]
    frames = [encode(ORDER, session, 0, piece) for piece in pieces[:-1]]
    return b"".join([*frames, encode(START, session, 0, pieces[-1])])


def records(pairs: Iterable[tuple[str, str]]) -> bytes:
    """``KEY=VALUE`` texts, each ended by a NUL."""
    text = "".join(f"{key}={value}\0" for key, value in pairs)
    return text.encode(errors="surrogateescape")


class Decoder:
    """Bytes in, frames out, whatever pieces they come in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises ProtocolError for one that is too long."""
        rest = self._rest
        rest += data
        frames = []
        at = 0
        while len(rest) - at >= _HEADER.size:
            size, session, kind, stream = _HEADER.unpack_from(rest, at)
            if size > FRAME_MAX:
                raise ProtocolError(f"a frame of {size} bytes, where {FRAME_MAX} are allowed")
            end = at + _HEADER.size + size
            if end > len(rest):
                break
            frames.append(Frame(kind, session, stream, bytes(rest[at + _HEADER.size : end])))
            at = end
        del rest[:at]
        return frames
