"""The cpio writer, read back by a reader written from the format's description."""

from __future__ import annotations

import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.errors import UsageError
from kvmkit.guest.cpio import Archive


@dataclass
class Member:
    """One member as the archive has it."""

    name: str
    mode: int
    links: int
    data: bytes
    device: tuple[int, int]


def read(archive: bytes) -> list[Member]:
    """All members in front of the trailer."""
    members: list[Member] = []
    position = 0
    while True:
        assert position % 4 == 0
        header = archive[position : position + 110]
        assert header[:6] == b"070701"
        number = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        name = archive[position + 110 : position + 110 + number[11]]
        assert name[-1:] == b"\0"
        start = position + 110 + number[11]
        start += -start % 4
        data = archive[start : start + number[6]]
        assert len(data) == number[6]
        if name == b"TRAILER!!!\0":
            assert start == len(archive)
            return members
        text = name[:-1].decode(errors="surrogateescape")
        members.append(Member(text, number[1], number[4], data, (number[9], number[10])))
        position = start + number[6]
        position += -position % 4


def test_all_kinds_of_members() -> None:
    """Each kind has its type in the mode, and its data or device number."""
    archive = Archive()
    archive.directory("d", 0o700)
    archive.file("f", b"hello", 0o755)
    archive.symlink("s", "f")
    archive.character_device("c", 5, 1)
    archive.block_device("b", 8, 17)
    archive.fifo("p")
    found = {member.name: member for member in read(archive.finish())}
    assert found["d"].mode == stat.S_IFDIR | 0o700
    assert (found["f"].mode, found["f"].data) == (stat.S_IFREG | 0o755, b"hello")
    assert (found["s"].mode, found["s"].data) == (stat.S_IFLNK | 0o777, b"f")
    assert (found["c"].mode, found["c"].device) == (stat.S_IFCHR | 0o600, (5, 1))
    assert (found["b"].mode, found["b"].device) == (stat.S_IFBLK | 0o600, (8, 17))
    assert found["p"].mode == stat.S_IFIFO | 0o600


def test_missing_parents_are_made_once_and_first() -> None:
    """The kernel makes no directories by itself: they must precede what is in them."""
    archive = Archive()
    archive.file("/a/b/one", b"")
    archive.file("a/b/two", b"")
    archive.directory("a")
    assert [member.name for member in read(archive.finish())] == ["a", "a/b", "a/b/one", "a/b/two"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("abcxyz0.-_ é", min_size=1), st.binary(max_size=50))))
def test_what_goes_in_comes_out(files: list[tuple[str, bytes]]) -> None:
    """Names and data of all lengths survive the padding."""
    archive = Archive()
    wanted = [(f"d/f{name}", data) for name, data in files]
    for name, data in wanted:
        archive.file(name, data)
    assert [(member.name, member.data) for member in read(archive.finish())][1:] == wanted


def test_same_calls_give_same_bytes() -> None:
    """No time, no user and no inode number of the host is in the archive."""
    first, second = Archive(), Archive()
    for archive in (first, second):
        archive.file("etc/x", b"y")
        archive.symlink("l", "etc/x")
    assert first.finish() == second.finish()


def test_archives_can_follow_each_other() -> None:
    """An archive is a multiple of 4 bytes long, so the next one is aligned."""
    archive = Archive()
    archive.file("x", b"123")
    assert len(archive.finish()) % 4 == 0


@pytest.mark.parametrize("path", ["", "/", "a//b", "..", "a/../b", "./a", "a\0b"])
def test_bad_paths_are_refused(path: str) -> None:
    """What does not name a place below the root is not for an archive."""
    with pytest.raises(UsageError, match="plain path"):
        Archive().file(path, b"")


def test_too_long_path_is_refused() -> None:
    """The kernel passes over names beyond PATH_MAX without a word."""
    with pytest.raises(UsageError, match="4095"):
        Archive().file("x" * 4096, b"")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_cpio_agrees(tmp_path: Path) -> None:
    """GNU cpio lists the same names."""
    archive = Archive()
    archive.file("usr/bin/tool", b"#!", 0o755)
    archive.symlink("bin", "usr/bin")
    done = subprocess.run(
        ["cpio", "-t", "--quiet"], input=archive.finish(), stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.decode().split() == ["usr", "usr/bin", "usr/bin/tool", "bin"]
