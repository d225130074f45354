"""What CPU 0 needs in memory to start: descriptor table and page tables.

Linux ``Documentation/arch/x86/boot.rst``, "64-bit Boot Protocol", wants a flat
GDT with __BOOT_CS 0x10 and __BOOT_DS 0x18 and an identity mapping of what it
touches; formats in Intel SDM vol. 3, 3.4.5 and 4.5 (4-level paging).
"""

from __future__ import annotations

import struct

__all__ = ["PAGE_TABLE_PAGES", "gdt", "identity_map"]

PRESENT = 1 << 0
WRITABLE = 1 << 1
LARGE = 1 << 7

PAGE = 4096
LARGE_PAGE = 2 << 20
PAGE_TABLE_PAGES = 6

NULL = 0
CODE_64 = 0x00AF_9B00_0000_FFFF  # G, L, present, execute/read, accessed
CODE_32 = 0x00CF_9B00_0000_FFFF  # G, D
DATA = 0x00CF_9300_0000_FFFF  # G, B, present, read/write, accessed


def gdt(bits: int) -> bytes:
    """Four descriptors: null twice, code 0x10 for 64 or 32 ``bits``, data 0x18."""
    return struct.pack("<4Q", NULL, NULL, CODE_64 if bits == 64 else CODE_32, DATA)


def identity_map(base: int) -> bytes:
    """Page tables for ``base`` that map the first 4 GiB to themselves by 2 MiB pages.

    One PML4, one PDPT and four page directories, 24 KiB.
    """
    flags = PRESENT | WRITABLE
    pml4 = struct.pack("<512Q", base + PAGE | flags, *(0,) * 511)
    directories = [base + (2 + i) * PAGE | flags for i in range(4)]
    pdpt = struct.pack("<512Q", *directories, *(0,) * 508)
    pages = range(flags | LARGE, (4 << 30) + (flags | LARGE), LARGE_PAGE)
    return pml4 + pdpt + struct.pack("<2048Q", *pages)
