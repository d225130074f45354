"""Linux's boot_params, the "zero page".

Specified in Linux ``Documentation/arch/x86/zero-page.rst`` and, for the setup
header in it, ``boot.rst``; ``struct setup_data`` in ``boot.rst``, field
setup_data, with types from ``asm/setup_data.h``.
"""

from __future__ import annotations

import struct

from kvmkit.boot.setup_header import HEADER_END_MAX, HEADER_START, SetupHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIZE", "boot_params", "rng_seed_data", "synthetic_header"]

SIZE = 4096

ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0
EXT_RAMDISK_SIZE = 0x0C4
EXT_CMD_LINE_PTR = 0x0C8
E820_ENTRIES = 0x1E8
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
SETUP_DATA = 0x250
E820_TABLE = 0x2D0

E820_MAX_ENTRIES = 128
LOADER_UNDEFINED = 0xFF
LOADED_HIGH = 1 << 0
KASLR_FLAG = 1 << 1
KEEP_SEGMENTS = 1 << 6
CAN_USE_HEAP = 1 << 7

SETUP_RNG_SEED = 9

LINUX_INITRD_MAX = 0x7FFF_FFFF
LINUX_CMDLINE_SIZE = 2047


def boot_params(
    header: SetupHeader,
    *,
    memory: Sequence[tuple[int, int, int]],
    command_line: int,
    ramdisk: tuple[int, int] | None,
    acpi_rsdp: int,
    setup_data: int,
) -> bytes:
    """The 4096 bytes of boot_params.

    ``memory`` is the e820 table (address, bytes, type), ``command_line`` the address of the
    string, ``ramdisk`` address and bytes, ``acpi_rsdp`` and ``setup_data`` addresses or 0.
    screen_info stays zero: there is no VGA, and Linux takes zeros for just that. The
    fields of the EFI, APM and EDD firmwares are zero too. Raises ValueError for more than 128
    memory ranges.
    """
    if len(memory) > E820_MAX_ENTRIES:
        raise ValueError(f"{len(memory)} memory ranges; boot_params has room for 128")
    page = bytearray(SIZE)
    raw = header.raw[: HEADER_END_MAX - HEADER_START]
    page[HEADER_START : HEADER_START + len(raw)] = raw
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    page[LOADFLAGS] = LOADED_HIGH | page[LOADFLAGS] & ~(KASLR_FLAG | KEEP_SEGMENTS | CAN_USE_HEAP)
    struct.pack_into("<I", page, CMD_LINE_PTR, command_line & 0xFFFF_FFFF)
    struct.pack_into("<I", page, EXT_CMD_LINE_PTR, command_line >> 32)
    address, size = ramdisk or (0, 0)
    struct.pack_into("<II", page, RAMDISK_IMAGE, address & 0xFFFF_FFFF, size & 0xFFFF_FFFF)
    struct.pack_into("<II", page, EXT_RAMDISK_IMAGE, address >> 32, size >> 32)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, acpi_rsdp)
    if header.protocol >= 0x209:
        struct.pack_into("<Q", page, SETUP_DATA, setup_data)
    page[E820_ENTRIES] = len(memory)
    for index, entry in enumerate(memory):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * index, *entry)
    return bytes(page)


def rng_seed_data(seed: bytes) -> bytes:
    """A ``struct setup_data`` of type SETUP_RNG_SEED (Linux 6.0, commit 68b8e9713c8e): the last
    of its list."""
    return struct.pack("<QII", 0, SETUP_RNG_SEED, len(seed)) + seed


def synthetic_header(start: int, end: int) -> SetupHeader:
    """The setup header for a kernel that came as an ELF file, at ``start`` to ``end``.

    Protocol 2.15 with the values of a stock x86-64 kernel.
    """
    raw = bytearray(HEADER_END_MAX - HEADER_START)
    at = HEADER_START
    struct.pack_into("<H", raw, 0x1FE - at, 0xAA55)
    struct.pack_into("<BB4sH", raw, 0x200 - at, 0xEB, HEADER_END_MAX - 0x202, b"HdrS", 0x20F)
    raw[LOADFLAGS - at] = LOADED_HIGH
    struct.pack_into("<I", raw, CODE32_START - at, 0x10_0000)
    struct.pack_into("<I", raw, 0x22C - at, LINUX_INITRD_MAX)
    struct.pack_into("<IBBH", raw, 0x230 - at, 0x20_0000, 1, 21, 0x3)
    struct.pack_into("<I", raw, 0x238 - at, LINUX_CMDLINE_SIZE)
    struct.pack_into("<QI", raw, 0x258 - at, start, end - start)
    return SetupHeader(
        protocol=0x20F,
        code_offset=0,
        loaded_high=True,
        initrd_addr_max=LINUX_INITRD_MAX,
        alignment=0x20_0000,
        relocatable=True,
        xloadflags=0x3,
        cmdline_size=LINUX_CMDLINE_SIZE,
        pref_address=start,
        init_size=end - start,
        raw=bytes(raw),
    )
