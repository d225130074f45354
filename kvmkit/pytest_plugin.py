"""Fixtures for tests that want a virtual machine, each test a fresh one.

    def test_mounts(vm):
        assert vm.execute("mount -t tmpfs none /mnt").returncode == 0

The guest is booted once for each way in which tests want it made
(``@pytest.mark.vm(cpus=2, memory="1G")``), saved where it takes orders, and restored
for every test. The console of a failed test's machines is in its report. Under
pytest-xdist all workers share what was booted.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

    from kvmkit.snapshot.ready import ReadyVM

    Factory = Callable[..., ReadyVM]

__all__ = ["kernel", "vm", "vm_factory"]

_REPORTED = 64 << 10
"""Bytes of a console's end that a report shows."""

_BUILT = "arch/x86/boot/bzImage"
_MACHINES = pytest.StashKey[list["ReadyVM"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--kvmkit-kernel`` and ``--kvmkit-engine``."""
    group = parser.getgroup("kvmkit", "virtual machines")
    group.addoption(
        "--kvmkit-kernel",
        action="append",
        default=[],
        metavar="PATH",
        help="kernel for the guests: a bzImage or vmlinux, a build tree, or a pattern; given"
        " several times, or for a pattern, tests run once with each",
    )
    group.addoption(
        "--kvmkit-engine",
        default="auto",
        choices=("auto", "kvm", "soft"),
        help="the CPU engine (default: auto)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker. Raises UsageError for kernels that are not there."""
    _kernels(config)
    config.addinivalue_line(
        "markers",
        "vm(cpus=1, memory='512M', cmdline='', timeout=None): how the test's virtual machine is"
        " made; the words are those of kvmkit.VM",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Once for each kernel, where several were named."""
    if "kernel" in metafunc.fixturenames:
        kernels = _kernels(metafunc.config)
        if len(kernels) > 1:
            names = [path.name.removeprefix("vmlinuz-") for path in kernels]
            metafunc.parametrize("kernel", kernels, ids=names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Path:
    """The guests' kernel: ``--kvmkit-kernel``, or what ``kvmkit run`` would boot."""
    named = getattr(request, "param", None)
    if isinstance(named, Path):
        return named
    kernels = _kernels(request.config)
    if kernels:
        return kernels[0]
    from kvmkit.cli.session import first_kernel
    from kvmkit.errors import BadKernel

    try:
        return Path(first_kernel())
    except BadKernel as error:
        pytest.skip(f"{error}: name one with --kvmkit-kernel")


@pytest.fixture
def vm_factory(
    request: pytest.FixtureRequest, kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Factory]:
    """Makes fresh virtual machines: ``vm_factory(cpus=2, memory="1G")``; ended after the test."""
    made: list[ReadyVM] = []
    request.node.stash[_MACHINES] = made
    folder = _shared_folder(tmp_path_factory)

    def make(**options: Any) -> ReadyVM:
        machine = _fresh(folder, kernel, request.config.getoption("--kvmkit-engine"), options)
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def vm(request: pytest.FixtureRequest, vm_factory: Factory) -> ReadyVM:
    """A fresh virtual machine, made as the test's ``vm`` marker says."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("vm"))):
        options |= marker.kwargs
    return vm_factory(**options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the machines of a failed test wrote, and how they ended."""
    report = yield
    if report.when == "call" and report.failed:
        for machine in item.stash.get(_MACHINES, []):
            report.sections += _sections(machine)
    return report


def _sections(machine: ReadyVM) -> Iterator[tuple[str, str]]:
    text = machine.console_log[-_REPORTED:].decode(errors="replace").replace("\r\n", "\n")
    yield f"console of {machine.name}", text
    kernel_log = machine.board.serial.kernel_log.log if machine.running else b""
    if kernel_log:
        yield f"kernel log of {machine.name}", kernel_log[-_REPORTED:].decode(errors="replace")
    if machine.ending is not None:
        yield f"end of {machine.name}", f"{machine.ending.reason}\n{machine.ending.detail}".strip()


def _kernels(config: pytest.Config) -> list[Path]:
    """The kernels named, files of build trees and patterns found. Raises UsageError."""
    found: list[Path] = []
    for name in config.getoption("--kvmkit-kernel"):
        path = Path(name)
        if path.is_dir() and (path / _BUILT).is_file():
            found.append(path / _BUILT)
        elif path.is_file():
            found.append(path)
        else:
            from glob import glob

            matching = sorted(Path(each) for each in glob(name, recursive=True))
            if not any(each.is_file() for each in matching):
                raise pytest.UsageError(f"--kvmkit-kernel: no kernel at {name}")
            found += [each for each in matching if each.is_file()]
    return [path.absolute() for path in found]


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a session."""
    base = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder = base / "kvmkit-ready"
    folder.mkdir(exist_ok=True)
    return folder


def _fresh(folder: Path, kernel: Path, engine: str, options: dict[str, Any]) -> ReadyVM:
    """Restored from the snapshot of such a machine, which is booted and saved if there is none."""
    from fcntl import LOCK_EX, flock
    from hashlib import sha256

    from kvmkit.snapshot.ready import boot, restored

    timeout = options.pop("timeout", None)
    status = kernel.stat()
    key = repr((str(kernel), status.st_mtime_ns, status.st_size, engine, sorted(options.items())))
    place = folder / sha256(key.encode()).hexdigest()[:16]
    place.mkdir(exist_ok=True)
    with open(place / "lock", "w") as lock:
        flock(lock, LOCK_EX)
        if not (place / "snapshot").is_dir():
            with boot(kernel, str(place), engine=engine, **options) as first:
                first.snapshot(place / "snapshot")
    return restored(place / "snapshot", timeout=timeout)
