"""How often each cluster of a qcow2 image is used, and which is free.

QEMU, ``docs/interop/qcow2.rst``, "Host cluster management": a refcount table that
points to refcount blocks. Changes stay in memory until they are written in the order
that :mod:`kvmkit.backends.qcow2` keeps; what is released counts as used until then.
"""

from __future__ import annotations

import errno
from array import array
from struct import pack

from kvmkit.backends.qcow2_header import MAX_REFTABLE_BYTES, REFTABLE_OFFSET
from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmkit.backends.qcow2_file import ImageFile
    from kvmkit.backends.qcow2_header import Header

__all__ = ["Refcounts"]

CACHE_BYTES = 4 << 20
MOST_RELEASED = 1 << 16
"""Releases that are kept until they are written, at most; one operation may add to them."""

MAX_HOST_OFFSET = 1 << 56  # of an L2 entry
_KINDS = {3: "B", 4: "H", 5: "I", 6: "Q"}  # array types by refcount order


class _Block:
    """The refcounts of some clusters, as numbers; ``low`` to ``high`` are to be written."""

    __slots__ = ("fresh", "high", "low", "offset", "values")

    def __init__(self, offset: int, values: array[int], *, fresh: bool) -> None:
        self.offset = offset
        self.values = values
        self.fresh = fresh  # nothing on the medium points here
        self.low, self.high = (0, len(values) - 1) if fresh else (len(values), -1)

    def put(self, index: int, value: int) -> None:
        self.values[index] = value
        self.low = min(self.low, index)
        self.high = max(self.high, index)


