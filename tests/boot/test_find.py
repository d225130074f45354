"""The search for a kernel nobody named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmkit.boot.find import candidates, find_kernel
from kvmkit.errors import BadKernel

RELEASE = os.uname().release


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"k")
    return path


def test_candidates_are_kvmtools_with_the_pulled_between(tmp_path: Path) -> None:
    """The order: the tree, what was pulled, the host's."""
    pulled = tmp_path / "pulled"

    found = list(candidates([pulled], tree=tmp_path, boot=Path("/boot")))

    assert found == [
        f"{tmp_path}/arch/x86/boot/bzImage",
        f"{tmp_path}/bzImage",
        str(pulled),
        f"/boot/vmlinuz-{RELEASE}",
        f"/boot/bzImage-{RELEASE}",
    ]


def test_find_takes_the_first_there_is(tmp_path: Path) -> None:
    """A kernel just built wins over a pulled one, that over the host's."""
    host = _touch(tmp_path / "boot" / f"vmlinuz-{RELEASE}")
    assert find_kernel(tree=tmp_path, boot=tmp_path / "boot") == str(host)

    pulled = _touch(tmp_path / "pulled")
    assert find_kernel([pulled], tree=tmp_path, boot=tmp_path / "boot") == str(pulled)

    built = _touch(tmp_path / "arch/x86/boot/bzImage")
    assert find_kernel([pulled], tree=tmp_path, boot=tmp_path / "boot") == str(built)


def test_find_says_where_it_looked(tmp_path: Path) -> None:
    """The error lists every place and says how to get a kernel."""
    with pytest.raises(BadKernel) as caught:
        find_kernel([tmp_path / "pulled"], tree=tmp_path, boot=tmp_path / "boot")

    for path in candidates([tmp_path / "pulled"], tree=tmp_path, boot=tmp_path / "boot"):
        assert path in str(caught.value)
    assert "image pull" in caught.value.hint


def test_find_passes_over_directories(tmp_path: Path) -> None:
    """A directory of that name is no kernel."""
    (tmp_path / "bzImage").mkdir()

    with pytest.raises(BadKernel):
        find_kernel(tree=tmp_path, boot=tmp_path / "boot")


def test_find_names_a_kernel_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/boot/vmlinuz is often root's alone: the hint says what to do."""
    host = _touch(tmp_path / "boot" / f"vmlinuz-{RELEASE}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(BadKernel, match="not readable by you") as caught:
        find_kernel(tree=tmp_path, boot=tmp_path / "boot")

    assert str(host) in caught.value.hint
