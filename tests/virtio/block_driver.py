"""A block driver in a few lines, a disk in memory, and workers that work when told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from struct import pack
from typing import Any

from kvmkit.virtio.block import Block
from kvmkit.virtio.pci import VirtioPci
from tests.virtio.mock import FakeHost, FakeRam, MsiLog, PackedDriver, PciDriver, SplitDriver

__all__ = ["BlockDriver", "LateWorkers", "MemoryDisk", "Workers"]

FLUSH = 1 << 9
RING = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40
PACKED = 1 << 34


class MemoryDisk:
    """Bytes; ``trouble`` is raised by whatever is done next."""

    def __init__(self, size: int = 64 << 10, *, read_only: bool = False, now: bool = False) -> None:
        self.data = bytearray(range(256)) * (size // 256)
        self.size = size
        self.read_only = read_only
        self.block_size = 4096
        self.now = now
        self.trouble: OSError | None = None
        self.log: list[tuple[Any, ...]] = []

    def _check(self, *what: Any) -> None:
        self.log.append(what)
        if self.trouble is not None:
            raise self.trouble

    def _range(self, offset: int, size: int) -> None:
        assert 0 <= offset <= offset + size <= self.size

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check("read", offset)
        for view in buffers:
            self._range(offset, len(view))
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def read_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self.now:
            self.read(offset, buffers)
        return self.now

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check("write", offset)
        for view in buffers:
            self._range(offset, len(view))
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def write_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        if self.now:
            self.write(offset, buffers)
        return self.now

    def flush(self) -> None:
        self._check("flush")

    def discard(self, offset: int, size: int) -> None:
        self._check("discard", offset, size)
        self._range(offset, size)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        self._check("zeroes", offset, size, unmap)
        self._range(offset, size)
        self.data[offset : offset + size] = bytes(size)

    def close(self) -> None:
        self.log.append(("close",))


class Workers:
    """Works at once, where it is called."""

    busy = False

    def submit(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        try:
            work()
        except OSError as error:
            done(error)
        else:
            done(None)

    def drain(self) -> None: ...

    def settle(self) -> None: ...

    def close(self) -> None: ...


class LateWorkers(Workers):
    """Works when :meth:`turn` is called."""

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.settled = 0

    @property
    def busy(self) -> bool:  # type: ignore[override]
        return bool(self.waiting)

    def submit(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        self.waiting.append((work, done))

    def turn(self, count: int = 1000) -> None:
        while self.waiting and count:
            count -= 1
            super().submit(*self.waiting.popleft())

    def settle(self) -> None:
        self.settled += 1


class BlockDriver:
    """A device on ``disk`` and its driver, which has negotiated ``features``."""

    def __init__(
        self,
        disk: Any = None,
        workers: Any = None,
        *,
        packed: bool = False,
        features: int | None = None,
        size: int = 64,
        **options: Any,
    ) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self.workers = Workers() if workers is None else workers
        self.ram = FakeRam()
        self.host = FakeHost(self.ram)
        self.device = Block(self.disk, self.workers, **options)
        self.msi = MsiLog()
        self.function = VirtioPci(self.device, self.host, self.msi, packed=packed)
        self.pci = PciDriver(self.function)
        self.packed = packed
        self.size = size
        self.features = self.pci.offered() if features is None else features
        self.set_up()

    def set_up(self) -> None:
        """From reset to DRIVER_OK."""
        kind: Any = PackedDriver if self.packed else SplitDriver
        assert self.pci.accept(self.features | RING | (PACKED if self.packed else 0))
        self.pci.enable_msix(1 + len(self.device.queue_sizes))
        self.rings = []
        for index in range(len(self.device.queue_sizes)):
            ring = kind(self.ram, self.size, event_index=True, base=0x1000 + 0x4000 * index)
            self.rings.append(ring)
            self.pci.set_queue(index, ring.where, vector=1 + index)
        self.pci.go()

    def add(
        self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, queue: int = 0
    ) -> int:
        """Put a request on the ring; not notified yet."""
        head = pack("<IIQ", kind, 0, sector)
        readable = [head, data] if data else [head]
        ident: int = self.rings[queue].add(
            readable, [room, 1] if room else [1], indirect=bool(sector & 1)
        )
        return ident

    def notify(self, queue: int = 0) -> None:
        self.pci.notify(queue)
        self.host.turn()

    def collect(self, queue: int = 0) -> dict[int, bytes]:
        return dict(self.rings[queue].collect())

    def request(
        self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0
    ) -> tuple[int, bytes]:
        """One request from beginning to end: status, and what was read."""
        ring = self.rings[0]
        ident = self.add(kind, sector, data, room)
        places, _ = ring.pending[ident]
        self.ram.data[places[-1][0]] = 0xEE
        self.notify()
        answer = self.collect()[ident]
        return self.ram.data[places[-1][0]], answer[:room]

    @property
    def broken(self) -> bool:
        """DEVICE_NEEDS_RESET."""
        return bool(self.pci.status & 64)
