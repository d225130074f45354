"""Linux in the background, and what the commands see of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.guest.initramfs import cached_initramfs
from tests.cli.command import environment, kvmkit
from tests.control.machines import eventually

pytestmark = [pytest.mark.soft, pytest.mark.slow]


@pytest.fixture(scope="session")
def cache(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with busybox as if pulled."""
    cache = tmp_path_factory.mktemp("cache")
    image = cache / "kvmkit/images/busybox-static"
    image.mkdir(parents=True)
    shutil.copy(busybox, image / "busybox")
    (image / "about").write_text("Package: busybox-static\nVersion: 1\nRelease: \n")
    return cache


@pytest.fixture
def detach(kernel: Path, cache: Path, runtime: Path) -> Iterator[list[str]]:
    """The words of a background run; what still runs is killed."""
    yield ["run", "--detach", "-k", str(kernel), "--engine", "soft", "-m", "256"]
    kvmkit("kill", "--all")


def test_detach_returns_when_the_guest_is_up(
    detach: list[str], cache: Path, runtime: Path
) -> None:
    """Prints the name; a shell answers on the console; SysRq speaks in the log; nothing stays."""
    started = kvmkit(*detach, "--name", "bg", XDG_CACHE_HOME=str(cache))
    listed = kvmkit("list", "--names").stdout.split()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmkit", "console", "bg"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"echo answer=$((6*7))\n")
    process.stdin.flush()
    shown = b""
    while b"answer=42" not in shown:
        shown += os.read(process.stdout.fileno(), 4096)
    sysrq = kvmkit("debug", "bg", "--sysrq", "h")
    eventually(lambda: "sysrq: HELP" in kvmkit("log", "bg").stdout)
    nmi = kvmkit("debug", "bg", "--nmi")
    eventually(lambda: "NMI received" in kvmkit("log", "bg").stdout)
    debug = kvmkit("debug", "bg")
    process.stdin.write(b"poweroff -f\n")
    process.stdin.close()
    process.stdout.read()

    assert (started.returncode, started.stdout, started.stderr) == (0, "bg\n", "")
    assert "bg" in listed and (sysrq.returncode, nmi.returncode) == (0, 0)
    assert "64-bit" in debug.stdout and "ffff" in debug.stdout.partition("stack:")[2]
    assert process.wait(10) == 0
    process.stdout.close()
    eventually(lambda: os.listdir(runtime / "kvmkit") == [])


def test_detach_fails_with_the_reason(detach: list[str], cache: Path, runtime: Path) -> None:
    """A panic before the first process: the trace, the exit code, nothing left."""
    result = kvmkit(*detach, "-p", "rdinit=/none", XDG_CACHE_HOME=str(cache))

    assert result.returncode == 110
    assert "kvmkit: Kernel panic" in result.stderr and "Call Trace" in result.stderr
    assert result.stdout == ""
    eventually(lambda: os.listdir(runtime / "kvmkit") == [])


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["-i", "/nonexistent"], 121, "/nonexistent"),
        (["-m", "4K"], 2, "MiB"),
        (["--no-such"], 2, "unknown option"),
    ],
)
def test_detach_with_mistakes(
    detach: list[str], cache: Path, words: list[str], code: int, text: str
) -> None:
    """The errors of a run in the foreground."""
    result = kvmkit(*detach, *words, XDG_CACHE_HOME=str(cache))

    assert (result.returncode, text in result.stderr) == (code, True), result.stderr


def test_a_vm_in_python(kernel: Path, busybox: Path, tmp_path: Path) -> None:
    """expect, registers, kernel memory through its page tables, wait_for up."""
    initrd = cached_initramfs(str(busybox), str(tmp_path))
    with VM(kernel, initrd=initrd, memory="256M", engine="soft") as vm:
        begin = time.monotonic()
        vm.start()
        vm.wait_for("up", 60)
        up = time.monotonic() - begin
        vm.console.expect("~ # ", 60)
        vm.console.send("grep -w linux_banner /proc/kallsyms\n")
        address = int(vm.console.expect(r"\n([0-9a-f]{16}) ", 20).group(1), 16)
        banner = vm.vcpus[0].read(address, 14)
        vm.console.send("echo c > /proc/sysrq-trigger\n")
        event = vm.wait_for("panic", 30)

    assert banner == b"Linux version " and up < 60
    assert event.ending.kind.name == "PANIC"  # type: ignore[attr-defined]
    assert "sysrq triggered crash" in event.ending.reason  # type: ignore[attr-defined]
