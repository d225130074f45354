"""The socket device, from its driver's side."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.backends.vsock import VsockHub, VsockRefused, connect
from kvmkit.errors import FileTrouble, UsageError
from kvmkit.virtio.vsock import CONNECTIONS_MAX, Vsock
from kvmkit.virtio.vsock_connection import BUFFER
from tests.virtio.vsock_driver import CID, PeerLog, TestHub, VsockDriver

REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, ASK = range(1, 8)


@pytest.fixture
def driver():
    return VsockDriver()


@pytest.fixture
def talking(driver):
    """The guest has connected to port 10 of the host."""
    driver.send(REQUEST)
    assert driver.ops() == [RESPONSE]
    return driver


def test_config_is_the_address(driver):
    """guest_cid, 64 bits."""
    assert driver.pci.read(4, 0, 8) == CID


def test_guest_connects(driver):
    """The answer has the ports the other way round, and says how much may be sent."""
    driver.send(REQUEST)
    [(header, data)] = driver.packets()
    assert (header.src_cid, header.dst_cid) == (2, CID)
    assert (header.src_port, header.dst_port) == (10, 5)
    assert (header.op, header.type, header.buf_alloc, data) == (RESPONSE, 1, BUFFER, b"")


def test_data_both_ways(talking):
    """As bytes that may be cut anywhere."""
    peer = talking.hub.peers[0]
    talking.send(RW, b"from the guest")
    assert peer.taken == b"from the guest"
    peer.to_guest = b"x" * 300
    peer.connection.ready()
    found = talking.packets()
    assert [header.op for header, _ in found] == [RW, RW]
    assert b"".join(data for _, data in found) == b"x" * 300


def test_nobody_answers(driver):
    """A reset, and nothing is kept."""
    driver.send(REQUEST, dst_port=99)
    assert driver.ops() == [RST]
    assert not driver.device.connections


def test_host_connects(driver):
    """From a port of the host's own; the guest's answer or reset decides."""
    for answer, word in ((RESPONSE, "connected"), (RST, "closed")):
        peer = PeerLog()
        connection = driver.device.connect(22, peer)
        [(header, _)] = driver.packets()
        assert (header.op, header.dst_port) == (REQUEST, 22)
        assert header.src_port == connection.host_port >= 1 << 30
        driver.send(answer, src_port=22, dst_port=header.src_port)
        assert peer.log == [word]


def test_credit_of_the_guest_is_kept(talking):
    """No byte more than it has room for; it is asked once, and goes on when it has read."""
    peer = talking.hub.peers[0]
    peer.to_guest = b"x" * 5000
    peer.connection.ready()
    found = talking.packets()
    assert sum(len(data) for _, data in found) == 1000
    assert found[-1][0].op == ASK
    talking.send(UPDATE, fwd_cnt=0)
    assert talking.ops() == []
    talking.send(UPDATE, fwd_cnt=600)
    assert sum(len(data) for _, data in talking.packets()) == 600


def test_lies_about_credit(talking):
    """A count of more than was sent is no credit."""
    peer = talking.hub.peers[0]
    peer.to_guest = b"x" * 50
    talking.send(UPDATE, fwd_cnt=0xFFFF_FFF0, buf_alloc=8)
    talking.send(UPDATE, fwd_cnt=1 << 31, buf_alloc=0xFFFF_FFFF)
    assert len(b"".join(data for _, data in talking.packets())) <= 50


def test_guest_is_told_of_room(talking):
    """When half the buffer is free again."""
    peer = talking.hub.peers[0]
    for _ in range(2):
        talking.send(RW, b"x" * 40000)
    assert talking.ops() == []
    peer.connection.taken(80000)
    [(header, _)] = talking.packets()
    assert (header.op, header.fwd_cnt) == (UPDATE, 80000)


def test_more_than_the_credit_is_a_reset(talking):
    """The guest that does not keep to it loses the connection, the host no memory."""
    for _ in range(4):
        talking.send(RW, b"x" * 40000)
    assert len(talking.hub.peers[0].taken) <= BUFFER
    assert talking.ops() == [RST]
    assert talking.hub.peers[0].log == ["closed"]


def test_guest_closes(talking):
    """SHUTDOWN of both is answered by a reset once all it sent is handed on."""
    peer = talking.hub.peers[0]
    talking.send(RW, b"last")
    talking.send(SHUTDOWN, flags=3)
    assert peer.log == ["end"] and talking.ops() == []
    peer.connection.taken(4)
    assert talking.ops() == [RST]
    assert peer.log == ["end", "closed"]


def test_guest_ends_its_half(talking):
    """The other half goes on."""
    peer = talking.hub.peers[0]
    talking.send(SHUTDOWN, flags=2)
    assert peer.log == ["end"]
    peer.to_guest = b"still"
    peer.connection.ready()
    assert talking.packets()[0][1] == b"still"
    talking.send(SHUTDOWN, flags=1)
    assert talking.ops() == [RST]


def test_data_after_the_end_is_a_reset(talking):
    """SHUTDOWN_SEND was a promise."""
    talking.send(SHUTDOWN, flags=2)
    talking.send(RW, b"more")
    assert talking.ops() == [RST]


def test_host_closes_after_its_data(talking):
    """SHUTDOWN comes behind what is pending; the guest's reset ends it."""
    peer = talking.hub.peers[0]
    peer.to_guest = b"x" * 1200
    peer.connection.ready()
    peer.connection.shut(3)
    ops = talking.ops()
    assert SHUTDOWN not in ops
    talking.send(UPDATE, fwd_cnt=1000)
    last = talking.packets()
    assert [header.op for header, _ in last] == [RW, SHUTDOWN]
    assert last[-1][0].flags == 3
    talking.send(RST)
    assert peer.log == ["closed"]


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"op": RW, "src_port": 77}, [RST]),
        ({"op": SHUTDOWN, "src_port": 77}, [RST]),
        ({"op": RST, "src_port": 77}, []),
        ({"op": 0}, [RST]),
        ({"op": 8}, [RST]),
        ({"op": 0xFFFF}, [RST]),
        ({"op": RESPONSE}, [RST]),
        ({"op": REQUEST}, [RST]),
        ({"op": RW, "type": 2}, [RST]),
        ({"op": REQUEST, "src_port": 6, "type": 2}, [RST]),
        ({"op": RW, "dst_cid": 1}, []),
        ({"op": RW, "src_cid": 3}, []),
        ({"op": REQUEST, "src_port": 6, "dst_cid": 1 << 40}, []),
    ],
)
def test_packets_that_make_no_sense(talking, fields, answer):
    """What is of no connection is reset, what is of no address is not there."""
    talking.send(**fields)
    assert talking.ops() == answer
    assert not talking.broken


