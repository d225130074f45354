"""Virtqueues in the packed format.

Virtio 1.2, section 2.8: one ring of descriptors that the driver makes available
and the device overwrites with used ones; which is which is said by two flags in
each, compared with a wrap counter that either side flips when it passes the
ring's end.
"""

from __future__ import annotations

from _thread import allocate_lock
from struct import Struct

from kvmkit.errors import GuestAddressError
from kvmkit.frozen import Record
from kvmkit.virtio.chain import Chain
from kvmkit.virtio.memory import QueueError
from kvmkit.virtio.queue import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_SIZE,
    DESC_WRITE,
    MAX_CHAIN_BYTES,
    MAX_QUEUE_SIZE,
    Queue,
    RingAddresses,
    area,
    indirect_table,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmkit.virtio.memory import GuestRam

__all__ = ["PackedQueue", "PackedQueueState"]

# Descriptor flags that split rings do not have (2.8.1)
DESC_AVAIL: Final = 1 << 7
DESC_USED: Final = 1 << 15
_OWNER = DESC_AVAIL | DESC_USED

# Event suppression structure: off_wrap, flags (2.8.14)
EVENT_ENABLE: Final = 0
EVENT_DISABLE: Final = 1
EVENT_AT: Final = 2
EVENT_WRAP: Final = 1 << 15
EVENT_SIZE: Final = 4

_unpack_descriptor = Struct("<QIHH").unpack_from  # addr, len, id, flags
_pack_used = Struct("<IH").pack_into  # len, id
_FLAGS_WORD = 7  # of a descriptor's eight 16-bit words
_MAX_WRITTEN = (1 << 32) - 1


class PackedQueueState(Record):
    """Where a packed queue stands; counts run through both wraps, 0 to 2 * size - 1.

    Requests in flight are not in it: let them end first.
    """

    next_avail: int
    next_used: int
    signalled: int