class Refcounts:
    """The refcounts of an image that is written. Not for several threads.

    ``reserved`` are the clusters that are used whatever the refcounts say. Raises
    FileTrouble for a table that makes no sense.
    """

    def __init__(self, file: ImageFile, header: Header, reserved: Iterable[range]) -> None:
        self._file = file
        self._order = header.refcount_order
        self._kind = _KINDS.get(self._order, "B")
        self._per_block = (file.cluster_size << 3) >> self._order
        self._place = header.reftable_offset
        self._clusters = header.reftable_clusters
        words = header.reftable_clusters * (file.cluster_size // 8)
        self._table = file.read_words(self._place, words)
        self._check_table()
        self._table_dirty: set[int] = set()
        self._table_moved: range | None = None  # where it was
        self._reserved = (range(1), *reserved)
        self._blocks: dict[int, _Block] = {}
        self._changed: set[int] = set()  # numbers of blocks to be written; these stay in memory
        width = array(self._kind).itemsize
        self._most_blocks = max(2, CACHE_BYTES // (self._per_block * width))
        self._hint = 0
        self._released: list[int] = []

    def _check_table(self) -> None:
        used = [entry for entry in self._table if entry]
        if len(set(used)) != len(used) or any(
            entry % self._file.cluster_size or entry >= self._file.virgin for entry in used
        ):
            raise FileTrouble(
                f"{self._file.path}: the refcount table makes no sense",
                "qemu-img check -r all may repair the image",
            )

    # Taking and giving back

    def take(self, count: int) -> tuple[int, int]:
        """Up to ``count`` clusters in a row, as the first's number and how many.

        Raises OSError: ENOSPC when the image can grow no more, EIO when it is damaged.
        """
        at = self._hint
        while True:
            number, start = divmod(at, self._per_block)
            values = self._block(number).values
            try:
                first = values.index(0, start)
            except ValueError:
                at = (number + 1) * self._per_block
                continue
            last = first + 1
            end = min(first + count, self._per_block)
            while last < end and not values[last]:
                last += 1
            base = number * self._per_block
            self._check_free(base + first, base + last)
            for index in range(first, last):
                self._put(number, index, 1)
            self._hint = base + last
            return base + first, last - first

    def _check_free(self, first: int, end: int) -> None:
        """OSError for clusters that cannot be had, whatever their refcounts say."""
        bits = self._file.cluster_bits
        if end << bits > MAX_HOST_OFFSET:
            raise OSError(errno.ENOSPC, "the image cannot grow any more")
        own = range(self._place >> bits, (self._place >> bits) + self._clusters)
        for area in (*self._reserved, own):
            if first < area.stop and end > area.start:
                raise self._file.damaged("a cluster of the image's own tables is said to be free")

    def drop(self, first: int, count: int) -> None:
        """Give back at once what was taken and never used."""
        for cluster in range(first, first + count):
            self._set(cluster, 0)

    def release(self, cluster: int) -> None:
        """One use less, once the tables that say so are on the medium."""
        self._released.append(cluster)

    @property
    def crowded(self) -> bool:
        """Whether it is time to write, so that memory stays bounded."""
        return len(self._released) >= MOST_RELEASED or len(self._changed) > self._most_blocks // 2

    @property
    def dirty(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._changed or self._table_dirty or self._released or self._table_moved)

    @property
    def releasing(self) -> bool:
        """Whether :meth:`apply_released` has something to do."""
        return bool(self._released)

    def _get(self, cluster: int) -> int:
        number, index = divmod(cluster, self._per_block)
        if number >= len(self._table) or not self._table[number]:
            return 0
        return self._block(number).values[index]

    def _set(self, cluster: int, value: int) -> None:
        number, index = divmod(cluster, self._per_block)
        self._block(number)
        self._put(number, index, value)
        if not value:
            self._hint = min(self._hint, cluster)

    def _put(self, number: int, index: int, value: int) -> None:
        """Change a count of a block that is in memory."""
        self._blocks[number].put(index, value)
        self._changed.add(number)

    # Blocks

    def _block(self, number: int) -> _Block:
        """A refcount block, from the cache, the file, or made."""
        block = self._blocks.get(number)
        if block is not None:
            return block
        if number >= len(self._table):
            self._grow(number + 1)
            return self._block(number)
        offset = self._table[number]
        if offset:
            block = self._load(offset)
        else:
            first = number * self._per_block  # this cluster holds the block itself
            self._check_free(first, first + 1)
            block = self._make(first)
        if len(self._blocks) >= self._most_blocks:
            for other in self._blocks:
                if other not in self._changed:
                    del self._blocks[other]
                    break
        self._blocks[number] = block
        if not offset:
            self._put(number, 0, 1)
            self._table[number] = block.offset
            self._table_dirty.add(number)
        return block

    def _make(self, cluster: int) -> _Block:
        size = self._per_block * array(self._kind).itemsize
        place = cluster << self._file.cluster_bits
        return _Block(place, array(self._kind, bytes(size)), fresh=True)

    def _load(self, offset: int) -> _Block:
        if self._order >= 3:
            values = self._file.read_words(offset, self._per_block, self._kind)
        else:
            data = self._file.read(offset, self._file.cluster_size)
            values = array("B", b"".join(map(_unpacked(self._order).__getitem__, data)))
        return _Block(offset, values, fresh=False)

    def _grow(self, needed: int) -> None:
        """A larger table, in clusters that the old one does not reach, with blocks for them."""
        bits, per_cluster, start = (
            self._file.cluster_bits,
            self._file.cluster_size // 8,
            len(self._table),
        )
        first = start * self._per_block
        entries, blocks = max(needed, start * 3 // 2), 0
        while True:  # the table may need more blocks, these more room in the table, and so on
            clusters = -(-entries // per_cluster)
            end = first + clusters + blocks
            covering = -(-(end - first) // self._per_block)
            if start + covering > clusters * per_cluster:
                entries = start + covering
            elif covering > blocks:
                blocks = covering
            else:
                break
        if clusters << bits > max(MAX_REFTABLE_BYTES, 1 << bits):
            raise OSError(errno.ENOSPC, "the image cannot grow any more")
        self._check_free(first, end)
        old = range(self._place >> bits, (self._place >> bits) + self._clusters)
        if self._table_moved is None:
            self._table_moved = old
        else:  # the one before was never on the medium
            self._released.extend(old)
        self._table.extend([0] * (clusters * per_cluster - start))
        self._place, self._clusters = first << bits, clusters
        for index in range(blocks):
            block = self._make(first + clusters + index)
            self._blocks[start + index] = block
            self._table[start + index] = block.offset
        for cluster in range(first, end):
            self._set(cluster, 1)

    # Writing

    def write_structure(self) -> None:
        """New blocks, then what points to them, with barriers between."""
        fresh = [self._blocks[number] for number in self._changed if self._blocks[number].fresh]
        for block in fresh:
            self._write(block)
        if fresh or self._table_moved is not None:
            if self._table_moved is not None:
                self._file.write_words(self._place, self._table[:])
            self._file.sync()
        if self._table_moved is not None:
            self._file.write(REFTABLE_OFFSET, pack(">QI", self._place, self._clusters))
            self._file.sync()
            self._released.extend(self._table_moved)
            self._table_moved = None
        else:
            for number in self._table_dirty:
                self._file.write_words(self._place + 8 * number, self._table[number : number + 1])
        self._table_dirty.clear()
        for block in fresh:
            block.fresh = False

    def write_blocks(self) -> None:
        """Every block that has changed."""
        for number in self._changed:
            self._write(self._blocks[number])
        self._changed.clear()

    def _write(self, block: _Block) -> None:
        low, high = block.low, block.high + 1
        if low >= high:
            return
        if self._order >= 3:
            words = block.values[low:high]
            self._file.write_words(block.offset + low * words.itemsize, words)
        else:
            grain = 8 >> self._order  # values in a byte
            low, high = low // grain, -(-high // grain)
            data = _packed(block.values[low * grain : high * grain], self._order)
            self._file.write(block.offset + low, data)
        block.low, block.high = len(block.values), -1

    def apply_released(self) -> list[int]:
        """The tables are on the medium: count down. The clusters that are free now."""
        released, self._released = self._released, []
        free = []
        for cluster in released:
            value = self._get(cluster)
            if value:
                self._set(cluster, value - 1)
                if value == 1:
                    free.append(cluster)
        return free


def _unpacked(order: int) -> list[bytes]:
    """For each byte the numbers in it, the least significant first."""
    bits = 1 << order
    mask = (1 << bits) - 1
    return [bytes([byte >> shift & mask for shift in range(0, 8, bits)]) for byte in range(256)]


def _packed(values: array[int], order: int) -> bytes:
    """The opposite of :func:`_unpacked`."""
    bits, grain = 1 << order, 8 >> order
    data = bytearray(len(values) // grain)
    for part in range(grain):
        for index, value in enumerate(values[part::grain]):
            data[index] |= value << part * bits
    return bytes(data)
