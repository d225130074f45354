"""``kvmkit run --root``, ``--rw`` and ``--ro``: commands in a guest with the host's files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmkit.guest.initramfs import agent_program
from kvmkit.guest.modules import find_module_tree
from tests.cli.command import PATIENCE, Result, environment, kvmkit

pytestmark = [
    pytest.mark.soft,
    pytest.mark.slow,
    pytest.mark.skipif(agent_program() is None, reason="the agent was not built"),
]

MIB = 1 << 20

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def cache(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own, with a busybox as if pulled."""
    cache = tmp_path_factory.mktemp("cache")
    image = cache / "kvmkit/images/busybox-static"
    image.mkdir(parents=True)
    shutil.copy(busybox, image / "busybox")
    (image / "about").write_text("Package: busybox-static\nVersion: 1\nRelease: \n")
    return cache


@pytest.fixture
def words(kernel: Path) -> list[str]:
    """``kvmkit run`` of the cloud kernel on the software CPU, as a list of words."""
    if find_module_tree(kernel) is None:
        pytest.skip("no modules next to the kernel")
    return ["run", "--engine", "soft", "--timeout", "90", "-k", str(kernel)]


@pytest.fixture
def run(words: list[str], cache: Path) -> Run:
    """That, to its end; without more options, with the host's root."""

    def run(*more: str | Path, root: bool = True, stdin: str | None = None) -> Result:
        options = ("--root", "host") if root else ()
        return kvmkit(*words, *options, *more, stdin=stdin, XDG_CACHE_HOME=str(cache))

    return run


@pytest.fixture
def start(words: list[str], cache: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """That with the host's root, begun, its streams pipes."""

    def start(*more: str, **streams: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "kvmkit", *words, "--root", "host", "--", *more],
            env=environment(XDG_CACHE_HOME=str(cache)),
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **streams},  # type: ignore[call-overload]
        )
        return process

    return start


# A command


def test_a_command_of_the_hosts_runs_under_the_guests_kernel(run: Run, kernel: Path) -> None:
    """The host's program, the guest's release; and not a byte more."""
    result = run("--", "uname", "-r")

    assert (result.returncode, result.stderr) == (0, "")
    assert kernel.name in ("vmlinuz", f"vmlinuz-{result.stdout.strip()}")


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)], ids=["exit", "signal"]
)
def test_the_status_is_the_commands(run: Run, script: str, status: int) -> None:
    """128 + n for a signal."""
    assert run("--", "sh", "-c", script).returncode == status


def test_a_program_that_is_not_there(run: Run) -> None:
    """127, told on standard error."""
    result = run("--", "no-such-program")

    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr == "no-such-program: not found in the guest\n"


def test_output_and_errors_are_two_streams(run: Run) -> None:
    """Each arrives at its own end."""
    result = run("--", "sh", "-c", "echo to one; echo to the other >&2; echo to one again")

    assert (result.stdout, result.stderr) == ("to one\nto one again\n", "to the other\n")


