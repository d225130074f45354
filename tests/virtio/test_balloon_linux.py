"""The balloon under Linux's driver. Needs kernels with their modules."""

from __future__ import annotations

import time

import pytest

from kvmkit import VM
from kvmkit.errors import UsageError
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

MIB = 1 << 20


def guest(kernel, busybox, tmp_path, script):
    modules = ("virtio_pci", "virtio_balloon")
    initrd = module_initrd(tmp_path, kernel, busybox, modules, script)
    return VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=120)


def wait_for(vm, word):
    limit = time.monotonic() + 60
    while word not in vm.console_log.splitlines():
        assert time.monotonic() < limit and vm.ending is None, vm.console_log
        time.sleep(0.05)


def until(condition):
    limit = time.monotonic() + 40
    while not condition() and time.monotonic() < limit:
        time.sleep(0.1)
    return condition()


def test_inflate_and_deflate(kernel, busybox, tmp_path):
    """The guest gives memory and takes it back; its own words say so."""
    vm = guest(kernel, busybox, tmp_path, "echo up; sleep 1000")
    vm.add_balloon(reporting=False)
    with vm:
        vm.start()
        wait_for(vm, b"up")
        before = vm.balloon_stats(20).values
        assert vm.balloon("128M", timeout=60) == 128 * MIB
        during = vm.balloon_stats(20)
        assert during.actual == during.target == 384 * MIB
        assert before["free"] - during.values["free"] > 300 * MIB
        assert vm.balloon("512M", timeout=60) == 512 * MIB
        after = vm.balloon_stats(20)
        assert after.actual == 0 and after.values["free"] > 300 * MIB
        with pytest.raises(UsageError, match="cannot keep"):
            vm.balloon("513M")


def test_free_pages_go_back_to_the_host(kernel, busybox, tmp_path):
    """What the guest filled and freed is the host's again, without being asked for."""
    script = (
        "mount -t tmpfs tmp /mnt; dd if=/dev/zero of=/mnt/f bs=1M count=150 2>/dev/null; "
        "echo full; read x < /dev/console; rm /mnt/f; echo freed; sleep 1000"
    )
    vm = guest(kernel, busybox, tmp_path, script)
    vm.add_balloon()
    with vm:
        vm.start()
        wait_for(vm, b"full")
        full = vm.board.ram.resident()
        assert full > 150 * MIB
        vm.send(b"\r")
        wait_for(vm, b"freed")
        assert until(lambda: vm.board.ram.resident() < full - 100 * MIB)


def test_short_of_memory_it_deflates(kernel, busybox, tmp_path):
    """A program that needs what was given gets it, and is not killed."""
    script = (
        "echo up; read x < /dev/console; "
        "dd if=/dev/zero of=/dev/null bs=200M count=1 && echo over; sleep 1000"
    )
    vm = guest(kernel, busybox, tmp_path, script)
    vm.add_balloon()
    with vm:
        vm.start()
        wait_for(vm, b"up")
        vm.balloon("96M", timeout=60)
        vm.send(b"\r")
        wait_for(vm, b"over")
        assert vm.balloon_stats(20).actual < 300 * MIB


def test_balloon_goes_through_a_snapshot(kernel, busybox, tmp_path):
    """What it has given stays given, and it still answers; so does a guest's port."""
    script = "echo up; while true; do sleep 0.2; done"
    place = str(tmp_path / "saved")
    vm = guest(kernel, busybox, tmp_path, script)
    vm.balloon("256M")
    with vm:
        vm.start()
        assert vm.balloon("256M", timeout=60) == 256 * MIB
        vm.snapshot(place)
        assert vm.balloon_stats(20).values["free"] > 0
    again = VM.restore(place)
    again.add_balloon()
    with again:
        again.start()
        found = again.balloon_stats(20)
        assert found.actual == 256 * MIB
        assert found.values["free"] > 0
        assert again.balloon("400M", timeout=60) == 400 * MIB
