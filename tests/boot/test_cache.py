"""The cache of unpacked kernels: hits, never stale ones, damage, bounds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvmkit.boot import cache
from kvmkit.boot.cache import Unpacked, fetch
from kvmkit.errors import BadKernel
from tests.boot.kernel_images import PACKERS, elf64

KERNEL = elf64() + bytes(300_000) + b"tail" * 50_000
OTHER = elf64() + bytes(300_000) + b"lait" * 50_000
YEAR_2020 = 1_577_836_800 * 10**9


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often something was really unpacked."""
    calls: list[int] = []
    real = cache._unpack

    def counting(payload: memoryview) -> Unpacked:
        calls.append(len(payload))
        return real(payload)

    monkeypatch.setattr(cache, "_unpack", counting)
    return calls


def _status(path: Path, changed: int = YEAR_2020, kind: int = stat.S_IFREG) -> os.stat_result:
    # The change time cannot be set; what a file's status would be long after its last change can.
    fields = list(path.stat())
    fields[0] = kind | 0o600
    times = {"st_mtime_ns": changed, "st_ctime_ns": changed, "st_atime_ns": changed}
    return os.stat_result(fields, times)


def _payload(path: Path, kernel: bytes = KERNEL) -> memoryview:
    data = PACKERS["gzip"](kernel)
    path.write_bytes(data)
    return memoryview(data)


def test_fetch_unpacks_once(tmp_path: Path, unpacked: list[int]) -> None:
    """The second time, the file's identity leads to the entry without a hash."""
    payload = _payload(tmp_path / "k")
    status = _status(tmp_path / "k")

    first, _ = fetch(payload, status, tmp_path / "c")
    second, _ = fetch(payload, status, tmp_path / "c")

    assert bytes(first) == bytes(second) == KERNEL
    assert len(unpacked) == 1
    assert len(list((tmp_path / "c").glob("*.of"))) == 1


def test_fetch_finds_a_copy_by_its_content(tmp_path: Path, unpacked: list[int]) -> None:
    """Another file with the same payload shares the entry."""
    payload = _payload(tmp_path / "k")
    _payload(tmp_path / "copy")

    fetch(payload, _status(tmp_path / "k"), tmp_path / "c")
    fetch(payload, _status(tmp_path / "copy"), tmp_path / "c")

    assert len(unpacked) == 1
    assert len(list((tmp_path / "c").glob("*.elf"))) == 1


def test_fetch_sees_changed_content_behind_the_same_status(tmp_path: Path) -> None:
    """Even if size and all times are the same, other content is another kernel."""
    path = tmp_path / "k"
    first = _payload(path)
    status = _status(path)
    fetch(first, status, tmp_path / "c")

    found, _ = fetch(_payload(path, OTHER), status, tmp_path / "c")

    assert bytes(found) == OTHER


@pytest.mark.parametrize("packer", ["gzip", "xz"])
def test_samples_see_a_byte_that_changed(packer: str) -> None:
    """Wherever one byte of a kernel is another, the packed one's samples are others."""
    kernel = bytearray(elf64() + os.urandom(1 << 20))
    before = bytes(cache._samples(memoryview(PACKERS[packer](bytes(kernel)))))
    for place in (5000, 1 << 19, len(kernel) - 1):
        kernel[place] ^= 1
        assert bytes(cache._samples(memoryview(PACKERS[packer](bytes(kernel))))) != before
        kernel[place] ^= 1


def test_fetch_does_not_trust_a_recent_change(tmp_path: Path, unpacked: list[int]) -> None:
    """A file changed just now could change again within its clock's tick: no link by identity."""
    payload = _payload(tmp_path / "k")

    fetch(payload, (tmp_path / "k").stat(), tmp_path / "c")
    fetch(payload, (tmp_path / "k").stat(), tmp_path / "c")

    assert not list((tmp_path / "c").glob("*.of"))
    assert len(unpacked) == 1


