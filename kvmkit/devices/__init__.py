"""The board's devices: serial, clocks, interrupt chips, power, PCI, debug ports.

Each file is one device, written from its data sheet, and a pure object (see
:mod:`kvmkit.devices.device`): registers, lines, a clock and a state record.
Nothing in this room knows a CPU engine, a thread, a file descriptor or an
address of the memory map; those are handed in by the board.
"""
