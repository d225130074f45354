"""CPUID, model-specific registers and time on the software CPU."""

from __future__ import annotations

import time
from struct import unpack_from

import pytest

from kvmkit.engine.soft.cpuid import TSC_HZ
from kvmkit.frozen import replace
from tests.engine.soft.guest import CODE, DATA, booted

pytestmark = pytest.mark.soft

END = "out 0xf4, al; hlt"


def rdmsr_fault(index: int, *, chips: bool = False) -> bool:
    """Whether RDMSR of a register is #GP."""
    with booted(f"mov ecx, {index}; rdmsr; {END}", chips=chips) as g:
        g.run()
        return g.fault is not None and (g.fault.vector, g.fault.error) == (13, 0)


def wrmsr_fault(index: int, value: int, *, chips: bool = False) -> bool:
    """Whether WRMSR of a value is #GP."""
    load = f"mov ecx, {index}; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}"
    with booted(f"{load}; wrmsr; {END}", chips=chips) as g:
        g.run()
        return g.fault is not None and (g.fault.vector, g.fault.error) == (13, 0)


@pytest.mark.parametrize("index", [0x0, 0x9, 0x8C, 0x400, 0x5000, 0xC0000105, 0xC0010000,
                                   0xFFFFFFFF])  # fmt: skip
def test_unknown_register(index: int) -> None:
    """RDMSR and WRMSR of a register that is not there are #GP(0)."""
    assert rdmsr_fault(index)
    assert wrmsr_fault(index, 0)


@pytest.mark.parametrize("index", [0x10, 0x17, 0x3A, 0x8B, 0xFE, 0x174, 0x1A0, 0x200, 0x277, 0x2FF,
                                   0xC0000080, 0xC0000081, 0xC0000100, 0xC0000103])  # fmt: skip
def test_known_register(index: int) -> None:
    """RDMSR of the architectural registers works."""
    assert not rdmsr_fault(index)


@pytest.mark.parametrize("index", [0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102,
                                   0x175, 0x176])  # fmt: skip
def test_address_must_be_canonical(index: int) -> None:
    """A register that holds an address takes canonical ones only."""
    assert wrmsr_fault(index, 0x0000800000000000)
    assert not wrmsr_fault(index, 0xFFFF800000000000)


@pytest.mark.parametrize(("index", "value"), [(0xC0000080, 0x1D03), (0x3A, 5), (0xFE, 0),
                                              (0xC0000080, 1 << 32)])  # fmt: skip
def test_reserved_bits(index: int, value: int) -> None:
    """Reserved and read-only bits fault."""
    assert wrmsr_fault(index, value)


def test_x2apic_registers_need_x2apic_mode() -> None:
    """0x802 faults in xAPIC mode; 0x1b is there in both."""
    assert rdmsr_fault(0x802, chips=True)
    assert not rdmsr_fault(0x1B, chips=True)
    assert wrmsr_fault(0x1B, 1 << 60, chips=True)


def test_values_are_kept() -> None:
    """What WRMSR wrote, RDMSR reads; SWAPGS exchanges the two GS bases."""
    with booted(f"""
        mov ecx, 0xc0000102; mov eax, 0x9abcdef0; mov edx, 0xffff8765; wrmsr
        mov ecx, 0xc0000101; mov eax, 0x9000; xor edx, edx; wrmsr
        mov dword ptr gs:[0x40], 77; swapgs
        rdmsr; mov [{DATA}], eax; mov [{DATA + 4}], edx
        mov ecx, 0xc0000102; rdmsr; mov [{DATA + 8}], eax
        rdgsbase rax; mov [{DATA + 16}], rax; wrfsbase rax; mov ecx, 0xc0000100; rdmsr
        mov [{DATA + 24}], edx; {END}
    """) as g:
        g.restore(replace(g.state(), cr4=0x10620))
        g.run()
        assert g.word(DATA) == 0xFFFF87659ABCDEF0
        assert g.word(DATA + 8, 4) == 0x9000
        assert g.word(DATA + 16) == 0xFFFF87659ABCDEF0
        assert g.word(DATA + 24, 4) == 0xFFFF8765
        assert g.word(0x9040, 4) == 77


def test_cpuid_of_each_cpu() -> None:
    """Leaves 1 and 0BH tell each vCPU its APIC ID and the number of CPUs."""
    source = f"""
        mov eax, 1; cpuid; shr ebx, 24; mov edi, ebx; shl edi, 6; add edi, {DATA}
        mov [rdi], ebx; mov [rdi + 4], ecx
        mov eax, 0xb; xor ecx, ecx; cpuid; mov [rdi + 8], ecx; mov [rdi + 12], edx
        mov eax, 0xb; mov ecx, 1; cpuid; mov [rdi + 16], ebx; mov [rdi + 20], edx
        mov eax, 0xb; mov ecx, 2; cpuid; mov [rdi + 24], ebx; mov [rdi + 28], ecx
        mov eax, 0x80000000; cpuid; mov [rdi + 32], eax
        mov eax, 0x40000000; cpuid; mov [rdi + 36], ebx; mov [rdi + 40], ecx; mov [rdi + 44], edx
        lock inc dword ptr [{DATA - 8}]; cmp dword ptr [{DATA - 8}], 3; jne 1f; out 0xf4, al
        1: hlt; jmp 1b
    """
    with booted(source, vcpus=3) as g:
        for index in (1, 2):
            g.restore(g.state(), index)
        g.run()
        for index in range(3):
            words = unpack_from("<12I", g.ram, DATA + 64 * index)
            assert words[0] == index
            assert words[1] & 1 << 31  # a hypervisor is there
            assert words[2] == 1 << 8 and words[3] == index
            assert words[4] == 3 and words[5] == index
            assert words[6] == 0 and words[7] == 2
            assert words[8] == 0x80000008
            assert g.read(DATA + 64 * index + 36, 12) == b"KVMKVMKVM\0\0\0"


