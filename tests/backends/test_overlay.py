"""Disks whose writes are forgotten."""

from __future__ import annotations

from hypothesis import given, settings

from kvmkit.backends.disk import open_disk
from kvmkit.backends.overlay import CLUSTER, Overlay, cut
from tests.backends.disk_model import Model, acts, pattern
from tests.virtio.block_driver import MemoryDisk

SIZE = 5 * CLUSTER + 3 * 512


@settings(deadline=None, max_examples=150)
@given(todo=acts())
def test_same_as_a_bytearray(todo):
    """Over a disk that is never written."""
    below = MemoryDisk(SIZE)
    before = bytes(below.data)
    disk = Overlay(below)
    model = Model(disk, before)
    for act in todo:
        model.act(*act)
    model.check_all()
    assert bytes(below.data) == before
    disk.close()


def test_of_a_file(tmp_path):
    """open_disk(snapshot=True) leaves the file as it is, also one that cannot be written."""
    path = tmp_path / "disk"
    path.write_bytes(pattern(3, SIZE))
    path.chmod(0o400)
    disk = open_disk(str(path), snapshot=True)
    model = Model(disk, pattern(3, SIZE))
    model.write(1, 300, 5)
    model.check_all()
    disk.close()
    assert path.read_bytes() == pattern(3, SIZE)


def test_memory_follows_what_is_written():
    """Not the size of the disk, which may be anything."""
    below = MemoryDisk()
    below.size = 1 << 62
    disk = Overlay(below)
    disk.write((1 << 42), [memoryview(bytes(CLUSTER))])
    memory = memoryview(bytearray(b"x" * 512))
    disk.read((1 << 42) + 512, [memory])
    assert bytes(memory) == bytes(512)
    disk.close()


def test_cut():
    """Pieces end at multiples of the grain, whatever the buffers are."""
    data = bytes(range(200))
    for start in (0, 3, 9, 10):
        for first in (0, 1, 7, 50):
            views = [
                memoryview(data[:first]),
                memoryview(data[first:first]),
                memoryview(data[first:]),
            ]
            at, found = start, b""
            for offset, parts in cut(start, views, 10):
                assert offset == at
                piece = b"".join(parts)
                assert 0 < len(piece) <= 10 - offset % 10
                at += len(piece)
                found += piece
            assert found == data
