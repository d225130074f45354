"""Snapshots of machines with disks: they go on with the contents that they know, or not at all."""

from __future__ import annotations

import os
import time

import pytest

from kvmkit import VM
from kvmkit.errors import BadSnapshot, UsageError
from kvmkit.snapshot.format import Snapshot
from tests.snapshot.test_engines import need, wait
from tests.snapshot.tiny_guest import tiny_kernel

pytestmark = pytest.mark.soft
SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """A raw image."""
    path = tmp_path / "disk,img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def saved(tmp_path, disk):
    """A snapshot of a VM with that disk."""
    need("soft")
    out = bytearray()
    with VM(tiny_kernel(tmp_path), memory="2M", engine="soft", console=out.extend,
            disks=[disk]) as vm:  # fmt: skip
        vm.start()
        wait(vm, out, 2)
        vm.snapshot(tmp_path / "snap")
    return tmp_path / "snap"


def test_the_disk_is_there_again(saved, disk):
    """Without being named; the guest goes on."""
    with Snapshot(str(saved)) as snapshot:
        assert snapshot.config["disks"][0][0] == str(disk).replace(",", ",,")
    out = bytearray()
    with VM.restore(saved, console=out.extend) as vm:
        vm.start()
        wait(vm, out, 3)


def test_a_disk_that_was_written_is_refused(saved, disk):
    """The guest's caches hold what was there before."""
    time.sleep(0.02)
    with open(disk, "r+b") as file:
        file.write(b"x")
    with pytest.raises(BadSnapshot, match="was written since the snapshot"):
        VM.restore(saved)


def test_a_disk_that_is_gone_is_refused(saved, disk):
    """With its name."""
    os.unlink(disk)
    with pytest.raises(BadSnapshot, match=r"the disk .*disk,img is gone"):
        VM.restore(saved)


def test_a_disk_whose_writes_are_forgotten_cannot_be_saved(tmp_path, disk):
    """What the guest knows of it would be nowhere; the VM runs on."""
    need("soft")
    disk = disk.rename(tmp_path / "disk")
    with VM(tiny_kernel(tmp_path), memory="2M", engine="soft", disks=[f"{disk},snapshot"]) as vm:
        vm.start()
        with pytest.raises(UsageError, match="is not kept"):
            vm.snapshot(tmp_path / "snap")
        assert vm.running
        with pytest.raises(UsageError, match="copies cannot share disks"):
            vm.fork()
    assert not (tmp_path / "snap").exists()
