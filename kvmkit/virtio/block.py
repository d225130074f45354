"""Block device.

Virtio 1.2, section 5.2: requests of a header, data and a status byte; reads,
writes, flushes, discards, zeroes and the device's serial number.
"""

from __future__ import annotations

from collections import deque
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
        def settle(self) -> None: ...
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
QUEUE_SIZE: Final = 512
SEG_MAX: Final = QUEUE_SIZE - 2
ID_BYTES: Final = 20
BLOCK_MAX: Final = 1 << 16
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
        self.disk = disk
        self._workers = workers
        self._serial = serial.encode("ascii", "replace")[:ID_BYTES]
        # Resets of each queue, counted: what was submitted before one is neither done nor pushed.
        self._epochs = [0] * queues
        self._finished: deque[tuple[int, Chain, memoryview, bytes]] = deque()
        self._finishing = False
        self._flush_writes = False
        self.taken_up = False
        """Whether a driver has ever worked with it."""
        self.features = 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH | 1 << F_TOPOLOGY
        if queues > 1:
            self.features |= 1 << F_MQ
        if disk.read_only:
            self.features |= 1 << F_RO
        else:
            self.features |= 1 << F_DISCARD | 1 << F_WRITE_ZEROES
        # what the medium likes, as a power of two, in sectors
        exponent = max(min(disk.block_size, BLOCK_MAX) // SECTOR, 1).bit_length() - 1
        blocks = 1 << exponent
        self.config = bytearray(
            pack(
                "<QII HBB I BBHI BxH III IIBxxx",
                disk.size // SECTOR, 0, SEG_MAX,
                0, 0, 0,
                SECTOR,
                exponent, 0, blocks, 0,
                0, queues,
                RANGE_SECTORS_MAX, RANGES_MAX, blocks,
                RANGE_SECTORS_MAX, RANGES_MAX, 1,
            )
        )  # fmt: skip

    # The driver's requests

    def activated(self, features: int) -> None:
        """For a driver that cannot flush, what is written is on the medium (5.2.6.2)."""
        self.taken_up = True
        self._flush_writes = not features >> F_FLUSH & 1

    def notified(self, index: int) -> None:
        """Start every request there is; each is pushed when it is done."""
        pushed = False
        try:
            for chain in self.requests(index):
                pushed |= self._start(chain)
        finally:
            if pushed:
                self.interrupt(self.queues[index])

    def _start(self, chain: Chain) -> bool:
        """Serve a request, or have it served; whether it was pushed already."""
        if chain.readable_size < _HEADER.size or chain.writable_size < 1:
            raise QueueError("a block request without room for its header and status")
        kind, _, sector = _HEADER.unpack(chain.read(_HEADER.size))
        status = chain.cut_tail(1)[0]
        work = self._work(kind, sector, chain)
        if isinstance(work, bytes):
            self._give_back(chain, status, work)
            return True
        index = chain.queue.index
        epoch = self._epochs[index]

        def run() -> None:
            if epoch == self._epochs[index]:
                work()

        def done(error: OSError | None) -> None:
            self._finished.append((epoch, chain, status, S_OK if error is None else S_IOERR))
            if not self._finishing:
                self._finishing = True
                self.call(self._give_all_back)

        self._workers.submit(run, done)
        return False

    def _give_all_back(self) -> None:
        """Push what the workers have done so far, with one interrupt for each queue."""
        self._finishing = False
        indices = set()
        while self._finished:
            epoch, chain, status, code = self._finished.popleft()
            index = chain.queue.index
            if epoch == self._epochs[index]:
                self._give_back(chain, status, code)
                indices.add(index)
        for index in indices:
            self.interrupt(self.queues[index])

    def _give_back(self, chain: Chain, status: memoryview, code: bytes) -> None:
        status[:] = code
        filled, total = chain.written, chain.written + chain.writable_size
        if code != S_OK:
            filled = 0
        if filled == total:
            chain.queue.push(chain, filled + 1)
        else:
            # The status comes last, and a failed read may have filled a part: the memory is
            # told of all, the driver of what is certain from the beginning on (2.7.8.2).
            chain.tell_memory(total + 1)
            chain.queue.push(chain, filled)

    def _work(self, kind: int, sector: int, chain: Chain) -> Callable[[], None] | bytes:
        """What a worker shall do, or the status if that is all or it is done already."""
        disk = self.disk
        if kind == T_IN:
            if not self._inside(sector, chain.writable_size):
                return S_IOERR
            chain.written = chain.writable_size
            targets, chain.writable = chain.writable, []
            try:
                if disk.read_now(sector * SECTOR, targets):
                    return S_OK
            except OSError:
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
        if kind != T_OUT:
            work = self._ranges(kind, chain)
        elif self._inside(sector, chain.readable_size):
            sources = chain.readable
            try:
                if not self._flush_writes and disk.write_now(sector * SECTOR, sources):
                    return S_OK
            except OSError:
                return S_IOERR
            work = lambda: disk.write(sector * SECTOR, sources)  # noqa: E731
        else:
            return S_IOERR
        return self._through(work) if self._flush_writes else work

    def _through(self, work: Callable[[], None] | bytes) -> Callable[[], None] | bytes:
        """``work``, and a flush."""
        if isinstance(work, bytes):
            return work

        def both() -> None:
            work()
            self.disk.flush()

        return both

    def _ranges(self, kind: int, chain: Chain) -> Callable[[], None] | bytes:
        """Discard and write zeroes, 5.2.6.2: an array of ranges."""
        if chain.readable_size > RANGES_MAX * _RANGE.size:
            return S_IOERR
        data = chain.read_all()
        if not data or len(data) % _RANGE.size:
            return S_UNSUPP
        ranges = list(_RANGE.iter_unpack(data))
        allowed = _RANGE_UNMAP if kind == T_WRITE_ZEROES else 0
        for start, count, flags in ranges:
            if flags & ~allowed:
                return S_UNSUPP
            if count > RANGE_SECTORS_MAX or not self._inside(start, count * SECTOR):
                return S_IOERR
        disk = self.disk

        def work() -> None:
            for start, count, flags in ranges:
                if kind == T_DISCARD:
                    disk.discard(start * SECTOR, count * SECTOR)
                else:
                    unmap = bool(flags & _RANGE_UNMAP)
                    disk.write_zeroes(start * SECTOR, count * SECTOR, unmap=unmap)

        return work

    def _inside(self, sector: int, size: int) -> bool:
        return size % SECTOR == 0 and sector * SECTOR + size <= self.disk.size

    # Life

    def reset(self) -> None:
        """Forget the driver's requests; those under way are not pushed."""
        self._epochs = [epoch + 1 for epoch in self._epochs]

    def queue_reset(self, index: int) -> None:
        """The same for one queue; what a worker is at is waited for, as the driver does not."""
        self._epochs[index] += 1
        self._workers.settle()

    def quiesced(self) -> bool:
        """Whether no worker touches the guest's memory."""
        return not self._workers.busy

    def drain(self) -> None:
        """Wait until every request is done."""
        self._workers.drain()

    def close(self) -> None:
        """Finish and close the disk."""
        self._workers.close()
        self.disk.close()
