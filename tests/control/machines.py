"""VMs in processes of their own, of a guest of a few bytes, for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kvmkit.control.listing import RunningVm, list_vms
from tests.cli.command import ROOT
from tests.cli.tiny_kernel import tiny_kernel

POLITE = bytes.fromhex(
    "bc00003000bf00002000b88a00000189c325ffff00000d0000100089874801000081e30000ffff81"
    "cb008e0000899f4c0100000f011d96000001b011e620e6a0b020e621b028e6a1b004e621b002e6a1"
    "b001e621e6a1b0fbe621b0fde6a166bad104b002ee66ba040666b8010066ef66ba020666b8000166"
    "ef66baf803b075eeb070eeb00aeefbf4ebfc66ba040666b8013466efebf24f0100002000"
)
"""Says "up", sleeps, and switches off when the power button is pressed.

    set up an IDT whose entry 0x29 (IRQ 9 behind 8259As at 0x20 and 0x28) is the handler;
    let pass IRQ 9 only, level-triggered; enable SCI and the power button (ACPI 6.5, 4.8.3)
    print "up"; again: sti; hlt; jmp again
    handler: write SLP_TYP 5, SLP_EN to PM1 control
"""

WORKER = """
import sys
from kvmkit import VM
kernel, engine, name, memory = sys.argv[1:5]
vm = VM(kernel, memory=memory, engine=engine, name=name or None, hang_timeout=None)
vm.start()
if "paused" in sys.argv:
    vm.pause()
print(vm.name, flush=True)
vm.wait()
vm.close()
print(vm.ending)
"""


def write_kernel(path: Path, code: bytes = POLITE) -> Path:
    """The guest as a file."""
    path.write_bytes(tiny_kernel(code))
    return path


def spawn(
    kernel: Path, engine: str, name: str = "", *more: str, memory: str = "32M"
) -> subprocess.Popen[str]:
    """A VM in a process of its own, started by a Python program."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(kernel), engine, name, memory, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def name_of(process: subprocess.Popen[str]) -> str:
    """The name a spawned VM prints when it runs."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line and " " not in line, line + process.stdout.read()
    return line


def own_vms(base: Path) -> list[RunningVm]:
    """The VMs in a test's own directory; root sees others as well."""
    return [vm for vm in list_vms() if vm.path.startswith(str(base))]


def eventually(test: Callable[[], object], seconds: float = 5.0) -> object:
    """What ``test()`` gives once it is true; an assertion if it does not become so."""
    limit = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)
    return found
