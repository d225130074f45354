"""Exceptions on the software CPU: vectors, error codes, stacks (Intel SDM vol. 3, chapter 6)."""

from __future__ import annotations

import pytest

from kvmkit.engine.cpu import DescriptorTable
from kvmkit.engine.engine import CpuEndReason
from kvmkit.frozen import replace
from tests.engine.soft.guest import (
    CODE,
    CODE32,
    CODE64,
    DATA,
    HANDLERS,
    IDT,
    IST_STACK,
    STACK,
    USER_CODE,
    USER_DATA,
    Fault,
    booted,
    page_entry,
    set_gate,
)

pytestmark = pytest.mark.soft


def fault_of(source: str, *, bits: int = 64, user: bool = False) -> Fault:
    """The exception that ends a guest."""
    with booted(source, bits=bits, user=user) as g:
        g.run()
        assert g.fault is not None
        return g.fault


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("source", "vector", "error"),
    [
        ("xor edx, edx; xor ecx, ecx; div ecx", 0, 0),
        ("mov edx, -1; mov ecx, 1; mov eax, ecx; div ecx", 0, 0),
        ("int3", 3, 0),
        ("ud2", 6, 0),
        (".byte 0x0f, 0xff, 0xc0", 6, 0),
        ("mov eax, 0x100; mov ds, eax", 13, 0x100),
        ("mov eax, 0xfff0; ltr ax", 13, 0xFFF0),
        ("xor eax, eax; ltr ax", 13, 0),
        ("mov eax, 0x18; ltr ax", 13, 0x18),
        ("int 0x31", 13, 0x31 << 3 | 2),
        ("mov ecx, 0x12345; rdmsr", 13, 0),
        ("mov ecx, 0x12345; wrmsr", 13, 0),
        ("fldz; fwait", 7, 0),
    ],
)
def test_vector_and_error_code(source: str, vector: int, error: int, bits: int) -> None:
    """The processor picks this vector and error code, in both modes."""
    if vector == 7:
        a = "rax" if bits == 64 else "eax"
        source = f"mov {a}, cr0; or eax, 8; mov cr0, {a}; {source}"
    fault = fault_of(f"{source}; hlt", bits=bits)
    assert (fault.vector, fault.error) == (vector, error)


def test_fault_points_at_the_instruction() -> None:
    """A fault saves the address of the instruction, a trap of the next one."""
    assert fault_of("nop; nop; ud2").ip == CODE + 2
    assert fault_of("nop; nop; int3").ip == CODE + 3


def test_bad_task_register() -> None:
    """LTR faults at its own address, also deep in a block."""
    assert fault_of("nop; nop; xor eax, eax; ltr ax").ip == CODE + 4
    assert fault_of("nop; nop; mov eax, 0x18; ltr ax").ip == CODE + 7


def test_fault_saves_flags_and_stack() -> None:
    """A handler in the same ring finds flags, with carry, and the stack as it was."""
    fault = fault_of("mov esp, 0x7f8d; stc; ud2")
    assert (fault.cs, fault.ss, fault.sp) == (CODE64, 0x18, 0x7F8D)
    assert fault.flags & 0x8D5 == 1


def test_fault_in_user_mode_switches_stacks() -> None:
    """From ring 3 the handler's stack is RSP0 and the old SS:RSP is on it."""
    with booted("mov eax, 1; ud2", user=True) as g:
        g.run()
        assert g.fault is not None
        assert (g.fault.cs, g.fault.ss, g.fault.sp) == (USER_CODE, USER_DATA, STACK - 0x800)
        state = g.state()
        assert state.cs.selector == CODE64
        assert state.rsp == STACK - 8 * 8  # frame of 5, error code, vector, RAX


@pytest.mark.parametrize(
    "source",
    ["hlt", "cli", "lgdt [0x9000]", "mov cr3, rax", "rdmsr", "invlpg [rax]", "wbinvd", "clts",
     "mov dr0, rax", "swapgs", "ltr ax", "in al, 0x80"],
)  # fmt: skip
def test_privileged_instruction_in_user_mode(source: str) -> None:
    """Ring 3 gets #GP(0)."""
    fault = fault_of(source, user=True)
    assert (fault.vector, fault.error, fault.ip) == (13, 0, CODE)


