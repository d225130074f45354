"""Looking at a stopped machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board.memory import GuestMemory
from kvmkit.board.paging import has_user_half, translate
from kvmkit.board.postmortem import describe_cpu, last_lines, panic_lines
from kvmkit.board.watch import in_user_mode
from kvmkit.boot.entry import identity_map
from kvmkit.engine.cpu import CpuState, flat_long_mode

MIB = 1 << 20
TABLES = 0x9000
MEMORY = GuestMemory(8 * MIB)
LONG_MODE = flat_long_mode(0x1000, cr3=TABLES, gdt=0x500, stack=0x8000)


@pytest.fixture
def memory():
    """RAM with the loader's identity mapping."""
    MEMORY.discard()
    MEMORY.write(TABLES, identity_map(TABLES))
    return MEMORY


@given(address=st.integers(0, (4 << 30) - 1))
@settings(deadline=None)
def test_identity_map_translates_to_itself(address):
    """Large pages, up to 4 GiB."""
    MEMORY.write(TABLES, identity_map(TABLES))
    assert translate(MEMORY, LONG_MODE, address) == address


@pytest.mark.parametrize("address", [4 << 30, 1 << 47, 0xFFFF_8000_0000_0000])
def test_unmapped_addresses_have_no_translation(memory, address):
    """Not present entries."""
    assert translate(memory, LONG_MODE, address) is None


def test_small_pages(memory):
    """Four levels down: 0xffff_8880_0000_1234 is mapped at 0x5000."""
    address = 0xFFFF_8880_0000_1234
    for level, table in enumerate((TABLES, 0x20000, 0x21000, 0x22000)):
        index = address >> (39 - 9 * level) & 511
        memory.write_u64(table + index * 8, (0x20000, 0x21000, 0x22000, 0x5000)[level] | 3)
    assert translate(memory, LONG_MODE, address) == 0x5234


ENTRIES = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [TABLES + page * 4096 | flags for page in range(6) for flags in (3, 7, 0x83)]
)


@given(
    entries=st.lists(ENTRIES, min_size=1, max_size=8),
    address=st.integers(0, (1 << 64) - 1),
    root=st.integers(0, (1 << 64) - 1) | st.just(TABLES),
    cr4=st.integers(0, 1 << 22),
    efer=st.sampled_from((0, 0x500)),
)
@settings(deadline=None)
def test_hostile_tables_raise_nothing(entries, address, root, cr4, efer):
    """Tables that point anywhere, themselves included."""
    pattern = b"".join(entry.to_bytes(8, "little") for entry in entries)
    MEMORY.write(TABLES, (pattern * 3072)[: 6 * 4096])
    cpu = replace(LONG_MODE, cr3=root, cr4=cr4, efer=efer, rip=address)
    translate(MEMORY, cpu, address)
    has_user_half(MEMORY, cpu)
    assert describe_cpu(0, cpu, MEMORY)


def test_process_is_seen_in_its_page_tables(memory):
    """An idle kernel keeps the last process's address space; a loader's has no user bit."""
    before = in_user_mode(LONG_MODE, memory)
    memory.write_u64(TABLES + 8, 0x20000 | 7)
    assert (before, in_user_mode(LONG_MODE, memory)) == (False, True)


def test_user_mode_is_seen_in_cs():
    """CPL 3."""
    cs = replace(LONG_MODE.cs, selector=0x33)
    assert in_user_mode(replace(LONG_MODE, cs=cs, cr3=0), MEMORY)


def test_registers_and_code_are_described(memory):
    """Mode, registers, instructions."""
    memory.write(0x1000, b"\x48\x89\xd8\x0f\x0b")
    text = describe_cpu(3, LONG_MODE.with_gprs(r11=0xABC), memory)
    assert text.startswith("CPU 3: 64-bit, CPL 0\n")
    assert "R11 0000000000000abc" in text
    assert "mov rax, rbx" in text and "ud2" in text


def test_code_that_is_not_there_is_said(memory):
    """RIP outside RAM, or unmapped."""
    assert "is not readable" in describe_cpu(0, replace(LONG_MODE, rip=1 << 40), memory)
    assert "is not readable" in describe_cpu(0, CpuState(), memory)


def test_panic_lines_begin_with_the_oops():
    """And not with an older story, nor with none."""
    old = b"[ 1.0] BUG: something old\n" + b"[ 2.0] line\n" * 3000
    oops = b"[ 9.0] BUG: kernel NULL pointer dereference\n[ 9.1] Oops: 0002 [#1] SMP\n"
    panic = b"[ 9.2] Kernel panic - not syncing: Fatal exception\n"
    assert panic_lines(old + oops + panic).splitlines()[0] == (
        "[ 9.0] BUG: kernel NULL pointer dereference"
    )
    assert panic_lines(b"x\r\n" * 30 + panic) == panic.decode().rstrip()
    assert panic_lines(b"a\nb\n") == "a\nb"


def test_last_lines_of_a_log():
    """Of any bytes."""
    assert last_lines(b"a\r\nb\xff\nc\n", 2) == "b\ufffd\nc"
