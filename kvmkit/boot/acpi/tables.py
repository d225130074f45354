"""ACPI tables with fixed fields: RSDP, XSDT, FADT, FACS, MADT, MCFG.

ACPI 6.5, section 5.2; MCFG: PCI Firmware 3.3, section 4.1.2. The machine is
in ACPI mode from the start (no SMI command port), with PM1a, PM timer and
GPE0 in I/O ports and a fixed-feature power button.
"""

from __future__ import annotations

from struct import pack, pack_into

from kvmkit.boot.acpi.config import AcpiConfig

__all__ = ["FACS_SIZE", "RSDP_SIZE", "facs", "fadt", "madt", "mcfg", "rsdp", "table", "xsdt"]

_OEM_ID = b"KVMKIT"
_OEM_TABLE_ID = b"KVMKIT  "
_OEM_REVISION = 1
_CREATOR_ID = b"KVMK"
_CREATOR_REVISION = 1

RSDP_SIZE = 36
FACS_SIZE = 64
_HEADER_SIZE = 36
_HEADER_CHECKSUM = 9
_FADT_SIZE = 276

# FADT, IA-PC boot architecture flags (5.2.9.3). Bit 1, "8042", stays clear: Linux then does
# not probe for a keyboard.
_BOOT_LEGACY_DEVICES = 1 << 0
_BOOT_VGA_NOT_PRESENT = 1 << 2
_BOOT_NO_ASPM = 1 << 4

# FADT, fixed feature flags (table 5.10). Bit 4, PWR_BUTTON, clear: a fixed power button.
_WBINVD = 1 << 0
_PROC_C1 = 1 << 2
_SLP_BUTTON_ABSENT = 1 << 5
_FIX_RTC_ABSENT = 1 << 6
_TMR_VAL_EXT = 1 << 8
_RESET_REG_SUP = 1 << 10
_FLAGS = _WBINVD | _PROC_C1 | _SLP_BUTTON_ABSENT | _FIX_RTC_ABSENT | _TMR_VAL_EXT | _RESET_REG_SUP

_P_LVL2_UNSUPPORTED = 0xFFF  # worst-case latency in us, more than 100: no C2
_P_LVL3_UNSUPPORTED = 0xFFFF  # more than 1000: no C3

# Generic address structure (5.2.3.2)
_GAS_SYSTEM_IO = 1
_ACCESS_BYTE, _ACCESS_WORD, _ACCESS_DWORD = 1, 2, 3

