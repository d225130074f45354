"""A disk whose writes are kept aside and forgotten at the end.

They go to an unnamed temporary file, as sparse as the disk is large, in clusters
of 64 KiB; a cluster's first write copies the rest of it from the disk below.
"""

from __future__ import annotations

from tempfile import TemporaryFile
from threading import Lock

from kvmkit.backends.haste import Haste
from kvmkit.backends.raw import read_cached, read_fully, write_fully

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvmkit.backends.disk import Disk

__all__ = ["Overlay", "cut"]

CLUSTER = 64 << 10


class Overlay:
    """``below``, which is never written, with a temporary file above it."""

    read_only = False

    def __init__(self, below: Disk) -> None:
        self._below = below
        self.size = below.size
        self.block_size = below.block_size
        self._file = TemporaryFile(prefix="kvmkit-disk-")  # noqa: SIM115 - closed by close()
        self._fd = self._file.fileno()
        self._have: set[int] = set()
        self._lock = Lock()
        self._haste = Haste()

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        for at, parts, cluster in _pieces(offset, buffers):
            if cluster in self._have:
                read_fully(self._fd, at, parts)
            else:
                self._below.read(at, parts)

    def read_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """What is in one cluster is as quick as the disk it is on."""
        last = offset + sum(map(len, buffers)) - 1
        if last // CLUSTER != offset // CLUSTER:
            return False
        if last // CLUSTER in self._have:
            return read_cached(self._fd, offset, buffers)
        return self._below.read_now(offset, buffers)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        for at, parts, cluster in _pieces(offset, buffers):
            with self._lock:
                if cluster not in self._have:
                    size = sum(map(len, parts))
                    if size < CLUSTER and size < self.size - cluster * CLUSTER:
                        self._copy_up(cluster)
                    write_fully(self._fd, at, parts)
                    self._have.add(cluster)
                    continue
            write_fully(self._fd, at, parts)

    def write_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """What is in clusters that were written is as quick as a file."""
        last = offset + sum(map(len, buffers)) - 1
        clusters = range(offset // CLUSTER, last // CLUSTER + 1)
        if not all(cluster in self._have for cluster in clusters):
            return False
        return self._haste.write(self._write_own, offset, buffers)

    def _write_own(self, offset: int, buffers: Sequence[memoryview]) -> None:
        write_fully(self._fd, offset, buffers)

    def _copy_up(self, cluster: int) -> None:
        start = cluster * CLUSTER
        data = memoryview(bytearray(min(CLUSTER, self.size - start)))
        self._below.read(start, [data])
        write_fully(self._fd, start, [data])

    def flush(self) -> None:
        """Nothing is meant to last."""

    def discard(self, offset: int, size: int) -> None:
        """The temporary file keeps what it has."""

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        zeroes = memoryview(bytes(min(size, 1 << 20)))
        while size:
            part = min(size, len(zeroes))
            self.write(offset, [zeroes[:part]])
            offset += part
            size -= part

    def close(self) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        self._file.close()
        self._below.close()


def _pieces(
    offset: int, buffers: Sequence[memoryview]
) -> Iterator[tuple[int, list[memoryview], int]]:
    """The buffers cut where clusters end: offset, parts, cluster."""
    for at, parts in cut(offset, buffers, CLUSTER):
        yield at, parts, at // CLUSTER


def cut(
    offset: int, buffers: Sequence[memoryview], grain: int
) -> Iterator[tuple[int, list[memoryview]]]:
    """The buffers from ``offset`` cut where a multiple of ``grain`` is crossed."""
    parts: list[memoryview] = []
    start, room = offset, grain - offset % grain
    for buffer in buffers:
        view = buffer
        while len(view) >= room:
            parts.append(view[:room])
            yield start, parts
            view = view[room:]
            start, room, parts = start + sum(map(len, parts)), grain, []
        if len(view):
            parts.append(view)
            room -= len(view)
    if parts:
        yield start, parts
