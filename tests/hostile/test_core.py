"""The software CPU's C core against hostile guests and careless callers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from mmap import MAP_PRIVATE, PROT_READ, mmap

import pytest

from kvmkit.devices.lapic_registers import INITIAL_COUNT, LVT_TIMER, SVR
from kvmkit.frozen import replace
from tests.engine.soft.asm import assemble
from tests.engine.soft.guest import (
    CODE,
    DATA,
    IDT,
    PAGE_TABLE,
    RAM_SIZE,
    Guest,
    booted,
    guest,
    long_mode,
    set_gate,
)

pytestmark = pytest.mark.soft

HANDLER, COUNT, VECTOR = 0x50000, 0x300, 0x40
TSC_DEADLINE_MODE = 0x40000
COUNT_INTERRUPTS = f"""
    push rax; inc qword ptr [{COUNT}]
    mov eax, 0xfee000b0; mov dword ptr [rax], 0
    pop rax; iretq
"""
"""An interrupt handler: counts, and tells the local APIC that it has ended."""

END = "out 0xf4, al; hlt"


def with_interrupts(g: Guest) -> None:
    """Count what arrives at VECTOR."""
    set_gate(g, VECTOR, HANDLER)
    g.code(COUNT_INTERRUPTS, HANDLER)
    g.chips.apics[0].write(SVR, 4, 0x1FF)


def becomes(wanted: Callable[[], bool], seconds: float = 1.0) -> bool:
    """Whether it comes true in time."""
    limit = time.monotonic() + seconds
    while not wanted() and time.monotonic() < limit:
        time.sleep(0.001)
    return wanted()


def test_interrupt_from_the_thread_that_made_the_machine_wakes_it() -> None:
    """That thread has looked at the machine; it does not run it."""
    with booted("sti\n1: hlt\njmp 1b", chips=True) as g:
        with_interrupts(g)
        g.start()
        assert becomes(lambda: bool(g.engine.core.stats()["idle"]))
        for count in range(1, 4):
            with g.lock:
                g.chips.bus.msi(0xFEE00000, VECTOR)
            assert becomes(lambda count=count: g.word(COUNT) == count)  # type: ignore[misc]


def test_interrupt_from_a_thread_that_has_sampled_wakes_it() -> None:
    """A look at the registers makes no thread the machine's own."""
    with booted("sti\n1: hlt\njmp 1b", chips=True) as g:
        with_interrupts(g)
        g.start()
        seen: list[bool] = []

        def sample_and_type() -> None:
            g.pause()
            g.state()
            g.resume()
            seen.append(becomes(lambda: bool(g.engine.core.stats()["idle"])))
            with g.lock:
                g.chips.bus.msi(0xFEE00000, VECTOR)
            seen.append(becomes(lambda: g.word(COUNT) == 1))

        thread = threading.Thread(target=sample_and_type)
        thread.start()
        thread.join()
        assert seen == [True, True]


