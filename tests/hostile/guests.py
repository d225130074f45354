"""VMs of a few bytes: PVH kernels of 32-bit code, on either engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmkit.errors import KvmkitError
from kvmkit.vm import make_engine
from tests.boot.kernel_images import Part, elf32, pvh_note

__all__ = ["ENGINES", "ENTRY", "FOREVER", "POWER_OFF", "kernel", "need", "out", "resident"]

ENTRY = 0x10_0000
FOREVER = b"\xeb\xfe"
POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef"
ENGINES = [
    pytest.param("kvm", marks=pytest.mark.kvm),
    pytest.param("soft", marks=pytest.mark.soft),
]


def kernel(folder: Path, code: bytes) -> Path:
    """A kernel file with ``code``."""
    path = folder / "kernel"
    path.write_bytes(elf32(Part(ENTRY, code), entry=ENTRY, notes=pvh_note(ENTRY)))
    return path


def need(engine: str) -> None:
    """Skip where this host has no such engine."""
    try:
        make_engine(engine, 1).close()
    except KvmkitError as error:
        pytest.skip(f"{engine}: {error}")


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\x66\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes((value,)) + b"\xee"


def resident() -> int:
    """Bytes of host memory this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
