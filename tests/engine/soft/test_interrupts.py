"""Interrupts on the software CPU, with our own local APICs (Intel SDM vol. 3, 6 and 11)."""

from __future__ import annotations

import pytest

from tests.engine.soft.guest import CODE, DATA, Guest, booted, set_gate

pytestmark = pytest.mark.soft

VECTOR = 0x40
HANDLER = 0x6000
EOI = "push rax; push rcx; push rdx; xor eax, eax; xor edx, edx; mov ecx, 0x80b; wrmsr\n"
RETURN = "pop rdx; pop rcx; pop rax; iretq\n"
X2APIC = """
    mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr
    mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr
"""
STEP = "jmp 9f\n9:"  # interrupts are looked for where a block of code ends
SELF_IPI = f"mov ecx, 0x83f; mov eax, {VECTOR}; xor edx, edx; wrmsr; {STEP}\n"
END = "out 0xf4, al; hlt"


def handle(g: Guest, body: str, vector: int = VECTOR, at: int = HANDLER) -> None:
    """Install a handler that does ``body``, ends the interrupt and returns."""
    g.code(f"{body}\n{EOI}{RETURN}", at)
    set_gate(g, vector, at)


def test_interrupt_is_delivered_and_returns() -> None:
    """A self-IPI arrives, with the flags and RIP of the interrupted code on the stack."""
    with booted(f"{X2APIC} sti; {SELF_IPI} nop; nop; mov ebx, 5; {END}", chips=True) as g:
        handle(g, f"inc dword ptr [{DATA}]; mov rax, [rsp]; mov [{DATA + 8}], rax; "
               f"mov rax, [rsp+16]; mov [{DATA + 16}], rax")  # fmt: skip
        g.run()
        assert g.word(DATA, 4) == 1
        assert g.word(DATA + 8) > CODE
        assert g.word(DATA + 16) & 0x200
        assert g.state().rbx == 5


def test_interrupt_waits_for_sti_and_its_shadow() -> None:
    """With IF clear nothing comes; after STI one more instruction runs first."""
    with booted(f"""
        {X2APIC} cli; {SELF_IPI} mov ecx, 1000; 1: loop 1b
        mov dword ptr [{DATA}], 1; sti; mov dword ptr [{DATA}], 2; mov dword ptr [{DATA}], 3; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"push rax; mov eax, [{DATA}]; mov [{DATA + 8}], eax; pop rax")
        g.run()
        assert g.word(DATA + 8, 4) == 2


def test_interrupt_does_not_come_between_sti_and_cli() -> None:
    """STI directly followed by CLI opens no window."""
    with booted(f"{X2APIC} {SELF_IPI} sti; cli; mov ecx, 1000; 1: loop 1b; {END}", chips=True) as g:
        handle(g, f"inc dword ptr [{DATA}]")
        g.run()
        assert g.word(DATA, 4) == 0


def test_stack_switch_is_not_interrupted() -> None:
    """MOV to SS holds interrupts off for one instruction."""
    with booted(f"""
        {X2APIC} {SELF_IPI} pushfq; pop rbx; or ebx, 0x200; mov eax, 0x18; push rbx
        popfq; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"inc dword ptr [{DATA}]")
        g.run()
        assert g.word(DATA, 4) == 1


def test_halt_wakes_for_an_interrupt() -> None:
    """STI; HLT sleeps until the timer and goes on after it."""
    with booted(f"""
        {X2APIC}
        mov ecx, 0x83e; mov eax, 0xb; xor edx, edx; wrmsr
        mov ecx, 0x832; mov eax, {VECTOR}; wrmsr
        mov ecx, 0x838; mov eax, 5000000; wrmsr
        sti; hlt; mov ebx, 7; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"inc dword ptr [{DATA}]")
        g.run()
        assert g.word(DATA, 4) == 1
        assert g.state().rbx == 7
        assert g.engine.core.stats()["idle"] >= 1


def test_periodic_timer() -> None:
    """The APIC timer in periodic mode interrupts running code again and again."""
    with booted(f"""
        {X2APIC}
        mov ecx, 0x83e; mov eax, 0xb; xor edx, edx; wrmsr
        mov ecx, 0x832; mov eax, {VECTOR | 1 << 17}; wrmsr
        mov ecx, 0x838; mov eax, 1000000; wrmsr
        sti; 1: inc rbx; cmp dword ptr [{DATA}], 5; jb 1b; cli; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"inc dword ptr [{DATA}]")
        g.run()
        assert g.word(DATA, 4) == 5
        assert g.clock.now() >= 5_000_000


