"""What CPUID tells a guest (Intel SDM vol. 2, CPUID; AMD APM vol. 3, E; ``cpuid.rst``).

KVM says what it and the host's CPU support; here that becomes one virtual CPU's
answers: its own APIC ID, a topology of one socket with a core per vCPU, caches
shared accordingly, and KVM's own leaves.
"""

from __future__ import annotations

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.kvm import CpuidEntry
from kvmkit.frozen import replace

__all__ = ["KVM_SIGNATURE_LEAF", "guest_cpuid"]

KVM_SIGNATURE_LEAF = abi.KVM_CPUID_SIGNATURE

# Leaf 1
_ECX_TSC_DEADLINE = 1 << 24
_ECX_OSXSAVE = 1 << 27  # follows CR4; KVM sets it
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28  # EBX 23:16 is valid

# Leaf 0x8000_0007 EDX: a guest that sees it takes the TSC for its clock, which goes on while we
# stand; without it Linux takes kvmclock, which stands with us.
_INVARIANT_TSC = 1 << 8

_AMD_CMP_LEGACY = 1 << 1  # leaf 0x8000_0001 ECX: the logical processors are cores

# Leaf 0xB: level types (ECX 15:8)
_LEVEL_SMT = 1
_LEVEL_CORE = 2

_SUBLEAF = abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


def guest_cpuid(
    supported: list[CpuidEntry], index: int, count: int, *, tsc_deadline: bool = True
) -> list[CpuidEntry]:
    """The answers of vCPU ``index`` of ``count``, from KVM_GET_SUPPORTED_CPUID's.

    ``tsc_deadline`` is KVM_CAP_TSC_DEADLINE_TIMER: KVM leaves that bit to us.
    """
    bits = (count - 1).bit_length()
    highest = max((e.eax for e in supported if e.leaf == 0), default=0)
    amd = any(e.leaf == 0 and e.ecx == 0x444D4163 for e in supported)
    result = []
    for entry in supported:
        leaf = entry.leaf
        if leaf in (0xB, 0x1F) or 0x40000001 < leaf < 0x40010000:
            continue
        if leaf == 1:
            entry = _features(entry, index, count, bits, tsc_deadline)
        elif leaf in (4, 0x8000001D) and entry.eax & 0x1F:
            entry = _cache(entry, bits, cores=leaf == 4)
        elif leaf == 0x80000001 and amd and count > 1:
            entry = replace(entry, ecx=entry.ecx | _AMD_CMP_LEGACY)
        elif leaf == 0x80000007:
            entry = replace(entry, edx=entry.edx & ~_INVARIANT_TSC)
        elif leaf == 0x80000008:
            entry = replace(entry, ecx=bits << 12 | count - 1 if amd else 0)
        elif leaf == 0x8000001E:
            entry = replace(entry, eax=index, ebx=index & 0xFF, ecx=0)
        elif leaf == abi.KVM_CPUID_SIGNATURE:
            entry = replace(entry, eax=abi.KVM_CPUID_FEATURES)
        if entry.eax or entry.ebx or entry.ecx or entry.edx:  # a leaf that is not there reads as 0
            result.append(entry)
    if highest >= 0xB:
        result += _topology(index, count, bits)
    return result


def _features(
    entry: CpuidEntry, index: int, count: int, bits: int, tsc_deadline: bool
) -> CpuidEntry:
    """Leaf 1: APIC ID in EBX 31:24, addressable IDs in the package in 23:16."""
    ecx = (entry.ecx | _ECX_HYPERVISOR) & ~(_ECX_OSXSAVE | _ECX_TSC_DEADLINE)
    return replace(
        entry,
        ebx=entry.ebx & 0xFFFF | min(1 << bits, 255) << 16 | (index & 0xFF) << 24,
        ecx=ecx | (_ECX_TSC_DEADLINE if tsc_deadline else 0),
        edx=entry.edx | _EDX_HTT if count > 1 else entry.edx & ~_EDX_HTT,
    )


def _cache(entry: CpuidEntry, bits: int, *, cores: bool) -> CpuidEntry:
    """Leaf 4 (AMD 0x8000_001D): levels 1 and 2 belong to a core, higher ones to the package."""
    level = entry.eax >> 5 & 7
    sharing = (1 << bits) - 1 if level >= 3 else 0  # EAX 25:14, less one
    eax = entry.eax & 0x3FFF | sharing << 14
    if cores:
        eax |= min((1 << bits) - 1, 63) << 26  # core IDs in the package, less one
    return replace(entry, eax=eax)


def _topology(index: int, count: int, bits: int) -> list[CpuidEntry]:
    """Leaf 0xB: one thread per core, ``count`` cores; EDX is the x2APIC ID on every level."""
    return [
        CpuidEntry(0xB, 0, _SUBLEAF, 0, 1, _LEVEL_SMT << 8 | 0, index),
        CpuidEntry(0xB, 1, _SUBLEAF, bits, count, _LEVEL_CORE << 8 | 1, index),
        CpuidEntry(0xB, 2, _SUBLEAF, 0, 0, 2, index),
    ]
