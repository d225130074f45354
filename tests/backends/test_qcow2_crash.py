"""qcow2 images after ``kill -9`` in the middle of writing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmkit.backends import raw
from kvmkit.backends.disk import open_disk
from tests.backends.disk_model import SECTOR, pattern
from tests.backends.qcow2_images import check, create, qemu_img, raw_bytes, requires_qemu_img

pytestmark = [requires_qemu_img, pytest.mark.slow]

SECTORS = 20000
ZERO = bytes(SECTOR)
ROUNDS = 8


def allowed(data: bytes, log: list[str]) -> dict[int, set[bytes]]:
    """What each sector may be that is not as in ``data``, by the writer's words."""
    last: dict[int, set[bytes]] = {}  # what it may be if all is done
    any_of: dict[int, set[bytes]] = {}  # and if the requests since the last flush may be missing
    for line in log:
        kind, *numbers = line.split()
        if kind == "flushed":
            any_of = dict(last)
        if kind not in ("write", "discard", "zero"):
            continue
        sector, count, value = map(int, numbers)
        new = {"write": pattern(value, SECTOR), "zero": ZERO}.get(kind)
        for here in range(sector, sector + count):
            before = last.get(here) or {data[here * SECTOR : (here + 1) * SECTOR]}
            last[here] = before | {ZERO} if new is None else {new}
            any_of[here] = any_of.get(here, before) | last[here]
    return any_of


def verify(found: bytes, data: bytes, may: dict[int, set[bytes]]) -> None:
    """Every sector is what it was or may be."""
    for sector in range(len(data) // SECTOR):
        part = slice(sector * SECTOR, (sector + 1) * SECTOR)
        assert found[part] in (may.get(sector) or {data[part]}), sector


def cut_off(path: Path, seed: int, delay: float) -> list[str]:
    """Let the writer write for ``delay`` seconds after opening, kill it; what it said."""
    words = [sys.executable, str(Path(__file__).with_name("crash_writer.py"))]
    with subprocess.Popen(
        [*words, str(path), str(seed), str(SECTORS)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        time.sleep(delay)
        writer.kill()
        text = writer.stdout.read()
    return text[: text.rfind("\n") + 1].splitlines()


@pytest.mark.parametrize(
    "layout",
    [{}, {"cluster_size": 512}, {"cluster_size": 4096, "refcount_bits": 2}, {"compat": "0.10"}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["plain", "snapshots", "backing"])
def test_killed_in_the_middle_of_writing(tmp_path, layout, kind):
    """The image has no errors, what was flushed is there, all else is old or new."""
    size = SECTORS * SECTOR
    chance = random.Random(str(layout) + kind)
    data = bytes(size)
    options = dict(layout)
    if kind == "backing":
        data = pattern(12345, size)
        (tmp_path / "below").write_bytes(data)
        path = create(tmp_path / "disk", size, backing=Path("below"), format="raw", **options)
    else:
        path = create(tmp_path / "disk", size, **options)
    flushes = leaks = 0
    for seed in range(ROUNDS):
        if kind == "snapshots" and seed % 4 == 1:
            qemu_img("check", "-q", "-r", "leaks", path)
            qemu_img("snapshot", "-c", f"at-{seed}", path)
        log = cut_off(path, seed, chance.random() * 0.15)
        flushes += log.count("flushed")
        leaks += check(path, leaks=True)
        found = raw_bytes(path)
        verify(found, data, allowed(data, log))
        data = found
    assert flushes > ROUNDS, "the writer did something"
    most = ROUNDS * size // layout.get("cluster_size", 65536) + 64 * ROUNDS
    assert leaks < most, "only what a commit was about is lost"


@pytest.mark.parametrize("layout", [{}, {"cluster_size": 512}, {"compat": "0.10"}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "snapshot"])
def test_power_fails(tmp_path, monkeypatch, layout, kind):
    """Of what was written after the last barrier any part may be missing, by sectors."""
    size = 4000 * SECTOR
    path = create(tmp_path / "disk", size, **layout)
    chance = random.Random(str(layout) + kind)
    data = bytes(size)
    if kind == "snapshot":
        disk = open_disk(str(path))
        disk.write(0, [memoryview(pattern(99, size // 2))])
        disk.close()
        data = pattern(99, size // 2) + bytes(size // 2)
        qemu_img("snapshot", "-c", "one", path)
    before = path.read_bytes()
    medium = Medium(monkeypatch)
    disk = open_disk(str(path))
    log = []
    for number in range(120):
        act = chance.choice(("write",) * 6 + ("flush", "discard", "zero"))
        sector, count = chance.randrange(3900), chance.choice((1, 8, 100))
        medium.log.append(("say", 0, f"{act} {sector} {count} {number + 1}"))
        if act == "write":
            disk.write(sector * SECTOR, [memoryview(pattern(number + 1, count * SECTOR))])
        elif act == "discard":
            disk.discard(sector * SECTOR, count * SECTOR)
        elif act == "zero":
            disk.write_zeroes(sector * SECTOR, count * SECTOR, unmap=True)
        else:
            disk.flush()
            medium.log.append(("say", 0, "flushed"))
    medium.log.append(("say", 0, "flush"))
    disk.close()
    monkeypatch.undo()
    cuts = [index for index, entry in enumerate(medium.log) if entry[0] != "say"]
    for cut in chance.sample(cuts, 25):
        path.write_bytes(medium.after(before, cut, chance))
        check(path, leaks=True)
        log = [text for what, _, text in medium.log[:cut] if what == "say"]
        verify(raw_bytes(path), data, allowed(data, log))


class Medium:
    """Keeps what is written, and the barriers."""

    def __init__(self, monkeypatch):
        self.log = []
        pwrite, pwritev, sync, hole = os.pwrite, os.pwritev, os.fdatasync, raw._fallocate

        def one(fd, data, offset):
            self.log.append(("write", offset, bytes(data)))
            return pwrite(fd, data, offset)

        def several(fd, buffers, offset):
            self.log.append(("write", offset, b"".join(buffers)))
            return pwritev(fd, buffers, offset)

        def barrier(fd):
            self.log.append(("sync", 0, b""))
            sync(fd)

        def punch(fd, mode, offset, count):
            self.log.append(("write", offset, bytes(count)))
            hole(fd, mode, offset, count)

        monkeypatch.setattr(os, "pwrite", one)
        monkeypatch.setattr(os, "pwritev", several)
        monkeypatch.setattr(os, "fdatasync", barrier)
        monkeypatch.setattr(raw, "_fallocate", punch)

    def after(self, before, cut, chance):
        """The image after the power failed at ``cut``."""
        image = bytearray(before)
        past = self.log[:cut]
        syncs = [index for index, (what, _, _) in enumerate(past) if what == "sync"]
        safe = syncs[-1] if syncs else 0
        for index, (what, offset, data) in enumerate(past):
            if what != "write":
                continue
            end = offset + len(data)
            image.extend(bytes(max(0, end - len(image))))
            at = offset
            while at < end:
                stop = min(at - at % SECTOR + SECTOR, end)
                if index < safe or chance.random() < 0.5:
                    image[at:stop] = data[at - offset : stop - offset]
                at = stop
        return bytes(image)
