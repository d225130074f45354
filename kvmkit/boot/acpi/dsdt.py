"""DSDT: the devices that cannot be discovered, in AML.

ACPI 6.5: ``\\_S5`` (7.4.2.6), processor devices (8.4), the PCI host bridge
(6.2.13 ``_PRT``, 6.2.11 ``_OSC`` with PCI Firmware 3.3, 4.5.1), serial ports,
the RTC and a motherboard resource device. There is no PS/2 keyboard device:
with it Linux probes the i8042 for a good part of its boot.
"""

from __future__ import annotations

from kvmkit.boot.acpi import aml
from kvmkit.boot.acpi import resources as res
from kvmkit.boot.acpi.config import AcpiConfig

__all__ = ["dsdt_body"]

_PRESENT = aml.integer(0x0F)  # _STA: present, enabled, shown, functioning (6.3.7)

_OSC_PCI_HOST_BRIDGE = "33db4d5b-1ff7-401c-9657-7441c03dd766"

# The first doubleword of _OSC's buffer, on return (6.2.11.1)
_OSC_UNRECOGNISED_UUID = 1 << 2
_OSC_UNRECOGNISED_REVISION = 1 << 3
_OSC_CAPABILITIES_MASKED = 1 << 4

# The control field of a PCI host bridge's _OSC (PCI Firmware 3.3, table 4-5)
_OSC_NATIVE_HOTPLUG = 1 << 0
_OSC_PME = 1 << 2
_OSC_AER = 1 << 3
_OSC_EXPRESS_CAPABILITY = 1 << 4
_OSC_GRANTED = _OSC_NATIVE_HOTPLUG | _OSC_PME | _OSC_AER | _OSC_EXPRESS_CAPABILITY


def dsdt_body(config: AcpiConfig) -> bytes:
    """The DSDT's definition block, without the table header."""
    s5 = aml.package(aml.integer(config.s5_sleep_type), *[aml.integer(0)] * 3)
    return aml.name("\\_S5", s5) + aml.scope(
        "\\_SB",
        *(_processor(index) for index in range(config.cpus)),
        _host_bridge(config),
        _motherboard(config),
        _rtc(config),
        *(_serial(config, index) for index in range(len(config.serial_ports))),
        *([_generation(config)] if config.vm_generation else []),
    ) + (_generation_event(config) if config.vm_generation else b"")


def _processor(index: int) -> bytes:
    # _UID is what joins the device with its local APIC in the MADT (8.4).
    return aml.device(
        f"C{index:03X}",
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_STA", _PRESENT),
    )


def _host_bridge(config: AcpiConfig) -> bytes:
    ports = config.pci_config_port
    windows = [
        res.word_bus_number(0, config.ecam_size >> 20),
        res.io(ports, 8),
        res.word_io(0, ports),
        res.word_io(ports + 8, 0x1_0000 - (ports + 8)),
        res.dword_memory(config.pci_window_32, config.pci_window_32_size),
    ]
    if config.pci_window_64_size:
        windows.append(res.qword_memory(config.pci_window_64, config.pci_window_64_size))
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", res.template(*windows)),
        aml.name("_PRT", _interrupt_routes(config)),
        _osc(),
    )


def _interrupt_routes(config: AcpiConfig) -> bytes:
    # One package per slot and pin: address (any function), pin, no link device, GSI.
    gsis = [aml.integer(config.gsi_pci + line) for line in range(config.gsi_pci_count)]
    pins = [aml.integer(pin) for pin in range(4)]
    no_link = aml.integer(0)
    routes = []
    for slot in range(config.pci_slots):
        address = aml.integer(slot << 16 | 0xFFFF)
        for pin in range(4):
            gsi = gsis[(slot + pin) % config.gsi_pci_count]
            routes.append(aml.package(address, pins[pin], no_link, gsi))
    return aml.package(*routes)


def _osc() -> bytes:
    # Arguments: UUID, revision, count of doublewords, buffer. What is asked for and not
    # granted is cleared from the third doubleword, and the first one says so.
    status, control = aml.name_string("STAT"), aml.name_string("CTRL")
    before = aml.local(0)
    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(aml.arg(3), 0, "STAT"),
        aml.if_(
            aml.not_equal(aml.arg(0), aml.uuid(_OSC_PCI_HOST_BRIDGE)),
            aml.or_(status, aml.integer(_OSC_UNRECOGNISED_UUID), status),
            aml.return_(aml.arg(3)),
        ),
        aml.if_(
            aml.not_equal(aml.arg(1), aml.integer(1)),
            aml.or_(status, aml.integer(_OSC_UNRECOGNISED_REVISION), status),
        ),
        aml.create_dword_field(aml.arg(3), 8, "CTRL"),
        aml.store(control, before),
        aml.and_(control, aml.integer(_OSC_GRANTED), control),
        aml.if_(
            aml.not_equal(control, before),
            aml.or_(status, aml.integer(_OSC_CAPABILITIES_MASKED), status),
        ),
        aml.return_(aml.arg(3)),
        serialized=True,
    )


def _motherboard(config: AcpiConfig) -> bytes:
    # Linux believes in the ECAM only if a motherboard resource (or the e820 map) holds it.
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS",
            res.template(
                res.memory32_fixed(config.ecam, config.ecam_size),
                res.io(config.pm1a_event, 4),
                res.io(config.pm1a_control, 2),
                *([res.io(config.pm_timer, 4)] if config.pm_timer else []),
                res.io(config.gpe0, 4),
                *(res.io(port, count) for port, count in config.reserved_ports),
            ),
        ),
    )


def _rtc(config: AcpiConfig) -> bytes:
    return aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", res.template(res.io(config.rtc, 2), res.irq(config.rtc_irq))),
    )


def _serial(config: AcpiConfig, index: int) -> bytes:
    port, irq = config.serial_ports[index]
    shared = sum(other == irq for _, other in config.serial_ports) > 1
    return aml.device(
        f"COM{index + 1}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(index + 1)),
        aml.name("_CRS", res.template(res.io(port, 8), res.irq(irq, shared=shared))),
    )


def _generation(config: AcpiConfig) -> bytes:
    """The VM generation ID (Microsoft, "Virtual Machine Generation ID", 2012): a GUID in
    memory that changes when the machine goes on from a copy. Linux then reseeds its random
    numbers (``drivers/virt/vmgenid.c``)."""
    low, high = config.vm_generation & 0xFFFFFFFF, config.vm_generation >> 32
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("KVMK0001")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("_STA", _PRESENT),
        aml.name("ADDR", aml.package(aml.integer(low), aml.integer(high))),
    )


def _generation_event(config: AcpiConfig) -> bytes:
    """An edge of its general-purpose event (5.6.4.1.1): "the generation ID has changed"."""
    handler = aml.method(
        f"_E{config.vm_generation_gpe:02X}",
        0,
        aml.notify(aml.name_string("\\_SB.VGEN"), aml.integer(0x80)),
    )
    return aml.scope("\\_GPE", handler)
