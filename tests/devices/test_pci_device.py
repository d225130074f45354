"""Devices of one's own: the base class, the example, and how they are found by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from zlib import crc32

import pytest

from kvmkit.board.load_device import load_device
from kvmkit.board.power import EndKind
from kvmkit.cli.values import device as device_value
from kvmkit.devices.pci import PciBus
from kvmkit.devices.pci_device import PciDevice
from kvmkit.engine.cpu import flat_protected_mode
from kvmkit.errors import KvmkitError, UsageError
from kvmkit.virtio.transport import Transport
from kvmkit.vm import make_engine
from tests.board.machine import CODE, FOREVER, make_board
from tests.virtio.mock import FakeHost, MsiLog, SplitDriver

EXAMPLE = Path(__file__).parents[2] / "examples/pci_device.py"


def example():
    """The module of the example."""
    spec = importlib.util.spec_from_file_location("pci_device", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Rig:
    """``device`` on a bus, with a memory of 1 MiB and as a bus master."""

    def __init__(self, device):
        self.device = device
        self.host = FakeHost()
        self.msi = MsiLog()
        self.pins = {}
        device.attach(self.host, self.msi)
        bus = PciBus(
            lambda function, bar, address: None,
            lambda number: lambda level: self.pins.__setitem__(number, level),
        )
        bus.add(device, 1)
        device.write_config(4, 2, 6)

    def compute(self, address, length, result):
        self.device.write(0, 8, address)
        self.device.write(8, 4, length)
        self.device.write(0x10, 8, result)
        self.device.write(0x0C, 4, 1)


def test_example_computes_and_interrupts():
    """By INTA, until it is acknowledged."""
    rig = Rig(example().Crc32())
    rig.host.ram.write(0x1000, b"some bytes")
    rig.compute(0x1000, 10, 0x2000)
    assert rig.host.ram.read(0x2000, 4) == crc32(b"some bytes").to_bytes(4, "little")
    assert rig.device.read(0x0C, 4) == 1
    assert rig.pins[1]
    rig.device.write(0x0C, 4, 2)
    assert not rig.pins[1]
    assert rig.device.read(0x0C, 4) == 0


def test_dma_outside_memory_is_as_on_a_bus():
    """Reads give all ones, writes are lost, nothing is raised."""
    rig = Rig(example().Crc32())
    rig.compute((1 << 64) - 4, 8, 0x2000)
    assert rig.host.ram.read(0x2000, 4) == crc32(b"\xff" * 8).to_bytes(4, "little")
    before = bytes(rig.host.ram.data)
    rig.compute(0x1000, 8, 1 << 40)
    assert rig.host.ram.data == before


def test_no_dma_without_bus_mastering():
    """The command register decides."""
    rig = Rig(example().Crc32())
    rig.device.write_config(4, 2, 2)
    rig.compute(0x1000, 8, 0x2000)
    assert rig.host.ram.told == []


def test_interrupt_by_msix():
    """A guest that has enabled it."""
    rig = Rig(example().Crc32())
    table = rig.device.bars[1].device
    table.write(0, 8, 0xFEE0_0000)
    table.write(8, 8, 0x31)
    at = rig.device.read_config(0x34, 1)
    rig.device.write_config(at + 2, 2, 0x8000)
    rig.compute(0, 8, 0x2000)
    assert rig.msi == [(0xFEE0_0000, 0x31)]
    assert not rig.pins.get(1)


def test_state_and_reset():
    """restore(state()) is the same; a reset clears it."""
    rig = Rig(example().Crc32())
    rig.compute(0x1000, 10, 0x2000)
    other = Rig(example().Crc32())
    other.device.restore(rig.device.state())
    assert other.device.state() == rig.device.state()
    assert other.pins[1]
    other.device.reset()
    assert other.device.read(0x0C, 4) == 0
    assert not other.pins[1]


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("kvm", marks=pytest.mark.kvm),
        pytest.param("soft", marks=pytest.mark.soft),
    ],
)
def test_guest_uses_the_example(engine):
    """Registers and DMA, by a guest on either engine."""
    try:
        cpu = make_engine(engine, 1)
    except KvmkitError as error:
        pytest.skip(f"{engine}: {error}")
    code = bytearray(128)
    board = make_board(cpu, code, entry=flat_protected_mode(CODE, gdt=0x500))
    try:
        device = example().Crc32()
        board.add_device(device)
        device.write_config(4, 2, 6)
        bar = device.bars[0].address
        stores = ((0, CODE), (8, 128), (0x10, 0x3000), (0xC, 1))
        program = b"".join(
            b"\xc7\x05" + (bar + offset).to_bytes(4, "little") + value.to_bytes(4, "little")
            for offset, value in stores
        )
        program += b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef"  # out 0x604, 0x3400: S5
        program = (program + FOREVER).ljust(128, b"\x90")
        board.ram.write(CODE, program)
        board.start()
        ending = board.power.wait(10)
        assert ending is not None and ending.kind is EndKind.POWERED_OFF
        assert board.ram.read_u32(0x3000) == crc32(program)
    finally:
        board.close()


def test_examples_of_the_manual_work():
    """Both classes of docs/devices.md, as they are printed."""
    text = (EXAMPLE.parents[1] / "docs/devices.md").read_text()
    names = {}
    for block in text.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    adder = Rig(names["Adder"](start="5"))
    adder.device.write(0, 4, 90)
    assert adder.device.read(0, 4) == 95
    assert not adder.pins.get(1)
    adder.device.write(0, 1, 10)
    assert adder.pins[1]

    host = FakeHost()
    transport = Transport(names["Zeros"](), host, lambda vector: None, lambda vector: None)
    driver = SplitDriver(host.ram, 64)
    transport.device.queues[0] = driver.device_queue()
    driver.add([], [5, 5])
    transport.device.notified(0)
    assert [data for _, data in driver.collect()] == [bytes(10)]


# By name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a module ``mine``."""
    (tmp_path / "mine.py").write_text(
        "from kvmkit.devices.pci_device import PciDevice\n"
        "class Mine(PciDevice):\n"
        "    def __init__(self, size='1'):\n"
        "        super().__init__()\n"
        "        self.size = int(size)\n"
        "class Other: pass\n"
    )
    (tmp_path / "bad.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_device_is_found_in_the_current_directory(here):
    """With its arguments."""
    before = list(sys.path)
    device = load_device("mine:Mine", {"size": "7"})
    assert isinstance(device, PciDevice)
    assert device.size == 7
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("mine", {}, "a device is module:Class, not 'mine'"),
        ("none_such:X", {}, "'none_such' cannot be loaded: ModuleNotFoundError"),
        ("bad:X", {}, "'bad' cannot be loaded: ZeroDivisionError"),
        ("mine:None_", {}, "expected a class derived from"),
        ("mine:Other", {}, "expected a class derived from"),
        ("mine:Mine", {"size": "x"}, "invalid literal"),
        ("mine:Mine", {"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_device_that_cannot_be(here, name, arguments, text):
    """One clear line each."""
    with pytest.raises(UsageError, match=text) as caught:
        load_device(name, arguments)
    assert "\n" not in str(caught.value)


def test_option_value():
    """module:Class, then arguments."""
    assert device_value("a.b:C") == ("a.b:C", {})
    assert device_value("m:C,x=1,y=a=b") == ("m:C", {"x": "1", "y": "a=b"})
    for text in ("", "m", ":C", "m:", "m:C,x", "m:C,=1"):
        with pytest.raises(ValueError, match="module:Class"):
            device_value(text)
