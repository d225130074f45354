"""The software CPU computes what the host's processor computes.

The same machine code runs natively and in a guest, over the same random
operands; registers, memory and defined flags must agree. Not MXCSR: Unicorn 2.1
never sets its exception flags.
"""

from __future__ import annotations

import platform
import random
from mmap import PROT_EXEC, PROT_READ, PROT_WRITE, mmap
from pathlib import Path
from struct import pack, pack_into, unpack_from

import pytest

from tests.engine.soft.asm import assemble
from tests.engine.soft.guest import CODE, RAM_SIZE, guest, long_mode
from tests.engine.soft.instructions import GROUPS

pytestmark = pytest.mark.soft

RUNS = 16  # random operands for each instruction
RECORD = 256  # flags, 8 registers, pad, XMM0-3, 64 bytes of memory, MXCSR
MEMORY = 144
MXCSR = 208
AREA = 0x200000  # where a guest has its code and then its records
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9")

# fmt: off
INTEGERS = (0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF,
            0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF)
SINGLES = (0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00001,
           0x7F800001, 0x00000001, 0x80400000, 0x4F000000, 0xCF000000, 0x3F000000, 0x40490FDB,
           0x7F7FFFFF, 0x5F000000)
DOUBLES = (0x0000000000000000, 0x8000000000000000, 0x3FF0000000000000, 0xBFF8000000000000,
           0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000001, 0x7FF0000000000001,
           0x0000000000000001, 0x41E0000000000000, 0xC1E0000000000000, 0x43E0000000000000,
           0x400921FB54442D18, 0x7FEFFFFFFFFFFFFF, 0x3FE0000000000000, 0x4004000000000000)
# fmt: on

# Kinds of operands (_bytes): x87 without signalling NaNs, which Unicorn does not quiet
# when it loads them; string comparisons with text.
KINDS = {"fpu": (2,), "sse4_2": (4, 4, 4, 5)}


def _function(source: str) -> str:
    """Load everything from the record at RDI, do it, store everything."""
    source = source.replace("$M", f"r15 + {MEMORY}")
    load = "\n".join(f"mov {name}, [r15 + {8 + 8 * i}]" for i, name in enumerate(REGISTERS))
    store = "\n".join(f"mov [r15 + {8 + 8 * i}], {name}" for i, name in enumerate(REGISTERS))
    xmm_in = "\n".join(f"movdqu xmm{i}, [r15 + {80 + 16 * i}]" for i in range(4))
    xmm_out = "\n".join(f"movdqu [r15 + {80 + 16 * i}], xmm{i}" for i in range(4))
    return f"""
        push rbx; push r15; mov r15, rdi
        {xmm_in}
        ldmxcsr [r15 + {MXCSR}]
        {load}
        push qword ptr [r15]; popfq
        {source}
        pushfq; pop qword ptr [r15]
        cld
        {store}
        {xmm_out}
        stmxcsr [r15 + {MXCSR}]
        push 0x1f80; ldmxcsr [rsp]; add rsp, 8
        pop r15; pop rbx; ret
    """


def _program(sources: list[str]) -> str:
    """driver(records): each function over its RUNS records, in order."""
    calls = "\n".join(
        f"mov r14d, {RUNS}\n{i}0: mov rdi, rbp; call f{i}; add rbp, {RECORD}; dec r14d; jnz {i}0b"
        for i in range(len(sources))
    )
    bodies = "\n".join(f"f{i}:{_function(source)}" for i, source in enumerate(sources))
    return f"""
        push rbp; push r14; push rbx; mov rbp, rdi
        {calls}
        pop rbx; pop r14; pop rbp; ret
        {bodies}
    """


def _integer(rng: random.Random) -> int:
    choice = rng.randrange(4)
    if choice == 0:
        return rng.choice(INTEGERS)
    if choice == 1:
        return rng.choice(INTEGERS) + rng.randrange(-3, 4) & 0xFFFFFFFFFFFFFFFF
    return rng.getrandbits(64) >> (rng.randrange(64) if choice == 2 else 0)


def _bytes(rng: random.Random, kinds: tuple[int, ...]) -> bytes:
    """16 bytes: numbers of some kind, or text."""
    kind = rng.choice(kinds)
    if kind == 0:
        return b"".join(pack("<I", rng.choice(SINGLES)) for _ in range(4))
    if kind == 1:
        return b"".join(pack("<Q", rng.choice(DOUBLES)) for _ in range(2))
    if kind == 2:
        return b"".join(pack("<f", rng.uniform(-1000, 1000)) for _ in range(4))
    if kind == 3:
        return b"".join(pack("<d", rng.uniform(-1e5, 1e5)) for _ in range(2))
    if kind == 4:
        text = rng.choice((b"ab", b"ab\0", b"\0aabbAZ\x80\xff"))
        return bytes(rng.choice(text) for _ in range(16))
    return rng.randbytes(16)


def _record(rng: random.Random, kinds: tuple[int, ...]) -> bytes:
    record = bytearray(RECORD)
    pack_into("<9Q", record, 0, rng.getrandbits(12) & 0x8D5 | 2, *(_integer(rng) for _ in range(8)))
    for at in range(80, MXCSR, 16):
        record[at : at + 16] = _bytes(rng, kinds)
    pack_into("<I", record, MXCSR, 0x1F80)
    return bytes(record)


