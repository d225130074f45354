"""The guest's address map: the only file with addresses.

Guest-physical memory::

    0x00_0000_0000  +--------------------------------+
                    | low RAM, 639 KiB               |
                    |   0x00500  boot GDT            |
                    |   0x07000  boot_params         |
                    |   0x08000  PVH start_info      |
                    |   0x09000  boot page tables    |
                    |   0x20000  kernel command line |
    0x00_0009_fc00  +--------------------------------+
                    | reserved (EBDA, VGA hole)      |
    0x00_000e_0000  +--------------------------------+
                    | ACPI tables, generation ID     |
    0x00_0010_0000  +--------------------------------+
                    | RAM up to 3 GiB                |
                    |   kernel at its own address,   |
                    |   initrd as high as it may be  |
    0x00_c000_0000  +--------------------------------+
                    | PCI memory window, 32 bit      |
    0x00_e000_0000  +--------------------------------+
                    | PCI ECAM, bus 0, 1 MiB         |
    0x00_e010_0000  +--------------------------------+
                    | (nothing)                      |
    0x00_fec0_0000  | I/O APIC, 4 KiB                |
    0x00_fee0_0000  | local APICs, 4 KiB; MSI 1 MiB  |
    0x00_fffb_c000  | KVM identity map, TSS (4 pages)|
    0x01_0000_0000  +--------------------------------+
                    | RAM above 4 GiB                |
    0x40_0000_0000  +--------------------------------+
                    | PCI memory window, 64 bit      |
    0x80_0000_0000  +--------------------------------+  40 address bits used

I/O ports::

    020 0a0 4d0  8259A pair        2e8 2f8 3e8 3f8  16550A, COM4 COM2 COM3 COM1
    040-043 061  8254, port B      600-60b 620-623  ACPI PM1a, PM timer, GPE0
    060 064      i8042             cf8-cff          PCI configuration, reset (cf9)
    070 071      MC146818 RTC      080 0e9 0f4      POST code, debug console, exit
    1000-ffff    PCI I/O window
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# RAM
LOW_RAM_END: Final = 0x9_FC00
HIGH_RAM_START: Final = 0x10_0000
RAM_HOLE_START: Final = 0xC000_0000
RAM_HOLE_END: Final = 0x1_0000_0000

# What the loader puts in low RAM
BOOT_GDT: Final = 0x500
BOOT_PARAMS: Final = 0x7000
PVH_START_INFO: Final = 0x8000
BOOT_PAGE_TABLES: Final = 0x9000  # 6 pages: PML4, PDPT, 4 page directories
BOOT_STACK: Final = 0x1_0000
COMMAND_LINE: Final = 0x2_0000
COMMAND_LINE_MAX: Final = 0x1_0000

# ACPI
ACPI_TABLES: Final = 0xE_0000
ACPI_TABLES_SIZE: Final = 0x1_F000
VM_GENERATION: Final = 0xF_F000  # 16 bytes, in a page of their own

# Memory-mapped devices
PCI_WINDOW_32: Final = 0xC000_0000
PCI_WINDOW_32_SIZE: Final = 0x2000_0000
PCI_ECAM: Final = 0xE000_0000
PCI_ECAM_SIZE: Final = 0x10_0000  # one bus: Linux probes each slot of every bus there could be
IOAPIC: Final = 0xFEC0_0000
IOAPIC_SIZE: Final = 0x1000
LAPIC: Final = 0xFEE0_0000
LAPIC_SIZE: Final = 0x1000
MSI_SIZE: Final = 0x10_0000
KVM_IDENTITY_MAP: Final = 0xFFFB_C000
KVM_TSS: Final = 0xFFFB_D000
PCI_WINDOW_64: Final = 0x40_0000_0000
PCI_WINDOW_64_SIZE: Final = 0x40_0000_0000

# I/O ports
PIC_PRIMARY: Final = 0x20
PIC_SECONDARY: Final = 0xA0
PIC_ELCR: Final = 0x4D0
PIT: Final = 0x40
PORT_B: Final = 0x61
I8042_DATA: Final = 0x60
I8042_COMMAND: Final = 0x64
RTC: Final = 0x70
POST_CODE: Final = 0x80
DEBUG_CONSOLE: Final = 0xE9
EXIT: Final = 0xF4
PM1A_EVENT: Final = 0x600
PM1A_CONTROL: Final = 0x604
PM_TIMER: Final = 0x608
GPE0: Final = 0x620
PCI_CONFIG_ADDRESS: Final = 0xCF8
RESET: Final = 0xCF9
PCI_CONFIG_DATA: Final = 0xCFC
PCI_WINDOW_IO: Final = 0x1000
PCI_WINDOW_IO_SIZE: Final = 0xF000

RESET_VALUE: Final = 0x06
S5_SLEEP_TYPE: Final = 5

# Interrupts (GSIs are the I/O APIC's pins; ISA IRQ 0 is wired to pin 2)
IRQ_PIT: Final = 0
IRQ_KEYBOARD: Final = 1
IRQ_RTC: Final = 8
IRQ_SCI: Final = 9
IRQ_MOUSE: Final = 12
GSI_PIT: Final = 2
GSI_COUNT: Final = 24
GSI_PCI: Final = 16  # 8 pins for INTx

GPE_GENERATION: Final = 5

SERIAL_PORTS: Final = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
"""Port and ISA IRQ of COM1 to COM4."""

MAX_CPUS: Final = 64
IOAPIC_ID: Final = 0
"""The I/O APIC's identifier; it has a name space of its own in the MADT."""
