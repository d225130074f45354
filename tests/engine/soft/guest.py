"""Small guests for the software CPU: RAM, tables, exception handlers and a bus that takes notes.

A guest has 8 MiB of RAM, its code at ``CODE`` and a GDT with flat segments of
all sorts. In long mode the first 4 GiB are identity-mapped, the first 2 MiB in
4-KiB pages. Every exception is reported (:class:`Fault`); a guest ends with
``out 0xf4, al``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from struct import pack, pack_into, unpack_from
from typing import Any

from kvmkit.engine.cpu import CpuState, DescriptorTable, Segment, flat_long_mode
from kvmkit.engine.engine import CpuEnd
from kvmkit.frozen import replace
from tests.engine.soft.asm import assemble

__all__ = [
    "CODE", "CODE32", "CODE64", "DATA", "DATA_SEGMENT", "DONE", "GDT", "HANDLERS", "IDT",
    "IST_STACK", "PAGE_TABLE", "RAM_SIZE", "STACK", "TABLES", "TSS", "USER_CODE", "USER_DATA",
    "Bus", "Fault", "Guest", "booted", "guest", "long_mode", "page_entry", "protected_mode",
    "real_mode", "set_gate",
]  # fmt: skip

RAM_SIZE = 8 << 20
GDT = 0x500
REPORT = 0x700
TSS = 0x800
CODE = 0x1000
IDT = 0x4000
HANDLERS = 0x5000
STACK = 0x8000  # of ring 0; the same after a change of privilege
DATA = 0x9000
TABLES = 0x10000  # PML4, PDPT, four page directories, the first page table
PAGE_TABLE = TABLES + 0x6000
IST_STACK = 0x20000

# Selectors
CODE32, CODE64, DATA_SEGMENT = 0x08, 0x10, 0x18
USER_CODE32, USER_DATA, USER_CODE = 0x23, 0x2B, 0x33
CODE16, TSS_SELECTOR = 0x38, 0x40

DONE = 0xF4
"""The port by which a guest says that it has finished."""

PATIENCE = 10.0

_DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,
    0x00AF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00CFFB000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
    0x008F9B000000FFFF,
    0x0000890000000067 | TSS << 16,
    0,
)
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 30)


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception as its handler found it; ``sp`` and ``ss`` in long mode only."""

    vector: int
    error: int
    cr2: int
    ip: int
    cs: int
    flags: int
    sp: int
    ss: int


