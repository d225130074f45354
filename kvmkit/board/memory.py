"""Guest RAM: one anonymous file, mapped once, seen by the guest in one or two pieces.

The file is a ``memfd`` (memfd_create(2)), so that other processes (vhost-user,
a debugger) can map the same memory, and untouched pages cost nothing: a guest
of 6 GiB starts on a host with less. On a PC the RAM makes room for devices
below 4 GiB (:mod:`kvmkit.board.layout`): what does not fit below the hole goes
on at 4 GiB. The first piece runs through the VGA hole and the ACPI tables'
place as well; what of it an operating system may use is in ``usable``.
"""

from __future__ import annotations

import mmap
import os
from errno import EFAULT

from kvmkit.board import layout
from kvmkit.board.residence import data_extents, merged, private_pages
from kvmkit.errors import FileTrouble, GuestAddressError, NotEnoughMemory, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PAGE_SIZE", "GuestMemory", "RamSlot", "check_size"]

PAGE_SIZE = 4096
HUGE_PAGE_SIZE = 2 * layout.MIB

MIN_SIZE = 2 * layout.MIB
"""What low RAM, the holes below 1 MiB and a first page above it need."""

MAX_SIZE = layout.PCI_WINDOW_64 - (layout.RAM_HOLE_END - layout.RAM_HOLE_START)
"""RAM above 4 GiB ends where the 64-bit PCI window starts."""

_LARGE = 64 * layout.KIB
_MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE exists from Python 3.13 on


class RamSlot:
    """One piece of RAM as an engine maps it: ``engine.add_ram(slot, address, host, size)``."""

    __slots__ = ("address", "host", "offset", "size", "slot")

    def __init__(self, slot: int, address: int, size: int, offset: int, host: int) -> None:
        self.slot = slot
        self.address = address  # guest-physical
        self.size = size
        self.offset = offset  # in the memory file
        self.host = host  # virtual address in this process

    def __repr__(self) -> str:
        return (
            f"RamSlot(slot={self.slot}, address={self.address:#x}, size={self.size:#x}, "
            f"offset={self.offset:#x}, host={self.host:#x})"
        )


