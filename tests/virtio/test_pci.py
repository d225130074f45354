"""The PCI transport, from its driver's side."""

from __future__ import annotations

import pytest

from kvmkit.devices.pci import PciBus
from kvmkit.virtio.pci import VirtioPci
from tests.virtio.mock import (
    Echo,
    FakeHost,
    MsiLog,
    PackedDriver,
    PciDriver,
    SplitDriver,
)

VERSION_1, EVENT_INDEX, INDIRECT, PACKED, RING_RESET = 1 << 32, 1 << 29, 1 << 28, 1 << 34, 1 << 40
ACCEPTED = VERSION_1 | EVENT_INDEX | INDIRECT | RING_RESET
DRIVER_OK, FEATURES_OK, NEEDS_RESET = 4, 8, 64


class Rig:
    """An Echo on a PCI bus, its driver and the rings of both queues."""

    def __init__(self, device=None, *, packed=False):
        self.host = FakeHost()
        self.device = device or Echo()
        self.msi = MsiLog()
        self.pins = {}
        self.function = VirtioPci(self.device, self.host, self.msi, packed=packed)
        self.bus = PciBus(
            lambda function, bar, address: None,
            lambda number: lambda level: self.pins.__setitem__(number, level),
        )
        self.bus.add(self.function, 1)
        self.driver = PciDriver(self.function)
        kind = PackedDriver if packed else SplitDriver
        self.rings = [
            kind(self.host.ram, 16, event_index=True, base=base) for base in (0x1000, 0x5000)
        ]

    @property
    def pin(self):
        return self.pins.get(1, False)

    def start(self, features=ACCEPTED):
        assert self.driver.accept(features)
        for index, ring in enumerate(self.rings):
            self.driver.set_queue(index, ring.where, index + 1)
        self.driver.go()
        return self

    def echo(self, data, index=0):
        """Send ``data`` through a queue; the answer."""
        ring = self.rings[index]
        ring.add([data], [len(data)])
        self.driver.notify(index)
        return [answer for _, answer in ring.collect()]

    def break_ring(self, index=0):
        """Do what no driver may."""
        self.rings[index].descriptor(0, 1 << 60, 1, 0, 0)
        self.rings[index].publish(0)
        self.driver.notify(index)


def test_identity():
    """4.1.2: vendor, device, revision, and the four structures."""
    rig = Rig()
    read = rig.function.read_config
    assert (read(0, 2), read(2, 2), read(8, 1)) == (0x1AF4, 0x1040 + 42, 1)
    assert sorted(rig.driver.places) == [1, 2, 3, 4, 5]
    for kind in (1, 2, 3, 4):
        bar, offset, length = rig.driver.places[kind]
        assert offset + length <= rig.function.bars[bar].size
    assert rig.driver.read(1, 0x12, 2) == 2


def test_requests_on_both_queues():
    """From the features to the answers."""
    rig = Rig().start()
    assert rig.device.log == [("reset",), ("activated", ACCEPTED)]
    assert rig.echo(b"abc") == [b"cba"]
    assert rig.echo(b"12", 1) == [b"21"]
    assert rig.echo(b"again") == [b"niaga"]
    assert rig.host.warnings == []


def test_packed_rings_are_offered_on_request():
    """And used when the driver takes them."""
    assert not Rig().driver.offered() & PACKED
    rig = Rig(packed=True)
    assert rig.driver.offered() & PACKED
    rig.start(ACCEPTED | PACKED)
    assert rig.echo(b"abc") == [b"cba"]


def test_offered_features():
    """The device's own and the rings'."""
    assert Rig().driver.offered() == ACCEPTED | 0b101


@pytest.mark.parametrize("features", [0, EVENT_INDEX, VERSION_1 | 2, VERSION_1 | 1 << 63])
def test_features_that_do_not_fit(features):
    """Without VERSION_1, or with bits that were not offered: FEATURES_OK does not stay."""
    rig = Rig()
    assert not rig.driver.accept(features)
    rig.driver.status = 15
    assert rig.driver.status & NEEDS_RESET
    assert rig.host.warnings == [
        "echo: the driver broke a rule: DRIVER_OK without FEATURES_OK; stopped until reset"
    ]


def test_device_may_refuse_features():
    """By VirtioDevice.accepts."""

    class Picky(Echo):
        def accepts(self, features):
            return features & 0b101 != 0b100

    driver = Rig(Picky()).driver
    assert not driver.accept(VERSION_1 | 0b100)
    assert driver.accept(VERSION_1 | 0b101)


