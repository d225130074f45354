"""Outputs that do not hold up each other."""

from __future__ import annotations

import os
from pathlib import Path

from kvmkit.cli.guest_command import GuestCommand
from kvmkit.cli.streams import Sink


def test_a_full_pipe_does_not_block() -> None:
    """What does not fit waits; the descriptor that others share is as it was."""
    reader, writer = os.pipe()
    sink = Sink(writer)
    sink.waiting.append(bytes(1 << 20))

    first = sink.flush()

    assert 0 < first < 1 << 20
    assert os.get_blocking(writer)
    os.read(reader, first)
    assert sink.flush() > 0
    sink.close()
    os.close(reader)
    os.close(writer)


def test_a_pipe_without_a_reader_is_broken() -> None:
    """Nothing waits for it any more."""
    reader, writer = os.pipe()
    sink = Sink(writer)
    os.close(reader)
    sink.waiting += [b"one", b"two"]

    assert sink.flush() == 6

    assert (sink.broken, sink.trouble) == (True, "")
    sink.close()
    os.close(writer)


def test_a_full_disk_is_remembered() -> None:
    """The bytes are lost, and why is known."""
    writer = os.open("/dev/full", os.O_WRONLY)
    sink = Sink(writer)
    sink.waiting.append(b"lost")

    assert sink.flush() == 4

    assert sink.trouble == "No space left on device"
    os.close(writer)


def test_a_file_gets_everything_at_once(tmp_path: Path) -> None:
    """Behind what others have written to it."""
    with open(tmp_path / "file", "ab") as file:
        file.write(b"before ")
        file.flush()
        sink = Sink(file.fileno())
        sink.waiting += [b"a" * 100_000, b"b"]

        assert sink.flush() == 100_001

    assert (tmp_path / "file").read_bytes() == b"before " + b"a" * 100_000 + b"b"


def test_signals_before_the_program_runs_are_ours() -> None:
    """There is nobody to pass them on to."""
    assert not GuestCommand([("arg", "true")], lambda: None).signal(15)
