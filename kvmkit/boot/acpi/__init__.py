"""ACPI tables: how a guest learns what the board is made of.

Addresses and counts in (``AcpiConfig``), bytes out. ``aml`` and ``resources``
encode, ``dsdt`` describes devices, ``tables`` has the tables with fixed
fields, ``build`` lays them out. Nothing here knows the board or a device.
"""

from __future__ import annotations

from kvmkit.boot.acpi.build import AcpiTables, build_tables, table_block
from kvmkit.boot.acpi.config import AcpiConfig

__all__ = ["AcpiConfig", "AcpiTables", "build_tables", "table_block"]