def test_features_cannot_change_after_features_ok():
    """3.1.1, step 6."""
    rig = Rig().start(VERSION_1)
    rig.driver.write(1, 8, 4, 0)
    rig.driver.write(1, 12, 4, 0b101)
    assert rig.device.driver_features == VERSION_1


def test_nothing_happens_before_driver_ok():
    """No buffer is taken."""
    rig = Rig()
    rig.driver.accept(ACCEPTED)
    rig.driver.set_queue(0, rig.rings[0].where)
    assert rig.echo(b"abc") == []
    rig.driver.go()
    rig.driver.notify(0)
    assert [answer for _, answer in rig.rings[0].collect()] == [b"cba"]


def test_queue_that_is_not_enabled_is_empty():
    """Its notifications do nothing."""
    rig = Rig()
    rig.driver.accept(ACCEPTED)
    rig.driver.set_queue(1, rig.rings[1].where)
    rig.driver.go()
    assert rig.echo(b"abc") == []
    assert rig.echo(b"abc", 1) == [b"cba"]


def test_no_dma_without_bus_mastering():
    """A function that may not master the bus leaves rings alone."""
    rig = Rig().start()
    rig.function.write_config(4, 2, 2)
    assert rig.echo(b"abc") == []


# Interrupts


def test_msix_vector_per_queue():
    """And none for a queue without one."""
    rig = Rig()
    rig.driver.enable_msix(3)
    rig.start()
    rig.echo(b"a")
    rig.echo(b"b", 1)
    assert rig.msi == [(0xFEE0_0000, 1), (0xFEE0_0000, 2)]
    rig.driver.write(1, 0x16, 2, 0)
    rig.driver.write(1, 0x1A, 2, 0xFFFF)
    rig.echo(b"c")
    assert len(rig.msi) == 2
    assert rig.driver.read(3, 0, 1) == 0
    assert not rig.pin


def test_intx_until_isr_is_read():
    """Without MSI-X; reading withdraws it, and says what it was."""
    rig = Rig().start()
    rig.echo(b"a")
    assert rig.pin
    assert rig.driver.read(3, 0, 1) == 1
    assert not rig.pin
    assert rig.driver.read(3, 0, 1) == 0


def test_vector_that_does_not_exist():
    """Reads back as none (4.1.5.1.2.1)."""
    rig = Rig()
    for vector, kept in ((2, 2), (3, 0xFFFF), (0xFFFE, 0xFFFF)):
        rig.driver.write(1, 0x10, 2, vector)
        assert rig.driver.read(1, 0x10, 2) == kept
        rig.driver.write(1, 0x1A, 2, vector)
        assert rig.driver.read(1, 0x1A, 2) == kept


def test_config_change():
    """New bytes, a new generation, an interrupt."""
    rig = Rig()
    rig.driver.enable_msix(3)
    rig.driver.write(1, 0x10, 2, 0)
    rig.device.config_changed()
    assert rig.msi == []
    rig.start()
    rig.driver.write(1, 0x10, 2, 0)
    before = rig.driver.read(1, 0x15, 1)
    rig.device.config[4:8] = b"news"
    rig.device.config_changed()
    assert rig.driver.read(4, 4, 4) == int.from_bytes(b"news", "little")
    assert rig.driver.read(1, 0x15, 1) == before + 1
    assert rig.msi == [(0xFEE0_0000, 0)]


def test_config_of_the_device():
    """Reads past its end give 0; writes reach the device."""
    rig = Rig()
    assert rig.driver.read(4, 0, 4) == 0x03020100
    assert rig.driver.read(4, 14, 4) == 0x0F0E
    assert rig.driver.read(4, 0xFFC, 4) == 0
    rig.driver.write(4, 3, 2, 0x1234)
    assert rig.device.log == [("config", 3, 2, 0x1234)]


# What goes wrong


def test_broken_ring_needs_reset():
    """The status says so, an interrupt too, nothing more happens until the reset."""
    rig = Rig()
    rig.driver.enable_msix(3)
    rig.start()
    rig.driver.write(1, 0x10, 2, 0)
    rig.break_ring()
    assert rig.driver.status == 15 | NEEDS_RESET
    assert rig.msi == [(0xFEE0_0000, 0)]
    assert len(rig.host.warnings) == 1
    assert "is not in memory" in rig.host.warnings[0]
    assert rig.echo(b"abc", 1) == []
    rig.rings = Rig().rings
    for ring in rig.rings:
        ring.ram = rig.host.ram
    rig.host.ram.data[:] = bytes(len(rig.host.ram.data))
    rig.start()
    assert rig.driver.status == 15
    assert rig.echo(b"abc", 1) == [b"cba"]


