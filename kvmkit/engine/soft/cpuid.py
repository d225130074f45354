"""What CPUID says on the software CPU (Intel SDM vol. 2A, CPUID; Linux virt/kvm/x86/cpuid.rst).

The features are those Unicorn 2.1 executes correctly: SSE4.2 and AES, no AVX, no
BMI1 and BMI2 (BEXTR and BZHI are wrong for long fields, BLSI's carry always).
Family, model and stepping are those of an Intel Atom (Saltwell), a processor that
does not speculate, as ours does not: Linux then needs none of its mitigations,
page-table isolation above all.

Clock frequencies are given (leaves 15H, 16H and KVM's clock), so that no guest
has to measure them.
"""

from __future__ import annotations

from struct import pack

__all__ = ["PHYSICAL_BITS", "TSC_HZ", "cpuid_leaves"]

TSC_HZ = 1_000_000_000
"""Frequency of the time-stamp counter and of the APIC timer's clock."""

PHYSICAL_BITS = 40

_ALL = 0xFFFFFFFF

_BITS_1_EDX = {
    "fpu": 0, "vme": 1, "de": 2, "pse": 3, "tsc": 4, "msr": 5, "pae": 6, "cx8": 8, "apic": 9,
    "sep": 11, "mtrr": 12, "pge": 13, "cmov": 15, "pat": 16, "pse36": 17, "clflush": 19,
    "mmx": 23, "fxsr": 24, "sse": 25, "sse2": 26,
}  # fmt: skip
_BITS_1_ECX = {
    "sse3": 0, "pclmulqdq": 1, "ssse3": 9, "cx16": 13, "sse4_1": 19, "sse4_2": 20,
    "x2apic": 21, "movbe": 22, "popcnt": 23, "tsc_deadline": 24, "aes": 25,
    "hypervisor": 31,
}  # fmt: skip
_BITS_7_EBX = {"fsgsbase": 0, "smep": 7, "erms": 9, "adx": 19, "clflushopt": 23}
_BITS_EXT_EDX = {"syscall": 11, "nx": 20, "pdpe1gb": 26, "rdtscp": 27, "lm": 29}
_BITS_EXT_ECX = {"lahf": 0, "abm": 5, "prefetchw": 8}

_HTT = 1 << 28
_ARAT = 1 << 2  # 06H EAX: the APIC timer runs in every sleep state
_INVARIANT_TSC = 1 << 8
_SIGNATURE = 0x30660  # family 6, model 36H, stepping 0: Atom, Saltwell

# KVM's features (Linux virt/kvm/x86/cpuid.rst)
_KVM_FEATURES = 1 << 1 | 1 << 3 | 1 << 24  # no I/O delay, clock source 2, stable clock source

_BRAND = b"kvmkit software CPU".ljust(48, b"\0")


def _mask(bits: dict[str, int]) -> int:
    return sum(1 << bit for bit in bits.values())


def cpuid_leaves(index: int, count: int) -> bytes:
    """The leaves of CPU ``index`` of ``count``, packed for the core: 7 x uint32 each.

    The words are function, subleaf, whether the subleaf counts, EAX, EBX, ECX, EDX.
    """
    width = (count - 1).bit_length()
    leaf_1_ebx = index << 24 | min(1 << width, 255) << 16 | 8 << 8  # APIC ID, CPUs, CLFLUSH line
    leaf_1_edx = _mask(_BITS_1_EDX) | (_HTT if count > 1 else 0)
    vendor = (0x756E6547, 0x6C65746E, 0x49656E69)  # EBX ECX EDX: GenuineIntel
    kvm = (0x4B4D564B, 0x564B4D56, 0x0000004D)
    brand = [int.from_bytes(_BRAND[i : i + 4], "little") for i in range(0, 48, 4)]
    leaves = [
        (0x0, 0, 0, 0x16, vendor[0], vendor[1], vendor[2]),
        (0x1, 0, 0, _SIGNATURE, leaf_1_ebx, _mask(_BITS_1_ECX), leaf_1_edx),
        (0x6, 0, 0, _ARAT, 0, 0, 0),
        (0x7, 0, 1, 0, _mask(_BITS_7_EBX), 0, 0),
        # one thread a core, all cores in one package (SDM vol. 3, 9.9.3)
        (0xB, 0, 1, 0, 1, 1 << 8 | 0, index),
        (0xB, 1, 1, width, count, 2 << 8 | 1, index),
        (0x15, 0, 0, 1, 1, TSC_HZ, 0),
        (0x16, 0, 0, TSC_HZ // 1_000_000, TSC_HZ // 1_000_000, 100, 0),
        (0x40000000, 0, 0, 0x40000001, *kvm),
        (0x40000001, 0, 0, _KVM_FEATURES, 0, 0, 0),
        (0x80000000, 0, 0, 0x80000008, *vendor),
        (0x80000001, 0, 0, _SIGNATURE, 0, _mask(_BITS_EXT_ECX), _mask(_BITS_EXT_EDX)),
        (0x80000002, 0, 0, *brand[0:4]),
        (0x80000003, 0, 0, *brand[4:8]),
        (0x80000004, 0, 0, *brand[8:12]),
        (0x80000006, 0, 0, 0, 0, 0x01006040, 0),  # L2: 256 KiB, 8 ways, 64-byte lines
        (0x80000007, 0, 0, 0, 0, 0, _INVARIANT_TSC),
        (0x80000008, 0, 0, 48 << 8 | PHYSICAL_BITS, 0, 0, 0),
    ]
    return b"".join(pack("<7I", *(word & _ALL for word in leaf)) for leaf in leaves)
