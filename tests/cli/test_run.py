"""``kvmkit run`` with stock kernels on the software CPU, as a user types it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import PATIENCE, Result, environment, kvmkit
from tests.cli.tiny_kernel import HANG, TRIPLE_FAULT, tiny_kernel

pytestmark = [pytest.mark.soft, pytest.mark.slow]

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def cache(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with busybox as if pulled, so that tests neither need nor touch the user's."""
    cache = tmp_path_factory.mktemp("cache")
    image = cache / "kvmkit/images/busybox-static"
    image.mkdir(parents=True)
    shutil.copy(busybox, image / "busybox")
    (image / "about").write_text("Package: busybox-static\nVersion: 1\nRelease: \n")
    return cache


@pytest.fixture
def run(kernel: Path, cache: Path) -> Run:
    """``kvmkit run`` of the cloud kernel on the software CPU."""

    def run(*words: str | Path, stdin: str | None = None) -> Result:
        options = ("--engine", "soft", "--timeout", "90", "-k", kernel)
        return kvmkit("run", *options, *words, stdin=stdin, XDG_CACHE_HOME=str(cache))

    return run


def test_a_command_puts_out_nothing_but_its_own(run: Run, kernel: Path) -> None:
    """Standard output is the command's, byte for byte; stderr is silent."""
    result = run("--", "uname", "-r")

    assert (result.returncode, result.stderr) == (0, "")
    assert kernel.name in ("vmlinuz", f"vmlinuz-{result.stdout.strip()}")


@pytest.mark.parametrize("status", [1, 42, 255])
def test_a_commands_status_is_the_exit_code(run: Run, status: int) -> None:
    """As with a local command, up to 255."""
    assert run("--", "sh", "-c", f"exit {status}").returncode == status


def test_a_command_that_does_not_exist(run: Run) -> None:
    """127, and the guest says so."""
    result = run("--", "no-such-program")

    assert result.returncode == 127
    assert "no-such-program" in result.stdout + result.stderr


def test_a_pipe_is_the_commands_input(run: Run) -> None:
    """Control characters and a missing last newline arrive unchanged, and so does the end."""
    text = "one\n\x03\x04\x16\x1a two\nthree"

    result = run("--", "cat", stdin=text)

    assert (result.returncode, result.stdout) == (0, text)


def test_a_large_pipe_arrives_whole(run: Run) -> None:
    """More than every buffer on the way, to a command that starts late."""
    text = "".join(f"{number:07}\n" for number in range(50_000))

    result = run("--", "sh", "-c", "sleep 1; cat", stdin=text)

    assert result.stdout == text


def test_without_a_command_a_pipe_is_a_script(run: Run) -> None:
    """``kvmkit run < script`` runs it in the guest and ends with its status."""
    result = run(stdin="echo $((6 * 7))\nif true; then exit 3; fi\necho not reached\n")

    assert (result.returncode, result.stdout) == (3, "42\n")


def test_a_panic_tells_its_story(run: Run) -> None:
    """Exit code 110; the last lines of the log are on stderr."""
    result = run("--", "sh", "-c", "echo c > /proc/sysrq-trigger")

    assert result.returncode == 110
    assert result.stderr.startswith("kvmkit: Kernel panic - not syncing: sysrq triggered crash\n")
    assert "sysrq_handle_crash" in result.stderr


def test_a_reboot_ends_if_told_so(run: Run) -> None:
    """--no-reboot: exit code 113."""
    result = run("--no-reboot", "--", "reboot", "-f")

    assert result.returncode == 113
    assert "kvmkit: the guest asked for a reboot" in result.stderr


def test_a_power_off_is_no_failure(run: Run) -> None:
    """Exit code 0 without the command's status."""
    assert run("--", "poweroff", "-f").returncode == 0


def test_a_timeout_ends_the_vm(run: Run) -> None:
    """Exit code 124, as timeout(1) has it."""
    result = run("--timeout", "3", "--", "sleep", "100")

    assert result.returncode == 124
    assert result.stderr == "kvmkit: the time limit was reached\n"


def test_a_boot_that_hangs_says_where(tmp_path: Path) -> None:
    """Exit code 112 with the CPU's registers and the code it stands at."""
    path = tmp_path / "vmlinux"
    path.write_bytes(tiny_kernel(HANG))

    result = kvmkit("run", "--engine", "soft", "-k", path, "-i", path, "--hang-timeout", "1")

    assert result.returncode == 112
    assert result.stderr.startswith("kvmkit: the guest hangs: ")
    assert "RIP 00000000010000" in result.stderr


def test_a_triple_fault_shows_registers_and_code(tmp_path: Path) -> None:
    """Exit code 111; what the CPU was about to do is disassembled."""
    path = tmp_path / "vmlinux"
    path.write_bytes(tiny_kernel(TRIPLE_FAULT))

    result = kvmkit("run", "--engine", "soft", "-k", path, "-i", path)

    assert result.returncode == 111
    assert result.stderr.startswith("kvmkit: triple fault on CPU 0\n")
    assert "RAX 000000000000002a" in result.stderr
    assert "000000000100000c  ud2" in result.stderr


