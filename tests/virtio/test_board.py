"""Virtio devices on a board, on both engines, with guests of a few instructions."""

from __future__ import annotations

import threading
import time

import pytest

from kvmkit.board.bus import TracingBus
from kvmkit.board.power import EndKind
from kvmkit.devices.pci_device import PciDevice
from kvmkit.engine.cpu import flat_protected_mode
from kvmkit.errors import GuestAddressError, KvmkitError, UsageError
from kvmkit.virtio.pci import NOTIFY
from kvmkit.vm import VM, make_engine
from tests.board.machine import CODE, FOREVER, POWER_OFF, make_board
from tests.virtio.mock import Echo, PciDriver, SplitDriver

ACCEPTED = 1 << 32 | 1 << 28 | 1 << 29
RING = 0x10_0000


@pytest.fixture(
    params=[
        pytest.param("kvm", marks=pytest.mark.kvm),
        pytest.param("soft", marks=pytest.mark.soft),
    ]
)
def engine(request):
    """Each test runs on either engine; skips if this host has none."""
    try:
        return make_engine(request.param, 1)
    except KvmkitError as error:
        pytest.skip(f"{request.param}: {error}")


class BoardRam:
    """A board's memory as the mock drivers want it: ``data`` as one array."""

    def __init__(self, ram):
        self.data = ram.view(0, 8 << 20)
        self.read = ram.read


class Signal(Echo):
    """Tells when it was notified, and on which thread."""

    def __init__(self):
        super().__init__()
        self.done = threading.Event()
        self.thread = ""
        self.closed = self.drained = 0

    def notified(self, index):
        super().notified(index)
        self.thread = threading.current_thread().name
        self.done.set()

    def drain(self):
        self.drained += 1

    def close(self):
        self.closed += 1


def store16(address, value):
    """mov word ptr [address], value; in 32-bit code."""
    return b"\x66\xc7\x05" + address.to_bytes(4, "little") + value.to_bytes(2, "little")


def prepared(engine, after=FOREVER, **config):
    """A board with a Signal whose driver, the test, has a request ready; the guest's
    only instruction is the notification."""
    entry = flat_protected_mode(CODE, gdt=0x500)
    code = bytearray(64)
    board = make_board(engine, code, entry=entry, **config)
    device = Signal()
    function = board.add_virtio(device)
    bar = function.bars[0].address
    code[:] = (store16(bar + NOTIFY, 0) + after).ljust(64, b"\x90")
    board.ram.write(CODE, code)
    driver = PciDriver(function)
    assert driver.accept(ACCEPTED)
    ring = SplitDriver(BoardRam(board.ram), 16, event_index=True, base=RING)
    driver.set_queue(0, ring.where)
    driver.go()
    ring._next_buffer = ring._buffers_start = RING + 0x1_0000
    ring.add([b"hello"], [8])
    return board, device, function, ring


def test_guest_notifies_the_device(engine):
    """KVM tells the I/O thread by eventfd, without an exit; the software CPU calls."""
    board, device, function, ring = prepared(engine)
    accesses = []
    try:
        board.start(TracingBus(board.bus, lambda *access: accesses.append(access)))
        assert device.done.wait(10)
        assert [answer for _, answer in ring.collect()] == [b"olleh"]
        stores = [access for access in accesses if access[0] == "store"]
        if engine.name == "kvm":
            assert (device.thread, stores) == ("io", [])
        else:
            assert device.thread == "vcpu"
            assert stores == [("store", function.bars[0].address + NOTIFY, 2, 0)]
    finally:
        board.close()
    assert device.closed == 1


def test_device_moves_with_its_bar(engine):
    """A BAR that is programmed elsewhere takes its notifications along."""
    board, device, function, ring = prepared(engine)
    try:
        old = function.bars[0].address
        function.write_config(0x10, 4, old + 0x100_0000)
        assert function.bars[0].address == old + 0x100_0000
        board.ram.write(CODE, store16(old + 0x100_0000 + NOTIFY, 0) + FOREVER)
        board.start()
        assert device.done.wait(10)
        assert [answer for _, answer in ring.collect()] == [b"olleh"]
    finally:
        board.close()


