"""The block device, from its driver's side."""

from __future__ import annotations

import errno
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.block_driver import FLUSH, BlockDriver, LateWorkers, MemoryDisk

IN, OUT, GET_FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2

# linux/virtio_blk.h, struct virtio_blk_config
CONFIG = {
    "capacity": (0, 8), "size_max": (8, 4), "seg_max": (12, 4), "cylinders": (16, 2),
    "heads": (18, 1), "sectors": (19, 1), "blk_size": (20, 4), "physical_block_exp": (24, 1),
    "alignment_offset": (25, 1), "min_io_size": (26, 2), "opt_io_size": (28, 4), "wce": (32, 1),
    "num_queues": (34, 2), "max_discard_sectors": (36, 4), "max_discard_seg": (40, 4),
    "discard_sector_alignment": (44, 4), "max_write_zeroes_sectors": (48, 4),
    "max_write_zeroes_seg": (52, 4), "write_zeroes_may_unmap": (56, 1),
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def driver(request):
    return BlockDriver(packed=request.param, serial="disk0")


def ranges(*triples):
    return b"".join(pack("<QII", *triple) for triple in triples)


def test_config_space_is_linux_struct():
    """Each field is where linux/virtio_blk.h has it, and says what the device is."""
    driver = BlockDriver(MemoryDisk(1 << 20), queues=3)
    values = {name: driver.pci.read(4, *place) for name, place in CONFIG.items()}
    assert values["capacity"] == 2048
    assert values["blk_size"] == 512
    assert values["physical_block_exp"] == 3 and values["min_io_size"] == 8
    assert values["num_queues"] == 3
    assert 0 < values["seg_max"] <= driver.device.queue_sizes[0] - 2
    assert values["max_discard_seg"] == values["max_write_zeroes_seg"] == 16
    assert values["max_discard_sectors"] == values["max_write_zeroes_sectors"] == 1 << 22
    assert values["discard_sector_alignment"] == 8
    assert values["write_zeroes_may_unmap"] == 1
    assert values["size_max"] == values["cylinders"] == values["alignment_offset"] == 0
    assert driver.pci.read(4, 60, 4) == 0


@pytest.mark.parametrize(
    ("block_size", "exponent"), [(1, 0), (512, 0), (3000, 2), (1 << 16, 7), (1 << 30, 7)]
)
def test_topology_of_odd_media(block_size, exponent):
    """Whatever the host says its files like, the guest is told a power of two."""
    disk = MemoryDisk()
    disk.block_size = block_size
    driver = BlockDriver(disk)
    assert driver.pci.read(4, 24, 1) == exponent
    assert driver.pci.read(4, 26, 2) == 1 << exponent


def test_features():
    """RO for a disk to read, discards for one to write, MQ for several queues."""
    offered = BlockDriver().pci.offered()
    assert offered & FLUSH and offered & 1 << 13 and offered & 1 << 14
    assert not offered & (1 << 5 | 1 << 12)
    offered = BlockDriver(MemoryDisk(read_only=True), queues=2).pci.offered()
    assert offered & 1 << 5 and offered & 1 << 12
    assert not offered & (1 << 13 | 1 << 14)


def test_read_and_write(driver):
    """What is written is read; the rest of the disk stays as it was."""
    before = bytes(driver.disk.data)
    assert driver.request(OUT, 3, b"x" * 1024) == (OK, b"")
    assert driver.request(IN, 2, room=2048) == (
        OK,
        before[1024:1536] + b"x" * 1024 + before[2560:3072],
    )
    assert bytes(driver.disk.data[:1536] + driver.disk.data[2560:]) == before[:1536] + before[2560:]


def test_read_without_waiting():
    """What is cached is read on the spot: the workers hear nothing of it."""
    driver = BlockDriver(MemoryDisk(now=True), LateWorkers())
    assert driver.request(IN, 1, room=512) == (OK, bytes(range(256)) * 2)
    assert not driver.workers.busy


def test_flush_and_serial(driver):
    """FLUSH reaches the disk, GET_ID is padded with zeroes to 20 bytes."""
    assert driver.request(GET_FLUSH) == (OK, b"")
    assert ("flush",) in driver.disk.log
    assert driver.request(GET_ID, room=20) == (OK, b"disk0".ljust(20, b"\0"))
    assert driver.request(GET_ID, room=5) == (OK, b"disk0")
    status, answer = driver.request(GET_ID, room=600)
    assert (status, answer) == (OK, b"disk0".ljust(20, b"\0"))


@pytest.mark.parametrize("kind", [2, 3, 5, 7, 9, 10, 14, 16, 0x8000_0000, 0xFFFF_FFFF])
def test_unknown_requests(driver, kind):
    """Types that are not offered, secure erase and zones among them, are UNSUPP."""
    assert driver.request(kind, room=512) == (UNSUPP, b"")
    assert not driver.broken


@pytest.mark.parametrize("sector", [128, 127, 1 << 55, (1 << 55) - 1, (1 << 64) - 1, 1 << 63])
@pytest.mark.parametrize("kind", [IN, OUT])
def test_sectors_outside(driver, kind, sector):
    """Past the end, also where sector * 512 wraps around 64 bits, is IOERR."""
    before = bytes(driver.disk.data)
    if kind == IN:
        assert driver.request(IN, sector, room=1024) == (IOERR, b"")
    else:
        assert driver.request(OUT, sector, b"x" * 1024) == (IOERR, b"")
    assert bytes(driver.disk.data) == before
    assert not driver.disk.log


@pytest.mark.parametrize("size", [1, 511, 513, 4095])
def test_sizes_that_are_no_sectors(driver, size):
    """A read or write of part of a sector is IOERR."""
    assert driver.request(IN, 0, room=size)[0] == IOERR
    assert driver.request(OUT, 0, b"x" * size)[0] == IOERR
    assert not driver.disk.log


def test_whole_disk_and_last_sector(driver):
    """The limits themselves are inside."""
    assert driver.request(IN, 127, room=512)[0] == OK
    assert driver.request(IN, 0, room=driver.disk.size // 2)[0] == OK
    assert driver.request(IN, 128)[0] == OK, "nothing, at the end"


@pytest.mark.parametrize("size", [0, 1, 15])
def test_requests_without_header(size):
    """A request too short to be one breaks the device."""
    driver = BlockDriver()
    driver.rings[0].add([bytes(size)] if size else [], [1])
    driver.notify()
    assert driver.broken and "header" in driver.host.warnings[0]


def test_request_without_status():
    """Nowhere to put the status: nothing is done."""
    driver = BlockDriver()
    driver.rings[0].add([pack("<IIQ", OUT, 0, 0) + bytes(512)])
    driver.notify()
    assert driver.broken and not driver.disk.log


def test_framing_is_free():
    """Header, data and status in any pieces (2.6.4.1)."""
    driver = BlockDriver()
    message = pack("<IIQ", OUT, 0, 1) + b"abcd" * 128
    driver.rings[0].add([message[:7], message[7:21], message[21:]], [1])
    driver.rings[0].add([pack("<IIQ", IN, 0, 1)], [100, 400, 13])
    driver.notify()
    answers = list(driver.collect().values())
    assert answers == [b"\0", b"abcd" * 128 + b"\0"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPERM])
@pytest.mark.parametrize("kind", [IN, OUT, GET_FLUSH, DISCARD, ZEROES])
@pytest.mark.parametrize("now", [False, True])
def test_errors_are_passed_on(kind, number, now):
    """A disk's OSError is IOERR, the device works on."""
    driver = BlockDriver(MemoryDisk(now=now))
    driver.disk.trouble = OSError(number, "no")
    data = {OUT: bytes(512), DISCARD: ranges((0, 1, 0)), ZEROES: ranges((0, 1, 0))}.get(kind, b"")
    assert driver.request(kind, 0, data, 512 if kind == IN else 0)[0] == IOERR
    driver.disk.trouble = None
    assert driver.request(kind, 0, data, 512 if kind == IN else 0)[0] == OK


def test_read_only():
    """Writes, discards and zeroes of a disk to read are IOERR."""
    driver = BlockDriver(MemoryDisk(read_only=True))
    for kind, data in (
        (OUT, bytes(512)),
        (DISCARD, ranges((0, 1, 0))),
        (ZEROES, ranges((0, 1, 0))),
    ):
        assert driver.request(kind, 0, data)[0] == IOERR
    assert driver.request(IN, 0, room=512)[0] == OK
    assert driver.request(GET_FLUSH)[0] == OK


def test_discard_and_zeroes(driver):
    """Each range reaches the disk, with its unmap flag."""
    assert driver.request(DISCARD, 0, ranges((1, 2, 0), (8, 8, 0)))[0] == OK
    assert driver.request(ZEROES, 0, ranges((4, 4, 1), (0, 1, 0)))[0] == OK
    assert driver.disk.log == [
        ("discard", 512, 1024),
        ("discard", 4096, 4096),
        ("zeroes", 2048, 2048, True),
        ("zeroes", 0, 512, False),
    ]


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (DISCARD, b"", UNSUPP),
        (DISCARD, bytes(15), UNSUPP),
        (DISCARD, bytes(17), UNSUPP),
        (DISCARD, ranges((0, 1, 1)), UNSUPP),  # 5.2.6.2: unmap is for zeroes only
        (ZEROES, ranges((0, 1, 2)), UNSUPP),
        (ZEROES, ranges((0, 1, 1 << 31)), UNSUPP),
        (DISCARD, ranges(*[(0, 1, 0)] * 16), OK),
        (DISCARD, ranges(*[(0, 1, 0)] * 17), IOERR),
        (DISCARD, ranges(*[(0, 1, 0)] * 2000), IOERR),
        (ZEROES, ranges((0, 129, 0)), IOERR),
        (ZEROES, ranges((128, 1, 0)), IOERR),
        (ZEROES, ranges((0, 1, 0), ((1 << 55) + 1, 1, 0)), IOERR),
        (ZEROES, ranges(((1 << 64) - 1, 1, 0)), IOERR),
        (ZEROES, ranges((0, 0xFFFF_FFFF, 0)), IOERR),
        (ZEROES, ranges((0, 0, 0)), OK),
    ],
)
def test_limits_of_ranges(kind, data, status):
    """Bad ranges do nothing at all, not even the good ones before them."""
    driver = BlockDriver()
    assert driver.request(kind, 0, data)[0] == status
    if status != OK:
        assert not driver.disk.log
    assert not driver.broken


