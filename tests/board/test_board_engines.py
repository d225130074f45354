"""The board on the real engines, with guests of a few instructions."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from kvmkit.board.power import EndKind
from kvmkit.engine.cpu import DescriptorTable, flat_protected_mode
from kvmkit.errors import KvmkitError
from tests.board.machine import (
    CODE,
    FOREVER,
    HALT,
    INVALID,
    MIB,
    POWER_OFF,
    make_board,
    out,
    say,
)

GIB = 1 << 30


@pytest.fixture(
    params=[
        pytest.param("kvm", marks=pytest.mark.kvm),
        pytest.param("soft", marks=pytest.mark.soft),
    ],
    autouse=True,
)
def kind(request):
    """Each test runs on either engine."""
    global KIND
    KIND = request.param


def make_engine(cpus=1):
    """An engine of the kind under test; skips if this host has none."""
    from kvmkit.vm import make_engine as make

    try:
        return make(KIND, cpus)
    except KvmkitError as error:
        pytest.skip(f"{KIND}: {error}")


def run(code, *, cpus=1, seconds=10, **config):
    """The ending and the console's log of a guest that runs ``code``."""
    board = make_board(make_engine(cpus), code, **config)
    try:
        board.start()
        ending = board.power.wait(seconds)
    finally:
        board.close()
    assert ending is not None, f"still running; it said {board.serial.console.log!r}"
    return ending, board.serial.console.log


def test_guest_prints_and_powers_off():
    """COM1 and PM1a, through KVM's exits."""
    ending, log = run(say(b"hello\n") + POWER_OFF + HALT)
    assert (ending.kind, log) == (EndKind.POWERED_OFF, b"hello\n")


def test_output_arrives_while_the_guest_runs_on():
    """A guest that never stops: its output is there, and the time limit ends it."""
    read, write = os.pipe()
    ending, _ = run(say(b"spinning\n") + FOREVER, console=(write,), timeout=0.3)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"spinning\n"
    assert ending.kind is EndKind.TIMED_OUT


@pytest.mark.parametrize("wish", [out(0xCF9, 6), out(0x64, 0xFE)], ids=["cf9", "i8042"])
def test_guest_resets_and_starts_again(wish):
    """The first run leaves a mark in RAM, resets; the second finds it and powers off.

    RAM that the plan does not load keeps its content, as on a PC.
    """
    code = (
        b"\x80\x3e\x00\x30\x01"  # cmp byte [0x3000], 1
        + b"\x74" + bytes((len(say(b"A")) + 5 + len(wish) + 2,))  # je second
        + say(b"A") + b"\xc6\x06\x00\x30\x01" + wish + FOREVER  # mov byte [0x3000], 1
        + say(b"B\n") + POWER_OFF + HALT
    )  # fmt: skip
    ending, log = run(code)
    assert (ending.kind, log) == (EndKind.POWERED_OFF, b"AB\n")


def test_many_resets():
    """Twenty resets in a row, with several vCPUs, then power-off."""
    count = b"\xfe\x06\x00\x30"  # inc byte [0x3000]
    done = b"\x80\x3e\x00\x30\x14"  # cmp byte [0x3000], 20
    code = say(b".") + count + done + b"\x74" + bytes((len(out(0xCF9, 6)) + 2,))
    code += out(0xCF9, 6) + FOREVER + POWER_OFF + HALT
    ending, log = run(code, cpus=4)
    assert (ending.kind, log) == (EndKind.POWERED_OFF, b"." * 20)


def test_reset_without_reboot_ends():
    """reboot=False."""
    ending, _ = run(out(0xCF9, 6) + FOREVER, reboot=False)
    assert ending.kind is EndKind.REBOOT


def test_triple_fault_ends_with_registers():
    """An exception without an IDT: ended, with the place and the instruction."""
    entry = replace(flat_protected_mode(CODE, gdt=0x500), idt=DescriptorTable(0, 0))
    ending, _ = run(INVALID + FOREVER, entry=entry)
    assert (ending.kind, ending.exit_code) == (EndKind.TRIPLE_FAULT, 111)
    assert "CPU 0: 32-bit" in ending.detail and "ud2" in ending.detail


def test_exit_status_of_any_value():
    """The exit port carries the low 8 bits."""
    ending, _ = run(out(0xF4, 200) + HALT)
    assert ending.exit_code == 200


def test_halted_guest_hangs():
    """cli; hlt at boot: found by silence, with registers."""
    ending, _ = run(say(b"last words\n") + HALT, hang_timeout=0.4)
    assert ending.kind is EndKind.HUNG
    assert "halted" in ending.detail and "last words" in ending.detail


def test_guest_reads_what_is_typed():
    """A guest that polls the line status gets typed bytes, and echoes them."""
    wait = b"\xba\xfd\x03\xec\xa8\x01\x74\xfb"  # mov dx,3fd; l: in al,dx; test al,1; jz l
    echo = b"\xba\xf8\x03\xec\xee"  # mov dx,3f8; in al,dx; out dx,al
    board = make_board(make_engine(), (wait + echo) * 3 + POWER_OFF + HALT)
    board.serial.input.feed(b"ok\n")
    board.start()
    ending = board.power.wait(10)
    board.close()
    assert ending is not None
    assert board.serial.console.log == b"ok\n"


def test_memory_above_4_gib_is_there():
    """Both slots are mapped; the guest's RAM is the file's."""
    board = make_board(make_engine(), POWER_OFF + HALT, memory=6 * GIB)
    board.start()
    ending = board.power.wait(10)
    resident = board.ram.resident()
    board.close()
    assert ending is not None and ending.ok
    assert resident < 4 * MIB


def test_pause_and_resume_a_running_guest():
    """Thirty times in a row; it still counts on afterwards."""
    count = b"\x66\xff\x06\x00\x30\xeb\xf9"  # l: inc dword [0x3000]; jmp l
    board = make_board(make_engine(), count)
    board.start()
    for _ in range(30):
        board.pause()
        first = board.ram.read_u32(0x3000)
        stood = board.ram.read_u32(0x3000) == first
        assert stood
        board.resume()
    limit = 2_000_000
    while board.ram.read_u32(0x3000) == first and limit:
        limit -= 1
    board.close()
    assert limit


def test_console_flood_with_a_slow_reader_ends_cleanly():
    """A reader that does not read slows the guest down; closing does not wait for it long."""
    read, write = os.pipe()
    flood = b"\xba\xf8\x03\xb0\x41\xee\xeb\xfd"  # mov dx,3f8; mov al,'A'; l: out dx,al; jmp l
    board = make_board(make_engine(), flood, console=(write,))
    board.start()
    ending = board.power.wait(0.3)
    board.serial.console.close(patience=0.05)
    board.close()
    os.close(read)
    os.close(write)
    assert ending is None
    assert len(board.serial.console.log) > 10_000


def test_nothing_is_left_after_twenty_machines():
    """No descriptor and no thread survives its board."""
    run(POWER_OFF + HALT)
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        run(POWER_OFF + HALT, cpus=2)
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