@pytest.mark.parametrize("data", [b"", b"x" * 43])
def test_short_headers_break_the_device(driver, data):
    """There is nobody to answer to."""
    driver.queues[1].add([data] if data else (), [] if data else [1])
    driver.pci.notify(1)
    assert driver.broken


def test_length_that_is_not_there(talking):
    """A header that says more than the buffer holds."""
    talking.send(RW, b"abc", size=4)
    assert talking.broken and "says 4" in talking.host.warnings[0]


def test_buffers_too_small_break_the_device():
    """There must be room for a header, and for data where there is some."""
    driver = VsockDriver(room=40)
    driver.send(REQUEST)
    assert driver.broken
    driver = VsockDriver(room=44)
    driver.send(REQUEST)
    driver.packets()
    driver.hub.peers[0].to_guest = b"x"
    driver.device.call(driver.hub.peers[0].connection.ready)
    assert driver.broken


def test_flood_without_buffers_is_bounded():
    """Packets for which resets are due wait in the ring when the resets cannot go out."""
    driver = VsockDriver(buffers=0)
    for port in range(400):
        driver.send(RW, src_port=1000 + port)
        if not driver.queues[1].free:
            break
    assert len(driver.device._answers) <= 256
    assert len(driver.packets(refill=False)) == 0
    driver.give(8)
    assert len(driver.ops()) >= 256


