"""Paging on the software CPU (Intel SDM vol. 3, chapter 4), and code that changes."""

from __future__ import annotations

import threading
from struct import pack

import pytest

from kvmkit.frozen import replace
from tests.engine.soft.asm import assemble
from tests.engine.soft.guest import (
    CODE,
    DATA,
    PAGE_TABLE,
    RAM_SIZE,
    TABLES,
    booted,
    guest,
    page_entry,
    protected_mode,
)

pytestmark = pytest.mark.soft

ACCESSED, DIRTY = 0x20, 0x40
END = "out 0xf4, al; hlt"


def test_accessed_and_dirty_bits() -> None:
    """A load sets A, a store A and D, in the leaf; the tables above get A."""
    with booted(f"mov al, [0x30000]; mov [0x31000], al; {END}") as g:
        g.run()
        assert g.word(PAGE_TABLE + 8 * 0x30) & (ACCESSED | DIRTY) == ACCESSED
        assert g.word(PAGE_TABLE + 8 * 0x31) & (ACCESSED | DIRTY) == ACCESSED | DIRTY
        assert g.word(PAGE_TABLE + 8 * 0x32) & (ACCESSED | DIRTY) == 0
        assert g.word(TABLES) & (ACCESSED | DIRTY) == ACCESSED


def test_dirty_bit_of_a_page_read_before() -> None:
    """A store to a page whose translation a load has cached still sets D."""
    with booted(f"mov al, [0x30000]; mov al, [0x30000]; mov [0x30008], al; {END}") as g:
        g.run()
        assert g.word(PAGE_TABLE + 8 * 0x30) & DIRTY


def test_dirty_bit_again_after_invlpg() -> None:
    """A guest that clears D and invalidates gets it set by the next store."""
    entry = PAGE_TABLE + 8 * 0x30
    with booted(f"""
        mov byte ptr [0x30000], 1; mov rax, [{entry}]; mov [{DATA}], rax
        btr qword ptr [{entry}], 6; invlpg [0x30000]; mov rax, [{entry}]; mov [{DATA + 8}], rax
        mov byte ptr [0x30000], 1; {END}
    """) as g:
        g.run()
        assert g.word(DATA) & DIRTY
        assert not g.word(DATA + 8) & DIRTY
        assert g.word(entry) & DIRTY


def test_write_protection_of_ring_0() -> None:
    """With CR0.WP clear ring 0 writes to read-only pages, with it set it faults."""
    with booted(f"""
        mov rax, cr0; btr rax, 16; mov cr0, rax; mov dword ptr [0x30000], 7
        mov rax, cr0; bts rax, 16; mov cr0, rax; mov dword ptr [0x30000], 8; {END}
    """) as g:
        page_entry(g, 0x30000, clear_bits=2)
        g.run()
        assert g.word(0x30000, 4) == 7
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (14, 3)


def test_smep() -> None:
    """CR4.SMEP keeps ring 0 from executing user pages."""
    with booted("mov rax, cr4; bts rax, 20; mov cr4, rax; mov eax, 0x30000; jmp rax") as g:
        for page in range(0x10):
            page_entry(g, page << 12, clear_bits=4)
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error, g.fault.cr2) == (14, 0x11, 0x30000)


def test_user_code_in_a_supervisor_page() -> None:
    """Ring 3 cannot execute a page without U."""
    with booted("mov eax, 0x30000; jmp rax", user=True) as g:
        page_entry(g, 0x30000, clear_bits=4)
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error & ~0x10, g.fault.ip) == (14, 5, 0x30000)


def test_nx_is_reserved_without_nxe() -> None:
    """Bit 63 of an entry is reserved unless EFER.NXE is set."""
    with booted("mov al, [0x30000]; hlt") as g:
        page_entry(g, 0x30000, set_bits=1 << 63)
        g.restore(replace(g.state(), efer=0x501))
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (14, 9)