def test_fetch_gives_the_parts_that_are_not_zero(tmp_path: Path) -> None:
    """Cached or not, the extents cover every byte that is not zero."""
    payload = _payload(tmp_path / "k")

    for directory in (None, tmp_path / "c", tmp_path / "c"):
        data, extents = fetch(payload, _status(tmp_path / "k"), directory)
        rebuilt = bytearray(len(data))
        for start, size in extents:
            rebuilt[start : start + size] = data[start : start + size]
        assert bytes(rebuilt) == KERNEL
        assert sum(size for _, size in extents) < len(KERNEL) - 190_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"XXXX" + data[4:],
        lambda data: data[:100] + b"!" + data[101:],
        lambda data: data[:-40] + b"\xff" + data[-39:],
        lambda data: bytes(len(data)),
    ],
)
def test_fetch_makes_a_damaged_entry_again(
    tmp_path: Path, unpacked: list[int], damage: object
) -> None:
    """A cut, grown or overwritten entry is noticed and replaced."""
    assert callable(damage)
    payload = _payload(tmp_path / "k")
    status = _status(tmp_path / "k")
    fetch(payload, status, tmp_path / "c")
    (entry,) = (tmp_path / "c").glob("*.elf")
    aside = tmp_path / "damaged"
    aside.write_bytes(damage(entry.read_bytes()))
    aside.rename(entry)

    data, _ = fetch(payload, status, tmp_path / "c")
    again, _ = fetch(payload, status, tmp_path / "c")

    assert bytes(data) == bytes(again) == KERNEL
    assert len(unpacked) == 2


def test_fetch_does_without_a_cache_it_cannot_write(tmp_path: Path) -> None:
    """A file where the directory should be: the kernel is unpacked all the same."""
    (tmp_path / "c").write_text("in the way")
    payload = _payload(tmp_path / "k")

    data, _ = fetch(payload, _status(tmp_path / "k"), tmp_path / "c")

    assert bytes(data) == KERNEL


def test_fetch_keeps_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old entries go, with the links to them; files of dead writers too, files aside stay."""
    monkeypatch.setattr(cache, "KEEP", 3)
    for index in range(6):
        payload = _payload(tmp_path / "k", KERNEL + bytes([index + 1]))
        fetch(payload, _status(tmp_path / "k", YEAR_2020 + index), tmp_path / "c")
        for path in (tmp_path / "c").glob("*.elf"):
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    (tmp_path / "c" / "dead.elf.1.new").touch()
    os.utime(tmp_path / "c" / "dead.elf.1.new", (0, 0))
    (tmp_path / "c" / "busy.elf.2.new").touch()

    fetch(_payload(tmp_path / "k"), _status(tmp_path / "k"), tmp_path / "c")

    assert len(list((tmp_path / "c").glob("*.elf"))) == 3
    assert len(list((tmp_path / "c").glob("*.of"))) == 3
    assert [path.name for path in (tmp_path / "c").glob("*.new")] == ["busy.elf.2.new"]


def test_fetch_keeps_what_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entry, used since, outlives a newer one that was not."""
    monkeypatch.setattr(cache, "KEEP", 2)
    directory = tmp_path / "c"
    payload = _payload(tmp_path / "k")
    status = _status(tmp_path / "k")
    fetch(payload, status, directory)
    (used,) = directory.glob("*.elf")
    os.utime(used, (1000, 1000))
    fetch(_payload(tmp_path / "l", OTHER), _status(tmp_path / "l"), directory)
    (unused,) = set(directory.glob("*.elf")) - {used}
    os.utime(unused, (2000, 2000))

    fetch(payload, status, directory)
    fetch(_payload(tmp_path / "m", OTHER + b"m"), _status(tmp_path / "m"), directory)

    assert used.exists()
    assert not unused.exists()


def test_fetch_gives_a_pipe_no_identity(tmp_path: Path) -> None:
    """What came through a pipe is found by its content only."""
    payload = _payload(tmp_path / "k")

    fetch(payload, _status(tmp_path / "k", kind=stat.S_IFIFO), tmp_path / "c")

    assert not list((tmp_path / "c").glob("*.of"))


def test_fetch_makes_a_private_directory_and_leaves_nothing_aside(tmp_path: Path) -> None:
    """The cache is the user's own; no temporary file stays."""
    fetch(_payload(tmp_path / "k"), _status(tmp_path / "k"), tmp_path / "deep" / "c")

    assert stat.S_IMODE((tmp_path / "deep" / "c").stat().st_mode) == 0o700
    assert not list((tmp_path / "deep" / "c").glob("*.new"))


def test_fetch_stores_nothing_for_a_damaged_payload(tmp_path: Path) -> None:
    """An error leaves the cache as it was."""
    payload = bytearray(_payload(tmp_path / "k"))
    payload[len(payload) // 2] ^= 0xFF

    with pytest.raises(BadKernel):
        fetch(memoryview(payload), _status(tmp_path / "k"), tmp_path / "c")

    assert not (tmp_path / "c").exists()
