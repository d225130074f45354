"""A boot plan: what the loader writes to guest memory, and where CPU 0 starts.

The board carries a plan out: on power-on it writes the loads (guest RAM is zero
then); on a reboot it first clears the ``zero`` ranges.
"""

from __future__ import annotations

from kvmkit.engine.cpu import CpuState
from kvmkit.frozen import Record

__all__ = ["BootPlan", "Load", "LoaderAddresses"]


class Load(Record):
    """Bytes to be written at a guest-physical address.

    ``data`` is bytes-like; large ones are slices of memory-mapped files, so a
    plan is to be carried out soon after it was made: a file that shrinks while
    it is mapped cannot be read any more.
    """

    address: int
    data: bytes | memoryview


class BootPlan(Record):
    """Everything a machine needs to start.

    ``zero`` are ranges (address, bytes) the kernel expects to be zero, and that
    no load writes: BSS and the empty parts of its segments.
    """

    loads: tuple[Load, ...]
    entry: CpuState
    zero: tuple[tuple[int, int], ...] = ()
    version: str = ""


class LoaderAddresses(Record):
    """Where in low RAM the loader may put its own structures.

    All are guest-physical. ``start_info`` is one page for PVH's start_info, or
    for Linux's ``setup_data`` (a machine boots one way or the other).
    ``page_tables`` are 6 pages, ``stack`` is the top of a small stack and
    ``command_line_max`` the bytes there are for the command line.
    ``reserved`` are ranges (address, bytes) a kernel must not use as RAM: ROM
    and VGA hole, ACPI tables, PCI configuration window.
    """

    gdt: int
    boot_params: int
    start_info: int
    page_tables: int
    stack: int
    command_line: int
    command_line_max: int
    reserved: tuple[tuple[int, int], ...] = ()
