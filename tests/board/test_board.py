"""The board around a scripted engine: what the guest's accesses do to the machine."""

from __future__ import annotations

import os
import time

import pytest

from kvmkit.board import layout
from kvmkit.board.power import Ending, EndKind
from kvmkit.engine.cpu import CpuState
from kvmkit.engine.engine import CpuEnd, CpuEndReason
from kvmkit.errors import UsageError
from tests.board.fake_engine import FakeEngine, out, say
from tests.board.machine import make_board

POWER_OFF = out(layout.PM1A_CONTROL, 5 << 10 | 1 << 13, 2)


def run(*script, cpus=1, **config):
    """The ending, the console's log and the engine of a machine that runs ``script``."""
    engine = FakeEngine(*script, vcpus=cpus)
    board = make_board(engine, **config)
    try:
        board.start()
        ending = board.power.wait(5)
    finally:
        board.close()
    assert ending is not None
    return ending, board.serial.console.log, engine


def test_power_off_through_pm1a():
    """SLP_TYP 5 with SLP_EN ends the machine as switched off."""
    ending, _, engine = run(POWER_OFF)
    assert (ending.kind, ending.exit_code) == (EndKind.POWERED_OFF, 0)
    assert engine.closed == 1


def test_console_output_reaches_a_descriptor_and_the_log():
    """COM1 is the console; an unfinished line is put out as well."""
    read, write = os.pipe()
    _, log, _ = run(say(b"one\r\ntwo"), POWER_OFF, console=(write,))
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == log == b"one\r\ntwo"


def test_console_output_reaches_a_callable():
    """A callable gets the same bytes."""
    pieces: list[bytes] = []
    run(say(b"a\nb\nc"), POWER_OFF, console=(pieces.append,))
    assert b"".join(pieces) == b"a\nb\nc"


def test_unfinished_line_is_put_out_soon():
    """A prompt shows although no newline follows."""
    read, write = os.pipe()
    board = make_board(FakeEngine(say(b"login: ")), console=(write,))
    board.start()
    found = os.read(read, 100)
    board.close()
    os.close(read)
    os.close(write)
    assert b"login: ".startswith(found)


def test_kernel_log_goes_to_its_own_sink():
    """COM2 has its own sinks, and is what the machine's log is."""
    console: list[bytes] = []
    log: list[bytes] = []
    run(
        say(b"shell\n"), say(b"kernel\n", 0x2F8), POWER_OFF,
        console=(console.append,), kernel_log=(log.append,),
    )  # fmt: skip
    assert (b"".join(console), b"".join(log)) == (b"shell\n", b"kernel\n")


@pytest.mark.parametrize(
    "step",
    [say(b"kvmkit: exit 7\n", 0x2E8), say(b"noise\r\nkvmkit: exit 7\r\n", 0x2E8), out(0xF4, 7, 4)],
    ids=["com4", "com4-after-noise", "port"],
)
def test_guest_tells_its_exit_status(step):
    """On COM4 or at the exit port; the status is the exit code."""
    ending, _, _ = run(step)
    assert ending == Ending(EndKind.EXITED, status=7)
    assert (ending.exit_code, ending.reason) == (7, "the guest's command exited with status 7")


@pytest.mark.parametrize(
    "step",
    [out(0xCF9, 6), out(0x64, 0xFE)],
    ids=["cf9", "i8042"],
)
def test_reset_ends_the_machine_without_reboot(step):
    """Both ways to reset; with reboot=False they end it with exit code 113."""
    ending, _, _ = run(step, reboot=False)
    assert (ending.kind, ending.exit_code) == (EndKind.REBOOT, 113)


def test_reset_loads_everything_again_and_goes_on():
    """Devices at power-on values, RAM loaded, CPU 0 at its entry, the others waiting."""
    seen: list[tuple[bytes, int]] = []
    board = None

    def step(bus):
        seen.append((board.ram.read(0x1000, 1), bus.port_read(0x3FC, 1)))
        bus.port_write(0x3FC, 1, 3)
        board.ram.write(0x1000, b"\x90")
        board.ram.write(0x2000, b"kept")
        (POWER_OFF if len(seen) == 2 else out(0xCF9, 6))(bus)

    engine = FakeEngine(step, vcpus=3)
    board = make_board(engine)
    board.start()
    ending = board.power.wait(5)
    kept = board.ram.read(0x2000, 4)
    board.close()
    assert ending is not None and ending.kind is EndKind.POWERED_OFF
    assert [found[0] for found in seen] == [b"\xf4", b"\xf4"]
    assert seen[0] == seen[1]
    assert kept == b"kept"
    assert engine.vcpus[0].now.rip == 0x1000
    assert [vcpu.now for vcpu in engine.vcpus[1:]] == [CpuState(waiting_for_sipi=True)] * 2