def test_connections_are_bounded(driver):
    """One too many is refused; both of guest and host."""
    for port in range(CONNECTIONS_MAX + 10):
        driver.send(REQUEST, src_port=1000 + port)
        driver.packets()
    assert len(driver.device.connections) == CONNECTIONS_MAX
    assert driver.device.connect(1, PeerLog()) is None


def test_connections_take_turns(driver):
    """One with much to say does not keep the others waiting."""
    for port in (1, 2):
        driver.send(REQUEST, src_port=port, buf_alloc=1 << 20)
    driver.packets()
    for peer in driver.hub.peers:
        peer.to_guest = b"x" * 2000
    for peer in driver.hub.peers:
        peer.connection.ready()
    ports = [header.dst_port for header, data in driver.packets() if data]
    assert {1, 2} <= set(ports[7:12])


def test_restore_resets_all(talking):
    """The guest is told by an event (5.10.6.7); the peers are gone."""
    state = talking.device.state()
    talking.device.restore(state)
    assert talking.device.state() == state
    assert talking.hub.peers[0].log == ["closed"]
    talking.pci.notify(2)
    assert [data for _, data in talking.queues[2].collect()] == [b"\0\0\0\0"]


def test_reset_forgets_connections(talking):
    """And the driver's next life begins with none."""
    talking.pci.status = 0
    assert talking.hub.peers[0].log == ["closed"]
    assert not talking.device.connections and not talking.device._senders
    talking.bring_up()
    talking.send(REQUEST)
    assert talking.ops() == [RESPONSE]


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFF_FFFF, 1 << 40])
def test_addresses_that_cannot_be(cid):
    """0 to 2 are reserved, and what is above 32 bits."""
    with pytest.raises(ValueError, match="address"):
        Vsock(cid, TestHub())


STEP = st.one_of(
    st.tuples(
        st.just("packet"),
        st.fixed_dictionaries(
            {
                "op": st.integers(0, 9),
                "src_port": st.integers(0, 3),
                "dst_port": st.sampled_from([10, 11, 99, 1 << 30]),
                "flags": st.integers(0, 5),
                "buf_alloc": st.sampled_from([0, 10, 1000, 0xFFFF_FFFF]),
                "fwd_cnt": st.sampled_from([0, 1, 500, 0xFFFF_FFFF]),
                "data": st.sampled_from([b"", b"x", b"y" * 1000]),
            }
        ),
    ),
    st.tuples(st.just("host"), st.integers(0, 5), st.sampled_from(["data", "shut", "abort"])),
    st.tuples(st.just("dial"), st.integers(0, 3)),
    st.tuples(st.just("collect")),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(STEP, max_size=40))
def test_any_driver_is_survived(steps):
    """No exception; each peer is closed once, never gets more than the buffer; queues agree."""
    driver = VsockDriver()
    peers = driver.hub.peers
    for kind, *values in steps:
        if kind == "packet":
            driver.send(**values[0])
        elif kind == "dial":
            peer = PeerLog()
            peer.connection = driver.device.connect(values[0], peer)
            peers.append(peer)
        elif kind == "collect":
            driver.packets()
        elif values[0] < len(peers) and peers[values[0]].connection is not None:
            peer = peers[values[0]]
            if values[1] == "data" and peer.connection.alive:
                peer.to_guest += b"data"
                peer.connection.ready()
            elif values[1] == "shut":
                peer.connection.shut(3)
            else:
                peer.connection.abort()
        driver.host.turn()
        device = driver.device
        assert set(device._senders) == device._queued
        assert device._queued <= set(device.connections.values())
        for peer in peers:
            assert len(peer.taken) <= BUFFER
            assert peer.log.count("closed") <= 1
            if peer.connection is not None:
                assert peer.connection.alive == ("closed" not in peer.log)
    assert not driver.broken
    driver.pci.status = 0
    assert all("closed" in peer.log for peer in peers if peer.connection is not None)


# The host's end, with a driver that is the guest


@pytest.fixture
def world(tmp_path):
    """A hub at a path, and a thread that is the loop and the guest's echo at port 7."""
    path = str(tmp_path / "v")
    driver = VsockDriver(hub=VsockHub(path), room=4096)
    yield driver, path
    driver.device.close()
    assert not os.path.exists(path)