def test_the_kernel_log_goes_to_its_file(run: Run, tmp_path: Path) -> None:
    """The messages are in the file and not in the command's output."""
    log = tmp_path / "kernel.log"

    result = run("--kernel-log", log, "--", "echo", "done")

    assert (result.returncode, result.stdout) == (0, "done\n")
    assert log.read_text().startswith("[    0.000000] Linux version ")


def test_the_console_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    """--console FILE leaves standard output alone."""
    path = tmp_path / "console"

    result = run("--console", path, "--", "echo", "done")

    assert (result.returncode, result.stdout, path.read_text()) == (0, "", "done\n")


def test_memory_and_cpus_are_the_guests(run: Run) -> None:
    """-m and -c reach the guest."""
    script = "nproc; awk '/MemTotal/ {print ($2 > 900000 && $2 < 1048576)}' /proc/meminfo"

    result = run("-m", "1G", "-c", "2", "--", "sh", "-c", script)

    assert result.stdout == "2\n1\n"


def test_parameters_and_name_reach_the_guest(run: Run) -> None:
    """-p may be given several times, and stands at the end of the command line."""
    result = run("-p", "one=1", "-p", "two three", "--", "cat", "/proc/cmdline")

    assert result.stdout.endswith(" one=1 two three\n")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--kernel-log", "/nonexistent/log"), 123, "/nonexistent/log"),
        (("--console", "/nonexistent/console"), 123, "/nonexistent/console"),
        (("-i", "/nonexistent/initrd"), 121, "/nonexistent/initrd"),
        (("-m", "8M"), 122, "memory"),
        (("-m", "1M"), 2, "memory"),
        (("--name", "a/b"), 2, "name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line(
    run: Run, words: tuple[str, ...], code: int, text: str
) -> None:
    """Each kind of trouble has its exit code, before anything runs."""
    result = run(*words)

    first = result.stderr.splitlines()[0]
    assert result.returncode == code, result.stderr
    assert first.startswith("kvmkit: ")
    assert text in first
    assert len(result.stderr.splitlines()) <= 2


def test_kvm_without_permission_is_refused() -> None:
    """Code 119, and the hint says how to get it."""
    python, setpriv = "/usr/bin/python3", shutil.which("setpriv")
    if os.geteuid() or not setpriv or not os.path.exists("/dev/kvm"):
        pytest.skip("only root can give up its rights to /dev/kvm")
    as_nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    may = "import os, sys; sys.exit(not os.access('/dev/kvm', 6) and sys.version_info >= (3, 11))"
    if subprocess.run([*as_nobody, python, "-c", may], check=False).returncode != 1:
        pytest.skip("/dev/kvm is for everybody here, or the system's Python is too old")
    path = Path("/tmp") / f"kvmkit-test-{os.getpid()}"
    path.write_bytes(tiny_kernel(HANG))
    try:
        result = subprocess.run(
            [*as_nobody, python, "-m", "kvmkit", "run", "--engine", "kvm", "-k", path, "-i", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment(XDG_CACHE_HOME="/nonexistent"),
            check=False,
        )
    finally:
        path.unlink()

    assert result.returncode == 119
    assert result.stderr.startswith("kvmkit: /dev/kvm")
    assert "hint:" in result.stderr


def test_a_truncated_kernel_is_refused(kernel: Path, tmp_path: Path) -> None:
    """Code 120, and the line says what is missing."""
    path = tmp_path / "bzImage"
    path.write_bytes(kernel.read_bytes()[:100_000])

    result = kvmkit("run", "-k", path)

    assert result.returncode == 120
    assert "truncated" in result.stderr


def test_a_reader_that_leaves_ends_the_vm(kernel: Path, cache: Path) -> None:
    """``kvmkit run -- seq ... | head`` ends when head has what it wants."""
    process = _start(kernel, cache, "--", "seq", "100000000")
    assert process.stdout is not None

    assert process.stdout.readline() == b"1\n"
    process.stdout.close()

    assert process.wait(PATIENCE) == 141


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_ends_the_vm_and_leaves_nothing(
    kernel: Path, cache: Path, number: signal.Signals
) -> None:
    """Exit code 128 + n, at once, without a word."""
    process = _start(kernel, cache, "--", "sh", "-c", "echo up; sleep 1000")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"up\n"

    process.send_signal(number)
    started = time.monotonic()

    assert process.wait(PATIENCE) == 128 + number
    assert time.monotonic() - started < 5
    assert process.stderr.read() == b""


def _start(kernel: Path, cache: Path, *words: str) -> subprocess.Popen[bytes]:
    options = ["run", "--engine", "soft", "--timeout", "90", "-k", str(kernel)]
    return subprocess.Popen(
        [sys.executable, "-m", "kvmkit", *options, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(XDG_CACHE_HOME=str(cache)),
    )
