"""All ACPI tables of a machine, laid out as one block.

The RSDP comes first, on the 16-byte boundary where ACPI 6.5, 5.2.5.1 has
operating systems look for it; the others follow, each 64-byte aligned (the
FACS must be, 5.2.10).
"""

from __future__ import annotations

from kvmkit.boot.acpi import tables
from kvmkit.boot.acpi.config import AcpiConfig
from kvmkit.boot.acpi.dsdt import dsdt_body
from kvmkit.errors import UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False  # typing itself takes 2 ms to import
if TYPE_CHECKING:
    from kvmkit.boot.plan import Load

__all__ = ["AcpiTables", "build_tables", "table_block"]

_ALIGNMENT = 64
_MAX_CPUS = 255  # local APIC identifiers 0..254; the MADT's short entries have no more


class AcpiTables(Record):
    """Where the RSDP is, and what to write into guest memory."""

    rsdp: int
    blobs: tuple[Load, ...]


def table_block(config: AcpiConfig) -> bytes:
    """The bytes to put at ``config.tables``; the RSDP is the first of them.

    Raises UsageError for a number of CPUs that the tables cannot describe, or
    for a space too small for the tables.
    """
    if not 1 <= config.cpus <= _MAX_CPUS:
        raise UsageError(f"a machine has 1 to {_MAX_CPUS} CPUs, not {config.cpus}")

    block = bytearray(tables.RSDP_SIZE)

    def place(data: bytes) -> int:
        block.extend(bytes(-len(block) % _ALIGNMENT))
        address = config.tables + len(block)
        block.extend(data)
        return address

    facs = place(tables.facs())
    dsdt = place(tables.table(b"DSDT", 2, dsdt_body(config)))  # 2: integers have 64 bits
    fadt = place(tables.fadt(config, facs, dsdt))
    madt = place(tables.madt(config))
    mcfg = place(tables.mcfg(config))
    xsdt = place(tables.xsdt([fadt, madt, mcfg]))
    block[: tables.RSDP_SIZE] = tables.rsdp(xsdt)

    if len(block) > config.tables_size:
        raise UsageError(
            f"the ACPI tables need {len(block)} bytes, there is room for {config.tables_size}"
        )
    return bytes(block)


def build_tables(config: AcpiConfig) -> AcpiTables:
    """The tables of ``config``, ready to be loaded. Raises as :func:`table_block` does."""
    from kvmkit.boot.plan import Load

    return AcpiTables(config.tables, (Load(config.tables, table_block(config)),))
