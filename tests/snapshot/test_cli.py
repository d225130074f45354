"""``kvmkit snapshot`` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmkit import VM
from tests.cli.command import environment, kvmkit
from tests.snapshot.test_engines import follows, need, wait
from tests.snapshot.tiny_guest import tiny_kernel

pytestmark = pytest.mark.soft


@pytest.fixture
def saved(tmp_path):
    """A snapshot of the tiny guest on the software CPU."""
    need("soft")
    out = bytearray()
    with VM(tiny_kernel(tmp_path), memory="2M", engine="soft", name="tiny",
            console=out.extend) as vm:  # fmt: skip
        vm.start()
        wait(vm, out, 3)
        vm.snapshot(tmp_path / "snap")
    return tmp_path / "snap"


def test_info_says_what_it_is_of(saved):
    """In words, and for programs."""
    done = kvmkit("snapshot", "info", saved)
    assert done.returncode == 0
    assert "engine      soft\n" in done.stdout
    assert "memory      2M, " in done.stdout
    record = json.loads(kvmkit("snapshot", "info", "--json", saved).stdout)
    assert (record["name"], record["cpus"], record["memory"]) == ("tiny", 1, 2 << 20)


def test_list_shows_damaged_ones_too(saved):
    """All of a directory's, and one alone."""
    broken = saved.parent / "broken"
    broken.mkdir()
    (broken / "state.json").write_text("{}")
    lines = kvmkit("snapshot", "list", saved.parent).stdout.splitlines()
    assert lines[0].split() == ["SNAPSHOT", "NAME", "ENGINE", "CPUS", "MEMORY", "ON", "DISK",
                                "SAVED"]  # fmt: skip
    assert lines[1].split() == ["broken", "damaged"]
    assert lines[2].split()[:5] == ["snap", "tiny", "soft", "1", "2M"]
    records = json.loads(kvmkit("snapshot", "list", "--json", saved).stdout)
    assert [record["name"] for record in records] == ["tiny"]


def test_list_of_nothing(tmp_path):
    """An empty directory, and one that is not there."""
    assert kvmkit("snapshot", "list", tmp_path).stdout == "no snapshots\n"
    assert kvmkit("snapshot", "list", tmp_path / "absent").returncode == 123


def test_diff_names_what_differs(saved):
    """Registers by name, ranges of memory; nothing for the same."""
    assert kvmkit("snapshot", "diff", saved, saved).returncode == 0
    out = bytearray()
    with VM.restore(saved, console=out.extend) as vm:
        vm.start()
        wait(vm, out, 3)
        vm.snapshot(saved.parent / "later")
    done = kvmkit("snapshot", "diff", saved, saved.parent / "later")
    assert done.returncode == 1
    assert "devices[lapic0].timer.alarm: " in done.stdout
    assert "memory 0x9000-0x9fff" in done.stdout


def test_check_finds_damage(saved):
    """Exit code 115, and one line that says where."""
    assert kvmkit("snapshot", "check", saved).returncode == 0
    os.chmod(saved / "memory", 0o600)
    with open(saved / "memory", "r+b") as file:
        file.seek(0x9000)
        file.write(b"\xff" * 8)
    for word in ("check", "restore"):
        done = kvmkit("snapshot", word, saved)
        assert done.returncode == 115
        assert "the memory is damaged at 0x" in done.stderr


def test_rm_removes(saved):
    """What is no snapshot stays."""
    assert kvmkit("snapshot", "rm", saved).stdout == f"removed {saved}\n"
    assert not saved.exists()
    assert kvmkit("snapshot", "rm", saved.parent).returncode == 115


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "expected one of save, restore"),
        (("restor",), "did you mean 'kvmkit snapshot restore'?"),
        (("restore",), "snapshot restore expects DIR"),
        (("save", "name"), "snapshot save expects NAME DIR"),
        (("restore", "a", "b"), "unexpected word 'b'"),
        (("restore", "a", "--engine", "qemu"), "--engine expects one of"),
    ],
)
def test_mistakes_are_explained(words, text):
    """Exit code 2, one line, a hint."""
    done = kvmkit("snapshot", *words)
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr


def test_help_needs_nothing():
    """For the command and for each word."""
    for words in (("--help",), ("save", "--help"), ("restore", "-h"), ("diff", "--help")):
        done = kvmkit("snapshot", *words)
        assert done.returncode == 0 and done.stdout.startswith("usage: kvmkit snapshot")


def test_restore_goes_on_to_a_timeout(saved):
    """Its console is our output; it ends as kvmkit run does."""
    done = kvmkit("snapshot", "restore", saved, "--timeout", "0.6")
    assert done.returncode == 124
    follows(done.stdout.encode())


def test_restore_writes_the_console_to_a_file(saved, tmp_path):
    """Or nowhere."""
    target = tmp_path / "console"
    done = kvmkit("snapshot", "restore", saved, "--timeout", "0.5", "--console", target)
    assert (done.returncode, done.stdout) == (124, "")
    follows(target.read_bytes())
    done = kvmkit("snapshot", "restore", saved, "--timeout", "0.2", "--console", "none")
    assert (done.returncode, done.stdout) == (124, "")


def test_a_running_vm_is_saved_by_name(saved, tmp_path):
    """From another process, through the control socket; it runs on."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    more = {"XDG_RUNTIME_DIR": str(runtime)}
    with subprocess.Popen(
        [sys.executable, "-m", "kvmkit", "snapshot", "restore", str(saved), "--name", "goes-on"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(**more),
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            first = process.stdout.read(4)
            target = Path("relative")
            done = subprocess.run(
                [sys.executable, "-m", "kvmkit", "snapshot", "save", "goes-on", str(target)],
                cwd=tmp_path, env=environment(**more), capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            follows(first + process.stdout.read(4))
        finally:
            process.kill()
    out = bytearray()
    with VM.restore(tmp_path / "relative", console=out.extend) as vm:
        assert vm.name != "goes-on"
        vm.start()
        wait(vm, out, 3)
    refused = kvmkit("snapshot", "save", "goes-on", tmp_path / "x", **more)
    assert refused.returncode != 0 and "goes-on" in refused.stderr


def test_saving_over_the_users_files_is_refused(saved, tmp_path):
    """The VM's words come back."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    (tmp_path / "mine").mkdir()
    os.environ["XDG_RUNTIME_DIR"], before = str(runtime), os.environ.get("XDG_RUNTIME_DIR")
    try:
        with VM.restore(saved, name="here") as vm:
            vm.start()
            time.sleep(0.1)
            done = kvmkit("snapshot", "save", "here", tmp_path / "mine")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    assert done.returncode == 1
    assert "exists and is no snapshot" in done.stderr
