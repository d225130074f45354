"""Virtqueues of both formats, driven from the driver's side."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.virtio.chain import Chain
from kvmkit.virtio.queue import Queue, QueueError, RingAddresses, SplitQueue
from tests.virtio.mock import FakeRam, PackedDriver, RingDriver, SplitDriver

DRIVERS = pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])


def pair(kind, size=8, **options):
    """A driver and the device's end."""
    driver = kind(FakeRam(), size, **options)
    return driver, driver.device_queue()


@DRIVERS
@pytest.mark.parametrize("indirect", [False, True])
def test_request_goes_there_and_back(kind, indirect):
    """Two buffers to read, two to fill; the driver finds what was written."""
    driver, queue = pair(kind)
    driver.add([b"abc", b"defg"], [2, 10], indirect=indirect)

    chain = queue.pop()

    assert chain is not None
    assert (chain.readable_size, chain.writable_size) == (7, 12)
    assert [bytes(view) for view in chain.readable] == [b"abc", b"defg"]
    assert chain.read_all() == b"abcdefg"
    assert chain.write(b"12345") == 5
    assert queue.in_flight == 1
    queue.push(chain)
    assert queue.in_flight == 0
    assert [data for _, data in driver.collect()] == [b"12345"]
    assert queue.pop() is None


@DRIVERS
def test_memory_is_told_what_was_written_before_the_driver_is(kind):
    """The ranges of the bytes that count, and not those beyond."""
    driver, queue = pair(kind)
    driver.add([b"x"], [4, 4, 4])
    chain = queue.pop()
    chain.write(b"123456")
    told = driver.ram.told
    driver.ram.written = lambda address, size: told.append((address, size, queue.state()))
    before = queue.state()
    queue.push(chain)
    assert [size for _, size, _ in told] == [4, 2]
    assert {state for *_, state in told} == {before}


@DRIVERS
def test_requests_may_be_given_back_in_any_order(kind):
    """Late ones first."""
    driver, queue = pair(kind)
    sent = [driver.add([bytes((n,))], [1]) for n in range(4)]
    chains = [queue.pop() for _ in sent]
    for index in (2, 0, 3, 1):
        chains[index].write(chains[index].read_all())
        queue.push(chains[index])
    assert list(driver.collect()) == [(sent[i], bytes((i,))) for i in (2, 0, 3, 1)]


@DRIVERS
@pytest.mark.parametrize("event_index", [False, True])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_random_traffic_round_trips(kind, event_index, data):
    """Any valid requests, batches and order of answers; over many wraps; no notification
    and no interrupt is lost."""
    size = data.draw(
        st.sampled_from([1, 2, 4, 8, 64] + ([3, 5, 7] if kind is PackedDriver else []))
    )
    driver, queue = pair(kind, size, event_index=event_index)
    expected: dict[int, bytes] = {}
    held: list[Chain] = []
    for _ in range(data.draw(st.integers(1, 40))):
        for _ in range(data.draw(st.integers(0, 3))):
            readable = data.draw(st.lists(st.binary(max_size=9), max_size=3))
            writable = data.draw(st.lists(st.integers(0, 9), max_size=3))
            indirect = data.draw(st.booleans())
            if not readable + writable:
                continue
            if driver.free < (1 if indirect else len(readable) + len(writable)):
                continue
            content = b"".join(readable)
            ident = driver.add(readable, writable, indirect=indirect)
            expected[ident] = content[::-1][: sum(writable)]
        if driver.must_notify():
            while (chain := queue.pop()) is not None:
                held.append(chain)
        waiting = len(expected) - len(held)
        assert waiting == 0, "a request without a notification"
        for _ in range(data.draw(st.integers(0, len(held)))):
            chain = held.pop(data.draw(st.integers(0, len(held) - 1)))
            chain.write(chain.read_all()[::-1])
            queue.push(chain)
        pushed = queue.needs_interrupt()
        if not pushed:
            assert len(held) == len(expected), "an answer without an interrupt"
            continue
        for ident, answer in driver.collect():
            assert expected.pop(ident) == answer


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_split_queue_has_a_power_of_two(size):
    """Other sizes are no queue."""
    with pytest.raises(QueueError, match=f"a split queue of {size} entries"):
        queue_at(RingAddresses(size, 0, 0x2000, 0x3000))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (RingAddresses(8, 8, 0x2000, 0x3000), "descriptor table at 0x8 is not aligned"),
        (RingAddresses(8, 0, 0x2001, 0x3000), "available ring at 0x2001 is not aligned"),
        (RingAddresses(8, 0, 0x2000, 0x3002), "used ring at 0x3002 is not aligned"),
        (RingAddresses(8, 1 << 40, 0x2000, 0x3000), "descriptor table at 0x10000000000 is not in"),
        (RingAddresses(8, 0, (1 << 20) - 4, 0x3000), "available ring at 0xffffc is not in memory"),
        (RingAddresses(8, 0, 0x2000, 1 << 63), "used ring at 0x8000000000000000 is not in memory"),
    ],
)
def test_areas_are_aligned_and_in_memory(where, text):
    """Otherwise the queue cannot be."""
    with pytest.raises(QueueError, match=text):
        queue_at(where)


