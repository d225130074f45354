"""What can be seen and heard of a VM from Python: events, registers, memory, console."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmkit import VM, AsyncVM
from kvmkit.errors import (
    BootTimeout,
    CommandTimeout,
    GuestAddressError,
    GuestEnded,
    GuestPanic,
    KvmkitError,
    TripleFault,
    UsageError,
    ending_error,
)
from kvmkit.events import Event
from tests.cli.tiny_kernel import TRIPLE_FAULT
from tests.control.machines import eventually, write_kernel

Start = Callable[..., VM]
ENTRY = 0x100_0000


def test_events_in_order(start: Start) -> None:
    """Each kind, on the I/O thread, with who asked for it."""
    heard: list[Event] = []
    resets: list[str] = []
    vm = start()
    vm.on(None, heard.append)
    vm.on("reset", lambda event: resets.append(threading.current_thread().name))

    vm.pause()
    vm.resume()
    vm.reset()
    vm.console.expect("up", 5)
    vm.powerdown()
    vm.wait(5)
    eventually(lambda: heard and heard[-1].kind == "shutdown")

    assert [event.kind for event in heard] == [
        "stop", "resume", "reset", "powerdown", "shutdown",
    ]  # fmt: skip
    assert heard[-1].guest and heard[-1].ending == vm.ending
    assert resets == ["io"]


def test_a_listener_that_raises(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """Its traceback is shown; the VM runs on and others hear the event."""
    heard: list[Event] = []
    vm = start()
    vm.on("stop", lambda event: 1 // 0)
    vm.on("stop", heard.append)

    vm.pause()
    eventually(lambda: heard)
    vm.off(heard.append)
    vm.resume()

    assert vm.running
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_no_such_event(start: Start) -> None:
    """The kinds that there are."""
    with pytest.raises(UsageError, match=r"no event is called 'explode', expected one of stop"):
        start().on("explode", print)


def test_registers_and_memory(start: Start) -> None:
    """A CPU asleep behind its HLT; RAM by byte and slice, physical and linear."""
    vm = start(cpus=2)
    vm.console.expect("up", 5)

    regs = vm.vcpus[0].regs
    code = vm.memory[ENTRY : ENTRY + 5]
    vm.memory[0x5000:0x5003] = b"abc"
    vm.memory[0x5003] = 0x64

    assert len(vm.vcpus) == 2 and regs.rip >> 12 == ENTRY >> 12 and regs.rsp == 0x300000
    assert code == b"\xbc\x00\x00\x30\x00"  # mov esp, 0x300000
    assert vm.vcpus[0].read(0x5000, 4) == b"abcd" and vm.memory[0x5001] == ord("b")
    assert vm.vcpus[0].translate(0x1234) == 0x1234
    with pytest.raises(GuestAddressError):
        vm.memory[1 << 40]
    with pytest.raises(GuestAddressError, match="begin at 0"):
        vm.memory[-1]
    with pytest.raises(UsageError, match="3 bytes of memory cannot hold 1"):
        vm.memory[0:3] = b"x"
    with pytest.raises(UsageError):
        vm.memory[0:]


def test_expect(start: Start) -> None:
    """Goes on after each match, also over a reset; says what came instead."""
    vm = start()

    first = vm.console.expect(r"(u)p", 5)
    vm.reset()
    second = vm.console.expect(re.compile("U.", re.IGNORECASE), 5)
    with pytest.raises(CommandTimeout, match=r"did not show 'login:' within 0\.05 s") as error:
        vm.console.expect("login:", 0.05)

    assert (first.group(1), second.group()) == ("u", "up")
    assert "it showed: '\\n'" in error.value.hint
    assert isinstance(error.value, TimeoutError)


def test_expect_in_vain_when_it_ends(start: Start) -> None:
    """The ending is the error."""
    vm = start()
    vm.console.expect("up", 5)
    threading.Timer(0.05, vm.kill).start()

    with pytest.raises(GuestEnded, match="ended by its user") as error:
        vm.console.expect("login:", 10)

    assert error.value.ending == vm.ending and "login:" in error.value.hint


def test_wait_for(start: Start) -> None:
    """Events, conditions, and time that runs out."""
    vm = start()
    threading.Timer(0.05, vm.pause).start()

    event = vm.wait_for("stop", 5)
    found = vm.wait_for(lambda: vm.paused and "yes", 5)
    with pytest.raises(CommandTimeout, match=r"the event 'reset' did not come within 0\.02 s"):
        vm.wait_for("reset", 0.02)
    vm.resume()
    with pytest.raises(BootTimeout, match="the guest's first process"):
        vm.wait_for("up", 0.1)
    threading.Timer(0.05, vm.kill).start()
    end = vm.wait_for("shutdown", 5)

    assert isinstance(event, Event) and event.kind == "stop" and found == "yes"
    assert isinstance(end, Event) and end.ending == vm.ending
    with pytest.raises(GuestEnded):
        vm.wait_for("reset", 5)


def test_run_until_exit(tmp_path: Path, polite: Path, engine: str) -> None:
    """A triple fault is one in Python, too; a limit of time; a good end."""
    fault = write_kernel(tmp_path / "fault", TRIPLE_FAULT)
    with pytest.raises((TripleFault, GuestEnded)) as error:
        VM(fault, memory="32M", engine="soft" if engine == "soft" else engine).run_until_exit(10)
    with pytest.raises(CommandTimeout, match=r"has not ended within 0\.1 s"):
        VM(polite, memory="32M", engine=engine).run_until_exit(0.1)
    with pytest.raises(CommandTimeout, match="time limit"):
        VM(polite, memory="32M", engine=engine, timeout=0.1).run_until_exit()
    vm = VM(polite, memory="32M", engine=engine)
    vm.start()
    vm.console.expect("up", 5)
    vm.powerdown()

    assert error.value.ending.detail
    assert vm.run_until_exit(5).ok


def test_endings_have_their_exceptions() -> None:
    """By kind, with the shell's exit code."""
    from kvmkit.board.power import Ending, EndKind

    panic = ending_error(Ending(EndKind.PANIC, "Kernel panic - not syncing: x", "trace"))

    assert isinstance(panic, GuestPanic) and panic.exit_code == 110
    assert str(panic) == "Kernel panic - not syncing: x" and panic.ending.detail == "trace"
    assert type(ending_error(Ending(EndKind.HUNG))).__name__ == "GuestHang"
    assert type(ending_error(Ending(EndKind.EXITED, status=3))) is GuestEnded