@pytest.mark.parametrize(
    ("source", "address", "set_bits", "clear_bits", "user", "error"),
    [
        ("mov eax, [0x30123]", 0x30123, 0, 1, False, 0),
        ("mov [0x30123], eax", 0x30123, 0, 1, False, 2),
        ("mov eax, [0x30123]", 0x30123, 0, 1, True, 4),
        ("mov [0x30123], eax", 0x30123, 0, 1, True, 6),
        ("mov [0x30123], eax", 0x30123, 0, 2, False, 3),
        ("mov [0x30123], eax", 0x30123, 0, 2, True, 7),
        ("mov eax, [0x30123]", 0x30123, 0, 4, True, 5),
        ("mov eax, 0x30123; jmp rax", 0x30123, 1 << 63, 0, False, 0x11),
        ("mov eax, 0x30123; jmp rax", 0x30123, 1 << 63, 0, True, 0x15),
        ("mov eax, 0x30123; jmp rax", 0x30123, 0, 1, False, 0x10),
        ("mov eax, [0x30123]", 0x30123, 1 << 45, 0, False, 9),
        ("mov eax, [0x2fffe]", 0x30000, 0, 1, False, 0),
    ],
)
def test_page_fault(
    source: str, address: int, set_bits: int, clear_bits: int, user: bool, error: int
) -> None:
    """#PF's error code says why, CR2 where (SDM vol. 3, 4.7)."""
    with booted(f"{source}; hlt", user=user) as g:
        page_entry(g, 0x30000, set_bits=set_bits, clear_bits=clear_bits)
        g.run()
        assert g.fault is not None
        assert g.fault.vector == 14
        assert (g.fault.error, g.fault.cr2) == (error, address)


def test_page_fault_can_be_resumed() -> None:
    """A handler that maps the page and returns lets the instruction run again, once."""
    handler = f"""
        push rax; mov eax, [{0x16000 + 8 * 0x30}]; or eax, 1; mov [{0x16000 + 8 * 0x30}], eax
        pop rax; add rsp, 8; inc dword ptr [0x9100]; iretq
    """
    with booted("mov ecx, 5; 1: add dword ptr [0x30000], ecx; loop 1b; out 0xf4, al; hlt") as g:
        entry = page_entry(g, 0x30000, clear_bits=1)
        assert entry == 0x16000 + 8 * 0x30
        g.code(handler, 0x6000)
        set_gate(g, 14, 0x6000)
        g.run()
        assert g.word(0x30000, 4) == 15
        assert g.word(0x9100, 4) == 1


def test_string_move_resumes_after_a_page_fault() -> None:
    """REP MOVSB interrupted by #PF has RSI, RDI and RCX right at the fault."""
    with booted("mov esi, 0x2e000; mov edi, 0x2ff00; mov ecx, 0x200; rep movsb") as g:
        page_entry(g, 0x30000, clear_bits=1)
        g.write(0x2E000, b"\x5a" * 0x100)
        g.run()
        state = g.state()
        assert (state.rsi, state.rdi, state.rcx) == (0x2E100, 0x30000, 0x100)
        assert g.read(0x2FF00, 0x100) == b"\x5a" * 0x100


@pytest.mark.parametrize("source", ["mov rax, [rbx]", "mov [rbx], rax", "jmp rbx", "call [rbx]"])
def test_non_canonical_address(source: str) -> None:
    """An address whose upper bits are not copies of bit 47 is #GP(0), not #PF."""
    fault = fault_of(f"mov rbx, 0x800000000000; {source}")
    assert (fault.vector, fault.error) == (13, 0)


def test_single_step() -> None:
    """TF traps after each instruction, with DR6.BS set; the handler runs without TF."""
    with booted("pushfq; or dword ptr [rsp], 0x100; popfq; nop; inc rax; inc rax") as g:
        g.run()
        assert g.fault is not None
        assert g.fault.vector == 1
        assert g.fault.ip == CODE + 10  # after the nop that follows POPF
        assert g.state().dr[4] & 0x4000