class PackedQueue(Queue):
    """A packed virtqueue at ``where``, of a device that has negotiated these features.

    Raises QueueError for a size that is none, or areas that are not in memory or
    not aligned.
    """

    def __init__(
        self, index: int, ram: GuestRam, where: RingAddresses, *, indirect: bool, event_index: bool
    ) -> None:
        size = where.size
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise QueueError(f"a packed queue of {size} entries")
        self.index = index
        self.size = size
        self.ram = ram
        self.alive = True
        self.in_flight = 0
        self._indirect = indirect
        self._event_index = event_index
        self._ring = area(ram, "descriptor ring", where.descriptors, DESC_SIZE * size, 16)
        self._words = self._ring.cast("H")
        self._driver = area(ram, "driver event area", where.driver, EVENT_SIZE, 4).cast("H")
        self._device = area(ram, "device event area", where.device, EVENT_SIZE, 4).cast("H")
        # Positions run from 0 to 2 * size - 1: the first half is wrap counter 1 (2.8.1), the
        # second wrap counter 0.
        self._next_avail = 0
        self._next_used = 0
        self._signalled = 0
        self._taken = 0  # descriptors of requests in flight
        self._barrier = allocate_lock()

    # Taking

    def pop(self) -> Chain | None:
        """See :meth:`Queue.pop`."""
        if not self.alive:
            return None
        position = self._next_avail
        if not self._available(position):
            if not self._event_index:
                return None
            # Ask to be told of the next one, then look again: it may have just come.
            wanted = self._off_wrap(position)
            if self._device[0] == wanted and self._device[1] == EVENT_AT:
                return None
            self._device[0] = wanted
            self._device[1] = EVENT_AT
            self._full_barrier()
            if not self._available(position):
                return None
        chain = self._walk(position)
        self._next_avail = (position + chain.count) % (2 * self.size)
        self._taken += chain.count
        self.in_flight += 1
        return chain

    def _available(self, position: int) -> bool:
        """Whether the driver has made the descriptor there available: AVAIL is the
        wrap counter, USED is not."""
        size = self.size
        if position < size:
            return self._words[8 * position + _FLAGS_WORD] & _OWNER == DESC_AVAIL
        return self._words[8 * (position - size) + _FLAGS_WORD] & _OWNER == DESC_USED

    def _off_wrap(self, position: int) -> int:
        size = self.size
        return position | EVENT_WRAP if position < size else position - size

    def _full_barrier(self) -> None:
        """Let our stores be seen before we load: a lock's atomic instructions do that on x86."""
        self._barrier.acquire()
        self._barrier.release()

    def _walk(self, position: int) -> Chain:
        size = self.size
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        ranges: list[tuple[int, int]] = []
        count = total = 0
        room = size - self._taken
        while True:
            if count >= room:
                raise QueueError(f"more than {size} descriptors at a time")
            at = (position + count) % size
            address, length, ident, flags = _unpack_descriptor(self._ring, DESC_SIZE * at)
            count += 1
            if flags & DESC_INDIRECT:
                if count > 1 or flags & DESC_NEXT:
                    raise QueueError("an indirect table within a chain")
                if not self._indirect:
                    raise QueueError("an indirect table without the feature")
                table, entries = indirect_table(self.ram, address, length)
                for entry in range(entries):
                    address, length, _, flags = _unpack_descriptor(table, DESC_SIZE * entry)
                    if flags & DESC_INDIRECT:
                        raise QueueError("an indirect table within another")
                    total += length
                    self._add(address, length, flags, total, readable, writable, ranges)
                break
            total += length
            self._add(address, length, flags, total, readable, writable, ranges)
            if not flags & DESC_NEXT:
                break
        return Chain(self, ident, count, readable, writable, ranges)

    def _add(
        self,
        address: int,
        length: int,
        flags: int,
        total: int,
        readable: list[memoryview],
        writable: list[memoryview],
        ranges: list[tuple[int, int]],
    ) -> None:
        """One buffer of a chain that is ``total`` bytes long with it."""
        if not length:
            return
        if total > MAX_CHAIN_BYTES:
            raise QueueError("a chain of more than 4 GiB")
        try:
            piece = self.ram.view(address, length)
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
        self._taken -= chain.count
        size, position = self.size, self._next_used
        wrap = position < size
        at = position if wrap else position - size
        _pack_used(self._ring, DESC_SIZE * at + 8, written, chain.head)
        flags = _OWNER if wrap else 0
        # The flags last, as stores are ordered on x86: they hand the descriptor over.
        self._words[8 * at + _FLAGS_WORD] = flags | DESC_WRITE if written else flags
        self._next_used = (position + chain.count) % (2 * size)

    def push_all(self, filled: Sequence[tuple[Chain, int]]) -> None:
        """See :meth:`Queue.push_all`."""
        self.in_flight -= len(filled)
        if not self.alive or not filled:
            return
        size, first = self.size, self._next_used
        position = first
        flags: list[tuple[int, int]] = []
        for chain, written in filled:
            if written:
                chain.tell_memory(written)
                written = min(written, _MAX_WRITTEN)
            self._taken -= chain.count
            wrap = position < size
            at = position if wrap else position - size
            _pack_used(self._ring, DESC_SIZE * at + 8, written, chain.head)
            owner = _OWNER if wrap else 0
            flags.append((8 * at + _FLAGS_WORD, owner | DESC_WRITE if written else owner))
            position = (position + chain.count) % (2 * size)
        # The driver looks at the first: handed over last, it hands over all.
        for word, value in reversed(flags):
            self._words[word] = value
        self._next_used = position

    def unpop(self, chain: Chain) -> None:
        """See :meth:`Queue.unpop`."""
        self.in_flight -= 1
        self._taken -= chain.count
        self._next_avail = (self._next_avail - chain.count) % (2 * self.size)

    def needs_interrupt(self) -> bool:
        """See :meth:`Queue.needs_interrupt`."""
        if not self.alive:
            return False
        new, old = self._next_used, self._signalled
        if new == old:
            return False
        self._signalled = new
        self._full_barrier()
        flags = self._driver[1]
        if flags != EVENT_AT or not self._event_index:
            return flags != EVENT_DISABLE
        place = self._driver[0]
        event = place & ~EVENT_WRAP
        if event >= self.size:
            return True  # no such place: rather once too often
        if not place & EVENT_WRAP:
            event += self.size
        # The event is one of the positions from old up to, not including, new.
        span = 2 * self.size
        return (event - old) % span < (new - old) % span

    def notifications(self, wanted: bool) -> None:
        """See :meth:`Queue.notifications`."""
        if not self.alive:
            return
        if not wanted:
            self._device[1] = EVENT_DISABLE
        elif self._event_index:
            self._device[0] = self._off_wrap(self._next_avail)
            self._device[1] = EVENT_AT
        else:
            self._device[1] = EVENT_ENABLE
        self._full_barrier()

    # Life

    def kill(self) -> None:
        """See :meth:`Queue.kill`."""
        self.alive = False
        self._ring = self._words = self._driver = self._device = memoryview(b"")

    def state(self) -> PackedQueueState:
        return PackedQueueState(self._next_avail, self._next_used, self._signalled)

    def restore(self, state: PackedQueueState) -> None:
        self._next_avail = state.next_avail % (2 * self.size)
        self._next_used = state.next_used % (2 * self.size)
        self._signalled = state.signalled % (2 * self.size)
