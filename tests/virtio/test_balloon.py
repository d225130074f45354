"""The balloon, from its driver's side, and what the board's memory gives back."""

from __future__ import annotations

import os
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board.memory import GuestMemory
from kvmkit.errors import GuestAddressError
from kvmkit.virtio.balloon import Balloon
from kvmkit.virtio.pci import VirtioPci
from tests.virtio.console_driver import WatchingHost
from tests.virtio.mock import FakeRam, MsiLog, PciDriver, SplitDriver

RING = 1 << 28 | 1 << 29 | 1 << 32
STATS, OOM, REPORTING = 1 << 1, 1 << 2, 1 << 5
PAGE = 4096


class Ram(FakeRam):
    """Keeps what was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[int, int]] = []

    def give_back(self, address: int, size: int) -> int:
        self.view(address, size)
        self.given.append((address, size))
        return size


class BalloonDriver:
    """Brings the device up."""

    def __init__(self, **options: bool) -> None:
        self.device = Balloon(**options)
        self.host = WatchingHost()
        self.ram = self.host.ram = Ram()
        self.pci = PciDriver(VirtioPci(self.device, self.host, MsiLog()))
        self.pci.accept(RING | self.pci.offered() & 0xFF)
        self.queues = []
        for index in range(5):
            queue = SplitDriver(self.ram, 16, base=0x1000 + 0x2000 * index)
            queue._next_buffer = queue._buffers_start = 0x4_0000 + 0x1_0000 * index
            self.queues.append(queue)
            self.pci.set_queue(index, queue.where)
        self.pci.go()

    def send(self, index: int, data: bytes) -> int:
        """Put a request there; how many have been done since the last."""
        self.queues[index].add([data] if data else (), [] if data else [1])
        self.pci.notify(index)
        return len(list(self.queues[index].collect()))

    @property
    def broken(self) -> bool:
        return bool(self.pci.status & 64)


@pytest.fixture
def driver():
    return BalloonDriver()


def numbers(*pages):
    return pack(f"<{len(pages)}I", *pages)


def test_features():
    """Statistics always; the others may be left out."""
    assert BalloonDriver().pci.offered() & 0xFF == STATS | OOM | REPORTING
    bare = BalloonDriver(deflate_on_oom=False, reporting=False)
    assert bare.pci.offered() & 0xFF == STATS


def test_inflation_gives_pages_back(driver):
    """In runs, whatever order they are named in."""
    assert driver.send(0, numbers(7, 3, 4, 100, 5)) == 1
    assert driver.ram.given == [(3 * PAGE, 3 * PAGE), (7 * PAGE, PAGE), (100 * PAGE, PAGE)]


def test_deflation_is_acknowledged(driver):
    """And nothing else happens."""
    assert driver.send(1, numbers(7)) == 1
    assert driver.ram.given == []


@pytest.mark.parametrize("index", [3, 4])
def test_reports_give_ranges_back(driver, index):
    """On the queue of the specification, and on that of Linux."""
    driver.queues[index].add(writable=[PAGE, PAGE])
    driver.pci.notify(index)
    assert [size for _, size in driver.ram.given] == [PAGE, PAGE]
    assert driver.device.reported == 2 * PAGE
    assert len(list(driver.queues[index].collect())) == 1


@pytest.mark.parametrize("data", [b"abc", numbers(0xFFFF_FFFF), numbers(3, 256), numbers(1 << 20)])
def test_pages_that_are_not_there(driver, data):
    """The device stops with a reason."""
    driver.send(0, data)
    assert driver.broken and driver.host.warnings


def test_target_and_actual(driver):
    """num_pages is ours, actual the driver's."""
    driver.device.set_target(10 * PAGE + 5)
    driver.host.turn()
    assert driver.pci.read(4, 0, 4) == 10
    assert driver.pci.read(1, 0x15, 1) == 1
    driver.pci.write(4, 4, 4, 8)
    driver.pci.write(4, 0, 4, 99)
    assert driver.device.actual == 8 * PAGE
    assert (driver.pci.read(4, 0, 4), driver.pci.read(4, 4, 4)) == (10, 8)


def test_target_waits_for_the_end_of_a_pause(driver):
    """The configuration has it; the interrupt comes later."""
    driver.host.paused = True
    driver.device.set_target(PAGE)
    driver.host.turn()
    assert driver.pci.read(1, 0x15, 1) == 0
    driver.host.paused = False
    driver.device.resumed()
    driver.host.turn()
    assert driver.pci.read(1, 0x15, 1) == 1


def stats(*pairs):
    return b"".join(pack("<HQ", *pair) for pair in pairs)


