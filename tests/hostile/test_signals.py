"""Signals at every moment, and what is left behind: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.threads import join
from tests.hostile.guests import ENGINES, FOREVER, kernel, need


def test_thread_whose_start_was_interrupted_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, though ``start`` raised."""
    ran: list[bool] = []

    def work() -> None:
        time.sleep(0.05)
        ran.append(True)

    thread = threading.Thread(target=work)

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(thread._started, "wait", interrupted)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        thread.start()
    assert join(thread) and ran == [True]


def test_thread_that_was_never_started_is_not_waited_for_long() -> None:
    """The exception came before it could run."""
    assert join(threading.Thread(target=print))


@pytest.mark.parametrize("engine", ENGINES)
def test_interrupted_start_leaves_nothing(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the machine's threads come up: each in turn."""
    need(engine)
    path = kernel(tmp_path, FOREVER)
    VM(path, engine=engine, memory="8M", timeout=0.05).run()
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    start = threading.Thread.start
    for fatal in range(1, 5):
        count = 0

        def interrupted(thread: threading.Thread, fatal: int = fatal) -> None:
            nonlocal count
            count += 1
            start(thread)
            if count == fatal:
                raise KeyboardInterrupt

        vm = VM(path, engine=engine, memory="8M", cpus=2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            try:
                vm.start()
            except KeyboardInterrupt:
                pass
            vm.close()
        assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.mark.soft
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_at_any_moment(tmp_path: Path, number: signal.Signals) -> None:
    """The exit status is the signal's, there are no words, and nothing is left."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    command = [sys.executable, "-m", "kvmkit", "run", "-m", "8M", str(kernel(tmp_path, FOREVER))]
    for milliseconds in range(40, 240, 8):
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        time.sleep(milliseconds / 1000)
        process.send_signal(number)
        words, _ = process.communicate(timeout=20)
        # the interpreter's own start, before any code of ours, may have been hit
        if process.returncode != -number and b"Fatal Python error" not in words:
            assert (process.returncode, words) == (128 + number, b"")
        assert not list(runtime.glob("kvmkit/*"))


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_of_a_vm_take_no_signals(tmp_path: Path, engine: str) -> None:
    """One that came in there would not wake the main thread."""
    need(engine)
    before = {int(thread) for thread in os.listdir("/proc/self/task")}  # the test runner's too
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT)
    bits = sum(1 << number - 1 for number in wanted)
    with VM(kernel(tmp_path, FOREVER), engine=engine, memory="8M", cpus=2) as vm:
        vm.start()
        time.sleep(0.1)
        threads = {int(thread) for thread in os.listdir("/proc/self/task")} - before
        assert threads
        for thread in threads:
            status = Path(f"/proc/self/task/{thread}/status").read_text()
            blocked = int(status.split("SigBlk:")[1].split()[0], 16)
            assert blocked & bits == bits


@pytest.mark.soft
def test_signals_as_timeout_sends_them(tmp_path: Path) -> None:
    """To the process, to its group, and SIGCONT after each: one wish, with cleaning up."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "kvmkit", "run", "--engine", "soft", "-m", "8M",
             str(kernel(tmp_path, FOREVER))],
            env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        limit = time.monotonic() + 10
        while not list(runtime.glob("kvmkit/*/info")) and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(0.05)
        for send in (os.kill, os.killpg):
            send(process.pid, signal.SIGTERM)
            send(process.pid, signal.SIGCONT)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert not list(runtime.glob("kvmkit/*"))
