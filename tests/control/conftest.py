"""A directory for VMs of each test's own, and a guest to start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.errors import KvmkitError
from kvmkit.vm import make_engine
from tests.control.machines import write_kernel


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An XDG_RUNTIME_DIR nobody else uses."""
    path = tmp_path_factory.mktemp("run")
    path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture(scope="session")
def polite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that sleeps until the power button is pressed."""
    return write_kernel(tmp_path_factory.mktemp("guest") / "polite")


@pytest.fixture(scope="session")
def engine() -> str:
    """An engine that works here; KVMKIT_TEST_ENGINE chooses."""
    for name in os.environ.get("KVMKIT_TEST_ENGINE", "kvm,soft").split(","):
        try:
            make_engine(name, 1).close()
        except KvmkitError:
            continue
        return name
    pytest.skip("no engine works here")


@pytest.fixture
def start(polite: Path, engine: str) -> Iterator[Callable[..., VM]]:
    """Starts VMs in this process, and closes them."""
    vms: list[VM] = []

    def start(name: str | None = None, **more: object) -> VM:
        options = {"memory": "32M", "engine": engine, "hang_timeout": None, **more}
        vms.append(VM(polite, name=name, **options))  # type: ignore[arg-type]
        vms[-1].start()
        return vms[-1]

    yield start
    for vm in vms:
        vm.close()