def test_accesses_between_the_wish_for_a_reset_and_the_reset_reach_nobody():
    """The vCPU that asked runs on for a moment; nothing it does counts."""
    engine = FakeEngine(out(0xCF9, 6), say(b"ghost\n"), POWER_OFF)
    board = make_board(engine)
    resets: list[bool] = []
    board.loop.call_soon = lambda call: resets.append(True)  # the I/O thread is slow today
    board.start()
    time.sleep(0.05)
    log = board.serial.console.log
    board.close()
    assert (resets[:1], log) == ([True], b"")


def test_reports_of_the_guest_are_passed_on():
    """Lines "kvmkit: WORD REST" on COM4; others, and bytes that are no text, are not."""
    told: list[tuple[str, str]] = []
    lines = b"noise\nkvmkit: ready\r\nkvmkit: size 24 80\nkvmkit: exit x\n\xff\xfe\n" + b"y" * 999
    engine = FakeEngine(say(lines + b"\nkvmkit: exit 300\n", 0x2E8))
    board = make_board(engine)
    board.serial.reports.listen(lambda *report: told.append(report))
    board.start()
    ending = board.power.wait(5)
    board.close()
    assert told == [("ready", ""), ("size", "24 80"), ("exit", "x"), ("exit", "300")]
    assert ending == Ending(EndKind.EXITED, status=300 & 0xFF)


def test_first_ending_wins():
    """What comes after is not the reason."""
    ending, _, _ = run(out(0xF4, 3), POWER_OFF, out(0xF4, 4))
    assert ending == Ending(EndKind.EXITED, status=3)


def test_time_limit():
    """A machine that runs too long ends with 124, as timeout(1)."""
    ending, _, _ = run(timeout=0.05)
    assert (ending.kind, ending.exit_code) == (EndKind.TIMED_OUT, 124)


@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        (CpuEndReason.TRIPLE_FAULT, EndKind.TRIPLE_FAULT, 111),
        (CpuEndReason.INTERNAL_ERROR, EndKind.ENGINE_ERROR, 114),
    ],
)
def test_cpu_that_cannot_go_on_ends_the_machine_with_registers(reason, kind, code):
    """The engine's reason becomes an ending with the CPU's registers and code in it."""
    engine = FakeEngine(lambda bus: engine.ended(CpuEnd(0, reason, "told by the engine")))
    board = make_board(engine, b"\xf4\x0f\x0b")
    board.start()
    ending = board.power.wait(5)
    board.close()
    assert ending is not None
    assert (ending.kind, ending.exit_code) == (kind, code)
    assert "told by the engine" in ending.detail
    assert "RIP 0000000000001000" in ending.detail
    assert "hlt" in ending.detail and "ud2" in ending.detail


def test_panic_then_reset_is_a_panic():
    """With panic=-1 the reset follows the message: the ending says what the kernel said."""
    lines = (
        b"[    1.0] Oops: 0002 [#1] SMP\n"
        b"[    1.1] Kernel panic - not syncing: Attempted to kill init!\n"
    )
    ending, _, _ = run(say(b"boot\n" + lines), out(0xCF9, 6))
    assert (ending.kind, ending.exit_code) == (EndKind.PANIC, 110)
    assert ending.reason == "Kernel panic - not syncing: Attempted to kill init!"
    assert ending.detail.startswith("[    1.0] Oops: 0002 [#1] SMP")


def test_panic_with_its_last_line_is_a_panic():
    """Without a reset, the closing line is enough."""
    text = b"Kernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---\n"
    ending, _, _ = run(say(text))
    assert ending.kind is EndKind.PANIC


def test_words_of_a_panic_from_a_living_guest_are_only_words():
    """Somebody greps a log: the CPU idles with interrupts on, so nothing has ended."""
    text = b"Kernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---\n"
    engine = FakeEngine(say(text), vcpus=1)
    board = make_board(engine)
    engine.vcpus[0].now = CpuState(halted=True, rflags=0x202)
    board.start()
    ending = board.power.wait(0.2)
    board.close()
    assert ending is None


def test_silent_boot_hangs():
    """No output and no process for the time given: exit code 112, registers, last lines."""
    ending, _, _ = run(say(b"probing disk\n"), hang_timeout=0.2)
    assert (ending.kind, ending.exit_code) == (EndKind.HUNG, 112)
    assert "CPU 0:" in ending.detail
    assert ending.detail.endswith("last output:\nprobing disk")


def test_boot_that_reached_user_mode_never_hangs():
    """Silence of a machine that has run a process is its own affair."""
    engine = FakeEngine(say(b"ok\n"))
    board = make_board(engine, hang_timeout=0.1)
    state = engine.vcpus[0].now
    engine.vcpus[0].now = CpuState(cr0=0x80000011, cs=type(state.cs)(0x33, 0, 0xFFFFFFFF, 0xA0FB))
    board.start()
    ending = board.power.wait(0.4)
    board.close()
    assert ending is None


def test_pause_stops_guest_time_and_resume_goes_on():
    """Time stands between pause and resume."""
    board = make_board(FakeEngine())
    board.start()
    board.pause()
    board.pause()
    first = board.clock.now()
    time.sleep(0.01)
    stood = board.clock.now() == first
    board.resume()
    time.sleep(0.002)
    went_on = board.clock.now() > first
    board.close()
    assert stood and went_on and not board.paused


