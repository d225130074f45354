"""The generated interface is what the headers say."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kvmkit.engine.kvm import abi, structs
from kvmkit.engine.kvm.record import Record

ROOT = Path(__file__).resolve().parents[3]
ROOM = ROOT / "kvmkit" / "engine" / "kvm"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_kvm_abi", ROOT / "tools" / "gen_kvm_abi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gen_kvm_abi"] = module  # dataclasses look their module up
    sys.path.insert(0, str(ROOT / "tools"))  # where a script finds its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def made_from() -> str:
    found = re.search(r"linux-libc-dev (\S+);", (ROOM / "abi.py").read_text())
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", ["abi.py", "run_structs.py", "structs.py"])
def test_generating_again_gives_the_committed_file(name: str) -> None:
    """With the same headers, the generator's output is what is committed."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    module = generator()
    installed = module.headers_version()
    if installed != made_from():
        pytest.skip(f"made from linux-libc-dev {made_from()}, here is {installed}")
    assert module.generate()[name] == (ROOM / name).read_text()


def records() -> list[type[Record]]:
    return [
        value
        for value in vars(structs).values()
        if isinstance(value, type) and issubclass(value, Record) and value is not Record
    ]


def test_sizes_are_those_in_the_ioctl_numbers() -> None:
    """Bits 29-16 of an ioctl number are its argument's size (asm-generic/ioctl.h)."""
    checked = 0
    for name, (number, kind) in abi.IOCTLS.items():
        if kind.startswith("kvm_"):
            assert number >> 16 & 0x3FFF == getattr(structs, kind).SIZE, name
            checked += 1
    assert checked > 60


def test_fields_stay_inside_their_structures() -> None:
    """No member lies beyond its structure's size; only open arrays start at the end."""
    for record in records():
        view = record()
        for name, field in vars(record).items():
            if hasattr(field, "offset"):
                assert 0 <= field.offset <= record.SIZE, f"{record.__name__}.{name}"
                getattr(view, name)


def test_well_known_numbers() -> None:
    """A few values that everybody's KVM program has in common."""
    assert abi.KVM_RUN == 0xAE80
    assert abi.KVM_SET_USER_MEMORY_REGION == 0x4020AE46
    assert abi.KVM_GET_REGS == 0x8090AE81
    assert abi.KVM_CAP_IMMEDIATE_EXIT == 136
    assert abi.KVM_CPUID_SIGNATURE == 0x40000000
    assert abi.KVM_SIGNATURE == b"KVMKVMKVM\0\0\0"
    assert abi.MSR_KVM_SYSTEM_TIME_NEW == 0x4B564D01
    assert abi.KVM_FEATURE_PV_UNHALT == 7
    assert structs.kvm_run.offset_of("io.port") == 34
    assert structs.kvm_run.offset_of("mmio.is_write") == 52
    assert structs.kvm_sregs.offset_of("cr0") == 224
    assert structs.kvm_vcpu_events.offset_of("exception_payload") == 56


def test_interface_is_whole() -> None:
    """Every x86 ioctl, capability and exit reason of the header has its name."""
    header = Path("/usr/include/linux/kvm.h")
    if not header.exists() or generator().headers_version() != made_from():
        pytest.skip(f"not the headers of linux-libc-dev {made_from()}")
    names = set(re.findall(r"#define (KVM_\w+)\s+_IO[RW]*\(", header.read_text()))
    foreign = re.compile(r"S390|PPC|ARM|SPAPR|DIRTY_TLB|ALLOCATE_RMA|XIVE|RISCV")
    assert {n for n in names if not foreign.search(n)} <= set(abi.IOCTLS)
    caps = set(re.findall(r"#define (KVM_CAP_\w+)\s+\d+", header.read_text()))
    others = re.compile(r"S390|PPC|ARM|SPAPR|MIPS|SW_TLB|IRQ_MPIC|IRQ_XICS")
    assert {n for n in caps if not others.search(n)} <= set(vars(abi))


def test_exit_reasons_have_names() -> None:
    """The table knows what run.exit_reason can be, and no sub-codes."""
    assert abi.EXIT_REASONS[abi.KVM_EXIT_IO] == "KVM_EXIT_IO"
    assert abi.EXIT_REASONS[abi.KVM_EXIT_NOTIFY] == "KVM_EXIT_NOTIFY"
    assert abi.EXIT_REASONS[1] == "KVM_EXIT_EXCEPTION"


def test_engine_imports_only_the_structures_it_uses() -> None:
    """All structures take twice as long as those of run_structs."""
    program = (
        "import sys, kvmkit.engine.kvm.engine; print('kvmkit.engine.kvm.structs' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "False\n"


def test_import_is_lean() -> None:
    """Importing both takes a few milliseconds at most, and brings in no ctypes."""
    program = (
        "import sys, time, struct, typing\n"
        "import kvmkit.engine.kvm\n"
        "start = time.perf_counter()\n"
        "import kvmkit.engine.kvm.abi, kvmkit.engine.kvm.structs\n"
        "print(time.perf_counter() - start, 'ctypes' in sys.modules, 're' in sys.modules)\n"
    )
    times = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
        )
        seconds, ctypes_loaded, _ = done.stdout.split()
        assert ctypes_loaded == "False"
        times.append(float(seconds))
    assert min(times) < 0.010
