"""The port and memory buses: which device answers at which address.

Intel SDM vol. 1, 19.3: 64 KiB of byte ports, accessed 1, 2 or 4 bytes at a
time. A device takes accesses of the sizes its registers have; the bus splits
others, as the ISA bus does when a 16-bit access meets an 8-bit device: low
address first, down to bytes. Nobody there: reads give all ones, writes are
lost.

Port dispatch is one dictionary with a key per port and size, so that two
devices can share an address by size, as the PC's 0xcf8 (PCI address, 32 bit)
and 0xcf9 (reset control, 8 bit) do.
"""

from __future__ import annotations

from _bisect import bisect_right
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from kvmkit.devices.device import Device

    Read = Callable[[int, int], int]
    Write = Callable[[int, int, int], None]
    Trace = Callable[[str, int, int, int], None]

__all__ = ["BoardBus", "BusOverlap", "TracingBus"]

PORT_COUNT = 0x1_0000
ADDRESS_LIMIT = 1 << 52  # physical addresses an x86-64 CPU can have

_SLOW = 0.01  # seconds between two looks while a port write waits

_ALL_ONES = (0, 0xFF, 0xFFFF, 0xFF_FFFF, 0xFFFF_FFFF, 0, 0, 0, (1 << 64) - 1)


class BusOverlap(ValueError):
    """Two devices at one address: a mistake of the board, or a BAR the guest put elsewhere."""


class _Range:
    """One device's memory range."""

    __slots__ = ("device", "end", "read", "sizes", "start", "write")

    def __init__(self, start: int, end: int, device: Device, sizes: frozenset[int]) -> None:
        self.start = start
        self.end = end
        self.device = device
        self.read = device.read
        self.write = device.write
        self.sizes = sizes


