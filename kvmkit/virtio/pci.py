"""Virtio over PCI: the modern transport.

Virtio 1.2, section 4.1. Four structures in one BAR, found through vendor
capabilities (4.1.4): common configuration, notifications, ISR status, the
device's configuration; a fifth capability reaches the BARs through
configuration space (4.1.4.9). Interrupts are MSI-X, or INTx without it.
"""

from __future__ import annotations

from struct import pack

from kvmkit.devices import pci_config as reg
from kvmkit.devices.pci_function import PciFunction
from kvmkit.frozen import Record
from kvmkit.virtio.transport import NO_VECTOR, Transport, TransportState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmkit.virtio.device import VirtioDevice
    from kvmkit.virtio.memory import Host

__all__ = ["VirtioPci", "VirtioPciState"]

VENDOR: Final = 0x1AF4
DEVICE_BASE: Final = 0x1040
REVISION: Final = 1
SUBSYSTEM: Final = 0x1100

# Capabilities (4.1.4): cap_len, cfg_type, bar, id, padding, offset, length
CAP_COMMON: Final = 1
CAP_NOTIFY: Final = 2
CAP_ISR: Final = 3
CAP_DEVICE: Final = 4
CAP_PCI: Final = 5
CAP_SIZE: Final = 16

# Where the structures are in their BAR
REGISTER_BAR: Final = 0
MSIX_BAR: Final = 1
COMMON: Final = 0x0000
ISR: Final = 0x1000
DEVICE: Final = 0x2000
NOTIFY: Final = 0x3000
BAR_SIZE: Final = 0x4000
STRUCTURE_SIZE: Final = 0x1000
NOTIFY_STRIDE: Final = 4
MAX_QUEUES: Final = STRUCTURE_SIZE // NOTIFY_STRIDE

# struct virtio_pci_common_cfg (4.1.4.3)
DEVICE_FEATURE_SELECT: Final = 0x00
DEVICE_FEATURE: Final = 0x04
DRIVER_FEATURE_SELECT: Final = 0x08
DRIVER_FEATURE: Final = 0x0C
CONFIG_VECTOR: Final = 0x10
NUM_QUEUES: Final = 0x12
DEVICE_STATUS: Final = 0x14
CONFIG_GENERATION: Final = 0x15
QUEUE_SELECT: Final = 0x16
QUEUE_SIZE: Final = 0x18
QUEUE_VECTOR: Final = 0x1A
QUEUE_ENABLE: Final = 0x1C
QUEUE_NOTIFY_OFF: Final = 0x1E
QUEUE_DESC: Final = 0x20
QUEUE_DRIVER: Final = 0x28
QUEUE_DEVICE: Final = 0x30
QUEUE_NOTIFY_DATA: Final = 0x38
QUEUE_RESET: Final = 0x3A
COMMON_SIZE: Final = 0x3C
_COMMON_FORMAT = "<IIIIHHBBHHHHHQQQHH"

_QUEUE_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "driver", QUEUE_DEVICE: "device"}

# ISR status (4.1.4.5)
ISR_QUEUE: Final = 1
ISR_CONFIG: Final = 2


class VirtioPciState(Record):
    """The transport's record, with the ISR status and the window's last data."""

    transport: TransportState
    isr: int