def test_typed_bytes_wait_for_the_guest():
    """More than the FIFO holds is handed over as the guest reads."""
    text = bytes(range(65, 91)) * 4
    got = bytearray()

    def read_all(bus):
        bus.port_write(0x3FA, 1, 1)  # FIFO on
        limit = time.monotonic() + 5
        while len(got) < len(text) and time.monotonic() < limit:
            if bus.port_read(0x3FD, 1) & 1:
                got.append(bus.port_read(0x3F8, 1))

    engine = FakeEngine(read_all, POWER_OFF)
    board = make_board(engine)
    board.start()
    board.serial.input.feed(text)
    board.power.wait(5)
    board.close()
    assert got == text


def test_held_input_waits_until_the_driver_has_set_up_the_port():
    """Nothing before the receiver interrupt is enabled, nor for 10 ms after; then it comes."""
    seen: list[int] = []

    def look(bus):
        seen.append(bus.port_read(0x3FD, 1) & 1)
        bus.port_write(0x3F9, 1, 1)
        seen.append(bus.port_read(0x3FD, 1) & 1)
        limit = time.monotonic() + 5
        while not bus.port_read(0x3FD, 1) & 1 and time.monotonic() < limit:
            time.sleep(0.001)
        seen.append(bus.port_read(0x3F8, 1))
        seen.append(bus.port_read(0x3F8, 1))  # the next comes at once

    board = make_board(FakeEngine(look, POWER_OFF), hold_input=True)
    board.serial.input.feed(b"xy")
    board.start()
    board.power.wait(5)
    board.close()
    assert seen == [0, 0, ord("x"), ord("y")]


def test_input_from_a_pipe_is_passed_on_with_its_end():
    """attach() reads a descriptor until its end."""
    read, write = os.pipe()
    ended: list[bool] = []
    engine = FakeEngine()
    board = make_board(engine)
    board.serial.input.attach(read, at_end=lambda: ended.append(True))
    board.start()
    os.write(write, b"hi")
    os.close(write)
    limit = time.monotonic() + 5
    while not ended and time.monotonic() < limit:
        time.sleep(0.001)
    found = [board.bus.port_read(0x3F8, 1) for _ in range(1)]
    board.close()
    os.close(read)
    assert (found, ended) == ([ord("h")], [True])


def test_interrupt_of_a_device_reaches_the_kernels_chips():
    """COM1's interrupt is GSI 4; levels are driven once."""
    _, _, engine = run(out(0x3F9, 2), out(0x3F9, 0), POWER_OFF)
    assert [line for line in engine.lines if line[0] == 4] == [(4, True), (4, False)]


def test_power_button_tells_whether_the_guest_listens():
    """Only a guest that enabled the event hears it."""
    board = make_board(FakeEngine())
    deaf = board.power_button()
    board.bus.port_write(layout.PM1A_EVENT + 2, 2, 0x100)
    heard = board.power_button()
    board.close()
    assert (deaf, heard) == (False, True)


def test_defect_of_a_model_ends_the_machine_with_a_reason():
    """No traceback on a vCPU's thread: an ending that names the place."""
    engine = FakeEngine(out(0x80, 1))
    board = make_board(engine)
    board.post_code.__class__ = type(board.post_code)
    board.bus.unmap_ports(0x80, 1)
    board.bus.map_ports(0x80, 1, Broken())
    board.start()
    ending = board.power.wait(5)
    board.close()
    assert ending is not None and ending.kind is EndKind.ENGINE_ERROR
    assert "ZeroDivisionError" in ending.reason and "test_board.py" in ending.reason


class Broken:
    def read(self, offset, size):
        return 1 // 0

    def write(self, offset, size, value):
        return 1 // 0


def test_every_device_comes_back_from_its_state():
    """restore(state()) is the identity for all that has a state record."""
    board = make_board(FakeEngine())
    board.bus.port_write(0x3FF, 1, 0x12)
    board.bus.port_write(0x70, 1, 0x0B)
    states = {name: device.state() for name, device in board.devices.items()}
    for name, device in board.devices.items():
        device.restore(states[name])
    again = {name: device.state() for name, device in board.devices.items()}
    board.close()
    assert again == states


@pytest.mark.parametrize("cpus", [0, 65, -1])
def test_impossible_numbers_of_cpus_are_refused(cpus):
    """1 to 64."""
    with pytest.raises(UsageError, match="1 to 64 CPUs"):
        make_board(FakeEngine(), cpus=cpus)


def test_failed_plan_frees_everything():
    """The engine is closed, descriptors are gone, the error is the plan's."""
    before = set(os.listdir("/proc/self/fd"))
    engine = FakeEngine()
    with pytest.raises(UsageError):
        make_board(engine, memory=4097 * 1024 + 1)
    assert engine.closed == 1
    assert set(os.listdir("/proc/self/fd")) == before