def test_statistics(driver):
    """The buffer is kept, and given back to ask for another."""
    assert driver.send(2, stats((4, 1 << 33), (5, 2), (99, 7))) == 0
    found = driver.device.ask(0)
    assert found.values == {"free": 1 << 33, "total": 2}
    heard = []
    driver.device._ask(lambda: heard.append(1))
    assert len(list(driver.queues[2].collect())) == 1 and not heard
    driver.send(2, stats((4, 5)))
    assert heard == [1] and driver.device.ask(0).values == {"free": 5}


def test_statistics_put_before_the_start():
    """Linux does so, and its notification comes too early to be heard."""
    driver = BalloonDriver()
    driver.pci.accept(RING | STATS)
    driver.ram.data[0x1000:0x4_0000] = bytes(0x3_F000)
    queue = SplitDriver(driver.ram, 16, base=0x1000)
    queue.add([stats((5, 9))])
    driver.pci.set_queue(2, queue.where)
    driver.pci.go()
    assert driver.device.ask(0).values == {"total": 9}


def test_more_buffers_than_one(driver):
    """The older goes back."""
    driver.send(2, stats((4, 1)))
    assert driver.send(2, stats((4, 2))) == 1


@pytest.mark.parametrize("data", [b"x" * 9, b"x" * 1030, b"x" * 11])
def test_statistics_that_are_none(driver, data):
    """The device stops with a reason."""
    driver.send(2, data)
    assert driver.broken


def test_at_rest_nothing_is_under_way(driver):
    """Before a snapshot the buffer goes back to its ring."""
    driver.send(2, stats((4, 1)))
    driver.device.drain()
    assert driver.device.queues[2].in_flight == 0
    assert len(list(driver.queues[2].collect())) == 1


def test_state(driver):
    """Target and actual survive."""
    driver.device.set_target(8 * PAGE)
    driver.pci.write(4, 4, 4, 3)
    state = driver.device.state()
    other = BalloonDriver()
    other.device.restore(state)
    assert other.device.state() == state
    assert (other.pci.read(4, 0, 4), other.pci.read(4, 4, 4)) == (8, 3)


def test_reset(driver):
    """The guest has all its memory, and is asked anew."""
    driver.device.set_target(8 * PAGE)
    driver.host.turn()
    driver.pci.write(4, 4, 4, 8)
    driver.send(2, stats((4, 1)))
    driver.pci.status = 0
    assert driver.device.actual == 0
    assert driver.pci.read(4, 0, 4) == 8


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.one_of(
                st.binary(max_size=40), st.lists(st.integers(0, 300)).map(lambda n: numbers(*n))
            ),
        ),
        max_size=10,
    )
)
def test_any_driver_is_survived(requests):
    """Pages outside are refused, nothing else is touched."""
    driver = BalloonDriver()
    for index, data in requests:
        driver.send(index, data)
        driver.host.turn()
        for address, size in driver.ram.given:
            assert 0 <= address <= address + size <= 1 << 20
    driver.pci.status = 0
    assert not driver.pci.status


# The memory itself


@pytest.fixture
def memory():
    memory = GuestMemory(32 << 20)
    yield memory
    memory.close()


def test_memory_goes_back_to_the_host(memory):
    """The host has the pages, the guest zeroes; code there is forgotten."""
    told = []
    memory.fill(0, 8 << 20, 0xAA)
    memory.on_write = lambda *place: told.append(place)
    before = memory.resident()
    assert memory.give_back(1 << 20, 4 << 20) == 4 << 20
    assert memory.resident() == before - (4 << 20)
    assert memory.read((1 << 20) - 1, 2) == b"\xaa\0"
    assert memory.read((5 << 20) - 1, 2) == b"\0\xaa"
    assert told == [(1 << 20, 4 << 20)]


def test_only_whole_pages(memory):
    """What else is on a page stays."""
    memory.fill(0, 3 * PAGE, 1)
    assert memory.give_back(100, 2 * PAGE) == PAGE
    assert memory.read(0, PAGE) == b"\1" * PAGE
    assert memory.read(PAGE, PAGE) == bytes(PAGE)
    assert memory.give_back(2 * PAGE + 1, PAGE - 1) == 0
    assert memory.read(2 * PAGE, PAGE) == b"\1" * PAGE


def test_outside_memory(memory):
    """As with every access."""
    with pytest.raises(GuestAddressError):
        memory.give_back(32 << 20, PAGE)


def test_private_memory_goes_back_to_what_it_was(tmp_path):
    """A guest that goes on from a snapshot shares the file's page again."""
    path = tmp_path / "ram"
    path.write_bytes(b"f" * (16 << 20))
    fd = os.open(path, os.O_RDONLY)
    memory = GuestMemory(16 << 20, source=fd)
    os.close(fd)
    memory.fill(0, 1 << 20, 1)
    assert memory.resident() >= 1 << 20
    memory.give_back(0, 1 << 20)
    assert memory.resident() < 1 << 20
    assert memory.read(0, 4) == b"ffff"
    memory.close()
