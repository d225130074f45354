"""A qcow2 image: opening, reading, and writing its tables in a safe order.

QEMU, ``docs/interop/qcow2.rst``. Tables are changed in memory and written when the
guest flushes, or when there are many changes, in an order that leaves a good image
wherever it is cut off (:meth:`Qcow2Image._commit`):

1. data, refcounts that grow, and L2 tables that nothing points to; a barrier;
2. L2 tables and L1 entries; a barrier;
3. refcounts that shrink, after which clusters are taken anew.

So after a crash, all that was flushed is there, and clusters are lost at worst
("leaked") if it happened within such a commit.
"""

from __future__ import annotations

import os
from threading import Condition, Lock

from kvmkit.backends.buffers import Cursor
from kvmkit.backends.haste import Haste
from kvmkit.backends.qcow2_file import ImageFile
from kvmkit.backends.qcow2_header import AUTOCLEAR_OFFSET, read_header
from kvmkit.backends.qcow2_mapping import (
    COMPRESSED,
    L2_RESERVED,
    OFFSET_MASK,
    ZERO,
    Mapping,
)
from kvmkit.backends.raw import punch, read_cached, read_fully
from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmkit.backends.disk import Disk
    from kvmkit.backends.qcow2_compressed import Unpacker
    from kvmkit.backends.qcow2_refcounts import Refcounts

__all__ = ["Qcow2Image"]

MAX_CHAIN = 64
"""Backing files below each other, at most."""

# What a run of clusters is
DATA, NOTHING, ZEROES, PACKED = range(4)


