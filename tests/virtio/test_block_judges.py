"""The block device judged from within a guest: a program that verifies, and what errors become."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.backends.disk import open_disk
from kvmkit.backends.disk_queue import DiskQueue
from kvmkit.board.power import EndKind
from kvmkit.guest.cpio import Archive
from kvmkit.virtio.block import Block
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]
MIB = 1 << 20
MODULES = ("virtio_pci", "virtio_blk")


@pytest.fixture(scope="session")
def disk_io(tmp_path_factory):
    """An archive with the static program of the benchmarks; skips without a compiler."""
    place = tmp_path_factory.mktemp("disk_io")
    source = Path(__file__).parents[2] / "benchmarks/disk_io.c"
    try:
        subprocess.run(["gcc", "-O2", "-static", "-o", place / "disk_io", source], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no C compiler with a static libc (apt install gcc libc6-dev)")
    archive = Archive()
    archive.file("bin/disk_io", (place / "disk_io").read_bytes(), 0o755)
    (place / "cpio").write_bytes(archive.finish())
    return place / "cpio"


def boot(kernel, initrds, devices, **options):
    vm = VM(kernel, initrd=initrds, cmdline="quiet", engine="soft", timeout=90, **options)
    for device in devices:
        vm.add_device(device)
    ending = vm.run()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    return vm.console_log.decode().replace("\r", "").splitlines()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "backing"])
def test_what_is_written_is_there(kernel, busybox, disk_io, tmp_path, kind):
    """Numbers in pieces of many sizes on four CPUs; another boot reads them in other pieces."""
    path = tmp_path / "disk"
    if kind == "raw":
        path.touch()
        os.truncate(path, 48 * MIB)
    elif shutil.which("qemu-img") is None:
        pytest.skip("no qemu-img (apt install qemu-utils)")
    else:
        (tmp_path / "below").write_bytes(b"x" * 48 * MIB)
        below = ["-b", "below", "-F", "raw"] if kind == "backing" else ["-o", "cluster_size=4k"]
        subprocess.run(["qemu-img", "create", "-qfqcow2", *below, path, "48M"], check=True)
    bytes_ = 40 * MIB
    script = f"disk_io /dev/vda fill 1 {bytes_} && disk_io /dev/vda check 1 {bytes_} && echo good"
    first = module_initrd(tmp_path, kernel, busybox, MODULES, script)
    assert "good" in boot(kernel, [first, disk_io], [], disks=[f"{path},queues=4"], cpus=4)
    script = f"disk_io /dev/vda check 1 {bytes_} && echo good; disk_io /dev/vda check 2 4096"
    again = module_initrd(tmp_path, kernel, busybox, MODULES, script)
    log = boot(kernel, [again, disk_io], [], disks=[f"{path},ro"])
    assert "good" in log
    assert any("wrong number" in line for line in log), "the judge sees what is wrong"
    if kind != "raw":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


class Failing:
    """A disk that cannot read or write its second half, nor flush for a while."""

    def __init__(self, disk):
        self._disk = disk
        self.limit = disk.size // 2
        self.flushes = 0

    def __getattr__(self, name):
        return getattr(self._disk, name)

    def _check(self, offset):
        if offset >= self.limit:
            raise OSError(5, "bad sector")

    def read(self, offset, buffers):
        self._check(offset)
        self._disk.read(offset, buffers)

    def read_now(self, offset, buffers):
        self._check(offset)
        return self._disk.read_now(offset, buffers)

    def write(self, offset, buffers):
        self._check(offset)
        self._disk.write(offset, buffers)

    def write_now(self, offset, buffers):
        return False

    def flush(self):
        self.flushes += 1
        if self.flushes == 1:
            raise OSError(5, "no")
        self._disk.flush()


def test_errors_of_the_host_are_errors_in_the_guest(kernel, busybox, tmp_path):
    """EIO where the host has it, in dd and in fsync; the rest of the disk works on."""
    path = tmp_path / "disk"
    path.write_bytes(b"abcd" * (2 * MIB))
    script = """
dd if=/dev/vda of=/dev/null bs=4k count=4 skip=2000 iflag=direct 2>&1 | grep -i error
dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=1500 oflag=direct 2>&1 | grep -i error
dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>&1 | grep -i error
dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null && echo second flush
dd if=/dev/vda bs=4k count=1 skip=1 iflag=direct 2>/dev/null | head -c 4; echo
"""
    disk = Failing(open_disk(str(path)))
    initrd = module_initrd(tmp_path, kernel, busybox, MODULES, script)
    log = boot(kernel, [initrd], [Block(disk, DiskQueue("disk"))])
    errors = [line for line in log if "Input/output error" in line or "I/O error" in line]
    assert len(errors) >= 3, log
    assert "second flush" in log and "abcd" in log


def test_read_only_and_snapshot(kernel, busybox, tmp_path):
    """The guest knows of a disk to read; what it writes to a snapshot is gone afterwards."""
    path = tmp_path / "disk"
    path.write_bytes(b"abcd" * (MIB // 4))
    script = """
cat /sys/block/vda/ro /sys/block/vdb/ro
dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null || echo refused
dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync 2>/dev/null && head -c 4096 /dev/vdb | md5sum
"""
    initrd = module_initrd(tmp_path, kernel, busybox, MODULES, script)
    log = boot(kernel, [initrd], [], disks=[f"{path},ro", f"{path},snapshot"])
    assert [line for line in log if line in ("0", "1")] == ["1", "0"]
    assert "refused" in log
    assert "620f0b67a91f7f74151bc5be745b7110  -" in log
    assert path.read_bytes() == b"abcd" * (MIB // 4)
