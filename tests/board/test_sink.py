"""Output to descriptors that must not block us."""

from __future__ import annotations

import os
import pty
import socket
import threading
import time

from kvmkit.board.sink import DescriptorSink


def test_full_pipe_does_not_block_and_loses_nothing():
    """What does not fit is kept, and written when there is room."""
    read, write = os.pipe()
    sink = DescriptorSink(write)
    data = bytes(range(256)) * 1024
    left = sink.write(data)
    got = bytearray()
    while len(got) < len(data):
        got += os.read(read, 65536)
        sink.write(b"")
    sink.close(0)
    os.close(read)
    os.close(write)
    assert left and got == data


def test_others_who_share_the_descriptor_still_block():
    """O_NONBLOCK is not set for the shell."""
    read, write = os.pipe()
    sink = DescriptorSink(write)
    sink.write(b"x")
    blocking = os.get_blocking(write)
    sink.close(0)
    os.close(read)
    os.close(write)
    assert blocking


def test_reader_that_went_away_breaks_the_sink():
    """Output is dropped from then on."""
    read, write = os.pipe()
    sink = DescriptorSink(write)
    os.close(read)
    left = sink.write(b"x")
    more = sink.write(b"y")
    sink.close(1)
    os.close(write)
    assert (left, more, sink.broken) == (False, False, True)


def test_socket_is_written_without_waiting():
    """A full socket keeps the rest."""
    ours, theirs = socket.socketpair()
    sink = DescriptorSink(ours.fileno())
    left = sink.write(bytes(4 << 20))
    flags = ours.getblocking()
    sink.close(0)
    ours.close()
    theirs.close()
    assert left and flags


def test_terminal_is_written_without_waiting():
    """A terminal that nobody reads."""
    master, slave = pty.openpty()
    sink = DescriptorSink(slave)
    started = time.monotonic()
    left = sink.write(b"line\n" * 100_000)
    took = time.monotonic() - started
    sink.close(0)
    os.close(master)
    os.close(slave)
    assert left and took < 2


def test_file_is_appended_at_the_callers_place(tmp_path):
    """Its offset is shared, so that what the caller writes afterwards follows."""
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        file.write(b"a")
        sink = DescriptorSink(file.fileno())
        sink.write(b"b")
        sink.close(0)
        file.write(b"c")
    assert path.read_bytes() == b"abc"


def test_full_device_is_given_up():
    """ENOSPC ends it instead of looping."""
    with open("/dev/full", "wb", buffering=0) as full:
        sink = DescriptorSink(full.fileno())
        left = sink.write(b"x")
        sink.close(1)
    assert (left, sink.broken) == (False, True)


def test_close_waits_for_a_slow_reader():
    """As long as it is told to."""
    read, write = os.pipe()
    sink = DescriptorSink(write)
    data = bytes(200_000)
    sink.write(data)
    got: list[int] = []

    def drain() -> None:
        while sum(got) < len(data):
            got.append(len(os.read(read, 8192)))
            time.sleep(0.001)

    reader = threading.Thread(target=drain)
    reader.start()
    sink.close(5)
    reader.join()
    os.close(read)
    os.close(write)
    assert sum(got) == len(data)


def test_close_gives_up_on_a_reader_that_does_not_read():
    """After the patience given."""
    read, write = os.pipe()
    sink = DescriptorSink(write)
    sink.write(bytes(200_000))
    started = time.monotonic()
    sink.close(0.05)
    took = time.monotonic() - started
    os.close(read)
    os.close(write)
    assert took < 1
