"""Registers and bits of the 16550A.

National Semiconductor PC16550D data sheet (June 1995), section 8, table II.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FIFO_SIZE: Final = 16

# Register offsets (table II)
RBR_THR: Final = 0  # DLL with DLAB
IER: Final = 1  # DLM with DLAB
IIR_FCR: Final = 2
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5
MSR: Final = 6
SCR: Final = 7

# Interrupt enable register (8.7)
IER_ERBFI: Final = 0x01  # received data available, and character timeout
IER_ETBEI: Final = 0x02  # transmitter holding register empty
IER_ELSI: Final = 0x04  # receiver line status
IER_EDSSI: Final = 0x08  # modem status
IER_BITS: Final = 0x0F

# Interrupt identification register (8.6), highest priority first
IIR_LINE_STATUS: Final = 0x06
IIR_DATA: Final = 0x04
IIR_TIMEOUT: Final = 0x0C
IIR_THR_EMPTY: Final = 0x02
IIR_MODEM: Final = 0x00
IIR_NONE: Final = 0x01
IIR_FIFOS: Final = 0xC0

# FIFO control register (8.5)
FCR_ENABLE: Final = 0x01
FCR_CLEAR_RX: Final = 0x02
FCR_TRIGGER_SHIFT: Final = 6
FCR_KEPT: Final = 0xC9  # enable, DMA mode, trigger level
TRIGGER_LEVELS: Final = (1, 4, 8, 14)

# Line control register (8.2)
LCR_BREAK: Final = 0x40
LCR_DLAB: Final = 0x80

# Modem control register (8.8)
MCR_DTR: Final = 0x01
MCR_RTS: Final = 0x02
MCR_OUT1: Final = 0x04
MCR_OUT2: Final = 0x08
MCR_LOOP: Final = 0x10
MCR_BITS: Final = 0x1F

# Line status register (8.4)
LSR_DR: Final = 0x01
LSR_OE: Final = 0x02
LSR_PE: Final = 0x04
LSR_FE: Final = 0x08
LSR_BI: Final = 0x10
LSR_THRE: Final = 0x20
LSR_TEMT: Final = 0x40
LSR_FIFO_ERROR: Final = 0x80
LSR_ERRORS: Final = LSR_OE | LSR_PE | LSR_FE | LSR_BI
LSR_CLEARED_BY_READ: Final = LSR_ERRORS | LSR_FIFO_ERROR
LSR_IDLE: Final = LSR_THRE | LSR_TEMT

# Modem status register (8.9)
MSR_DCTS: Final = 0x01
MSR_DDSR: Final = 0x02
MSR_TERI: Final = 0x04
MSR_DDCD: Final = 0x08
MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80
MSR_DELTAS: Final = 0x0F
MSR_INPUTS: Final = 0xF0
MSR_CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD

DIVISOR_9600: Final = 12  # the chip leaves it undefined; firmware would leave this
