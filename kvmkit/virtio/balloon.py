"""Memory balloon: the guest gives memory back to the host, on request or unasked.

Virtio 1.2, section 5.5. On request (``num_pages``) the guest takes pages from itself and
names them on the inflate queue; statistics come by a queue of their own; free page
reporting (5.5.6.7) tells of large free blocks, which the guest keeps.
"""

from __future__ import annotations

from struct import Struct, iter_unpack
from threading import Event

from kvmkit.frozen import Record
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.memory import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from kvmkit.virtio.chain import Chain
    from kvmkit.virtio.memory import GuestRam

    class BalloonRam(GuestRam, Protocol):
        """The guest's memory, of which the host can have pages back."""

        def give_back(self, address: int, size: int) -> int:
            """Let go of the whole pages of a range; how many bytes they are."""


__all__ = ["Balloon", "BalloonState", "BalloonStats"]

# Feature bits, 5.5.3
F_STATS_VQ: Final = 1
F_DEFLATE_ON_OOM: Final = 2
F_REPORTING: Final = 5

# struct virtio_balloon_config, 5.5.4: num_pages, actual, free_page_hint_cmd_id, poison_val
CONFIG: Final = Struct("<IIII")
ACTUAL: Final = 4

INFLATE: Final = 0
DEFLATE: Final = 1
STATS: Final = 2
REPORTING: Final = (3, 4)
"""4 by the specification; 3 in Linux, which counts the queues that there are. Nobody
gets to know the other one: free page hinting is not offered."""

PAGE: Final = 4096
QUEUE_SIZE: Final = 128
STAT: Final = Struct("<HQ")
STATS_MAX: Final = 1024  # bytes

NAMES: Final = (
    "swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available",
    "caches", "huge_page_allocations", "huge_page_failures", "oom_kills", "stalls",
    "background_scans", "direct_scans", "background_reclaims", "direct_reclaims",
)  # fmt: skip
"""Of the statistics' tags (5.5.6.4; from 10 on as in Linux 6.12), in their order."""


class BalloonState(Record):
    """``target`` is in bytes, ``actual`` in pages of 4 KiB."""

    target: int
    actual: int


class BalloonStats(Record):
    """In bytes: what is wanted of the guest, what it has given, and what the host got back by
    reports. ``values`` are the guest's own words, by :data:`NAMES`: sizes in bytes,
    events since its boot."""

    target: int
    actual: int
    reported: int
    values: dict[str, int]


class Balloon(VirtioDevice):
    """The guest may deflate it when it is short of memory (``deflate_on_oom``), and reports
    free pages (``reporting``)."""

    device_id = 5
    name = "balloon"
    queue_sizes = (QUEUE_SIZE,) * 5

    def __init__(self, *, deflate_on_oom: bool = True, reporting: bool = True) -> None:
        super().__init__()
        self.features = 1 << F_STATS_VQ
        if deflate_on_oom:
            self.features |= 1 << F_DEFLATE_ON_OOM
        if reporting:
            self.features |= 1 << F_REPORTING
        self.target = 0
        """Bytes that the guest is asked for."""
        self.reported = 0
        """Bytes that reports gave back to the host so far; many more than once."""
        self._actual = 0
        self._values: dict[str, int] = {}
        self._held: Chain | None = None  # the statistics' buffer, given back to ask for more
        self._waiting: list[Callable[[], None]] = []
        self._late = False  # the driver was not told of the target yet
        self._write_config()

    # The host's side, from any thread

    @property
    def actual(self) -> int:
        """Bytes that the guest has given."""
        return self._actual * PAGE

    def set_target(self, size: int) -> None:
        """Ask the guest for ``size`` bytes, in whole pages."""
        self.target = size // PAGE * PAGE
        if self.transport is None:
            self._write_config()
        else:
            self.call_soon(self._tell_target)

    def ask(self, timeout: float) -> BalloonStats:
        """The guest's statistics, new ones if they come in ``timeout`` seconds. Not under
        the lock, and not on the I/O thread."""
        if self.transport is not None and timeout > 0:
            there = Event()
            self.call_soon(lambda: self._ask(there.set))
            there.wait(timeout)
        return BalloonStats(self.target, self.actual, self.reported, dict(self._values))

    def _ask(self, done: Callable[[], None]) -> None:
        if self._paused:
            done()
            return
        self._waiting.append(done)
        self._give_buffer_back()

    def _give_buffer_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self.push(held, 0)

    def _tell_target(self) -> None:
        self._write_config()
        self._late = self._paused
        if not self._late:
            self.config_changed()

    @property
    def _paused(self) -> bool:
        host: Any = self._attached().host
        return bool(host.paused)

    def _write_config(self) -> None:
        self.config = bytearray(CONFIG.pack(self.target // PAGE, self._actual, 0, 0))

    # The driver

    def config_write(self, offset: int, size: int, value: int) -> None:
        """``actual`` is the driver's to say."""
        if offset == ACTUAL and size == ACTUAL:
            self._actual = value
            self._write_config()

    def activated(self, features: int) -> None:
        """Linux puts the first statistics there before it says DRIVER_OK."""
        self._hear_stats()

    def notified(self, index: int) -> None:
        """Serve the queue."""
        if index == STATS:
            self._hear_stats()
            return
        queue = self.queues[index]
        for chain in self.requests(index):
            if index == INFLATE:
                self._inflate(chain.read_all())
            elif index in REPORTING:
                for address, size in chain.writable_ranges:
                    self.reported += self._ram.give_back(address, size)
            queue.push(chain, 0)  # of a deflation there is nothing to know
        self.interrupt(queue)

    @property
    def _ram(self) -> BalloonRam:
        ram: Any = self.ram
        known: BalloonRam = ram
        return known

    def _inflate(self, data: bytes) -> None:
        """Page numbers, in any order: pages that follow each other go at once."""
        if len(data) % 4:
            raise QueueError(f"page numbers of {len(data)} bytes")
        start = end = -1
        for number in sorted(memoryview(data).cast("I")):
            if number != end:
                if start != end:
                    self._ram.give_back(start * PAGE, (end - start) * PAGE)
                start = number
            end = number + 1
        if start != end:
            self._ram.give_back(start * PAGE, (end - start) * PAGE)

    def _hear_stats(self) -> None:
        for chain in self.requests(STATS):
            data = chain.read_all(STATS_MAX)
            self._give_buffer_back()  # there is one at a time
            self._held = chain
            if len(data) % STAT.size:
                raise QueueError(f"statistics of {len(data)} bytes")
            pairs = iter_unpack(STAT.format, data)
            self._values = {NAMES[tag]: value for tag, value in pairs if tag < len(NAMES)}
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done()

    def queue_reset(self, index: int) -> None:
        """The buffer is gone with its queue."""
        if index == STATS:
            self._held = None

    def reset(self) -> None:
        """The guest has all its memory again, and will be asked anew."""
        self._held = None
        self._actual = 0
        self._values = {}
        self._write_config()

    # Life

    def drain(self) -> None:
        """Give the statistics' buffer back, as a ring at rest has nothing under way."""
        if self.transport is not None:
            self.call(self._give_buffer_back)

    def resumed(self) -> None:
        """Tell what had to wait."""
        if self._late:
            self.call_soon(self._tell_target)

    def state(self) -> BalloonState:
        return BalloonState(target=self.target, actual=self._actual)

    def restore(self, state: Any) -> None:
        self.target, self._actual = state.target, state.actual
        self._held = None
        self._write_config()
