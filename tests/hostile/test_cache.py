"""Caches that others can write to, or nobody, and two of us at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmkit.cache_home import cache_home, is_ours, own_cache
from kvmkit.cli.session import Stage
from kvmkit.engine.kvm import probe as probing
from kvmkit.errors import FileTrouble
from kvmkit.images import default_image, images_directory, pull
from kvmkit.vm import cache_directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``kvmkit`` in a cache of the test's own; not made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kvmkit"


def test_cache_that_is_not_there_yet_is_ours(cache: Path) -> None:
    """Whoever makes it owns it."""
    assert own_cache("kernels") == cache_directory() == str(cache / "kernels")


def test_relative_path_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG specification asks; nothing is made where the user happens to be."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == str(tmp_path / ".cache" / "kvmkit")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no directory called ``~``."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert default_image() is None
    with pytest.raises(FileTrouble):
        pull("busybox-static")


def strangers_cache(cache: Path) -> None:
    """Somebody else was here first."""
    (cache / "images" / "linux-image-cloud-amd64").mkdir(parents=True)
    (cache / "images" / "linux-image-cloud-amd64" / "vmlinuz").write_bytes(b"evil")
    (cache / "images" / "linux-image-cloud-amd64" / "about").write_text("Release: 6\n")


def test_directory_that_anybody_can_write_to_does_not_count(cache: Path) -> None:
    """No kernel is taken from it, and nothing is written there."""
    strangers_cache(cache)
    cache.chmod(0o777)
    assert not is_ours(str(cache))
    assert cache_directory() is None
    for use in (images_directory, default_image, lambda: pull("busybox-static")):
        with pytest.raises(FileTrouble, match="others can write to it"):
            use()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_does_not_count(cache: Path) -> None:
    """Neither itself nor through a link of his."""
    strangers_cache(cache)
    os.chown(cache, 65534, 65534)
    assert cache_directory() is None
    home = cache.with_name("mine")
    home.mkdir()
    os.chown(cache, 0, 0)
    link = cache.with_name("linked")
    link.symlink_to(home)
    os.lchown(link, 65534, 65534)
    assert is_ours(str(cache)) and is_ours(str(home)) and not is_ours(str(link))


def test_probe_writes_through_no_link(cache: Path, tmp_path: Path) -> None:
    """Its scratch file has a name that can be foretold."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    cache.mkdir()
    (cache / f"kvm-probe.{os.getpid()}").symlink_to(victim)
    cache.chmod(0o777)
    probing._remember("key", True)
    assert victim.read_text() == "mine"
    assert not (cache / "kvm-probe").exists()


def test_initramfs_without_a_cache(busybox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written costs time, not the boot."""
    from kvmkit.guest.initramfs import busybox_initramfs

    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    stage = Stage.__new__(Stage)
    stage._files = []
    with stage:
        path = stage._initramfs(str(busybox))
        assert Path(path).read_bytes() == busybox_initramfs(busybox)
