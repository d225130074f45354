"""The memory-mapped transport, from its driver's side."""

from __future__ import annotations

import random

import pytest

from kvmkit.virtio import mmio
from kvmkit.virtio.mmio import VirtioMmio
from tests.devices.fakes import RecordingLine
from tests.virtio.mock import Echo, FakeHost, SplitDriver

ACCEPTED = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40
NEEDS_RESET = 64


class Rig:
    """An Echo behind registers, and its driver."""

    def __init__(self):
        self.host = FakeHost()
        self.device = Echo()
        self.line = RecordingLine()
        self.mmio = VirtioMmio(self.device, self.host, self.line)
        self.rings = [SplitDriver(self.host.ram, 16, base=base) for base in (0x1000, 0x5000)]

    def __getitem__(self, register):
        return self.mmio.read(register, 4)

    def __setitem__(self, register, value):
        self.mmio.write(register, 4, value)

    def start(self, features=ACCEPTED & ~(1 << 29)):
        """4.2.3.1, and 3.1.1."""
        for status in (0, 1, 3):
            self[mmio.STATUS] = status
        for half in (0, 1):
            self[mmio.DRIVER_FEATURES_SEL] = half
            self[mmio.DRIVER_FEATURES] = features >> 32 * half & 0xFFFF_FFFF
        self[mmio.STATUS] = 11
        assert self[mmio.STATUS] == 11
        for index, ring in enumerate(self.rings):
            self.set_queue(index, ring.where)
        self[mmio.STATUS] = 15
        return self

    def set_queue(self, index, where):
        self[mmio.QUEUE_SEL] = index
        self[mmio.QUEUE_NUM] = where.size
        for register, address in (
            (mmio.QUEUE_DESC, where.descriptors),
            (mmio.QUEUE_DRIVER, where.driver),
            (mmio.QUEUE_DEVICE, where.device),
        ):
            self[register] = address & 0xFFFF_FFFF
            self[register + 4] = address >> 32
        self[mmio.QUEUE_READY] = 1

    def echo(self, data, index=0):
        ring = self.rings[index]
        ring.add([data], [len(data)])
        self[mmio.QUEUE_NOTIFY] = index
        return [answer for _, answer in ring.collect()]


def test_identity():
    """Magic value, version, what it is and what it offers."""
    rig = Rig()
    assert rig[mmio.MAGIC].to_bytes(4, "little") == b"virt"
    assert (rig[mmio.VERSION], rig[mmio.DEVICE_ID]) == (2, 42)
    features = 0
    for half in (0, 1):
        rig[mmio.DEVICE_FEATURES_SEL] = half
        features |= rig[mmio.DEVICE_FEATURES] << 32 * half
    assert features == ACCEPTED | 0b101
    for queue, size in ((0, 16), (1, 16), (2, 0)):
        rig[mmio.QUEUE_SEL] = queue
        assert rig[mmio.QUEUE_NUM_MAX] == size


def test_requests_and_interrupts():
    """The line is high until everything is acknowledged."""
    rig = Rig().start()
    assert rig.echo(b"abc") == [b"cba"]
    assert rig.line.level
    rig.device.config_changed()
    assert rig[mmio.INTERRUPT_STATUS] == 3
    rig[mmio.INTERRUPT_ACK] = 1
    assert rig.line.level
    rig[mmio.INTERRUPT_ACK] = 2
    assert not rig.line.level
    assert rig.echo(b"12", 1) == [b"21"]


def test_configuration():
    """Any width, at any offset; a generation."""
    rig = Rig()
    assert rig.mmio.read(mmio.CONFIG + 1, 2) == 0x0201
    rig.mmio.write(mmio.CONFIG + 3, 1, 9)
    assert rig.device.log == [("config", 3, 1, 9)]
    before = rig[mmio.CONFIG_GENERATION]
    rig.device.config_changed()
    assert rig[mmio.CONFIG_GENERATION] == before + 1


def test_no_shared_memory():
    """Length and base are all ones."""
    rig = Rig()
    rig[mmio.SHM_SEL] = 0
    assert {rig[at] for at in range(0xB0, 0xC0, 4)} == {0xFFFF_FFFF}


@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_are_32_bits_wide(size):
    """Others find nothing (4.2.2.2)."""
    rig = Rig()
    assert rig.mmio.read(mmio.MAGIC, size) == 0
    rig.mmio.write(mmio.STATUS, size, 1)
    assert rig[mmio.STATUS] == 0


def test_queue_is_taken_back():
    """QueueReady 0, then set up elsewhere."""
    rig = Rig().start()
    rig.echo(b"abc")
    rig[mmio.QUEUE_SEL] = 0
    rig[mmio.QUEUE_READY] = 0
    assert rig[mmio.QUEUE_READY] == 0
    assert rig.device.log[-1] == ("queue_reset", 0)
    rig.rings[0] = SplitDriver(rig.host.ram, 8, base=0x9000)
    rig.set_queue(0, rig.rings[0].where)
    assert rig.echo(b"new") == [b"wen"]


def test_reset_and_broken_ring():
    """NEEDS_RESET with an interrupt; the reset lowers the line."""
    rig = Rig().start()
    rig.rings[0].publish(77)
    rig[mmio.QUEUE_NOTIFY] = 0
    assert rig[mmio.STATUS] & NEEDS_RESET
    assert rig[mmio.INTERRUPT_STATUS] == 2
    rig[mmio.STATUS] = 0
    assert (rig[mmio.STATUS], rig.line.level) == (0, False)
    assert rig.host.warnings == [
        "echo: the driver broke a rule: descriptor 77 of 16; stopped until reset"
    ]


def test_state_moves_to_another_machine():
    """restore(state()) is the same state, the line as it was, and the guest goes on."""
    rig = Rig().start()
    rig.echo(b"abc")
    other = Rig()
    other.host.ram.data[:] = rig.host.ram.data
    other.rings = rig.rings
    for ring in other.rings:
        ring.ram = other.host.ram
    other.mmio.restore(rig.mmio.state())
    assert other.mmio.state() == rig.mmio.state()
    assert other.line.level
    assert other.echo(b"xyz") == [b"zyx"]
    other.mmio.reset()
    assert not other.line.level


def test_any_access_is_survived():
    """Random registers, widths and values."""
    generator = random.Random(3)
    for _ in range(30):
        rig = Rig().start()
        for _ in range(200):
            size = generator.choice((1, 2, 4, 4, 4, 4, 8))
            offset = generator.choice((generator.randrange(0x110), generator.randrange(64) * 4))
            if generator.random() < 0.3:
                assert 0 <= rig.mmio.read(offset, size) < 1 << 8 * size
            else:
                value = generator.choice((0, 1, generator.randrange(1 << 8 * size)))
                rig.mmio.write(offset, size, value)
        rig.host.turn()
