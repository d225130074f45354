"""Fuzz the kernel loader with atheris: any file gives a plan or a KvmkitError.

Run ``python tests/fuzz/fuzz_boot_image.py CORPUS_DIR [-max_total_time=600]``
for as long as you like; pytest runs a few seconds of it (``test_fuzz_boot_image.py``).
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,unused-ignore]

with atheris.instrument_imports(include=["kvmkit.boot"]):
    from kvmkit.board import layout
    from kvmkit.boot.image import open_kernel
    from kvmkit.boot.linux import plan_linux
    from kvmkit.boot.lzo import LzoError, decompress_block
    from kvmkit.boot.plan import LoaderAddresses
from kvmkit.errors import KvmkitError

ADDRESSES = LoaderAddresses(
    gdt=layout.BOOT_GDT,
    boot_params=layout.BOOT_PARAMS,
    start_info=layout.PVH_START_INFO,
    page_tables=layout.BOOT_PAGE_TABLES,
    stack=layout.BOOT_STACK,
    command_line=layout.COMMAND_LINE,
    command_line_max=layout.COMMAND_LINE_MAX,
    reserved=((layout.LOW_RAM_END, layout.HIGH_RAM_START - layout.LOW_RAM_END),),
)
RAM = ((0, 64 << 20),)
UNPACKED_MAX = 1 << 20

FILE = Path(tempfile.mkdtemp(prefix="kvmkit-fuzz-")) / "kernel"


def one_input(data: bytes) -> None:
    """Open and plan ``data`` as a kernel, both ways; then take it for an LZO block."""
    FILE.write_bytes(data)
    for pvh in (False, True):
        try:
            image = open_kernel(FILE, pvh=pvh)
            # a size field of a GiB is allowed, and slow to allocate by the thousand
            payload = bytes(image.payload[-4:])
            if len(payload) == 4 and struct.unpack("<I", payload)[0] > UNPACKED_MAX:
                continue
            plan = plan_linux(image, ram=RAM, addresses=ADDRESSES, seed=bytes(32))
        except KvmkitError as error:
            assert str(error)
            assert "\n" not in str(error)
        else:
            for load in plan.loads:
                assert 0 <= load.address <= load.address + len(load.data) <= RAM[0][1]
            for start, size in plan.zero:
                assert 0 <= start < start + size <= RAM[0][1]
    try:
        decompress_block(data, 4096)
    except LzoError:
        pass


def seeds() -> list[bytes]:
    """Small files of each kind to start from."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.boot.kernel_images import Part, bzimage, elf32, elf64, pvh_note

    part = Part(0x100_0000, b"\x90" * 64, 0x2000)
    kernel = elf64([part], notes=pvh_note(0x100_0000))
    size = struct.pack("<I", len(kernel))
    return [
        kernel,
        elf32(part, entry=part.address, notes=pvh_note(part.address, 4)),
        bzimage(gzip.compress(kernel, mtime=0)),
        bzimage(lzma.compress(kernel) + size),
        bzimage(b"", payload_length=0),
    ]


def main() -> None:
    """Write the seeds into the corpus directory named first, if there is one, and fuzz."""
    arguments = list(sys.argv)
    folders = [argument for argument in arguments[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        os.makedirs(folder, exist_ok=True)
        for index, seed in enumerate(seeds()):
            (Path(folder) / f"seed-{index}").write_bytes(seed)
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
