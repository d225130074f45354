"""The console device, from its driver's side."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.backends.ports import PortClosed, PortStream
from kvmkit.errors import CommandTimeout, UsageError
from kvmkit.virtio.console import Console
from tests.virtio.console_driver import MULTIPORT, BackendLog, ConsoleDriver

READY, ADD, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = 0, 1, 3, 4, 5, 6, 7


def made(*names, terminal=False, features=3, **options):
    """A driver and the backends: the terminal's first."""
    console, backends = Console(), []
    if terminal:
        backends.append(BackendLog())
        console.add_terminal(backends[0])
    for name in names:
        backends.append(BackendLog())
        console.add_port(name, backends[-1])
    return ConsoleDriver(console, features=features, **options), backends


def opened(*names, **options):
    """The same, and the guest has the ports open."""
    driver, backends = made(*names, **options)
    driver.control(0, READY, 1)
    for port in driver.console.ports:
        driver.control(port.ident, PORT_READY, 1)
        driver.control(port.ident, OPEN, 1)
    driver.messages()
    return driver, backends


def test_ports_are_announced():
    """Each port is added, then named, and open at the host's end; the terminal is one."""
    driver, _ = made("a.b", "c", terminal=True)
    driver.control(0, READY, 1)
    assert driver.messages() == [(0, ADD, 0, b""), (1, ADD, 0, b""), (2, ADD, 0, b"")]
    driver.control(1, PORT_READY, 1)
    assert driver.messages() == [(1, NAME, 1, b"a.b"), (1, OPEN, 1, b"")]
    driver.control(0, PORT_READY, 1)
    assert driver.messages() == [(0, CONSOLE, 1, b""), (0, OPEN, 1, b"")]


def test_config_and_queues_fit_the_ports():
    """max_nr_ports counts port 0, which is there or not; two queues for each and for control."""
    driver, _ = made("a", "b")
    assert driver.pci.read(4, 4, 4) == 3
    assert len(driver.console.queue_sizes) == 8
    alone, _ = made(terminal=True)
    assert alone.pci.read(4, 4, 4) == 1
    assert len(alone.console.queue_sizes) == 2
    assert not alone.pci.offered() & MULTIPORT


def test_terminal_alone_has_its_size_in_the_configuration():
    """Without multiport a resize is a configuration interrupt, and data flows at once."""
    driver, (terminal,) = made(terminal=True)
    terminal.to_guest = b"typed"
    terminal.port.kick()
    driver.host.turn()
    assert driver.received(0) == [b"typed"]
    generation = driver.pci.read(1, 0x15, 1)
    driver.console.resize(132, 50)
    driver.host.turn()
    assert (driver.pci.read(4, 0, 2), driver.pci.read(4, 2, 2)) == (132, 50)
    assert driver.pci.read(1, 0x15, 1) == generation, "Linux is not ready for it yet"
    driver.send(1, b"shown")
    assert terminal.taken == b"shown"
    assert driver.pci.read(1, 0x15, 1) == generation + 1
    driver.console.resize(80, 25)
    driver.host.turn()
    assert driver.pci.read(1, 0x15, 1) == generation + 2


def test_resize_among_ports_is_a_message():
    """The size as the port comes up, and each new one."""
    driver, _ = made("a", terminal=True)
    driver.console.resize(100, 30)
    driver.host.turn()
    driver.control(0, PORT_READY, 1)
    assert (0, RESIZE, 0, pack("<HH", 100, 30)) in driver.messages()
    driver.console.resize(101, 31)
    driver.host.turn()
    assert driver.messages() == [(0, RESIZE, 0, pack("<HH", 101, 31))]


def test_emergency_write_needs_no_queues():
    """A character goes to the terminal by way of the configuration."""
    driver, (terminal,) = made(terminal=True)
    driver.pci.status = 0
    driver.pci.write(4, 8, 4, ord("!"))
    assert terminal.taken == b"!"


def test_data_waits_until_the_guest_opens():
    """What the host sends before is there at the open, not lost."""
    driver, (backend,) = made("a")
    driver.control(1, PORT_READY, 1)
    backend.to_guest = b"early"
    backend.port.kick()
    driver.host.turn()
    assert driver.received(4) == []
    driver.control(1, OPEN, 1)
    assert driver.received(4) == [b"early"]
    assert backend.opens == [True]


def test_stuck_reader_stops_the_writer():
    """Requests stay in the ring while the backend is full, and go on after a kick."""
    driver, (backend,) = opened("a")
    backend.space = 10
    for _ in range(4):
        driver.send(5, b"x" * 8)
    assert driver.done(5) == 2
    assert len(backend.taken) == 16
    backend.taken, backend.space = b"", 100
    backend.port.kick()
    driver.host.turn()
    assert driver.done(5) == 2
    assert len(backend.taken) == 16


