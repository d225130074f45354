"""Interrupts by eventfd: read by KVM where it can, by the I/O thread otherwise."""

from __future__ import annotations

import os
import time

import pytest

from kvmkit.errors import KvmkitError
from kvmkit.vm import make_engine
from tests.board.fake_engine import FakeEngine
from tests.board.machine import HALT, make_board
from tests.virtio.mock import Echo, PciDriver, SplitDriver
from tests.virtio.test_board import ACCEPTED, BoardRam

ADDRESS = 0xFEE0_0000


class KernelEngine(FakeEngine):
    """KVM's calls for interrupts, noted."""

    def __init__(self):
        super().__init__()
        self.routes = {}
        self.joined = {}

    def route_msi(self, gsi, address, data):
        self.routes[gsi] = address, data

    def irqfd(self, fd, gsi, *, remove=False):
        if remove:
            del self.joined[fd]
        else:
            assert fd not in self.joined
            self.joined[fd] = gsi


def until(condition):
    """Wait for it; whether it came."""
    limit = time.monotonic() + 5
    while not condition() and time.monotonic() < limit:
        time.sleep(0.005)
    return condition()


def set_up(engine):
    """A board with an Echo whose driver uses MSI-X vectors 1 and 2; started."""
    board = make_board(engine, HALT)
    function = board.add_virtio(Echo())
    driver = PciDriver(function)
    driver.enable_msix(3)
    assert driver.accept(ACCEPTED)
    for index in (0, 1):
        base = 0x10_0000 + 0x8000 * index
        driver.set_queue(index, SplitDriver(BoardRam(board.ram), 16, base=base).where, index + 1)
    driver.go()
    return board, function, driver


def mask(function, vector, on):
    """A vector's mask bit."""
    function.bars[1].device.write(16 * vector + 12, 4, int(on))


def test_kernel_reads_the_eventfd_of_an_open_vector():
    """A GSI and a route for each queue; they follow the vector."""
    engine = KernelEngine()
    board, function, driver = set_up(engine)
    try:
        fds = [board.call_fd(function, queue) for queue in (0, 1)]
        assert board.call_fd(function, 0) == fds[0]
        assert engine.joined == {fds[0]: 24, fds[1]: 25}
        assert engine.routes == {24: (ADDRESS, 1), 25: (ADDRESS, 2)}
        driver.write(1, 0x16, 2, 0)
        driver.write(1, 0x1A, 2, 2)
        assert engine.routes[24] == (ADDRESS, 2)
        function.bars[1].device.write(16 * 2 + 8, 4, 0x55)
        assert engine.routes == {24: (ADDRESS, 0x55), 25: (ADDRESS, 0x55)}
    finally:
        board.close()


def test_masked_vector_stays_pending():
    """The I/O thread takes over; what it reads goes out when the mask is lifted."""
    engine = KernelEngine()
    board, function, _driver = set_up(engine)
    try:
        board.start()
        fd = board.call_fd(function, 0)
        mask(function, 1, True)
        assert engine.joined == {}
        os.eventfd_write(fd, 1)
        assert until(lambda: function.msix.pending(1))
        assert engine.messages == []
        mask(function, 1, False)
        assert engine.messages == [(ADDRESS, 1)]
        assert engine.joined == {fd: 24}
    finally:
        board.close()


def test_interrupt_pin_without_msix():
    """INTx and the ISR."""
    engine = KernelEngine()
    board, function, driver = set_up(engine)
    try:
        board.start()
        fd = board.call_fd(function, 0)
        at = function.read_config(0x34, 1)
        while function.read_config(at, 1) != 0x11:
            at = function.read_config(at + 1, 1)
        function.write_config(at + 2, 2, 0)
        assert engine.joined == {}
        os.eventfd_write(fd, 1)
        assert until(lambda: engine.lines)
        assert driver.read(3, 0, 1) == 1
    finally:
        board.close()


def test_kernel_without_routes():
    """A KVM that has none left: the I/O thread does it."""
    engine = KernelEngine()

    def refuse(gsi, address, data):
        raise OSError("no more")

    engine.route_msi = refuse
    board, function, _driver = set_up(engine)
    try:
        board.start()
        os.eventfd_write(board.call_fd(function, 1), 1)
        assert until(lambda: engine.messages == [(ADDRESS, 2)])
    finally:
        board.close()


@pytest.mark.kvm
def test_kvm_takes_routes_and_eventfds():
    """On the real device: joined, left and joined again; the eventfd is read at once."""
    try:
        engine = make_engine("kvm", 1)
    except KvmkitError as error:
        pytest.skip(str(error))
    board, function, _driver = set_up(engine)
    try:
        board.start()
        fd = board.call_fd(function, 0)
        for _ in range(3):
            os.eventfd_write(fd, 1)
            assert until(lambda: not _readable(fd))
            mask(function, 1, True)
            os.eventfd_write(fd, 1)
            assert until(lambda: function.msix.pending(1))
            mask(function, 1, False)
    finally:
        board.close()


@pytest.mark.soft
def test_software_cpu_has_the_io_thread_read():
    """The message reaches the local APIC's model."""
    board, function, _driver = set_up(make_engine("soft", 1))
    sent = []
    function.msix._msi = lambda address, data: sent.append((address, data))
    try:
        board.start()
        os.eventfd_write(board.call_fd(function, 0), 1)
        assert until(lambda: sent == [(ADDRESS, 1)])
    finally:
        board.close()


def _readable(fd):
    import select

    return bool(select.select([fd], [], [], 0)[0])
