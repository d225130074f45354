"""Starting a VM: what it must not import. Each of these costs milliseconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmkit.errors import KvmkitError
from kvmkit.vm import make_engine
from tests.boot.kernel_images import Part, elf32, pvh_note

ROOT = Path(__file__).resolve().parent.parent
ENTRY = 0x10_0000
POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xeb\xfe"

TOO_SLOW = {
    "argparse", "ast", "asyncio", "contextlib", "ctypes", "dataclasses", "hashlib", "inspect",
    "json", "logging", "pathlib", "re", "rich", "shutil", "socket", "subprocess", "tempfile",
    "typing", "unicorn", "kvmkit.engine.kvm.structs",
}  # fmt: skip

PROGRAM = """
import sys
from kvmkit.cli.main import main
status = main(sys.argv[1:])
print(status, *sorted(sys.modules))
"""


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("kvm", marks=pytest.mark.kvm),
        pytest.param("soft", marks=pytest.mark.soft),
    ],
)
def test_whole_run_imports_nothing_slow(engine: str, tmp_path: Path) -> None:
    """From the command line to the end of a guest that switches itself off."""
    try:
        make_engine(engine, 1).close()
    except KvmkitError as error:
        pytest.skip(f"{engine}: {error}")
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(elf32(Part(ENTRY, POWER_OFF), entry=ENTRY, notes=pvh_note(ENTRY)))
    initrd.write_bytes(b"initrd")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r})" + PROGRAM,
         "run", "--engine", engine, "-k", kernel, "-i", initrd],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    status, *modules = done.stdout.split()
    assert status == "0"
    assert not TOO_SLOW & set(modules)