class Qcow2Image:
    """The image open as ``fd``, which the disk closes once it is made.

    ``above`` are the images it is a backing file of. Raises FileTrouble or
    PermissionTrouble for what cannot be used. Its methods raise OSError with EIO where
    the image is damaged.
    """

    def __init__(
        self, fd: int, path: str, *, read_only: bool, above: tuple[tuple[int, int], ...] = ()
    ) -> None:
        header = read_header(fd, path, write=not read_only)
        self.read_only = read_only
        self.size = header.size
        self._version = header.version
        self._bits = header.cluster_bits
        self._cluster = 1 << header.cluster_bits
        self.block_size = self._cluster
        self._compression = header.compression
        self._unpacker: Unpacker | None = None
        self._file = ImageFile(fd, path, header.cluster_bits)
        self._refcounts: Refcounts | None = None
        self._haste = Haste()
        self._lock = Lock()  # guards the tables
        self._in_flight = 0  # reads and writes of clusters that go on without the lock
        self._landed = Condition(Lock())
        self._discarded: set[int] = set()
        self._backing: Disk | None = None
        if not read_only:
            from kvmkit.backends.qcow2_refcounts import Refcounts

            l1_end = header.l1_offset + header.l1_entries * 8
            own = range(header.l1_offset >> self._bits, -(-l1_end >> self._bits))
            self._refcounts = Refcounts(self._file, header, [own])
        self._mapping = Mapping(self._file, header, self._refcounts)
        if header.backing is not None:
            status = os.fstat(fd)
            chain = (*above, (status.st_dev, status.st_ino))
            self._backing = _open_backing(path, header.backing, header.backing_format, chain)
        if header.autoclear and not read_only:
            try:
                self._file.write(AUTOCLEAR_OFFSET, bytes(8))
            except BaseException:
                if self._backing is not None:
                    self._backing.close()
                raise

    # Reading

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        cursor = Cursor(buffers)
        end = offset + cursor.left
        while offset < end:
            with self._lock:
                kind, where, size = self._run(offset, end - offset)
                self._fly()
            try:
                self._read_run(kind, where, offset, size, cursor.take(size))
            finally:
                self._land()
            offset += size

    def _read_run(
        self, kind: int, where: int, offset: int, size: int, parts: list[memoryview]
    ) -> None:
        if kind == DATA:
            read_fully(self._file.fd, where, parts)
        elif kind == PACKED:
            data = memoryview(self._unpack(where))
            at = offset % self._cluster
            for part in parts:
                part[:] = data[at : at + len(part)]
                at += len(part)
        elif kind == ZEROES:
            _clear(parts)
        else:
            self._read_backing(offset, size, parts)

    def _read_backing(self, offset: int, size: int, parts: list[memoryview]) -> None:
        backing = self._backing
        there = 0 if backing is None else max(0, min(size, backing.size - offset))
        if backing is not None and there:
            cursor = Cursor(parts)
            backing.read(offset, cursor.take(there))
            parts = cursor.take(size - there)
        _clear(parts)

    def read_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """If it is in one run whose tables are in memory and whose data is in the page cache."""
        size = sum(map(len, buffers))
        if not self._lock.acquire(False):
            return False
        try:
            if not self._mapping.has(offset >> self._bits):
                return False
            kind, where, there = self._run(offset, size)
            if there < size:
                return False
            if kind == DATA:
                return read_cached(self._file.fd, where, buffers)
        finally:
            self._lock.release()
        if kind == NOTHING and self._backing is not None:
            return offset + size <= self._backing.size and self._backing.read_now(offset, buffers)
        if kind == PACKED:
            return False
        _clear(buffers)
        return True

    def _run(self, offset: int, size: int) -> tuple[int, int, int]:
        """What is at ``offset``, and for how many bytes, ``size`` at most.

        DATA with its place in the file, PACKED with its entry, NOTHING where the
        backing file is to be asked, ZEROES.
        """
        number, index = divmod(offset >> self._bits, self._mapping.per_table)
        inside = offset & self._cluster - 1
        left = self._cluster - inside
        table = self._mapping.table(number)
        if table is None:
            return NOTHING, 0, min(size, (self._mapping.per_table - index << self._bits) - inside)
        entries = table.entries
        entry = entries[index]
        if entry & COMPRESSED:
            return PACKED, entry, min(size, left)
        kind, where = self._classify(entry)
        index += 1
        if kind == DATA:
            # The next ones in the file, with the same flags, have the next entries.
            step = self._cluster
            while left < size and index < len(entries) and entries[index] == entry + step:
                left += self._cluster
                step += self._cluster
                index += 1
            return DATA, where + inside, min(size, left)
        while left < size and index < len(entries) and entries[index] == entry:
            left += self._cluster
            index += 1
        return kind, 0, min(size, left)

    def _classify(self, entry: int) -> tuple[int, int]:
        """DATA and where, NOTHING or ZEROES, for an entry that is not compressed."""
        where = entry & OFFSET_MASK
        if entry & L2_RESERVED or where & self._cluster - 1:
            raise self._file.damaged(f"an L2 entry is {entry:#x}")
        if entry & ZERO:
            if self._version < 3:
                raise self._file.damaged(f"an L2 entry of version 2 is {entry:#x}")
            return ZEROES, where
        return (DATA, where) if where else (NOTHING, 0)

    def _unpack(self, entry: int) -> bytes:
        if self._unpacker is None:
            from kvmkit.backends.qcow2_compressed import Unpacker

            self._unpacker = Unpacker(self._file, self._compression)
        return self._unpacker.cluster(entry)

    # On the medium

    def flush(self) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        if self.read_only:
            return
        with self._lock:
            if self._commit():
                return
        self._file.sync()

    def _make_room(self) -> None:
        """Write the changes if there are too many to keep. The lock is held."""
        if self._writable().crowded or self._mapping.crowded:
            self._commit()

    def _commit(self) -> bool:
        """Write the tables that have changed; False if there are none. The lock is held.

        See the module's text for the order.
        """
        refcounts = self._writable()
        if not refcounts.dirty and not self._mapping.dirty:
            return False
        refcounts.write_structure()
        refcounts.write_blocks()
        self._mapping.write_fresh()
        self._file.sync()
        if self._mapping.dirty:
            self._mapping.write_changes()
            self._file.sync()
        if refcounts.releasing:
            with self._landed:  # nobody reads or writes what may belong to another soon
                self._landed.wait_for(lambda: not self._in_flight)
            free = refcounts.apply_released()
            refcounts.write_blocks()
            self._punch([cluster for cluster in free if cluster in self._discarded])
            self._discarded.clear()
        return True

    def _punch(self, clusters: list[int]) -> None:
        """Give the host its room back."""
        clusters.sort()
        start = 0
        for at in range(1, len(clusters) + 1):
            if at == len(clusters) or clusters[at] != clusters[at - 1] + 1:
                where, count = clusters[start], at - start
                punch(self._file.fd, where << self._bits, count << self._bits)
                start = at

    def _fly(self) -> None:
        with self._landed:
            self._in_flight += 1

    def _land(self) -> None:
        with self._landed:
            self._in_flight -= 1
            if not self._in_flight:
                self._landed.notify_all()

    def close(self) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        try:
            if self._file.fd >= 0:
                self.flush()
        finally:
            self._file.close()
            backing, self._backing = self._backing, None
            if backing is not None:
                backing.close()

    def _writable(self) -> Refcounts:
        refcounts = self._refcounts
        assert refcounts is not None, "a disk that is read only is not written"
        return refcounts


def _clear(parts: Sequence[memoryview]) -> None:
    for part in parts:
        part[:] = bytes(len(part))


def _open_backing(
    path: str, name: str, format: str | None, chain: tuple[tuple[int, int], ...]
) -> Disk:
    """The backing file ``name`` of the image ``path``. Raises FileTrouble or PermissionTrouble."""
    from kvmkit.backends.disk import FORMATS, open_layer

    name = name.removeprefix("file:")
    scheme = name.partition(":")[0]
    if ":" in name and scheme.replace("+", "").replace("-", "").isalnum():
        raise FileTrouble(f"{path}: expected a file below it, found {name!r}")
    if format is not None and format not in FORMATS:
        raise FileTrouble(f"{path}: expected a raw or qcow2 file below it, found {format!r}")
    if len(chain) >= MAX_CHAIN:
        raise FileTrouble(f"{path}: more than {MAX_CHAIN} images based on each other")
    place = os.path.join(os.path.dirname(path), name)
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        pass  # open_layer tells it
    else:
        if (status.st_dev, status.st_ino) in chain:
            raise FileTrouble(f"{path}: the images are based on each other in a circle")
    return open_layer(place, read_only=True, format=format, above=chain)
