"""The file system device from the driver's side, with a server that is a function."""

from __future__ import annotations

import pytest

from kvmkit.backends.disk_queue import DiskQueue
from kvmkit.backends.fuse.share import Share
from kvmkit.errors import FileTrouble, UsageError
from kvmkit.virtio.fs import VirtioFs
from kvmkit.virtio.pci import VirtioPci
from tests.backends.fuse_client import Client
from tests.virtio.mock import RINGS, FakeHost, MsiLog, PciDriver, SplitDriver

VERSION_1 = 1 << 32


class Reverse:
    """Answers with the request in reverse; counts."""

    def __init__(self):
        self.served = 0
        self.resets = 0

    def serve(self, readable, writable):
        self.served += 1
        data = b"".join(readable)[::-1]
        if not writable:
            return 0
        writable[0][: len(data)] = data
        return len(data)

    def serve_now(self, readable, writable):
        return self.serve(readable, writable) if not writable else None

    def reset(self):
        self.resets += 1


class Waiting:
    """Workers that work when told."""

    def __init__(self):
        self.held = []

    def submit(self, work, done):
        self.held.append((work, done))

    @property
    def busy(self):
        return bool(self.held)

    def finish(self):
        work, done = self.held.pop(0)
        work()
        done(None)

    drain = close = settle = finish


class Rig:
    """The device behind PCI and a driver with both queues set up."""

    def __init__(self, workers):
        self.host = FakeHost()
        self.server = Reverse()
        self.device = VirtioFs(b"tag", self.server, workers)
        self.function = VirtioPci(self.device, self.host, MsiLog())
        self.driver = PciDriver(self.function)
        self.start()

    def start(self):
        self.rings = [SplitDriver(self.host.ram, 16, base=RINGS + 0x4000 * i) for i in (0, 1)]
        assert self.driver.accept(VERSION_1)
        for index, ring in enumerate(self.rings):
            self.driver.set_queue(index, ring.where)
        self.driver.go()

    def send(self, index, readable, writable):
        self.rings[index].add(readable, writable)
        self.driver.notify(index)

    def answers(self, index):
        return [data for _, data in self.rings[index].collect()]


def test_configuration_has_the_tag_and_the_number_of_queues():
    """5.11.4: 36 bytes, padded with zeroes, and 32 bits."""
    device = VirtioFs(b"tag", Reverse(), Waiting(), queues=2)
    assert bytes(device.config) == b"tag".ljust(36, b"\0") + b"\2\0\0\0"
    assert (device.device_id, len(device.queue_sizes)) == (26, 3)


@pytest.mark.parametrize("tag", ["", "x" * 37, "a\0b"])
def test_tags_that_cannot_be(tmp_path, tag):
    """Empty, too long, or with a NUL."""
    with pytest.raises(UsageError, match="tag"):
        Share(tmp_path, tag=tag)


def test_directories_that_cannot_be(tmp_path):
    """A share says at once that there is nothing to share."""
    with pytest.raises(FileTrouble, match="missing"):
        Share(tmp_path / "missing", tag="x")


def test_requests_are_served_by_workers():
    """Two at a time; the answers come back."""
    workers = DiskQueue("test")
    rig = Rig(workers)
    rig.send(1, [b"abc"], [3])
    rig.send(1, [b"12", b"34"], [10])
    rig.device.drain()
    assert sorted(rig.answers(1)) == [b"4321", b"cba"]
    rig.device.close()


def test_quick_requests_do_not_wait():
    """FORGET, for example, is done at once, and given back with nothing written."""
    rig = Rig(Waiting())
    rig.send(0, [b"forget"], [])
    assert rig.server.served == 1
    assert rig.answers(0) == [b""]


def test_a_reset_waits_for_workers_and_drops_their_answers():
    """The driver sees the reset end when nobody touches its memory any more."""
    workers = Waiting()
    rig = Rig(workers)
    rig.send(1, [b"abc"], [3])
    rig.driver.status = 0
    assert rig.driver.status != 0
    workers.finish()
    assert rig.driver.status == 0
    assert rig.answers(1) == []
    assert rig.server.resets
    rig.start()
    rig.send(1, [b"new"], [3])
    workers.finish()
    assert rig.answers(1) == [b"wen"]


def test_a_whole_mount_through_rings(tmp_path):
    """INIT, LOOKUP, READ with the real server."""
    (tmp_path / "file").write_bytes(b"x" * 5000)
    host = FakeHost()
    device = Share(tmp_path, tag="share")
    driver = PciDriver(VirtioPci(device, host, MsiLog()))
    ring = SplitDriver(host.ram, 16, base=RINGS + 0x4000)
    assert driver.accept(VERSION_1)
    driver.set_queue(1, ring.where)
    driver.go()

    class Guest(Client):
        """Sends by the ring."""

        def raw(self, message, room, cuts=()):
            ring.add([message[:40], message[40:]], [16, room - 16])
            driver.notify(1)
            device.drain()
            (answer,) = [data for _, data in ring.collect()]
            return answer

    guest = Guest(tmp_path)
    node = guest.lookup("file").nodeid
    assert guest.read(node, guest.open(node), 4096, 4000) == b"x" * 1000
    assert host.ram.told
    device.close()
