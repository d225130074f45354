"""Linux under load, saved and restored again and again. Needs kernels: see tests/conftest.py.

KVMKIT_TEST_RESTORES says how often, 10 unless told otherwise.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise

import pytest

from kvmkit import VM
from kvmkit.errors import BadSnapshot
from kvmkit.virtio.entropy import Entropy
from tests.snapshot.linux_load import Watcher, load_initrd
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

RESTORES = int(os.environ.get("KVMKIT_TEST_RESTORES", "10"))
STEP = 0.1
"""Seconds by which the guest's clock may be off after a restore."""


@pytest.mark.parametrize("cpus", [1, 4])
def test_a_guest_under_load_goes_on(kernel, busybox, tmp_path, cpus):
    """Saved while it works, restored, saved again: files right, no stall, no step of the clock."""
    initrd = load_initrd(tmp_path, busybox)
    snap = tmp_path / "snap"
    watcher = Watcher()
    vm = VM(kernel, initrd=initrd, cmdline="quiet", cpus=cpus, memory="256M", engine="soft",
            console=watcher)  # fmt: skip
    lags: list[float] = []
    for _ in range(RESTORES + 1):
        with vm:
            watcher.vm = vm
            vm.start()
            watcher.wait(4)
            lags.append(watcher.least_lag(lags[-1] if lags else None, STEP))
            vm.snapshot(snap)
        watcher = Watcher()
        vm = VM.restore(snap, console=watcher)
    with vm:
        watcher.vm = vm
        vm.start()
        watcher.wait(4)
        lags.append(watcher.least_lag(lags[-1], STEP))
    steps = [abs(after - before) for before, after in pairwise(lags)]
    assert max(steps) < STEP, steps


def test_the_saved_guest_runs_on(kernel, busybox, tmp_path):
    """It hardly notices; its clock stood while it was saved."""
    watcher = Watcher()
    with VM(kernel, initrd=load_initrd(tmp_path, busybox), cmdline="quiet", engine="soft",
            console=watcher) as vm:  # fmt: skip
        watcher.vm = vm
        vm.start()
        watcher.wait(4)
        before = min(watcher.lag)
        for _ in range(3):
            vm.snapshot(tmp_path / "snap")
            watcher.lag.clear()
            watcher.wait(len(watcher.counts) + 4)
            assert abs(watcher.least_lag(before, STEP) - before) < STEP


def test_a_restored_guest_can_reboot(kernel, busybox, tmp_path):
    """Its kernel and initrd are loaded again."""
    initrd = load_initrd(tmp_path, busybox)
    watcher = Watcher()
    with VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", console=watcher) as vm:
        watcher.vm = vm
        vm.start()
        watcher.wait(2)
        vm.snapshot(tmp_path / "snap")
    watcher = Watcher()
    with VM.restore(tmp_path / "snap", console=watcher) as vm:
        watcher.vm = vm
        vm.start()
        watcher.wait(2)
        uptime = watcher.text.split(b"tick ")[-1].split()[0]
        vm.reset()
        watcher.text, watcher.counts = b"", []
        watcher.wait(2)
        assert float(watcher.text.split(b"tick ")[1].split()[0]) < float(uptime) + 5


def test_a_virtio_device_goes_on(kernel, busybox, tmp_path):
    """Its rings are where they were; a VM without the device is refused."""
    script = 'while :; do dd if=/dev/hwrng bs=16 count=1 2>/dev/null | md5sum; sleep 0.1; done'
    initrd = module_initrd(tmp_path, kernel, busybox, ("virtio_pci", "virtio_rng"), script)
    given: list[int] = []

    def source(size: int) -> bytes:
        given.append(size)
        return os.urandom(size)

    def lines(vm: VM) -> int:
        return vm.console_log.count(b"  -\r\n")

    def wait(vm: VM, count: int) -> None:
        limit = time.monotonic() + 60
        while lines(vm) < count:
            assert time.monotonic() < limit, vm.console_log[-1000:]
            time.sleep(0.02)

    vm = VM(kernel, initrd=initrd, cmdline="quiet", engine="soft")
    vm.add_virtio(Entropy(source))
    with vm:
        vm.start()
        wait(vm, 3)
        vm.snapshot(tmp_path / "snap")
    given.clear()
    vm = VM.restore(tmp_path / "snap")
    vm.add_virtio(Entropy(source))
    with vm:
        vm.start()
        wait(vm, 12)
        assert len(given) > 3
    with (
        VM.restore(tmp_path / "snap") as vm,
        pytest.raises(BadSnapshot, match="VM lacks the device in PCI slot"),
    ):
        vm.start()
