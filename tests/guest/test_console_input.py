"""Bytes sent to a console come out of its terminal unchanged.

A pseudo-terminal of the host has the same line discipline as the guest's
console; it is set here as ``init`` sets that one in mode ``pipe``.
"""

from __future__ import annotations

import os
import pty
import termios
import threading

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvmkit.guest.console_input import END_OF_INPUT, encode_input


def through_terminal(pieces: list[bytes], read_size: int) -> bytes:
    """What a program reads, ``read_size`` bytes at a time until end of file."""
    master, slave = pty.openpty()
    try:
        attributes = termios.tcgetattr(slave)
        attributes[0] = 0
        attributes[1] = 0
        attributes[3] = termios.ICANON | termios.IEXTEN
        attributes[6] = [b"\0"] * len(attributes[6])
        attributes[6][termios.VEOF] = b"\x04"
        attributes[6][termios.VLNEXT] = b"\x16"
        termios.tcsetattr(slave, termios.TCSANOW, attributes)

        def send() -> None:
            for piece in pieces:
                rest = memoryview(encode_input(piece))
                while rest:
                    rest = rest[os.write(master, rest) :]
            os.write(master, END_OF_INPUT)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while data := os.read(slave, read_size):
            received += data
        sender.join()
        return bytes(received)
    finally:
        os.close(master)
        os.close(slave)


def test_plain_lines_are_sent_as_they_are() -> None:
    """The common case costs nothing."""
    assert encode_input(b"one\ntwo\n") == b"one\ntwo\n"


def test_special_characters_are_quoted() -> None:
    """VEOF and VLNEXT in the data are preceded by VLNEXT; the partial line is pushed."""
    assert encode_input(b"a\x04b\x16") == b"a\x16\x04b\x16\x16\x04"


def test_long_line_arrives_whole() -> None:
    """A line beyond the terminal's limit of 4095 bytes is not cut."""
    data = b"x" * 100_000 + b"\n" + b"y" * 5000
    assert through_terminal([data], 4096) == data


def test_all_byte_values_arrive() -> None:
    """No byte is special to the command."""
    data = bytes(range(256)) * 8
    assert through_terminal([data], 4096) == data


def test_partial_lines_do_not_end_the_input_for_a_slow_reader() -> None:
    """A reader whose buffer ends exactly at a push does not see an end of file there."""
    assert through_terminal([b"abc", b"def\n", b"ghi"], 1) == b"abcdef\nghi"
    assert through_terminal([b"abc", b"def\n", b"ghi"], 3) == b"abcdef\nghi"


@settings(deadline=None, max_examples=60)
@example([b"", b"\n"], 1)
@given(st.lists(st.binary(max_size=3000), max_size=4), st.sampled_from([1, 7, 1024, 4096, 65536]))
def test_any_bytes_arrive(pieces: list[bytes], read_size: int) -> None:
    """Whatever goes in comes out, for any size of read, and then the end of file."""
    assert through_terminal(pieces, read_size) == b"".join(pieces)