class Bus:
    """Remembers writes in order; reads are answered by ``answer(kind, address, size)``."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int, int]] = []
        self.reads: list[tuple[str, int, int]] = []
        self.answer: Callable[[str, int, int], int] = lambda kind, address, size: 0
        self.on_write: dict[int, Callable[[int], None]] = {}
        self.done = threading.Event()

    def port_read(self, port: int, size: int) -> int:
        self.reads.append(("in", port, size))
        return self.answer("in", port, size)

    def port_write(self, port: int, size: int, value: int) -> None:
        if port == DONE:
            self.done.set()
        elif port in self.on_write:
            self.on_write[port](value)
        else:
            self.log.append(("out", port, size, value))

    def port_written(self, port: int, data: bytes) -> None:
        self.log += [("out", port, 1, value) for value in data]

    def memory_read(self, address: int, size: int) -> int:
        self.reads.append(("load", address, size))
        return self.answer("load", address, size)

    def memory_write(self, address: int, size: int, value: int) -> None:
        self.log.append(("store", address, size, value))


class Guest:
    """An engine with RAM, a bus, and the ends of its vCPUs."""

    def __init__(self, vcpus: int = 1, *, chips: bool = False) -> None:
        from kvmkit.engine.soft._core import address_of
        from kvmkit.engine.soft.engine import SoftEngine

        self.ram = mmap(-1, RAM_SIZE)
        self.engine = SoftEngine(vcpus)
        self.engine.add_ram(0, 0, address_of(self.ram), RAM_SIZE)
        self.bus = Bus()
        self.ends: list[CpuEnd] = []
        self.clock: Any = None
        self.chips: Any = None
        self.lock = threading.RLock()
        if chips:
            self._attach_chips()

    def _attach_chips(self) -> None:
        from kvmkit.board.clock import BoardClock
        from kvmkit.board.model_chips import ModelChips

        self.clock = BoardClock(self.lock, running=False)
        vcpus = self.engine.vcpus
        self.chips = ModelChips(
            self.clock, vcpus, tsc=[cpu.tsc for cpu in vcpus], tsc_hz=self.engine.tsc_hz
        )
        self.engine.attach_chips(self.chips.apics, self.clock, lock=self.lock)

    # Memory

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into RAM, behind the CPU's back."""
        self.ram[address : address + len(data)] = data

    def code(self, source: str, address: int = CODE, bits: int = 64) -> None:
        """Put assembled code into RAM."""
        self.write(address, assemble(source, address, bits))

    def read(self, address: int, size: int) -> bytes:
        """Bytes of RAM."""
        return self.ram[address : address + size]

    def word(self, address: int, size: int = 8) -> int:
        """An integer in RAM."""
        return int.from_bytes(self.ram[address : address + size], "little")

    # Running

    def start(self) -> None:
        """Let it run."""
        if self.clock is not None:
            self.clock.resume()
        self.engine.start(self.bus, self._ended)

    def _ended(self, end: CpuEnd) -> None:
        self.ends.append(end)
        self.bus.done.set()

    def wait(self, patience: float = PATIENCE) -> None:
        """Until the guest says that it is done, or ends; then everything stands still."""
        finished = self.bus.done.wait(patience)
        self.pause()
        self.bus.done.clear()
        assert finished, f"the guest hangs at {self.state().rip:#x}"

    def pause(self) -> None:
        """Stop CPUs and time."""
        self.engine.pause()
        if self.clock is not None:
            self.clock.pause()

    def resume(self) -> None:
        """Go on."""
        if self.clock is not None:
            self.clock.resume()
        self.engine.resume()

    def run(self) -> None:
        """Start, and wait for the end."""
        self.start()
        self.wait()

    def state(self, vcpu: int = 0) -> CpuState:
        """The registers of a vCPU."""
        return self.engine.vcpus[vcpu].state()

    def restore(self, state: CpuState, vcpu: int = 0) -> None:
        """Set the registers of a vCPU."""
        self.engine.vcpus[vcpu].restore(state)

    @property
    def fault(self) -> Fault | None:
        """The exception that ended the guest, if one did."""
        seen, *rest = unpack_from("<9Q", self.ram, REPORT)
        return Fault(*rest) if seen else None

    def close(self) -> None:
        """Free everything."""
        self.engine.close()


@contextmanager
def guest(vcpus: int = 1, *, chips: bool = False) -> Iterator[Guest]:
    """A guest that is closed at the end."""
    g = Guest(vcpus, chips=chips)
    try:
        yield g
    finally:
        g.close()


@contextmanager
def booted(
    source: str, *, bits: int = 64, user: bool = False, vcpus: int = 1, chips: bool = False
) -> Iterator[Guest]:
    """A guest ready to run ``source`` in the mode of ``bits``."""
    with guest(vcpus, chips=chips) as g:
        g.code(source, bits=bits)
        mode = {16: real_mode, 32: protected_mode, 64: long_mode}[bits]
        state = mode(g)
        if user:
            state = replace(
                state,
                cs=Segment(USER_CODE, 0, 0xFFFFFFFF, 0xA0FB),
                ss=Segment(USER_DATA, 0, 0xFFFFFFFF, 0xC0F3),
            ).with_gprs(rsp=STACK - 0x800)
        g.restore(state)
        yield g


# Modes


def page_entry(g: Guest, address: int, *, set_bits: int = 0, clear_bits: int = 0) -> int:
    """Change the 4-KiB page-table entry of ``address`` (below 2 MiB); where the entry is."""
    at = PAGE_TABLE + 8 * (address >> 12)
    g.write(at, pack("<Q", g.word(at) & ~clear_bits | set_bits))
    return at


def _tables(g: Guest) -> None:
    g.write(TABLES, pack("<Q", TABLES + 0x1007))
    for n in range(4):
        directory = TABLES + 0x2000 + 0x1000 * n
        g.write(TABLES + 0x1000 + 8 * n, pack("<Q", directory | 7))
        g.write(directory, pack("<512Q", *(n << 30 | m << 21 | 0x87 for m in range(512))))
    g.write(TABLES + 0x2000, pack("<Q", PAGE_TABLE | 7))
    g.write(PAGE_TABLE, pack("<512Q", *(m << 12 | 7 for m in range(512))))