class BoardBus:
    """Both buses of a board; keeps the promise of :class:`kvmkit.engine.engine.Bus`.

    ``lock`` is held around every call of a device. ``failed`` hears of an
    exception a device let out, which is a defect of its model: the access then
    ends as if nobody were there.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        failed: Callable[[Exception], None],
    ) -> None:
        self._lock = lock
        self._failed = failed
        # key: port << 3 | size
        self._port_reads: dict[int, tuple[Read, int]] = {}
        self._port_writes: dict[int, tuple[Write, int]] = {}
        self._starts: list[int] = []
        self._ranges: list[_Range] = []
        self._takers: dict[int, Callable[[bytes], None]] = {}
        self._frozen = False
        self.slow = False
        """Somebody who reads the guest's output is behind: port writes wait until he is not.

        They wait without the lock, and no longer once the bus is frozen or somebody is in
        a :attr:`hurry`.
        """
        self.hurry = False
        """Somebody wants the CPUs to stand: no port write waits."""

    # What is where

    def map_ports(
        self, base: int, count: int, device: Device, *, sizes: Iterable[int] = (1,)
    ) -> None:
        """Let ``device`` answer at ``count`` ports from ``base``, to accesses of ``sizes`` bytes.

        Raises BusOverlap when a port is taken at one of these sizes.
        """
        if not 0 <= base < base + count <= PORT_COUNT:
            raise BusOverlap(f"ports {base:#x}+{count:#x} do not exist")
        keys = {
            port << 3 | size: port - base
            for size in sizes
            for port in range(base, base + count - size + 1)
        }
        with self._lock:
            for key in keys:
                if key in self._port_reads:
                    raise BusOverlap(f"port {key >> 3:#x} has a device for {key & 7}-byte accesses")
            for key, offset in keys.items():
                self._port_reads[key] = (device.read, offset)
                self._port_writes[key] = (device.write, offset)

    def unmap_ports(self, base: int, count: int, *, sizes: Iterable[int] = (1,)) -> None:
        """Undo :meth:`map_ports` with the same numbers."""
        with self._lock:
            for size in sizes:
                for port in range(base, base + count - size + 1):
                    self._port_reads.pop(port << 3 | size, None)
                    self._port_writes.pop(port << 3 | size, None)

    def map_memory(
        self, base: int, length: int, device: Device, *, sizes: Iterable[int] = (1, 2, 4, 8)
    ) -> None:
        """Let ``device`` answer at ``length`` bytes of guest-physical memory from ``base``.

        Raises BusOverlap when part of it is taken. RAM is not the bus's affair:
        the engine never asks for it.
        """
        if not 0 <= base < base + length <= ADDRESS_LIMIT:
            raise BusOverlap(f"addresses {base:#x}+{length:#x} do not exist")
        entry = _Range(base, base + length, device, frozenset(sizes))
        with self._lock:
            index = bisect_right(self._starts, base)
            before = self._ranges[index - 1] if index else None
            after = self._ranges[index] if index < len(self._ranges) else None
            for other in (before, after):
                if other is not None and other.start < entry.end and base < other.end:
                    raise BusOverlap(
                        f"{base:#x}-{entry.end - 1:#x} overlaps {other.start:#x}-{other.end - 1:#x}"
                    )
            self._starts.insert(index, base)
            self._ranges.insert(index, entry)

    def unmap_memory(self, base: int) -> None:
        """Take away the device mapped at ``base``; harmless when there is none."""
        with self._lock:
            index = bisect_right(self._starts, base) - 1
            if index >= 0 and self._starts[index] == base:
                del self._starts[index]
                del self._ranges[index]

    def freeze(self) -> None:
        """From now on nobody answers: the machine is being switched off or reset.

        The vCPU that asked for it runs on until the engine stops it; nothing it
        does meanwhile may reach a device.
        """
        self._frozen = True

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        self._frozen = False

    @property
    def frozen(self) -> bool:
        """Whether nobody answers now."""
        return self._frozen

    # The engine's side

    def port_read(self, port: int, size: int) -> int:
        """What the guest's IN gives."""
        with self._lock:
            entry = self._port_reads.get(port << 3 | size)
            if entry is None or self._frozen:
                return self._split_port_read(port, size)
            try:
                return entry[0](entry[1], size) & _ALL_ONES[size]
            except Exception as error:
                self._failed(error)
                return _ALL_ONES[size]

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest's OUT."""
        if self.slow:
            self._wait()
        with self._lock:
            entry = self._port_writes.get(port << 3 | size)
            if entry is None or self._frozen:
                self._split_port_write(port, size, value)
                return
            try:
                entry[0](entry[1], size, value)
            except Exception as error:
                self._failed(error)

    def port_written(self, port: int, data: bytes) -> None:
        """Bytes the guest wrote to ``port``, which the engine collected (see ``collect``)."""
        if self.slow:
            self._wait()
        with self._lock:
            taker = self._takers.get(port)
            if taker is not None and not self._frozen:
                try:
                    taker(data)
                except Exception as error:
                    self._failed(error)

    def _wait(self) -> None:
        while self.slow and not self.hurry and not self._frozen:
            sleep(_SLOW)

    def collect(self, port: int, taker: Callable[[bytes], None]) -> None:
        """Bytes that an engine collects at ``port`` go to ``taker``."""
        self._takers[port] = taker

    def memory_read(self, address: int, size: int) -> int:
        """What the guest's load outside RAM gives."""
        with self._lock:
            index = bisect_right(self._starts, address)
            if index and not self._frozen:
                entry = self._ranges[index - 1]
                if address + size <= entry.end and size in entry.sizes:
                    try:
                        return entry.read(address - entry.start, size) & _ALL_ONES[size]
                    except Exception as error:
                        self._failed(error)
                        return _ALL_ONES[size]
            return self._split_memory_read(address, size)

    def memory_write(self, address: int, size: int, value: int) -> None:
        """The guest's store outside RAM."""
        with self._lock:
            index = bisect_right(self._starts, address)
            if index and not self._frozen:
                entry = self._ranges[index - 1]
                if address + size <= entry.end and size in entry.sizes:
                    try:
                        entry.write(address - entry.start, size, value)
                    except Exception as error:
                        self._failed(error)
                    return
            self._split_memory_write(address, size, value)

    # Accesses no device takes whole

    def _split_port_read(self, port: int, size: int) -> int:
        half = size >> 1
        if not half or self._frozen:
            return _ALL_ONES[size]
        low = self.port_read(port, half)
        return low | self.port_read((port + half) % PORT_COUNT, half) << 8 * half

    def _split_port_write(self, port: int, size: int, value: int) -> None:
        half = size >> 1
        if half and not self._frozen:
            self.port_write(port, half, value & _ALL_ONES[half])
            self.port_write((port + half) % PORT_COUNT, half, value >> 8 * half)

    def _split_memory_read(self, address: int, size: int) -> int:
        half = size >> 1
        if not half or not self._touches(address, size):
            return _ALL_ONES[size]
        return self.memory_read(address, half) | self.memory_read(address + half, half) << 8 * half

    def _split_memory_write(self, address: int, size: int, value: int) -> None:
        half = size >> 1
        if half and self._touches(address, size):
            self.memory_write(address, half, value & _ALL_ONES[half])
            self.memory_write(address + half, half, value >> 8 * half)

    def _touches(self, address: int, size: int) -> bool:
        """Whether any device has a byte of this range."""
        index = bisect_right(self._starts, address + size - 1)
        return bool(index) and address < self._ranges[index - 1].end and not self._frozen


class TracingBus:
    """A bus that tells ``trace(kind, address, size, value)`` of every access, then passes it on.

    ``kind`` is ``"in"``, ``"out"``, ``"load"`` or ``"store"``. Tracing is a bus of
    its own so that it costs nothing when it is not wanted.
    """

    def __init__(self, bus: BoardBus, trace: Trace) -> None:
        self._bus = bus
        self._trace = trace

    def port_read(self, port: int, size: int) -> int:
        """IN."""
        value = self._bus.port_read(port, size)
        self._trace("in", port, size, value)
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._trace("out", port, size, value)
        self._bus.port_write(port, size, value)

    def port_written(self, port: int, data: bytes) -> None:
        """OUTs to one port that the engine collected."""
        for value in data:
            self._trace("out", port, 1, value)
        self._bus.port_written(port, data)

    def memory_read(self, address: int, size: int) -> int:
        """A load outside RAM."""
        value = self._bus.memory_read(address, size)
        self._trace("load", address, size, value)
        return value

    def memory_write(self, address: int, size: int, value: int) -> None:
        """A store outside RAM."""
        self._trace("store", address, size, value)
        self._bus.memory_write(address, size, value)
