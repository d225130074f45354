"""What the ACPI tables have to know about a machine.

The numbers come from the board, which is the only place that knows
addresses; the tables only repeat them to the guest.
"""

from __future__ import annotations

from kvmkit.frozen import Record

__all__ = ["AcpiConfig"]


class AcpiConfig(Record, kw_only=True):
    """Addresses in bytes of guest-physical memory or I/O port numbers, sizes in bytes."""

    # where the tables go
    tables: int
    tables_size: int
    # processors and interrupt controllers; local APIC identifiers are 0..cpus-1
    cpus: int
    lapic: int
    ioapic: int
    ioapic_id: int
    gsi_pit: int  # the pin that ISA IRQ 0 is wired to
    sci_irq: int
    # fixed hardware
    pm1a_event: int
    pm1a_control: int
    pm_timer: int  # 0: none; Linux then saves 13 ms of checking that it counts
    gpe0: int
    reset_port: int
    reset_value: int
    s5_sleep_type: int
    # PCI
    ecam: int
    ecam_size: int  # 1 MiB per bus
    pci_window_32: int
    pci_window_32_size: int
    pci_window_64: int
    pci_window_64_size: int
    pci_config_port: int  # 8 ports
    gsi_pci: int  # the first of the pins for INTx
    gsi_pci_count: int = 8
    pci_slots: int = 32  # on bus 0, that have INTx routed
    # legacy devices
    serial_ports: tuple[tuple[int, int], ...]  # port and ISA IRQ
    rtc: int
    rtc_irq: int
    rtc_century: int = 0  # index of the century byte in the RTC's memory; 0: none
    vm_generation: int = 0  # address of the VM generation ID, 16 bytes; 0: none
    vm_generation_gpe: int = 0
    # more I/O ports that no other device may be put at: port and count
    reserved_ports: tuple[tuple[int, int], ...] = ()
