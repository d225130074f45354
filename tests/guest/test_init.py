"""``init`` in a real guest: QEMU boots a pulled kernel with our initramfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kvmkit import images
from kvmkit.guest.command import command_archive
from kvmkit.guest.console_input import END_OF_INPUT, encode_input
from kvmkit.guest.initramfs import busybox_initramfs

pytestmark = pytest.mark.slow

PATIENCE = 60.0  # seconds


class Guest:
    """A machine with the console on COM1, the kernel's log on COM2 and the report on COM4."""

    def __init__(self, directory: Path, initrd: bytes, parameters: str = "") -> None:
        image, qemu = images.default_image(), shutil.which("qemu-system-x86_64")
        if image is None or qemu is None:
            pytest.skip("needs qemu-system-x86_64 and a kernel: kvmkit image pull")
        (directory / "initrd").write_bytes(initrd)
        self.report_path = directory / "report"
        command = [
            qemu,
            *[
                "-accel",
                "tcg",
                "-M",
                "q35",
                "-m",
                "512",
                "-display",
                "none",
                "-no-reboot",
                "-net",
                "none",
            ],
        ]
        command += ["-kernel", image.kernel or "", "-initrd", f"{directory}/initrd"]
        command += ["-append", f"console=ttyS1 KVMKIT_CONSOLE=ttyS0 {parameters}"]
        for port in ("stdio", f"file:{directory}/log", "null", f"file:{self.report_path}"):
            command += ["-serial", port]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def report(self) -> str:
        """What came over COM4 so far."""
        return self.report_path.read_text() if self.report_path.exists() else ""

    def finish(self, sent: bytes = b"", wait_for: str = "ready") -> tuple[bytes, str]:
        """Send input once the guest is ready; console output and report at the end."""
        deadline = time.monotonic() + PATIENCE
        try:
            while sent and wait_for not in self.report() and time.monotonic() < deadline:
                time.sleep(0.02)
            output, _ = self.process.communicate(sent, timeout=PATIENCE)
        finally:
            self.process.kill()
        return output, self.report()


@pytest.fixture(scope="module")
def initramfs() -> bytes:
    """The archive that all guests of this module start from."""
    busybox = images.default_busybox()
    if busybox is None:
        pytest.skip("needs busybox: kvmkit image pull busybox-static")
    return busybox_initramfs(busybox)


def test_command_output_is_exact(initramfs: bytes, tmp_path: Path) -> None:
    """More output than any buffer holds: no carriage returns, nothing lost, nothing added."""
    script = "seq 1 20000; echo $WORD; pwd"
    archive = command_archive(["sh", "-c", script], {"WORD": "it's"}, "/tmp")
    output, report = Guest(tmp_path, initramfs + archive).finish()
    assert output.decode().split() == [*map(str, range(1, 20001)), "it's", "/tmp"]
    assert b"\r" not in output
    assert report == "kvmkit: ready\nkvmkit: exit 0\n"


@pytest.mark.parametrize(
    ("argv", "status", "output"),
    [
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "kill -9 $$"], 137, b""),
        (["no-such"], 127, b"no-such: not found in the guest\n"),
        (["/etc/passwd"], 126, None),
    ],
)
def test_exit_status(
    initramfs: bytes, tmp_path: Path, argv: list[str], status: int, output: bytes | None
) -> None:
    """The status leaves over COM4, and the shell adds no words of its own to the output."""
    found, report = Guest(tmp_path, initramfs + command_archive(argv)).finish()
    assert report == f"kvmkit: ready\nkvmkit: exit {status}\n"
    assert output is None or found == output


def test_input_of_a_pipe_arrives_exactly(initramfs: bytes, tmp_path: Path) -> None:
    """All byte values, long lines and the end of the input reach the command."""
    data = bytes(range(256)) * 20 + b"x" * 9000 + b"\nend"
    archive = command_archive(["cat"], mode="pipe")
    output, report = Guest(tmp_path, initramfs + archive).finish(encode_input(data) + END_OF_INPUT)
    assert output == data
    assert report.endswith("exit 0\n")


def test_command_on_a_terminal(initramfs: bytes, tmp_path: Path) -> None:
    """A person's command has a controlling terminal of the size told, which ^C interrupts."""
    script = "tty; stty size; sleep 100 < /dev/tty"
    archive = command_archive(["sh", "-c", script], mode="tty")
    guest = Guest(tmp_path, initramfs + archive, "KVMKIT_ROWS=33 KVMKIT_COLUMNS=99")
    assert guest.process.stdout is not None
    seen = b""
    while b"33 99" not in seen and (data := os.read(guest.process.stdout.fileno(), 1024)):
        seen += data
    time.sleep(0.3)  # until sleep has begun; what comes before is lost to the shell as well
    output, report = guest.finish(b"\x03")
    assert b"/dev/ttyS0\r\n33 99\r\n" in seen + output
    assert report == "kvmkit: ready\nkvmkit: exit 130\n"


def test_shell_has_job_control_and_powers_off(initramfs: bytes, tmp_path: Path) -> None:
    """Without a command there is a shell; its last output is not lost."""
    guest = Guest(tmp_path, initramfs, "KVMKIT_NAME=somewhere")
    assert guest.process.stdout is not None
    seen = b""
    while b"# " not in seen and (data := os.read(guest.process.stdout.fileno(), 1024)):
        seen += data
    output, report = guest.finish(b"hostname; sleep 0 & jobs; seq 1 3000; exit\n", wait_for="")
    assert b"somewhere\r\n" in output
    assert b"[1]" in output
    assert b"\r\n3000\r\n" in output
    assert report == ""