def test_instruction_breakpoint() -> None:
    """DR0 with DR7.L0 set stops before the instruction there."""
    with booted("lea rax, [rip + 1f]; mov dr0, rax; mov eax, 0x402; mov dr7, rax; nop\n"
                "1: mov ebx, 1; out 0xf4, al; hlt") as g:  # fmt: skip
        g.run()
        assert g.fault is not None
        assert g.fault.vector == 1
        assert g.state().dr[4] & 0xF == 1
        assert g.state().rbx == 0


def test_double_fault_on_its_own_stack() -> None:
    """#PF while the kernel stack is unmapped becomes #DF(0) on IST1's stack."""
    with booted("mov esp, 0x31000; ud2") as g:
        page_entry(g, 0x30000, clear_bits=1)
        set_gate(g, 8, HANDLERS + 16 * 8, ist=1)
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error, g.fault.sp) == (8, 0, 0x31000)
        assert IST_STACK - 0x100 < g.state().rsp < IST_STACK


@pytest.mark.parametrize(("access", "vector"), [(0, 13), (0x0E, 11)])
def test_bad_gate(access: int, vector: int) -> None:
    """An exception through no gate is #GP, through one that is not present #NP, with its index."""
    with booted("ud2") as g:
        g.write(IDT + 16 * 6 + 5, bytes([access]))
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (vector, 6 << 3 | 2)


@pytest.mark.parametrize("bits", [32, 64])
def test_triple_fault_ends_the_cpu(bits: int) -> None:
    """With no IDT the first exception ends the vCPU, and the engine says why."""
    with booted("ud2", bits=bits) as g:
        g.restore(replace(g.state(), idt=DescriptorTable(0, 0)))
        g.run()
        assert [(end.vcpu, end.reason) for end in g.ends] == [(0, CpuEndReason.TRIPLE_FAULT)]


def test_iret_to_user_mode_and_back() -> None:
    """IRETQ loads all five words; a gate of DPL 3 brings ring 3 back."""
    with booted(f"""
        push {USER_DATA}; push 0x7000; push 0x202; push {USER_CODE}; push offset user; iretq
        user: mov eax, cs; mov ebx, ss; int 0x30
    """) as g:
        g.code("mov [0x9000], rax; mov [0x9008], rbx; mov rax, [rsp+24]; mov [0x9010], rax;"
               "out 0xf4, al; hlt", 0x6000)  # fmt: skip
        set_gate(g, 0x30, 0x6000, dpl=3)
        g.run()
        assert (g.word(DATA), g.word(DATA + 8), g.word(DATA + 16)) == (
            USER_CODE, USER_DATA, 0x7000,
        )  # fmt: skip


def test_software_interrupt_needs_the_gates_privilege() -> None:
    """INT n in ring 3 through a gate of DPL 0 is #GP with the gate's index."""
    with booted("int 0x30", user=True) as g:
        set_gate(g, 0x30, 0x6000, dpl=0)
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (13, 0x30 << 3 | 2)


def test_iret_to_a_bad_selector() -> None:
    """IRETQ to a data segment as CS is #GP with the selector."""
    fault = fault_of("push 0x18; push 0x7000; push 2; push 0x18; push 0x1000; iretq")
    assert (fault.vector, fault.error) == (13, 0x18)


def test_iret_to_compatibility_mode() -> None:
    """IRETQ to a 32-bit code segment runs 32-bit code; 0x40 is INC EAX there, no REX."""
    with booted(f"""
        push 0x18; push 0x7000; push 2; push {CODE32}; push offset there; xor eax, eax; iretq
        there: .byte 0x40, 0x40; mov [0x9000], eax; .byte 0xe6, 0xf4; hlt
    """.replace("mov [0x9000], eax;", ".byte 0xa3, 0x00, 0x90, 0, 0;")) as g:
        g.run()
        assert g.word(DATA, 4) == 2
        assert g.state().cs.selector == CODE32