def test_huge_range_of_a_huge_disk():
    """The largest number of sectors in a range is the one that is announced."""
    disk = MemoryDisk()
    disk.size = 1 << 50
    disk._range = lambda *_: None  # type: ignore[method-assign]
    driver = BlockDriver(disk)
    assert driver.request(DISCARD, 0, ranges((0, 1 << 22, 0)))[0] == OK
    assert driver.request(DISCARD, 0, ranges((0, (1 << 22) + 1, 0)))[0] == IOERR


def test_writes_without_flush_are_durable():
    """A driver that does not flush gets each write flushed (5.2.6.2)."""
    driver = BlockDriver(features=0)
    driver.request(OUT, 0, bytes(512))
    assert driver.disk.log == [("write", 0), ("flush",)]
    driver = BlockDriver(features=FLUSH)
    driver.request(OUT, 0, bytes(512))
    assert driver.disk.log == [("write", 0)]


def test_many_requests_one_interrupt():
    """What is done at once is announced at once."""
    driver = BlockDriver(MemoryDisk(now=True))
    for sector in range(10):
        driver.add(IN, sector, room=512)
    driver.notify()
    assert len(driver.collect()) == 10
    assert driver.msi == [(0xFEE0_0000, 1)]


def test_flood():
    """A full ring again and again: all are served, no more are held than fit the ring."""
    driver = BlockDriver(workers=LateWorkers())
    for _ in range(20):
        while driver.rings[0].free >= 3:
            driver.add(IN, 0, room=512)
        driver.notify()
        assert len(driver.workers.waiting) <= driver.size
        driver.workers.turn()
        assert driver.collect()
    assert not driver.broken