def test_reset_resets_devices(engine):
    """Drained, then reset: the driver is forgotten, the BARs are assigned again."""
    board, device, function, _ring = prepared(engine)
    try:
        board.start()
        assert device.done.wait(10)
        where = function.bars[0].address
        board.reset()
        assert device.drained == 1
        assert device.log[-1] == ("reset",)
        assert function.bars[0].address == where
        assert function.transport.status == 0
    finally:
        board.close()


def test_broken_ring_is_a_warning_of_the_board(engine):
    """The machine runs on."""
    board, _device, _function, ring = prepared(engine)
    heard = []
    board.warning_listeners.append(heard.append)
    try:
        ring.descriptor(15, 1 << 50, 1, 0, 0)
        board.start()
        limit = time.monotonic() + 10
        while not heard and time.monotonic() < limit:
            time.sleep(0.01)
        assert "echo: the driver broke a rule" in board.warnings[0]
        assert heard == list(board.warnings)
        assert board.power.ending is None
    finally:
        board.close()


def test_state_of_a_board_holds_its_devices(engine):
    """Through the PCI bus's record."""
    board, _device, function, _ring = prepared(engine, POWER_OFF)
    try:
        state = board.pci.bus.state()
        board.pci.bus.restore(state)
        assert board.pci.bus.state() == state
        assert function.transport.live
    finally:
        board.close()


def test_backends_reach_the_device(engine):
    """call_soon runs under the lock, on the I/O thread."""
    board, device, _function, _ring = prepared(engine)
    try:
        seen = []
        done = threading.Event()

        def action():
            seen.append(threading.current_thread().name)
            done.set()

        def broken():
            raise GuestAddressError("nothing there")

        board.start()
        device.call_soon(action)
        assert done.wait(10)
        assert seen == ["io"]
        device.call(broken)
        assert "nothing there" in board.warnings[-1]
    finally:
        board.close()


def test_vm_takes_devices_before_its_start(tmp_path):
    """Not after."""
    vm = VM(tmp_path / "none")
    vm.add_virtio(Echo())
    vm.close()
    with pytest.raises(UsageError, match="before a VM starts"):
        vm.add_virtio(Echo())


def test_bus_has_31_places(engine):
    """The 32nd device is one too many."""
    board = make_board(engine)
    try:
        for _ in range(31):
            board.add_virtio(Echo())
        with pytest.raises(UsageError, match="free slot"):
            board.add_virtio(Echo())
    finally:
        board.close()
    assert board.power.ending is None or board.power.ending.kind is EndKind.KILLED


class Patcher(PciDevice):
    """A write stores code by DMA: mov al, value; ret."""

    def write(self, offset, size, value):
        self.dma_write(0x3000, bytes((0xB0, value & 0xFF, 0xC3)))


def test_code_that_a_device_stores_is_run(engine):
    """Also where the old code was just translated."""
    board = make_board(engine, bytes(64), entry=flat_protected_mode(CODE, gdt=0x500))
    try:
        device = Patcher()
        board.add_device(device)
        device.write_config(4, 2, 6)
        call = b"\xbb\x00\x30\x00\x00\xff\xd3"  # mov ebx, 0x3000; call ebx
        say = b"\x66\xba\xf8\x03\xee"  # mov dx, 0x3f8; out dx, al
        code = b"\xbc\x00\x80\x00\x00"  # mov esp, 0x8000
        for letter in b"ab":
            code += store16(device.bars[0].address, letter) + call + say
        code += b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef" + FOREVER  # S5
        board.ram.write(CODE, code)
        board.start()
        ending = board.power.wait(10)
        assert ending is not None and ending.kind is EndKind.POWERED_OFF
        assert board.serial.console.log == b"ab"
    finally:
        board.close()
