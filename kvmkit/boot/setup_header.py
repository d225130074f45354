"""The setup header of a bzImage.

Specified in Linux ``Documentation/arch/x86/boot.rst``, "The Real-Mode Kernel
Header" and "Details of Header Fields". It starts at offset 0x1f1 of the file
and ends where the jump at 0x200 leads.
"""

from __future__ import annotations

import struct

from kvmkit.errors import BadKernel
from kvmkit.frozen import Record

__all__ = ["HEADER_END_MAX", "HEADER_START", "SetupHeader", "is_bzimage", "parse_setup_header"]

HEADER_START = 0x1F1
HEADER_END_MAX = 0x290
"""boot_params has room for the header up to here (``zero-page.rst``: edd_mbr_sig_buffer)."""

BOOT_FLAG = 0x1FE
JUMP = 0x200
MAGIC = 0x202
VERSION = 0x206
KERNEL_VERSION = 0x20E
LOADFLAGS = 0x211
RELOCATABLE = 0x234
PAYLOAD = 0x248

SECTOR = 512
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1

OLD_CMDLINE_SIZE = 255
OLD_INITRD_ADDR_MAX = 0x37FF_FFFF


class SetupHeader(Record):
    """The fields a boot loader reads; those a kernel's protocol lacks hold their defaults.

    Offsets are in bytes from the start of the file, addresses guest-physical.
    ``raw`` is the header as it stands in the file, from 0x1f1 on.
    """

    protocol: int
    code_offset: int
    loaded_high: bool
    initrd_addr_max: int = OLD_INITRD_ADDR_MAX
    alignment: int = 0
    relocatable: bool = False
    xloadflags: int = 0
    cmdline_size: int = OLD_CMDLINE_SIZE
    payload_offset: int = 0
    payload_length: int = 0
    pref_address: int = 0x10_0000
    init_size: int = 0
    version: str = ""
    raw: bytes = b""

    @property
    def entry_64(self) -> bool:
        """Whether the kernel has the 64-bit entry point at 0x200 of its code."""
        return bool(self.xloadflags & XLF_KERNEL_64)

    @property
    def above_4g(self) -> bool:
        """Whether an initrd may lie above 4 GiB."""
        return bool(self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G)


def is_bzimage(data: memoryview) -> bool:
    """Whether a file has the boot sector's signature and the header's magic."""
    return (
        len(data) >= VERSION + 2
        and bytes(data[BOOT_FLAG:JUMP]) == b"\x55\xaa"
        and bytes(data[MAGIC:VERSION]) == b"HdrS"
    )


def parse_setup_header(data: memoryview) -> SetupHeader:
    """Read the header of a file for which :func:`is_bzimage` holds.

    Raises BadKernel for a header that is cut off, older than protocol 2.04 (Linux 2.6.14)
    or of a zImage.
    """
    protocol = struct.unpack_from("<H", data, VERSION)[0]
    name = f"boot protocol {protocol >> 8}.{protocol & 0xFF:02d}"
    if protocol < 0x204:
        raise BadKernel(
            f"the kernel speaks {name}, at least 2.04 is needed", "Linux 2.6.14 or newer will do."
        )
    end = MAGIC + data[JUMP + 1]
    sectors = data[HEADER_START] or 4
    code_offset = (sectors + 1) * SECTOR
    if not RELOCATABLE - 4 <= end <= code_offset:
        raise BadKernel(
            f"the kernel's setup header is damaged: it ends at {end:#x}, "
            f"outside its setup code (0x230 to {code_offset:#x})"
        )
    if len(data) <= code_offset:
        raise BadKernel(
            f"the kernel is truncated: its setup code alone has {code_offset} bytes, "
            f"the file {len(data)}",
            "Copy or build it again.",
        )
    if not data[LOADFLAGS] & LOADED_HIGH:
        raise BadKernel("the kernel is a zImage (loaded low); a bzImage is needed")
    end = min(end, HEADER_END_MAX)
    raw = bytes(data[HEADER_START:end])

    def field(format_: str, offset: int, since: int, default: int) -> int:
        if protocol < since or offset + struct.calcsize(format_) > end:
            return default
        value: int = struct.unpack_from(format_, data, offset)[0]
        return value

    header = SetupHeader(
        protocol=protocol,
        code_offset=code_offset,
        loaded_high=True,
        initrd_addr_max=field("<I", 0x22C, 0x203, OLD_INITRD_ADDR_MAX),
        alignment=field("<I", 0x230, 0x205, 0),
        relocatable=bool(field("<B", RELOCATABLE, 0x205, 0)),
        xloadflags=field("<H", 0x236, 0x20C, 0),
        cmdline_size=field("<I", 0x238, 0x206, OLD_CMDLINE_SIZE),
        payload_offset=field("<I", PAYLOAD, 0x208, 0),
        payload_length=field("<I", PAYLOAD + 4, 0x208, 0),
        pref_address=field("<Q", 0x258, 0x20A, 0x10_0000),
        init_size=field("<I", 0x260, 0x20A, 0),
        version=_version(data, code_offset),
        raw=raw,
    )
    if header.payload_length:
        stop = code_offset + header.payload_offset + header.payload_length
        if stop > len(data):
            raise BadKernel(
                f"the kernel is truncated: its compressed part ends at byte {stop}, "
                f"the file has {len(data)}",
                "Copy or build it again.",
            )
    return header


def _version(data: memoryview, code_offset: int) -> str:
    # The string ends with a NUL; "kernel_version" counts from 0x200 and 0 means there is none.
    pointer = struct.unpack_from("<H", data, KERNEL_VERSION)[0]
    start = pointer + JUMP
    if not pointer or start >= code_offset:
        return ""
    text = bytes(data[start : min(start + 256, code_offset)]).split(b"\0", 1)[0]
    return "".join(c if c.isprintable() else "?" for c in text.decode("utf-8", "replace"))