def queue_at(where):
    return SplitQueue(0, FakeRam(), where, indirect=True, event_index=True)


# Drivers that break the rules, one rule at a time


def broken(kind, prepare, *, size=8, indirect=True):
    """What the device says to a queue that ``prepare(driver)`` filled."""
    driver = kind(FakeRam(), size)
    queue = driver.device_queue(indirect=indirect)
    prepare(driver)
    with pytest.raises(QueueError) as caught:
        for _ in range(2 * size + 2):
            queue.pop()
    return str(caught.value)


def raw(driver: RingDriver, *descriptors: tuple[int, int, int, int]) -> None:
    """Put descriptors (address, length, flags, next) at 0, 1, ... and publish the first."""
    for index, (address, length, flags, after) in enumerate(descriptors):
        if isinstance(driver, SplitDriver):
            driver.descriptor(index, address, length, flags, after)
        else:
            driver.descriptor(index, address, length, 0, driver.flags(index, flags))
    if isinstance(driver, SplitDriver):
        driver.publish(0)


def table(driver: RingDriver, *descriptors: tuple[int, int, int, int]) -> tuple[int, int]:
    """An indirect table; its address and length."""
    from tests.virtio.mock import DESCRIPTOR

    for index, (address, length, flags, after) in enumerate(descriptors):
        fields = (flags, after) if isinstance(driver, SplitDriver) else (0, flags)
        DESCRIPTOR.pack_into(driver.ram.data, 0x8000 + 16 * index, address, length, *fields)
    return 0x8000, 16 * len(descriptors)


def test_loop_is_broken():
    """A chain that comes back to itself."""
    text = broken(SplitDriver, lambda driver: raw(driver, (0, 1, 1, 1), (0, 1, 1, 0)))
    assert text == "a chain of more than 8 descriptors"


def test_loop_in_an_indirect_table_is_broken():
    """Within the table."""
    text = broken(
        SplitDriver,
        lambda driver: raw(driver, (*table(driver, (0, 1, 1, 1), (0, 1, 1, 0)), 4, 0)),
    )
    assert text == "a chain of more than 2 descriptors"


def test_next_beyond_the_table():
    """An index that is none."""
    assert broken(SplitDriver, lambda driver: raw(driver, (0, 1, 1, 8))) == "descriptor 8 of 8"


def test_head_beyond_the_table():
    """In the available ring."""
    assert broken(SplitDriver, lambda driver: driver.publish(9)) == "descriptor 9 of 8"


def test_available_index_that_jumps():
    """By more than the ring holds."""
    text = broken(SplitDriver, lambda driver: driver.set_index(9))
    assert text == "the available index went from 0 to 9"


