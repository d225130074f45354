"""File system device: a directory of the host's, mounted by the guest.

Virtio 1.2, section 5.11: FUSE messages in queues, the request to be read first,
then room for the answer. Queue 0 is for what must not wait behind other requests
(FORGET), the others are for all else.
"""

from __future__ import annotations

from struct import pack

from kvmkit.errors import UsageError
from kvmkit.virtio.device import VirtioDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from kvmkit.virtio.chain import Chain
    from kvmkit.virtio.fs_state import ShareState

    class FuseServer(Protocol):
        """Who answers: ``kvmkit.backends.fuse.server.Server``."""

        def serve(self, readable: list[memoryview], writable: list[memoryview]) -> int: ...
        def serve_now(
            self, readable: list[memoryview], writable: list[memoryview]
        ) -> int | None: ...
        def reset(self) -> None: ...
        def save(self) -> ShareState: ...
        def restore(self, state: ShareState) -> None: ...

    class Submitter(Protocol):
        """Whose threads serve: ``kvmkit.backends.disk_queue.DiskQueue``."""

        def submit(
            self, work: Callable[[], None], done: Callable[[OSError | None], None]
        ) -> None: ...
        def drain(self) -> None: ...
        def settle(self) -> None: ...
        def close(self) -> None: ...
        @property
        def busy(self) -> bool: ...


__all__ = ["VirtioFs"]

TAG_BYTES: Final = 36
HIGH_PRIORITY_SIZE: Final = 128
ERROR_BYTES: Final = 16  # an answer without payload
QUEUE_SIZE: Final = 1024
"""Linux takes as many pages into a request as fit into the queue: 256 and some headers."""


class VirtioFs(VirtioDevice):
    """A share that the guest finds by its ``tag``, of 1 to 36 bytes; ``queues`` is how many
    request queues there are. Raises UsageError for a tag that cannot be."""

    device_id = 26
    name = "share"
    pci_class = 0x01_80_00  # mass storage, other

    def __init__(
        self, tag: bytes, server: FuseServer, workers: Submitter, *, queues: int = 1
    ) -> None:
        if not 0 < len(tag) <= TAG_BYTES or b"\0" in tag:
            raise UsageError(f"a share's tag has 1 to {TAG_BYTES} bytes, this one {len(tag)}")
        self.queue_sizes = (HIGH_PRIORITY_SIZE, *[QUEUE_SIZE] * queues)
        super().__init__()
        self.tag = tag
        self._server = server
        self._workers = workers
        self._epochs = [0] * len(self.queue_sizes)  # count resets: what is older is not pushed
        self.config = bytearray(pack("<36sI", tag, queues))  # 5.11.4

    def notified(self, index: int) -> None:
        """Serve what is quick, and start the rest, which is pushed when it is done."""
        pushed = False
        try:
            for chain in self.requests(index):
                written = self._server.serve_now(chain.readable, chain.writable)
                if written is None:
                    self._start(chain)
                else:
                    self._give_back(chain, written)
                    pushed = True
        finally:
            if pushed:
                self.interrupt(self.queues[index])

    def _start(self, chain: Chain) -> None:
        index = chain.queue.index
        epoch = self._epochs[index]
        written = 0

        def work() -> None:
            nonlocal written
            if epoch == self._epochs[index]:
                written = self._server.serve(chain.readable, chain.writable)

        def finish() -> None:
            if epoch == self._epochs[index]:
                self._give_back(chain, written)
                self.interrupt(chain.queue)

        self._workers.submit(work, lambda _: self.call(finish))

    def _give_back(self, chain: Chain, written: int) -> None:
        if written <= ERROR_BYTES < chain.writable_size:
            # A read that failed may have filled a part.
            chain.tell_memory(chain.writable_size)
        chain.queue.push(chain, written)

    # Life

    def reset(self) -> None:
        """Forget the driver's requests; those under way are not pushed."""
        self._epochs = [epoch + 1 for epoch in self._epochs]
        self._server.reset()

    def queue_reset(self, index: int) -> None:
        """The same for one queue; what a worker is at is waited for, as the driver does not."""
        self._epochs[index] += 1
        self._workers.settle()

    def quiesced(self) -> bool:
        """Whether no worker touches the guest's memory."""
        return not self._workers.busy

    def drain(self) -> None:
        """Wait until every request is done."""
        self._workers.drain()

    def state(self) -> ShareState:
        """See :mod:`kvmkit.virtio.fs_state`."""
        return self._server.save()

    def restore(self, state: ShareState) -> None:
        """Find again what the guest knows and has open."""
        self._server.restore(state)

    def close(self) -> None:
        """End the threads and close all files."""
        self._workers.close()
        self._server.reset()
