"""The driver's side of virtio: a memory, both kinds of rings, and PCI registers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from struct import Struct, pack_into, unpack_from
from typing import Any

from kvmkit.errors import GuestAddressError
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.packed import PackedQueue
from kvmkit.virtio.queue import Queue, RingAddresses, SplitQueue

__all__ = [
    "Echo",
    "FakeHost",
    "FakeRam",
    "MsiLog",
    "PackedDriver",
    "PciDriver",
    "RingDriver",
    "SplitDriver",
]

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
DESCRIPTOR = Struct("<QIHH")
RINGS = 0x1000
BUFFERS = 0x1_0000


class FakeRam:
    """``size`` bytes from guest address 0 on; keeps what :meth:`written` was told."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.data = bytearray(size)
        self.told: list[tuple[int, int]] = []

    def view(self, address: int, size: int) -> memoryview:
        if not 0 <= address <= len(self.data) - size or size < 0:
            raise GuestAddressError(f"no {size} bytes at {address:#x}")
        return memoryview(self.data)[address : address + size]

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.view(address, size))

    def write(self, address: int, data: Any) -> None:
        self.view(address, len(data))[:] = data
        self.written(address, len(data))

    def written(self, address: int, size: int) -> None:
        self.told.append((address, size))


class FakeHost:
    """Surroundings whose ``call_soon`` waits for :meth:`turn`."""

    def __init__(self, ram: FakeRam | None = None) -> None:
        self.ram = ram or FakeRam()
        self.warnings: list[str] = []
        self.calls: deque[Callable[[], None]] = deque()

    def call(self, action: Callable[[], None]) -> None:
        action()

    def call_soon(self, action: Callable[[], None]) -> None:
        self.calls.append(action)

    def turn(self, most: int = 100) -> None:
        """Do what was put off; fails if that never ends."""
        for _ in range(most):
            if not self.calls:
                return
            self.calls.popleft()()
        raise AssertionError("calls without end")

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Echo(VirtioDevice):
    """Answers each request on any of its queues with the same bytes, in reverse.

    With ``late``, requests wait in ``held`` until :meth:`finish`.
    """

    device_id = 42
    name = "echo"
    features = 0b101
    queue_sizes = (16, 16)

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.config = bytearray(range(16))
        self.late = late
        self.held: list[Any] = []
        self.log: list[tuple[Any, ...]] = []

    def activated(self, features: int) -> None:
        self.log.append(("activated", features))

    def notified(self, index: int) -> None:
        for chain in self.requests(index):
            if self.late:
                self.held.append(chain)
            else:
                chain.write(chain.read_all()[::-1])
                self.push(chain)

    def finish(self, index: int = 0) -> None:
        """Answer one held request."""
        chain = self.held.pop(index)
        chain.write(chain.read_all()[::-1])
        self.push(chain)

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("config", offset, size, value))

    def queue_reset(self, index: int) -> None:
        self.log.append(("queue_reset", index))

    def reset(self) -> None:
        self.log.append(("reset",))

    def state(self) -> int:
        return len(self.held)

    def restore(self, state: int) -> None:
        self.log.append(("restore", state))


class RingDriver:
    """What both drivers share: buffers, and what belongs to which request."""

    queue_type: Callable[..., Queue]

    def __init__(
        self, ram: FakeRam, size: int, *, event_index: bool = False, base: int = RINGS
    ) -> None:
        self.ram = ram
        self.size = size
        self.event_index = event_index
        self.where = self.layout(base)
        self._next_buffer = BUFFERS + 0x2_0000 * (base - RINGS) // 0x4000
        self._buffers_start = self._next_buffer
        self.pending: dict[int, tuple[list[tuple[int, int]], int]] = {}

    def layout(self, base: int) -> RingAddresses:
        raise NotImplementedError

    def device_queue(self, *, indirect: bool = True) -> Queue:
        """The device's end of this queue."""
        return type(self).queue_type(
            0, self.ram, self.where, indirect=indirect, event_index=self.event_index
        )

    def room(self, size: int) -> int:
        """The address of a fresh buffer."""
        if self._next_buffer + size > self._buffers_start + 0x1_0000:
            self._next_buffer = self._buffers_start
        self._next_buffer += size
        return self._next_buffer - size

    def pieces(
        self, readable: Sequence[bytes], writable: Sequence[int]
    ) -> list[tuple[int, int, int]]:
        """Buffers in memory: address, length, flags."""
        found = []
        for data in readable:
            address = self.room(len(data))
            self.ram.data[address : address + len(data)] = data
            found.append((address, len(data), 0))
        found += [(self.room(size), size, WRITE) for size in writable]
        return found

    def collected(self, ident: int, written: int) -> bytes:
        """What the device has put into the buffers of a request."""
        places, _ = self.pending.pop(ident)
        data = b"".join(self.ram.read(address, size) for address, size in places)
        assert written <= len(data)
        return data[:written]

    @property
    def free(self) -> int:
        """Descriptors that are not in use."""
        return self.size - sum(count for _, count in self.pending.values())

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> int:
        raise NotImplementedError

    def collect(self) -> Iterator[tuple[int, bytes]]:
        raise NotImplementedError

    def must_notify(self) -> bool:
        raise NotImplementedError


