"""What stands in for firmware: the ACPI tables, and the places the loader may use.

Both repeat to their room the numbers of :mod:`kvmkit.board.layout`.
"""

from __future__ import annotations

from kvmkit.board import layout as at
from kvmkit.boot.plan import LoaderAddresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.boot.acpi import AcpiTables

__all__ = ["acpi_tables", "loader_addresses"]

_CENTURY = 0x32
"""CMOS byte with the century, as IBM's PS/2 has it and the ACPI FADT says."""


def loader_addresses() -> LoaderAddresses:
    """Where in low RAM the loader puts its structures, and what is not the guest's RAM."""
    return LoaderAddresses(
        gdt=at.BOOT_GDT,
        boot_params=at.BOOT_PARAMS,
        start_info=at.PVH_START_INFO,
        page_tables=at.BOOT_PAGE_TABLES,
        stack=at.BOOT_STACK,
        command_line=at.COMMAND_LINE,
        command_line_max=at.COMMAND_LINE_MAX,
        reserved=(
            (at.LOW_RAM_END, at.HIGH_RAM_START - at.LOW_RAM_END),
            (at.PCI_ECAM, at.PCI_ECAM_SIZE),
        ),
    )


def acpi_tables(cpus: int) -> AcpiTables:
    """The tables that describe this board with ``cpus`` CPUs."""
    from kvmkit.boot.acpi import AcpiConfig, build_tables

    return build_tables(
        AcpiConfig(
            tables=at.ACPI_TABLES,
            tables_size=at.ACPI_TABLES_SIZE,
            cpus=cpus,
            lapic=at.LAPIC,
            ioapic=at.IOAPIC,
            ioapic_id=at.IOAPIC_ID,
            gsi_pit=at.GSI_PIT,
            sci_irq=at.IRQ_SCI,
            pm1a_event=at.PM1A_EVENT,
            pm1a_control=at.PM1A_CONTROL,
            pm_timer=at.PM_TIMER,
            gpe0=at.GPE0,
            reset_port=at.RESET,
            reset_value=at.RESET_VALUE,
            s5_sleep_type=at.S5_SLEEP_TYPE,
            ecam=at.PCI_ECAM,
            ecam_size=at.PCI_ECAM_SIZE,
            pci_window_32=at.PCI_WINDOW_32,
            pci_window_32_size=at.PCI_WINDOW_32_SIZE,
            pci_window_64=at.PCI_WINDOW_64,
            pci_window_64_size=at.PCI_WINDOW_64_SIZE,
            pci_config_port=at.PCI_CONFIG_ADDRESS,
            gsi_pci=at.GSI_PCI,
            serial_ports=at.SERIAL_PORTS,
            rtc=at.RTC,
            rtc_irq=at.IRQ_RTC,
            rtc_century=_CENTURY,
            vm_generation=at.VM_GENERATION,
            vm_generation_gpe=at.GPE_GENERATION,
            reserved_ports=((at.POST_CODE, 1), (at.DEBUG_CONSOLE, 1), (at.EXIT, 4)),
        )
    )
