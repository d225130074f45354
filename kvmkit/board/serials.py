"""The four serial ports and who is at their other ends.

COM1 is the console, COM2 takes the kernel's log when somebody asked for one,
COM3 is for who wants to talk with the guest's agent, and on COM4 the guest reports about itself
(:mod:`kvmkit.board.reports`).
"""

from __future__ import annotations

from kvmkit.board import layout
from kvmkit.board.console import ConsoleInput, ConsoleOutput
from kvmkit.board.reports import GuestReports
from kvmkit.devices.serial import Serial
from kvmkit.devices.serial_registers import LSR, LSR_IDLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kvmkit.board.bus import BoardBus
    from kvmkit.board.clock import BoardClock
    from kvmkit.board.config import BoardConfig
    from kvmkit.board.interrupts import Chips
    from kvmkit.board.loop import EventLoop

__all__ = ["SerialPorts"]

_REGISTERS = 8


class SerialPorts:
    """COM1 to COM4; ``exited`` hears of an exit status told on COM4."""

    def __init__(
        self,
        config: BoardConfig,
        bus: BoardBus,
        chips: Chips,
        loop: EventLoop,
        lock: AbstractContextManager[object],
        clock: BoardClock,
        host_clock: BoardClock,
        exited: Callable[[int], None],
    ) -> None:
        self._bus = bus
        self._clogs = 0
        self.console = ConsoleOutput(loop, lock, host_clock, self._clogged)
        self.kernel_log = ConsoleOutput(loop, lock, host_clock, self._clogged)
        self.input = ConsoleInput(loop, lock, clock, hold=config.hold_input)
        self.reports = GuestReports(exited)
        self.link_input = ConsoleInput(loop, lock, clock)
        """What goes to the guest on COM3."""
        self.on_link: Callable[[bytes], None] = _nobody
        """Hears what the guest sends on COM3, on a vCPU's thread under the board's lock."""
        for sink in config.console:
            self.console.add_sink(sink)
        for sink in config.kernel_log or ():
            self.kernel_log.add_sink(sink)
        ends: tuple[tuple[Callable[[bytes], None], Callable[[], None] | None], ...] = (
            (self.console.write, self.input.room),
            (self.kernel_log.write, None),
            (lambda data: self.on_link(data), self.link_input.room),
            (self.reports.write, None),
        )
        ports = []
        for (port, irq), (output, on_room) in zip(layout.SERIAL_PORTS, ends, strict=True):
            serial = Serial(chips.isa_line(irq), output, on_room)
            bus.map_ports(port, _REGISTERS, serial)
            ports.append(serial)
        self.ports: tuple[Serial, ...] = tuple(ports)
        self.input.connect(self.ports[0])
        self.link_input.connect(self.ports[2])

    def hasten(self, quick_port: Callable[[int, int | None, bool], None]) -> None:
        """Let an engine do for a quiet port what needs no call: see ``SoftEngine.quick_port``."""
        for (base, _), serial in zip(layout.SERIAL_PORTS, self.ports, strict=True):
            self._bus.collect(base, serial.transmit_quietly)

            def on_quiet(quiet: bool, base: int = base) -> None:
                quick_port(base + LSR, LSR_IDLE if quiet else None, False)
                quick_port(base, None, quiet)

            serial.watch_quiet(on_quiet)

    @property
    def activity(self) -> int:
        """How many bytes the guest has sent on COM1 and COM2; a sign of life."""
        return self.console.count + self.kernel_log.count

    @property
    def log(self) -> bytes:
        """The kernel's log if it has a line of its own, else what the console showed."""
        return self.kernel_log.log or self.console.log

    def close(self, patience: float | None = 2.0) -> None:
        """Put out what is left. Once the loop has stopped."""
        self.console.close(patience)
        self.kernel_log.close(patience)

    @property
    def trouble(self) -> str:
        """Which output could not be written, and why; "" if all was. After :meth:`close`."""
        ends = (("the console", self.console), ("the kernel log", self.kernel_log))
        lost = [f"{name}: {end.trouble.strerror}" for name, end in ends if end.trouble]
        return ", ".join(lost)

    def _clogged(self, clogged: bool) -> None:
        self._clogs += 1 if clogged else -1
        self._bus.slow = bool(self._clogs)


def _nobody(data: bytes) -> None:
    """The other end of a line that leads nowhere."""
