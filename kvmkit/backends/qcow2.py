"""A qcow2 disk image, versions 2 and 3, to be written.

QEMU, ``docs/interop/qcow2.rst``. Data that is the image's alone is overwritten; all
else, what a snapshot or a backing file has above all, goes to new clusters.
"""

from __future__ import annotations

from kvmkit.backends.buffers import Cursor
from kvmkit.backends.qcow2_image import DATA, NOTHING, ZEROES, Qcow2Image
from kvmkit.backends.qcow2_mapping import COMPRESSED, COPIED, OFFSET_MASK, ZERO
from kvmkit.backends.raw import write_fully

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvmkit.backends.qcow2_mapping import Table

__all__ = ["Qcow2"]

_STRIDE = 1 << 13
"""Clusters that are discarded with the lock held, at most."""


class Qcow2(Qcow2Image):
    """The whole disk: see :class:`kvmkit.backends.disk.Disk`."""

    # Writing

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        cursor = Cursor(buffers)
        while cursor.left:
            with self._lock:
                where, size = self._in_place(offset, cursor.left)
                if not size:
                    offset += self._write_new(offset, cursor)
                    continue
                self._fly()
            try:
                write_fully(self._file.fd, where, cursor.take(size))
            finally:
                self._land()
            offset += size

    def write_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """What overwrites one run of clusters, and finds its table in memory."""
        size = sum(map(len, buffers))
        if not self._lock.acquire(False):
            return False
        try:
            if not self._mapping.has(offset >> self._bits):
                return False
            where, there = self._in_place(offset, size)
            if there < size:
                return False
            return self._haste.write(self._write_at, where, buffers)
        finally:
            self._lock.release()

    def _write_at(self, where: int, buffers: Sequence[memoryview]) -> None:
        write_fully(self._file.fd, where, buffers)

    def _in_place(self, offset: int, size: int) -> tuple[int, int]:
        """Where to overwrite data that is ours alone, and how many bytes; else 0."""
        number, index = divmod(offset >> self._bits, self._mapping.per_table)
        table = self._mapping.table(number)
        if table is None or not table.entries[index] & COPIED:
            return 0, 0
        kind, where, there = self._run(offset, size)
        if kind != DATA or not self._mapping.is_own(number):
            return 0, 0
        return where, there

    def _write_new(self, offset: int, cursor: Cursor) -> int:
        """Write to clusters that must be taken first; how many bytes that were."""
        refcounts = self._writable()
        self._make_room()
        number, index = divmod(offset >> self._bits, self._mapping.per_table)
        table = self._mapping.own_table(number)
        inside = offset & self._cluster - 1
        entry = table.entries[index]
        if entry & ZERO and entry & COPIED and not entry & COMPRESSED and entry & OFFSET_MASK:
            # Zeroes with a cluster kept for them: what is in it cannot be seen yet.
            where, count, taken = self._classify(entry)[1], 1, False
        else:
            wanted = self._count_new(table, index, -(-(inside + cursor.left) >> self._bits))
            cluster, count = refcounts.take(wanted)
            where, taken = cluster << self._bits, True
        size = min(cursor.left, (count << self._bits) - inside)
        try:
            self._fill(where, count, offset, cursor.take(size), size)
        except BaseException:
            if taken:
                refcounts.drop(where >> self._bits, count)
            raise
        for step in range(count):
            if taken:
                self._release(table.entries[index + step])
            table.put(index + step, where + (step << self._bits) | COPIED)
        return size

    def _count_new(self, table: Table, index: int, most: int) -> int:
        """How many clusters from ``index`` on, of ``most``, cannot be written in place."""
        entries = table.entries
        most = min(most, len(entries) - index)
        count = 1
        while count < most and (
            not entries[index + count] & COPIED or entries[index + count] & COMPRESSED
        ):
            count += 1
        return count

    def _fill(
        self, where: int, count: int, offset: int, parts: list[memoryview], size: int
    ) -> None:
        """Write new clusters: the guest's bytes, and around them what was there before."""
        file = self._file
        head = offset & self._cluster - 1
        tail = (count << self._bits) - head - size
        new = where >= file.virgin
        before = self._old(offset - head, head, new) if head else b""
        after = self._old(offset + size, tail, new) if tail else b""
        file.virgin = max(file.virgin, where + (count << self._bits))
        start = where + head - len(before)
        write_fully(file.fd, start, [memoryview(before), *parts, memoryview(after)])

    def _old(self, offset: int, size: int, new: bool) -> bytes:
        """What is on the disk there, within one cluster; b"" if that is what a new one has."""
        kind, where, _ = self._run(offset, size)
        nothing = kind == ZEROES or (kind == NOTHING and self._backing is None)
        if nothing and new:
            return b""
        data = bytearray(size)
        if not nothing:
            self._read_run(kind, where, offset, size, [memoryview(data)])
        return bytes(data)

    def _release(self, entry: int) -> None:
        """An L2 entry is gone: give back its clusters."""
        refcounts = self._writable()
        if entry & COMPRESSED:
            from kvmkit.backends.qcow2_compressed import place

            where, size = place(entry, self._bits)
            for cluster in range(where >> self._bits, (where + size - 1 >> self._bits) + 1):
                refcounts.release(cluster)
        elif entry & OFFSET_MASK:
            refcounts.release((entry & OFFSET_MASK) >> self._bits)

    # Discarding

    def discard(self, offset: int, size: int) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        if self._backing is not None and self._version < 3:
            return  # version 2 cannot say that the backing file is not to be seen
        entry = ZERO if self._backing is not None else 0
        for number, indices in self._whole_clusters(offset, size):
            with self._lock:
                self._make_room()
                if self._mapping.table(number) is not None:
                    self._forget(number, indices, entry)

    def _forget(self, number: int, indices: range, new: int) -> None:
        """Give the clusters back that are there, with ``new`` for entry."""
        table = self._mapping.own_table(number)
        for index in indices:
            old = table.entries[index]
            if old and old != new and (old & (COMPRESSED | OFFSET_MASK)):
                self._release(old)
                if not old & COMPRESSED:
                    self._discarded.add((old & OFFSET_MASK) >> self._bits)
                table.put(index, new)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        if self._version < 3:
            self._write_as_data(offset, size)
            return
        end = offset + size
        whole = offset
        for number, indices in self._whole_clusters(offset, size):
            start = number * self._mapping.per_table + indices.start << self._bits
            if whole < start:
                self._write_as_data(whole, start - whole)
            with self._lock:
                self._make_room()
                self._zero(number, indices, unmap=unmap)
            whole = min(end, number * self._mapping.per_table + indices.stop << self._bits)
        if whole < end:
            self._write_as_data(whole, end - whole)

    def _zero(self, number: int, indices: range, *, unmap: bool) -> None:
        if self._mapping.table(number) is None and self._backing is None:
            return
        table = self._mapping.own_table(number)
        for index in indices:
            old = table.entries[index]
            if not old & COMPRESSED and (old & ZERO or not (old or self._backing)):
                continue
            if old & COPIED and not old & COMPRESSED and not unmap:
                table.put(index, old | ZERO)
                continue
            self._release(old)
            if old & OFFSET_MASK and not old & COMPRESSED:
                self._discarded.add((old & OFFSET_MASK) >> self._bits)
            table.put(index, ZERO)

    def _write_as_data(self, offset: int, size: int) -> None:
        zeroes = memoryview(bytes(min(size, 1 << 20)))
        while size > 0:
            part = min(size, len(zeroes))
            self.write(offset, [zeroes[:part]])
            offset, size = offset + part, size - part

    def _whole_clusters(self, offset: int, size: int) -> Iterator[tuple[int, range]]:
        """The clusters that lie wholly in a range, as table numbers and indices.

        The last cluster ends where the disk does.
        """
        first = -(-offset >> self._bits)
        end = offset + size
        last = -(-end >> self._bits) if end >= self.size else end >> self._bits
        per_table = self._mapping.per_table
        while first < last:
            number, index = divmod(first, per_table)
            stop = min(index + last - first, per_table, index + _STRIDE)
            yield number, range(index, stop)
            first += stop - index
