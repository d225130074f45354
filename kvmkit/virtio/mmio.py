"""Virtio over memory-mapped registers, for machines without PCI.

Virtio 1.2, section 4.2 (version 2; the legacy interface of 4.2.4 is not there): 256
bytes of 32-bit registers, the device's configuration behind them, one interrupt line.
"""

from __future__ import annotations

from kvmkit.frozen import Record
from kvmkit.virtio.transport import Transport, TransportState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.devices.device import Line
    from kvmkit.virtio.device import VirtioDevice
    from kvmkit.virtio.memory import Host

__all__ = ["SIZE", "VirtioMmio", "VirtioMmioState"]

SIZE: Final = 0x1000
"""Bytes of the register range; the configuration may be as long as it leaves room."""

# Registers (4.2.2), 32 bits wide
MAGIC: Final = 0x000
VERSION: Final = 0x004
DEVICE_ID: Final = 0x008
VENDOR_ID: Final = 0x00C
DEVICE_FEATURES: Final = 0x010
DEVICE_FEATURES_SEL: Final = 0x014
DRIVER_FEATURES: Final = 0x020
DRIVER_FEATURES_SEL: Final = 0x024
QUEUE_SEL: Final = 0x030
QUEUE_NUM_MAX: Final = 0x034
QUEUE_NUM: Final = 0x038
QUEUE_READY: Final = 0x044
QUEUE_NOTIFY: Final = 0x050
INTERRUPT_STATUS: Final = 0x060
INTERRUPT_ACK: Final = 0x064
STATUS: Final = 0x070
QUEUE_DESC: Final = 0x080  # low and high half
QUEUE_DRIVER: Final = 0x090
QUEUE_DEVICE: Final = 0x0A0
SHM_SEL: Final = 0x0AC
SHM_LENGTH: Final = 0x0B0  # length, then base: both -1 for a region that is not there
SHM_END: Final = 0x0C0
QUEUE_RESET: Final = 0x0C0
CONFIG_GENERATION: Final = 0x0FC
CONFIG: Final = 0x100

MAGIC_VALUE: Final = 0x7472_6976  # "virt"
MODERN: Final = 2
VENDOR: Final = 0x554D_564B  # "KVMU"

INTERRUPT_QUEUE: Final = 1
INTERRUPT_CONFIG: Final = 2

_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "driver", QUEUE_DEVICE: "device"}
_NOTHING: Final = 0xFFFF_FFFF


class VirtioMmioState(Record):
    """The transport's record and the interrupt status."""

    transport: TransportState
    interrupt: int


class VirtioMmio:
    """``device`` behind a page of registers; a :class:`kvmkit.devices.device.Device`.

    ``line`` is high while InterruptStatus has a bit.
    """

    def __init__(
        self, device: VirtioDevice, host: Host, line: Line, *, packed: bool = False
    ) -> None:
        self.device = device
        self._line = line
        self._interrupt = 0
        self.transport = Transport(
            device,
            host,
            lambda vector: self._signal(INTERRUPT_QUEUE),
            lambda vector: self._signal(INTERRUPT_CONFIG),
            packed=packed,
        )

    def _signal(self, cause: int) -> None:
        self._interrupt |= cause
        self._line(True)

    def _acknowledge(self, causes: int) -> None:
        self._interrupt &= ~causes
        if not self._interrupt:
            self._line(False)

    # The driver's side

    def read(self, offset: int, size: int) -> int:
        """A register, 32 bits at its own offset only (4.2.2.2); or the configuration."""
        if offset >= CONFIG:
            return self.transport.config_read(offset - CONFIG, size)
        if size != 4 or offset & 3:
            return 0
        transport = self.transport
        setup = transport.selected
        if offset == INTERRUPT_STATUS:
            return self._interrupt
        if offset == STATUS:
            return transport.read_status()
        if offset == MAGIC:
            return MAGIC_VALUE
        if offset == VERSION:
            return MODERN
        if offset == DEVICE_ID:
            return self.device.device_id
        if offset == VENDOR_ID:
            return VENDOR
        if offset == DEVICE_FEATURES:
            return transport.read_features()
        if offset == QUEUE_NUM_MAX:
            return 0 if setup is None else self.device.queue_sizes[transport.queue_select]
        if offset == QUEUE_READY:
            return 0 if setup is None else int(setup.enabled)
        if offset == CONFIG_GENERATION:
            return transport.generation
        if SHM_LENGTH <= offset < SHM_END:
            return _NOTHING
        return 0  # QueueReset among them: done as soon as written

    def write(self, offset: int, size: int, value: int) -> None:
        """A register, as :meth:`read`; the guest can write to any, some take it."""
        if offset >= CONFIG:
            self.transport.config_write(offset - CONFIG, size, value)
            return
        if size != 4 or offset & 3:
            return
        transport = self.transport
        if offset == QUEUE_NOTIFY:
            transport.notify(value)
        elif offset == INTERRUPT_ACK:
            self._acknowledge(value)
        elif offset == STATUS:
            transport.write_status(value & 0xFF)
            if value & 0xFF == 0:
                self._acknowledge(_NOTHING)
        elif offset == DEVICE_FEATURES_SEL:
            transport.device_features_select = value
        elif offset == DRIVER_FEATURES_SEL:
            transport.driver_features_select = value
        elif offset == DRIVER_FEATURES:
            transport.write_features(value)
        elif offset == QUEUE_SEL:
            transport.queue_select = value
        elif offset == QUEUE_NUM:
            transport.change_queue(size=value)
        elif offset == QUEUE_READY:
            self._ready(value)
        elif offset == QUEUE_RESET and value == 1:
            transport.reset_queue()
        elif offset & ~4 in _ADDRESSES:
            self._address(offset, value)

    def _ready(self, value: int) -> None:
        if value == 1:
            self.transport.enable_queue()
        elif value == 0:  # 4.2.2.2: the driver may take a queue back before it resets the device
            self.transport.disable_queue()

    def _address(self, offset: int, value: int) -> None:
        setup = self.transport.selected
        if setup is None:
            return
        name = _ADDRESSES[offset & ~4]
        shift = 8 * (offset & 4)
        kept = getattr(setup, name) & ~(0xFFFF_FFFF << shift)
        self.transport.change_queue(**{name: kept | value << shift})

    # Life

    def reset(self) -> None:
        """Power-on."""
        self.transport.reset()
        self._acknowledge(_NOTHING)

    def state(self) -> VirtioMmioState:
        return VirtioMmioState(self.transport.state(), self._interrupt)

    def restore(self, state: VirtioMmioState) -> None:
        self._interrupt = state.interrupt
        self.transport.restore(state.transport, self.transport.notify)
        self._line(bool(self._interrupt))
