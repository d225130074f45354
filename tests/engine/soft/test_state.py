"""The software CPU's registers as a record: exact, and portable between engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.engine.cpu import CpuState, DescriptorTable, Fpu, Segment
from kvmkit.frozen import replace
from tests.engine.soft.guest import DATA, Guest, booted, guest, long_mode
from tests.engine.soft.test_interrupts import END, VECTOR, X2APIC, handle

pytestmark = pytest.mark.soft

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U16 = st.integers(0, (1 << 16) - 1)
ATTRIBUTES = st.integers(0, 0xFFFF).map(lambda bits: bits & 0xF0FF)
SEGMENTS = st.builds(Segment, U16, U64, U32, ATTRIBUTES)
TASK = st.builds(Segment, U16, U64, U32, st.sampled_from([0x8B, 0x83, 0xC08B]))
TABLES = st.builds(DescriptorTable, U64, U16)
FPU = st.builds(
    Fpu,
    fcw=U16.map(lambda bits: bits & 0x1F3F | 0x40),
    fsw=U16, ftw=st.integers(0, 255), fop=st.integers(0, 0x7FF), fip=U64, fdp=U64,
    mxcsr=U16,
    st=st.tuples(*[st.binary(min_size=10, max_size=10)] * 8),
    xmm=st.tuples(*[st.binary(min_size=16, max_size=16)] * 16),
)  # fmt: skip
FLAGS = U64.map(lambda bits: bits & 0x3F7FD5 | 2)
HELD = (0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102, 0x175, 0x176, 0xC0000103,
        0x277, 0x1A0, 0x10, 0x2FF, 0x8B, 0x200, 0x250)  # fmt: skip
MSRS = st.fixed_dictionaries({}, optional=dict.fromkeys(HELD, U64))
STATES = st.builds(
    CpuState,
    gprs=st.tuples(*[U64] * 16), rip=U64, rflags=FLAGS,
    cs=SEGMENTS, ds=SEGMENTS, es=SEGMENTS, fs=SEGMENTS, gs=SEGMENTS, ss=SEGMENTS,
    ldt=SEGMENTS, tr=TASK, gdt=TABLES, idt=TABLES,
    cr0=U32.map(lambda bits: bits & 0xE005003F | 0x10), cr2=U64, cr3=U64,
    cr4=U32.map(lambda bits: bits & 0x1107FF), cr8=st.integers(0, 15), efer=st.sampled_from(
        [0, 1, 0x100, 0x500, 0xD01]),
    dr=st.tuples(U64, U64, U64, U64, st.just(0xFFFF0FF0), st.just(0x400)),
    fpu=FPU, msrs=MSRS, halted=st.booleans(), waiting_for_sipi=st.booleans(),
    interrupt_shadow=st.booleans(), nmi_masked=st.booleans(),
)  # fmt: skip


@pytest.fixture(scope="module")
def idle() -> Iterator[Guest]:
    """A guest with two vCPUs and chips that never runs; its time stands."""
    with guest(2, chips=True) as g:
        yield g


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(state=STATES, other=STATES)
def test_restore_of_state_is_identity(idle: Guest, state: CpuState, other: CpuState) -> None:
    """What was restored is what is read; a second vCPU's registers are its own."""
    idle.restore(state)
    idle.restore(other, 1)
    for index, expected in enumerate((state, other)):
        once = idle.state(index)
        assert once == replace(expected, msrs=once.msrs)
        assert expected.msrs.items() <= once.msrs.items()
        idle.restore(once, index)
        assert idle.state(index) == once


def test_default_state_is_reset() -> None:
    """A new engine's vCPU 0 is as after a reset, the others wait."""
    with guest(2) as g:
        assert replace(g.state(), msrs={}) == CpuState()
        assert g.state(1).waiting_for_sipi and not g.state().waiting_for_sipi


def test_fs_and_gs_bases_as_registers() -> None:
    """IA32_FS_BASE and IA32_GS_BASE in a record (as KVM's have) count as the segments' bases."""
    with guest() as g:
        g.restore(replace(CpuState(), msrs={0xC0000100: 0x1234, 0xC0000101: 0x5678}))
        assert (g.state().fs.base, g.state().gs.base) == (0x1234, 0x5678)