class GuestMemory:
    """The RAM of one guest, ``size`` bytes (a multiple of 4096).

    ``huge_pages`` is None, ``"thp"`` (transparent huge pages: a wish, the
    kernel's ``shmem_enabled`` decides) or ``"hugetlb"`` (2 MiB pages from the
    host's reserved pool, all taken at once).

    With ``source``, the descriptor of a file of that size, the RAM is what the file
    holds: pages are read when they are first touched, and nothing is written back.
    The file must not change. Only this process sees such RAM.

    Raises UsageError for a size no guest can have, NotEnoughMemory when the
    host cannot provide it.
    """

    def __init__(
        self, size: int, *, huge_pages: str | None = None, source: int | None = None
    ) -> None:
        check_size(size, huge_pages)
        self.size = size
        self._huge_pages = huge_pages
        self._private = source is not None
        self.low_size = min(size, layout.RAM_HOLE_START)
        """Bytes from guest address 0 on; the rest starts at 4 GiB."""
        self.fd = -1
        self.on_write: Callable[[int, int], None] | None = None
        """Hears ``(address, size)`` of each write that is not a CPU's; see :meth:`written`."""
        self._view: memoryview | None = None
        try:
            if source is None:
                self.fd = _memory_file(size, huge_pages)
                self._map = _map_file(self.fd, size, huge_pages)
            else:
                self.fd = os.dup(source)
                self._map = _map_private(self.fd, size)
            self._view = memoryview(self._map)
            self._host = host = _address_of(self.fd, self._map)
        except BaseException:
            self.close()
            raise
        slots = [RamSlot(0, 0, self.low_size, 0, host)]
        if size > self.low_size:
            high = size - self.low_size
            slots.append(RamSlot(1, layout.RAM_HOLE_END, high, self.low_size, host + self.low_size))
        self.slots: tuple[RamSlot, ...] = tuple(slots)

    @property
    def usable(self) -> tuple[tuple[int, int], ...]:
        """``(address, size)`` of the RAM an operating system may use: e820 type 1."""
        ranges = [
            (0, layout.LOW_RAM_END),
            (layout.HIGH_RAM_START, self.low_size - layout.HIGH_RAM_START),
        ]
        if self.size > self.low_size:
            ranges.append((layout.RAM_HOLE_END, self.size - self.low_size))
        return tuple(ranges)

    # Bytes

    def read(self, address: int, size: int) -> bytes:
        """A copy of ``size`` bytes at ``address``. Raises GuestAddressError outside RAM."""
        return bytes(self.view(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put ``data`` at ``address``.

        Raises GuestAddressError when it does not fit in RAM, and FileTrouble when
        it is a mapped file that has shrunk since.
        """
        source = memoryview(data).cast("B")
        target = self.view(address, len(source))
        # A private mapping and huge pages of the pool cannot be written through the file.
        if len(source) < _LARGE or self._private or self._huge_pages == "hugetlb":
            target[:] = source
            self.written(address, len(source))
            return
        # Fresh pages come in half the time this way: no fault and no clearing for each.
        offset = self.offset(address, len(source))
        done = 0
        try:
            while done < len(source):
                done += os.pwrite(self.fd, source[done:], offset + done)
        except OSError as error:
            if error.errno == EFAULT:
                raise FileTrouble("a file became shorter while the guest was loaded") from None
            raise NotEnoughMemory(f"the host has no memory left: {error.strerror}") from None
        self.written(address, len(source))

    def written(self, address: int, size: int) -> None:
        """Somebody stored to a :meth:`view`: the engine forgets code it translated from there.

        Every write by other than a CPU must be told, after it and before the guest
        can know of it: a device's DMA, a debugger's breakpoint. The methods here that
        write do it themselves, and the virtio queues for what is pushed on them.
        """
        if self.on_write is not None:
            self.on_write(address, size)

    def fill(self, address: int, size: int, byte: int = 0) -> None:
        """Set ``size`` bytes to ``byte``. Raises GuestAddressError outside RAM."""
        view = self.view(address, size)
        block = bytes((byte,)) * min(size, layout.MIB)
        for start in range(0, size, layout.MIB):
            part = min(layout.MIB, size - start)
            view[start : start + part] = block[:part]
        self.written(address, size)

    def view(self, address: int, size: int) -> memoryview:
        """The RAM itself, writable. Release it before :meth:`close`.

        Raises GuestAddressError when any byte of the range is not RAM, or when
        it runs from one piece of RAM into another.
        """
        view = self._view
        if view is None:
            raise GuestAddressError("the guest's memory has been closed")
        if 0 <= address <= self.low_size - size and size >= 0:  # as offset() would find
            return view[address : address + size]
        offset = self.offset(address, size)
        return view[offset : offset + size]

    def offset(self, address: int, size: int = 1) -> int:
        """Where in the memory file the guest's ``address`` is.

        Raises GuestAddressError as :meth:`view` does.
        """
        if size >= 0:
            if 0 <= address <= self.low_size - size:
                return address
            high = address - layout.RAM_HOLE_END
            if 0 <= high <= self.size - self.low_size - size and self.size > self.low_size:
                return high + self.low_size
        raise GuestAddressError(f"guest memory has no {size} bytes at {address:#x}")

    # Little-endian numbers

    def read_u16(self, address: int) -> int:
        """The 16-bit number at ``address``. Raises GuestAddressError outside RAM."""
        return int.from_bytes(self.view(address, 2), "little")

    def read_u32(self, address: int) -> int:
        """The 32-bit number at ``address``. Raises GuestAddressError outside RAM."""
        return int.from_bytes(self.view(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """The 64-bit number at ``address``. Raises GuestAddressError outside RAM."""
        return int.from_bytes(self.view(address, 8), "little")

    def write_u16(self, address: int, value: int) -> None:
        """Store the low 16 bits of ``value``. Raises GuestAddressError outside RAM."""
        self.view(address, 2)[:] = (value & 0xFFFF).to_bytes(2, "little")
        self.written(address, 2)

    def write_u32(self, address: int, value: int) -> None:
        """Store the low 32 bits of ``value``. Raises GuestAddressError outside RAM."""
        self.view(address, 4)[:] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
        self.written(address, 4)

    def write_u64(self, address: int, value: int) -> None:
        """Store the low 64 bits of ``value``. Raises GuestAddressError outside RAM."""
        self.view(address, 8)[:] = (value & (1 << 64) - 1).to_bytes(8, "little")
        self.written(address, 8)

    # The whole

    def resident(self) -> int:
        """Bytes of host memory the guest's RAM occupies now."""
        if self._private:
            return sum(size for _, size in private_pages(self._host, self.size))
        return os.fstat(self.fd).st_blocks * 512

    def extents(self) -> list[tuple[int, int]]:
        """Offset and size, in bytes of the memory file, of what may be other than zero.

        In order, without overlaps, in whole pages.
        """
        found = data_extents(self.fd, self.size)
        if self._private:
            found = merged([*found, *private_pages(self._host, self.size)])
        return found

    def at_offset(self, offset: int, size: int) -> bytes:
        """A copy of ``size`` bytes from ``offset`` of the memory file; leaves holes as they are."""
        if not self._private:
            return os.pread(self.fd, size, offset)
        view = self._view
        if view is None:
            raise GuestAddressError("the guest's memory has been closed")
        return bytes(view[offset : offset + size])

    def freeze(self) -> int:
        """Let what the memory holds now stay as it is, in a file that others may map privately.

        This memory goes on as such a private mapping itself, at the same addresses: from
        now on each has its own copies of the pages that it writes. The CPUs and devices
        stand meanwhile. The caller closes the descriptor. Raises NotEnoughMemory, and
        UsageError for pages of the host's pool, which are not shared so.
        """
        from kvmkit.board.residence import map_private, seal

        if self._huge_pages == "hugetlb":
            raise UsageError("memory in huge pages of the host's pool cannot be shared by copies")
        image = self.fd
        if self._private:
            image = _memory_file(self.size, None)
            try:
                for offset, size in self.extents():
                    for at in range(offset, offset + size, layout.MIB):
                        part = min(layout.MIB, offset + size - at)
                        os.pwrite(image, self.at_offset(at, part), at)
            except BaseException as error:
                os.close(image)
                if isinstance(error, OSError):
                    raise NotEnoughMemory(f"no memory for a copy: {error.strerror}") from None
                raise
        map_private(self._host, self.size, image)
        seal(image)
        if self._private:
            os.dup2(image, self.fd, inheritable=False)
            os.close(image)
        self._private = True
        return os.dup(self.fd)

    def give_back(self, address: int, size: int) -> int:
        """Let the host have the pages of a range whose contents the guest does not need.

        Returns how many bytes that are: whole pages only. They read as zeroes
        afterwards; those of a private mapping as the file that it is made of. Raises
        GuestAddressError outside RAM.
        """
        offset = self.offset(address, size)
        unit = HUGE_PAGE_SIZE if self._huge_pages == "hugetlb" else PAGE_SIZE
        start = -(-offset // unit) * unit
        count = (offset + size) // unit * unit - start
        if count <= 0:
            return 0
        # MADV_REMOVE is a hole in the file; what only we have written to is ours alone.
        advice = mmap.MADV_DONTNEED if self._private else mmap.MADV_REMOVE
        self._map.madvise(advice, start, count)
        self.written(address, size)
        return count

    def discard(self) -> None:
        """Make all RAM zero again and give its pages back to the host."""
        if self._private:
            for slot in self.slots:
                self.fill(slot.address, slot.size)
        else:
            self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Give the memory back. Callable twice.

        Views that somebody still holds keep the mapping alive until they go.
        """
        view, self._view = self._view, None
        if view is not None:
            try:
                view.release()
                self._map.close()
            except BufferError:
                pass
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def check_size(size: int, huge_pages: str | None = None) -> None:
    """Raise UsageError if no guest can have ``size`` bytes of memory."""
    if huge_pages not in (None, "thp", "hugetlb"):
        raise UsageError(f"huge pages must be thp or hugetlb, not {huge_pages!r}")
    if size < MIN_SIZE:
        raise UsageError(
            f"a guest needs at least {MIN_SIZE // layout.MIB} MiB of memory, not {size} bytes",
            "give memory with a unit: 512M, 2G",
        )
    if size > MAX_SIZE:
        raise UsageError(
            f"a guest can have at most {MAX_SIZE // layout.GIB} GiB of memory, "
            f"not {-(-size // layout.GIB)} GiB"
        )
    unit = HUGE_PAGE_SIZE if huge_pages == "hugetlb" else PAGE_SIZE
    if size % unit:
        raise UsageError(f"guest memory must be a multiple of {unit} bytes, not {size}")


def _memory_file(size: int, huge_pages: str | None) -> int:
    """A memfd of ``size`` bytes; the caller closes it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge_pages == "hugetlb":
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    fd = -1
    try:
        fd = os.memfd_create("kvmkit-ram", flags)
        os.ftruncate(fd, size)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        if huge_pages == "hugetlb":
            raise _no_huge_pages(size, error) from None
        raise NotEnoughMemory(
            f"the host cannot provide {size // layout.MIB} MiB of guest memory: {error.strerror}"
        ) from None
    return fd


def _map_file(fd: int, size: int, huge_pages: str | None) -> mmap.mmap:
    # Huge pages of the pool are reserved by mmap, so that it fails when there
    # are too few; without the reservation the guest's first touch would be a
    # SIGBUS for this process.
    flags = mmap.MAP_SHARED | (0 if huge_pages == "hugetlb" else _MAP_NORESERVE)
    try:
        mapping = mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        if huge_pages == "hugetlb":
            raise _no_huge_pages(size, error) from None
        raise NotEnoughMemory(
            f"the host cannot map {size // layout.MIB} MiB of guest memory: {error.strerror}",
            "see ulimit -v and /proc/sys/vm/overcommit_memory",
        ) from None
    if huge_pages == "thp":
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # EINVAL: a kernel without transparent huge pages
            pass
    return mapping


def _map_private(fd: int, size: int) -> mmap.mmap:
    try:
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise NotEnoughMemory(
            f"the host cannot map {size // layout.MIB} MiB of guest memory: {error}"
        ) from None


def _no_huge_pages(size: int, error: OSError) -> NotEnoughMemory:
    need = size // HUGE_PAGE_SIZE
    try:
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as file:
            found = f"{int(file.read())} are free"
    except (OSError, ValueError):
        found = error.strerror or "this kernel has none"
    return NotEnoughMemory(
        f"the guest's memory needs {need} huge pages of 2 MiB, {found}",
        f"reserve them: sysctl vm.nr_hugepages={need}",
    )


def _address_of(fd: int, mapping: mmap.mmap) -> int:
    """The address at which the whole file ``fd`` is mapped in this process.

    An mmap object keeps its address to itself, and ctypes costs 6 ms to import;
    the kernel lists every mapping with its file's inode (proc(5), /proc/pid/maps).
    """
    inode = b" %d" % os.fstat(fd).st_ino
    try:
        with open("/proc/self/maps", "rb") as file:
            for line in file:
                # address perms offset dev inode path
                head, _, _ = line.partition(b"/")
                if not head.rstrip().endswith(inode) or head.split()[2] != b"00000000":
                    continue
                start, _, end = head.split(b" ", 1)[0].partition(b"-")
                if int(end, 16) - int(start, 16) == len(mapping):
                    return int(start, 16)
    except OSError:
        pass  # no /proc here
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