def test_a_name_is_readable_and_unique(start: Start) -> None:
    """Generated ones differ; a second VM of a given name is refused, and leaves nothing."""
    one, two = start(), start()
    start("box")

    with pytest.raises(UsageError, match="'box' is running"):
        start("box")
    assert one.name != two.name and "-" in one.name
    one.rename("new")
    assert one.name == "new"


def test_asyncio(polite: Path, engine: str, runtime: Path) -> None:
    """Start, expect, events, cancellation, end: with the event loop going on."""

    async def drive() -> tuple[list[str], str, bool]:
        async with AsyncVM(polite, memory="32M", engine=engine, hang_timeout=None) as vm:
            kinds: list[str] = []

            async def collect() -> None:
                async for event in vm.events():
                    kinds.append(event.kind)

            collector = asyncio.create_task(collect())
            match = await vm.expect("u(.)", 5)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(vm.expect("never"), 0.05)
            await vm.pause()
            await vm.resume()
            vm.vm.powerdown()
            ending = await vm.wait()
            await asyncio.wait_for(collector, 5)
            return kinds, match.group(1), ending.ok

    kinds, letter, ok = asyncio.run(drive())

    assert kinds == ["stop", "resume", "powerdown", "shutdown"] and letter == "p" and ok
    assert list((runtime / "kvmkit").iterdir()) == []


def test_asyncio_passes_errors_on(tmp_path: Path, engine: str) -> None:
    """A kernel that is none; nothing is left behind."""

    async def drive() -> None:
        async with AsyncVM(tmp_path / "none", engine=engine):
            pass

    with pytest.raises(KvmkitError, match=r"does not exist"):
        asyncio.run(drive())
