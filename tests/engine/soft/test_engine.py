"""The life of a software engine: memory slots, ends, defects of handlers, closing."""

from __future__ import annotations

import gc
import os
import threading
import time
from mmap import mmap
from pathlib import Path

import pytest

from kvmkit.engine.engine import CpuEndReason
from tests.engine.soft.guest import CODE, DATA, Guest, booted, guest, long_mode

pytestmark = pytest.mark.soft

SPIN = "1: jmp 1b"
END = "out 0xf4, al; hlt"


@pytest.mark.parametrize("count", [0, -1, 65])
def test_number_of_cpus(count: int) -> None:
    """1 to 64 vCPUs, nothing else."""
    from kvmkit.engine.soft.engine import SoftEngine

    with pytest.raises(ValueError):
        SoftEngine(count)


@pytest.mark.parametrize(
    ("slot", "address", "size"),
    [(1, 0x800, 4096), (1, 0x40000000, 100), (1, 0x40000000, 0), (0, 0x40000000, 4096),
     (1, 0x1000, 4096), (1, (1 << 64) - 4096, 8192)],
)  # fmt: skip
def test_bad_slots(slot: int, address: int, size: int) -> None:
    """A slot must be whole pages, new, and overlap no other."""
    from kvmkit.engine.soft._core import address_of

    with guest() as g, pytest.raises(ValueError):
        g.engine.add_ram(slot, address, address_of(g.ram), size)


def test_removed_memory_is_gone() -> None:
    """After remove_ram, paused, the guest's accesses go to the bus."""
    from kvmkit.engine.soft._core import address_of

    source = f"mov edi, 0x40000000; 1: mov eax, [rdi]; mov [{DATA}], eax; jmp 1b"
    with booted(source) as g:
        extra = mmap(-1, 4096)
        extra[:4] = b"\x01\x02\x03\x04"
        g.engine.add_ram(1, 0x40000000, address_of(extra), 4096)
        g.bus.answer = lambda kind, address, size: 0x55
        g.start()
        while g.word(DATA, 4) != 0x04030201:
            pass
        g.pause()
        g.engine.remove_ram(1)
        g.resume()
        deadline = time.monotonic() + 5
        while g.word(DATA, 4) != 0x55 and time.monotonic() < deadline:
            pass
        assert g.word(DATA, 4) == 0x55
        with pytest.raises(RuntimeError):
            g.engine.remove_ram(0)  # it runs


def test_code_in_removed_memory() -> None:
    """Code whose memory was taken away does not run on from what was translated."""
    from kvmkit.engine.soft._core import address_of

    with booted("mov eax, 0x40000000; call rax; jmp 0x1000") as g:
        extra = mmap(-1, 4096)
        extra[:9] = b"\xff\x04\x25\x00\x90\x00\x00\xc3\x90"  # inc dword ptr [0x9000]; ret
        g.engine.add_ram(1, 0x40000000, address_of(extra), 4096)
        g.start()
        while not g.word(DATA, 4):
            pass
        g.pause()
        g.engine.remove_ram(1)
        extra.close()
        count = g.word(DATA, 4)
        g.bus.answer = lambda kind, address, size: 0xF4F4F4F4F4F4F4F4  # hlt
        g.resume()
        time.sleep(0.05)
        g.pause()
        assert g.word(DATA, 4) - count <= 1
        assert g.state().halted


@pytest.mark.parametrize(
    ("source", "name"),
    [("in al, 0x10", "port_read"), ("out 0x10, al", "port_write"),
     ("mov edi, 0xc0000000; mov eax, [rdi]", "memory_read"),
     ("mov edi, 0xc0000000; mov [rdi], eax", "memory_write"),
     ("mov edi, 0xc0000000; mov ecx, 4; rep stosd", "memory_write"),
     ("mov edi, 0xc0000000; jmp rdi", "memory_read")],
)  # fmt: skip
def test_handler_that_raises(source: str, name: str) -> None:
    """A defect in the bus ends the vCPU with INTERNAL_ERROR and its message, not the process."""

    def defect(*arguments: int) -> int:
        raise LookupError("a defect")

    with booted(f"{source}; {SPIN}") as g:
        setattr(g.bus, name, defect)
        g.run()
        assert [(end.vcpu, end.reason) for end in g.ends] == [(0, CpuEndReason.INTERNAL_ERROR)]
        assert "a defect" in g.ends[0].detail and "LookupError" in g.ends[0].detail