def test_cpuid_zeroes_upper_halves() -> None:
    """CPUID writes 32-bit registers: the upper halves become 0."""
    ones = "mov rax, -1; mov rbx, rax; mov rcx, rax; mov rdx, rax"
    with booted(f"{ones}; inc eax; cpuid; {END}") as g:
        g.run()
        state = g.state()
        assert max(state.rax, state.rbx, state.rcx, state.rdx) < 1 << 32


def test_tsc_never_goes_back() -> None:
    """Ten thousand RDTSC in a row do not decrease, and run at the announced rate."""
    with booted(f"""
        rdtsc; shl rdx, 32; or rax, rdx; mov rbx, rax; mov rdi, rax; mov ecx, 10000
        1: rdtsc; shl rdx, 32; or rax, rdx; cmp rax, rbx; jb 2f; mov rbx, rax; dec ecx; jnz 1b
        2: mov [{DATA}], rcx; mov [{DATA + 8}], rbx; mov [{DATA + 16}], rdi; {END}
    """, chips=True) as g:  # fmt: skip
        before = time.monotonic_ns()
        g.run()
        elapsed = time.monotonic_ns() - before
        assert g.word(DATA) == 0
        assert 0 < g.word(DATA + 8) - g.word(DATA + 16) <= elapsed * TSC_HZ // 1_000_000_000


def test_tsc_stands_while_paused() -> None:
    """The counter does not count a pause."""
    with booted(f"1: rdtsc; mov [{DATA}], eax; mov [{DATA + 4}], edx; jmp 1b", chips=True) as g:
        g.start()
        g.bus.done.wait(0.02)
        g.pause()
        before, started = g.word(DATA), time.monotonic_ns()
        time.sleep(0.3)
        g.resume()
        g.bus.done.wait(0.01)
        g.pause()
        elapsed = time.monotonic_ns() - started
        assert 0 < g.word(DATA) - before < elapsed - 250_000_000


def test_tsc_can_be_set() -> None:
    """WRMSR to IA32_TSC sets the counter; RDTSCP gives IA32_TSC_AUX."""
    with booted(f"""
        mov ecx, 0xc0000103; mov eax, 0x1234; xor edx, edx; wrmsr
        mov ecx, 0x10; xor eax, eax; mov edx, 0x100; wrmsr; rdtscp; mov [{DATA}], ecx
        mov [{DATA + 4}], edx; {END}
    """, chips=True) as g:  # fmt: skip
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (0x1234, 0x100)


def test_tsc_is_privileged_with_tsd() -> None:
    """CR4.TSD makes RDTSC #GP in ring 3."""
    with booted("rdtsc; hlt", user=True) as g:
        g.restore(replace(g.state(), cr4=0x624))
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.ip) == (13, CODE)


def test_kvm_clock_page() -> None:
    """The clock page turns the TSC into guest time; the wall clock adds up to now."""
    with booted(f"""
        mov ecx, 0x4b564d01; mov eax, {DATA + 1}; xor edx, edx; wrmsr
        mov ecx, 0x4b564d00; mov eax, {DATA + 64}; xor edx, edx; wrmsr
        rdtsc; mov [{DATA + 128}], eax; mov [{DATA + 132}], edx; {END}
    """, chips=True) as g:  # fmt: skip
        g.run()
        version, _, start, system, multiplier, shift, flags = unpack_from("<IIQQIbB", g.ram, DATA)
        assert version % 2 == 0 and flags & 1
        delta = g.word(DATA + 128) - start & 0xFFFFFFFFFFFFFFFF
        delta = delta << shift if shift >= 0 else delta >> -shift
        now = system + (delta * multiplier >> 32)
        assert 0 < now <= g.clock.now()
        version, seconds, nanoseconds = unpack_from("<III", g.ram, DATA + 64)
        wall = seconds * 1_000_000_000 + nanoseconds + now
        assert abs(wall - time.time_ns()) < 5_000_000_000


def test_kvm_clock_survives_a_new_tsc() -> None:
    """After the guest sets its TSC the clock page still gives guest time."""
    with booted(f"""
        mov ecx, 0x4b564d01; mov eax, {DATA + 1}; xor edx, edx; wrmsr
        mov ecx, 0x10; mov eax, 5; mov edx, 0x1000; wrmsr
        rdtsc; mov [{DATA + 128}], eax; mov [{DATA + 132}], edx; {END}
    """, chips=True) as g:  # fmt: skip
        g.run()
        _, _, start, system, multiplier, shift, _ = unpack_from("<IIQQIbB", g.ram, DATA)
        now = system + ((g.word(DATA + 128) - start << shift) * multiplier >> 32)
        assert 0 < now <= g.clock.now()
