"""Several vCPUs in turn on the software CPU's one thread."""

from __future__ import annotations

import pytest

from kvmkit.engine.cpu import CpuState, DescriptorTable, Fpu, Segment
from kvmkit.frozen import replace
from tests.engine.soft.guest import DATA, booted, set_gate
from tests.engine.soft.test_interrupts import EOI, HANDLER, RETURN, VECTOR, X2APIC

pytestmark = pytest.mark.soft

END = "out 0xf4, al; hlt"
TRAMPOLINE = 0x2000  # start-up vector 2

# all APs: INIT, SIPI, SIPI as the SDM (vol. 3, 9.4.4) has it, to "all excluding self"
START = """
    mov ecx, 0x830; xor edx, edx; mov eax, 0xc4500; wrmsr
    mov eax, 0xc4602; wrmsr; mov eax, 0xc4602; wrmsr
"""


def test_application_processors_start() -> None:
    """INIT and SIPI start every other vCPU once, in real mode at the vector."""
    with booted(f"{X2APIC} {START} 1: pause; cmp dword ptr [{DATA}], 3; jne 1b; {END}",
                vcpus=4, chips=True) as g:  # fmt: skip
        g.code("""
            mov ax, cs; mov bx, ax; shl bx, 4; lock inc dword ptr [0x9000]
            lock add word ptr [0x9010], ax
            1: cli; hlt; jmp 1b
        """, TRAMPOLINE, 16)  # fmt: skip
        g.run()
        for index in (1, 2, 3):
            state = g.state(index)
            assert (state.cs.selector, state.cs.base) == (0x200, 0x2000)
            assert not state.waiting_for_sipi
        assert g.word(0x9010, 2) == 3 * 0x200


def test_time_stamp_counters_agree() -> None:
    """After INIT and SIPI all vCPUs still have one time-stamp counter."""
    with booted(f"{X2APIC} {START} 1: pause; cmp dword ptr [{DATA}], 1; jne 1b; {END}",
                vcpus=2, chips=True) as g:  # fmt: skip
        g.code("lock inc dword ptr [0x9000]; 1: cli; hlt; jmp 1b", TRAMPOLINE, 16)
        g.run()
        assert g.state(0).msrs[0x10] == g.state(1).msrs[0x10] == g.clock.now()


def test_init_keeps_what_it_must() -> None:
    """INIT resets segments and control registers, but not MSRs, the TSC and the FPU."""
    with booted(f"1: {X2APIC} mov ecx, 0x830; mov edx, 1; mov eax, 0x4500; wrmsr; {END}",
                vcpus=2, chips=True) as g:  # fmt: skip
        fpu = Fpu(xmm=(b"0123456789abcdef",) * 16)
        before = replace(g.state(), halted=True, fpu=fpu, msrs={0xC0000081: 5, 0x10: 1 << 40})
        g.restore(before, 1)
        g.run()
        state = g.state(1)
        assert state.waiting_for_sipi
        assert (state.cr0, state.cr3, state.efer) == (0x60000010, 0, 0)
        assert state.fpu.xmm == fpu.xmm
        assert state.msrs[0xC0000081] == 5
        assert state.msrs[0x10] == (1 << 40) + g.clock.now()


def test_locked_increments_of_all() -> None:
    """Four vCPUs that each LOCK INC and XADD a shared counter lose no count."""
    with booted(f"""
        mov ecx, 20000
        1: lock inc dword ptr [{DATA}]; mov eax, 1; lock xadd [{DATA + 8}], eax
        inc dword ptr [{DATA + 16}]; dec ecx; jnz 1b
        lock inc dword ptr [{DATA + 64}]; cmp dword ptr [{DATA + 64}], 4; jne 2f; out 0xf4, al
        2: hlt; jmp 2b
    """, vcpus=4) as g:
        for index in (1, 2, 3):
            g.restore(g.state(), index)
        g.run()
        assert g.word(DATA, 4) == g.word(DATA + 8, 4) == 80000
        assert g.word(DATA + 16, 4) == 80000  # a switch is never inside an instruction


def test_everyone_gets_a_turn() -> None:
    """vCPUs that spin without PAUSE each get a share of the thread."""
    with booted(f"""
        mov eax, 1; cpuid; shr ebx, 24; lea rdi, [rbx * 8 + {DATA}]
        1: inc qword ptr [rdi]; jmp 1b
    """, vcpus=4) as g:
        for index in (1, 2, 3):
            g.restore(g.state(), index)
        g.start()
        g.bus.done.wait(0.5)
        g.pause()
        counts = [g.word(DATA + 8 * i) for i in range(4)]
        assert min(counts) > 0
        assert max(counts) < 6 * min(counts)


