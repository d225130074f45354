"""One request of a driver: a chain of buffers, first those to read, then those to fill.

Virtio 1.2, section 2.6.2 (message framing): how a driver cuts a request into
descriptors means nothing, so devices read and write through a cursor.
"""

from __future__ import annotations

from kvmkit.virtio.memory import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.virtio.queue import Queue

__all__ = ["Chain"]

READ_LIMIT = 1 << 20
"""What :meth:`Chain.read_all` copies at most unless told otherwise, in bytes."""


class Chain:
    """The buffers of one request, until it is pushed back.

    ``readable`` and ``writable`` are views of guest memory; what :meth:`read`,
    :meth:`write` and :meth:`cut_tail` have used up is no longer in them. The
    guest can change the memory at any time: read a value once, then check it.
    """

    __slots__ = ("_ranges", "_view", "count", "head", "queue", "readable", "writable", "written")

    def __init__(
        self,
        queue: Queue,
        head: int,
        count: int,
        readable: list[memoryview],
        writable: list[memoryview],
        ranges: list[tuple[int, int]],
    ) -> None:
        self.queue = queue
        self.head = head
        """The first descriptor's index (split), or the buffer's identifier (packed)."""
        self.count = count
        """How many descriptors of the ring it takes."""
        self.readable = readable
        self.writable = writable
        self.written = 0
        """Bytes stored by :meth:`write` so far."""
        self._ranges = ranges  # (guest address, size) of all that is writable

    @property
    def readable_size(self) -> int:
        """Bytes left to read."""
        return sum(map(len, self.readable))

    @property
    def writable_size(self) -> int:
        """Bytes left to fill."""
        return sum(map(len, self.writable))

    @property
    def writable_ranges(self) -> tuple[tuple[int, int], ...]:
        """Guest address and size of each buffer to be filled, used up or not."""
        return tuple(self._ranges)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, or what is left if that is less."""
        views = self.readable
        if views and len(views[0]) >= size:
            first = views[0]
            if len(first) == size:
                del views[0]
            else:
                views[0] = first[size:]
            return bytes(first[:size])
        parts = []
        while views and size:
            part = views[0][:size]
            size -= len(part)
            parts.append(part)
            if len(part) == len(views[0]):
                del views[0]
            else:
                views[0] = views[0][len(part) :]
        return b"".join(parts)

    def read_all(self, limit: int = READ_LIMIT) -> bytes:
        """All bytes left to read. Raises QueueError if they are more than ``limit``."""
        size = self.readable_size
        if size > limit:
            raise QueueError(f"a request of {size} bytes, more than the {limit} of this device")
        return self.read(size)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Fill the next bytes with ``data``; how many there was room for."""
        views = self.writable
        size = len(data)
        if views and len(views[0]) > size:
            views[0][:size] = data
            views[0] = views[0][size:]
            self.written += size
            return size
        source = memoryview(data)
        done = 0
        while views and done < size:
            target = views[0]
            part = source[done : done + len(target)]
            target[: len(part)] = part
            done += len(part)
            if len(part) == len(target):
                del views[0]
            else:
                views[0] = target[len(part) :]
        self.written += done
        return done

    def cut_tail(self, size: int) -> list[memoryview]:
        """Take the last ``size`` writable bytes off, for a status that comes after the data.

        One byte is one view: ``status = chain.cut_tail(1)[0]``, ``status[0] = OK``.
        Count it in what is given to ``push``. Raises QueueError if there are fewer.
        """
        views = self.writable
        tail: list[memoryview] = []
        while size:
            if not views:
                raise QueueError(f"a request without room for its status, {size} bytes short")
            last = views.pop()
            left = len(last) - size
            if left > 0:
                views.append(last[:left])
                last = last[left:]
            size -= len(last)
            tail.insert(0, last)
        return tail

    def tell_memory(self, written: int) -> None:
        """Announce the first ``written`` writable bytes to whoever must know (GuestRam.written)."""
        tell = self.queue.ram.written
        for address, size in self._ranges:
            if written <= 0:
                break
            tell(address, min(size, written))
            written -= size
