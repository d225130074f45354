"""``kvmkit run --disk``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from kvmkit.cli.run import COMMAND

pytestmark = pytest.mark.soft
MIB = 1 << 20


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "kvmkit", "run", "--engine", "soft", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
        **options,
    )


def test_options():
    """Short and long, several."""
    parsed = COMMAND.parse(["-d", "a,ro", "--disk=b.qcow2,serial=x"])
    assert parsed["disk"] == ["a,ro", "b.qcow2,serial=x"]


@pytest.mark.parametrize(
    ("word", "code", "text"),
    [
        ("{}/disk,rw", 2, "unknown word 'rw'"),
        ("{}/none", 123, "No such file"),
        ("{}/small", 123, "at least 512"),
        ("{}/disk,format=qcow2", 123, "mark of qcow2"),
    ],
)
def test_mistakes(kernel, busybox, tmp_path, word, code, text):
    """One line, and a code, before anything is booted."""
    (tmp_path / "disk").write_bytes(bytes(MIB))
    (tmp_path / "small").write_bytes(b"x")
    done = run("-k", kernel, "-d", word.format(tmp_path), "--", "true")
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") <= 2


@pytest.mark.slow
def test_a_file_system_of_the_hosts(kernel, busybox, tmp_path):
    """Made on the host, written in the guest, found clean on the host."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 (apt install e2fsprogs)")
    image = tmp_path / "x.img"
    image.touch()
    os.truncate(image, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    script = "mount /dev/vda /mnt && echo there > /mnt/file && cat /sys/block/vda/serial"
    done = run("-k", kernel, "--disk", f"{image},serial=mine", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "mine"), done.stderr
    subprocess.run(["e2fsck", "-fp", image], check=False, capture_output=True)
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True).returncode == 0
    found = subprocess.run(["debugfs", "-R", "cat file", image], capture_output=True, check=True)
    assert found.stdout == b"there\n"


@pytest.mark.slow
def test_a_kernel_without_the_driver(kernel, busybox, tmp_path):
    """The hint names the options of its configuration."""
    bare = tmp_path / "bzImage"
    shutil.copy(kernel, bare)
    (tmp_path / "disk").write_bytes(bytes(MIB))
    done = run("-k", bare, "--disk", tmp_path / "disk", "--", "ls", "/dev/vda")
    assert done.returncode
    assert "CONFIG_VIRTIO_BLK" in done.stderr