WORK = f"""
    xor ebx, ebx; fninit; fldpi; fld1; movups xmm5, [{DATA + 256}]
    mov ecx, 0xc0000101; mov eax, {DATA + 512}; xor edx, edx; wrmsr
    again: inc rbx; mov [{DATA}], rbx; add qword ptr gs:[0], 1; std; stc; pushfq; pop rax
    cld; and eax, 0x401; cmp eax, 0x401; jne bad
    movups xmm6, [{DATA + 256}]; pcmpeqb xmm6, xmm5; pmovmskb eax, xmm6; cmp eax, 0xffff; jne bad
    fld st(0); fstp qword ptr [{DATA + 64}]
    cmp dword ptr [{DATA + 128}], 0; je again
    fstp qword ptr [{DATA + 64}]; fstp qword ptr [{DATA + 72}]; {END}
    bad: ud2
"""


def migrate(old: Guest, new: Guest) -> None:
    """Everything a guest is, from one to another."""
    old.pause()
    new.write(0, old.ram[:])
    for index in range(len(old.engine.vcpus)):
        new.restore(old.state(index), index)
    if old.chips is not None:
        for name, chip in old.chips.devices().items():
            new.chips.devices()[name].restore(chip.state())
    if new.clock is not None:
        new.clock.resume(old.clock.now())
        new.clock.pause()


def test_migration_in_the_middle() -> None:
    """A guest goes on in another engine, many times, from wherever it was."""
    with booted(WORK) as first:
        first.write(DATA + 256, bytes(range(16)))
        first.start()
        current, last = first, 0
        for _ in range(20):
            current.bus.done.wait(0.005)
            new = Guest()
            migrate(current, new)
            current.close()
            assert not new.fault
            assert new.word(DATA) >= last
            last, current = new.word(DATA), new
            new.start()
        current.write(DATA + 128, b"\x01")
        current.wait()
        assert current.fault is None
        assert current.word(DATA + 64) == 0x3FF0000000000000
        assert current.word(DATA + 72) == 0x400921FB54442D18
        assert current.word(DATA) == current.word(DATA + 512) == current.state().rbx
        current.close()


def test_migration_with_interrupts_and_two_cpus() -> None:
    """Two vCPUs with timers and halts go on in another engine with chips of its own."""
    source = f"""
        mov eax, 1; cpuid; shr ebx, 24; mov r12d, ebx
        {X2APIC}
        mov ecx, 0x83e; mov eax, 0xb; xor edx, edx; wrmsr
        mov ecx, 0x832; mov eax, {VECTOR | 1 << 17}; wrmsr
        mov ecx, 0x838; mov eax, 300000; wrmsr
        sti; 1: hlt; inc qword ptr [{DATA + 16} + 8 * r12]; rdtsc; shl rdx, 32; or rax, rdx
        cmp rax, r13; jb bad; mov r13, rax; jmp 1b
        bad: ud2
    """
    with booted(source, vcpus=2, chips=True) as first:
        first.restore(first.state().with_gprs(rsp=0x7000), 1)
        handle(first, f"inc qword ptr [{DATA} + 8 * r12]")
        first.start()
        current: Guest = first
        before = [0, 0]
        for _ in range(8):
            current.bus.done.wait(0.05)
            new = Guest(2, chips=True)
            migrate(current, new)
            current.close()
            after = [new.word(DATA), new.word(DATA + 8)]
            assert new.fault is None
            assert all(b > a for a, b in zip(before, after, strict=True))
            before, current = after, new
            new.start()
        current.close()


def test_pages_are_not_remembered_across_restore() -> None:
    """After restore() with another CR3 no old translation is used."""
    with booted(f"1: mov eax, [0x200000]; mov [{DATA}], eax; jmp 1b") as g:
        g.write(0x60000, g.read(0x10000, 0x7000))
        g.write(0x60000, (0x61007).to_bytes(8, "little"))
        g.write(0x61000, (0x62007).to_bytes(8, "little"))
        g.write(0x62008, (0x400087).to_bytes(8, "little"))
        g.write(0x200000, b"\x01")
        g.write(0x400000, b"\x02")
        g.start()
        while g.word(DATA, 4) != 1:
            pass
        g.pause()
        g.restore(replace(g.state(), cr3=0x60000))
        g.resume()
        g.bus.done.wait(0.05)
        g.pause()
        assert g.word(DATA, 4) == 2


def test_long_mode_state_names() -> None:
    """A guest's own LTR and LGDT show in the record as KVM would show them."""
    with guest() as g:
        g.code(f"mov eax, 0x40; ltr ax; {END}")
        g.restore(replace(long_mode(g), tr=Segment(0, 0, 0, 0x8B)))
        g.run()
        tr = g.state().tr
        assert (tr.selector, tr.base, tr.limit, tr.attributes & 0xFF) == (0x40, 0x800, 0x67, 0x8B)