def test_device_can_find_a_request_senseless():
    """QueueError out of a device is the driver's fault as well."""
    rig = Rig().start()
    ring = rig.rings[0]
    for _ in range(9):
        table = ring.room(1 << 10)
    ring.descriptor(0, 0, 1 << 20, 1, 1)
    ring.descriptor(1, 0, 1 << 20, 0, 0)
    ring.publish(0)
    rig.driver.notify(0)
    assert table
    assert rig.driver.status & NEEDS_RESET
    assert "a request of 2097152 bytes" in rig.host.warnings[0]


@pytest.mark.parametrize(
    ("offset", "size", "value"), [(0x18, 2, 0), (0x18, 2, 15), (0x18, 2, 32), (0x20, 8, 8)]
)
def test_queue_that_cannot_be(offset, size, value):
    """A size that is none or too large, an address that is not aligned."""
    rig = Rig()
    rig.driver.accept(ACCEPTED)
    rig.driver.write(1, 0x18, 2, 16)
    rig.driver.write(1, offset, size, value)
    rig.driver.write(1, 0x1C, 2, 1)
    rig.driver.go()
    assert rig.driver.status & NEEDS_RESET
    assert len(rig.host.warnings) == 1


def test_queue_does_not_change_once_enabled():
    """Writes to its registers are lost then."""
    rig = Rig().start()
    rig.driver.write(1, 0x16, 2, 0)
    for offset, size in ((0x18, 2), (0x20, 4), (0x24, 4), (0x28, 8), (0x30, 8)):
        before = rig.driver.read(1, offset, size)
        rig.driver.write(1, offset, size, 0x40)
        assert rig.driver.read(1, offset, size) == before


def test_queue_that_does_not_exist():
    """Reads as size 0, and takes nothing."""
    rig = Rig()
    rig.driver.write(1, 0x16, 2, 7)
    assert rig.driver.read(1, 0x18, 2) == 0
    for offset, size in ((0x18, 2), (0x1A, 2), (0x1C, 2), (0x20, 8), (0x3A, 2)):
        rig.driver.write(1, offset, size, 1)
        assert rig.driver.read(1, offset, size) == 0
    assert rig.driver.read(1, 0x16, 2) == 7


# Reset


def test_reset_forgets_the_driver():
    """And starts afresh."""
    rig = Rig().start()
    rig.echo(b"abc")
    rig.driver.status = 0
    assert rig.driver.status == 0
    assert not rig.pin
    assert rig.driver.read(3, 0, 1) == 0
    rig.driver.write(1, 0x16, 2, 0)
    assert [rig.driver.read(1, at, 2) for at in (0x18, 0x1A, 0x1C)] == [16, 0xFFFF, 0]
    assert rig.echo(b"x") == []


def test_answer_that_comes_after_a_reset_is_dropped():
    """Nothing is written, nobody interrupted."""
    rig = Rig(Echo(late=True)).start()
    rig.rings[0].add([b"abc"], [3])
    rig.driver.notify(0)
    rig.driver.status = 0
    before = bytes(rig.host.ram.data[0x1000:0x8000])
    rig.device.finish()
    assert rig.host.ram.data[0x1000:0x8000] == before
    assert not rig.pin


def test_reset_lasts_until_the_device_is_quiet():
    """The driver polls the status meanwhile (4.1.4.3.1)."""

    class Slow(Echo):
        busy = False

        def quiesced(self):
            return not self.busy

    rig = Rig(Slow()).start()
    rig.device.busy = True
    rig.driver.status = 0
    assert rig.driver.status != 0
    rig.driver.status = 1
    assert rig.driver.status != 0
    rig.device.busy = False
    assert rig.driver.status == 0
    rig.start()
    assert rig.echo(b"abc") == [b"cba"]


