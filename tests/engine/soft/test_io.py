"""Port and memory-mapped I/O of the software CPU: sizes, strings, crossings."""

from __future__ import annotations

import pytest

from kvmkit.engine.cpu import Segment
from kvmkit.frozen import replace
from tests.engine.soft.guest import DATA, TSS, booted, page_entry

pytestmark = pytest.mark.soft

HOLE = 0xC0000000  # nothing but the bus is there


def test_port_writes_of_all_sizes() -> None:
    """OUT with 1, 2 and 4 bytes reaches the bus with the size and no more bits."""
    with booted("""
        mov eax, 0x12345678; mov dx, 0x3f8
        out dx, al; out dx, ax; out dx, eax; out 0x80, al; out 0xf4, al; hlt
    """) as g:
        g.run()
        assert g.bus.log == [
            ("out", 0x3F8, 1, 0x78),
            ("out", 0x3F8, 2, 0x5678),
            ("out", 0x3F8, 4, 0x12345678),
            ("out", 0x80, 1, 0x78),
        ]


def test_port_reads_of_all_sizes() -> None:
    """IN changes AL, AX or all of RAX, as registers of these sizes are written."""
    with booted(f"""
        mov dx, 0x70
        mov rax, -1; in al, dx;  mov [{DATA}], rax
        mov rax, -1; in ax, dx;  mov [{DATA + 8}], rax
        mov rax, -1; in eax, dx; mov [{DATA + 16}], rax
        out 0xf4, al; hlt
    """) as g:
        g.bus.answer = lambda kind, port, size: 0xA1B2C3D4E5
        g.run()
        assert g.word(DATA) == 0xFFFFFFFFFFFFFFE5
        assert g.word(DATA + 8) == 0xFFFFFFFFFFFFD4E5
        assert g.word(DATA + 16) == 0xB2C3D4E5


@pytest.mark.parametrize("bits", [16, 32])
def test_ports_from_other_modes(bits: int) -> None:
    """Port I/O works from real and protected mode."""
    with booted("mov al, 0x5a; out 0x80, al; in ax, 0x40; out 0x81, ax; out 0xf4, al; hlt",
                bits=bits) as g:  # fmt: skip
        g.bus.answer = lambda kind, port, size: 0xBEEF
        g.run()
        assert g.bus.log == [("out", 0x80, 1, 0x5A), ("out", 0x81, 2, 0xBEEF)]


def test_string_output_backwards() -> None:
    """REP OUTSW with DF goes down through memory and leaves RCX at 0."""
    with booted(f"""
        mov rsi, {DATA + 4}; mov rcx, 3; mov dx, 0x1f0; std
        rep outsw
        cld; mov [{DATA + 64}], rcx; mov [{DATA + 72}], rsi; out 0xf4, al; hlt
    """) as g:
        g.write(DATA, bytes.fromhex("010203040506"))
        g.run()
        assert [value for *_, value in g.bus.log] == [0x0605, 0x0403, 0x0201]
        assert (g.word(DATA + 64), g.word(DATA + 72)) == (0, DATA - 2)


def test_string_input_across_a_page() -> None:
    """REP INSD fills memory across a page boundary, each port read done once."""
    start = DATA + 0xFFA
    with booted(f"""
        mov rdi, {start}; mov rcx, 4; mov dx, 0x1f0; cld
        rep insd
        out 0xf4, al; hlt
    """) as g:
        values = iter(range(0x11111111, 0x55555555, 0x11111111))
        g.bus.answer = lambda kind, port, size: next(values)
        g.run()
        assert g.read(start, 16) == b"\x11" * 4 + b"\x22" * 4 + b"\x33" * 4 + b"\x44" * 4
        assert len(g.bus.reads) == 4


def test_string_input_that_faults_reads_no_port() -> None:
    """INSB to a page that is not there faults before the device is asked."""
    with booted("mov rdi, 0x30000; mov dx, 0x1f0; insb; hlt") as g:
        page_entry(g, 0x30000, clear_bits=1)
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error, g.fault.cr2) == (14, 2, 0x30000)
        assert g.bus.reads == []


def test_memory_mapped_accesses_of_all_sizes() -> None:
    """Loads and stores outside RAM reach the bus with address, size and value."""
    with booted(f"""
        mov rdi, {HOLE}; mov rax, 0x1122334455667788
        mov [rdi+1], al; mov [rdi+2], ax; mov [rdi+4], eax; mov [rdi+8], rax
        mov al, [rdi]; mov ax, [rdi+2]; mov eax, [rdi+4]; mov rax, [rdi+8]
        mov [{DATA}], rax; out 0xf4, al; hlt
    """) as g:
        g.bus.answer = lambda kind, address, size: 0xFEDCBA9876543210
        g.run()
        assert g.bus.log == [
            ("store", HOLE + 1, 1, 0x88),
            ("store", HOLE + 2, 2, 0x7788),
            ("store", HOLE + 4, 4, 0x55667788),
            ("store", HOLE + 8, 8, 0x1122334455667788),
        ]
        assert g.bus.reads == [
            ("load", HOLE, 1), ("load", HOLE + 2, 2), ("load", HOLE + 4, 4), ("load", HOLE + 8, 8),
        ]  # fmt: skip
        assert g.word(DATA) == 0xFEDCBA9876543210


