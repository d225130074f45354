"""A KVM engine with a bus that writes everything down, for tests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvmkit.engine.engine import CpuEnd
from kvmkit.engine.kvm.engine import KvmEngine
from kvmkit.engine.kvm.kvm import Memory
from tests.engine.kvm.guest import RAM_SIZE, prepare

PATIENCE = 10.0
"""Seconds to wait for what a guest does in microseconds."""


class Bus:
    """Remembers writes in order; reads give ``answer(kind, address, size)``."""

    def __init__(self) -> None:
        self.seen: queue.Queue[tuple[str, int, int, int]] = queue.Queue()
        self.threads: set[str] = set()
        self.answer: Callable[[str, int, int], int] = lambda kind, address, size: 0

    def port_read(self, port: int, size: int) -> int:
        return self.answer("in", port, size)

    def port_write(self, port: int, size: int, value: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.seen.put(("out", port, size, value))

    def port_written(self, port: int, data: bytes) -> None:
        raise AssertionError("KVM collects nothing")

    def memory_read(self, address: int, size: int) -> int:
        return self.answer("load", address, size)

    def memory_write(self, address: int, size: int, value: int) -> None:
        self.seen.put(("store", address, size, value))

    def next(self) -> tuple[str, int, int, int]:
        """The next write; queue.Empty when there is none for long."""
        return self.seen.get(timeout=PATIENCE)

    def value(self) -> int:
        """The value of the next write."""
        return self.next()[3]


class Machine:
    """An engine with its RAM, its bus and the ends of its vCPUs."""

    def __init__(self, vcpus: int) -> None:
        self.memory = Memory(RAM_SIZE)
        self.engine = KvmEngine(vcpus)
        self.engine.add_ram(0, 0, self.memory.address, self.memory.size)
        self.bus = Bus()
        self.ends: queue.Queue[CpuEnd] = queue.Queue()

    def start(self) -> None:
        self.engine.start(self.bus, self.ends.put)

    def end(self) -> CpuEnd:
        """The next end of a vCPU."""
        return self.ends.get(timeout=PATIENCE)

    def word(self, address: int) -> int:
        """A 32-bit word of guest memory."""
        return int.from_bytes(self.memory.view[address : address + 4], "little")


@contextmanager
def machine(
    code: bytes,
    *,
    handlers: dict[int, bytes] | None = None,
    vcpus: int = 1,
    start: bool = True,
) -> Iterator[Machine]:
    """A machine whose vCPU 0 runs ``code``."""
    m = Machine(vcpus)
    try:
        m.engine.vcpus[0].restore(prepare(m.memory, code, handlers))
        if start:
            m.start()
        yield m
    finally:
        m.engine.close()
