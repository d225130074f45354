"""The driver's side of a network card, and a network that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvmkit.virtio.net import Net
from kvmkit.virtio.pci import VirtioPci
from tests.virtio.mock import FakeHost, FakeRam, MsiLog, PackedDriver, PciDriver, SplitDriver

__all__ = ["BASE_FEATURES", "MAC", "Card", "FakeNetwork", "NetFakeHost", "frame_to"]

BASE_FEATURES = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 17 | 1 << 18  # version 1, rings, control
MERGEABLE = 1 << 15
PACKED = 1 << 34
MAC = bytes.fromhex("525400123456")
BASES = (0x1000, 0x5000, 0x9000)


def frame_to(target: bytes = MAC, size: int = 60, fill: bytes = b"x") -> bytes:
    """An Ethernet frame of ``size`` bytes."""
    return (target + b"\x02\0\0\0\0\1\x08\0").ljust(size, fill)


class NetFakeHost(FakeHost):
    """With what a network asks of its surroundings besides."""

    paused = False

    def __init__(self, ram: FakeRam | None = None) -> None:
        super().__init__(ram)
        self.watched: dict[int, tuple[int, Callable[[int], None]]] = {}

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self.watched.pop(fd, None)
        if events:
            self.watched[fd] = events, callback


class FakeNetwork:
    """Takes ``room`` frames, then says that it is full."""

    def __init__(self, *, features: int = 0, header: bool = False, shared: bool = False) -> None:
        self.features, self.header, self.shared = features, header, shared
        self.mtu = 1500
        self.room = 1 << 30
        self.sent: list[bytes] = []
        self.resumed = 0
        self.chosen: int | None = None
        self.closed = False

    def open(self, host: Any, station: Net) -> None:
        self.host, self.station = host, station

    def negotiated(self, features: int) -> None:
        self.chosen = features

    def send(self, frames: Sequence[Sequence[memoryview]]) -> int:
        count = min(len(frames), self.room)
        self.room -= count
        self.sent += [b"".join(parts) for parts in frames[:count]]
        return count

    def resume(self) -> None:
        self.resumed += 1

    def close(self) -> None:
        self.closed = True


class Card:
    """A card whose driver is up, with the features given besides the base ones."""

    def __init__(
        self, network: FakeNetwork | None = None, *, features: int = MERGEABLE, packed: bool = False
    ) -> None:
        self.network = network or FakeNetwork()
        self.host = NetFakeHost()
        self.ram = self.host.ram
        self.net = Net(self.network, mac=MAC)
        self.msi = MsiLog()
        self.function = VirtioPci(self.net, self.host, self.msi, packed=packed)
        self.driver = PciDriver(self.function)
        self.packed = packed
        self.set_up(features)

    def set_up(self, features: int = MERGEABLE) -> None:
        """As a well-behaved driver does it."""
        self.driver.status = 0
        self.ram.data[:] = bytes(len(self.ram.data))
        wanted = BASE_FEATURES | features | (PACKED if self.packed else 0)
        assert self.driver.accept(wanted)
        kind: Any = PackedDriver if self.packed else SplitDriver
        self.rx, self.tx, self.ctrl = (
            kind(self.ram, 16, event_index=True, base=base) for base in BASES
        )
        for index, ring in enumerate((self.rx, self.tx, self.ctrl)):
            self.driver.set_queue(index, ring.where)
        self.driver.go()

    def send(self, *parts: bytes, header: bytes = bytes(12)) -> None:
        """One frame, in parts."""
        self.tx.add([header, *parts])
        self.driver.notify(1)

    def offer(self, count: int, size: int) -> None:
        """Buffers for what arrives."""
        for _ in range(count):
            self.rx.add([], [size])
        self.driver.notify(0)

    def arrive(self, *frames: bytes) -> int:
        """Frames from the network; how many the card took."""
        return self.net.receive([memoryview(bytearray(frame)) for frame in frames])

    def arrived(self) -> list[bytes]:
        """What is in used buffers."""
        return [data for _, data in self.rx.collect()]

    def command(self, kind: int, command: int, data: bytes = b"") -> bytes:
        """Give a command; the answer."""
        self.ctrl.add([bytes((kind, command)), data] if data else [bytes((kind, command))], [1])
        self.driver.notify(2)
        [(_, answer)] = self.ctrl.collect()
        return bytes(answer)

    def config(self, offset: int, size: int) -> int:
        """A field of the configuration."""
        return self.driver.read(4, offset, size)
