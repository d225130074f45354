"""Where each cluster of the guest's disk is in a qcow2 image.

QEMU, ``docs/interop/qcow2.rst``, "Cluster mapping": an L1 table that points to L2
tables, whose entries are of the kinds below. Changes stay in memory until they are
written in the order that :mod:`kvmkit.backends.qcow2` keeps.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.qcow2_file import ImageFile
    from kvmkit.backends.qcow2_header import Header
    from kvmkit.backends.qcow2_refcounts import Refcounts

__all__ = ["Mapping", "Table"]

# L1 and L2 entries
COPIED: Final = 1 << 63
"""The cluster's refcount is one: it may be written in place."""
COMPRESSED: Final = 1 << 62
ZERO: Final = 1 << 0
OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
L1_RESERVED: Final = 0x7F00_0000_0000_01FF
L2_RESERVED: Final = 0x3F00_0000_0000_01FE

CACHE_BYTES: Final = 16 << 20


class Table:
    """An L2 table; ``low`` to ``high`` are to be written."""

    __slots__ = ("entries", "fresh", "high", "low", "offset")

    def __init__(self, offset: int, entries: array[int], *, fresh: bool) -> None:
        self.offset = offset
        self.entries = entries
        self.fresh = fresh  # nothing on the medium points here
        self.low, self.high = (0, len(entries) - 1) if fresh else (len(entries), -1)

    def put(self, index: int, entry: int) -> None:
        """Change one."""
        self.entries[index] = entry
        if index < self.low:
            self.low = index
        if index > self.high:
            self.high = index


class Mapping:
    """The tables of an image; ``refcounts`` is None if it is only read. Not for several threads."""

    def __init__(self, file: ImageFile, header: Header, refcounts: Refcounts | None) -> None:
        self._file = file
        self._refcounts = refcounts
        self._l1_offset = header.l1_offset
        self._l1 = file.read_words(header.l1_offset, header.l1_entries)
        self._l1_dirty: set[int] = set()
        self.per_table = file.cluster_size // 8
        self.cache: dict[int, Table | None] = {}
        """Tables by their number; None for one that the image does not have."""
        self._changed: set[int] = set()  # numbers of tables to be written; these stay in memory
        self._most = max(4, CACHE_BYTES // file.cluster_size)

    def has(self, cluster: int) -> bool:
        """Whether the table for a cluster of the disk is in memory."""
        return cluster // self.per_table in self.cache

    def table(self, number: int) -> Table | None:
        """Table ``number``; None if none of its clusters is there. Raises OSError."""
        try:
            return self.cache[number]
        except KeyError:
            table = self._load(number)
            self._keep(number, table)
            return table

    def is_own(self, number: int) -> bool:
        """Whether table ``number`` is not shared with a snapshot."""
        return bool(self._l1[number] & COPIED)

    def own_table(self, number: int) -> Table:
        """Table ``number``, to be changed: made, or copied from a snapshot's, if need be."""
        table = self.table(number)
        self._changed.add(number)
        if table is not None and self._l1[number] & COPIED:
            return table
        refcounts = self._refcounts
        assert refcounts is not None
        cluster, _ = refcounts.take(1)
        entries = array("Q", bytes(8 * self.per_table)) if table is None else table.entries[:]
        own = Table(cluster << self._file.cluster_bits, entries, fresh=True)
        if table is not None:
            refcounts.release(table.offset >> self._file.cluster_bits)
        self._l1[number] = own.offset | COPIED
        self._l1_dirty.add(number)
        self._keep(number, own)
        return own

    def _load(self, number: int) -> Table | None:
        entry = self._l1[number]
        offset = entry & OFFSET_MASK
        if entry & L1_RESERVED or offset % self._file.cluster_size:
            raise self._file.damaged(f"L1 entry {number} is {entry:#x}")
        if not offset:
            return None
        return Table(offset, self._file.read_words(offset, self.per_table), fresh=False)

    def _keep(self, number: int, table: Table | None) -> None:
        cache = self.cache
        cache.pop(number, None)
        if len(cache) >= self._most:
            for other in cache:  # the oldest that need not be written
                if other not in self._changed:
                    del cache[other]
                    break
        cache[number] = table

    @property
    def crowded(self) -> bool:
        """Whether it is time to write, so that memory stays bounded."""
        return len(self._changed) > self._most // 2

    @property
    def dirty(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._changed or self._l1_dirty)

    def write_fresh(self) -> None:
        """The tables that nothing points to yet."""
        for number in self._changed:
            table = self.cache[number]
            if table is not None and table.fresh:
                self._write(table)

    def write_changes(self) -> None:
        """What can be reached: changed tables, and pointers to the fresh ones."""
        for number in self._changed:
            table = self.cache[number]
            if table is not None:
                self._write(table)
        for number in self._l1_dirty:
            self._file.write_words(self._l1_offset + 8 * number, self._l1[number : number + 1])
            table = self.cache.get(number)
            if table is not None:
                table.fresh = False
        self._l1_dirty.clear()
        self._changed.clear()

    def _write(self, table: Table) -> None:
        low, high = table.low, table.high + 1
        if low >= high:
            return
        self._file.write_words(table.offset + 8 * low, table.entries[low:high])
        table.low, table.high = len(table.entries), -1
