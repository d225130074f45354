"""Frames on a stream socket."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.backends.net.stream import FrameStream
from tests.backends.net_station import LoopHost, Station


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


class Rig:
    """A stream with a station at one end and a socket at the other."""

    def __init__(self, room: int = 1 << 30) -> None:
        ours, self.peer = socket.socketpair()
        self.ended: list[str] = []
        self.stream = FrameStream(ours.detach(), ended=self.ended.append)
        self.host, self.station = LoopHost(), Station(room)
        self.stream.open(self.host, self.station)
        self.stream.resume()
        self.host.turn()

    def close(self) -> None:
        self.stream.close()
        self.peer.close()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


def views(*frames: bytes) -> list[list[memoryview]]:
    return [[memoryview(frame[:7]), memoryview(frame[7:])] for frame in frames]


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(14, 3000), max_size=20),
    cuts=st.lists(st.integers(1, 4000), max_size=30),
)
def test_frames_arrive_however_they_are_cut(sizes, cuts):
    """Every frame, whole and in order, with bytes coming in any pieces."""
    rig = Rig()
    frames = [os.urandom(size) for size in sizes]
    data = framed(*frames)
    for cut in cuts:
        rig.peer.sendall(data[:cut])
        data = data[cut:]
        rig.host.turn()
    rig.peer.sendall(data)
    for _ in range(3):
        rig.host.turn()
    rig.close()
    assert rig.station.frames == frames


def test_short_frames_are_skipped(rig):
    """Shorter than their header: nobody's."""
    rig.peer.sendall(framed(b"", b"x" * 13, b"y" * 14))
    rig.host.turn()
    assert rig.station.frames == [b"y" * 14]


def test_a_station_without_room_stops_the_reading():
    """What has come waits; what follows stays in the socket, which fills up."""
    rig = Rig(room=1)
    frame = b"z" * 60_000
    rig.peer.sendall(framed(frame, frame))
    rig.host.turn()
    assert len(rig.station.frames) == 1
    assert not rig.host.watched
    rig.peer.setblocking(False)
    taken = 0
    with pytest.raises(BlockingIOError):
        while taken < 64 << 20:
            taken += rig.peer.send(b"\0\0\0\x0e" + bytes(14))
            rig.host.turn()
    rig.station.room = 1 << 30
    rig.stream.resume()
    for _ in range(200):
        rig.host.turn()
    assert rig.station.frames[:2] == [frame, frame]
    assert sum(map(len, rig.station.frames[2:])) == taken // 18 * 14
    rig.close()


def test_a_frame_too_long_ends_it(rig):
    """There is no way to find the next one; the link goes down, with the reason."""
    rig.peer.sendall(b"\x7f\0\0\0" + bytes(100))
    rig.host.turn()
    assert rig.station.link is False
    assert "2130706432" in rig.ended[0]
    assert rig.stream.send(views(b"a" * 60)) == 1


def test_the_other_side_goes(rig):
    """The link goes down once, and frames to send are lost."""
    rig.peer.close()
    rig.host.turn()
    rig.host.turn()
    assert rig.station.link is False and rig.ended == [""]
    assert not rig.host.watched
    assert rig.stream.send(views(b"a" * 60)) == 1


def test_a_full_socket_takes_a_part_and_goes_on(rig):
    """Frames are cut in mid-send; the peer gets each whole, once, in order."""
    frames = [bytes((n % 256,)) * 9000 for n in range(200)]
    waiting = list(frames)
    received = bytearray()
    rig.peer.setblocking(False)
    stopped = 0
    while waiting or len(received) < len(framed(*frames)):
        sent = rig.stream.send(views(*waiting[:8])) if waiting else 0
        stopped += bool(waiting) and sent < min(8, len(waiting))
        waiting = waiting[sent:]
        rig.host.turn()
        if stopped or not waiting:
            try:
                received += rig.peer.recv(50_000)
            except BlockingIOError:
                pass
    assert bytes(received) == framed(*frames)
    assert stopped and rig.station.writables


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=300))
def test_any_bytes_from_the_other_side(data):
    """No exception; the stream lives or the link is down."""
    rig = Rig()
    rig.peer.sendall(data)
    rig.peer.close()
    for _ in range(4):
        rig.host.turn()
    assert rig.station.link is False
    assert all(len(frame) >= 14 for frame in rig.station.frames)
    rig.close()
