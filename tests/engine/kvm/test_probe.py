"""Whether this host's KVM runs ring 0 on the CPU, and how that is told."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kvmkit.engine.kvm import probe as probing
from kvmkit.engine.kvm.kvm import System
from kvmkit.engine.kvm.probe import measure, probe
from kvmkit.errors import PermissionTrouble
from tests.engine.kvm.guest import needs_kvm


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kvmkit" / "kvm-probe"


def test_missing_kvm_is_a_verdict_not_an_error(own_cache: Path) -> None:
    """No device: not usable, why, and what to do; nothing is remembered."""
    verdict = probe("/dev/no-such-kvm")
    assert (verdict.usable, verdict.native) == (False, False)
    assert "missing" in verdict.why
    assert verdict.mend
    assert not own_cache.exists()


def test_forbidden_kvm_is_a_verdict_with_the_command(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permission that lacks is told with the command, and not remembered."""

    def refuse(device: str) -> bool:
        raise PermissionTrouble("/dev/kvm exists but may not be opened", "sudo do-it")

    monkeypatch.setattr(probing, "measure", refuse)
    verdict = probe("/dev/null")
    assert not verdict.usable
    assert verdict.mend == "sudo do-it"
    assert not own_cache.exists()


def test_kvm_that_cannot_run_a_loop_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens, and then fails: said in words."""

    def fail(device: str) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(probing, "measure", fail)
    assert "cannot run a guest" in probe("/dev/null", cache=False).why


@pytest.mark.parametrize("native", [True, False])
def test_verdict_is_remembered_for_this_boot(
    native: bool, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time no VM is made; another kernel's memory does not count."""
    monkeypatch.setattr(probing, "measure", lambda device: native)
    first = probe("/dev/null")
    monkeypatch.setattr(probing, "measure", lambda device: not native)
    assert probe("/dev/null") == first
    assert first.native == native
    assert bool(first.mend) != native
    own_cache.write_text("1 another-kernel\nnative\n")
    assert probe("/dev/null").native != native


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n\n", b"one line"])
def test_broken_memory_is_ignored(
    content: bytes, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache file that is not ours is measured over."""
    monkeypatch.setattr(probing, "measure", lambda device: True)
    own_cache.parent.mkdir()
    own_cache.write_bytes(content)
    assert probe("/dev/null").native


def test_cache_that_cannot_be_written_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file where the folder should be."""
    (tmp_path / "kvmkit").write_text("")
    monkeypatch.setattr(probing, "measure", lambda device: True)
    assert probe("/dev/null").native


@pytest.mark.kvm
@needs_kvm[1]
def test_measuring_agrees_with_the_clock() -> None:
    """The counter's verdict is what the speed of a long loop says."""
    from kvmkit.engine.kvm import abi
    from tests.engine.kvm.guest import HLT, guest, mov

    turns = 20000
    with guest(mov("ecx", turns) + b"\xff\xc9\x75\xfc" + HLT) as g:
        start = time.perf_counter()
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        rate = turns / (time.perf_counter() - start)
    assert measure() == (rate > 50e6)


@pytest.mark.kvm
@needs_kvm[1]
def test_probe_on_this_host(own_cache: Path) -> None:
    """It is usable, in a few milliseconds, and leaves nothing open."""
    before = set(os.listdir("/proc/self/fd"))
    probe()
    best = min(_timed() for _ in range(3))
    assert probe().usable
    assert own_cache.exists()
    assert best < 0.05
    assert set(os.listdir("/proc/self/fd")) == before
    with System() as system:
        assert system.api_version() == 12


def _timed() -> float:
    start = time.perf_counter()
    measure()
    return time.perf_counter() - start
