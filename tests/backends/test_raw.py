"""Raw images, and what is refused as a disk."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time

import pytest
from hypothesis import given, settings

from kvmkit.backends import raw
from kvmkit.backends.disk import open_disk
from kvmkit.errors import FileTrouble, PermissionTrouble, UsageError
from tests.backends.disk_model import Model, acts, pattern

SIZE = 300 * 512


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(pattern(7, SIZE))
    return path


@settings(deadline=None, max_examples=150)
@given(todo=acts())
def test_same_as_a_bytearray(tmp_path_factory, todo):
    """Reads, writes, zeroes and discards in any order."""
    path = tmp_path_factory.mktemp("raw") / "disk"
    path.write_bytes(pattern(1, SIZE))
    disk = open_disk(str(path))
    model = Model(disk, pattern(1, SIZE))
    for act in todo:
        model.act(*act)
    model.check_all()
    disk.close()
    assert path.stat().st_size == SIZE
    if not model.unknown:
        assert path.read_bytes() == model.data


def test_discard_frees_room(image):
    """A discarded range takes no blocks of the host's."""
    disk = open_disk(str(image))
    disk.flush()
    before = image.stat().st_blocks
    disk.discard(0, SIZE)
    if image.stat().st_blocks == before:
        pytest.skip("this file system punches no holes")
    assert image.stat().st_blocks < before
    disk.close()


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroes_without_the_system_call(image, monkeypatch, unmap):
    """Where fallocate(2) cannot, zeroes are written."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(raw, "_fallocate", refuse)
    disk = open_disk(str(image))
    disk.discard(0, SIZE)
    disk.write_zeroes(512, 1024, unmap=unmap)
    disk.close()
    data = pattern(7, SIZE)
    assert image.read_bytes() == data[:512] + bytes(1024) + data[1536:]


def test_more_buffers_than_one_call_takes(image):
    """IOV_MAX is 1024; a request of the guest may have more pieces."""
    disk = open_disk(str(image))
    data = pattern(9, 2000 * 4)
    disk.write(0, [memoryview(data)[at : at + 4] for at in range(0, 8000, 4)])
    memory = memoryview(bytearray(8000))
    assert not disk.read_now(0, [memory[at : at + 4] for at in range(0, 8000, 4)])
    disk.read(0, [memory[at : at + 4] for at in range(0, 8000, 4)])
    assert memory == data
    disk.close()


def test_a_file_that_shrinks_reads_as_zeroes(image):
    """Somebody truncates the image: no endless loop."""
    disk = open_disk(str(image), read_only=True)
    os.truncate(image, 512)
    memory = memoryview(bytearray(b"x" * 2048))
    disk.read(0, [memory[:1000], memory[1000:]])
    assert bytes(memory) == pattern(7, 512) + bytes(1536)
    disk.close()


def test_errors_of_the_host(image):
    """EBADF of a closed disk, as an example of an OSError."""
    disk = open_disk(str(image))
    disk.close()
    disk.close()
    with pytest.raises(OSError, match="Bad file"):
        disk.read(0, [memoryview(bytearray(512))])
    with pytest.raises(OSError, match="Bad file"):
        disk.write(0, [memoryview(bytes(512))])


def test_a_guest_cannot_change_the_format(image):
    """With a format that was guessed, qcow2's mark in the first sector is refused."""
    mark = b"QFI\xfb" + bytes(508)
    disk = open_disk(str(image))
    for parts in ([mark], [mark[:1], mark[1:]], [mark * 8]):
        with pytest.raises(PermissionError):
            disk.write(0, [memoryview(part) for part in parts])
    disk.write(512, [memoryview(mark)])
    disk.write(0, [memoryview(bytes(512))])
    disk.close()
    disk = open_disk(str(image), format="raw")
    disk.write(0, [memoryview(mark)])
    disk.close()
    assert image.read_bytes()[:512] == mark


@pytest.mark.parametrize("size", [0, 1, 511])
def test_too_small(tmp_path, size):
    """A disk has a sector at least."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(size))
    with pytest.raises(FileTrouble, match="at least 512"):
        open_disk(str(path))


def test_odd_size(tmp_path):
    """Half a sector at the end is refused, or not shown if nothing is written."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(1000))
    with pytest.raises(FileTrouble, match="whole sectors"):
        open_disk(str(path))
    disk = open_disk(str(path), read_only=True)
    assert disk.size == 512
    disk.close()


def test_what_is_no_disk(tmp_path):
    """Directories, pipes, devices of characters, files that are not there."""
    os.mkfifo(tmp_path / "pipe")
    for path, match in (
        (tmp_path, "directory|neither"),
        (tmp_path / "pipe", "neither"),
        ("/dev/null", "neither"),
        (tmp_path / "none", "No such file"),
    ):
        for read_only in (False, True):
            with pytest.raises(FileTrouble, match=match):
                open_disk(str(path), read_only=read_only)
    with pytest.raises(UsageError, match="vmdk"):
        open_disk("x", format="vmdk")
    with pytest.raises(FileTrouble, match="null"):
        open_disk("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_no_permission(image):
    """The hint says how to go on."""
    image.chmod(0o400)
    with pytest.raises(PermissionTrouble) as caught:
        open_disk(str(image))
    assert ",ro" in caught.value.hint


def test_no_descriptor_is_lost(image, tmp_path):
    """Neither by opening and closing nor by failing."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        open_disk(str(image), snapshot=True).close()
        open_disk(str(image), read_only=True).close()
        with pytest.raises(FileTrouble):
            open_disk(str(image), format="qcow2")
    assert len(os.listdir("/proc/self/fd")) == before


def test_locks(image):
    """One writer, or any number of readers."""
    one = open_disk(str(image))
    for options in ({}, {"read_only": True}, {"snapshot": True}):
        with pytest.raises(FileTrouble, match="in use"):
            open_disk(str(image), **options)
    one.close()
    readers = [open_disk(str(image), read_only=True), open_disk(str(image), snapshot=True)]
    with pytest.raises(FileTrouble, match="in use"):
        open_disk(str(image))
    for disk in readers:
        disk.close()
    open_disk(str(image)).close()


def test_locks_are_qemus(image):
    """qemu-io and we keep each other out."""
    if shutil.which("qemu-io") is None:
        pytest.skip("no qemu-io (apt install qemu-utils)")
    read = ["qemu-io", "-f", "raw", "-c", "read 0 512", str(image)]
    disk = open_disk(str(image))
    done = subprocess.run(read, capture_output=True, text=True, check=False)
    disk.close()
    assert done.returncode and "lock" in done.stderr
    subprocess.run(read, check=True, capture_output=True)
    wait = [*read[:-1], "-c", "sleep 5000", read[-1]]
    with subprocess.Popen(wait, stdout=subprocess.DEVNULL) as process:
        time.sleep(1)  # it says nothing until it ends
        try:
            with pytest.raises(FileTrouble, match="in use"):
                open_disk(str(image))
        finally:
            process.kill()
