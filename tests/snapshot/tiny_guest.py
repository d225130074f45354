"""A PVH guest of some hundred bytes that runs on either engine, and counts aloud.

32-bit protected mode, no paging, and without IRET, which KVM's emulator has in long mode
only. The 8254 through the I/O APIC (vector 0x30) says
``A B C ...``, the local APIC's timer (vector 0x40) ``a b c ...``, each a letter every
ten interrupts; both go on where they were. With the sum of its memory it says ``!``
if ever a word of a table that it wrote at the start is another.
"""

from __future__ import annotations

from pathlib import Path

from tests.boot.kernel_images import Part, elf32, pvh_note
from tests.engine.soft.asm import assemble

__all__ = ["PERIOD_MS", "tiny_kernel"]

ENTRY = 0x100000
PERIOD_MS = 100
"""Between two letters of one kind."""

SOURCE = """
.macro ioapic index, value
    mov dword ptr [0xfec00000], \\index
    mov dword ptr [0xfec00010], \\value
.endm
.macro gate vector, handler
    mov eax, offset \\handler
    mov word ptr [0x3000 + 8 * \\vector], ax
    mov word ptr [0x3002 + 8 * \\vector], cs
    mov word ptr [0x3004 + 8 * \\vector], 0x8e00
    shr eax, 16
    mov word ptr [0x3006 + 8 * \\vector], ax
.endm
start:
    cli
    mov esp, 0x8000
    mov ecx, 1024
table:
    mov [0x110000 + 4 * ecx], ecx
    dec ecx
    jnz table
    gate 0x30, on_pit
    gate 0x40, on_apic
    mov word ptr [0x2ff8], 0x7ff
    mov dword ptr [0x2ffa], 0x3000
    lidt [0x2ff8]
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
    mov dword ptr [0xfee000f0], 0x1ff
    ioapic 0x14, 0x30
    mov dword ptr [0xfee003e0], 0xb
    mov dword ptr [0xfee00320], 0x20040
    mov dword ptr [0xfee00380], 10000000
    mov al, 0x34
    out 0x43, al
    mov al, 0x9c
    out 0x40, al
    mov al, 0x2e
    out 0x40, al
    sti
idle:
    hlt
    mov ecx, 1024
check:
    cmp [0x110000 + 4 * ecx], ecx
    jne wrong
    dec ecx
    jnz check
    jmp idle
wrong:
    mov al, '!'
    mov dx, 0x3f8
    out dx, al
    jmp idle
on_pit:
    push ebx
    push ecx
    mov ebx, 0x9000
    mov ecx, 'A'
    jmp tick
on_apic:
    push ebx
    push ecx
    mov ebx, 0x9010
    mov ecx, 'a'
tick:
    push eax
    push edx
    inc dword ptr [ebx]
    cmp dword ptr [ebx], 10
    jne done
    mov dword ptr [ebx], 0
    mov eax, [ebx + 4]
    add eax, ecx
    mov dx, 0x3f8
    out dx, al
    inc dword ptr [ebx + 4]
    cmp dword ptr [ebx + 4], 26
    jne done
    mov dword ptr [ebx + 4], 0
done:
    mov dword ptr [0xfee000b0], 0
    pop edx
    pop eax
    pop ecx
    pop ebx
    push dword ptr [esp + 8]
    popfd
    retf 4
"""


def tiny_kernel(folder: Path) -> Path:
    """The kernel's file. Skips without binutils."""
    code = assemble(SOURCE, ENTRY, 32)
    path = folder / "tiny"
    path.write_bytes(elf32(Part(ENTRY, code), entry=ENTRY, notes=pvh_note(ENTRY)))
    return path