# MADT (5.2.12)
_PCAT_COMPAT = 1 << 0  # there is a pair of 8259As
_MADT_LOCAL_APIC, _MADT_IO_APIC, _MADT_OVERRIDE, _MADT_LOCAL_APIC_NMI = 0, 1, 2, 4
_LOCAL_APIC_ENABLED = 1 << 0
_BUS_ISA = 0
_INTI_CONFORMS = 0
_INTI_ACTIVE_HIGH_LEVEL = 0b11_01
_ALL_PROCESSORS = 0xFF
_NMI_LINT = 1


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the common header (5.2.6) and ``body``."""
    whole = bytearray(
        pack(
            "<4sIBB6s8sI4sI",
            signature,
            _HEADER_SIZE + len(body),
            revision,
            0,
            _OEM_ID,
            _OEM_TABLE_ID,
            _OEM_REVISION,
            _CREATOR_ID,
            _CREATOR_REVISION,
        )
    )
    whole += body
    whole[_HEADER_CHECKSUM] = _checksum(whole)
    return bytes(whole)


def rsdp(xsdt_address: int) -> bytes:
    """Root System Description Pointer, revision 2 (5.2.5.3); there is no RSDT."""
    whole = bytearray(
        pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, 0, RSDP_SIZE, xsdt_address, 0)
    )
    whole[8] = _checksum(whole[:20])
    whole[32] = _checksum(whole)
    return bytes(whole)


def xsdt(addresses: list[int]) -> bytes:
    """Extended System Description Table (5.2.8): where the other tables are."""
    return table(b"XSDT", 1, pack(f"<{len(addresses)}Q", *addresses))


def facs() -> bytes:
    """Firmware ACPI Control Structure, version 2 (5.2.10): no checksum, 64-byte aligned."""
    return pack("<4sI24xB31x", b"FACS", FACS_SIZE, 2)


def _port(address: int, size: int, access: int) -> bytes:
    return pack("<BBBBQ", _GAS_SYSTEM_IO, size * 8, 0, access, address)


def fadt(config: AcpiConfig, facs_address: int, dsdt_address: int) -> bytes:
    """Fixed ACPI Description Table, revision 6.5 (5.2.9); offsets are the specification's."""
    whole = bytearray(_FADT_SIZE)
    pack_into("<II", whole, 36, facs_address, dsdt_address)
    pack_into("<H", whole, 46, config.sci_irq)
    pack_into("<I", whole, 48, 0)  # SMI_CMD: none, ACPI mode is on
    pack_into("<I", whole, 56, config.pm1a_event)
    pack_into("<I", whole, 64, config.pm1a_control)
    pack_into("<II", whole, 76, config.pm_timer, config.gpe0)
    pack_into("<BBB", whole, 88, 4, 2, 0)  # PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN
    pack_into("<BB", whole, 91, 4 if config.pm_timer else 0, 4)  # PM_TMR_LEN, GPE0_BLK_LEN
    pack_into("<HH", whole, 96, _P_LVL2_UNSUPPORTED, _P_LVL3_UNSUPPORTED)
    pack_into("<B", whole, 108, config.rtc_century)
    pack_into("<H", whole, 109, _BOOT_LEGACY_DEVICES | _BOOT_VGA_NOT_PRESENT | _BOOT_NO_ASPM)
    pack_into("<I", whole, 112, _FLAGS)
    pack_into("<12sB", whole, 116, _port(config.reset_port, 1, _ACCESS_BYTE), config.reset_value)
    whole[131] = 5  # minor version
    # X_FIRMWARE_CTRL stays 0: a FACS below 4 GiB is named by one of the two fields only.
    pack_into("<Q", whole, 140, dsdt_address)
    pack_into("<12s", whole, 148, _port(config.pm1a_event, 4, _ACCESS_WORD))
    pack_into("<12s", whole, 172, _port(config.pm1a_control, 2, _ACCESS_WORD))
    if config.pm_timer:
        pack_into("<12s", whole, 208, _port(config.pm_timer, 4, _ACCESS_DWORD))
    pack_into("<12s", whole, 220, _port(config.gpe0, 4, _ACCESS_BYTE))
    pack_into("<8s", whole, 268, b"kvmkit")  # hypervisor vendor identity
    return table(b"FACP", 6, bytes(whole[_HEADER_SIZE:]))


def madt(config: AcpiConfig) -> bytes:
    """Multiple APIC Description Table, revision 6 (5.2.12)."""
    parts = [pack("<II", config.lapic, _PCAT_COMPAT)]
    parts += [
        pack("<BBBBI", _MADT_LOCAL_APIC, 8, index, index, _LOCAL_APIC_ENABLED)
        for index in range(config.cpus)
    ]
    parts += [
        pack("<BBBBII", _MADT_IO_APIC, 12, config.ioapic_id, 0, config.ioapic, 0),
        pack("<BBBBIH", _MADT_OVERRIDE, 10, _BUS_ISA, 0, config.gsi_pit, _INTI_CONFORMS),
        pack(
            "<BBBBIH",
            _MADT_OVERRIDE,
            10,
            _BUS_ISA,
            config.sci_irq,
            config.sci_irq,
            _INTI_ACTIVE_HIGH_LEVEL,
        ),
        pack("<BBBHB", _MADT_LOCAL_APIC_NMI, 6, _ALL_PROCESSORS, _INTI_CONFORMS, _NMI_LINT),
    ]
    return table(b"APIC", 6, b"".join(parts))


def mcfg(config: AcpiConfig) -> bytes:
    """Memory-mapped configuration space of PCI segment 0: 1 MiB per bus."""
    last_bus = (config.ecam_size >> 20) - 1
    return table(b"MCFG", 1, pack("<8xQHBB4x", config.ecam, 0, 0, last_bus))