def test_read_modify_write_of_a_device() -> None:
    """OR on a device register is one load and one store of that size."""
    with booted(f"mov edi, {HOLE}; lock or dword ptr [rdi], 0x80; out 0xf4, al; hlt") as g:
        g.bus.answer = lambda kind, address, size: 0x11
        g.run()
        assert g.bus.reads == [("load", HOLE, 4)]
        assert g.bus.log == [("store", HOLE, 4, 0x91)]


def test_string_copy_to_a_device() -> None:
    """REP MOVSD from RAM to a device writes each word once, in order."""
    with booted(f"mov esi, {DATA}; mov edi, {HOLE}; mov ecx, 3; rep movsd; out 0xf4, al; hlt") as g:
        g.write(DATA, bytes(range(12)))
        g.run()
        assert g.bus.log == [
            ("store", HOLE, 4, 0x03020100),
            ("store", HOLE + 4, 4, 0x07060504),
            ("store", HOLE + 8, 4, 0x0B0A0908),
        ]


def test_load_across_the_end_of_ram() -> None:
    """A load whose second half is not RAM asks the bus for that half only."""
    with booted("mov rax, [0x7ffffc]; mov [0x9000], rax; out 0xf4, al; hlt") as g:
        g.write(0x7FFFFC, b"\x01\x02\x03\x04")
        g.bus.answer = lambda kind, address, size: 0xAA
        g.run()
        assert g.word(DATA) == 0xAAAAAAAA04030201
        assert all(address >= 0x800000 for _, address, _ in g.bus.reads)


def test_store_across_pages_is_all_or_nothing() -> None:
    """A store into two pages, the second not there, faults and leaves the first alone."""
    with booted("mov rax, -1; mov [0x2fffc], rax; hlt") as g:
        page_entry(g, 0x30000, clear_bits=1)
        g.run()
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error, g.fault.cr2) == (14, 2, 0x30000)
        assert g.read(0x2FFFC, 4) == bytes(4)


def test_readonly_ram_sends_writes_to_the_bus() -> None:
    """A read-only slot can be read and executed; a store goes to the bus and changes nothing."""
    from mmap import mmap

    from kvmkit.engine.soft._core import address_of

    with booted("mov ebx, 0x80000000; call rbx; mov [0x9000], eax; mov byte ptr [rbx+1], 7; "
                "mov eax, [rbx+1]; mov [0x9008], eax; out 0xf4, al; hlt") as g:  # fmt: skip
        rom = mmap(-1, 4096)
        rom[:6] = b"\xb8\x44\x33\x22\x11\xc3"  # mov eax, 0x11223344; ret
        g.engine.add_ram(1, 0x80000000, address_of(rom), 4096, readonly=True)
        g.run()
        assert (g.word(DATA, 4), g.word(DATA + 8, 4)) == (0x11223344, 0x11223344)
        assert g.bus.log == [("store", 0x80000001, 1, 7)]


def test_user_mode_needs_iopl_or_the_bitmap() -> None:
    """IN at CPL 3 and IOPL 0 is #GP unless the TSS's bitmap has a 0 for every byte of the port."""

    source = "mov dx, 0x10; out dx, al; mov dx, 0x0f; out dx, ax; out 0xf4, al"
    with booted(source, user=True) as g:
        g.write(TSS + 0x66, b"\x68\x00" + bytes(1) + b"\xff" + b"\x00" + b"\xff" * 0x20)
        g.restore(replace(g.state(), tr=Segment(0x40, TSS, 0x68 + 0x20, 0x8B)))
        g.run()
        assert g.bus.log == [("out", 0x10, 1, 0)]
        assert g.fault is not None
        assert (g.fault.vector, g.fault.error) == (13, 0)


def test_user_mode_with_iopl_3() -> None:
    """With IOPL 3, CPL 3 may do I/O and CLI."""

    with booted("out 0x80, al; cli; out 0xf4, al; 1: jmp 1b", user=True) as g:
        g.restore(replace(g.state(), rflags=0x3202))
        g.run()
        assert g.fault is None
        assert g.bus.log == [("out", 0x80, 1, 0)]
        assert not g.state().rflags & 0x200
