"""Stock kernels on the board. Needs kernels: see tests/conftest.py."""

from __future__ import annotations

import time

import pytest

from kvmkit import VM
from kvmkit.board.power import EndKind
from kvmkit.errors import KvmkitError
from kvmkit.guest.cpio import Archive
from kvmkit.vm import make_engine

pytestmark = pytest.mark.slow

EMULATED = "noxsave clearcpuid=cx16,popcnt,rdtscp,rdrand,rdseed nokaslr earlycon=uart8250,io,0x3f8"
"""For a KVM that runs ring 0 in the kernel's emulator: without what that lacks."""


def need(engine):
    """Skip where this engine does not work."""
    try:
        make_engine(engine, 1).close()
    except KvmkitError as error:
        pytest.skip(f"{engine}: {error}")


def initrd(tmp_path, busybox, script):
    """An archive whose init is ``script`` for busybox's shell."""
    archive = Archive()
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    text = "#!/bin/busybox sh\nPATH=/bin\n/bin/busybox --install /bin\n" + script
    archive.file("init", text.encode(), 0o755)
    archive.character_device("dev/console", 5, 1)
    archive.directory("proc")
    path = tmp_path / "initrd"
    path.write_bytes(archive.finish())
    return path


def wait_for(vm, text, seconds):
    """Until the console has shown ``text`` or the machine has ended; whether it has."""
    limit = time.monotonic() + seconds
    while text not in vm.console_log and vm.ending is None and time.monotonic() < limit:
        time.sleep(0.02)
    return text in vm.console_log


@pytest.mark.soft
@pytest.mark.parametrize("cpus", [1, 4])
def test_kernel_boots_to_userspace_and_powers_off(kernel, busybox, tmp_path, cpus):
    """A stock kernel with an initrd; every CPU comes up, S5 ends it."""
    need("soft")
    archive = initrd(tmp_path, busybox, "nproc; poweroff -f\n")
    vm = VM(kernel, initrd=archive, cmdline="quiet", cpus=cpus, engine="soft", timeout=60)
    ending = vm.run()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    assert vm.console_log.splitlines()[0] == b"%d" % cpus


@pytest.mark.soft
def test_kernel_without_a_root_panics(kernel):
    """The kernel's own words are the reason, and the log's end the detail."""
    need("soft")
    ending = VM(kernel, engine="soft", timeout=60).run()
    assert (ending.kind, ending.exit_code) == (EndKind.PANIC, 110)
    assert ending.reason.startswith("Kernel panic - not syncing: VFS: Unable to mount root fs")
    assert "Call Trace" in ending.detail


@pytest.mark.soft
def test_reboot_boots_again(kernel, busybox, tmp_path):
    """Through the ACPI reset register; twice is enough."""
    need("soft")
    archive = initrd(tmp_path, busybox, "echo up; reboot -f\n")
    with VM(kernel, initrd=archive, cmdline="quiet", engine="soft", timeout=60) as vm:
        vm.start()
        limit = time.monotonic() + 60
        while vm.console_log.count(b"up\r\n") < 3 and time.monotonic() < limit:
            time.sleep(0.02)
        log = vm.console_log
    assert log.count(b"up\r\n") >= 3, (vm.ending, log)


@pytest.mark.soft
def test_shell_reads_what_was_typed_before_it_was_there(kernel, busybox, tmp_path):
    """Typed at power-on, read by the shell a second later."""
    need("soft")
    archive = initrd(tmp_path, busybox, 'read line; echo "got $line"; poweroff -f\n')
    vm = VM(kernel, initrd=archive, cmdline="quiet", engine="soft", timeout=60)
    with vm:
        vm.start()
        vm.send(b"hello\n")
        ending = vm.wait()
    assert ending is not None and ending.ok
    assert b"got hello" in vm.console_log


@pytest.mark.soft
def test_shell_at_rest_does_not_hang(kernel, busybox, tmp_path):
    """A guest that waits for input is silent for long, which is no hang."""
    need("soft")
    archive = initrd(tmp_path, busybox, "echo waiting; read line\n")
    vm = VM(kernel, initrd=archive, engine="soft", hang_timeout=1.5)
    with vm:
        vm.start()
        assert wait_for(vm, b"waiting", 60), vm.ending
        assert vm.wait(3) is None


@pytest.mark.kvm
def test_kernel_prints_its_log_on_kvm(kernel):
    """Also where ring 0 is emulated at 2 million instructions a second."""
    need("kvm")
    with VM(kernel, cmdline=EMULATED, engine="kvm") as vm:
        vm.start()
        reached = wait_for(vm, b"Booting paravirtualized kernel on KVM", 100)
        detail = vm.ending.detail if vm.ending else ""
    assert reached, f"{detail}\n{vm.console_log[-2000:].decode()}"
    assert b"Linux version" in vm.console_log
    assert b"ACPI: RSDP" in vm.console_log
