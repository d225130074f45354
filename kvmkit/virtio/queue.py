"""Virtqueues, and the split format of their rings.

Virtio 1.2, section 2.6 (virtqueues) and 2.7 (split virtqueues): a descriptor
table and an available ring that the driver writes, a used ring that the device
writes. Indices run freely modulo 65536.

All numbers are little-endian, as the host's are (x86-64), so that rings are read
through typed views; the 16-bit indices are then single loads and stores.
"""

from __future__ import annotations

from _thread import allocate_lock
from struct import Struct

from kvmkit.errors import GuestAddressError
from kvmkit.frozen import Record
from kvmkit.virtio.chain import Chain
from kvmkit.virtio.memory import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from kvmkit.virtio.memory import GuestRam

__all__ = [
    "MAX_QUEUE_SIZE",
    "Queue",
    "QueueError",
    "RingAddresses",
    "SplitQueue",
    "SplitQueueState",
]

MAX_QUEUE_SIZE: Final = 32768

MAX_INDIRECT: Final = 1024
"""Descriptors in an indirect table. The specification allows as many as the queue
has entries; drivers put more into the tables of small queues, and every device
model takes up to 1024, the number of pieces one system call takes (IOV_MAX)."""

MAX_CHAIN_BYTES: Final = 1 << 32  # 2.7.5.2

# Descriptor flags (2.7.5)
DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4

# avail.flags (2.7.6), used.flags (2.7.8)
AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1

_DESCRIPTOR = Struct("<QIHH")  # addr, len, flags, next
_USED_ELEMENT = Struct("<II")  # id, len
_unpack_descriptor = _DESCRIPTOR.unpack_from
_pack_used = _USED_ELEMENT.pack_into
DESC_SIZE: Final = 16
_MAX_WRITTEN = (1 << 32) - 1


class RingAddresses(Record):
    """Where a queue's three areas are and how many entries it has (2.6, "driver area" etc.)."""

    size: int
    descriptors: int
    driver: int
    device: int


class Queue:
    """A queue as a device uses it; this class itself is one that is not enabled.

    Once a ring is dead (reset, or broken by its driver) :meth:`pop` gives nothing and
    :meth:`push` drops what comes late, so devices need not keep track.
    """

    index = 0
    """Its number within the device."""
    size = 0
    alive = False
    in_flight = 0
    """Requests that were popped and not pushed back."""
    ram: GuestRam

    def pop(self) -> Chain | None:
        """The next request, or None. Raises QueueError for one that breaks the rules."""
        return None

    def push(self, chain: Chain, written: int | None = None) -> None:
        """Give a request back; the first ``written`` bytes of its writable part are filled
        (None: what :meth:`Chain.write` stored). Any order is allowed."""

    def push_all(self, filled: Sequence[tuple[Chain, int]]) -> None:
        """Give several requests back at once, each with its ``written``: the driver sees
        all of them or none. For a packet that fills several buffers (5.1.6.4)."""

    def unpop(self, chain: Chain) -> None:
        """Take back the last :meth:`pop`, as if it had not been: it will be popped again.

        Several are taken back in reverse order.
        """

    def needs_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call."""
        return False

    def notifications(self, wanted: bool) -> None:
        """Ask the driver to notify, or not to, of new requests. A hint; wanted at first.

        After wanting them again, look once more: it may have missed the change.
        """

    def kill(self) -> None:
        """Let go of the guest's memory, for ever."""

    def state(self) -> Any:
        """Its record; None for a queue that is not enabled."""
        return None

    def restore(self, state: Any) -> None:
        """Go on where ``state`` was taken."""


class SplitQueueState(Record):
    """Where a split queue stands. Requests in flight are not in it: let them end first."""

    last_avail: int
    next_used: int
    signalled: int


def area(ram: GuestRam, what: str, address: int, size: int, alignment: int) -> memoryview:
    """A view of a queue's area. Raises QueueError when it is not aligned or not RAM."""
    if address % alignment:
        raise QueueError(f"the {what} at {address:#x} is not aligned to {alignment} bytes")
    try:
        return ram.view(address, size)
    except GuestAddressError:
        raise QueueError(f"the {what} at {address:#x} is not in memory") from None


