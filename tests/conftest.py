"""What all tests may use: kernels and busybox to boot, and where to find them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kvmkit"


def _named(variable: str) -> list[Path]:
    """The files of a colon-separated environment variable; a folder stands for the files in it."""
    found: list[Path] = []
    for place in filter(None, os.environ.get(variable, "").split(":")):
        path = Path(place)
        found += sorted(path.glob("**/vmlinuz-*")) if path.is_dir() else [path]
    return found


@pytest.fixture(scope="session")
def kernels() -> dict[str, Path]:
    """Kernel images by release (``6.1.0-50-cloud-amd64``).

    From KVMKIT_TEST_KERNELS (files or folders, colon-separated), else the
    pulled images in the cache. Skips when there is none.
    """
    paths = _named("KVMKIT_TEST_KERNELS") or sorted(_cache().glob("images/**/vmlinuz-*"))
    found = {path.name.removeprefix("vmlinuz-"): path for path in paths if path.is_file()}
    if not found:
        pytest.skip("no kernel: kvmkit image pull linux-image-cloud-amd64")
    return found


@pytest.fixture(scope="session")
def kernel(kernels: dict[str, Path]) -> Path:
    """The kernel for tests that need only one: the smallest, a cloud kernel if there is one."""
    return min(kernels.values(), key=lambda path: ("cloud" not in path.name, path.name))


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A static busybox, from KVMKIT_TEST_BUSYBOX, the cache, or the host. Skips without one."""
    named = os.environ.get("KVMKIT_TEST_BUSYBOX")
    places = [Path(named)] if named else sorted(_cache().glob("images/**/bin/busybox"))
    for path in [*places, Path("/bin/busybox")]:
        if path.is_file() and _is_static(path):
            return path
    pytest.skip("no static busybox: kvmkit image pull busybox-static")


def _is_static(path: Path) -> bool:
    """No PT_INTERP segment: it needs no dynamic linker (ELF gABI, program header)."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return False
    table = int.from_bytes(data[32:40], "little")
    size = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    kinds = [data[table + i * size : table + i * size + 4] for i in range(count)]
    return (3).to_bytes(4, "little") not in kinds