@pytest.mark.parametrize("value", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_deadline_in_centuries(value: int) -> None:
    """IA32_TSC_DEADLINE takes any 64-bit number; the guest goes on."""
    with booted(f"mov ecx, 0x6e0; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}; "
                f"wrmsr; {END}", chips=True) as g:  # fmt: skip
        g.chips.apics[0].write(SVR, 4, 0x1FF)
        g.chips.apics[0].write(LVT_TIMER, 4, TSC_DEADLINE_MODE | VECTOR)
        g.run()
        assert (g.fault, g.ends) == (None, [])


def test_storm_of_timer_interrupts_leaves_the_switches_in_our_hands() -> None:
    """A periodic timer of one bus clock: the guest gets on, and pauses at once."""
    with booted(f"sti\n1: inc qword ptr [{DATA}]\njmp 1b", chips=True) as g:
        with_interrupts(g)
        apic = g.chips.apics[0]
        apic.write(LVT_TIMER, 4, 0x20000 | VECTOR)
        apic.write(INITIAL_COUNT, 4, 1)
        g.start()
        assert becomes(lambda: g.word(COUNT) > 100 and g.word(DATA) > 1000, 5)
        began = time.monotonic()
        g.pause()
        assert time.monotonic() - began < 0.5


def test_page_tables_in_read_only_memory() -> None:
    """The processor cannot set accessed and dirty bits there, and does not try."""
    from kvmkit.engine.soft._core import address_of

    rom_at, size = 16 << 20, 0x8000
    with guest() as g:
        state = long_mode(g)
        tables = bytearray(g.read(0x10000, 0x7000))
        for start in range(0, len(tables), 8):  # the copy's tables point to the copy
            entry = int.from_bytes(tables[start : start + 8], "little")
            if start <= 0x2000 and entry & 1:
                entry += rom_at - 0x10000
            tables[start : start + 8] = entry.to_bytes(8, "little")
        g.code(f"mov al, [0x30000]; mov byte ptr [0x31000], 7; {END}")
        g.restore(replace(state, cr3=rom_at))
        content = bytes(tables).ljust(size, b"\0")
        fd = os.memfd_create("rom")
        os.write(fd, content)
        rom = mmap(fd, size, MAP_PRIVATE, PROT_READ)
        os.close(fd)
        g.engine.add_ram(1, rom_at, address_of(rom), size, readonly=True)
        g.run()
        assert (g.fault, g.read(0x31000, 1), rom[:] == content) == (None, b"\x07", True)


def test_store_across_64_bytes_of_code_is_seen() -> None:
    """Code changed by an unaligned store, after the map of code bytes was made.

    Unicorn makes that map after 10 stores to a page that hit no code; two pages
    in turn keep the core from dropping all the page's code before.
    """
    at = 0x30000
    function = ".org 60\nnop; nop; nop; nop; mov eax, 1; ret; .org 2048"
    with booted(f"""
        mov ecx, 24
    1:  mov byte ptr [{at + 0x900}], cl; mov byte ptr [{at + 0x1900}], cl; dec ecx; jnz 1b
        mov ebx, {at + 64}; call rbx; mov [{DATA}], eax
        mov ebx, {at + 0x1040}; call rbx
        mov ecx, 24
    2:  mov byte ptr [{at + 0x900}], cl; mov byte ptr [{at + 0x1900}], cl; dec ecx; jnz 2b
        mov rax, 0x000002b890909090; mov [{at + 60}], rax
        mov ebx, {at + 64}; call rbx; mov [{DATA + 8}], eax
        {END}
    """) as g:  # fmt: skip
        g.write(at, assemble(function, at))
        g.write(at + 0x1000, assemble(function, at + 0x1000))
        g.run()
        assert (g.fault, g.word(DATA, 4), g.word(DATA + 8, 4)) == (None, 1, 2)


def test_breakpoints_are_one_cpu_s_own() -> None:
    """What a vCPU sets in DR7 stops no other one at that address."""
    shared = 0x30000
    with booted(f"""
        mov eax, {shared}; mov dr0, rax; mov eax, 0x402; mov dr7, rax
        mov byte ptr [{DATA}], 1
    1:  pause; cmp byte ptr [{DATA + 8}], 100; jb 1b
        mov eax, {shared}; call rax; {END}
    """, vcpus=2) as g:  # fmt: skip
        g.write(shared, b"\x90\xc3")
        g.code(f"""
        1:  pause; cmp byte ptr [{DATA}], 1; jne 1b
        2:  mov eax, {shared}; call rax; inc byte ptr [{DATA + 8}]; pause
            cmp byte ptr [{DATA + 8}], 100; jb 2b
        3:  pause; jmp 3b
        """, CODE + 0x800)  # fmt: skip
        g.restore(replace(g.state(0), rip=CODE + 0x800).with_gprs(rsp=0x7000), 1)
        g.run()
        assert g.fault is not None and (g.fault.vector, g.fault.ip) == (1, shared)
        assert g.word(DATA + 8, 1) == 100


def test_state_with_breakpoints_goes_round_between_vcpus() -> None:
    """DR7 is read and written right whichever vCPU ran last."""
    with guest(vcpus=2) as g:
        for index, dr7 in ((0, 0x402), (1, 0x408)):
            g.restore(replace(long_mode(g), dr=(CODE, CODE + 8, 0, 0, 0xFFFF0FF0, dr7)), index)
        assert [g.state(i).dr[5] for i in (0, 1, 0, 1)] == [0x402, 0x408, 0x402, 0x408]


def test_closed_machine_answers_without_its_memory() -> None:
    """Whoever still holds a vCPU after the end gets an error or zero."""
    with guest(vcpus=2) as g:
        core = g.engine.core
    assert [core.tsc_offset(index) for index in (0, 1)] == [0, 0]
    core.interrupt(0, True)
    core.nmi(1)
    core.kick()
    core.set_deadline(1)
    core.set_tsc_offset(1, 5)
    core.write(0, b"x")
    core.port_quick(0x80, 1, 2)
    for call in (
        lambda: core.get_state(0), lambda: core.run(), lambda: core.invalidate(0, 4096),
        lambda: core.set_apic_page(0, 0), lambda: core.translate(0, 0),
        lambda: core.remove_ram(0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="closed"):
            call()


def test_running_machine_refuses_what_would_tear_it() -> None:
    """State, RAM and translated code are the engine's while it runs, from any other thread."""
    with booted("1: jmp 1b") as g:
        core = g.engine.core
        g.start()
        for call in (
            lambda: core.get_state(0), lambda: core.remove_ram(0), lambda: core.close(),
            lambda: core.invalidate(0, 4096), lambda: core.set_apic_page(0, 0),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="running"):
                call()


def test_callback_may_look_into_another_machine() -> None:
    """The core knows again whose callback it was."""
    code = f"in al, 0x80; mov byte ptr [0x30000], al; mov byte ptr [0x700000], al; {END}"
    with booted(code) as g, guest() as other:
        other.restore(replace(long_mode(other), rip=0x1234))
        g.bus.answer = lambda kind, address, size: other.state().rip & 0xFF
        g.run()
        assert (g.fault, g.read(0x30000, 1), g.read(0x700000, 1)) == (None, b"\x34", b"\x34")


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_code_outside_ram_runs_into_nothing(bits: int) -> None:
    """A jump to where nobody answers: all ones are no instruction, and no harm."""
    where = {16: "ljmp 0xf000, 0xfff0", 32: "mov eax, 0xfec00000; jmp eax",
             64: "mov eax, 0xc0000000; jmp rax"}[bits]  # fmt: skip
    with booted(where, bits=bits) as g:
        g.bus.answer = lambda kind, address, size: (1 << 8 * size) - 1
        g.start()
        g.bus.done.wait(0.3)
        g.pause()
        assert g.engine.core.stats()["mmio"] > 0 or g.fault or bits == 16


def test_page_tables_outside_ram_fault() -> None:
    """CR3 in the I/O APIC's page: every access faults, and the machine ends by itself."""
    with booted("mov eax, 0xfec00000; mov cr3, rax; mov al, [0x1000]") as g:
        g.start()
        assert becomes(lambda: bool(g.ends))
        assert "TRIPLE_FAULT" in repr(g.ends[0])


def test_page_tables_that_point_to_themselves() -> None:
    """A recursive entry lets the guest see and break its own tables; it harms only itself."""
    with booted(f"""
        mov rdi, 0x10000; mov rax, 0xffffffffffffffff; mov ecx, 0xe00; rep stosq
        mov al, [0x30000]; {END}
    """) as g:  # fmt: skip
        g.start()
        assert becomes(lambda: bool(g.ends) or g.bus.done.is_set())


def test_string_instructions_at_the_edges() -> None:
    """REP MOVS and STOS over the ends of RAM and of the canonical range, both ways."""
    for source, target, count in (
        (RAM_SIZE - 64, RAM_SIZE - 8, 64), (0, RAM_SIZE - 100, 4096), (RAM_SIZE - 4, 0x30000, 64),
        ((1 << 47) - 16, 0x30000, 64), (0x30000, (1 << 64) - 16, 64), (0x30001, 0x30004, 9000),
    ):  # fmt: skip
        for instruction in ("rep movsb", "rep movsd", "rep movsq", "rep stosb", "rep stosq"):
            for direction in ("cld", "std"):
                with booted(f"""
                    {direction}; mov rsi, {source}; mov rdi, {target}; mov ecx, {count}
                    {instruction}; {END}
                """) as g:  # fmt: skip
                    g.start()
                    assert becomes(lambda g=g: g.bus.done.is_set() or bool(g.ends))  # type: ignore[misc]


def test_small_code_buffer_is_used_up_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that changes all the time fills Unicorn's buffer; it starts over, nothing is lost."""
    from kvmkit.engine.soft._core import Machine

    monkeypatch.setattr("kvmkit.engine.soft.engine.Machine", lambda n: Machine(n, 2 << 20))
    with booted(f"""
        mov ecx, 60000
    1:  mov eax, ecx; and eax, 0x3ff; shl eax, 4; add eax, 0x40000
        mov byte ptr [rax], 0xb8; mov [rax + 1], ecx; mov byte ptr [rax + 5], 0xc3
        mov ebx, eax; call rbx; cmp eax, ecx; jne 2f
        dec ecx; jnz 1b
        mov byte ptr [{DATA}], 1
    2:  {END}
    """) as g:  # fmt: skip
        g.start()
        assert becomes(lambda: g.bus.done.is_set() or bool(g.ends), 20)
        g.pause()
        assert (g.fault, g.ends, g.word(DATA, 1)) == (None, [], 1)


def test_interrupt_table_outside_ram() -> None:
    """An IDT in device memory is read there; nonsense gives a triple fault."""
    with booted("lidt [0x30000]; ud2") as g:
        g.write(0x30000, (0xFFF).to_bytes(2, "little") + (0xFEC00000).to_bytes(8, "little"))
        g.bus.answer = lambda kind, address, size: (1 << 8 * size) - 1
        g.start()
        assert becomes(lambda: bool(g.ends))


def test_idt_in_its_own_page_table() -> None:
    """Delivering an interrupt faults while its gate is read, and again in the double fault."""
    with booted(f"mov qword ptr [{PAGE_TABLE + 8 * (IDT >> 12)}], 0; invlpg [{IDT}]; ud2") as g:
        g.start()
        assert becomes(lambda: bool(g.ends))