@pytest.mark.parametrize("answer", ["text", None, 1.5, 1 << 70, -1])
def test_handler_that_answers_nonsense(answer: object) -> None:
    """A bus that returns no integer is a defect; too large an integer is cut."""
    with booted(f"in al, 0x10; {END}") as g:
        g.bus.port_read = lambda port, size: answer  # type: ignore[method-assign,assignment,return-value]
        g.run()
        wrong = not isinstance(answer, int)
        assert [end.reason for end in g.ends] == [CpuEndReason.INTERNAL_ERROR] * wrong


def test_timer_that_raises() -> None:
    """A defect in a timer's callback ends the engine in the same way."""

    def defect() -> None:
        raise LookupError("a timer's defect")

    with booted(SPIN, chips=True) as g:
        g.clock.timer(defect).arm(1_000_000)
        g.run()
        assert [end.reason for end in g.ends] == [CpuEndReason.INTERNAL_ERROR]
        assert "a timer's defect" in g.ends[0].detail


def test_triple_fault_is_told_once() -> None:
    """A vCPU's end is told once, and then everything stands still."""
    with booted("lidt [0x9000]; ud2") as g:
        g.run()
        time.sleep(0.05)
        assert len(g.ends) == 1


def test_close_at_any_time() -> None:
    """close() before start, while running, paused, halted, in I/O, ended; and twice."""
    for source, moment in [(SPIN, "new"), (SPIN, "running"), (SPIN, "paused"), ("hlt", "running"),
                           ("1: in al, 0x10; jmp 1b", "running"),
                           ("lidt [0x9000]; ud2", "running")]:  # fmt: skip
        for chips in (False, True):
            with booted(source, chips=chips) as g:
                if moment != "new":
                    g.start()
                    time.sleep(0.005)
                if moment == "paused":
                    g.pause()
                g.close()
                g.close()


def test_closed_engine_refuses() -> None:
    """After close() the engine raises; nothing crashes."""
    with guest() as g:
        g.close()
        with pytest.raises(ValueError):
            g.state()
        with pytest.raises(ValueError):
            g.engine.add_ram(5, 1 << 32, 0x1000, 0x1000)
        g.engine.vcpus[0].interrupt(True)
        g.engine.vcpus[0].nmi()


def test_state_while_running_is_refused() -> None:
    """Registers are read only while paused."""
    with booted(SPIN) as g:
        g.start()
        time.sleep(0.01)
        with pytest.raises(RuntimeError):
            g.state()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_nothing_is_left_behind() -> None:
    """Fifty engines, run and closed, leave no thread, file descriptor or memory."""

    def cycle() -> None:
        with booted(f"mov ecx, 1000; 1: loop 1b; {END}", vcpus=3, chips=True) as g:
            g.run()
        g.ram.close()

    for _ in range(5):
        cycle()
    gc.collect()
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    tasks, memory = len(os.listdir("/proc/self/task")), _resident()
    for _ in range(50):
        cycle()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/task")) == tasks
    assert _resident() - memory < 20 << 20


def test_engines_side_by_side() -> None:
    """Several engines run at once in one process, each with its own memory and code."""
    guests = [Guest() for _ in range(4)]
    try:
        for n, g in enumerate(guests):
            g.code(f"mov ecx, 200000; 1: add qword ptr [{DATA}], {n + 1}; loop 1b; {END}", CODE)
            g.restore(long_mode(g))
            g.start()
        for g in guests:
            g.wait()
        assert [g.word(DATA) for g in guests] == [200000 * (n + 1) for n in range(4)]
    finally:
        for g in guests:
            g.close()


def test_engine_dropped_without_close() -> None:
    """An engine that nobody closed and nobody holds is collected."""
    for _ in range(3):
        g = Guest()
        g.restore(long_mode(g))
        del g
    gc.collect()


def test_translated_address() -> None:
    """translate() walks the guest's tables without touching them."""
    with booted(SPIN) as g:
        entry = g.word(0x16000 + 8 * 0x30)
        assert g.engine.core.translate(0, 0x30123) == 0x30123
        assert g.engine.core.translate(0, 0x123456789000) is None
        assert g.word(0x16000 + 8 * 0x30) == entry