@DRIVERS
def test_buffer_outside_memory(kind):
    """Absurd addresses and lengths; a length that wraps around."""
    for address, length in [(1 << 20, 1), ((1 << 20) - 1, 2), (0, 0xFFFF_FFFF), ((1 << 64) - 1, 2)]:
        text = broken(kind, lambda driver, a=address, n=length: raw(driver, (a, n, 0, 0)))
        assert text == f"a buffer of {length} bytes at {address:#x} is not in memory"


@DRIVERS
def test_readable_after_writable(kind):
    """2.7.4.2: writable ones come last."""
    text = broken(kind, lambda driver: raw(driver, (0, 1, 3, 1), (0, 1, 0, 0)))
    assert text == "a buffer to read after one to fill"


@DRIVERS
@pytest.mark.parametrize("length", [0, 8, 17, 16 * 1025, 0xFFFF_FFF0])
def test_odd_indirect_tables(kind, length):
    """Empty, no multiple of 16, longer than any."""
    text = broken(kind, lambda driver: raw(driver, (0, length, 4, 0)))
    assert text == f"an indirect table of {length} bytes"


@DRIVERS
def test_indirect_table_outside_memory(kind):
    """Beyond RAM."""
    text = broken(kind, lambda driver: raw(driver, (1 << 32, 16, 4, 0)))
    assert text == "an indirect table at 0x100000000 is not in memory"


@DRIVERS
def test_indirect_within_indirect(kind):
    """One level only."""
    text = broken(kind, lambda driver: raw(driver, (*table(driver, (0x8000, 16, 4, 0)), 4, 0)))
    assert text == "an indirect table within another"


@DRIVERS
def test_indirect_and_next(kind):
    """Not both."""
    text = broken(kind, lambda driver: raw(driver, (0x8000, 16, 5, 1), (0, 1, 0, 0)))
    assert "indirect table" in text


@DRIVERS
def test_indirect_without_the_feature(kind):
    """Not negotiated."""
    text = broken(kind, lambda driver: raw(driver, (0x8000, 16, 4, 0)), indirect=False)
    assert text == "an indirect table without the feature"


def test_more_requests_than_entries():
    """The same descriptor again and again, without waiting for an answer."""

    def prepare(driver):
        driver.descriptor(0, 0, 1, 0, 0)
        for _ in range(8):
            driver.publish(0)

    driver = SplitDriver(FakeRam(), 8)
    queue = driver.device_queue()
    prepare(driver)
    for _ in range(8):
        assert queue.pop() is not None
    prepare(driver)
    with pytest.raises(QueueError, match="more than 8 requests at a time"):
        queue.pop()


def test_more_packed_descriptors_than_entries():
    """A driver that does not wait until they are used."""

    def prepare(driver):
        for position in range(12):
            driver.descriptor(position % 8, 0, 1, 0, driver.flags(position, 0))
            yield

    driver = PackedDriver(FakeRam(), 8)
    queue = driver.device_queue()
    steps = prepare(driver)
    for _ in range(8):
        next(steps)
        assert queue.pop() is not None
    next(steps)
    with pytest.raises(QueueError, match="more than 8 descriptors at a time"):
        queue.pop()


@DRIVERS
def test_request_larger_than_the_device_takes(kind):
    """read_all copies a limited number of bytes."""
    driver, queue = pair(kind)
    driver.add([b"x" * 100, b"y" * 100])
    with pytest.raises(QueueError, match="a request of 200 bytes, more than the 150"):
        queue.pop().read_all(150)


def test_total_length_is_limited():
    """Buffers that overlap can add up to more than 4 GiB; the chain may not."""

    class Endless(FakeRam):
        def view(self, address, size):
            return super().view(0, 0) if size > 1 << 20 else super().view(address, size)

    driver = SplitDriver(Endless(), 8)
    queue = driver.device_queue()
    raw(driver, (0, 0xFFFF_FFFF, 1, 1), (0, 2, 0, 0))
    with pytest.raises(QueueError, match="more than 4 GiB"):
        queue.pop()