def _common(g: Guest) -> None:
    g.write(GDT, pack(f"<{len(_DESCRIPTORS)}Q", *_DESCRIPTORS))


def _stubs(bits: int) -> str:
    """One stub of 16 bytes for each vector, then the reporter."""
    lines = []
    for vector in range(32):
        lines.append(f".org {16 * vector}")
        if vector not in _WITH_ERROR_CODE:
            lines.append("push 0")
        lines += [f"push {vector}", "jmp report"]
    lines.append(".org 0x200\nreport:")
    width = bits // 8
    a = "rax" if bits == 64 else "eax"
    lines.append(f"push {a}\nmov {a}, cr2\nmov [{REPORT + 24}], {a}")
    for i, at in enumerate((8, 16, 32, 40, 48, 56, 64)):
        lines.append(f"mov {a}, [{'rsp' if bits == 64 else 'esp'} + {width * (i + 1)}]")
        lines.append(f"mov [{REPORT + at}], {a}")
    lines.append(f"mov dword ptr [{REPORT}], 1\nout {DONE}, al\n1: hlt\njmp 1b")
    return "\n".join(lines)


def long_mode(g: Guest) -> CpuState:
    """64-bit ring 0 at ``CODE``, with paging, an IDT and a TSS whose IST1 is ``IST_STACK``."""
    _common(g)
    _tables(g)
    g.code(_stubs(64), HANDLERS)
    for vector in range(32):
        set_gate(g, vector, HANDLERS + 16 * vector)
    tss = bytearray(0x68)
    pack_into("<Q", tss, 4, STACK)
    pack_into("<Q", tss, 0x24, IST_STACK)
    pack_into("<H", tss, 0x66, 0x68)
    g.write(TSS, bytes(tss))
    return replace(
        flat_long_mode(CODE, cr3=TABLES, gdt=GDT, stack=STACK),
        cr0=0x80010033,
        cr4=0x620,
        efer=0xD01,
        gdt=DescriptorTable(GDT, 8 * len(_DESCRIPTORS) - 1),
        idt=DescriptorTable(IDT, 0xFFF),
        tr=Segment(TSS_SELECTOR, TSS, 0x67, 0x8B),
    )


def set_gate(g: Guest, vector: int, handler: int, *, ist: int = 0, dpl: int = 0) -> None:
    """A 64-bit interrupt gate (SDM vol. 3, 6.14.1)."""
    entry = pack("<HHBBHII", handler & 0xFFFF, CODE64, ist, 0x8E | dpl << 5, handler >> 16, 0, 0)
    g.write(IDT + 16 * vector, entry)


def protected_mode(g: Guest) -> CpuState:
    """32-bit ring 0 at ``CODE``, without paging, with an IDT."""
    _common(g)
    g.code(_stubs(32), HANDLERS, 32)
    for vector in range(32):
        handler = HANDLERS + 16 * vector
        g.write(IDT + 8 * vector, pack("<HHHH", handler & 0xFFFF, CODE32, 0x8E00, handler >> 16))
    data = Segment(DATA_SEGMENT, 0, 0xFFFFFFFF, 0xC093)
    return CpuState(
        rip=CODE,
        cs=Segment(CODE32, 0, 0xFFFFFFFF, 0xC09B),
        ds=data, es=data, fs=data, gs=data, ss=data,
        gdt=DescriptorTable(GDT, 8 * len(_DESCRIPTORS) - 1),
        idt=DescriptorTable(IDT, 0x7FF),
        cr0=0x11, cr4=0x600,
    ).with_gprs(rsp=STACK)  # fmt: skip


def real_mode(g: Guest) -> CpuState:
    """Real mode at 0:``CODE``."""
    _common(g)
    flat = Segment(0, 0, 0xFFFF, 0x93)
    return CpuState(
        rip=CODE, cs=Segment(0, 0, 0xFFFF, 0x9B), ds=flat, es=flat, fs=flat, gs=flat, ss=flat
    ).with_gprs(rsp=STACK)  # fmt: skip