def test_tsc_deadline_timer() -> None:
    """IA32_TSC_DEADLINE fires once, not before the time-stamp counter is there."""
    with booted(f"""
        {X2APIC}
        mov ecx, 0x832; mov eax, {VECTOR | 2 << 17}; xor edx, edx; wrmsr
        rdtsc; shl rdx, 32; or rax, rdx; add rax, 3000000; mov rbx, rax; mov rdx, rax; shr rdx, 32
        mov ecx, 0x6e0; wrmsr
        sti; hlt; mov ecx, 0x6e0; rdmsr; mov [{DATA + 16}], eax; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"push rax; push rdx; rdtsc; shl rdx, 32; or rax, rdx; sub rax, rbx; "
               f"mov [{DATA}], rax; inc dword ptr [{DATA + 8}]; pop rdx; pop rax")  # fmt: skip
        g.run()
        assert g.word(DATA + 8, 4) == 1
        assert 0 <= g.word(DATA) < 1 << 63
        assert g.word(DATA + 16, 4) == 0


def test_task_priority_holds_interrupts_off() -> None:
    """CR8 at or above a vector's class holds it off; lowering it lets it through."""
    with booted(f"""
        {X2APIC} sti; mov eax, 4; mov cr8, rax; {SELF_IPI} mov ecx, 1000; 1: loop 1b
        mov eax, [{DATA}]; mov [{DATA + 8}], eax; mov rbx, cr8
        xor eax, eax; mov cr8, rax; nop; nop; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"inc dword ptr [{DATA}]")
        g.run()
        assert (g.word(DATA + 8, 4), g.word(DATA, 4), g.state().rbx) == (0, 1, 4)


def test_reserved_task_priority() -> None:
    """MOV to CR8 of more than 15 is #GP."""
    with booted("mov eax, 16; mov cr8, rax; hlt", chips=True) as g:
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (13, 0)


def test_interrupts_nest_by_priority() -> None:
    """A handler that re-enables interrupts is interrupted by a higher class only."""
    with booted(f"{X2APIC} sti; {SELF_IPI} nop; nop; {END}", chips=True) as g:
        g.code(f"""
            push rcx; push rax; push rdx
            mov ecx, 0x83f; mov eax, 0x60; xor edx, edx; wrmsr
            mov ecx, 0x83f; mov eax, 0x41; wrmsr
            sti; nop; {STEP} nop; cli; mov eax, [{DATA}]; mov [{DATA + 8}], eax
            pop rdx; pop rax; pop rcx; {EOI}{RETURN}
        """, HANDLER)  # fmt: skip
        set_gate(g, VECTOR, HANDLER)
        handle(g, f"or dword ptr [{DATA}], 1", 0x60, 0x6200)
        handle(g, f"or dword ptr [{DATA}], 2", 0x41, 0x6400)
        g.run()
        assert (g.word(DATA + 8, 4), g.word(DATA, 4)) == (1, 3)


def test_nmi_is_masked_until_iret() -> None:
    """An NMI comes with IF clear; a second waits for the first one's IRET."""
    with booted(f"cli; out 0x10, al; {STEP} mov ebx, 1; {END}", chips=True) as g:
        g.code(f"""
            inc dword ptr [{DATA}]; cmp dword ptr [{DATA}], 1; jne 1f
            out 0x10, al; {STEP} mov eax, [{DATA}]; mov [{DATA + 8}], eax
            1: iretq
        """, HANDLER)  # fmt: skip
        set_gate(g, 2, HANDLER)
        g.bus.on_write[0x10] = lambda value: g.engine.vcpus[0].nmi()
        g.run()
        assert (g.word(DATA + 8, 4), g.word(DATA, 4), g.state().rbx) == (1, 2, 1)
        assert not g.state().nmi_masked


def test_nmi_wakes_a_halted_cpu() -> None:
    """CLI; HLT wakes for an NMI."""
    with booted(f"cli; out 0x10, al; hlt; {END}", chips=True) as g:
        g.code(f"inc dword ptr [{DATA}]; iretq", HANDLER)
        set_gate(g, 2, HANDLER)
        g.start()
        while not g.engine.core.stats()["idle"]:
            pass
        g.engine.vcpus[0].nmi()
        g.wait()
        assert g.word(DATA, 4) == 1


def test_xapic_page() -> None:
    """In xAPIC mode the registers are in the page at 0xFEE00000; EOI there ends an interrupt."""
    with booted(f"""
        mov ebx, 0xfee00000; mov dword ptr [rbx + 0xf0], 0x1ff; mov eax, [rbx + 0x20]
        mov [{DATA + 16}], eax; mov eax, [rbx + 0x30]; mov [{DATA + 20}], eax
        sti; mov dword ptr [rbx + 0x300], {VECTOR | 1 << 18}; {STEP} nop
        mov dword ptr [rbx + 0x300], {VECTOR | 1 << 18}; {STEP} nop; {END}
    """, chips=True) as g:  # fmt: skip
        g.code(f"inc dword ptr [{DATA}]; mov dword ptr [rbx + 0xb0], 0; iretq", HANDLER)
        set_gate(g, VECTOR, HANDLER)
        g.run()
        assert g.word(DATA, 4) == 2
        assert g.word(DATA + 16, 4) == 0
        assert g.word(DATA + 20, 4) & 0xFF in range(0x10, 0x20)
        assert not g.bus.log


def test_xapic_page_moves_and_goes() -> None:
    """IA32_APIC_BASE moves the page; x2APIC mode and disabling take it away."""
    with booted(f"""
        mov ecx, 0x1b; mov eax, 0x30900; xor edx, edx; wrmsr
        mov eax, [0x30030]; mov [{DATA}], eax
        mov ebx, 0xfee00000; mov eax, [rbx + 0x30]; mov [{DATA + 4}], eax
        mov ecx, 0x1b; mov eax, 0x30d00; wrmsr; mov eax, [0x30030]; mov [{DATA + 8}], eax
        mov ecx, 0x803; rdmsr; mov [{DATA + 12}], eax
        mov ecx, 0x1b; mov eax, 0x30100; wrmsr; mov eax, [0x30030]; mov [{DATA + 16}], eax
        mov ecx, 0x803; rdmsr
    """, chips=True) as g:  # fmt: skip
        g.write(0x30030, b"\x21\x43\x65\x87")
        g.bus.answer = lambda kind, address, size: 0x99
        g.run()
        version, gone, ram, msr, after = (g.word(DATA + 4 * i, 4) for i in range(5))
        assert version & 0xFF in range(0x10, 0x20)
        assert (gone, ram, after) == (0x99, 0x87654321, 0x87654321)
        assert msr == version
        assert g.fault is not None
        assert g.fault.vector == 13


def test_external_interrupt_from_the_8259() -> None:
    """The 8259A's vector comes through LINT0 as ExtINT."""
    with booted(f"sti; out 0x10, al; {STEP} nop; {END}", chips=True) as g:
        g.code(f"inc dword ptr [{DATA}]; iretq", HANDLER)
        set_gate(g, 0x34, HANDLER)
        pic = g.chips.pic.primary
        for offset, value in ((0, 0x11), (1, 0x30), (1, 4), (1, 1), (1, 0xEF)):
            pic.write(offset, 1, value)
        g.bus.on_write[0x10] = lambda value: g.chips.isa_line(4)(True)
        g.run()
        assert g.word(DATA, 4) == 1


def test_string_instruction_is_interruptible() -> None:
    """REP STOSB over megabytes takes interrupts between iterations and still ends right."""
    with booted(f"""
        {X2APIC}
        mov ecx, 0x83e; mov eax, 0xb; xor edx, edx; wrmsr
        mov ecx, 0x832; mov eax, {VECTOR | 1 << 17}; wrmsr
        mov ecx, 0x838; mov eax, 100000; wrmsr
        sti; mov edi, 0x200000; mov ecx, 0x500000; mov al, 0x5a; cld; rep stosb; cli; {END}
    """, chips=True) as g:  # fmt: skip
        handle(g, f"inc dword ptr [{DATA}]; push rdi; sub rdi, 0x200000; mov [{DATA + 8}], rdi;"
               "pop rdi")  # fmt: skip
        g.run()
        assert g.read(0x200000, 0x500000) == b"\x5a" * 0x500000
        assert g.word(DATA, 4) >= 2
        assert (g.state().rdi, g.state().rcx) == (0x700000, 0)


def test_message_from_another_thread() -> None:
    """An MSI sent while the guest spins is delivered promptly."""
    with booted(f"{X2APIC} sti; out 0x11, al; 1: cmp dword ptr [{DATA}], 0; je 1b; {END}",
                chips=True) as g:  # fmt: skip
        import threading

        handle(g, f"inc dword ptr [{DATA}]")
        ready = threading.Event()
        g.bus.on_write[0x11] = lambda value: ready.set()
        g.start()
        assert ready.wait(5)
        with g.lock:
            g.chips.msi(0xFEE00000, VECTOR)
        g.wait()
        assert g.word(DATA, 4) == 1
