"""What all tests may use: kernels and busybox to boot, and where to find them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kvmkit.images import list_images

# A shell that starts us in the background lets us, and all we start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with its reason, what this machine cannot run."""
    if item.get_closest_marker("soft"):
        pytest.importorskip("kvmkit.engine.soft._core", reason="the software CPU is not built")
    if item.get_closest_marker("kvm") and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/kvm")


def _named(variable: str) -> dict[str, Path]:
    """The kernels of a colon-separated environment variable: files, or folders with them."""
    paths: list[Path] = []
    for place in filter(None, os.environ.get(variable, "").split(":")):
        path = Path(place)
        paths += sorted(path.glob("**/vmlinuz-*")) if path.is_dir() else [path]
    return {path.name.removeprefix("vmlinuz-"): path for path in paths if path.is_file()}


@pytest.fixture(scope="session")
def kernels() -> dict[str, Path]:
    """Kernel images by release (``6.1.0-50-cloud-amd64``).

    From KVMKIT_TEST_KERNELS (files or folders, colon-separated), else the
    pulled images. Skips when there is none.
    """
    found = _named("KVMKIT_TEST_KERNELS") or {
        image.release: Path(image.kernel) for image in list_images() if image.kernel
    }
    if not found:
        pytest.skip("no kernel: kvmkit image pull linux-image-cloud-amd64")
    return found


@pytest.fixture(scope="session")
def kernel(kernels: dict[str, Path]) -> Path:
    """The kernel for tests that need only one: a cloud kernel if there is one."""
    release = min(kernels, key=lambda release: ("cloud" not in release, release))
    return kernels[release]


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A static busybox: KVMKIT_TEST_BUSYBOX, the pulled one, or the host's. Skips without one."""
    named = os.environ.get("KVMKIT_TEST_BUSYBOX")
    pulled = [Path(image.busybox) for image in list_images() if image.busybox]
    for path in [Path(named)] if named else [*pulled, Path("/bin/busybox")]:
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
