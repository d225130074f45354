"""One request of a guest, taken apart with care, and the pieces of its answer.

Linux, ``include/uapi/linux/fuse.h``: a header, the operation's structure, then
names that end in a NUL each. Nothing of it is trusted; what cannot be meant is
EINVAL to the guest.
"""

from __future__ import annotations

from errno import EINVAL, ENAMETOOLONG
from os import strerror

from kvmkit.backends.fuse.abi import IN_HEADER, OUT_HEADER, Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from struct import Struct
    from typing import Any, Final

    Answer = bytes | int | None

__all__ = ["BODY_MOST", "OFFSET_MOST", "Later", "Request", "check_name", "error", "parse", "split"]

NAME_MAX: Final = 255
PATH_MAX: Final = 4096
OFFSET_MOST: Final = (1 << 63) - 1
BODY_MOST: Final = 1 << 17
"""Bytes a request may have besides the data of a WRITE: an xattr has 64 KiB."""

_WRITE_BODY: Final = 40


class Later(Exception):
    """A request that is not to be waited for would have to wait."""


def error(number: int) -> OSError:
    """What an operation raises to answer with errno ``number``."""
    return OSError(number, strerror(number))


class Request:
    """A request of user ``uid`` and group ``gid`` in the guest, about ``nodeid``.

    ``data`` is what a WRITE carries, ``room`` where the answer's payload goes: both
    are the guest's memory, and may change under one's eyes.
    """

    __slots__ = ("_at", "body", "data", "gid", "nodeid", "now", "opcode", "room", "uid", "unique")

    def __init__(
        self,
        opcode: int,
        unique: int,
        nodeid: int,
        uid: int,
        gid: int,
        body: bytes,
        data: list[memoryview],
        room: list[memoryview],
    ) -> None:
        self.opcode = opcode
        self.unique = unique
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.body = body
        self.data = data
        self.room = room
        self.now = False
        """Not to be waited for: what would wait raises :class:`Later`."""
        self._at = 0

    @property
    def room_size(self) -> int:
        """How many bytes the payload of the answer may have."""
        return sum(map(len, self.room))

    def again(self) -> Request:
        """The same, from its first structure on."""
        self._at = 0
        return self

    def take(self, shape: Struct) -> tuple[Any, ...]:
        """The next structure. Raises OSError (EINVAL) if the request ends before."""
        at = self._at
        if at + shape.size > len(self.body):
            raise error(EINVAL)
        self._at = at + shape.size
        return shape.unpack_from(self.body, at)

    def name(self) -> bytes:
        """The next name: of one file in a directory. Raises OSError if it is none."""
        name = self.text(NAME_MAX)
        check_name(name)
        return name

    def text(self, most: int = PATH_MAX - 1) -> bytes:
        """The next text that ends in a NUL. Raises OSError (EINVAL, ENAMETOOLONG)."""
        end = self.body.find(b"\0", self._at)
        if end < 0:
            raise error(EINVAL)
        text = self.body[self._at : end]
        if len(text) > most:
            raise error(ENAMETOOLONG)
        self._at = end + 1
        return text

    def rest(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises OSError (EINVAL) if there are fewer."""
        at = self._at
        if at + size > len(self.body):
            raise error(EINVAL)
        self._at = at + size
        return self.body[at : at + size]


def check_name(name: bytes) -> None:
    """Raise OSError (EINVAL) for what is not the name of one file in a directory."""
    if not name or b"/" in name or b"\0" in name or name == b"." or name == b"..":
        raise error(EINVAL)


def parse(readable: list[memoryview], writable: list[memoryview]) -> Request | None:
    """Take a message apart; None if it is too short to be answered, or says so of itself."""
    total = sum(map(len, readable))
    if total < IN_HEADER.size:
        return None
    head, rest = split(readable, IN_HEADER.size)
    size, opcode, unique, nodeid, uid, gid, _pid, _, _ = IN_HEADER.unpack(b"".join(head))
    if size != total:
        return None
    body_size = total - IN_HEADER.size
    data: list[memoryview] = []
    if opcode == Op.WRITE:
        rest, data = split(rest, _WRITE_BODY)
    elif body_size > BODY_MOST:
        return None
    _, room = split(writable, OUT_HEADER.size)
    return Request(opcode, unique, nodeid, uid, gid, b"".join(rest), data, room)


def split(views: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first ``size`` bytes of the views, and the others. Fewer if there are not so many."""
    for index, view in enumerate(views):
        have = len(view)
        if have == size:
            return views[: index + 1], views[index + 1 :]
        if have > size:
            return [*views[:index], view[:size]], [view[size:], *views[index + 1 :]]
        size -= have
    return views, []
