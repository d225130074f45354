"""Virtio devices under Linux's own drivers. Needs kernels with their modules."""

from __future__ import annotations

import os
import time

import pytest

from kvmkit import VM
from kvmkit.board.power import EndKind
from kvmkit.virtio.entropy import Entropy
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

READ = "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'; echo; "
FEATURES = "cat /sys/bus/virtio/devices/virtio0/features; "
COUNTS = "cat /proc/interrupts | grep virtio; "


class Source:
    """Random bytes that remember what they were."""

    def __init__(self) -> None:
        self.given = b""

    def __call__(self, size: int) -> bytes:
        data = os.urandom(size)
        self.given += data
        return data


def run_entropy(kernel, busybox, tmp_path, *, cmdline="", packed=False):
    """Read /dev/hwrng in a guest; the console's lines and what the source gave."""
    source = Source()
    initrd = module_initrd(
        tmp_path, kernel, busybox, ("virtio_pci", "virtio_rng"), FEATURES + READ + COUNTS
    )
    vm = VM(kernel, initrd=initrd, cmdline=f"quiet {cmdline}", engine="soft", timeout=60)
    vm.add_virtio(Entropy(source), packed=packed)
    ending = vm.run()
    log = vm.console_log.decode().splitlines()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    random = bytes.fromhex(next(line for line in log if len(line) == 512))
    assert random in source.given
    return log


def features(log):
    """The negotiated features, from the driver's own listing: bit 0 first."""
    bits = next(line for line in log if len(line) == 64 and not line.strip("01"))
    return {bit for bit, set_ in enumerate(bits) if set_ == "1"}


def test_entropy_reaches_linux(kernel, busybox, tmp_path):
    """What /dev/hwrng gives is what the source gave, by MSI-X, indirect and event index."""
    log = run_entropy(kernel, busybox, tmp_path)
    assert features(log) >= {28, 29, 32}
    assert any("PCI-MSI" in line and "virtio0-input" in line for line in log)


def test_entropy_by_legacy_interrupts(kernel, busybox, tmp_path):
    """Without MSI, through INTx and the ISR register."""
    log = run_entropy(kernel, busybox, tmp_path, cmdline="pci=nomsi")
    assert any("IO-APIC" in line and "virtio0" in line for line in log)


def test_entropy_by_packed_rings(kernel, busybox, tmp_path):
    """Linux takes packed rings where they are offered."""
    assert 34 in features(run_entropy(kernel, busybox, tmp_path, packed=True))


def test_linux_leaves_and_comes_back(kernel, busybox, tmp_path):
    """The driver is unbound, which resets the device, and bound again; twice."""
    turn = (
        "cd /sys/bus/virtio/drivers/virtio_rng; "
        "for n in 1 2; do echo virtio0 > unbind; cat /sys/bus/virtio/devices/virtio0/status; "
        "echo virtio0 > bind; cat /sys/bus/virtio/devices/virtio0/status; done; "
    )
    source = Source()
    modules = ("virtio_pci", "virtio_rng")
    initrd = module_initrd(tmp_path, kernel, busybox, modules, turn + READ)
    vm = VM(kernel, initrd=initrd, cmdline="quiet", cpus=2, engine="soft", timeout=60)
    vm.add_virtio(Entropy(source))
    ending = vm.run()
    log = vm.console_log.decode().splitlines()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    assert [line for line in log if line.startswith("0x")] == ["0x00000001", "0x0000000f"] * 2
    random = bytes.fromhex(next(line for line in log if len(line) == 512))
    assert random in source.given


def test_reboot_with_a_device(kernel, busybox, tmp_path):
    """The second boot finds the device as the first did."""
    source = Source()
    modules = ("virtio_pci", "virtio_rng")
    script = READ + "grep -q again /proc/cmdline || reboot -f"
    initrd = module_initrd(tmp_path, kernel, busybox, modules, script)
    with VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=60) as vm:
        vm.add_virtio(Entropy(source))
        vm.start()
        limit = time.monotonic() + 50
        lines = []
        while len(lines) < 2 and vm.ending is None and time.monotonic() < limit:
            time.sleep(0.05)
            lines = [line for line in vm.console_log.decode().splitlines() if len(line) == 512]
        log = vm.console_log.decode()
    assert len(lines) >= 2, log
    assert all(bytes.fromhex(line) in source.given for line in lines[:2])