def test_several_queues():
    """Each queue's requests come back on it, with its interrupt."""
    driver = BlockDriver(queues=3)
    for queue in (2, 0, 1):
        driver.add(IN, queue, room=512, queue=queue)
        driver.notify(queue)
    assert [data for _, data in driver.msi] == [3, 1, 2]
    for queue in range(3):
        assert list(driver.collect(queue).values()) == [bytes(range(256)) * 2 + b"\0"]


def test_reset_with_requests_in_flight():
    """A reset ends when nobody touches the memory any more; nothing waiting is begun."""
    driver = BlockDriver(workers=LateWorkers())
    for sector in range(4):
        driver.add(IN, sector, room=512)
        driver.add(OUT, sector, b"x" * 512)
    driver.notify()
    driver.pci.status = 0
    assert driver.pci.status != 0, "the reset is not over while requests are under way"
    memory, disk = bytes(driver.ram.data), bytes(driver.disk.data)
    driver.workers.turn()
    assert driver.pci.status == 0
    assert bytes(driver.ram.data) == memory and bytes(driver.disk.data) == disk
    assert not driver.disk.log and not driver.msi
    driver.set_up()
    driver.add(GET_FLUSH)
    driver.notify()
    driver.workers.turn()
    assert list(driver.collect().values()) == [b"\0"]


