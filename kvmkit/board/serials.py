"""The four serial ports and who is at their other ends.

COM1 is the console, COM2 takes the kernel's log when somebody asked for one,
COM3 is free, and on COM4 the guest tells a command's exit status
(:mod:`kvmkit.board.exit_line`).
"""

from __future__ import annotations

from kvmkit.board import layout
from kvmkit.board.console import ConsoleInput, ConsoleOutput
from kvmkit.board.exit_line import ExitLine
from kvmkit.devices.serial import Serial

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
        host_clock: BoardClock,
        exited: Callable[[int], None],
    ) -> None:
        self._bus = bus
        self._clogs = 0
        self.console = ConsoleOutput(loop, lock, host_clock, self._clogged)
        self.kernel_log = ConsoleOutput(loop, lock, host_clock, self._clogged)
        self.input = ConsoleInput(loop, lock, hold=config.hold_input)
        self.exit_line = ExitLine(exited)
        for sink in config.console:
            self.console.add_sink(sink)
        for sink in config.kernel_log or ():
            self.kernel_log.add_sink(sink)
        ends: tuple[tuple[Callable[[bytes], None], Callable[[], None] | None], ...] = (
            (self.console.write, self.input.push),
            (self.kernel_log.write, None),
            (_nobody, None),
            (self.exit_line.write, None),
        )
        ports = []
        for (port, irq), (output, on_room) in zip(layout.SERIAL_PORTS, ends, strict=True):
            serial = Serial(chips.isa_line(irq), output, on_room)
            bus.map_ports(port, _REGISTERS, serial)
            ports.append(serial)
        self.ports: tuple[Serial, ...] = tuple(ports)
        self.input.connect(self.ports[0])

    @property
    def activity(self) -> int:
        """How many bytes the guest has sent on COM1 and COM2; a sign of life."""
        return self.console.count + self.kernel_log.count

    @property
    def log(self) -> bytes:
        """The kernel's log if it has a line of its own, else what the console showed."""
        return self.kernel_log.log or self.console.log

    def close(self) -> None:
        """Put out what is left. Once the loop has stopped."""
        self.console.close()
        self.kernel_log.close()

    def _clogged(self, clogged: bool) -> None:
        self._clogs += 1 if clogged else -1
        self._bus.slow = bool(self._clogs)


def _nobody(data: bytes) -> None:
    """The other end of a line that leads nowhere."""