def test_64_mib_go_in_and_out_unchanged(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """``kvmkit run -- cat < file | sha256sum``: every byte value, far more than any buffer."""
    path = tmp_path / "64MiB.bin"
    path.write_bytes(os.urandom(MIB) * 64)
    digest = hashlib.sha256()

    with path.open("rb") as file:
        process = start("cat", stdin=file)
        assert process.stdout is not None
        while data := process.stdout.read(MIB):
            digest.update(data)

    assert process.wait(PATIENCE) == 0
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


def test_a_slow_reader_holds_up_nobody_else(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """While nobody reads standard output, standard error goes on."""
    script = "(yes | head -c 3000000) & sleep 1; echo heard >&2; wait"
    process = start("sh", "-c", script, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None

    assert process.stderr.readline() == b"heard\n"
    assert len(process.stdout.read()) == 3_000_000
    assert process.wait(PATIENCE) == 0


def test_a_reader_that_leaves_ends_the_vm(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """As a local program: 128 + SIGPIPE."""
    process = start("yes")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"

    process.stdout.close()

    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1"])
def test_signals_are_passed_on(start: Callable[..., subprocess.Popen[bytes]], name: str) -> None:
    """The program's handler decides what happens."""
    process = start(
        "sh", "-c", f"trap 'echo caught; exit 5' {name}; echo up; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    process.send_signal(getattr(signal, f"SIG{name}"))

    assert process.stdout.read() == b"caught\n"
    assert process.wait(PATIENCE) == 5


def test_a_signal_that_is_not_caught_ends_program_and_vm(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """128 + n, as the shell has it."""
    process = start("sh", "-c", "echo up; exec sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    process.terminate()

    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_whoever_insists_ends_the_vm(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Three signals at once are for kvmkit, when the program takes none."""
    process = start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    for _ in range(3):
        process.terminate()
        time.sleep(0.1)

    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_on_a_terminal_the_program_has_one(words: list[str], cache: Path) -> None:
    """Its size, its changes, what is typed; the end of the program is the end."""
    script = "stty size; trap 'stty size' WINCH; read a; echo got $a; read b; exit 9"
    child, terminal = pty.fork()
    if not child:
        command = [sys.executable, "-m", "kvmkit", *words, "--root", "host", "--", "sh", "-c"]
        os.execve(command[0], [*command, script], environment(XDG_CACHE_HOME=str(cache)))
    _set_size(terminal, 33, 77)

    _expect(terminal, b"33 77\r\n")
    os.write(terminal, b"hello\r")
    _expect(terminal, b"got hello\r\n")
    _set_size(terminal, 40, 90)
    _expect(terminal, b"40 90\r\n")
    os.write(terminal, b"\r")

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    os.close(terminal)


def test_a_plain_command_has_three_streams_as_well(run: Run) -> None:
    """With busybox's root, where the kernel has the console's driver."""
    result = run("--", "sh", "-c", "cat; echo bad >&2; exit 3", root=False, stdin="in\x04\n")

    assert (result.returncode, result.stdout, result.stderr) == (3, "in\x04\n", "bad\n")


def test_a_plain_command_needs_no_drivers(run: Run, kernel: Path, tmp_path: Path) -> None:
    """A kernel without modules, which may lack the driver, gets it over the serial port."""
    copy = tmp_path / "bzImage"
    shutil.copy(kernel, copy)
    words = ("-k", copy, "--", "sh", "-c", "cat; exit 3")

    result = run(*words, root=False, stdin="in\x04\n")

    assert (result.returncode, result.stdout, result.stderr) == (3, "in\x04\n", "")


# The files


def test_the_hosts_files_are_there(run: Run, tmp_path: Path) -> None:
    """Any file, changes of the host's while it runs; /proc is the guest's."""
    (tmp_path / "here").write_text("of the host\n")

    result = run("--", "sh", "-c", f"cat /proc/self/status; ls /root; cat {tmp_path}/here; pwd")

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Name:\tcat\n")
    names = [name for name in sorted(os.listdir("/root")) if not name.startswith(".")]
    tail = result.stdout.splitlines()[-len(names) - 2 :]
    assert sorted(tail[:-2]) == names
    assert tail[-2:] == ["of the host", os.getcwd()]


def test_user_environment_and_name_are_as_here(run: Run) -> None:
    """Or as told."""
    script = 'id -u; id -g; echo "$PATH"; echo "$HOME"; echo $EXTRA; hostname; pwd'

    result = run(
        "--name", "as-here", "--env", "EXTRA=a b", "--cwd", "/usr", "--", "sh", "-c", script
    )

    here = [str(os.getuid()), str(os.getgid()), os.environ["PATH"], os.environ["HOME"]]
    assert result.stdout.splitlines() == [*here, "a b", "as-here", "/usr"]


def test_another_user(run: Run) -> None:
    """--user takes names of the guest's, which are the host's."""
    result = run("--user", "nobody", "--", "id", "-un")

    assert result.stdout == "nobody\n"


def test_what_the_guest_changes_stays_there(run: Run, tmp_path: Path) -> None:
    """Files made, written, removed: the guest sees it, the host does not."""
    (tmp_path / "old").write_text("old")
    (tmp_path / "gone").write_text("gone")
    script = f"cd {tmp_path} && echo new > new && echo more >> old && rm gone && cat *"

    result = run("--", "sh", "-c", script)

    assert result.stdout == "new\noldmore\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone", "old"]
    assert (tmp_path / "old").read_text() == "old"


def test_what_is_written_in_a_shared_directory_reaches_the_host(run: Run, tmp_path: Path) -> None:
    """With --rw; a --ro in it stays read-only, and the rest of the root in the guest."""
    inner = tmp_path / "shared/inner"
    inner.mkdir(parents=True)
    script = (
        f"cd {tmp_path} && echo theirs > shared/file && echo x > inside\n"
        f"echo x > shared/inner/no || echo refused"
    )

    result = run("--rw", inner.parent, "--ro", inner, "--", "sh", "-c", script)

    assert result.stdout == "refused\n", result.stderr
    assert (tmp_path / "shared/file").read_text() == "theirs\n"
    assert not (tmp_path / "inside").exists()
    assert not list(inner.iterdir())


def test_shares_without_another_root(run: Run, tmp_path: Path) -> None:
    """Busybox's root, with the directory at its path, and the command starts in it."""
    (tmp_path / "input").write_text("text\n")
    words = ("--rw", tmp_path, "--cwd", tmp_path, "--", "sh", "-c", "pwd; rev < input > output")

    result = run(*words, root=False)

    assert (result.returncode, result.stdout) == (0, f"{tmp_path}\n")
    assert (tmp_path / "output").read_text() == "txet\n"


def test_a_directory_as_the_root(run: Run, busybox: Path, tmp_path: Path) -> None:
    """It needs nothing but the program; what the guest makes there is forgotten."""
    (tmp_path / "bin").mkdir()
    shutil.copy(busybox, tmp_path / "bin/busybox")
    words = ("--root", tmp_path, "--", "busybox", "sh", "-c", "busybox touch /made; echo /*")

    result = run(*words, root=False)

    assert result.stdout == "/bin /dev /made /proc /run /sys /tmp\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


# What cannot be


def test_a_kernel_without_the_driver_names_the_option(
    run: Run, kernel: Path, tmp_path: Path
) -> None:
    """Before anything runs: its modules are known."""
    tree = find_module_tree(kernel)
    assert tree is not None
    modules = tmp_path / f"lib/modules/{tree.release}"
    modules.mkdir(parents=True)
    (modules / "kernel").symlink_to(Path(tree.directory) / "kernel")
    for name in ("builtin", "order", "softdep", "alias"):
        source = Path(tree.directory) / f"modules.{name}"
        if source.exists():
            (modules / source.name).write_text(_without_virtiofs(source.read_text()))
    dependencies = [
        f"{one.path.removeprefix(tree.directory)[1:]}:" for one in tree.resolve(["fuse"])
    ]
    (modules / "modules.dep").write_text("\n".join(dependencies) + "\n")
    copy = tmp_path / f"boot/vmlinuz-{tree.release}"
    copy.parent.mkdir()
    shutil.copy(kernel, copy)

    result = run("-k", copy, "--", "true")

    assert result.returncode == 108
    assert "CONFIG_VIRTIO_FS" in result.stderr


def test_a_guest_that_lacks_a_driver_names_the_option(
    run: Run, kernel: Path, tmp_path: Path
) -> None:
    """A kernel without modules may have all built in; if not, the guest finds out."""
    copy = tmp_path / "bzImage"
    shutil.copy(kernel, copy)

    result = run("-k", copy, "--", "true")

    assert result.returncode == 108
    assert "hint: " in result.stderr
    assert "CONFIG_VIRTIO_FS" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--rw", "/nonexistent/directory"), 123, "/nonexistent/directory"),
        (("--ro", "/"), 2, "/ cannot be shared"),
        (("--env", "=x"), 2, "NAME=TEXT"),
        (("--detach",), 2, "--detach"),
    ],
    ids=["missing", "root", "env", "detach"],
)
def test_bad_options_are_one_clear_line(
    run: Run, options: tuple[str, ...], code: int, text: str
) -> None:
    """Before anything runs."""
    result = run(*options, "--", "true")

    assert result.returncode == code
    assert text in result.stderr.splitlines()[0]


def test_a_panic_and_a_reboot_tell_why(run: Run) -> None:
    """Codes 110 and 113, as without the host's files."""
    panic = run("--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    reboot = run("--", "sh", "-c", "echo b > /proc/sysrq-trigger")

    assert panic.returncode == 110
    assert "sysrq triggered crash" in panic.stderr
    assert reboot.returncode == 113


# Helpers


def _without_virtiofs(text: str) -> str:
    return "".join(line for line in text.splitlines(True) if "virtiofs" not in line)


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _expect(terminal: int, words: bytes) -> None:
    """Read until ``words`` have come."""
    seen = b""
    while words not in seen:
        assert select.select([terminal], [], [], PATIENCE)[0], seen
        seen += os.read(terminal, 4096)
