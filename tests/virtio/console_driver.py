"""A console driver in a few lines, and a host around the device."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, unpack_from
from typing import Any

from kvmkit.virtio.console import Console
from kvmkit.virtio.pci import VirtioPci
from tests.virtio.mock import FakeHost, MsiLog, PciDriver, SplitDriver

__all__ = ["BackendLog", "ConsoleDriver", "WatchingHost"]

RING = 1 << 28 | 1 << 29 | 1 << 32
SIZE, MULTIPORT = 1, 2
QUEUE = 8


class WatchingHost(FakeHost):
    """Remembers what is watched; may stand still."""

    paused = False

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, tuple[int, Callable[[int], None]]] = {}

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self.watched.pop(fd, None)
        if events:
            self.watched[fd] = events, callback


class BackendLog:
    """The host's end of a port, with room for ``space`` bytes."""

    def __init__(self, space: int = 1 << 30) -> None:
        self.space = space
        self.taken = b""
        self.to_guest = b""
        self.opens: list[bool] = []
        self.port: Any = None
        self.log: list[str] = []

    def attach(self, port: Any) -> None:
        self.port = port

    def open(self, host: Any) -> None:
        self.log.append("open")

    def room(self) -> int:
        return self.space - len(self.taken)

    def take(self, data: bytes) -> None:
        self.taken += data

    def pending(self) -> int:
        return len(self.to_guest)

    def give(self, most: int) -> bytes:
        data, self.to_guest = self.to_guest[:most], self.to_guest[most:]
        return data

    def guest_opened(self, is_open: bool) -> None:
        self.opens.append(is_open)

    def end(self) -> None:
        self.log.append("end")

    def close(self) -> None:
        self.log.append("close")


class ConsoleDriver:
    """Brings ``console`` up; buffers of ``room`` bytes are in every receiving queue."""

    def __init__(
        self, console: Console, *, features: int = SIZE | MULTIPORT, room: int = 64
    ) -> None:
        self.console = console
        self.host = WatchingHost()
        self.msi = MsiLog()
        self.function = VirtioPci(console, self.host, self.msi)
        self.pci = PciDriver(self.function)
        self.room = room
        self.bring_up(features)

    def bring_up(self, features: int) -> None:
        """Reset, negotiate, fill the receiving queues."""
        assert self.pci.accept(RING | features & self.pci.offered())
        self.host.ram.data[0x1000:0x4_0000] = bytes(0x3_F000)
        self.queues = []
        for index in range(len(self.console.queue_sizes)):
            base = 0x1000 + 0x4000 * index
            queue = SplitDriver(self.host.ram, 2 * QUEUE, base=base)
            queue._next_buffer = queue._buffers_start = 0x4_0000 + 0x1_0000 * index
            self.queues.append(queue)
            self.pci.set_queue(index, queue.where)
        self.pci.go()
        for index in range(0, len(self.queues), 2):
            for _ in range(QUEUE):
                self.queues[index].add(writable=[self.room])
            self.pci.notify(index)
        self.host.turn()

    def received(self, index: int, *, refill: bool = True) -> list[bytes]:
        """What came on a receiving queue."""
        found = [data for _, data in self.queues[index].collect()]
        if refill:
            for _ in found:
                self.queues[index].add(writable=[self.room])
            self.pci.notify(index)
        return found

    def send(self, index: int, data: bytes) -> None:
        """Put a request on a sending queue."""
        self.queues[index].add([data])
        self.pci.notify(index)

    def done(self, index: int) -> int:
        """How many requests on a sending queue were taken since the last call."""
        return len(list(self.queues[index].collect()))

    def control(self, ident: int, event: int, value: int) -> None:
        """Send a control message."""
        list(self.queues[3].collect())
        self.send(3, pack("<IHH", ident, event, value))

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        """The control messages that came."""
        found = []
        while answers := self.received(2):
            found += [(*unpack_from("<IHH", data), data[8:]) for data in answers]
        return found

    @property
    def broken(self) -> bool:
        return bool(self.pci.status & 64)
