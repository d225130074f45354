#!/usr/bin/env python3
"""What a port write of the guest costs on KVM: served in Python, and the same loop in C.

The guest writes COUNT bytes to port 0x80 and halts. Each round runs every way once,
one after the other, so that the rounds are paired; the table shows medians of the
time per write, of its difference to C in the same round, and the spread.

    python3 benchmarks/port_exit.py [--rounds 15] [--count 50000]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvmkit.board.bus import BoardBus
from kvmkit.devices.debug_ports import PostCode
from kvmkit.engine.cpu import CpuState, Segment
from kvmkit.engine.engine import Bus
from kvmkit.engine.kvm import loop
from kvmkit.engine.kvm.kvm import Memory, System
from kvmkit.engine.kvm.state import write_state
from kvmkit.frozen import replace

CODE = 0x1000


class EmptyBus:
    """The least a bus can be."""

    def __init__(self) -> None:
        self.sum = 0

    def port_read(self, port: int, size: int) -> int:
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        self.sum += value

    def port_written(self, port: int, data: bytes) -> None:
        pass

    def memory_read(self, address: int, size: int) -> int:
        return 0

    def memory_write(self, address: int, size: int, value: int) -> None:
        pass


def board_bus() -> BoardBus:
    """The board's bus with its lock and a POST code register at port 0x80."""

    def defect(error: Exception) -> None:
        raise error

    bus = BoardBus(threading.Lock(), defect)
    bus.map_ports(0x80, 1, PostCode())
    return bus


def in_python(count: int, bus: Bus, *, masked: bool) -> float:
    """Nanoseconds per port write, on a thread as the engine has it."""
    # mov ecx, count; again: out 0x80, al; inc al; dec ecx; jnz again; hlt
    code = b"\x66\xb9" + count.to_bytes(4, "little") + b"\xe6\x80\xfe\xc0\x66\x49\x75\xf8\xf4"
    memory = Memory(0x4000)
    memory.write(CODE, code)
    result = []
    with System() as system, system.create_vm() as vm:
        vm.set_memory(0, 0, memory.address, memory.size)
        vcpu = vm.create_vcpu(0)
        entry = replace(CpuState(), rip=0, cs=Segment(CODE >> 4, CODE, 0xFFFF, 0x9B))
        write_state(vcpu, entry, irqchip=False)

        def run() -> None:
            if masked:
                loop.block_signals()
                vcpu.set_signal_mask(loop.signals_in_guest())
            start = perf_counter()
            end = loop.run_vcpu(vcpu, bus, lambda: False, {})
            result.append(perf_counter() - start)
            assert end is not None and "KVM_EXIT_HLT" in end.detail, end

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    return result[0] / count * 1e9


def build_peer(folder: str) -> str:
    """Compile port_exit.c. Exits with a message where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("port_exit: no C compiler here: sudo apt-get install gcc linux-libc-dev")
    program = os.path.join(folder, "port_exit")
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-O2", "-Wall", "-o", program, str(source)], check=True)
    return program


def in_c(program: str, count: int) -> float:
    """Nanoseconds per port write of the peer."""
    done = subprocess.run([program, str(count)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="The cost of a port exit in Python and in C.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=50_000, help="port writes per run")
    options = parser.parse_args()
    count = options.count
    with tempfile.TemporaryDirectory() as folder:
        program = build_peer(folder)
        ways: dict[str, Callable[[], float]] = {
            "C": lambda: in_c(program, count),
            "Python, empty bus, no signal mask": lambda: in_python(count, EmptyBus(), masked=False),
            "Python, empty bus (the engine's loop)": lambda: in_python(
                count, EmptyBus(), masked=True
            ),
            "Python, board's bus and a device": lambda: in_python(count, board_bus(), masked=True),
        }
        rounds = [{name: way() for name, way in ways.items()} for _ in range(options.rounds)]
    print(f"one port write, ns; {options.rounds} paired rounds of {count}")
    print(f"{'':40}{'median':>8}{'min':>8}{'max':>8}{'over C':>8}")
    for name in ways:
        times = [r[name] for r in rounds]
        over = median(r[name] - r["C"] for r in rounds)
        print(f"{name:40}{median(times):8.0f}{min(times):8.0f}{max(times):8.0f}{over:8.0f}")


if __name__ == "__main__":
    main()