@pytest.mark.parametrize("shift", [21, 30])
def test_large_pages(shift: int) -> None:
    """Pages of 2 MiB and 1 GiB translate, and get their A and D bits."""
    entry = TABLES + 0x2008 if shift == 21 else TABLES + 0x1008
    address = 0x200000 if shift == 21 else 1 << 30
    with booted(f"mov rdi, {address + 0x123450}; mov dword ptr [rdi], 0x1234; {END}") as g:
        if shift == 30:
            g.write(entry, pack("<Q", 0x87))
        g.run()
        assert g.word(0x323450 if shift == 21 else 0x123450, 4) == 0x1234
        assert g.word(entry) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


def test_reserved_bits_of_a_large_page() -> None:
    """Address bits below a 2-MiB page's size are reserved."""
    with booted("mov al, [0x200000]; hlt") as g:
        g.write(TABLES + 0x2008, pack("<Q", 0x200087 | 1 << 14))
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (14, 9)


def test_invlpg_inside_a_large_page() -> None:
    """INVLPG of any address in a large page drops all of its translations."""
    with booted(f"""
        mov eax, [0x200000]; mov eax, [0x2ff000]
        mov qword ptr [{TABLES + 0x2008}], 0x400087; invlpg [0x250000]
        mov eax, [0x200000]; mov [{DATA}], eax; mov eax, [0x2ff000]; mov [{DATA + 4}], eax; {END}
    """) as g:
        for at, value in ((0x200000, 1), (0x2FF000, 2), (0x400000, 3), (0x4FF000, 4)):
            g.write(at, pack("<I", value))
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (3, 4)


def test_new_cr3_changes_translations() -> None:
    """MOV to CR3 drops what was cached of pages that are not global."""
    with booted(f"""
        mov eax, [0x30000]; mov qword ptr [{PAGE_TABLE + 8 * 0x30}], 0x31007
        mov rax, cr3; mov cr3, rax; mov eax, [0x30000]; mov [{DATA}], eax; {END}
    """) as g:
        g.write(0x30000, b"\x01")
        g.write(0x31000, b"\x02")
        g.run()
        assert g.word(DATA, 4) == 2


def test_global_pages_go_with_pge_and_invlpg() -> None:
    """A global page may outlive CR3, but neither INVLPG nor a change of CR4.PGE."""
    entry = PAGE_TABLE + 8 * 0x30
    with booted(f"""
        mov rax, cr4; bts rax, 7; mov cr4, rax
        mov eax, [0x30000]; mov qword ptr [{entry}], 0x31107; invlpg [0x30000]
        mov eax, [0x30000]; mov [{DATA}], eax
        mov qword ptr [{entry}], 0x32107; mov rax, cr4; btr rax, 7; mov cr4, rax
        mov eax, [0x30000]; mov [{DATA + 4}], eax; {END}
    """) as g:
        page_entry(g, 0x30000, set_bits=0x100)
        for n in range(3):
            g.write(0x30000 + 0x1000 * n, bytes([n + 1]))
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (2, 3)


def test_legacy_paging_with_large_pages() -> None:
    """32-bit tables: 4-KiB pages with U and W checked, 4-MiB pages with CR4.PSE."""
    with guest() as g:
        g.code(f"""
            mov eax, {TABLES}; mov cr3, eax; mov eax, cr4; or eax, 0x10; mov cr4, eax
            mov eax, cr0; or eax, 0x80010000; mov cr0, eax
            mov eax, [0x30000]; mov [{DATA}], eax; mov eax, [0x400000]; mov [{DATA + 4}], eax
            mov [0x30000], eax
        """, bits=32)  # fmt: skip
        g.restore(protected_mode(g))
        g.write(TABLES, pack("<II", TABLES + 0x1007, 0x400087))
        g.write(TABLES + 0x1000, pack("<1024I", *(n << 12 | 7 for n in range(1024))))
        g.write(TABLES + 0x1000 + 4 * 0x30, pack("<I", 0x31005))
        g.write(0x31000, b"\x05")
        g.write(0x400000, b"\x06")
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (5, 6)
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error & 0xF) == (14, 3)
        assert g.word(TABLES + 4, 4) & 0x60 == 0x20