def test_late_answers_of_another_life():
    """What was submitted before a reset is not given back after it."""
    workers = LateWorkers()
    driver = BlockDriver(workers=workers)
    driver.add(IN, 0, room=512)
    driver.notify()
    driver.function.reset()
    driver.pci = type(driver.pci)(driver.function)
    old, workers.waiting = workers.waiting, type(workers.waiting)()
    driver.pci.status = 0
    driver.set_up()
    driver.add(GET_FLUSH)
    driver.notify()
    memory = bytes(driver.ram.data)
    workers.waiting.extendleft(old)
    workers.turn(len(old))
    assert bytes(driver.ram.data) == memory
    workers.turn()
    assert list(driver.collect().values()) == [b"\0"]


def test_reset_of_one_queue():
    """Its requests are forgotten and what runs is waited for; the other queue's go on."""
    workers = LateWorkers()
    driver = BlockDriver(workers=workers, queues=2)
    driver.add(IN, 0, room=512, queue=0)
    driver.add(IN, 0, room=512, queue=1)
    driver.notify(0)
    driver.notify(1)
    driver.pci.write(1, 0x16, 2, 0)
    driver.pci.write(1, 0x3A, 2, 1)
    assert workers.settled == 1
    workers.turn()
    assert not list(driver.rings[0].collect())
    assert len(driver.collect(1)) == 1
    assert driver.disk.log == [("read", 0)]


def test_broken_ring_with_requests_in_flight():
    """After NEEDS_RESET late answers go nowhere."""
    driver = BlockDriver(workers=LateWorkers())
    driver.add(GET_FLUSH)
    driver.notify()
    driver.rings[0].add([b""], [1])
    driver.notify()
    assert driver.broken
    driver.workers.turn()
    assert not driver.collect()


def test_serial_is_cut():
    """Longer ones and foreign letters fit into 20 bytes of ASCII."""
    driver = BlockDriver(serial="ä" + "s" * 40)
    assert driver.request(GET_ID, room=20) == (OK, b"?" + b"s" * 19)


REQUEST = st.tuples(
    st.sampled_from([IN, OUT, GET_FLUSH, GET_ID, DISCARD, ZEROES, 99]) | st.integers(0, 2**32 - 1),
    st.integers(0, 140) | st.integers(0, 2**64 - 1),
    st.binary(max_size=64) | st.integers(0, 4).map(lambda count: bytes(512 * count)),
    st.sampled_from([0, 1, 20, 511, 512, 1024, 4096]),
    st.integers(0, 2),
)


@settings(deadline=None, max_examples=300)
@given(requests=st.lists(REQUEST, max_size=30), packed=st.booleans(), late=st.booleans())
def test_any_requests(requests, packed, late):
    """Whatever is asked, the disk is touched within its bounds and the device lives."""
    workers = LateWorkers() if late else None
    driver = BlockDriver(MemoryDisk(now=not late), workers, packed=packed)
    asked = set()
    for kind, sector, data, room, act in requests:
        if driver.rings[0].free >= 4:  # header, data, room, status
            asked.add(driver.add(kind, sector, data, room))
        if act == 0:
            driver.notify()
        elif act == 1 and late:
            driver.workers.turn(1)
        elif act == 2:
            asked -= set(driver.collect())
    driver.notify()
    if late:
        driver.workers.turn()
    asked -= set(driver.collect())
    assert not asked and not driver.broken and not driver.host.warnings
    assert len(driver.disk.data) == driver.disk.size


@settings(deadline=None, max_examples=200)
@given(
    pieces=st.lists(st.binary(max_size=80), max_size=4),
    rooms=st.lists(st.sampled_from([0, 1, 2, 511, 512, 513, 1024]), max_size=4),
    kind=st.sampled_from([None, IN, OUT, GET_ID, DISCARD, ZEROES]),
)
def test_any_framing(pieces, rooms, kind):
    """Any chain of buffers gets a status in its last byte, or breaks the device with a reason."""
    driver = BlockDriver()
    if kind is not None:
        pieces = [pack("<IIQ", kind, 0, 0), *pieces]
    if not pieces and not rooms:
        return
    driver.rings[0].add(pieces, rooms)
    driver.notify()
    whole = sum(map(len, pieces)) >= 16 and sum(rooms) >= 1
    assert driver.broken != whole
    assert len(driver.host.warnings) == (not whole)
    assert len(driver.collect()) == whole


def test_life():
    """Drained for a snapshot, closed with the disk at the end."""
    driver = BlockDriver()
    driver.device.drain()
    driver.device.close()
    assert driver.disk.log == [("close",)]
