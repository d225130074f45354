"""What a stopped machine looks like, in lines for people: registers, code at RIP, the log's end."""

from __future__ import annotations

from kvmkit.board.paging import translate
from kvmkit.engine.cpu import GPRS
from kvmkit.errors import GuestAddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.board.memory import GuestMemory
    from kvmkit.engine.cpu import CpuState

__all__ = ["describe_cpu", "last_lines", "panic_lines"]

_CODE_BYTES = 32
_CR0_PE = 1
_CS_LONG = 1 << 13
_CS_32 = 1 << 14
_OOPS = (b"BUG: ", b" [#1] ", b"------------[ cut here ]", b"Kernel panic - not syncing")
_STORY = 16384  # bytes before the panic that may belong to it


def describe_cpu(index: int, cpu: CpuState, memory: GuestMemory) -> str:
    """The registers of one CPU and a few instructions at RIP, as several lines."""
    bits = _mode_bits(cpu)
    lines = [f"CPU {index}: {bits}-bit, CPL {cpu.cs.selector & 3 if cpu.cr0 & _CR0_PE else 0}"]
    lines[0] += ", halted" if cpu.halted else ", waits for start-up" if cpu.waiting_for_sipi else ""
    for start in range(0, 16, 4):
        names = GPRS[start : start + 4]
        values = cpu.gprs[start : start + 4]
        lines.append(
            " ".join(
                f"{name.upper():>3} {value:016x}" for name, value in zip(names, values, strict=True)
            )
        )
    lines.append(f"RIP {cpu.rip:016x} RFLAGS {cpu.rflags:08x} EFER {cpu.efer:x}")
    lines.append(f"CR0 {cpu.cr0:08x} CR2 {cpu.cr2:016x} CR3 {cpu.cr3:016x} CR4 {cpu.cr4:08x}")
    for name in ("cs", "ss", "ds", "tr"):
        segment = getattr(cpu, name)
        lines.append(
            f" {name.upper()} {segment.selector:04x} base {segment.base:016x} "
            f"limit {segment.limit:08x} attributes {segment.attributes:05x}"
        )
    lines.append(
        f"GDT {cpu.gdt.base:016x}+{cpu.gdt.limit:x} IDT {cpu.idt.base:016x}+{cpu.idt.limit:x}"
    )
    return "\n".join(lines + _code(cpu, memory, bits))


def last_lines(log: bytes, count: int = 20) -> str:
    """The last ``count`` lines of a log."""
    return "\n".join(_text(log).splitlines()[-count:])


def panic_lines(log: bytes, most: int = 60) -> str:
    """The part of a kernel's log that tells of its end: from the last oops or panic on."""
    panic = log.rfind(_OOPS[-1])
    if panic < 0:
        return last_lines(log)
    first = max(0, panic - _STORY)
    places = [place for mark in _OOPS if (place := log.find(mark, first)) >= 0]
    start = log.rfind(b"\n", 0, min(places)) + 1
    return "\n".join(_text(log[start:]).splitlines()[:most])


def _text(log: bytes) -> str:
    return log.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").rstrip()


def _mode_bits(cpu: CpuState) -> int:
    if not cpu.cr0 & _CR0_PE:
        return 16
    if cpu.cs.attributes & _CS_LONG:
        return 64
    return 32 if cpu.cs.attributes & _CS_32 else 16


def _code(cpu: CpuState, memory: GuestMemory, bits: int) -> list[str]:
    linear = cpu.rip if bits == 64 else cpu.cs.base + cpu.rip & 0xFFFF_FFFF
    code = bytearray()
    for address in range(linear, linear + _CODE_BYTES):
        physical = translate(memory, cpu, address)
        try:
            if physical is None:
                break
            code += memory.read(physical, 1)
        except GuestAddressError:
            break
    if not code:
        return [f"code at {linear:x} is not readable"]
    try:
        import capstone
    except ImportError:  # it is only for looks here
        return [f"code at {linear:x}: {code.hex(' ')}"]
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, mode)
    instructions = list(disassembler.disasm_lite(bytes(code), linear))[:6]
    if not instructions:
        return [f"code at {linear:x}: {code.hex(' ')} (no instruction)"]
    return [f"  {at:016x}  {name} {what}".rstrip() for at, _, name, what in instructions]
