"""What a virtio device is: the base class of all of them.

Virtio 1.2, section 2 (basic facilities) and 3 (initialisation). A device says what
it offers (identity, features, queues, configuration) and is told what happens
(:meth:`VirtioDevice.activated`, :meth:`VirtioDevice.notified`,
:meth:`VirtioDevice.reset`). How the driver reaches it is its transport's affair.

All methods run under the board's lock, one at a time, and must not block: what
takes long goes to a backend, which reports back through
:meth:`VirtioDevice.call_soon`.
"""

from __future__ import annotations

from kvmkit.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Final, Protocol

    from kvmkit.virtio.chain import Chain
    from kvmkit.virtio.memory import GuestRam, Host

    class Attachment(Protocol):
        """What a device asks of its transport."""

        host: Host
        driver_features: int

        def interrupt_queue(self, index: int) -> None: ...
        def interrupt_config(self) -> None: ...
        def fail(self, reason: str) -> None: ...
        def guarded(self, action: Callable[[], None]) -> None: ...


__all__ = ["VirtioDevice"]

# Feature bits that belong to rings and transports (section 6)
F_INDIRECT_DESC: Final = 28
F_EVENT_IDX: Final = 29
F_VERSION_1: Final = 32
F_ACCESS_PLATFORM: Final = 33
F_RING_PACKED: Final = 34
F_RING_RESET: Final = 40

RESERVED_FEATURES: Final = (1 << 42) - (1 << 24)
"""The bits 24 to 41, which are not a device's own."""


class VirtioDevice:
    """A device without its transport; subclass it.

    Set ``device_id`` (section 5), ``name`` for messages, ``pci_class`` (24 bits),
    ``features`` (the device's own bits, as a mask), ``queue_sizes`` (the largest
    size of each queue) and ``config``, the bytes of its configuration space.
    """

    device_id = 0
    name = "virtio"
    pci_class = 0xFF_00_00
    features = 0
    queue_sizes: Sequence[int] = ()

    def __init__(self) -> None:
        self.config = bytearray()
        """What the driver reads of the configuration; see :meth:`config_changed`."""
        self.queues: list[Queue] = [_idle(index) for index in range(len(self.queue_sizes))]
        """The queues; one that the driver has not enabled is empty."""
        self.transport: Attachment | None = None

    # Told by the transport: override what matters

    def attached(self) -> None:
        """There is a transport, and a host around it. Not under the lock; before the start."""

    def accepts(self, features: int) -> bool:
        """Whether the device works with these features, of those offered; else the
        driver finds FEATURES_OK cleared."""
        return True

    def activated(self, features: int) -> None:
        """The driver is there (DRIVER_OK) and has negotiated ``features``; queues are live."""

    def notified(self, index: int) -> None:
        """Queue ``index`` has something new, perhaps."""

    def queue_reset(self, index: int) -> None:
        """Queue ``index`` was reset alone: forget its requests, do not push them."""

    def config_read(self, offset: int, size: int) -> int:
        """What the driver reads of the configuration; 0 past its end."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver writes to the configuration; by default nothing happens."""

    def reset(self) -> None:
        """Forget the driver: by its own wish, or as the machine is reset. The queues are dead.

        Requests that a backend still works on may be pushed later, which does nothing.
        """

    def quiesced(self) -> bool:
        """Whether no backend touches the guest's memory for a request from before a reset.

        The driver sees the reset end only then.
        """
        return True

    def drain(self) -> None:
        """Wait until every request in flight is done, for a snapshot or a machine's reset.

        Called without the lock, with the CPUs stopped.
        """

    def resumed(self) -> None:
        """The machine goes on after a pause, during which nothing may change its memory.

        Called without the lock.
        """

    def close(self) -> None:
        """Free what the host gave: the machine is gone."""

    def state(self) -> Any:
        """The device's own state as a record; None if its transport's is all there is."""
        return None

    def restore(self, state: Any) -> None:
        """Become what :meth:`state` gave. The queues are live if they were."""

    # What a device may do

    @property
    def ram(self) -> GuestRam:
        """The guest's memory."""
        return self._attached().host.ram

    @property
    def driver_features(self) -> int:
        """What was negotiated; 0 before :meth:`activated`."""
        return 0 if self.transport is None else self.transport.driver_features

    def requests(self, index: int) -> Iterator[Chain]:
        """Pop what is in a queue, for :meth:`notified`.

        A driver that fills the queue as fast as it is emptied does not keep us here
        for ever: after two rounds the rest waits for another :meth:`notified`.
        """
        queue = self.queues[index]
        pop = queue.pop
        for _ in range(2 * queue.size):
            chain = pop()
            if chain is None:
                return
            yield chain
        if queue.alive:
            self.call_soon(lambda: self.notified(index))

    def push(self, chain: Chain, written: int | None = None) -> None:
        """Give a request back and interrupt if the driver wants that; see :meth:`Queue.push`."""
        queue = chain.queue
        queue.push(chain, written)
        if queue.needs_interrupt():
            self._attached().interrupt_queue(queue.index)

    def interrupt(self, queue: Queue) -> None:
        """After several ``queue.push``: interrupt once, if the driver wants that."""
        if queue.needs_interrupt():
            self._attached().interrupt_queue(queue.index)

    def config_changed(self) -> None:
        """Tell the driver that :attr:`config` is different now."""
        self._attached().interrupt_config()

    def fail(self, reason: str) -> None:
        """The driver did what makes no sense: stop until it resets the device."""
        self._attached().fail(reason)

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` as the device, now: from a backend's thread, without any lock held."""
        transport = self._attached()
        transport.host.call(lambda: transport.guarded(action))

    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` as the device, a little later: from any thread."""
        transport = self._attached()
        transport.host.call_soon(lambda: transport.guarded(action))

    def _attached(self) -> Attachment:
        assert self.transport is not None, "a device works behind a transport"
        return self.transport


def _idle(index: int) -> Queue:
    """A queue that is not enabled."""
    queue = Queue()
    queue.index = index
    return queue
