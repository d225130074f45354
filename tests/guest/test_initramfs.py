"""The initial file system: which busybox is taken, what is in it, and its cache."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.errors import FileTrouble
from kvmkit.guest import initramfs
from kvmkit.guest.initramfs import busybox_applets, busybox_initramfs, cached_initramfs

APPLETS = ["[", "[[", "ash", "busybox", "cat", "mount", "sh", "uname"]


def fake_busybox(applets: list[str] = APPLETS, segment: int = 1, machine: int = 62) -> bytes:
    """An ELF header, one program header of type ``segment`` and a table of applets."""
    elf = bytearray(128)
    elf[:6] = b"\x7fELF\x02\x01"
    elf[18:20] = machine.to_bytes(2, "little")
    elf[32:40] = (64).to_bytes(8, "little")
    elf[56:58] = (1).to_bytes(2, "little")
    elf[64:68] = segment.to_bytes(4, "little")
    names = "\0".join(applets).encode()
    return bytes(elf) + b"rodata\0" + names + b"\0\0more"


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A file that looks like a static busybox."""
    path = tmp_path / "busybox"
    path.write_bytes(fake_busybox())
    return path


def test_applets_are_read_from_the_program() -> None:
    """The table of names is found by its first entry."""
    assert busybox_applets(fake_busybox()) == APPLETS


def test_applets_of_a_build_without_bracket() -> None:
    """A table that begins with another name is found too."""
    assert busybox_applets(fake_busybox(["ash", "mount", "sh"])) == ["ash", "mount", "sh"]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_have_applets_or_none(data: bytes) -> None:
    """No file makes the search fail."""
    assert isinstance(busybox_applets(data), list)


def test_archive_holds_busybox_links_and_init(busybox: Path) -> None:
    """What the kernel and init need is there."""
    archive = busybox_initramfs(busybox, {"opt/hello": (b"world", 0o600)})
    for name in (b"init", b"bin/busybox", b"bin/mount", b"dev/console", b"etc/fstab", b"opt/hello"):
        assert name + b"\0" in archive
    assert archive.count(b"bin/busybox\0") == 1
    assert busybox.read_bytes() in archive
    assert archive == busybox_initramfs(busybox, {"opt/hello": (b"world", 0o600)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a program for x86-64"),
        (b"#!/bin/sh\n", "expected a program for x86-64"),
        (fake_busybox(machine=183), "expected a program for x86-64"),
        (fake_busybox(segment=3), "needs shared libraries"),
        (fake_busybox(["[", "test"]), "found another program"),
        (fake_busybox()[:64], "found another program"),
    ],
)
def test_what_is_no_static_busybox_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """Found before a guest would end with "no init"; the hint says where to get one."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FileTrouble, match=message) as caught:
        busybox_initramfs(path)
    assert "busybox-static" in caught.value.hint


def test_missing_busybox_is_a_clear_error(tmp_path: Path) -> None:
    """The path is in the message, with and without the cache."""
    with pytest.raises(FileTrouble, match="nothing: No such file"):
        busybox_initramfs(tmp_path / "nothing")
    with pytest.raises(FileTrouble, match="nothing: No such file"):
        cached_initramfs(tmp_path / "nothing", tmp_path / "cache")


def test_cache_is_filled_once(
    busybox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call reads nothing but names."""
    first = cached_initramfs(busybox, tmp_path / "cache")
    monkeypatch.setattr(initramfs, "_fill", None)
    assert cached_initramfs(busybox, tmp_path / "cache") == first
    assert Path(first).read_bytes() == busybox_initramfs(busybox)


def test_cache_follows_a_changed_busybox(busybox: Path, tmp_path: Path) -> None:
    """Another program of the same size gives another archive."""
    first = cached_initramfs(busybox, tmp_path / "cache")
    busybox.write_bytes(busybox.read_bytes().replace(b"rodata", b"RODATA"))
    second = cached_initramfs(busybox, tmp_path / "cache")
    assert first != second
    assert b"RODATA" in Path(second).read_bytes()


def test_cache_replaces_what_was_removed(busybox: Path, tmp_path: Path) -> None:
    """A link to an archive that is gone does not count."""
    first = cached_initramfs(busybox, tmp_path / "cache")
    Path(first).unlink()
    assert Path(cached_initramfs(busybox, tmp_path / "cache")).exists()


def test_cache_leaves_nothing_aside(busybox: Path, tmp_path: Path) -> None:
    """One archive and one link, whatever number of processes ask at once."""
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(cached_initramfs(busybox, tmp_path / "c")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 8
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_cache_keeps_few_archives(busybox: Path, tmp_path: Path) -> None:
    """Old archives go, and the links to them."""
    program = busybox.read_bytes()
    for number in range(7):
        busybox.write_bytes(program + bytes([number]) * (number + 1))
        newest = cached_initramfs(busybox, tmp_path / "cache")
    assert Path(newest).exists()
    assert len(list((tmp_path / "cache").iterdir())) == 8


def test_cache_that_cannot_be_made_is_a_clear_error(busybox: Path, tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FileTrouble, match="cache"):
        cached_initramfs(busybox, tmp_path / "cache" / "deeper")


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_init_is_valid_shell(shell: str) -> None:
    """The script parses in every POSIX shell at hand."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = Path(initramfs.__file__).with_name("init")
    command = [shell, "sh"] if shell == "busybox" else [shell]
    subprocess.run([*command, "-n", str(script)], check=True)
