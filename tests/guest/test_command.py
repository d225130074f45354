"""The command archive: the script in it does what was asked, in a real shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.errors import UsageError
from kvmkit.guest.command import command_archive

WORDS = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=20)


def member(archive: bytes, name: str) -> bytes:
    """The data of the file ``name``."""
    position = archive.index(name.encode() + b"\0") - 110
    size = int(archive[position + 54 : position + 62], 16)
    start = position + 110 + len(name) + 1
    start += -start % 4
    return archive[start : start + size]


def run(archive: bytes, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the script as ``init`` does: in a subshell of a POSIX shell."""
    script = member(archive, "kvmkit/command")
    return subprocess.run(["sh"], input=script, capture_output=True, cwd=cwd, check=False)


def test_program_gets_its_arguments_exactly() -> None:
    """Quotes, blanks, dollars, newlines and empty words pass unharmed."""
    words = ["", "a b", "it's", '"$HOME"', "`id`", "*", "\\", "-n", "a\nb", "é"]
    done = run(command_archive(["printf", "%s\\0", *words], cwd="/"))
    assert done.stdout.decode().split("\0")[:-1] == words


@settings(deadline=None, max_examples=25)
@given(st.lists(WORDS, min_size=1, max_size=5))
def test_any_arguments_pass(words: list[str]) -> None:
    """No text changes on its way through the shell."""
    done = run(command_archive(["printf", "%s\\0", *words], cwd="/"))
    assert done.stdout.decode().split("\0")[:-1] == words


def test_environment_and_directory(tmp_path: Path) -> None:
    """Variables arrive exactly; the program starts in the directory named."""
    place = tmp_path / "a 'b"
    place.mkdir()
    archive = command_archive(
        ["sh", "-c", 'printf %s "$GREETING:$(pwd)"'], {"GREETING": "it's $x"}, str(place)
    )
    assert run(archive).stdout.decode() == f"it's $x:{place}"


@pytest.mark.parametrize(
    ("argv", "cwd", "status"),
    [
        (["sh", "-c", "exit 7"], "/", 7),
        (["no-such-program"], "/", 127),
        (["/no/such/program"], "/", 127),
        (["/etc/passwd"], "/", 126),
        (["true"], "/no/such/directory", 126),
    ],
)
def test_exit_status(argv: list[str], cwd: str, status: int) -> None:
    """The program's own status, 127 for not found, 126 for not executable or no directory."""
    assert run(command_archive(argv, cwd=cwd)).returncode == status


def test_missing_program_is_named() -> None:
    """The message says what was not found."""
    assert run(command_archive(["no-such"], cwd="/")).stderr == b"no-such: not found in the guest\n"


@pytest.mark.parametrize("mode", ["tty", "pipe", "null"])
def test_mode_is_in_the_archive(mode: str) -> None:
    """``init`` reads how to set the console."""
    assert member(command_archive(["true"], mode=mode), "kvmkit/mode") == f"{mode}\n".encode()


def test_files_come_along() -> None:
    """More files, executable, with their directories."""
    archive = command_archive(["/opt/t"], files={"/opt/t": b"#!/bin/sh\n"})
    assert member(archive, "opt/t") == b"#!/bin/sh\n"


@pytest.mark.parametrize(
    ("argv", "env", "mode"),
    [
        ([], {}, "null"),
        ([""], {}, "null"),
        (["a\0b"], {}, "null"),
        (["a"], {"A=B": "x"}, "null"),
        (["a"], {"A": "x\0"}, "null"),
        (["a"], {}, "raw"),
    ],
)
def test_what_no_shell_can_run_is_refused(argv: list[str], env: dict[str, str], mode: str) -> None:
    """One clear error, before a machine is started."""
    with pytest.raises(UsageError):
        command_archive(argv, env, mode=mode)