def serve(driver):
    """Call who watches a descriptor that is ready, until none is."""
    import select

    for _ in range(1000):
        driver.host.turn()
        poll = select.poll()
        for fd, (events, _) in driver.host.watched.items():
            poll.register(fd, events)
        ready = poll.poll(20)
        if not ready:
            return
        for fd, events in ready:
            driver.host.watched[fd][1](events)
    raise AssertionError("no end of events")


def test_connect_convention(world):
    """CONNECT is a request; OK comes with the answer, then data."""
    driver, path = world
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"CONNECT 7\nand data")
        serve(driver)
        [(header, _)] = driver.packets()
        assert (header.op, header.dst_port) == (REQUEST, 7)
        driver.send(RESPONSE, src_port=7, dst_port=header.src_port)
        assert client.recv(100) == b"OK %d\n" % header.src_port
        assert [data for _, data in driver.packets()] == [b"and data"]
        driver.send(RW, b"answer", src_port=7, dst_port=header.src_port)
        assert client.recv(100) == b"answer"
        driver.send(SHUTDOWN, src_port=7, dst_port=header.src_port, flags=3)
        serve(driver)
        assert client.recv(100) == b""
    assert not driver.hub.peers


@pytest.mark.parametrize(
    "line",
    [b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"HELLO 3\n", b"\n", b"C" * 32, b""],
)
def test_other_first_lines_are_hung_up_on(world, line):
    """The client sees the end, the guest nothing."""
    driver, path = world
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        serve(driver)
        assert client.recv(100) == b""
    assert driver.packets() == [] and not driver.hub.peers


def test_guest_reaches_a_listener(world):
    """At the path with the port behind it."""
    driver, path = world
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path + "_10")
        server.listen()
        driver.send(REQUEST)
        assert driver.ops() == [RESPONSE]
        client, _ = server.accept()
        with client:
            driver.send(RW, b"hello")
            assert client.recv(10) == b"hello"
            client.sendall(b"x" * 3000)
            serve(driver)
            assert sum(len(data) for _, data in driver.packets()) == 1000
        serve(driver)
        driver.send(UPDATE, fwd_cnt=1000, buf_alloc=1 << 16)
        assert driver.ops()[-1] == SHUTDOWN
        driver.send(RST)
        serve(driver)
    assert not driver.hub.peers


def test_slow_reader_is_bounded(world):
    """What he does not read waits in the buffer, which the guest has no credit to exceed."""
    driver, path = world
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path + "_10")
        server.listen()
        driver.send(REQUEST)
        driver.packets()
        client, _ = server.accept()
        sent = 0
        for _ in range(100):
            if driver.device.connections:
                driver.send(RW, b"x" * 16000)
                sent += 16000
            driver.packets()
        assert not driver.device.connections, "it sent more than its credit"
        assert all(len(peer._output) <= BUFFER for peer in driver.hub.peers)
        client.close()
        serve(driver)
    assert not driver.hub.peers


def test_connect_from_python(world):
    """The helper gets a socket, or is told that nobody listens."""
    driver, path = world
    found = []

    def dial():
        try:
            found.append(connect(path, 7, timeout=20))
        except VsockRefused as error:
            found.append(error)

    for answer in (RESPONSE, RST):
        thread = threading.Thread(target=dial)
        thread.start()
        while not (packets := driver.packets()):
            serve(driver)
        driver.send(answer, src_port=7, dst_port=packets[0][0].src_port)
        serve(driver)
        thread.join(20)
    assert isinstance(found[1], VsockRefused)
    found[0].close()
    with pytest.raises(FileTrouble, match="no VM's socket"):
        connect(path + "nobody", 1)


def test_paths(tmp_path):
    """A socket that is in use stays, one that nobody listens on goes, a file stays."""
    path = str(tmp_path / "v")
    first = VsockDriver(hub=VsockHub(path))
    with pytest.raises(FileTrouble, match="in use"):
        VsockDriver(hub=VsockHub(path))
    first.hub._listener.socket.close()
    VsockDriver(hub=VsockHub(path)).device.close()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileTrouble):
        VsockDriver(hub=VsockHub(str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UsageError, match="at most 96 bytes"):
        VsockHub("x" * 97)