def _natively(code: bytes, records: bytes) -> bytes:
    """Run it on the host's processor."""
    import ctypes

    from kvmkit.engine.soft._core import address_of

    memory = mmap(-1, len(code) + 4096, prot=PROT_READ | PROT_WRITE | PROT_EXEC)
    memory[: len(code)] = code
    data = mmap(-1, len(records))
    data[:] = records
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address_of(memory))(address_of(data))
    return data[:]


def _softly(code: bytes, records: bytes) -> bytes:
    """Run it on the software CPU."""
    with guest() as g:
        g.restore(long_mode(g))
        at = AREA + len(code) + 4095 & ~4095
        assert at + len(records) <= RAM_SIZE
        g.write(AREA, code)
        g.write(at, records)
        g.code(f"mov edi, {at}; mov eax, {AREA}; call rax; out 0xf4, al; hlt", CODE)
        g.run()
        assert g.fault is None, f"{g.fault} at {g.fault.ip - AREA:#x} of the code"
        return g.read(at, len(records))


def _difference(native: bytes, soft: bytes, mask: int) -> list[str]:
    """What differs between two records."""
    found = []
    n, s = unpack_from("<9Q", native), unpack_from("<9Q", soft)
    if (n[0] ^ s[0]) & mask:
        found.append(f"flags {n[0] & mask:#x} but {s[0] & mask:#x}")
    for name, a, b in zip(REGISTERS, n[1:], s[1:], strict=True):
        if a != b:
            found.append(f"{name} {a:#x} but {b:#x}")
    for i, at in enumerate(range(80, MXCSR, 16)):
        a16, b16 = native[at : at + 16], soft[at : at + 16]
        if a16 != b16 and not (i < 4 and _same_numbers(a16, b16)):
            where = f"xmm{i}" if i < 4 else f"[{at - MEMORY}]"
            found.append(f"{where} {a16.hex()} but {b16.hex()}")
    return found


def _same_numbers(a: bytes, b: bytes) -> bool:
    """Equal but for which of two NaNs came out: Unicorn takes the larger, SSE the first."""
    return all(
        a[i : i + 8] == b[i : i + 8]
        or (a[i + 7] & b[i + 7] & 0x7F == 0x7F and a[i + 6] & b[i + 6] & 0xF0 == 0xF0)
        or all(
            a[j : j + 4] == b[j : j + 4]
            or (a[j + 3] & b[j + 3] & 0x7F == 0x7F and a[j + 2] & b[j + 2] & 0x80)
            for j in (i, i + 4)
        )
        for i in (0, 8)
    )


def _host_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 host to compare with")
@pytest.mark.parametrize("feature", GROUPS)
def test_same_as_the_host(feature: str) -> None:
    """Every instruction of the group has the host's results, for all operands."""
    if feature not in _host_flags():
        pytest.skip(f"the host's processor lacks {feature}")
    cases = GROUPS[feature]
    rng = random.Random(feature)
    kinds = KINDS.get(feature, (0, 1, 2, 3, 4, 5))
    records = b"".join(_record(rng, kinds) for _ in range(RUNS * len(cases)))
    code = assemble(_program([source for source, _ in cases]), AREA)
    native, soft = _natively(code, records), _softly(code, records)
    wrong: dict[str, str] = {}
    for i in range(RUNS * len(cases)):
        source, mask = cases[i // RUNS]
        at = slice(RECORD * i, RECORD * (i + 1))
        if native[at] != soft[at] and (found := _difference(native[at], soft[at], mask)):
            wrong.setdefault(source, f"{found} in record {records[at].hex()}")
    assert not wrong, "\n".join(f"{source}: {how}" for source, how in wrong.items())


@pytest.mark.parametrize(
    "instruction",
    ["fcmovu st, st(2)", "fstp st(1)", "fxch st(1)", "fadd st, st(3)", "fldz",
     "fst qword ptr [rbx]", "pshufd xmm0, xmm1, 3", "palignr xmm1, xmm2, 3",
     "pinsrw xmm1, eax, 3", "bts [rbx], rax", "lock cmpxchg [rbx], ecx",
     "rol byte ptr [rbx], cl", "rcl eax, cl", "shld eax, ebx, cl", "cmovne eax, ebx",
     "crc32 eax, bl", "stosb", "movsb", "adcx eax, ecx", "push rax; pop rcx",
     "pcmpistri xmm1, xmm2, 3", "aeskeygenassist xmm1, xmm2, 1", "div bl", "mov ds, edx"],
)  # fmt: skip
def test_long_run_of_one_instruction(instruction: str) -> None:
    """A thousand of the same in a row: the translator's tables do not overflow."""
    with guest() as g:
        g.write(AREA, assemble(f".rept 1000\n{instruction}\n.endr\nout 0xf4, al; hlt", AREA))
        g.code(f"fninit; mov eax, 7; mov ebx, 0x{AREA * 2:x}; mov ecx, 3; mov edx, 0x18\n"
               f"mov edi, ebx; mov esi, ebx; mov ebp, {AREA}; jmp rbp")  # fmt: skip
        g.restore(long_mode(g))
        g.run()
        assert g.fault is None or g.fault.vector == 0  # DIV may overflow
