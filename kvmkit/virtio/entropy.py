"""Entropy: the device behind the guest's ``/dev/hwrng``.

Virtio 1.2, section 5.4: one queue of buffers to be filled with random bytes.
"""

from __future__ import annotations

from kvmkit.virtio.device import VirtioDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Entropy"]

MOST = 64 << 10
"""Bytes given for one buffer; a device may give fewer than asked (5.4.6.1)."""


class Entropy(VirtioDevice):
    """``source(size)`` gives that many random bytes, as ``os.urandom`` does."""

    device_id = 4
    name = "entropy"
    pci_class = 0x10_80_00  # en/decryption, other
    queue_sizes = (64,)

    def __init__(self, source: Callable[[int], bytes]) -> None:
        super().__init__()
        self._source = source

    def notified(self, index: int) -> None:
        """Fill every buffer there is."""
        queue = self.queues[0]
        for chain in self.requests(0):
            chain.write(self._source(min(chain.writable_size, MOST)))
            queue.push(chain)
        self.interrupt(queue)
