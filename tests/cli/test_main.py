"""The kvmkit command without a VM: help, errors, exit codes, completion, start-up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmkit import __version__
from kvmkit.cli.main import COMMANDS
from tests.cli.command import PATIENCE, environment, kvmkit


def test_without_a_command_it_says_how() -> None:
    """Bare ``kvmkit`` lists the commands and counts as a mistake."""
    result = kvmkit()

    assert result.returncode == 2
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["help"], ["-h"]])
def test_help(words: list[str]) -> None:
    """Asked for, the same list is no mistake."""
    result = kvmkit(*words)

    assert result.returncode == 0
    assert "kvmkit run -- uname -a" in result.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "image pull", "image list", "image rm"])
def test_every_command_has_help(command: str) -> None:
    """--help shows usage and options, and does nothing else."""
    result = kvmkit(*command.split(), "--help")

    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: kvmkit {command}")
    assert result.stderr == ""


def test_help_fits_a_terminal() -> None:
    """No line of any help text is longer than 80 columns."""
    texts = [kvmkit(name, "--help").stdout for name in COMMANDS]

    assert [line for text in texts for line in text.splitlines() if len(line) > 80] == []


def test_version() -> None:
    """The version is the package's."""
    assert kvmkit("version").stdout == f"kvmkit {__version__}\n"
    assert kvmkit("--version").stdout == f"kvmkit {__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["rum"], 2, "unknown command 'rum'", "did you mean 'kvmkit run'?"),
        (["--verison"], 2, "unknown option '--verison'", "--version"),
        (["run", "--memm", "1G"], 2, "unknown option '--memm'", "did you mean --mem?"),
        (["run", "-m", "lots"], 2, "-m expects a size such as 512M", ""),
        (["run", "-m", "0"], 2, "-m expects a size such as 512M", ""),
        (["run", "-c", "65"], 2, "-c expects a whole number from 1 to 64", ""),
        (["run", "--timeout", "-1"], 2, "--timeout expects a positive number of seconds", ""),
        (["run", "--engine", "kvmm"], 2, "--engine expects one of auto, kvm, soft", "'kvm'"),
        (["run", "--"], 2, "-- is followed by a command", "kvmkit run -- uname -a"),
        (["run", "-k", "a", "b"], 2, "two kernels", ""),
        (["run", "-k", "/nonexistent/bzImage"], 120, "/nonexistent/bzImage", ""),
        (["run", "uname"], 120, "uname", "kvmkit run -- uname"),
        (["image"], 2, "expected one of pull, list, rm", "kvmkit image --help"),
        (["image", "pul"], 2, "found 'pul'", "did you mean 'kvmkit image pull'?"),
        (["image", "pull"], 2, "at least one name", "kvmkit image pull --help"),
        (["image", "rm", "no-such-image"], 116, "no image no-such-image", ""),
        (["completion", "csh"], 2, "expected a shell", ""),
        (["version", "now"], 2, "unexpected word 'now'", "kvmkit version --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line(words: list[str], code: int, message: str, hint: str) -> None:
    """Two lines on stderr, nothing on stdout, an exit code of its own."""
    result = kvmkit(*words)

    first, *rest = result.stderr.splitlines()
    assert result.returncode == code
    assert first.startswith("kvmkit: ")
    assert message in first
    assert hint in "".join(rest)
    assert len(rest) <= 1
    assert result.stdout == ""


def test_a_kernel_that_is_none_is_refused(tmp_path: Path) -> None:
    """A foreign, an empty and a truncated file each get their line and code 120."""
    for name, data in (("foreign", b"#!/bin/sh\n" * 100), ("empty", b""), ("elf", b"\x7fELF")):
        path = tmp_path / name
        path.write_bytes(data)

        result = kvmkit("run", "-k", path, "-i", path)

        assert result.returncode == 120, result.stderr
        assert result.stderr.startswith(f"kvmkit: {path}: ")


def test_without_any_kernel_it_says_where_it_looked(tmp_path: Path) -> None:
    """An empty cache and directory lead to the command that fetches one."""
    if list(Path("/boot").glob("*")):
        pytest.skip("this host has kernels in /boot")
    result = subprocess.run(
        [sys.executable, "-m", "kvmkit", "run"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
        check=False,
    )

    assert result.returncode == 120
    assert "arch/x86/boot/bzImage" in result.stderr
    assert "kvmkit image pull" in result.stderr


def test_a_closed_pipe_ends_quietly() -> None:
    """Nobody reads the help: 141, and no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time, kvmkit.cli.main as m; time.sleep(0.3); "
         "raise SystemExit(m.main(['run', '--help']))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None

    process.stdout.close()

    assert process.wait(PATIENCE) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_closed_standard_descriptors_do_no_harm() -> None:
    """Started without stdin, stdout and stderr (``<&- >&- 2>&-``) it works all the same."""
    result = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m kvmkit version <&- >&- 2>&-"],
        timeout=PATIENCE,
        env=environment(),
        check=False,
    )

    assert result.returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_loads(shell: str) -> None:
    """The shell reads its script without complaint."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    script = kvmkit("completion", shell).stdout
    prelude = "autoload -U compinit; compinit -D\n" if shell == "zsh" else ""

    result = subprocess.run(
        [program], input=prelude + script, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kvmkit ru", ["run"]),
        ("kvmkit run --ker", ["--kernel", "--kernel-log"]),
        ("kvmkit run --engine s", ["soft"]),
        ("kvmkit image p", ["pull"]),
        ("kvmkit image list --j", ["--json"]),
        ("kvmkit completion --h", ["--help"]),
        ("kvmkit run -- --ker", []),
    ],
)
def test_bash_completes(line: str, offered: list[str]) -> None:
    """What bash offers after TAB."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    script = kvmkit("completion", "bash").stdout
    words = line.split()
    ask = (
        f"{script}\ncompopt() {{ :; }}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n"
        '_kvmkit; printf "%s\\n" "${COMPREPLY[@]}"'
    )

    result = subprocess.run([bash, "-c", ask], capture_output=True, text=True, check=True)

    assert result.stdout.split() == offered


def test_doctor_in_plain_words_and_json() -> None:
    """Both forms agree on the engine; the exit code says whether there is one."""
    plain, machine = kvmkit("doctor"), kvmkit("doctor", "--json")

    record = json.loads(machine.stdout)
    assert plain.stdout.startswith("kvmkit uses ")
    assert record["engine"] in ("kvm", "soft", "")
    assert plain.returncode == machine.returncode == (0 if record["engine"] else 1)
    assert {one["state"] for one in record["findings"]} <= {"ok", "limited", "missing"}


def test_doctor_names_what_an_empty_cache_lacks(tmp_path: Path) -> None:
    """Each missing part comes with the command that mends it."""
    result = kvmkit("doctor", "--json", XDG_CACHE_HOME=str(tmp_path))

    kernel = next(f for f in json.loads(result.stdout)["findings"] if f["what"] == "kernel")
    if kernel["state"] == "ok":
        pytest.skip("this host has a kernel in /boot")
    assert kernel["mend"] == "kvmkit image pull linux-image-cloud-amd64"


def test_image_list_of_an_empty_cache(tmp_path: Path) -> None:
    """Nothing there is no error, and says what to do."""
    result = kvmkit("image", "list", XDG_CACHE_HOME=str(tmp_path))

    assert result.returncode == 0
    assert "kvmkit image pull" in result.stdout


def test_the_command_imports_little() -> None:
    """Start-up is a feature: none of the slow modules is loaded before a VM is made."""
    probe = (
        "import sys; before = set(sys.modules); import kvmkit.cli.main, kvmkit.cli.run; "
        "print(*sorted(set(sys.modules) - before))"
    )

    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True,
        env=environment(),
    )  # fmt: skip

    assert set(result.stdout.split()) == {
        "kvmkit", "kvmkit.cli", "kvmkit.cli.main", "kvmkit.cli.options", "kvmkit.cli.run",
        "kvmkit.cli.values", "kvmkit.errors", "__future__",
    }  # fmt: skip