def test_pause_hands_over() -> None:
    """Two vCPUs that hand a token to and fro with PAUSE do so without waiting for a time slice."""
    with booted(f"""
        mov eax, 1; cpuid; shr ebx, 24; mov ecx, 2000
        1: cmp [{DATA}], ebx; je 2f; pause; jmp 1b
        2: xor dword ptr [{DATA}], 1; dec ecx; jnz 1b
        lock inc dword ptr [{DATA + 64}]; cmp dword ptr [{DATA + 64}], 2; jne 3f; out 0xf4, al
        3: hlt; jmp 3b
    """, vcpus=2) as g:
        g.restore(g.state(), 1)
        g.start()
        g.wait(2)  # 4000 slices would be 8 s


def test_interrupt_to_another_cpu_wakes_it() -> None:
    """An IPI wakes a halted vCPU, and its answer comes back."""
    with booted(f"""
        {X2APIC} mov eax, 1; cpuid; shr ebx, 24; test ebx, ebx; jnz ap
        1: pause; cmp dword ptr [{DATA}], 1; jne 1b
        mov ecx, 0x830; mov edx, 1; mov eax, {VECTOR}; wrmsr
        sti; 2: hlt; cmp dword ptr [{DATA + 8}], 2; jne 2b; {END}
        ap: mov dword ptr [{DATA}], 1; sti; 3: hlt; jmp 3b
    """, vcpus=2, chips=True) as g:
        g.restore(g.state().with_gprs(rsp=0x7000), 1)
        g.code(f"""
            push rax; push rcx; push rdx; push rbx
            inc dword ptr [{DATA + 8}]; mov eax, 1; cpuid; shr ebx, 24; test ebx, ebx; jz 1f
            mov ecx, 0x830; xor edx, edx; mov eax, {VECTOR}; wrmsr
            1: pop rbx; pop rdx; pop rcx; pop rax; {EOI} {RETURN}
        """, HANDLER)  # fmt: skip
        set_gate(g, VECTOR, HANDLER)
        g.run()
        assert g.word(DATA + 8, 4) == 2


def test_code_changed_by_another_cpu() -> None:
    """A vCPU that spins in a function sees it changed by another."""
    with booted(f"""
        mov eax, 1; cpuid; shr ebx, 24; test ebx, ebx; jnz ap
        1: call f; cmp eax, 2; jne 1b; {END}
        ap: mov ecx, 100000; 2: loop 2b; mov dword ptr [f + 1], 2; 3: hlt; jmp 3b
        f: mov eax, 1; ret
    """, vcpus=2) as g:
        g.restore(g.state().with_gprs(rsp=0x7000), 1)
        g.run()


def test_each_has_its_own_translations() -> None:
    """INVLPG and CR3 are a vCPU's own; two vCPUs may map one address differently."""
    with booted(f"""
        mov eax, 1; cpuid; shr ebx, 24; test ebx, ebx; jz 1f
        mov eax, 0x60000; mov cr3, rax
        1: mov ecx, 30000
        2: mov eax, [0x200000]; cmp eax, ebx; jne bad; pause; dec ecx; jnz 2b
        lock inc dword ptr [{DATA + 64}]; cmp dword ptr [{DATA + 64}], 2; jne 3f; out 0xf4, al
        3: hlt; jmp 3b
        bad: ud2
    """, vcpus=2) as g:
        # a copy of the tables whose page at 2 MiB is that at 4 MiB
        g.write(0x60000, g.read(0x10000, 0x7000))
        g.write(0x60000, (0x61007).to_bytes(8, "little"))
        g.write(0x61000, (0x62007).to_bytes(8, "little"))
        g.write(0x62008, (0x400087).to_bytes(8, "little"))
        g.write(0x400000, b"\x01")
        g.restore(g.state().with_gprs(rsp=0x7000), 1)
        g.run()
        assert g.fault is None


def test_triple_fault_names_its_cpu() -> None:
    """The end of a vCPU says which one it was."""
    with booted("1: jmp 1b", vcpus=3) as g:
        g.write(TRAMPOLINE, b"\x0f\x0b")
        g.restore(replace(CpuState(), rip=TRAMPOLINE, cs=Segment(0, 0, 0xFFFF, 0x9B),
                          idt=DescriptorTable(0, 0)), 2)  # fmt: skip
        g.run()
        assert [end.vcpu for end in g.ends] == [2]


def test_all_asleep_costs_nothing() -> None:
    """With every vCPU halted the engine's thread sleeps."""
    import time

    with booted("1: hlt; jmp 1b", vcpus=4) as g:
        for index in (1, 2, 3):
            g.restore(g.state(), index)
        g.start()
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1


def test_sixty_four() -> None:
    """The most vCPUs there may be all start."""
    with booted(f"{X2APIC} {START} 1: pause; cmp dword ptr [{DATA}], 63; jne 1b; {END}",
                vcpus=64, chips=True) as g:  # fmt: skip
        g.code("lock inc dword ptr [0x9000]; 1: cli; hlt; jmp 1b", TRAMPOLINE, 16)
        g.run()
        assert g.word(DATA, 4) == 63
