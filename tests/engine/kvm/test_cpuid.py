"""What a virtual CPU says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.cpuid import guest_cpuid
from kvmkit.engine.kvm.kvm import CpuidEntry, pack_cpuid, unpack_cpuid
from tests.engine.kvm.guest import CPUID, HLT, mov, needs_kvm, out
from tests.engine.kvm.machine import machine

INTEL = [
    CpuidEntry(0, 0, 0, 0x1F, 0x756E6547, 0x6C65746E, 0x49656E69),
    CpuidEntry(1, 0, 0, 0xA0671, 0x07000800, 1 << 27 | 1 << 21, 0x0F8BFBFF),
    CpuidEntry(4, 0, 1, 0x04000121, 0x02C0003F, 0x3F, 0),
    CpuidEntry(4, 3, 1, 0x04004163, 0x03C0003F, 0x77FFF, 0),
    CpuidEntry(4, 4, 1, 0, 0, 0, 0),
    CpuidEntry(0xB, 0, 1, 1, 2, 0x100, 7),
    CpuidEntry(0x1F, 0, 1, 1, 2, 0x100, 7),
    CpuidEntry(0x80000007, 0, 0, 0, 0, 0, 0x100),
    CpuidEntry(0x80000008, 0, 0, 0x3027, 0, 0x7007, 0),
    CpuidEntry(0x40000000, 0, 0, 0, 0x4B4D564B, 0x564B4D56, 0x4D),
    CpuidEntry(0x40000001, 0, 0, 0x01007EFB, 0, 0, 0),
]
AMD = [
    CpuidEntry(0, 0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
    CpuidEntry(0x80000001, 0, 0, 0, 0, 0, 0),
    CpuidEntry(0x80000008, 0, 0, 0x3030, 0, 0x4007, 0),
    CpuidEntry(0x8000001D, 3, 1, 0x0003C163, 0, 0, 0),
    CpuidEntry(0x8000001E, 0, 0, 0x55, 0x155, 0x1, 0),
]


def leaf(entries: list[CpuidEntry], number: int, subleaf: int = 0) -> CpuidEntry:
    (found,) = [e for e in entries if (e.leaf, e.subleaf) == (number, subleaf)]
    return found


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 2), (3, 4), (5, 6), (63, 64)])
def test_apic_id_is_the_index_everywhere(index: int, count: int) -> None:
    """Leaf 1 EBX 31:24 and leaf 0xB EDX agree."""
    entries = guest_cpuid(INTEL, index, count)
    assert leaf(entries, 1).ebx >> 24 == index
    assert [leaf(entries, 0xB, n).edx for n in range(3)] == [index] * 3


def test_topology_is_one_socket_of_single_threaded_cores() -> None:
    """Six vCPUs: three bits of APIC ID per package, one of none per core."""
    entries = guest_cpuid(INTEL, 0, 6)
    smt, core = leaf(entries, 0xB, 0), leaf(entries, 0xB, 1)
    assert (smt.eax, smt.ebx, smt.ecx) == (0, 1, 0x100)
    assert (core.eax, core.ebx, core.ecx) == (3, 6, 0x201)
    assert leaf(entries, 1).ebx >> 16 & 0xFF == 8
    assert not [e for e in entries if e.leaf == 0x1F]


def test_host_topology_does_not_show() -> None:
    """The host's APIC ID and cache sharing are replaced; caches of a core are not shared."""
    entries = guest_cpuid(INTEL, 0, 4)
    assert leaf(entries, 4, 0).eax >> 14 & 0xFFF == 0
    assert leaf(entries, 4, 3).eax >> 14 & 0xFFF == 3
    assert leaf(entries, 4, 3).eax >> 26 == 3
    assert leaf(entries, 0x80000008).ecx == 0


def test_feature_bits_of_a_guest() -> None:
    """A hypervisor is present, OSXSAVE is KVM's, HTT only with several CPUs."""
    one, two = leaf(guest_cpuid(INTEL, 0, 1), 1), leaf(guest_cpuid(INTEL, 0, 2), 1)
    assert one.ecx >> 31 == 1
    assert not one.ecx & 1 << 27
    assert one.ecx & 1 << 24
    assert not leaf(guest_cpuid(INTEL, 0, 1, tsc_deadline=False), 1).ecx & 1 << 24
    assert not one.edx & 1 << 28
    assert two.edx & 1 << 28


def test_kvm_leaves_are_kept_and_named() -> None:
    """Signature, highest leaf, features."""
    entries = guest_cpuid(INTEL, 0, 1)
    assert leaf(entries, abi.KVM_CPUID_SIGNATURE).eax == abi.KVM_CPUID_FEATURES
    assert leaf(entries, abi.KVM_CPUID_FEATURES).eax == 0x01007EFB


def test_invariant_tsc_is_hidden() -> None:
    """So that Linux's clock is kvmclock, which stands in a pause."""
    assert not [e for e in guest_cpuid(INTEL, 0, 1) if e.leaf == 0x80000007]


def test_amd_leaves() -> None:
    """AMD's own ways to say the same."""
    entries = guest_cpuid(AMD, 2, 4)
    assert leaf(entries, 0x80000008).ecx == 0x2003
    assert leaf(entries, 0x80000001).ecx == 2
    assert leaf(entries, 0x8000001D, 3).eax >> 14 & 0xFFF == 3
    assert (leaf(entries, 0x8000001E).eax, leaf(entries, 0x8000001E).ebx) == (2, 2)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 7).map(lambda t: CpuidEntry(*t)), max_size=40
    ),
    st.integers(1, 64),
)
def test_any_hosts_answers_become_answers(entries: list[CpuidEntry], count: int) -> None:
    """Whatever KVM reports, every vCPU gets entries that fit their 32 bits."""
    for index in (0, count - 1):
        result = guest_cpuid(entries, index, count)
        assert unpack_cpuid(pack_cpuid(result)) == result


@pytest.mark.kvm
@needs_kvm[1]
def test_second_cpu_reads_its_own_apic_id() -> None:
    """On the real thing: CPUID leaf 0xB of vCPU 0 is 0, of KVM's copy for vCPU 1 is 1."""
    code = mov("eax", 0xB) + mov("ecx", 0) + CPUID + b"\x89\xd0" + mov("edx", 0x80) + b"\xef"
    with machine(code + out(0x80, 1) + HLT, vcpus=2) as m:
        assert m.bus.value() == 0
        m.engine.pause()
        entries = m.engine.vcpu(1).fd.cpuid()
    assert leaf(entries, 0xB, 1).edx == 1
