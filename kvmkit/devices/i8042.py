"""i8042 keyboard controller, without keyboard and mouse.

IBM PC AT Technical Reference (1985), "Keyboard controller"; IBM PS/2 Hardware
Interface Technical Reference (1990), "Keyboard and auxiliary device
controller" (the auxiliary port, commands 0xa7 to 0xa9 and 0xd3, 0xd4).

No device is attached. What is sent to one times out as it does there: the
byte 0xfe comes back with the status register's time-out bit, at once.
"""

from __future__ import annotations

from kvmkit.frozen import Record
from kvmkit.named import NamedInt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmkit.devices.device import Line

__all__ = ["I8042", "I8042State", "Source"]

# Status register, port 0x64
STATUS_OBF: Final = 0x01  # output buffer full: a byte waits at port 0x60
STATUS_SYSTEM: Final = 0x04  # as in the command byte: self-test passed
STATUS_COMMAND: Final = 0x08  # the last write went to port 0x64
STATUS_UNLOCKED: Final = 0x10  # the key lock is open
STATUS_AUX: Final = 0x20  # the byte that waits is the auxiliary device's
STATUS_TIMEOUT: Final = 0x40

# Command byte (controller RAM, byte 0)
CTR_IRQ1: Final = 0x01
CTR_IRQ12: Final = 0x02
CTR_SYSTEM: Final = 0x04
CTR_KEYBOARD_OFF: Final = 0x10
CTR_AUX_OFF: Final = 0x20
CTR_TRANSLATE: Final = 0x40
CTR_BITS: Final = 0x77
CTR_AFTER_SELF_TEST: Final = CTR_SYSTEM | CTR_KEYBOARD_OFF | CTR_AUX_OFF | CTR_TRANSLATE
CTR_AFTER_FIRMWARE: Final = CTR_IRQ1 | CTR_SYSTEM | CTR_AUX_OFF | CTR_TRANSLATE

# Output port
OUT_RESET: Final = 0x01  # 0 holds the CPU in reset
OUT_A20: Final = 0x02
OUT_IRQ1: Final = 0x10
OUT_IRQ12: Final = 0x20
OUT_LINES: Final = 0xC0  # keyboard clock and data, idle
INPUT_PORT: Final = 0x80  # key lock open

# Commands
CMD_READ_RAM: Final = 0x20  # to 0x3f
CMD_WRITE_RAM: Final = 0x60  # to 0x7f, the byte follows
CMD_AUX_OFF: Final = 0xA7
CMD_AUX_ON: Final = 0xA8
CMD_AUX_TEST: Final = 0xA9
CMD_SELF_TEST: Final = 0xAA
CMD_KEYBOARD_TEST: Final = 0xAB
CMD_KEYBOARD_OFF: Final = 0xAD
CMD_KEYBOARD_ON: Final = 0xAE
CMD_READ_INPUT: Final = 0xC0
CMD_READ_OUTPUT: Final = 0xD0
CMD_WRITE_OUTPUT: Final = 0xD1  # the byte follows, as with the three below
CMD_KEYBOARD_BUFFER: Final = 0xD2
CMD_AUX_BUFFER: Final = 0xD3
CMD_WRITE_AUX: Final = 0xD4
CMD_A20_OFF: Final = 0xDD
CMD_A20_ON: Final = 0xDF
CMD_READ_TEST: Final = 0xE0
CMD_PULSE: Final = 0xF0  # to 0xff: pulse output port bits 0-3 whose bit here is 0

SELF_TEST_PASSED: Final = 0x55
PORT_OK: Final = 0x00
RESEND: Final = 0xFE  # what the controller answers for a device that does not
RAM_SIZE: Final = 32


class Source(NamedInt):
    """Where the byte in the output buffer is from."""

    NONE = 0
    CONTROLLER = 1
    AUX = 2


class I8042State(Record):
    """The controller at rest. ``expects`` is the command whose data byte is
    awaited at port 0x60, 0 for none."""

    ram: bytes
    status: int
    output_port: int
    buffer: int
    source: int
    expects: int


class _Port:
    """One of the controller's two ports, as a device."""

    __slots__ = ("_owner", "_read", "_write")

    def __init__(
        self, owner: I8042, read: Callable[[], int], write: Callable[[int], None]
    ) -> None:
        self._owner = owner
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read() if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._write(value & 0xFF)

    def reset(self) -> None:
        """Reset the whole controller."""
        self._owner.reset()

    def state(self) -> I8042State:
        return self._owner.state()

    def restore(self, state: I8042State) -> None:
        self._owner.restore(state)


