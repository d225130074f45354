"""A driver that does anything: bytes are turned into what it does to a device.

Used by property tests and by the fuzzer, so that what either finds is a string of
bytes for both.
"""

from __future__ import annotations

from struct import pack_into
from typing import Any

from kvmkit.virtio.pci import VirtioPci
from kvmkit.virtio.transport import NEEDS_RESET
from tests.virtio.mock import Echo, FakeHost, FakeRam, MsiLog, PackedDriver, PciDriver, SplitDriver

__all__ = ["Player", "play"]

RAM_SIZE = 0x8000
SIZE = 8
FEATURES = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40
PACKED = 1 << 34
STEPS = 200

ADDRESSES = (0, 0x1000, 0x4000, RAM_SIZE - 1, RAM_SIZE, 1 << 32, (1 << 64) - 1, 0x5008)
LENGTHS = (0, 1, 15, 16, 32, 4096, RAM_SIZE, 0xFFFF_FFFF)


class GuardedRam(FakeRam):
    """Refuses to grow: a slice past the end would."""

    def check(self) -> None:
        assert len(self.data) == RAM_SIZE
        for address, size in self.told:
            assert 0 <= address <= address + size <= RAM_SIZE


class Device(Echo):
    """Keeps every third request for later."""

    queue_sizes = (SIZE, SIZE)
    count = 0

    def notified(self, index: int) -> None:
        for chain in self.requests(index):
            self.count += 1
            if self.count % 3 == 0:
                self.held.append(chain)
            else:
                chain.write(chain.read_all()[::-1])
                self.push(chain)

    def reset(self) -> None:
        self.held.clear()
        self.log.clear()

    def queue_reset(self, index: int) -> None:
        self.held = [chain for chain in self.held if chain.queue.index != index]


class Player:
    """A device with its driver in good order, to which :meth:`step` does things."""

    def __init__(self, *, packed: bool) -> None:
        self.packed = packed
        self.served = 0
        """Requests taken before :func:`play` mended everything."""
        self.ram = GuardedRam(RAM_SIZE)
        self.host = FakeHost(self.ram)
        self.device = Device()
        self.function = VirtioPci(self.device, self.host, MsiLog(), packed=packed)
        self.driver = PciDriver(self.function)
        self.set_up()

    def set_up(self) -> None:
        """As a well-behaved driver does it."""
        self.ram.data[:] = bytes(RAM_SIZE)
        self.device.held.clear()
        kind: Any = PackedDriver if self.packed else SplitDriver
        assert self.driver.accept(FEATURES | (PACKED if self.packed else 0))
        self.rings = []
        for index, base in enumerate((0x1000, 0x2000)):
            ring = kind(self.ram, SIZE, event_index=True, base=base)
            ring._next_buffer = ring._buffers_start = 0x4000 + 0x1000 * index
            self.rings.append(ring)
            self.driver.set_queue(index, ring.where)
        self.function.write_config(4, 2, 6)
        self.driver.go()

    def descriptor(self, ring: Any, a: int, b: int, c: int) -> None:
        """Any descriptor, in the table or where an indirect table would be."""
        place = a % (2 * SIZE)
        base = ring.where.descriptors if place < SIZE else 0x5000 - 16 * SIZE
        flags = b % 8
        if self.packed:
            flags |= (b >> 3 & 1) << 7 | (b >> 4 & 1) << 15
            if b >> 5 & 1:
                flags = ring.flags(ring.avail, flags & 7)
        address = ADDRESSES[c % 8] if b & 0x40 else 0x5000
        words = (flags, c >> 4) if not self.packed else (c, flags)
        pack_into("<QIHH", self.ram.data, base + 16 * place, address, LENGTHS[a >> 4 & 7], *words)

    def step(self, code: int, a: int, b: int, c: int) -> None:
        """One act, good or bad."""
        ring = self.rings[a & 1]
        act = code % 14
        if act < 4:
            self.descriptor(ring, a, b, c)
        elif act == 4:
            at = (ring.where.driver, ring.where.device, ring.where.descriptors)[a % 3]
            pack_into("<H", self.ram.data, at + b % 64 * 2, c)
        elif act == 5:
            if not self.packed:
                ring.publish(b % (SIZE + 1))
            else:
                ring.avail += b % 4
        elif act in (6, 7):
            self.driver.notify(a & 1)
        elif act == 8:
            if self.device.held:
                held = self.device.held
                self.device.call_soon(lambda: held and self.device.finish(a % len(held)))
        elif act == 9:
            size = 1 << b % 4
            self.driver.write(1, a % 0x40, size, c & (1 << 8 * size) - 1)
        elif act == 10:
            bar, offset, _ = self.driver.places[2 + a % 3]
            size = 1 << (b >> 1) % 4
            if b & 1:
                self.function.bars[bar].device.read(offset + c % 0x100, size)
            else:
                value = c & (1 << 8 * size) - 1
                self.function.bars[bar].device.write(offset + c % 0x100, size, value)
        elif act >= 12:
            if ring.free >= 3 and ring.free <= len(getattr(ring, "_free", range(SIZE))):
                ring.add([b"good", bytes(c % 64)], [c % 80], indirect=bool(b & 1))
                self.driver.notify(a & 1)
        else:
            self.function.write_config(self.driver.window + a % 20, 1, b)
            self.function.read_config(self.driver.window + 16, 4)
        self.host.turn()
        self.check()

    def check(self) -> None:
        """What holds whatever happened."""
        self.ram.check()
        if self.function.transport.status & NEEDS_RESET:
            assert self.host.warnings
            assert not any(queue.alive for queue in self.device.queues)
        assert all("\n" not in warning for warning in self.host.warnings)
        assert len(self.device.held) <= 3 * SIZE


def play(data: bytes) -> Player:
    """Do what ``data`` says, five bytes at a time; then be good, and be served."""
    player = Player(packed=bool(data and data[0] & 1))
    for at in range(1, min(len(data), 5 * STEPS) - 4, 5):
        code, a, b = data[at : at + 3]
        player.step(code, a, b, int.from_bytes(data[at + 3 : at + 5], "little"))
    player.set_up()
    ring = player.rings[0]
    player.served = player.device.count
    player.device.count = 0
    ring.add([b"still"], [5], indirect=True)
    player.driver.notify(0)
    assert [answer for _, answer in ring.collect()] == [b"llits"]
    return player