def test_slow_guest_stops_the_host():
    """No more is fetched than there are buffers; each that comes back is filled again."""
    driver, (backend,) = opened("a", room=9)
    backend.to_guest = bytes(range(100))
    backend.port.kick()
    driver.host.turn()
    assert len(backend.to_guest) == 100 - 9 * 8
    got = b"".join(driver.received(4))
    while more := driver.received(4):
        got += b"".join(more)
    assert got == bytes(range(100))


def test_close_comes_after_the_data():
    """A guest that writes and closes: the backend that has no room hears of the close last."""
    driver, (backend,) = opened("a")
    backend.space = 4
    for data in (b"1234", b"5678"):
        driver.send(5, data)
    driver.control(1, OPEN, 0)
    assert backend.opens == [True]
    backend.space = 100
    backend.port.kick()
    driver.host.turn()
    assert backend.taken == b"12345678"
    assert backend.opens == [True, False]


def test_host_opens_and_closes():
    """The guest hears of each; of no more than two it has not listened to."""
    driver, (backend,) = opened("a")
    backend.port.set_open(False)
    driver.host.turn()
    assert driver.messages() == [(1, OPEN, 0, b"")]
    for turn in range(100):
        backend.port.set_open(bool(turn % 2))
        driver.host.turn()
        driver.received(2, refill=False)
    assert len(driver.console._answers) <= 2


def test_nothing_moves_during_a_pause():
    """The guest's memory stays as it is; all goes on afterwards."""
    driver, (backend,) = opened("a")
    driver.host.paused = True
    backend.to_guest = b"later"
    backend.port.kick()
    backend.port.set_open(False)
    driver.host.turn()
    assert driver.received(4, refill=False) == [] and driver.received(2, refill=False) == []
    driver.host.paused = False
    driver.console.resumed()
    driver.host.turn()
    assert driver.received(4) == [b"later"]
    assert driver.messages() == [(1, OPEN, 0, b"")]


def test_reset_closes_the_guests_end():
    """A reboot of the guest, and the ports are announced to the next driver."""
    driver, (backend,) = opened("a")
    driver.bring_up(3)
    assert backend.opens == [True, False]
    driver.control(0, READY, 1)
    assert driver.messages() == [(1, ADD, 0, b"")]


@pytest.mark.parametrize(
    ("queue", "data", "reason"),
    [(3, b"1234567", "control message of 7"), (3, b"", "control message of 0")],
)
def test_broken_control_messages(queue, data, reason):
    """They end in NEEDS_RESET, with the reason."""
    driver, _ = made("a")
    driver.queues[queue].add([data] if data else (), [] if data else [4])
    driver.pci.notify(queue)
    assert driver.broken and reason in driver.host.warnings[0]


def test_questions_without_room_for_answers():
    """A driver that asks and asks and gives no buffers is stopped."""
    driver, _ = made("a")
    for _ in range(100):
        driver.received(2, refill=False)
        driver.control(0, READY, 1)
        if driver.broken:
            break
    assert "without buffers for the answers" in driver.host.warnings[0]


def test_oversized_request_is_refused():
    """No more than REQUEST_MAX is copied at a time."""
    driver, _ = opened("a")
    queue = driver.queues[5]
    for slot in range(8):
        queue.descriptor(slot, 0, 1 << 20, 1 if slot < 7 else 0, slot + 1)
    queue.publish(0)
    driver.pci.notify(5)
    assert driver.broken and "8388608 bytes" in driver.host.warnings[0]


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".a", "é", "x" * 65, "a\n"])
def test_names_that_cannot_be(name):
    """They are refused with a line that says what a name is."""
    with pytest.raises(UsageError, match="a port's name is"):
        Console().add_port(name, BackendLog())


def test_limits():
    """No two of a name, one terminal, 31 ports, none after the start."""
    console = Console()
    console.add_terminal(BackendLog())
    for number in range(31):
        console.add_port(f"p{number}", BackendLog())
    for wrong in (
        lambda: console.add_port("p3", BackendLog()),
        lambda: console.add_port("q", BackendLog()),
        lambda: console.add_terminal(BackendLog()),
    ):
        with pytest.raises(UsageError):
            wrong()
    driver, _ = made("a")
    with pytest.raises(UsageError, match="before a VM starts"):
        driver.console.add_port("b", BackendLog())


def test_state_is_restored():
    """The ports stay open for the guest, who hears that the host hung up and is back."""
    driver, (backend,) = opened("a")
    state = driver.console.state()
    other, (later,) = made("a")
    other.console.restore(state)
    assert other.console.state().guest_open == state.guest_open == (True,)
    assert later.opens == [True]
    other.console._talk()
    assert other.messages() == [(1, OPEN, 0, b""), (1, OPEN, 1, b"")]
    assert backend.opens == [True]


def test_end_gives_what_came_last():
    """At the machine's end the backend gets what is in the ring, and the news."""
    driver, (backend,) = opened("a")
    driver.host.paused = True
    driver.queues[5].add([b"last"])
    driver.console.end()
    driver.host.turn()
    assert backend.taken == b"last" and backend.log[-1] == "end"


