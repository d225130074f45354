"""Writes by others than a CPU into pages with code: devices' DMA."""

from __future__ import annotations

import time

from tests.engine.soft.guest import DATA, DONE, booted

FUNCTION = DATA
FLAG = 0xA000
REQUEST = 0x80
ROUNDS = 300


def give(value: int) -> bytes:
    """mov eax, value; ret."""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"


def test_code_a_device_overwrites_in_an_access_is_run_anew():
    """DMA on the engine's thread, while the guest waits for its OUT."""
    source = f"""
        mov rbx, {FUNCTION}
        call rbx
        out 0x90, eax
        out {REQUEST}, al
        call rbx
        out 0x90, eax
        out {DONE}, al
    1:  hlt
        jmp 1b"""
    with booted(source) as g:
        g.write(FUNCTION, give(1))

        def request(_: int) -> None:
            g.write(FUNCTION, give(2))
            g.engine.memory_written(FUNCTION, 6)

        g.bus.on_write[REQUEST] = request
        g.run()
        assert [value for *_, value in g.bus.log] == [1, 2]
        assert not g.engine.core.has_code(FLAG, 0x1000)


def test_code_that_another_thread_overwrites_is_run_anew():
    """DMA while the guest runs and polls for its end, many times over."""
    source = f"""
        mov rbx, {FUNCTION}
        xor ecx, ecx
    1:  mov edx, [{FLAG}]
        cmp edx, ecx
        je 1b
        mov ecx, edx
        call rbx
        out 0x90, eax
        cmp ecx, {ROUNDS}
        jne 1b
        out {DONE}, al
    2:  hlt
        jmp 2b"""
    with booted(source) as g:
        g.write(FUNCTION, give(0))
        g.start()
        for number in range(1, ROUNDS + 1):
            g.write(FUNCTION, give(number))
            g.engine.memory_written(FUNCTION, 6)
            g.write(FLAG, number.to_bytes(4, "little"))
            limit = time.monotonic() + 10
            while len(g.bus.log) < number and time.monotonic() < limit:
                time.sleep(0)
        g.wait()
        assert [value for *_, value in g.bus.log] == list(range(1, ROUNDS + 1))


def test_pages_with_code_are_known():
    """Only pages that code was translated from; ranges may cross pages, slots and the end."""
    with booted(f"out {DONE}, al\n1: hlt\njmp 1b") as g:
        has_code = g.engine.core.has_code
        assert not has_code(0, 1 << 40)
        g.run()
        assert has_code(0x1000, 1)
        assert has_code(0xFFF, 2)
        assert has_code(0, 1 << 63)
        assert not has_code(0xFFF, 1)
        assert not has_code(0x2000, 0x1000)
        assert not has_code(0x1000, 0)
        assert not has_code(1 << 40, 1 << 40)
        assert not has_code((1 << 64) - 4096, 8192)
    assert not has_code(0x1000, 1)