# Life


@DRIVERS
def test_dead_queue_does_nothing(kind):
    """After a reset what comes late is dropped."""
    driver, queue = pair(kind)
    driver.add([b"a"], [1])
    driver.add([b"b"], [1])
    chain = queue.pop()
    before = bytes(driver.ram.data)
    queue.kill()
    assert queue.pop() is None
    queue.push(chain, 1)
    queue.notifications(False)
    assert not queue.needs_interrupt()
    assert driver.ram.data == before
    assert queue.in_flight == 0


@DRIVERS
def test_notifications_can_be_refused(kind):
    """And wanted again."""
    for event_index in (False, True):
        driver, queue = pair(kind, event_index=event_index)
        queue.notifications(False)
        if not (event_index and kind is SplitDriver):  # where there is no way to say so
            driver.add([b"a"])
            assert not driver.must_notify()
            queue.pop()
        queue.notifications(True)
        driver.add([b"b"])
        assert driver.must_notify()


@DRIVERS
@settings(deadline=None, max_examples=40)
@given(before=st.integers(0, 20), after=st.integers(0, 20))
def test_state_goes_to_another_queue(kind, before, after):
    """restore(state()) gives a queue that goes on, and the same state."""
    driver, queue = pair(kind, 4, event_index=True)

    def exchange(queue: Queue, count: int) -> None:
        for number in range(count):
            driver.add([bytes((number,)) * 2, b""], [4])
            chain = queue.pop()
            assert chain is not None
            chain.write(chain.read_all())
            queue.push(chain)
            assert queue.needs_interrupt()
            assert [data for _, data in driver.collect()] == [bytes((number,)) * 2]
        assert queue.pop() is None

    exchange(queue, before)
    other = driver.device_queue()
    other.restore(queue.state())
    assert other.state() == queue.state()
    exchange(other, after)


def test_base_queue_is_empty():
    """A queue that is not enabled."""
    queue = Queue()
    assert queue.pop() is None
    assert not queue.needs_interrupt()
    assert queue.state() is None


# The cursor of a chain


@settings(deadline=None, max_examples=60)
@given(
    readable=st.lists(st.binary(max_size=5), max_size=4),
    writable=st.lists(st.integers(0, 5), max_size=4),
    cuts=st.lists(st.integers(0, 8), max_size=6),
)
def test_cursor_does_not_care_for_descriptors(readable, writable, cuts):
    """Reads and writes of any sizes see one run of bytes."""
    driver, queue = pair(SplitDriver, 16)
    driver.add([b"!", *readable], writable)
    chain = queue.pop()
    assert chain.read(1) == b"!"
    whole = b"".join(readable)
    got = b"".join(chain.read(cut) for cut in cuts)
    assert got == whole[: sum(cuts)]
    assert chain.read_all() == whole[sum(cuts) :]
    room = sum(writable)
    stored = b""
    for cut in cuts:
        data = bytes((cut,)) * cut
        done = chain.write(data)
        assert done == min(cut, room - len(stored))
        stored += data[:done]
    assert chain.written == len(stored)
    queue.push(chain)
    assert [data for _, data in driver.collect()] == [stored]


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), size=st.integers(0, 16))
def test_tail_is_cut_off(sizes, size):
    """The last bytes, wherever the driver has cut them; too few are an error."""
    driver, queue = pair(SplitDriver, 8)
    driver.add([b"x"], sizes)
    chain = queue.pop()
    if size > sum(sizes):
        with pytest.raises(QueueError, match="without room for its status"):
            chain.cut_tail(size)
        return
    tail = chain.cut_tail(size)
    assert sum(map(len, tail)) == size
    assert chain.writable_size == sum(sizes) - size
    for view in tail:
        view[:] = b"T" * len(view)
    chain.write(b"." * sum(sizes))
    queue.push(chain, sum(sizes))
    assert [data for _, data in driver.collect()] == [b"." * (sum(sizes) - size) + b"T" * size]
