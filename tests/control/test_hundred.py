"""A hundred VMs at once, and VMs that die at any moment: nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.command import kvmkit
from tests.control.machines import eventually, name_of, own_vms, spawn

pytestmark = pytest.mark.slow

COUNT = 100
DEATHS = 50


def test_a_hundred_vms(runtime: Path, polite: Path, engine: str) -> None:
    """Started, listed in 0.3 s, paused, resumed, stopped; no file and no process stays."""
    descriptors = sorted(os.listdir("/proc/self/fd"))
    processes = []
    for first in range(0, COUNT, 10):
        batch = [
            spawn(polite, engine, f"vm{n}", *(["paused"] if n % 10 else []), memory="32M")
            for n in range(first, first + 10)
        ]
        for process in batch:
            name_of(process)
        processes += batch

    assert kvmkit("list", "--names").returncode == 0
    times = []
    for _ in range(3):
        begin = time.monotonic()
        listed = kvmkit("list")
        times.append(time.monotonic() - begin)
    states = [vm.state for vm in own_vms(runtime)]
    paused = kvmkit("pause", "--all")
    all_paused = {vm.state for vm in own_vms(runtime)}
    resumed = kvmkit("resume", "--all")
    all_running = {vm.state for vm in own_vms(runtime)}
    stopped = kvmkit("stop", "--all")
    codes = {process.wait(20) for process in processes}
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()

    assert len(listed.stdout.splitlines()) >= COUNT + 1
    assert (states.count("paused"), states.count("running")) == (90, 10)
    assert min(times) < 0.3, times
    assert (paused.returncode, resumed.returncode, stopped.returncode) == (0, 0, 0), stopped.stderr
    assert (all_paused, all_running, codes) == ({"paused"}, {"running"}, {0})
    assert os.listdir(runtime / "kvmkit") == []
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_death_at_any_moment(runtime: Path, polite: Path, engine: str) -> None:
    """kill -9, fifty times, from before the start to after it: the next list is right."""
    survivor = spawn(polite, engine, "survivor")
    name_of(survivor)
    moments = random.Random(4)
    seen = 0
    for number in range(DEATHS):
        process = spawn(polite, engine, f"victim{number % 3}")
        begin = time.monotonic()
        delay = moments.uniform(0.0, 0.4)
        while time.monotonic() - begin < delay:
            seen += any(vm.name.startswith("victim") for vm in own_vms(runtime))
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

        names = [vm.name for vm in own_vms(runtime)]
        left = os.listdir(runtime / "kvmkit")

        assert (names, left) == (["survivor"], ["survivor"])
    assert seen  # some were alive when they were killed
    assert kvmkit("kill", "survivor").returncode == 0
    assert survivor.wait(10) == 0
    assert survivor.stdout is not None
    survivor.stdout.close()
    assert os.listdir(runtime / "kvmkit") == []


def test_kill_ends_a_vm_that_does_not_answer(runtime: Path, polite: Path, engine: str) -> None:
    """Stopped by SIGSTOP, it is listed all the same, and ends by SIGKILL."""
    process = spawn(polite, engine, "stuck")
    name_of(process)
    process.send_signal(signal.SIGSTOP)

    refused = kvmkit("pause", "stuck")
    listed = [vm.name for vm in own_vms(runtime)]
    killed = kvmkit("kill", "stuck")

    assert refused.returncode == 1 and "does not answer" in refused.stderr
    assert listed == ["stuck"]
    assert (killed.returncode, killed.stderr) == (0, "")
    assert process.wait(5) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    assert os.listdir(runtime / "kvmkit") == []


def test_stop_of_a_paused_and_of_a_deaf_guest(
    runtime: Path, polite: Path, engine: str, tmp_path: Path
) -> None:
    """A paused guest hears the button when it runs on; one that does not listen needs --force."""
    from tests.cli.tiny_kernel import HANG
    from tests.control.machines import write_kernel

    deaf = write_kernel(tmp_path / "deaf", HANG)
    first = spawn(polite, engine, "first")
    second = spawn(deaf, engine, "second")
    for process in (first, second):
        name_of(process)
    eventually(lambda: kvmkit("log", "first").stdout == "up\n")
    kvmkit("pause", "first")

    polite_way = kvmkit("stop", "--all")
    by_force = kvmkit("stop", "--force", "second")

    assert polite_way.returncode == 1
    assert "second: the guest does not listen to the power button" in polite_way.stderr
    assert by_force.returncode == 0
    assert [p.wait(5) for p in (first, second)] == [0, 0]
    for process in (first, second):
        assert process.stdout is not None
        process.stdout.close()


def test_names_are_unique_among_many_starting(runtime: Path, polite: Path, engine: str) -> None:
    """Eight processes want one name at the same time: one gets it, the others hear who has it."""
    processes = [spawn(polite, engine, "wanted") for _ in range(8)]
    vms = eventually(lambda: own_vms(runtime))
    assert isinstance(vms, list)
    losers = [p for p in processes if p.pid != vms[0].pid]
    texts = [p.communicate(timeout=20)[0] for p in losers]
    (winner,) = [p for p in processes if p.pid == vms[0].pid]
    name = name_of(winner)
    kvmkit("kill", "wanted")
    winner.communicate(timeout=10)

    assert name == "wanted" and len(losers) == 7
    for text in texts:
        assert "NameTaken: a VM named 'wanted' is running" in text
    assert isinstance(winner, subprocess.Popen)
