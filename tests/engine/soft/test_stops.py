"""Stops of the software CPU are between two instructions, whatever it is doing.

Guests count with instructions that must not run twice, or not at all, while
another thread stops and resumes them; afterwards the counts must add up.
"""

from __future__ import annotations

import random
import time

import pytest

from tests.engine.soft.guest import DATA, Guest, booted
from tests.engine.soft.test_interrupts import END, VECTOR, X2APIC, handle

pytestmark = pytest.mark.soft

HAMMERING = 0.6  # seconds


def hammer(g: Guest, check: object = None, seconds: float = HAMMERING) -> int:
    """Stop and resume at random moments; the number of stops."""
    rng, stops = random.Random(1), 0
    g.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.random() * 0.001)
        g.pause()
        stops += 1
        if callable(check):
            check()
        g.resume()
    g.pause()
    return stops


def test_counters_in_registers_and_memory_agree() -> None:
    """INC of a register and of memory, PUSH and POP, XADD: one loop, equal counts at each stop."""
    with booted(f"""
        xor ebx, ebx; mov r8d, 1
        again: inc rbx; inc qword ptr [{DATA}]; lock inc qword ptr [{DATA + 8}]
        push rbx; add qword ptr [rsp], 1; pop rax; mov r9d, 1; lock xadd [{DATA + 16}], r9
        xchg [{DATA + 24}], rax; jmp again
    """) as g:
        start = g.state().rip

        def check() -> None:
            state = g.state()
            counts = [g.word(DATA + 8 * i) for i in range(3)]
            # from the loop's start to the interrupted instruction, each count is ahead by 1
            assert counts == sorted(counts, reverse=True)
            assert counts[0] - counts[2] <= 1
            assert state.rbx - counts[0] in (0, 1)
            assert start <= state.rip < start + 80
            assert state.rsp in (0x8000, 0x7FF8)

        assert hammer(g, check) > 20
        assert g.word(DATA) > 1000


def test_each_stop_restarts_the_block_exactly() -> None:
    """A long block of INCs of memory, stopped anywhere: every counter gets every turn."""
    body = "\n".join(f"inc dword ptr [{DATA + 4 * i}]" for i in range(40))
    with booted(f"mov ecx, 300000\n1: {body}\ndec ecx; jnz 1b\n{END}") as g:
        hammer(g)
        g.resume()
        g.wait(20)
        assert {g.word(DATA + 4 * i, 4) for i in range(40)} == {300000}


def test_string_copy_under_stops() -> None:
    """REP MOVSB with a stop in the middle copies each byte, and counts right."""
    with booted(f"""
        again: mov esi, 0x200000; mov edi, 0x400000; mov ecx, 0x100000; rep movsb
        cmp ecx, 0; jne bad; cmp esi, 0x300000; jne bad; cmp edi, 0x500000; jne bad
        inc qword ptr [{DATA}]; jmp again
        bad: ud2
    """) as g:
        g.write(0x200000, random.Random(2).randbytes(0x100000))

        def check() -> None:
            state = g.state()
            if state.rsi >= 0x200000 and state.rcx:
                assert state.rsi - 0x200000 == state.rdi - 0x400000 == 0x100000 - state.rcx

        hammer(g, check)
        assert g.fault is None
        assert g.word(DATA) >= 1
        assert g.read(0x400000, 0x100000) == g.read(0x200000, 0x100000)


def test_stops_with_interrupts() -> None:
    """Stops, timer interrupts and their handler: nothing is lost, nothing is done twice."""
    with booted(f"""
        {X2APIC}
        mov ecx, 0x83e; mov eax, 0xb; xor edx, edx; wrmsr
        mov ecx, 0x832; mov eax, {VECTOR | 1 << 17}; wrmsr
        mov ecx, 0x838; mov eax, 50000; wrmsr
        sti; xor ebx, ebx
        again: inc rbx; push rbx; pop qword ptr [{DATA + 8}]; cmp rbx, [{DATA + 8}]; jne bad
        cmp rsp, 0x8000; jne bad; jmp again
        bad: ud2
    """, chips=True) as g:  # fmt: skip
        handle(g, f"inc qword ptr [{DATA}]; push rbx; mov rbx, 77; pop rbx")
        hammer(g)
        assert g.fault is None
        assert g.word(DATA) > 10


def test_stops_while_halted() -> None:
    """A halted CPU stops and resumes, and still sleeps: it does not run on after HLT."""
    with booted(f"1: hlt; inc dword ptr [{DATA}]; jmp 1b") as g:
        hammer(g, lambda: None, 0.2)
        assert g.word(DATA, 4) == 0
        assert g.state().halted


def test_two_pauses_one_resume() -> None:
    """pause() twice is pause() once; resume() lets it run."""
    with booted(f"1: inc dword ptr [{DATA}]; jmp 1b") as g:
        g.start()
        g.pause()
        g.pause()
        before = g.word(DATA, 4)
        time.sleep(0.02)
        assert g.word(DATA, 4) == before
        g.resume()
        time.sleep(0.05)
        g.pause()
        assert g.word(DATA, 4) != before


def test_pause_before_start() -> None:
    """An engine paused before it starts does not run until resumed."""
    with booted(f"mov dword ptr [{DATA}], 1; {END}") as g:
        g.engine.pause()
        g.start()
        time.sleep(0.05)
        assert g.word(DATA, 4) == 0
        g.engine.resume()
        g.wait()
        assert g.word(DATA, 4) == 1


def test_stop_inside_io() -> None:
    """A pause that comes while the bus works waits for it; the OUT is done once."""
    with booted(f"mov ecx, 200\n1: out 0x10, al; dec ecx; jnz 1b; {END}") as g:
        seen: list[int] = []

        def device(value: int) -> None:
            time.sleep(0.0005)
            seen.append(value)

        g.bus.on_write[0x10] = device
        hammer(g, seconds=0.3)
        g.resume()
        g.wait()
        assert len(seen) == 200
