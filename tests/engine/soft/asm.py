"""Guest code for tests, written as assembly and turned into bytes by GNU binutils.

Intel syntax without prefixes. Code is 64-bit unless a ``.code16``/``.code32``
directive says otherwise; labels may be used as absolute addresses.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

__all__ = ["assemble"]


@cache
def assemble(source: str, address: int = 0x1000, bits: int = 64) -> bytes:
    """The machine code of ``source``, linked to run at ``address``. Skips without binutils."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("as and ld (package binutils) are missing")
    with tempfile.TemporaryDirectory() as folder:
        text, target, image = (Path(folder) / name for name in ("a.s", "a.o", "a.bin"))
        text.write_text(f".intel_syntax noprefix\n.code{bits}\n{source}\n")
        tool("as", "--64", "-o", str(target), str(text))
        tool("ld", "-m", "elf_x86_64", f"-Ttext={address:#x}", "-e", "0", "--oformat=binary",
             "-o", str(image), str(target))  # fmt: skip
        return image.read_bytes()


def tool(*command: str) -> None:
    """Run a program of the tool chain; its complaint is the test's failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stderr)