def test_one_queue_is_reset():
    """VIRTIO_F_RING_RESET: the other goes on; it can be enabled again."""
    rig = Rig().start()
    rig.echo(b"abc")
    rig.driver.write(1, 0x16, 2, 0)
    rig.driver.write(1, 0x3A, 2, 1)
    assert rig.driver.read(1, 0x3A, 2) == 0
    assert rig.driver.read(1, 0x1C, 2) == 0
    assert rig.device.log[-1] == ("queue_reset", 0)
    assert rig.echo(b"abc", 1) == [b"cba"]
    rig.host.ram.data[0x1000:0x2000] = bytes(0x1000)
    rig.rings[0] = SplitDriver(rig.host.ram, 16, event_index=True)
    rig.driver.set_queue(0, rig.rings[0].where)
    assert rig.echo(b"new") == [b"wen"]


def test_one_queue_is_not_reset_without_the_feature():
    """The register does nothing."""
    rig = Rig().start(ACCEPTED & ~RING_RESET)
    rig.driver.write(1, 0x16, 2, 0)
    rig.driver.write(1, 0x3A, 2, 1)
    assert rig.echo(b"abc") == [b"cba"]


# The window in configuration space (4.1.4.9)


def test_window_reaches_the_registers():
    """Status, a queue's size and the device's configuration, without a BAR mapped."""
    rig = Rig()
    function, at = rig.function, rig.driver.window

    def aim(kind, offset, size):
        bar, start, _ = rig.driver.places[kind]
        function.write_config(at + 4, 1, bar)
        function.write_config(at + 8, 4, start + offset)
        function.write_config(at + 12, 4, size)

    aim(1, 0x14, 1)
    function.write_config(at + 16, 1, 3)
    assert rig.driver.status == 3
    assert function.read_config(at + 16, 1) == 3
    aim(4, 4, 4)
    assert function.read_config(at + 16, 4) == 0x07060504
    aim(1, 0x18, 2)
    assert function.read_config(at + 16, 2) == 16


@pytest.mark.parametrize(
    ("bar", "offset", "size"),
    [(0, 0, 3), (0, 2, 4), (0, 0x4000, 4), (0, 0xFFFF_FFFC, 4), (5, 0, 4)],
)
def test_window_that_makes_no_sense(bar, offset, size):
    """Nothing is read or written."""
    rig = Rig()
    at = rig.driver.window
    rig.function.write_config(at + 4, 1, bar)
    rig.function.write_config(at + 8, 4, offset)
    rig.function.write_config(at + 12, 4, size)
    rig.function.write_config(at + 16, 4, 0xFFFF_FFFF)
    assert rig.function.read_config(at + 16, 4) == 0xFFFF_FFFF
    assert rig.driver.status == 0


# State


@pytest.mark.parametrize("packed", [False, True])
def test_state_moves_to_another_machine(packed):
    """restore(state()) is the same state, and the guest goes on."""
    rig = Rig(packed=packed)
    rig.driver.enable_msix(3)
    rig.start(ACCEPTED | (PACKED if packed else 0))
    rig.echo(b"abc")
    rig.echo(b"de", 1)

    other = Rig(packed=packed)
    other.host.ram.data[:] = rig.host.ram.data
    other.rings = rig.rings
    for ring in rig.rings:
        ring.ram = other.host.ram
    other.function.restore(rig.function.state())

    assert other.function.state() == rig.function.state()
    assert other.device.log == [("restore", 0)]
    assert other.echo(b"xyz") == [b"zyx"]
    assert other.msi == [(0xFEE0_0000, 1)]


def test_notification_on_its_way_is_not_lost():
    """A request whose notification was not seen before the state was taken is served."""
    rig = Rig().start()
    rig.rings[0].add([b"abc"], [3])
    other = Rig()
    other.host.ram.data[:] = rig.host.ram.data
    rig.rings[0].ram = other.host.ram
    other.function.restore(rig.function.state())
    assert other.function.state() == rig.function.state()
    other.host.turn()
    assert [answer for _, answer in rig.rings[0].collect()] == [b"cba"]


def test_state_of_a_device_at_rest():
    """Before any driver came."""
    rig = Rig()
    other = Rig()
    other.start()
    other.function.restore(rig.function.state())
    assert other.function.state() == rig.function.state()


def test_state_whose_memory_is_not_there():
    """A record that does not fit the memory is a broken ring, no traceback."""
    rig = Rig().start()
    state = rig.function.state()
    other = Rig()
    del other.host.ram.data[0x1000:]
    other.function.restore(state)
    assert other.driver.status & NEEDS_RESET
    assert len(other.host.warnings) == 1