class I8042:
    """The controller: ``data`` is port 0x60, ``command`` port 0x64.

    ``reset`` is called when the guest pulses the CPU's reset line.
    """

    def __init__(self, irq1: Line, irq12: Line, reset: Callable[[], None]) -> None:
        self._irq1 = irq1
        self._irq12 = irq12
        self._reset_cpu = reset
        self._levels = (False, False)
        self.data = _Port(self, self._read_data, self._write_data)
        self.command = _Port(self, self._read_status, self._write_command)
        self._power_on()

    def _power_on(self) -> None:
        """As firmware leaves it: keyboard interrupt on, auxiliary port off."""
        self._ram = bytearray(RAM_SIZE)
        self._ram[0] = CTR_AFTER_FIRMWARE
        self._status = 0
        self._output_port = OUT_LINES | OUT_RESET | OUT_A20
        self._buffer = 0
        self._source = Source.NONE
        self._expects = 0

    @property
    def a20(self) -> bool:
        """The level of the A20 gate. The board leaves address line 20 open always."""
        return bool(self._output_port & OUT_A20)

    # Port 0x64

    def _read_status(self) -> int:
        status = self._status | STATUS_UNLOCKED | (self._ram[0] & CTR_SYSTEM)
        if self._source != Source.NONE:
            status |= STATUS_OBF
        if self._source == Source.AUX:
            status |= STATUS_AUX
        return status

    def _write_command(self, command: int) -> None:
        self._status |= STATUS_COMMAND
        self._expects = 0
        if CMD_READ_RAM <= command < CMD_READ_RAM + RAM_SIZE:
            self._answer(self._ram[command - CMD_READ_RAM])
        elif CMD_WRITE_RAM <= command < CMD_WRITE_RAM + RAM_SIZE or command in (
            CMD_WRITE_OUTPUT,
            CMD_KEYBOARD_BUFFER,
            CMD_AUX_BUFFER,
            CMD_WRITE_AUX,
        ):
            self._expects = command
        elif command == CMD_SELF_TEST:
            self._ram[0] = CTR_AFTER_SELF_TEST
            self._answer(SELF_TEST_PASSED)
        elif command in (CMD_AUX_TEST, CMD_KEYBOARD_TEST):
            self._answer(PORT_OK)
        elif command == CMD_READ_INPUT:
            self._answer(INPUT_PORT)
        elif command == CMD_READ_OUTPUT:
            self._answer(self._read_output_port())
        elif command == CMD_READ_TEST:
            self._answer(0)
        elif command >= CMD_PULSE:
            if not command & OUT_RESET:
                self._reset_cpu()
        else:
            self._switch(command)

    def _switch(self, command: int) -> None:
        """The commands that turn something on or off; unknown ones do nothing."""
        if command == CMD_AUX_OFF:
            self._ram[0] |= CTR_AUX_OFF
        elif command == CMD_AUX_ON:
            self._ram[0] &= ~CTR_AUX_OFF
        elif command == CMD_KEYBOARD_OFF:
            self._ram[0] |= CTR_KEYBOARD_OFF
        elif command == CMD_KEYBOARD_ON:
            self._ram[0] &= ~CTR_KEYBOARD_OFF
        elif command == CMD_A20_OFF:
            self._output_port &= ~OUT_A20
        elif command == CMD_A20_ON:
            self._output_port |= OUT_A20

    # Port 0x60

    def _read_data(self) -> int:
        self._source = Source.NONE
        self._status &= ~STATUS_TIMEOUT
        self._update()
        return self._buffer

    def _write_data(self, value: int) -> None:
        command, self._expects = self._expects, 0
        self._status &= ~STATUS_COMMAND
        if command == CMD_WRITE_OUTPUT:
            self._output_port = value & (OUT_RESET | OUT_A20) | OUT_LINES
            if not value & OUT_RESET:
                self._output_port |= OUT_RESET  # the reset it starts raises it again
                self._reset_cpu()
        elif command == CMD_KEYBOARD_BUFFER:
            self._answer(value)
        elif command == CMD_AUX_BUFFER:
            self._answer(value, Source.AUX)
        elif command == CMD_WRITE_AUX:
            self._ram[0] &= ~CTR_AUX_OFF
            self._time_out(Source.AUX)
        elif command:
            self._ram[command - CMD_WRITE_RAM] = value
            self._ram[0] &= CTR_BITS
            self._update()
        else:
            self._ram[0] &= ~CTR_KEYBOARD_OFF
            self._time_out(Source.CONTROLLER)

    def _time_out(self, source: Source) -> None:
        """The device that ``source`` stands for did not take the byte."""
        self._answer(RESEND, source)
        self._status |= STATUS_TIMEOUT

    def _answer(self, value: int, source: Source = Source.CONTROLLER) -> None:
        """Put a byte in the output buffer; one that was not read is lost."""
        self._status &= ~STATUS_TIMEOUT
        if self._source != Source.NONE:
            self._source = Source.NONE
            self._update()  # the line falls, so that the new byte makes an edge
        self._buffer = value
        self._source = source
        self._update()

    # Lines

    def _wanted(self) -> tuple[bool, bool]:
        return (
            self._source == Source.CONTROLLER and bool(self._ram[0] & CTR_IRQ1),
            self._source == Source.AUX and bool(self._ram[0] & CTR_IRQ12),
        )

    def _read_output_port(self) -> int:
        irq1, irq12 = self._wanted()
        return self._output_port | (OUT_IRQ1 if irq1 else 0) | (OUT_IRQ12 if irq12 else 0)

    def _update(self) -> None:
        levels = self._wanted()
        if levels != self._levels:
            self._levels = levels
            self._irq1(levels[0])
            self._irq12(levels[1])

    # Life

    def reset(self) -> None:
        """As firmware leaves it."""
        self._power_on()
        self._update()

    def state(self) -> I8042State:
        return I8042State(
            ram=bytes(self._ram),
            status=self._status,
            output_port=self._output_port,
            buffer=self._buffer,
            source=int(self._source),
            expects=self._expects,
        )

    def restore(self, state: I8042State) -> None:
        self._ram = bytearray(state.ram)
        self._status = state.status
        self._output_port = state.output_port
        self._buffer = state.buffer
        self._source = Source(state.source)
        self._expects = state.expects
        self._levels = self._wanted()
        self._irq1(self._levels[0])
        self._irq12(self._levels[1])