class SplitQueue(Queue):
    """A split virtqueue at ``where``, of a device that has negotiated these features.

    Raises QueueError for a size that is no power of two, or areas that are not in
    memory or not aligned.
    """

    def __init__(
        self, index: int, ram: GuestRam, where: RingAddresses, *, indirect: bool, event_index: bool
    ) -> None:
        size = where.size
        if not 0 < size <= MAX_QUEUE_SIZE or size & size - 1:
            raise QueueError(f"a split queue of {size} entries")
        self.index = index
        self.size = size
        self.ram = ram
        self.alive = True
        self.in_flight = 0
        self._mask = size - 1
        self._indirect = indirect
        self._event_index = event_index
        # Typed views of the whole areas, made once. avail: flags, idx, ring[size], used_event;
        # used: flags, idx, ring[size] of (id, len), avail_event.
        self._table = area(ram, "descriptor table", where.descriptors, DESC_SIZE * size, 16)
        self._avail = area(ram, "available ring", where.driver, 6 + 2 * size, 2).cast("H")
        self._used = area(ram, "used ring", where.device, 6 + 8 * size, 4)
        self._used_words = self._used.cast("H")
        self._used_event = 2 + size
        self._avail_event = 2 + 4 * size
        self._last_avail = 0
        self._seen_avail = 0
        self._next_used = 0
        self._signalled = 0
        self._barrier = allocate_lock()

    # Taking

    def pop(self) -> Chain | None:
        """See :meth:`Queue.pop`."""
        last = self._last_avail
        if last == self._seen_avail and not self._look():
            return None
        if self.in_flight >= self.size:
            raise QueueError(f"more than {self.size} requests at a time")
        head = self._avail[2 + (last & self._mask)]
        chain = self._walk(head)
        self._last_avail = last + 1 & 0xFFFF
        self.in_flight += 1
        return chain

    def _look(self) -> bool:
        """Read the driver's index; whether there is something new."""
        if not self.alive:
            return False
        last = self._last_avail
        seen = self._avail[1]
        if seen == last and self._event_index and self._used_words[self._avail_event] != last:
            # Ask to be told of the next one, then look again: it may have just come (2.7.10).
            self._used_words[self._avail_event] = last
            self._full_barrier()
            seen = self._avail[1]
        if seen == last:
            return False
        if seen - last & 0xFFFF > self.size:
            raise QueueError(f"the available index went from {last} to {seen}")
        self._seen_avail = seen
        return True

    def _full_barrier(self) -> None:
        """Let our stores be seen before we load: a lock's atomic instructions do that on x86."""
        self._barrier.acquire()
        self._barrier.release()

    def _walk(self, head: int) -> Chain:
        table, size, view = self._table, self.size, self.ram.view
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        ranges: list[tuple[int, int]] = []
        index, count, total, limit = head, 0, 0, size
        inside = False
        while True:
            if index >= size:
                raise QueueError(f"descriptor {index} of {size}")
            if count == limit:
                raise QueueError(f"a chain of more than {limit} descriptors")
            address, length, flags, following = _unpack_descriptor(table, DESC_SIZE * index)
            if flags & DESC_INDIRECT:
                if inside or not self._indirect:
                    why = "within another" if inside else "without the feature"
                    raise QueueError(f"an indirect table {why}")
                if flags & DESC_NEXT:
                    raise QueueError("an indirect table and a next descriptor")
                table, size = indirect_table(self.ram, address, length)
                inside = True
                limit = count + size
                index = 0
                continue
            count += 1
            if length:
                total += length
                if total > MAX_CHAIN_BYTES:
                    raise QueueError("a chain of more than 4 GiB")
                try:
                    piece = view(address, length)
                except GuestAddressError:
                    raise QueueError(
                        f"a buffer of {length} bytes at {address:#x} is not in memory"
                    ) from None
                if flags & DESC_WRITE:
                    writable.append(piece)
                    ranges.append((address, length))
                elif writable:
                    raise QueueError("a buffer to read after one to fill")
                else:
                    readable.append(piece)
            if not flags & DESC_NEXT:
                return Chain(self, head, count, readable, writable, ranges)
            index = following

    # Giving back

    def push(self, chain: Chain, written: int | None = None) -> None:
        """See :meth:`Queue.push`."""
        self.in_flight -= 1
        if not self.alive:
            return
        if written is None:
            written = chain.written
        if written:
            chain.tell_memory(written)
            written = min(written, _MAX_WRITTEN)
        used = self._next_used
        _pack_used(self._used, 4 + 8 * (used & self._mask), chain.head, written)
        self._next_used = used = used + 1 & 0xFFFF
        self._used_words[1] = used  # after the element, as stores are ordered on x86

    def push_all(self, filled: Sequence[tuple[Chain, int]]) -> None:
        """See :meth:`Queue.push_all`."""
        self.in_flight -= len(filled)
        if not self.alive:
            return
        used, mask, ring = self._next_used, self._mask, self._used
        for chain, written in filled:
            if written:
                chain.tell_memory(written)
                written = min(written, _MAX_WRITTEN)
            _pack_used(ring, 4 + 8 * (used & mask), chain.head, written)
            used += 1
        self._next_used = used = used & 0xFFFF
        self._used_words[1] = used

    def unpop(self, chain: Chain) -> None:
        """See :meth:`Queue.unpop`."""
        self.in_flight -= 1
        if self.alive:
            self._last_avail = self._last_avail - 1 & 0xFFFF

    def needs_interrupt(self) -> bool:
        """See :meth:`Queue.needs_interrupt`."""
        if not self.alive:
            return False
        new, old = self._next_used, self._signalled
        if new == old:
            return False
        self._signalled = new
        self._full_barrier()
        if not self._event_index:
            return not self._avail[0] & AVAIL_NO_INTERRUPT
        # 2.7.7.2: interrupt if used_event was passed since we looked last.
        return new - self._avail[self._used_event] - 1 & 0xFFFF < new - old & 0xFFFF

    def notifications(self, wanted: bool) -> None:
        """See :meth:`Queue.notifications`."""
        if not self.alive:
            return
        if not self._event_index:
            self._used_words[0] = 0 if wanted else USED_NO_NOTIFY
        elif wanted:
            self._used_words[self._avail_event] = self._last_avail
        self._full_barrier()

    # Life

    def kill(self) -> None:
        """See :meth:`Queue.kill`."""
        self.alive = False
        self._last_avail = self._seen_avail = 0
        self._table = self._avail = self._used = self._used_words = memoryview(b"")

    def state(self) -> SplitQueueState:
        return SplitQueueState(self._last_avail, self._next_used, self._signalled)

    def restore(self, state: SplitQueueState) -> None:
        self._last_avail = self._seen_avail = state.last_avail
        self._next_used = state.next_used
        self._signalled = state.signalled


def indirect_table(ram: GuestRam, address: int, length: int) -> tuple[memoryview, int]:
    """The table of an indirect descriptor and its number of entries. Raises QueueError."""
    count, rest = divmod(length, DESC_SIZE)
    if rest or not 0 < count <= MAX_INDIRECT:
        raise QueueError(f"an indirect table of {length} bytes")
    try:
        return ram.view(address, length), count
    except GuestAddressError:
        raise QueueError(f"an indirect table at {address:#x} is not in memory") from None