def test_syscall_and_sysret() -> None:
    """SYSCALL saves RIP and RFLAGS, masks flags, loads flat ring 0; SYSRET undoes it."""
    star = 0x20 << 48 | CODE64 << 32
    with booted(f"""
        mov ecx, 0xc0000081; mov eax, {star & 0xFFFFFFFF}; mov edx, {star >> 32}; wrmsr
        mov ecx, 0xc0000082; mov eax, offset kernel; xor edx, edx; wrmsr
        mov ecx, 0xc0000084; mov eax, 0x40600; xor edx, edx; wrmsr
        mov ecx, offset user; mov r11d, 0x203; mov rbp, rsp; sysretq
        user: mov [0x9000], rsp; mov eax, cs; mov [0x9008], rax; std; syscall
        back: pushfq; pop rax; mov [0x9040], rax; mov eax, ss; mov [0x9048], rax; ud2
        kernel: mov [0x9010], rcx; mov [0x9018], r11; mov eax, cs; mov [0x9020], rax
        mov eax, ss; mov [0x9028], rax; mov [0x9030], rsp
        pushfq; pop rax; mov [0x9038], rax; mov r12, offset back; sysretq
    """) as g:
        g.run()
        assert g.fault is not None
        words = [g.word(DATA + 8 * i) for i in range(10)]
        assert words[1] == USER_CODE
        assert g.fault.vector == 6 and g.fault.cs == USER_CODE
        assert words[3] & 0xFD5 == 0x601 & 0xFD5 | 0x0  # DF, IF and CF as user had them
        assert (words[4], words[5]) == (CODE64, DATA_SELECTOR)
        assert words[0] == words[6]  # SYSCALL leaves RSP
        assert words[7] & 0x601 == 1  # IF and DF masked, CF kept
        assert words[8] & 0x601 == 0x601
        assert words[9] == USER_DATA


DATA_SELECTOR = CODE64 + 8


def test_syscall_without_sce() -> None:
    """SYSCALL is #UD unless EFER.SCE is set."""
    with booted("syscall") as g:
        g.restore(replace(g.state(), efer=0xD00))
        g.run()
        assert g.fault is not None
        assert g.fault.vector == 6


def test_sse_needs_osfxsr_and_ts_clear() -> None:
    """SSE is #UD without CR4.OSFXSR and #NM with CR0.TS."""
    assert fault_of("mov rax, cr4; and eax, ~0x200; mov cr4, rax; movaps xmm0, xmm1").vector == 6
    assert fault_of("mov rax, cr0; or eax, 8; mov cr0, rax; movaps xmm0, xmm1").vector == 7


def test_x87_exception() -> None:
    """An unmasked x87 exception is #MF at the next x87 instruction, with CR0.NE."""
    fault = fault_of("fninit; push 0x37b; fldcw [rsp]; fld1; fldz; fdivp; fwait")
    assert fault.vector == 16


def test_instruction_longer_than_15_bytes() -> None:
    """An instruction of more than 15 bytes is #GP(0)."""
    fault = fault_of(".rept 15; .byte 0x66; .endr; nop; hlt")
    assert fault.vector == 13


def test_lock_on_a_register() -> None:
    """LOCK with a register destination is #UD."""
    assert fault_of(".byte 0xf0, 0x01, 0xc0").vector == 6


@pytest.mark.parametrize("user", [False, True])
def test_lock_on_a_bit_test(user: bool) -> None:
    """LOCK BT and BTS of a register are #UD at their own address (and no abort())."""
    for code in ("0xf0, 0x0f, 0xba, 0xe5, 0xfa", "0xf0, 0x0f, 0xab, 0xc3"):
        fault = fault_of(f"mov eax, 1; inc eax; .byte {code}; nop; hlt", user=user)
        assert (fault.vector, fault.ip) == (6, CODE + 7), code


def test_privileged_instructions_of_features_not_announced() -> None:
    """What CPUID does not announce is #UD: XGETBV, RDRAND, VMCALL, RDPID, BZHI."""
    for code in ("0f01d0", "0fc7f0", "f30fc7f8", "c4e270f5c0", "c5f877", "c4e279184000"):
        bytes_ = ",".join(f"0x{code[i : i + 2]}" for i in range(0, len(code), 2))
        assert fault_of(f".byte {bytes_}").vector == 6, code
