"""A socket driver in a few lines, and a hub whose peers are lists."""

from __future__ import annotations

from typing import Any

from kvmkit.virtio.pci import VirtioPci
from kvmkit.virtio.vsock import Vsock
from kvmkit.virtio.vsock_packet import HEADER, Header
from tests.virtio.console_driver import WatchingHost
from tests.virtio.mock import MsiLog, PciDriver, SplitDriver

__all__ = ["CID", "PeerLog", "TestHub", "VsockDriver"]

CID = 7
RING = 1 << 28 | 1 << 29 | 1 << 32
SIZE = 16


class PeerLog:
    """The host's end of a connection; hands nothing on by itself."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.taken = b""
        self.to_guest = b""
        self.log: list[str] = []

    def connected(self, connection: Any) -> None:
        self.connection = connection
        self.log.append("connected")

    def take(self, data: bytes) -> None:
        self.taken += data

    def take_end(self) -> None:
        self.log.append("end")

    def pending(self) -> int:
        return len(self.to_guest)

    def give(self, most: int) -> bytes:
        data, self.to_guest = self.to_guest[:most], self.to_guest[most:]
        return data

    def closed(self) -> None:
        self.log.append("closed")


class TestHub:
    """Answers at every port but 99."""

    __test__ = False

    def __init__(self) -> None:
        self.peers: list[PeerLog] = []
        self.closed = False

    def open(self, device: Any, host: Any) -> None:
        pass

    def answer(self, port: int) -> PeerLog | None:
        if port == 99:
            return None
        self.peers.append(PeerLog())
        return self.peers[-1]

    def begun(self, connection: Any, peer: Any) -> None:
        peer.connection = connection
        connection.accept()

    def close(self) -> None:
        self.closed = True


class VsockDriver:
    """Brings the device up; there are ``buffers`` of ``room`` bytes to be filled."""

    def __init__(self, *, room: int = 256, buffers: int = 8, hub: Any = None) -> None:
        self.hub = hub or TestHub()
        self.device = Vsock(CID, self.hub)
        self.host = WatchingHost()
        self.msi = MsiLog()
        self.pci = PciDriver(VirtioPci(self.device, self.host, self.msi))
        self.room = room
        self.bring_up(buffers)

    def bring_up(self, buffers: int = 8) -> None:
        assert self.pci.accept(RING | 1)
        self.host.ram.data[0x1000:0xD000] = bytes(0xC000)
        self.queues = []
        for index in range(3):
            queue = SplitDriver(self.host.ram, (SIZE, SIZE, 8)[index], base=0x1000 + 0x4000 * index)
            queue._next_buffer = queue._buffers_start = 0x4_0000 + 0x2_0000 * index
            self.queues.append(queue)
            self.pci.set_queue(index, queue.where)
        self.pci.go()
        self.give(buffers)
        self.queues[2].add(writable=[4])

    def give(self, count: int) -> None:
        """Put fresh buffers in."""
        for _ in range(count):
            self.queues[0].add(writable=[self.room])
        self.pci.notify(0)

    def send(self, op: int, data: bytes = b"", **fields: int) -> None:
        """Send a packet, by default of the connection 5 (guest) to 10 (host)."""
        named = {
            "src_cid": CID, "dst_cid": 2, "src_port": 5, "dst_port": 10, "size": len(data),
            "type": 1, "op": op, "flags": 0, "buf_alloc": 1000, "fwd_cnt": 0,
        }  # fmt: skip
        named |= fields
        list(self.queues[1].collect())
        self.queues[1].add([HEADER.pack(*named.values()) + data])
        self.pci.notify(1)

    def packets(self, *, refill: bool = True) -> list[tuple[Header, bytes]]:
        """What came."""
        found = []
        while True:
            self.host.turn()
            new = [data for _, data in self.queues[0].collect()]
            found += [(Header(*HEADER.unpack_from(data)), data[HEADER.size :]) for data in new]
            if refill:
                self.give(len(new))
            if not refill or not new:
                return found

    def ops(self) -> list[int]:
        """Their operations."""
        return [header.op for header, _ in self.packets()]

    @property
    def broken(self) -> bool:
        return bool(self.pci.status & 64)