STEP = st.one_of(
    st.tuples(st.just("control"), st.integers(0, 4), st.integers(0, 9), st.integers(0, 2)),
    st.tuples(st.just("raw"), st.integers(0, 7), st.binary(max_size=20)),
    st.tuples(st.just("collect"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("host"), st.integers(0, 1), st.sampled_from(["open", "close", "data"])),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(STEP, max_size=40))
def test_any_driver_is_survived(steps):
    """No exception, bounded answers, nothing given to a port that is closed."""
    driver, backends = made("a", "b", terminal=True)
    backends[1].space = 50
    for kind, *values in steps:
        if kind == "control":
            driver.control(*values)
        elif kind == "raw":
            driver.queues[values[0]].add([values[1]] if values[1] else (), [3])
            driver.pci.notify(values[0])
        elif kind == "collect":
            driver.received(values[0] & ~1, refill=values[1])
        elif values[1] == "data":
            backends[values[0]].to_guest += b"data"
            backends[values[0]].port.kick()
        else:
            backends[values[0]].port.set_open(values[1] == "open")
        driver.host.turn()
        for queue in driver.queues:
            list(queue.collect()) if queue.free < 3 else None
        if any(queue.free < 3 for queue in driver.queues):
            break
        assert len(driver.console._answers) <= 8 * 4 + 4
        for backend, port in zip(backends, driver.console.ports[:], strict=True):
            assert (backend.opens[-1] if backend.opens else False) == port.guest_open
    driver.bring_up(3)
    driver.control(0, READY, 1)
    assert len(driver.messages()) == 3


# Ports as streams


def stream_pair(**options):
    """A stream that the guest has open, and the driver."""
    console = Console()
    stream = PortStream("s", **options)
    console.add_port("s", stream)
    driver = ConsoleDriver(console)
    driver.control(1, PORT_READY, 1)
    driver.control(1, OPEN, 1)
    driver.messages()
    return driver, stream


def test_stream_reads_and_writes():
    """Bytes both ways; a read takes what is there."""
    driver, stream = stream_pair()
    driver.send(5, b"from the guest")
    assert stream.wait_open(0) and stream.guest_open
    assert stream.read(4, timeout=0) == b"from"
    assert stream.read(timeout=0) == b" the guest"
    stream.write(b"to the guest", timeout=0)
    driver.host.turn()
    assert driver.received(4) == [b"to the guest"]


def test_stream_keeps_conversations_apart():
    """Each close of the guest is one empty read, behind its data."""
    driver, stream = stream_pair()
    driver.send(5, b"one")
    driver.control(1, OPEN, 0)
    driver.control(1, OPEN, 1)
    driver.send(5, b"two")
    assert [stream.read(timeout=0) for _ in range(3)] == [b"one", b"", b"two"]
    with pytest.raises(CommandTimeout, match="no data in 0 seconds"):
        stream.read(timeout=0)


def test_stream_write_waits_for_the_guest():
    """It is bounded: the last part must fit in the buffer, or time runs out."""
    driver, stream = stream_pair(capacity=100)
    for queue in (4,):
        driver.received(queue, refill=False)
    with pytest.raises(CommandTimeout, match="took 100 of 700 bytes"):
        stream.write(bytes(700), timeout=0.01)
    driver.control(1, OPEN, 0)
    assert stream.pending() == 0


def test_stream_read_makes_room():
    """A full stream lets the guest's writer wait until somebody reads."""
    driver, stream = stream_pair(capacity=8)
    for _ in range(3):
        driver.send(5, b"12345678")
    assert driver.done(5) == 1
    assert stream.read(timeout=0) == b"12345678"
    driver.host.turn()
    assert driver.done(5) == 1


def test_closed_stream_drops_what_comes():
    """The guest hears of the close; its writer is not held up."""
    driver, stream = stream_pair(capacity=8)
    stream.close()
    driver.host.turn()
    assert driver.messages() == [(1, OPEN, 0, b"")]
    for _ in range(4):
        driver.send(5, b"12345678")
    assert driver.done(5) == 4
    assert stream.read() == b""
    with pytest.raises(PortClosed):
        stream.write(b"x")


def test_end_of_the_machine_wakes_everybody():
    """Readers get what is left, then nothing; writers an error."""
    driver, stream = stream_pair()
    driver.send(5, b"last words")
    driver.console.end()
    driver.host.turn()
    assert [stream.read(), stream.read(), stream.read()] == [b"last words", b"", b""]
    assert not stream.wait_open()
    with pytest.raises(PortClosed):
        stream.write(b"x")


def test_listener_gets_everything():
    """On a thread of its own, with an empty one at the close."""
    driver, stream = stream_pair()
    heard = []
    driver.send(5, b"one")
    driver.control(1, OPEN, 0)
    stream.end()
    import threading

    over = threading.Event()
    stream.listen(lambda data: (heard.append(data), over.set() if not data else None))
    assert over.wait(5)
    assert heard[:2] == [b"one", b""]