def test_pae_paging() -> None:
    """PAE tables with three levels translate, and honour NX."""
    with guest() as g:
        g.code(f"""
            mov eax, {TABLES}; mov cr3, eax; mov eax, cr4; or eax, 0x20; mov cr4, eax
            mov ecx, 0xc0000080; rdmsr; or eax, 0x800; wrmsr
            mov eax, cr0; or eax, 0x80010000; mov cr0, eax
            mov eax, [0x30000]; mov [{DATA}], eax; mov eax, 0x30000; jmp eax
        """, bits=32)  # fmt: skip
        g.restore(protected_mode(g))
        g.write(TABLES, pack("<4Q", TABLES + 0x1001, 0, 0, 0))
        g.write(TABLES + 0x1000, pack("<2Q", TABLES + 0x2007, 0x200087))
        g.write(TABLES + 0x2000, pack("<512Q", *(n << 12 | 7 for n in range(512))))
        g.write(TABLES + 0x2000 + 8 * 0x30, pack("<Q", 0x31007 | 1 << 63))
        g.write(0x31000, b"\x07")
        g.run()
        assert g.word(DATA, 4) == 7
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error, g.fault.cr2) == (14, 0x11, 0x30000)


def test_page_tables_outside_ram() -> None:
    """A CR3 that points nowhere is a triple fault, not more."""
    with booted(f"mov eax, 0xc0000000; mov cr3, rax; {END}") as g:
        g.run()
        assert [end.reason.name for end in g.ends] == ["TRIPLE_FAULT"]


def test_the_last_byte_of_ram() -> None:
    """RAM can be used to its last byte."""
    with booted(f"mov edi, {RAM_SIZE - 8}; mov rax, -1; mov [rdi], rax; {END}") as g:
        g.run()
        assert g.read(RAM_SIZE - 8, 8) == b"\xff" * 8


# Code that changes


def test_code_that_changes_its_own_page() -> None:
    """A store into a block that has run already is seen the next time."""
    with booted(f"""
        call f; mov [{DATA}], eax; mov dword ptr [f + 1], 2; call f; mov [{DATA + 4}], eax; {END}
        f: mov eax, 1; ret
    """) as g:
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (1, 2)


def test_code_that_changes_the_next_instruction() -> None:
    """A store into the running block, right ahead, takes effect at once."""
    with booted(f"mov dword ptr [here + 1], 2\nhere: mov eax, 1; mov [{DATA}], eax; {END}") as g:
        g.run()
        assert g.word(DATA, 4) == 2


def test_code_changed_many_times() -> None:
    """A thousand generations of a function each return their own number."""
    with booted(f"""
        xor ebx, ebx; mov ecx, 1000
        1: mov [f + 1], ecx; call f; add rbx, rax; loop 1b; mov [{DATA}], rbx; {END}
        f: mov eax, 0; ret
    """) as g:
        g.run()
        assert g.word(DATA) == 500500


def test_code_changed_through_another_address() -> None:
    """A store through a second virtual address of the page is seen."""
    with booted(f"""
        mov eax, 0x30000; call rax; mov [{DATA}], eax; mov dword ptr [0x31001], 2
        mov eax, 0x30000; call rax; mov [{DATA + 4}], eax; {END}
    """) as g:
        g.code("mov eax, 1; ret", 0x40000)
        g.write(PAGE_TABLE + 8 * 0x30, pack("<QQ", 0x40007, 0x40007))
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (1, 2)


