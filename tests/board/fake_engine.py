"""A CPU engine whose only CPU carries out a script of bus accesses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from kvmkit.engine.cpu import CpuState
from kvmkit.engine.engine import Bus, CpuEnd

Step = Callable[[Bus], Any]


def out(port: int, value: int, size: int = 1) -> Step:
    """OUT."""
    return lambda bus: bus.port_write(port, size, value)


def say(text: bytes, port: int = 0x3F8) -> Step:
    """Send ``text`` to a serial port."""

    def step(bus: Bus) -> None:
        for byte in text:
            bus.port_write(port, 1, byte)

    return step


class FakeVcpu:
    """Keeps the state it was given; ``loads`` are all of them."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.loads: list[CpuState] = []
        self.now = CpuState()

    def state(self) -> CpuState:
        return self.now

    def restore(self, state: CpuState) -> None:
        self.now = state
        self.loads.append(state)


class FakeEngine:
    """Runs ``script`` once per start of CPU 0: at power-on and after each reset."""

    name = "fake"

    def __init__(self, *script: Step, vcpus: int = 1) -> None:
        self.script = script
        self.vcpus: Sequence[FakeVcpu] = [FakeVcpu(index) for index in range(vcpus)]
        self.ram: dict[int, tuple[int, int, int]] = {}
        self.lines: list[tuple[int, bool]] = []
        self.messages: list[tuple[int, int]] = []
        self.results: list[Any] = []
        self.closed = 0
        self.pauses = 0
        self._may_run = threading.Event()
        self._stands = threading.Event()
        self._again = threading.Semaphore(0)
        self._closing = False
        self._thread: threading.Thread | None = None

    # Engine

    def add_ram(
        self, slot: int, address: int, host: int, size: int, *, readonly: bool = False
    ) -> None:
        self.ram[slot] = (address, host, size)

    def remove_ram(self, slot: int) -> None:
        del self.ram[slot]

    def start(self, bus: Bus, ended: Callable[[CpuEnd], None]) -> None:
        self.bus, self.ended = bus, ended
        self._may_run.set()
        self._again.release()
        self._thread = threading.Thread(target=self._run, name="vcpu0", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        self.pauses += 1
        self._may_run.clear()
        self._stands.wait(5)

    def resume(self) -> None:
        loads = self.vcpus[0].loads
        if len(loads) > 1:
            del loads[0]
            self._again.release()
        self._may_run.set()

    def close(self) -> None:
        self.closed += 1
        self._closing = True
        self._may_run.set()
        self._again.release()
        if self._thread is not None:
            self._thread.join(5)

    # KVM's chips

    def set_line(self, gsi: int, level: bool) -> None:
        self.lines.append((gsi, level))

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def _run(self) -> None:
        while not self._closing:
            self._stands.set()
            self._again.acquire()
            for step in self.script:
                self._stands.set()
                self._may_run.wait(5)
                self._stands.clear()
                if self._closing:
                    return
                self.results.append(step(self.bus))
        self._stands.set()
