"""The commands on running VMs, as a user types them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmkit import VM
from tests.cli.command import environment, kvmkit
from tests.control.machines import eventually

Start = Callable[..., VM]


@pytest.fixture
def vm(start: Start) -> VM:
    vm = start("box")
    eventually(lambda: vm.console_log == b"up\n")
    return vm


def test_list(vm: VM, engine: str, runtime: Path) -> None:
    """A line per VM; --json with numbers; --names for shells."""
    lines = kvmkit("list").stdout.splitlines()
    found = [each for each in json.loads(kvmkit("list", "--json").stdout)
             if each["path"].startswith(str(runtime))]  # fmt: skip

    assert lines[0].split() == [
        "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "CPU", "UPTIME", "PID", "KERNEL",
    ]  # fmt: skip
    (line,) = [line for line in lines if line.startswith("box ")]
    assert line.split()[1:4] == ["running", engine, "1"] and line.endswith("polite")
    assert [(each["name"], each["pid"], each["memory"]) for each in found] == [
        ("box", os.getpid(), 32 << 20)
    ]
    assert 0 < found[0]["memory_used"] < 32 << 20 and found[0]["uptime"] > 0
    assert "box" in kvmkit("list", "--names").stdout.splitlines()


def test_list_watch(vm: VM) -> None:
    """Again and again until it is interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmkit", "list", "--watch", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    titles = 0
    for line in process.stdout:
        titles += line.startswith("NAME")
        if titles == 3:
            break
    process.send_signal(2)
    process.stdout.read()

    assert process.wait(5) == 0
    process.stdout.close()


def test_pause_resume_reset_rename(vm: VM) -> None:
    """One word each, silent when it worked."""
    states = []
    for words in (["pause", "box"], ["resume", "-n", "box"], ["pause", "--all"], ["resume", "-a"]):
        result = kvmkit(*words)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        states.append(vm.paused)
    kvmkit("reset", "box")
    eventually(lambda: vm.console_log == b"up\nup\n")
    renamed = kvmkit("rename", "box", "other")

    assert states == [True, False, True, False]
    assert renamed.returncode == 0 and vm.name == "other"


def test_log_stat_debug(vm: VM) -> None:
    """Without a name when there is only one; what they show."""
    log = kvmkit("log", "box")
    stat = kvmkit("stat", "box")
    numbers = json.loads(kvmkit("stat", "box", "--json").stdout)
    debug = kvmkit("debug", "box")
    cpus = json.loads(kvmkit("debug", "box", "--json").stdout)
    sysrq = kvmkit("debug", "box", "--sysrq", "t")

    assert log.stdout == "up\n"
    assert "serial console bytes" in stat.stdout and "memory in use" in stat.stdout
    assert numbers["serial"][0] == {"name": "console", "sent": 3}
    assert "CPU 0: 32-bit" in debug.stdout and "stack:" in debug.stdout
    assert int(cpus[0]["registers"]["rip"], 16) >> 12 == 0x1000
    assert sysrq.returncode == 1 and "nobody listens" in sysrq.stderr


def test_stop_and_kill(vm: VM, start: Start) -> None:
    """The power button, and the plug; both wait until it is over."""
    other = start("second")

    stopped = kvmkit("stop", "box")
    ending = vm.ending
    killed = kvmkit("kill", "second")

    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert ending is not None and ending.kind.name == "POWERED_OFF"
    assert killed.returncode == 0 and other.ending is not None


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["pause"], 2, "expected a name or --all"),
        (["pause", "bax"], 116, "no VM named 'bax' is running\n  hint: did you mean 'box'?"),
        (["stop", "a/b"], 2, "no VM has a name like 'a/b'"),
        (["pause", "box", "--all"], 2, "either --all or names"),
        (["rename", "box"], 2, "expected the VM's name and the new one"),
        (["rename", "box", "-x"], 2, "unknown option"),
        (["rename", "box", "a b"], 2, "letters, digits"),
        (["rename", "box", "taken"], 1, "a VM named 'taken' is running"),
        (["log", "box", "taken"], 2, "expected one VM, found 2"),
        (["log", "--follow", "--kernel", "box"], 2, "--follow"),
        (["debug", "box", "--sysrq", "tt"], 2, "one letter or digit"),
        (["stop", "--timeout", "-1", "box"], 2, "--timeout expects"),
    ],
)
def test_mistakes(vm: VM, start: Start, words: list[str], code: int, text: str) -> None:
    """Each is one clear line, and the VM runs on."""
    start("taken")

    result = kvmkit(*words)

    assert result.returncode == code and text in result.stderr
    assert vm.running


def test_a_name_in_use(vm: VM, polite: Path, engine: str) -> None:
    """kvmkit run refuses it, and says who has it."""
    result = kvmkit("run", "-k", polite, "--engine", engine, "--name", "box", "--console", "none")

    assert result.returncode == 2
    assert f"a VM named 'box' is running (process {os.getpid()})" in result.stderr


def test_console_of_a_pipe(vm: VM) -> None:
    """Shows what there is and what comes; ends with the VM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmkit", "console", "box"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    first = process.stdout.read(3)
    vm.reset()
    second = process.stdout.read(3)
    vm.close()

    assert (first, second, process.stdout.read()) == (b"up\n", b"up\n", b"")
    assert process.wait(5) == 0
    process.stdout.close()


def test_console_of_a_terminal(vm: VM) -> None:
    """Keys go to the guest; Ctrl-a d detaches, and the VM runs on."""
    typed: list[bytes] = []
    vm.board.serial.input.feed = typed.append  # type: ignore[method-assign]
    child, terminal = pty.fork()
    if not child:
        os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
        os.execv(sys.executable, [sys.executable, "-m", "kvmkit", "console", "box"])
    shown = b""
    while b"up\r\n" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"ls\r\x01a")
    eventually(lambda: b"".join(typed) == b"ls\r\x01")
    os.write(terminal, b"\x01d")
    try:
        while True:
            shown += os.read(terminal, 4096)
    except OSError:  # EIO: the other end is closed
        pass
    os.close(terminal)
    _, status = os.waitpid(child, 0)

    assert b"attached to box" in shown and b"detached from box" in shown
    assert status == 0 and vm.running


@pytest.mark.parametrize("words", [["list"], ["--help"]])
def test_start_up_time(words: list[str]) -> None:
    """Under 1.5 times a bare Python plus 30 ms, taking the best of several."""

    def best(command: list[str]) -> float:
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(), check=True)
            times.append(time.perf_counter() - begin)
        return min(times)

    limit = 1.5 * best([sys.executable, "-c", "pass"]) + 0.030

    assert best([sys.executable, "-m", "kvmkit", *words]) < limit


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_complete(shell: str) -> None:
    """The script asks for the names of running VMs."""
    script = kvmkit("completion", shell).stdout

    assert "kvmkit list --names" in script


def test_names_complete_in_bash(vm: VM, tmp_path: Path) -> None:
    """Sourced and asked as bash asks it."""
    command = tmp_path / "kvmkit"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m kvmkit "$@"\n')
    command.chmod(0o755)
    script = (
        "source <(kvmkit completion bash); COMP_WORDS=(kvmkit pause b); COMP_CWORD=2; "
        '_kvmkit; echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env=environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
    )

    assert "box" in result.stdout.split(), result.stderr