def test_code_changed_through_an_address_cached_before() -> None:
    """The same, with the alias's translation cached and writable before the code ran."""
    with booted(f"""
        mov byte ptr [0x31800], 1; mov byte ptr [0x31800], 1
        mov eax, 0x30000; call rax; mov [{DATA}], eax; mov dword ptr [0x31001], 2
        mov eax, 0x30000; call rax; mov [{DATA + 4}], eax; {END}
    """) as g:
        g.code("mov eax, 1; ret", 0x40000)
        g.write(PAGE_TABLE + 8 * 0x30, pack("<QQ", 0x40007, 0x40007))
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (1, 2)


def test_block_across_pages() -> None:
    """Code that spans two pages is remade when only the second changes."""
    start = 0x31000 - 3  # mov eax, imm32 with one byte of the number in the first page
    with booted(f"""
        mov ebx, {start}; call rbx; mov [{DATA}], eax; mov byte ptr [0x31000], 9
        call rbx; mov [{DATA + 4}], eax; {END}
    """) as g:
        g.code("mov eax, 0x01020304; ret", start)
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (0x01020304, 0x01090304)


def test_block_across_pages_that_are_remapped() -> None:
    """The second page of a block may become another page."""
    start = 0x31000 - 3
    with booted(f"""
        mov ebx, {start}; call rbx; mov [{DATA}], eax
        mov qword ptr [{PAGE_TABLE + 8 * 0x31}], 0x41007; invlpg [0x31000]
        call rbx; mov [{DATA + 4}], eax; {END}
    """) as g:
        g.code("mov eax, 0x01020304; ret", start)
        g.write(0x41000, b"\x08\x07\xc3")
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (0x01020304, 0x07080304)


def test_string_store_over_code() -> None:
    """REP STOSB over code that ran makes new code of it."""
    with booted(f"""
        mov ebx, 0x30000; call rbx; mov edi, 0x30000; mov al, 0x90; mov ecx, 5; rep stosb
        mov eax, 7; call rbx; mov [{DATA}], eax; {END}
    """) as g:
        g.code("mov eax, 1; ret", 0x30000)
        g.run()
        assert g.word(DATA, 4) == 7


def test_code_changed_by_the_stack() -> None:
    """PUSH and CALL into a page with code are stores as well."""
    with booted(f"""
        mov ebx, 0x30000; call rbx; mov esp, 0x30008; mov rax, 0xc390000002b8; push rax
        mov esp, 0x8000; call rbx; mov [{DATA}], eax; {END}
    """) as g:
        g.write(0x30000, assemble("mov eax, 1; ret", 0x30000))
        g.run()
        # b8 02 00 00 90: mov eax, 0x90000002; c3: ret
        assert g.word(DATA, 4) == 0x90000002


def test_host_writes_code_while_paused() -> None:
    """After a write by the host and invalidate(), paused, the new code runs."""
    with booted("1: call f; jmp 1b\nf: mov dword ptr [0x9000], 1; ret") as g:
        g.start()
        while g.word(DATA, 4) != 1:
            pass
        g.pause()
        at = g.ram.find(b"\xc7\x04\x25\x00\x90\x00\x00\x01", CODE) + 7
        g.write(at, b"\x02")
        done = threading.Thread(target=g.engine.core.invalidate, args=(at, 1))
        done.start()  # any thread may be the one that writes
        done.join()
        g.write(DATA, b"\0")
        g.resume()
        g.bus.done.wait(0.05)
        g.pause()
        assert g.word(DATA, 4) == 2


def test_host_writes_code_from_a_device() -> None:
    """A device that writes to RAM, on the engine's thread, and invalidates."""
    with booted(f"call f; mov [{DATA}], eax; out 0x10, al; call f; mov [{DATA + 4}], eax; {END}\n"
                "f: mov eax, 0x11111111; ret") as g:  # fmt: skip
        at = g.ram.find(b"\xb8\x11\x11\x11\x11", CODE) + 1

        def dma(value: int) -> None:
            g.write(at, b"\x22")
            g.engine.core.invalidate(at, 1)

        g.bus.on_write[0x10] = dma
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 4, 4)) == (0x11111111, 0x11111122)