class VirtioPci(PciFunction):
    """``device`` as a PCI function; ``msi(address, data)`` sends its MSI-X messages.

    Raises ValueError for a device with more queues than this transport has room for.
    """

    def __init__(
        self,
        device: VirtioDevice,
        host: Host,
        msi: Callable[[int, int], None],
        *,
        packed: bool = False,
    ) -> None:
        super().__init__(
            vendor=VENDOR,
            device=DEVICE_BASE + device.device_id,
            class_code=device.pci_class,
            revision=REVISION,
            subsystem_vendor=VENDOR,
            subsystem=SUBSYSTEM,
            interrupt_pin=1,
        )
        queues = len(device.queue_sizes)
        if queues > MAX_QUEUES:
            raise ValueError(f"{queues} queues, more than {MAX_QUEUES}")
        self.device = device
        self.transport = Transport(
            device, host, self._signal_queue, self._signal_config, packed=packed
        )
        self._isr = 0
        self._vectors = queues + 1
        self.add_bar(REGISTER_BAR, BAR_SIZE, _Registers(self))
        self.routes_changed: Callable[[], None] | None = None
        """Called when an MSI-X vector sends another message, or is masked or not."""
        self.add_msix(MSIX_BAR, self._vectors, msi, self._vector_changed)
        self._add_structure(CAP_COMMON, COMMON, COMMON_SIZE)
        self._add_structure(
            CAP_NOTIFY, NOTIFY, NOTIFY_STRIDE * max(queues, 1), pack("<I", NOTIFY_STRIDE)
        )
        self._add_structure(CAP_ISR, ISR, 1)
        self._add_structure(CAP_DEVICE, DEVICE, STRUCTURE_SIZE)
        # bar, offset, length and data are the driver's to write
        writable = b"\0\0\xff\0\0\0" + b"\xff" * 8 + b"\xff" * 4
        self._window = self._add_structure(CAP_PCI, 0, 0, bytes(4), writable)

    def __str__(self) -> str:
        return f"{self.device.name} at {super().__str__()}"

    def _add_structure(
        self, kind: int, offset: int, size: int, more: bytes = b"", writable: bytes = b""
    ) -> int:
        bar = 0 if kind == CAP_PCI else REGISTER_BAR
        body = pack("<BBBBHII", CAP_SIZE + len(more), kind, bar, 0, 0, offset, size) + more
        return self.add_capability(reg.CAP_VENDOR, body, writable)

    # Interrupts

    def _vector_changed(self, vector: int, address: int, data: int, masked: bool) -> None:
        if self.routes_changed is not None:
            self.routes_changed()

    def _signal_queue(self, vector: int) -> None:
        self._signal(vector, ISR_QUEUE)

    def _signal_config(self, vector: int) -> None:
        self._signal(vector, ISR_CONFIG)

    def _signal(self, vector: int, cause: int) -> None:
        msix = self.msix
        assert msix is not None
        if msix.enabled:
            if vector != NO_VECTOR:
                msix.trigger(vector)
        else:
            self._isr |= cause
            self.set_intx(True)

    def read_isr(self) -> int:
        """What INTx was for; reading withdraws it."""
        isr, self._isr = self._isr, 0
        if isr:
            self.set_intx(False)
        return isr

    def notify(self, index: int) -> None:
        """The driver's notification. Without bus mastering no ring may be touched."""
        if self.config.data[reg.COMMAND] & reg.COMMAND_MASTER:
            self.transport.notify(index)

    # Common configuration

    def read_common(self, offset: int, size: int) -> int:
        """Part of the structure, in any width."""
        if offset == DEVICE_STATUS and size == 1:
            return self.transport.read_status()
        transport = self.transport
        setup = transport.selected
        queue: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0)  # no such queue: size 0
        if setup is not None:
            addresses = (setup.descriptors, setup.driver, setup.device)
            queue = (setup.size, setup.vector, setup.enabled, transport.queue_select, *addresses)
        image = pack(
            _COMMON_FORMAT,
            transport.device_features_select,
            transport.read_features(),
            transport.driver_features_select,
            transport.read_driver_features(),
            transport.config_vector,
            len(transport.queues),
            transport.read_status(),
            transport.generation,
            transport.queue_select,
            *queue,
            0,  # queue_notify_data: VIRTIO_F_NOTIF_CONFIG_DATA is not offered
            0,  # queue_reset: done as soon as written
        )
        return int.from_bytes(image[offset : offset + size], "little")

    def write_common(self, offset: int, size: int, value: int) -> None:
        """A write to one field, of its width or half a 64-bit one; others do nothing (4.1.3.1)."""
        transport = self.transport
        if size == 1:
            if offset == DEVICE_STATUS:
                self._write_status(value)
        elif size == 2:
            if offset == CONFIG_VECTOR:
                transport.config_vector = self._vector(value)
            elif offset == QUEUE_SELECT:
                transport.queue_select = value
            elif offset == QUEUE_SIZE:
                transport.change_queue(size=value)
            elif offset == QUEUE_VECTOR:
                transport.set_queue_vector(self._vector(value))
            elif offset == QUEUE_ENABLE and value == 1:
                transport.enable_queue()
            elif offset == QUEUE_RESET and value == 1:
                transport.reset_queue()
        elif size == 4 and offset < CONFIG_VECTOR:
            if offset == DEVICE_FEATURE_SELECT:
                transport.device_features_select = value
            elif offset == DRIVER_FEATURE_SELECT:
                transport.driver_features_select = value
            elif offset == DRIVER_FEATURE:
                transport.write_features(value)
        else:
            self._write_address(offset, size, value)

    def _write_address(self, offset: int, size: int, value: int) -> None:
        name = _QUEUE_ADDRESSES.get(offset & ~4 if size == 4 else offset)
        setup = self.transport.selected
        if name is None or setup is None:
            return
        if size == 4:
            shift = 8 * (offset & 4)
            value = getattr(setup, name) & ~(0xFFFF_FFFF << shift) | value << shift
        self.transport.change_queue(**{name: value})

    def _write_status(self, value: int) -> None:
        self.transport.write_status(value)
        if value == 0:
            self.read_isr()

    def _vector(self, value: int) -> int:
        """What a vector register holds after a write: no vector if there is no such (4.1.5.1.2)."""
        return value if value < self._vectors else NO_VECTOR

    # The window in configuration space

    def before_config_read(self, offset: int, size: int) -> None:
        """A read of pci_cfg_data reads from the BAR."""
        data = self._window + CAP_SIZE
        if offset < data + 4 and offset + size > data:
            place = self._window_target()
            if place is not None:
                value = place[0].read(*place[1:])
                self.config.poke(data, value.to_bytes(place[2], "little"))

    def after_config_write(self, offset: int, size: int) -> None:
        """A write of pci_cfg_data writes to the BAR."""
        data = self._window + CAP_SIZE
        if offset < data + 4 and offset + size > data:
            place = self._window_target()
            if place is not None:
                place[0].write(*place[1:], self.config.read(data, place[2]))

    def _window_target(self) -> tuple[_Registers, int, int] | None:
        """The registers, offset and size that the capability names, if they make sense."""
        config, at = self.config, self._window
        bar, offset, length = config.data[at + 4], config.dword(at + 8), config.dword(at + 12)
        if bar != REGISTER_BAR or length not in (1, 2, 4):
            return None
        if offset % length or offset + length > BAR_SIZE:
            return None
        return _Registers(self), offset, length

    # Life

    def reset(self) -> None:
        """Power-on."""
        self._isr = 0
        self.transport.reset()
        super().reset()

    def device_state(self) -> VirtioPciState:
        return VirtioPciState(self.transport.state(), self._isr)

    def restore_device(self, state: VirtioPciState) -> None:
        self._isr = state.isr
        self.transport.restore(state.transport, self.notify)


class _Registers:
    """BAR 0."""

    __slots__ = ("_function",)

    def __init__(self, function: VirtioPci) -> None:
        self._function = function

    def read(self, offset: int, size: int) -> int:
        """The structure at ``offset``."""
        function = self._function
        if offset >= NOTIFY:
            return 0
        if offset >= DEVICE:
            return function.transport.config_read(offset - DEVICE, size)
        if offset >= ISR:
            return function.read_isr() if offset == ISR else 0
        return function.read_common(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Most of all: a notification."""
        function = self._function
        if offset >= NOTIFY:
            if not offset % NOTIFY_STRIDE:
                function.notify((offset - NOTIFY) // NOTIFY_STRIDE)
        elif offset >= DEVICE:
            function.transport.config_write(offset - DEVICE, size, value)
        elif offset < COMMON_SIZE:
            function.write_common(offset, size, value)
