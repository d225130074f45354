"""Small kernel modules and module trees, made for tests."""

from __future__ import annotations

import struct
from pathlib import Path

RELEASE = "6.9.0-test"


def module_file(*texts: str) -> bytes:
    """A relocatable ELF file with a section .modinfo of these texts."""
    names = b"\0.modinfo\0.shstrtab\0"
    info = b"".join(text.encode() + b"\0" for text in (*texts, f"vermagic={RELEASE} SMP"))
    at_info = 64
    at_names = at_info + len(info)
    at_table = at_names + len(names)
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 1, 62, 1, 0, 0, at_table, 0, 64, 0, 0, 64, 3, 2),
    )

    def section(name: int, at: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0)

    table = section(0, 0, 0) + section(1, at_info, len(info)) + section(10, at_names, len(names))
    return header + info + names + table


def module_tree(directory: Path, modules: dict[str, bytes], **lists: str) -> Path:
    """A directory with modules (path to contents) and files ``modules.NAME``."""
    for path, data in modules.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    directory.mkdir(exist_ok=True)
    for name, text in lists.items():
        (directory / f"modules.{name}").write_text(text)
    return directory
