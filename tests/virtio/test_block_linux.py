"""The block device under Linux's own driver and file system."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kvmkit import VM
from kvmkit.backends.disk import open_disk
from kvmkit.backends.disk_queue import DiskQueue
from kvmkit.board.power import EndKind
from kvmkit.virtio.block import Block
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

SCRIPT = """
mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt && echo mounted
dd if=/dev/urandom of=/mnt/file bs=64k count=100 2>/dev/null
cp /mnt/file /mnt/copy; sync; echo 3 > /proc/sys/vm/drop_caches
sha256sum /mnt/file /mnt/copy | cut -c1-64
cat /sys/block/vda/serial; echo; umount /mnt; blkdiscard /dev/vdb && echo discarded
"""


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_file_system_on_a_disk(kernel, busybox, tmp_path, cpus, format):
    """ext4 is made, written and read back, and e2fsck and qemu-img find the image clean."""
    disk, other = tmp_path / "disk", tmp_path / "other"
    if format == "qcow2":
        try:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
        except FileNotFoundError:
            pytest.skip("qemu-img is missing (apt install qemu-utils)")
    else:
        disk.write_bytes(b"")
        with disk.open("r+b") as file:
            file.truncate(64 << 20)
    other.write_bytes(bytes(8 << 20))
    initrd = module_initrd(
        tmp_path, kernel, busybox, ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4"), SCRIPT
    )
    vm = VM(kernel, initrd=initrd, cmdline="quiet", cpus=cpus, engine="soft", timeout=60)
    for path, serial in ((disk, "first"), (other, "second")):
        vm.add_virtio(Block(open_disk(str(path)), DiskQueue("disk"), serial=serial, queues=cpus))
    ending = vm.run()
    log = vm.console_log.decode().splitlines()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    assert "mounted" in log and "first" in log
    digests = [line for line in log if len(line) == 64]
    assert len(digests) == 2 and digests[0] == digests[1]
    raw = disk
    if format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", disk], check=True)
        raw = tmp_path / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    if shutil.which("e2fsck") is None:
        pytest.skip("no e2fsck to judge the image (apt install e2fsprogs)")
    done = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
