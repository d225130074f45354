"""A PCI device in twenty lines: registers, interrupts and DMA without their plumbing.

The base class for devices of one's own; ``docs/devices.md`` shows how. A device
says what it is in class attributes, answers :meth:`PciDevice.read` and
:meth:`PciDevice.write`, and uses :meth:`PciDevice.interrupt`,
:meth:`PciDevice.dma_read` and :meth:`PciDevice.dma_write`.
"""

from __future__ import annotations

from kvmkit.devices.pci_function import PciFunction
from kvmkit.errors import GuestAddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Ram(Protocol):
        """What a device uses of the guest's memory."""

        def read(self, address: int, size: int) -> bytes: ...
        def write(self, address: int, data: bytes | bytearray | memoryview) -> None: ...

    class Surroundings(Protocol):
        """What a device uses of its board."""

        @property
        def ram(self) -> Ram: ...
        def call(self, action: Callable[[], None]) -> None: ...
        def call_soon(self, action: Callable[[], None]) -> None: ...
        def warn(self, text: str) -> None: ...


__all__ = ["PciDevice"]

REGISTER_BAR = 0
MSIX_BAR = 1


class PciDevice(PciFunction):
    """Subclass it; ``register_bytes`` (a power of two, 16 at least) are BAR 0.

    Methods run under the board's lock, one at a time, and must not block. What
    comes from the guest is any number: check it. ``vectors`` is how many MSI-X
    vectors there are (BAR 1); a guest that does not use them gets INTA.
    """

    vendor_id = 0x1B36
    device_id = 0x0005
    class_code = 0xFF_00_00
    revision = 0
    register_bytes = 4096
    vectors = 1

    def __init__(self) -> None:
        super().__init__(
            vendor=self.vendor_id,
            device=self.device_id,
            class_code=self.class_code,
            revision=self.revision,
            interrupt_pin=1,
        )
        self._host: Surroundings | None = None
        self.add_bar(REGISTER_BAR, self.register_bytes, self)

    def attach(self, host: Surroundings, msi: Callable[[int, int], None]) -> None:
        """The board's affair: the device gets its surroundings."""
        self._host = host
        self.add_msix(MSIX_BAR, self.vectors, msi)

    # To be overridden

    def read(self, offset: int, size: int) -> int:
        """The guest reads ``size`` (1, 2, 4 or 8) bytes of the registers."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes to them."""

    def close(self) -> None:
        """Free what the host gave: the machine is gone."""

    # To be used

    def interrupt(self, vector: int = 0) -> None:
        """Interrupt the guest: by MSI-X if it uses that, else by INTA until :meth:`withdraw`."""
        if self.msix is None or not self.msix.trigger(vector):
            self.set_intx(True)

    def withdraw(self) -> None:
        """The guest has seen the interrupt: release INTA. Does nothing to MSI-X."""
        self.set_intx(False)

    def dma_read(self, address: int, size: int) -> bytes:
        """``size`` bytes of guest memory; as on a bus, all ones where there is none, or
        where the guest has not made the device a bus master. Limit ``size`` yourself."""
        try:
            if self.bus_master:
                return self._attached().ram.read(address, size)
        except GuestAddressError:
            pass
        return b"\xff" * size

    def dma_write(self, address: int, data: bytes) -> None:
        """Store ``data`` in guest memory; lost where there is none, as on a bus."""
        try:
            if self.bus_master:
                self._attached().ram.write(address, data)
        except GuestAddressError:
            pass

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` as the device, now: from a thread of one's own."""
        self._attached().call(action)

    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` as the device, a little later: from any thread, or from a method."""
        self._attached().call_soon(action)

    def warn(self, text: str) -> None:
        """Note one line about what the guest did wrong."""
        self._attached().warn(text)

    def _attached(self) -> Surroundings:
        assert self._host is not None, "a device works on a board"
        return self._host
