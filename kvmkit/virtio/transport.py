"""What every transport does: status, features, queues, and what happens when a driver errs.

Virtio 1.2, section 2.1 (device status), 2.2 (feature bits), 2.4 (device reset), 2.5
(configuration space), 2.6.1 (virtqueue reset), 3.1 (initialisation).

A transport turns registers into calls of :class:`Transport` and its interrupts
into signals; the device behind it knows neither.
"""

from __future__ import annotations

from kvmkit.errors import GuestAddressError
from kvmkit.frozen import Record
from kvmkit.virtio import device as feature
from kvmkit.virtio.memory import QueueError
from kvmkit.virtio.queue import MAX_QUEUE_SIZE, Queue, RingAddresses, SplitQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from kvmkit.virtio.device import VirtioDevice
    from kvmkit.virtio.memory import Host

__all__ = ["NO_VECTOR", "QueueSetup", "Transport", "TransportState"]

# Device status (2.1)
ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64
FAILED: Final = 128

NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR: this event interrupts nobody (4.1.4.3)."""

_ALL_FEATURES = (1 << 64) - 1


class QueueSetup(Record):
    """What the driver has said about a queue."""

    size: int
    enabled: bool = False
    vector: int = NO_VECTOR
    descriptors: int = 0
    driver: int = 0
    device: int = 0


class TransportState(Record):
    """The whole of a device at rest, and its transport. ``rings`` and ``device``
    are the records of the queues and of the device itself."""

    status: int
    device_features_select: int
    driver_features_select: int
    driver_features: int
    config_vector: int
    generation: int
    queue_select: int
    queues: tuple[QueueSetup, ...]
    rings: tuple[Any, ...]
    device: Any


class Transport:
    """The part of a transport that is the same on every bus.

    ``signal_queue(vector)`` and ``signal_config(vector)`` interrupt the driver.
    """

    def __init__(
        self,
        device: VirtioDevice,
        host: Host,
        signal_queue: Callable[[int], None],
        signal_config: Callable[[int], None],
        *,
        packed: bool = False,
    ) -> None:
        if any(not 0 < size <= MAX_QUEUE_SIZE or size & size - 1 for size in device.queue_sizes):
            raise ValueError(f"queue sizes are powers of two, not {device.queue_sizes}")
        self.device = device
        self.host = host
        self._signal_queue = signal_queue
        self._signal_config = signal_config
        bits = [
            feature.F_INDIRECT_DESC,
            feature.F_EVENT_IDX,
            feature.F_VERSION_1,
            feature.F_RING_RESET,
        ]
        if packed:
            bits.append(feature.F_RING_PACKED)
        self._ring_features = sum(1 << bit for bit in bits)
        self._resetting = False
        self.vectors_changed: Callable[[], None] = _nobody_asks
        """Called when a queue has another vector, for who interrupts without us."""
        self._forget()
        device.transport = self
        device.attached()

    def _forget(self) -> None:
        """The state after a reset (2.4.1)."""
        self.status = 0
        self.device_features_select = 0
        self.driver_features_select = 0
        self.driver_features = 0
        self.config_vector = NO_VECTOR
        self.generation = 0
        self.queue_select = 0
        self.queues = [QueueSetup(size) for size in self.device.queue_sizes]

    # Features

    @property
    def offered(self) -> int:
        """All features of device and rings."""
        return self.device.features & ~feature.RESERVED_FEATURES | self._ring_features

    def read_features(self) -> int:
        """The half of the offered features that was selected."""
        select = self.device_features_select
        return self.offered >> 32 * select & 0xFFFF_FFFF if select < 2 else 0

    def read_driver_features(self) -> int:
        """The half of the driver's features that was selected."""
        select = self.driver_features_select
        return self.driver_features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0

    def write_features(self, value: int) -> None:
        """The driver's choice, 32 bits of it. Too late after FEATURES_OK (3.1.1)."""
        select = self.driver_features_select
        if select < 2 and not self.status & FEATURES_OK:
            keep = self.driver_features & ~(0xFFFF_FFFF << 32 * select)
            self.driver_features = keep | value << 32 * select

    def has(self, bit: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.driver_features >> bit & 1)

    # Status

    def read_status(self) -> int:
        """The status; a reset shows as soon as it is over."""
        if self._resetting:
            if not self.device.quiesced():
                return NEEDS_RESET
            self._resetting = False
        return self.status

    def write_status(self, value: int) -> None:
        """The driver sets bits one after another, and clears all to reset the device."""
        if value == 0:
            self.reset()
            return
        if self._resetting and self.read_status():
            return
        added = value & ~self.status & ~NEEDS_RESET
        if added & FEATURES_OK and not self._features_fit():
            added &= ~FEATURES_OK
        self.status |= added
        if added & DRIVER_OK:
            if self.status & FEATURES_OK:
                self.guarded(self._activate)
            else:
                self.fail("DRIVER_OK without FEATURES_OK")

    def _features_fit(self) -> bool:
        wanted = self.driver_features
        return bool(
            not wanted & ~self.offered
            and wanted >> feature.F_VERSION_1 & 1
            and self.device.accepts(wanted)
        )

    def _activate(self) -> None:
        for index, setup in enumerate(self.queues):
            if setup.enabled:
                self._start(index)
        self.device.activated(self.driver_features)

    @property
    def live(self) -> bool:
        """Whether driver and device talk: DRIVER_OK, and nothing has gone wrong."""
        return self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    # Queues

    @property
    def selected(self) -> QueueSetup | None:
        """The queue that the driver has selected; None if there is no such queue."""
        select = self.queue_select
        return self.queues[select] if select < len(self.queues) else None

    def change_queue(self, **changes: int) -> None:
        """The driver sets up the selected queue. Too late once it is enabled."""
        setup = self.selected
        if setup is not None and not setup.enabled:
            self._put(self.queue_select, **changes)

    def set_queue_vector(self, vector: int) -> None:
        """Which vector the selected queue's interrupts have."""
        if self.selected is not None:
            self._put(self.queue_select, vector=vector)
            self.vectors_changed()

    def _put(self, index: int, **changes: Any) -> None:
        from kvmkit.frozen import replace

        self.queues[index] = replace(self.queues[index], **changes)

    def enable_queue(self) -> None:
        """The selected queue is set up."""
        setup = self.selected
        if setup is None or setup.enabled:
            return
        index = self.queue_select
        self._put(index, enabled=True)
        if self.live:
            self.guarded(lambda: self._start(index))

    def disable_queue(self) -> None:
        """Stop the selected queue, whose set-up stays."""
        setup = self.selected
        if setup is not None and setup.enabled:
            index = self.queue_select
            self._stop(index)
            self._put(index, enabled=False)
            self.guarded(lambda: self.device.queue_reset(index))

    def reset_queue(self) -> None:
        """Stop and forget the selected queue (VIRTIO_F_RING_RESET)."""
        setup = self.selected
        if setup is None or not self.has(feature.F_RING_RESET):
            return
        index = self.queue_select
        self._stop(index)
        self.queues[index] = QueueSetup(self.device.queue_sizes[index])
        self.guarded(lambda: self.device.queue_reset(index))

    def _start(self, index: int) -> None:
        setup = self.queues[index]
        if setup.size > self.device.queue_sizes[index]:
            raise QueueError(f"queue {index} of {setup.size} entries")
        where = RingAddresses(setup.size, setup.descriptors, setup.driver, setup.device)
        kind: Any = SplitQueue
        if self.has(feature.F_RING_PACKED):
            from kvmkit.virtio.packed import PackedQueue

            kind = PackedQueue
        self.device.queues[index] = kind(
            index,
            self.host.ram,
            where,
            indirect=self.has(feature.F_INDIRECT_DESC),
            event_index=self.has(feature.F_EVENT_IDX),
        )

    def _stop(self, index: int) -> None:
        self.device.queues[index].kill()
        idle = self.device.queues[index] = Queue()
        idle.index = index

    def _stop_all(self) -> None:
        for index in range(len(self.queues)):
            self._stop(index)

    def notify(self, index: int) -> None:
        """The driver says that queue ``index`` has something new."""
        if index < len(self.queues) and self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK:
            try:
                self.device.notified(index)
            except (QueueError, GuestAddressError) as error:
                self.fail(str(error))

    # Configuration

    def config_read(self, offset: int, size: int) -> int:
        """The device's configuration."""
        return self.device.config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver's write to it."""
        self.guarded(lambda: self.device.config_write(offset, size, value))

    # The device's side

    def interrupt_queue(self, index: int) -> None:
        """Something was pushed on queue ``index``."""
        if self.live:
            self._signal_queue(self.queues[index].vector)

    def interrupt_config(self) -> None:
        """The configuration is another, or the device needs a reset."""
        self.generation = self.generation + 1 & 0xFF
        if self.status & DRIVER_OK:
            self._signal_config(self.config_vector)

    def fail(self, reason: str) -> None:
        """DEVICE_NEEDS_RESET: stop all queues, tell the driver, log why."""
        if self.status & NEEDS_RESET:
            return
        self.host.warn(
            f"{self.device.name}: the driver broke a rule: {reason}; stopped until reset"
        )
        self._stop_all()
        self.status |= NEEDS_RESET
        if self.status & DRIVER_OK:
            self._signal_config(self.config_vector)

    def guarded(self, action: Callable[[], None]) -> None:
        """Do it; what a guest made of its rings ends here."""
        try:
            action()
        except (QueueError, GuestAddressError) as error:
            self.fail(str(error))

    # Life

    def reset(self) -> None:
        """The driver's reset, or the machine's."""
        self._stop_all()
        self._forget()
        self.vectors_changed()
        self.device.reset()
        self._resetting = not self.device.quiesced()

    def state(self) -> TransportState:
        return TransportState(
            status=self.read_status(),
            device_features_select=self.device_features_select,
            driver_features_select=self.driver_features_select,
            driver_features=self.driver_features,
            config_vector=self.config_vector,
            generation=self.generation,
            queue_select=self.queue_select,
            queues=tuple(self.queues),
            rings=tuple(queue.state() for queue in self.device.queues),
            device=self.device.state(),
        )

    def restore(self, state: TransportState, notify: Callable[[int], None]) -> None:
        """Become ``state``; the guest's memory must be as it was then.

        ``notify(queue)`` is called for each live queue a little later: a notification
        that was on its way when the state was taken (an ioeventfd) is not in it, and
        one too many does no harm.
        """
        self._stop_all()
        self._resetting = False
        self.status = state.status
        self.device_features_select = state.device_features_select
        self.driver_features_select = state.driver_features_select
        self.driver_features = state.driver_features
        self.config_vector = state.config_vector
        self.generation = state.generation
        self.queue_select = state.queue_select
        self.queues = list(state.queues)
        self.vectors_changed()
        self.guarded(lambda: self._restore_rings(state.rings))
        self.device.restore(state.device)
        if self.live:
            self.host.call_soon(lambda: self._notify_all(notify))

    def _notify_all(self, notify: Callable[[int], None]) -> None:
        for queue in self.device.queues:
            if queue.alive:
                notify(queue.index)

    def _restore_rings(self, rings: tuple[Any, ...]) -> None:
        for index, ring in enumerate(rings):
            if ring is not None and self.live:
                self._start(index)
                self.device.queues[index].restore(ring)


def _nobody_asks() -> None:
    """Default of ``Transport.vectors_changed``."""
