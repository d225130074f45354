"""Small guests for tests on the real /dev/kvm, assembled here as bytes.

A guest runs in 64-bit ring 0 with the first 4 GiB identity-mapped, RAM from 0 to
``RAM_SIZE``, a GDT as Linux's boot protocol has it and, if asked for, an IDT. It
needs nothing that the emulator of a KVM without VMX could not do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvmkit.engine.cpu import CpuState, DescriptorTable, Segment, flat_long_mode
from kvmkit.engine.kvm.kvm import Memory, System, VcpuFd, Vm
from kvmkit.engine.kvm.state import write_state
from kvmkit.frozen import replace

needs_kvm = [
    pytest.mark.kvm,
    pytest.mark.skipif(
        not os.access("/dev/kvm", os.R_OK | os.W_OK),
        reason="/dev/kvm is missing or may not be opened",
    ),
]

GDT = 0x500
CODE = 0x1000
IDT = 0x3000
STACK = 0x8000
DATA = 0x9000
TABLES = 0x10000  # PML4, PDPT, four page directories of 2-MiB pages
RAM_SIZE = 0x40000

OUT_AL_DX = b"\xee"
HLT = b"\xf4"
STI = b"\xfb"
CLI = b"\xfa"
NOP = b"\x90"
IRETQ = b"\x48\xcf"
RDMSR = b"\x0f\x32"
WRMSR = b"\x0f\x30"
CPUID = b"\x0f\xa2"
SPIN = b"\xeb\xfe"
"""jmp to itself"""

_REGISTERS = {"eax": 0, "ecx": 1, "edx": 2, "ebx": 3, "esi": 6, "edi": 7}


def mov(register: str, value: int) -> bytes:
    """mov r32, imm32"""
    return bytes([0xB8 + _REGISTERS[register]]) + value.to_bytes(4, "little")


def mov_rax(value: int) -> bytes:
    """mov rax, imm64"""
    return b"\x48\xb8" + value.to_bytes(8, "little")


def out(port: int, value: int, size: int = 1) -> bytes:
    """mov edx, port; mov eax, value; out dx, al/ax/eax"""
    return mov("edx", port) + mov("eax", value) + {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}[size]


def inp(port: int, size: int = 1) -> bytes:
    """mov edx, port; in al/ax/eax, dx"""
    return mov("edx", port) + {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size]


def store(address: int, size: int = 4) -> bytes:
    """mov edi, address; mov [rdi], al/ax/eax/rax"""
    return (
        mov("edi", address)
        + {1: b"\x88", 2: b"\x66\x89", 4: b"\x89", 8: b"\x48\x89"}[size]
        + b"\x07"
    )


def load(address: int, size: int = 4) -> bytes:
    """mov edi, address; mov al/ax/eax/rax, [rdi]"""
    return (
        mov("edi", address)
        + {1: b"\x8a", 2: b"\x66\x8b", 4: b"\x8b", 8: b"\x48\x8b"}[size]
        + b"\x07"
    )


def increment(address: int) -> bytes:
    """inc dword ptr [address]"""
    return b"\xff\x04\x25" + address.to_bytes(4, "little")


def wrmsr(index: int, value: int) -> bytes:
    """mov ecx, index; mov eax/edx, value; wrmsr"""
    return mov("ecx", index) + mov("eax", value & 0xFFFFFFFF) + mov("edx", value >> 32) + WRMSR


def forever(body: bytes) -> bytes:
    """body; jmp body"""
    back = -(len(body) + 2)
    if back >= -128:
        return body + b"\xeb" + (back & 0xFF).to_bytes(1, "little")
    return body + b"\xe9" + (-(len(body) + 5) & 0xFFFFFFFF).to_bytes(4, "little")


def gate(handler: int) -> bytes:
    """A 64-bit interrupt gate to code segment 0x10 (SDM vol. 3, 6.14.1)."""
    return (
        (handler & 0xFFFF).to_bytes(2, "little")
        + b"\x10\x00\x00\x8e"
        + (handler >> 16).to_bytes(10, "little")
    )


def prepare(memory: Memory, code: bytes, handlers: dict[int, bytes] | None = None) -> CpuState:
    """Lay out a guest in ``memory``; the entry state. ``handlers`` are by vector."""
    memory.write(
        GDT,
        bytes(16)
        + (0x00AF9B000000FFFF).to_bytes(8, "little")
        + (0x00CF93000000FFFF).to_bytes(8, "little"),
    )
    memory.write(TABLES, (TABLES + 0x1003).to_bytes(8, "little"))
    for n in range(4):
        directory = TABLES + 0x2000 + 0x1000 * n
        memory.write(TABLES + 0x1000 + 8 * n, (directory | 3).to_bytes(8, "little"))
        pages = b"".join((n << 30 | m << 21 | 0x83).to_bytes(8, "little") for m in range(512))
        memory.write(directory, pages)
    memory.write(CODE, code)
    at = CODE + len(code) + 15 & ~15
    for vector, handler in (handlers or {}).items():
        memory.write(IDT + 16 * vector, gate(at))
        memory.write(at, handler)
        at += len(handler) + 15 & ~15
    state = flat_long_mode(CODE, cr3=TABLES, gdt=GDT, stack=STACK)
    return replace(state, idt=DescriptorTable(IDT, 0xFFF)) if handlers else state


def real_mode(segment: int) -> CpuState:
    """A CPU that starts at ``segment``:0 in real mode."""
    return replace(CpuState(), rip=0, cs=Segment(segment, segment << 4, 0xFFFF, 0x9B))


class Guest:
    """A VM with one vCPU and the guest laid out in it."""

    def __init__(self, system: System, vm: Vm, vcpu: VcpuFd, memory: Memory) -> None:
        self.system = system
        self.vm = vm
        self.vcpu = vcpu
        self.memory = memory

    def word(self, address: int) -> int:
        """A 32-bit word of guest memory."""
        return int.from_bytes(self.memory.view[address : address + 4], "little")


@contextmanager
def guest(
    code: bytes,
    *,
    handlers: dict[int, bytes] | None = None,
    irqchip: bool = False,
    split: int = 0,
    flags: int = 0,
) -> Iterator[Guest]:
    """A guest about to run ``code``, driven by the thin owners alone."""
    from kvmkit.engine.kvm import abi

    memory = Memory(RAM_SIZE)
    with System() as system, system.create_vm() as vm:
        if irqchip:
            vm.create_irqchip()
        if split:
            vm.enable(abi.KVM_CAP_SPLIT_IRQCHIP, split)
        vm.set_memory(0, 0, memory.address, memory.size, flags)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(system.supported_cpuid())
        state = prepare(memory, code, handlers)
        write_state(vcpu, state, irqchip=irqchip or bool(split))
        yield Guest(system, vm, vcpu, memory)
