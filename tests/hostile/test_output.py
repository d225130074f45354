"""Guests that talk too much, to readers that do not read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import RLock
from typing import Literal

import pytest

from kvmkit import VM
from kvmkit.board.bus import BoardBus, TracingBus
from kvmkit.board.console import BACKLOG
from kvmkit.board.power import EndKind
from tests.hostile.guests import ENGINES, FOREVER, POWER_OFF, kernel, need, out

FLOOD = b"\x66\xba\xf8\x03\xb0A" + b"\xee" * 32 + b"\xeb" + bytes([256 - 34])
STRINGS = (
    b"\x66\xba\xf8\x03"  # mov dx, 0x3f8
    b"\xb9\x00\x40\x00\x00\xbe\x00\x00\x20\x00"  # mov ecx, 16384; mov esi, 2 MiB
    b"\xf3\x6e\xeb\xf2"  # rep outsb; and again
)
DEBUG_PORT = FLOOD.replace(b"\xf8\x03", b"\xe9\x00")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", [FLOOD, STRINGS, DEBUG_PORT], ids=["out", "outsb", "debug port"])
def test_reader_that_never_reads_costs_no_memory(tmp_path: Path, engine: str, code: bytes) -> None:
    """The guest waits when a megabyte is left over; the switches work all the while."""
    need(engine)
    reader, writer = os.pipe()
    try:
        with VM(kernel(tmp_path, code), engine=engine, console=writer, memory="8M") as vm:
            vm.start()
            console = vm.board.serial.console
            sizes = []
            for _ in range(6):
                time.sleep(0.25)
                began = time.monotonic()
                vm.pause()
                assert time.monotonic() - began < 1
                sizes.append(console.count)
                vm.resume()
            assert sizes[-1] < BACKLOG + (1 << 18)  # what a pipe and a few looks let through
            vm.board.close(patience=0)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.soft
def test_limit_of_time_ends_a_guest_that_waits_for_its_reader(tmp_path: Path) -> None:
    """Time goes on for the limit, and a slow reader is no hang."""
    reader, writer = os.pipe()
    try:
        vm = VM(kernel(tmp_path, FLOOD), engine="soft", console=writer, memory="8M",
                timeout=2, hang_timeout=0.4)  # fmt: skip
        with vm:
            vm.start()
            ending = vm.wait(10)
            vm.board.close(patience=0)
        assert ending is not None and ending.kind is EndKind.TIMED_OUT
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.soft
def test_traced_bus_takes_collected_bytes(tmp_path: Path) -> None:
    """A bus between engine and board sees what the engine collected for it."""
    from kvmkit.board.board import Board

    seen: list[tuple[str, int, int, int]] = []
    vm = VM(kernel(tmp_path, FLOOD[:38] + POWER_OFF + FOREVER), engine="soft", memory="8M")
    start = Board.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Board, "start",
            lambda board: start(board, TracingBus(board.bus, lambda *what: seen.append(what))),
        )  # fmt: skip
        ending = vm.run()
    assert ending.kind is EndKind.POWERED_OFF
    assert seen.count(("out", 0x3F8, 1, ord("A"))) == 32
    assert vm.console_log == b"A" * 32


def test_frozen_bus_waits_for_nobody() -> None:
    """A machine that is being switched off has no slow readers."""
    bus = BoardBus(RLock(), lambda error: None)
    bus.slow = True
    bus.freeze()
    bus.port_write(0x3F8, 1, 0)


def test_a_guest_that_is_ready_again_and_again_is_given_its_input_once() -> None:
    """Else each time would add an end of input to what waits for the guest."""
    from types import SimpleNamespace as Any

    from kvmkit.cli.session import Stage

    attached: list[int] = []
    entry = Any(attach=lambda fd, **more: attached.append(fd))
    vm = Any(board=Any(serial=Any(input=entry)))
    stage = Stage.__new__(Stage)
    stage._attached = False
    stage._terminal = Any(input=7)  # type: ignore[assignment]
    for _ in range(3):
        stage._attach_pipe(vm)  # type: ignore[arg-type]
    assert attached == [7]


@pytest.mark.parametrize("where", ["console", "kernel_log"])
def test_full_disk_is_told(tmp_path: Path, where: Literal["console", "kernel_log"]) -> None:
    """Output that could not be written is no success."""
    port = 0x3F8 if where == "console" else 0x2F8
    code = out(port, ord("x")) + out(port, ord("\n")) + POWER_OFF + FOREVER
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        vm = VM(kernel(tmp_path, code), engine="soft", memory="8M", **{where: full})  # type: ignore[arg-type]
        ending = vm.run()
    finally:
        os.close(full)
    assert ending.kind is EndKind.POWERED_OFF
    assert vm.output_trouble == f"the {where.replace('_', ' ')}: No space left on device"


def test_command_line_ends_with_123_on_a_full_disk(tmp_path: Path) -> None:
    """One line on stderr, and the exit code of files that cannot be written."""
    code = out(0x3F8, ord("x")) + POWER_OFF + FOREVER
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvmkit", "run", "--engine", "soft", "-m", "8M",
             str(kernel(tmp_path, code))],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 123
    assert done.stderr.endswith("kvmkit: output was lost: the console: No space left on device\n")


def test_reader_that_has_gone_is_no_full_disk(tmp_path: Path) -> None:
    """A closed pipe is the reader's choice."""
    reader, writer = os.pipe()
    os.close(reader)
    vm = VM(kernel(tmp_path, out(0x3F8, 10) + POWER_OFF + FOREVER), engine="soft", memory="8M",
            console=writer)  # fmt: skip
    vm.run()
    os.close(writer)
    assert vm.output_trouble == ""


def test_words_of_a_panic_in_a_flood_are_looked_at_once() -> None:
    """A program that prints them all the time fills no queue."""
    from kvmkit.board.clock import BoardClock
    from kvmkit.board.power import Power
    from kvmkit.board.watch import PanicWatch

    calls: list[object] = []
    watch = PanicWatch(Power(), BoardClock(RLock()), calls.append, lambda: None, lambda: b"")
    for _ in range(100):
        watch.tap(b"Kernel panic - not syncing\n---[ end Kernel panic\n")
    assert len(calls) == 1


def test_last_words_of_a_guest_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Escape sequences in a panic's lines come out as what they are."""
    from kvmkit.board.power import Ending
    from kvmkit.cli.session import report

    ending = Ending(EndKind.PANIC, "Kernel panic\x1b]0;owned\a", "a\tb\x1b[2Jc\x9b31m\nnext")
    report(ending, command=False, fresh_line=True)
    told = capsys.readouterr().err
    assert not set(told) & set("\x1b\a\x9b")
    assert "a\tb" in told and told.endswith("  next\n")