class SplitDriver(RingDriver):
    """A split virtqueue's driver (virtio 1.2, section 2.7.13 and 2.7.14)."""

    queue_type = SplitQueue

    def layout(self, base: int) -> RingAddresses:
        driver = base + 16 * self.size
        device = driver + 6 + 2 * self.size + 3 & ~3
        self.avail = self.used = 0
        self._told = 0
        self._free = list(range(self.size))
        return RingAddresses(self.size, base, driver, device)

    def descriptor(self, index: int, address: int, length: int, flags: int, after: int) -> None:
        """Write one into the table."""
        DESCRIPTOR.pack_into(
            self.ram.data, self.where.descriptors + 16 * index, address, length, flags, after
        )

    def publish(self, head: int) -> None:
        """Make a chain available."""
        at = self.where.driver + 4 + 2 * (self.avail % self.size)
        pack_into("<H", self.ram.data, at, head)
        self.avail += 1
        self.set_index(self.avail)

    def set_index(self, index: int) -> None:
        """The available index."""
        pack_into("<H", self.ram.data, self.where.driver + 2, index & 0xFFFF)

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> int:
        pieces = self.pieces(readable, writable)
        places = [(address, length) for address, length, flags in pieces if flags & WRITE]
        if indirect:
            table = self.room(16 * len(pieces) + 15) + 15 & ~15
            for index, (address, length, flags) in enumerate(pieces):
                more = NEXT if index + 1 < len(pieces) else 0
                DESCRIPTOR.pack_into(
                    self.ram.data, table + 16 * index, address, length, flags | more, index + 1
                )
            pieces = [(table, 16 * len(pieces), INDIRECT)]
        slots = [self._free.pop() for _ in pieces]
        for index, (address, length, flags) in enumerate(pieces):
            more = NEXT if index + 1 < len(pieces) else 0
            after = slots[index + 1] if more else 0xDEAD
            self.descriptor(slots[index], address, length, flags | more, after)
        self.pending[slots[0]] = places, len(slots)
        self._slots = getattr(self, "_slots", {})
        self._slots[slots[0]] = slots
        self.publish(slots[0])
        return slots[0]

    def collect(self) -> Iterator[tuple[int, bytes]]:
        data, device = self.ram.data, self.where.device
        while unpack_from("<H", data, device + 2)[0] != self.used & 0xFFFF:
            head, written = unpack_from("<II", data, device + 4 + 8 * (self.used % self.size))
            self.used += 1
            self._free += self._slots.pop(head)
            yield head, self.collected(head, written)
        if self.event_index:
            pack_into("<H", data, self.where.driver + 4 + 2 * self.size, self.used & 0xFFFF)

    def must_notify(self) -> bool:
        old, new, self._told = self._told, self.avail, self.avail
        data, device = self.ram.data, self.where.device
        if not self.event_index:
            return not unpack_from("<H", data, device)[0] & 1
        event = unpack_from("<H", data, device + 4 + 8 * self.size)[0]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class PackedDriver(RingDriver):
    """A packed virtqueue's driver (virtio 1.2, section 2.8.21 and 2.8.22)."""

    queue_type = PackedQueue

    def layout(self, base: int) -> RingAddresses:
        self.avail = self.used = 0  # run through both wraps
        self._told = 0
        self._ident = 0
        return RingAddresses(self.size, base, base + 16 * self.size, base + 16 * self.size + 4)

    def _wrap(self, position: int) -> int:
        return position // self.size % 2 == 0

    def flags(self, position: int, flags: int) -> int:
        """Descriptor flags that make the one at ``position`` available."""
        return flags | (AVAIL if self._wrap(position) else USED)

    def descriptor(self, position: int, address: int, length: int, ident: int, flags: int) -> None:
        """Write one into the ring."""
        at = self.where.descriptors + 16 * (position % self.size)
        DESCRIPTOR.pack_into(self.ram.data, at, address, length, ident, flags)

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> int:
        pieces = self.pieces(readable, writable)
        places = [(address, length) for address, length, flags in pieces if flags & WRITE]
        if indirect:
            table = self.room(16 * len(pieces) + 15) + 15 & ~15
            for index, (address, length, flags) in enumerate(pieces):
                DESCRIPTOR.pack_into(self.ram.data, table + 16 * index, address, length, 0, flags)
            pieces = [(table, 16 * len(pieces), INDIRECT)]
        self._ident = ident = (self._ident + 7) & 0xFFFF
        for index in reversed(range(len(pieces))):
            address, length, flags = pieces[index]
            more = NEXT if index + 1 < len(pieces) else 0
            position = self.avail + index
            self.descriptor(position, address, length, ident, self.flags(position, flags | more))
        self.avail += len(pieces)
        self.pending[ident] = places, len(pieces)
        return ident

    def collect(self) -> Iterator[tuple[int, bytes]]:
        data = self.ram.data
        while True:
            at = self.where.descriptors + 16 * (self.used % self.size)
            _, length, ident, flags = DESCRIPTOR.unpack_from(data, at)
            mine = AVAIL | USED if self._wrap(self.used) else 0
            if flags & (AVAIL | USED) != mine or ident not in self.pending:
                break
            self.used += self.pending[ident][1]
            yield ident, self.collected(ident, length)
        if self.event_index:
            wrap = 1 << 15 if self._wrap(self.used) else 0
            pack_into("<HH", data, self.where.driver, self.used % self.size | wrap, 2)

    def must_notify(self) -> bool:
        old, new, self._told = self._told, self.avail, self.avail
        place, flags = unpack_from("<HH", self.ram.data, self.where.device)
        if flags != 2:
            return bool(flags == 0)
        event = place & 0x7FFF
        if self._wrap(new) != bool(place >> 15):
            event -= self.size
        position = new % self.size
        return (position - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class MsiLog(list[tuple[int, int]]):
    """Collects messages; call it as a function's ``msi``."""

    def __call__(self, address: int, data: int) -> None:
        self.append((address, data))


class PciDriver:
    """The driver of one function of :class:`kvmkit.virtio.pci.VirtioPci`: finds its
    structures through the capabilities and sets it up."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.places: dict[int, tuple[int, int, int]] = {}
        self.window = 0
        read = function.read_config
        at = read(0x34, 1)
        while at:
            if read(at, 1) == 0x09:
                kind, bar = read(at + 3, 1), read(at + 4, 1)
                self.places[kind] = bar, read(at + 8, 4), read(at + 12, 4)
                if kind == 2:
                    self.multiplier = read(at + 16, 4)
                if kind == 5:
                    self.window = at
            at = read(at + 1, 1)
        function.write_config(0x04, 2, 0x0006)  # memory, bus master

    def read(self, kind: int, offset: int, size: int) -> int:
        """Read from a structure."""
        bar, start, _ = self.places[kind]
        value: int = self.function.bars[bar].device.read(start + offset, size)
        return value

    def write(self, kind: int, offset: int, size: int, value: int) -> None:
        """Write to one."""
        bar, start, _ = self.places[kind]
        self.function.bars[bar].device.write(start + offset, size, value)

    @property
    def status(self) -> int:
        return self.read(1, 0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write(1, 0x14, 1, value)

    def offered(self) -> int:
        """All features of the device."""
        value = 0
        for half in (0, 1):
            self.write(1, 0, 4, half)
            value |= self.read(1, 4, 4) << 32 * half
        return value

    def accept(self, features: int) -> bool:
        """Reset, acknowledge, negotiate; whether FEATURES_OK stays."""
        self.status = 0
        self.status = 1
        self.status = 3
        for half in (0, 1):
            self.write(1, 8, 4, half)
            self.write(1, 12, 4, features >> 32 * half & 0xFFFF_FFFF)
        self.status = 11
        return bool(self.status & 8)

    def set_queue(self, index: int, where: RingAddresses, vector: int = 0xFFFF) -> None:
        """Set a queue up and enable it."""
        self.write(1, 0x16, 2, index)
        self.write(1, 0x18, 2, where.size)
        self.write(1, 0x1A, 2, vector)
        for offset, address in ((0x20, where.descriptors), (0x28, where.driver)):
            self.write(1, offset, 4, address & 0xFFFF_FFFF)
            self.write(1, offset + 4, 4, address >> 32)
        self.write(1, 0x30, 8, where.device)
        self.write(1, 0x1C, 2, 1)

    def go(self) -> None:
        """DRIVER_OK."""
        self.status = 15

    def notify(self, index: int) -> None:
        """Queue ``index`` has something new."""
        self.write(1, 0x16, 2, index)
        self.write(2, self.multiplier * self.read(1, 0x1E, 2), 2, index)

    def enable_msix(self, vectors: int) -> None:
        """Vector *n* sends (0xfee00000, n)."""
        table = self.function.bars[1].device
        for vector in range(vectors):
            table.write(16 * vector, 8, 0xFEE0_0000)
            table.write(16 * vector + 8, 4, vector)
            table.write(16 * vector + 12, 4, 0)
        at = self.function.read_config(0x34, 1)
        while self.function.read_config(at, 1) != 0x11:
            at = self.function.read_config(at + 1, 1)
        self.function.write_config(at + 2, 2, 0x8000)
