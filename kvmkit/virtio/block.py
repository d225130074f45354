"""Block device.

Virtio 1.2, section 5.2: requests of a header, data and a status byte; reads,
writes, flushes, discards, zeroes and the device's serial number.
"""

from __future__ import annotations

from struct import Struct, pack

from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.memory import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from kvmkit.backends.disk import Disk
    from kvmkit.virtio.chain import Chain

    class Submitter(Protocol):
        """Who runs a disk's blocking calls: ``kvmkit.backends.disk_queue.DiskQueue``."""

        def submit(
            self, work: Callable[[], None], done: Callable[[OSError | None], None]
        ) -> None: ...
        def drain(self) -> None: ...
        def close(self) -> None: ...
        @property
        def busy(self) -> bool: ...


__all__ = ["Block"]

# Feature bits, 5.2.3
F_SEG_MAX: Final = 2
F_RO: Final = 5
F_BLK_SIZE: Final = 6
F_FLUSH: Final = 9
F_TOPOLOGY: Final = 10
F_MQ: Final = 12
F_DISCARD: Final = 13
F_WRITE_ZEROES: Final = 14

# Request types, 5.2.6
T_IN: Final = 0
T_OUT: Final = 1
T_FLUSH: Final = 4
T_GET_ID: Final = 8
T_DISCARD: Final = 11
T_WRITE_ZEROES: Final = 13

S_OK: Final = b"\0"
S_IOERR: Final = b"\1"
S_UNSUPP: Final = b"\2"

SECTOR: Final = 512
QUEUE_SIZE: Final = 128
SEG_MAX: Final = QUEUE_SIZE - 2
ID_BYTES: Final = 20
RANGES_MAX: Final = 16  # of one discard or write-zeroes request
RANGE_SECTORS_MAX: Final = (1 << 31) // SECTOR

_HEADER = Struct("<IIQ")
_RANGE = Struct("<QII")
_RANGE_UNMAP = 1


class Block(VirtioDevice):
    """``disk`` behind ``queues`` request queues; ``serial`` is at most 20 ASCII characters."""

    device_id = 2
    name = "block"
    pci_class = 0x01_80_00  # mass storage, other

    def __init__(
        self, disk: Disk, workers: Submitter, *, serial: str = "", queues: int = 1
    ) -> None:
        self.queue_sizes = (QUEUE_SIZE,) * queues
        super().__init__()
        self._disk = disk
        self._workers = workers
        self._serial = serial.encode("ascii", "replace")[:ID_BYTES]
        self._epoch = 0  # counts resets: what was submitted before one is not pushed
        self.features = 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH | 1 << F_TOPOLOGY
        if queues > 1:
            self.features |= 1 << F_MQ
        if disk.read_only:
            self.features |= 1 << F_RO
        else:
            self.features |= 1 << F_DISCARD | 1 << F_WRITE_ZEROES
        blocks = max(disk.block_size // SECTOR, 1)
        self.config = bytearray(
            pack(
                "<QII HBB I BBHI BxH III IIBxxx",
                disk.size // SECTOR, 0, SEG_MAX,
                0, 0, 0,
                SECTOR,
                blocks.bit_length() - 1, 0, blocks, 0,
                0, queues,
                RANGE_SECTORS_MAX, RANGES_MAX, blocks,
                RANGE_SECTORS_MAX, RANGES_MAX, 1,
            )
        )  # fmt: skip

    # The driver's requests

    def notified(self, index: int) -> None:
        """Start every request there is; each is pushed when it is done."""
        for chain in self.requests(index):
            self._start(chain)

    def _start(self, chain: Chain) -> None:
        if chain.readable_size < _HEADER.size or chain.writable_size < 1:
            raise QueueError("a block request without room for its header and status")
        kind, _, sector = _HEADER.unpack(chain.read(_HEADER.size))
        status = chain.cut_tail(1)[0]
        work = self._work(kind, sector, chain)
        if isinstance(work, bytes):
            self._finish(chain, status, work)
            return
        epoch = self._epoch

        def done(error: OSError | None) -> None:
            def finish() -> None:
                if epoch == self._epoch:
                    self._finish(chain, status, S_OK if error is None else S_IOERR)

            self.call(finish)

        self._workers.submit(work, done)

    def _finish(self, chain: Chain, status: memoryview, code: bytes) -> None:
        status[:] = code
        size = sum(map(len, chain.writable)) if code == S_OK else 0
        self.push(chain, max(chain.written, size) + 1)

    def _work(self, kind: int, sector: int, chain: Chain) -> Callable[[], None] | bytes:
        """What a worker shall do, or the status if nothing is to be done."""
        disk = self._disk
        if kind == T_IN:
            targets = list(chain.writable)
            if not self._inside(sector, chain.writable_size):
                return S_IOERR
            return lambda: disk.read(sector * SECTOR, targets)
        if kind == T_FLUSH:
            return disk.flush
        if kind == T_GET_ID:
            chain.write(self._serial.ljust(ID_BYTES, b"\0"))
            return S_OK
        if kind not in (T_OUT, T_DISCARD, T_WRITE_ZEROES):
            return S_UNSUPP
        if disk.read_only:
            return S_IOERR
        if kind == T_OUT:
            sources = list(chain.readable)
            if not self._inside(sector, chain.readable_size):
                return S_IOERR
            return lambda: disk.write(sector * SECTOR, sources)
        return self._ranges(kind, chain)

    def _ranges(self, kind: int, chain: Chain) -> Callable[[], None] | bytes:
        """Discard and write zeroes, 5.2.6.2: an array of ranges."""
        data = chain.read_all(RANGES_MAX * _RANGE.size)
        if not data or len(data) % _RANGE.size:
            return S_UNSUPP
        ranges = list(_RANGE.iter_unpack(data))
        allowed = _RANGE_UNMAP if kind == T_WRITE_ZEROES else 0
        for start, count, flags in ranges:
            if flags & ~allowed:
                return S_UNSUPP
            if count > RANGE_SECTORS_MAX or not self._inside(start, count * SECTOR):
                return S_IOERR
        disk = self._disk

        def work() -> None:
            for start, count, flags in ranges:
                if kind == T_DISCARD:
                    disk.discard(start * SECTOR, count * SECTOR)
                else:
                    unmap = bool(flags & _RANGE_UNMAP)
                    disk.write_zeroes(start * SECTOR, count * SECTOR, unmap=unmap)

        return work

    def _inside(self, sector: int, size: int) -> bool:
        return size % SECTOR == 0 and sector * SECTOR + size <= self._disk.size

    # Life

    def reset(self) -> None:
        """Forget the driver's requests; those under way are not pushed."""
        self._epoch += 1

    def queue_reset(self, index: int) -> None:
        """As :meth:`reset`, for the requests of one queue: a dead queue takes no push."""

    def quiesced(self) -> bool:
        """Whether no worker touches the guest's memory."""
        return not self._workers.busy

    def drain(self) -> None:
        """Wait until every request is done."""
        self._workers.drain()

    def close(self) -> None:
        """Finish and close the disk."""
        self._workers.close()
        self._disk.close()
