"""A running machine looked at: its counters, and its CPUs' registers, code and stack."""

from __future__ import annotations

from time import monotonic

from kvmkit.board.paging import translate
from kvmkit.board.postmortem import describe_cpu
from kvmkit.engine.cpu import GPRS
from kvmkit.errors import GuestAddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.board.memory import GuestMemory
    from kvmkit.engine.cpu import CpuState

__all__ = ["Counters", "debug_cpus", "read_virtual", "registers", "stack_lines"]

_STACK_WORDS = 16
_CR0_PE = 1
_CS_LONG = 1 << 13
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")


class Counters:
    """The counters of a machine's engine, since its start, and bytes per serial line.

    Names are the engine's own: KVM's binary statistics, the software CPU's counts.
    The CPUs are stopped once, to open KVM's; reading them then disturbs nobody.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._descriptors: list[int] | None = None

    def read(self) -> dict[str, Any]:
        """KvmkitStat."""
        board = self._board
        engine: Any = board.engine
        machine: dict[str, int] = {}
        cpus: list[dict[str, int]] = [{} for _ in engine.vcpus]
        if engine.name == "kvm":
            from kvmkit.engine.kvm.stats import read_counters

            cpus = [read_counters(fd) for fd in self._open()] or cpus
            for name in cpus[0]:
                machine[name] = sum(counts.get(name, 0) for counts in cpus)
        else:
            machine = engine.core.stats()
        serial = board.serial
        return {
            "time": monotonic(),
            "engine": engine.name,
            "machine": machine,
            "cpus": [{"cpu-index": index, "counts": counts} for index, counts in enumerate(cpus)],
            "serial": [
                {"name": "console", "sent": serial.console.count},
                {"name": "kernel-log", "sent": serial.kernel_log.count},
            ],
            "memory-used": board.ram.resident(),
        }

    def _open(self) -> list[int]:
        """The descriptors of all vCPUs; none where KVM has no such counters (before 5.14)."""
        if self._descriptors is None:
            from kvmkit.engine.kvm.stats import open_stats

            board = self._board
            self._descriptors = []
            with board.control:
                running = not board.paused
                if running:
                    board.engine.pause()
                try:
                    vcpus: Any = board.engine.vcpus
                    for vcpu in vcpus:
                        self._descriptors.append(open_stats(vcpu.fd.fd))
                except OSError:
                    self.close()
                    self._descriptors = []
                finally:
                    if running:
                        board.engine.resume()
        return self._descriptors

    def close(self) -> None:
        """Close what is open. Callable twice."""
        descriptors, self._descriptors = self._descriptors, None
        if descriptors:
            import os

            for fd in descriptors:
                os.close(fd)


def debug_cpus(board: Board) -> list[dict[str, Any]]:
    """KvmkitCpuDebug of each CPU, all stopped at the same moment."""
    states = board.sample() or ()
    return [
        {
            "cpu-index": index,
            "registers": {name: f"{value:#x}" for name, value in registers(cpu).items()},
            "text": describe_cpu(index, cpu, board.ram),
            "stack": "\n".join(stack_lines(board.ram, cpu)),
        }
        for index, cpu in enumerate(states)
    ]


def registers(cpu: CpuState) -> dict[str, int]:
    """The general, control and segment registers by name; a segment's is its selector."""
    found = dict(zip(GPRS, cpu.gprs, strict=True))
    for name in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        found[name] = getattr(cpu, name)
    for name in _SEGMENTS:
        found[name] = getattr(cpu, name).selector
        if name in ("fs", "gs"):
            found[f"{name}_base"] = getattr(cpu, name).base
    return found


def stack_lines(memory: GuestMemory, cpu: CpuState, words: int = _STACK_WORDS) -> list[str]:
    """What lies on the stack, in words of the CPU's mode, four to a line."""
    pointer = cpu.gprs[GPRS.index("rsp")]
    width = 8 if cpu.cr0 & _CR0_PE and cpu.cs.attributes & _CS_LONG else 4
    if width == 4:
        pointer = cpu.ss.base + (pointer & 0xFFFF_FFFF) & 0xFFFF_FFFF
    lines = []
    for start in range(pointer, pointer + words * width, 4 * width):
        try:
            data = read_virtual(memory, cpu, start, 4 * width)
        except GuestAddressError:
            lines.append(f"  {start:016x}  is not mapped")
            break
        each = [data[at : at + width] for at in range(0, len(data), width)]
        text = " ".join(f"{int.from_bytes(word, 'little'):0{2 * width}x}" for word in each)
        lines.append(f"  {start:016x}  {text}")
    return lines


def read_virtual(memory: GuestMemory, cpu: CpuState, address: int, size: int) -> bytes:
    """``size`` bytes at a linear address, through the CPU's page tables.

    Raises GuestAddressError when part of it is not mapped, or not to RAM.
    """
    found = bytearray()
    while len(found) < size:
        at = address + len(found) & (1 << 64) - 1
        physical = translate(memory, cpu, at)
        if physical is None:
            raise GuestAddressError(f"the address {at:#x} is not mapped in the guest")
        found += memory.read(physical, min(size - len(found), 4096 - (at & 0xFFF)))
    return bytes(found)
