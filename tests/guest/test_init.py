"""The guest's first process in a real guest: the agent, and the shell script in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmkit.board.power import EndKind
from kvmkit.guest.command import command_archive
from kvmkit.guest.console_input import END_OF_INPUT, encode_input
from kvmkit.guest.initramfs import busybox_initramfs
from kvmkit.guest.instructions import instructions, instructions_archive, order_records
from tests.guest.guests import Guest, init_program

pytestmark = [pytest.mark.slow, pytest.mark.soft]

Boot = Callable[..., Guest]


@pytest.fixture(scope="module", params=["agent", "shell"])
def initramfs(request: pytest.FixtureRequest, busybox: Path) -> bytes:
    """The archive that all guests of this module start from."""
    return busybox_initramfs(busybox, init=init_program(request.param))


@pytest.fixture
def boot(initramfs: bytes, kernel: Path, tmp_path: Path) -> Boot:
    """Boot with another archive behind, and more parameters for the kernel."""

    def boot(archive: bytes = b"", parameters: str = "") -> Guest:
        return Guest(kernel, tmp_path, initramfs + archive, parameters)

    return boot


def test_command_output_is_exact(boot: Boot) -> None:
    """More output than any buffer holds: no carriage returns, nothing lost, nothing added."""
    script = "seq 1 20000; echo $WORD; pwd"
    with boot(command_archive(["sh", "-c", script], {"WORD": "it's"}, "/tmp")) as guest:
        output, reports, ending = guest.finish()
    assert output.decode().split() == [*map(str, range(1, 20001)), "it's", "/tmp"]
    assert b"\r" not in output
    assert reports == ["ready", "exit 0"]
    assert ending.kind is EndKind.EXITED


@pytest.mark.parametrize(
    ("argv", "status", "output"),
    [
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "kill -9 $$"], 137, b""),
        (["no-such"], 127, b"no-such: not found in the guest\n"),
        (["/etc/passwd"], 126, None),
    ],
)
def test_exit_status(boot: Boot, argv: list[str], status: int, output: bytes | None) -> None:
    """The status leaves over COM4, and nobody adds words of his own to the output."""
    with boot(command_archive(argv)) as guest:
        found, reports, ending = guest.finish()
    assert reports == ["ready", f"exit {status}"]
    assert ending.status == status
    assert output is None or found == output


def test_input_of_a_pipe_arrives_exactly(boot: Boot) -> None:
    """All byte values, long lines and the end of the input reach the command."""
    data = bytes(range(256)) * 20 + b"x" * 9000 + b"\nend"
    with boot(command_archive(["cat"], mode="pipe")) as guest:
        guest.wait_for(report="ready")
        guest.vm.send(encode_input(data) + END_OF_INPUT)
        output, reports, _ = guest.finish()
    assert output == data
    assert reports[-1] == "exit 0"


def test_command_on_a_terminal(boot: Boot) -> None:
    """A person's command has a controlling terminal of the size told, which ^C interrupts."""
    script = "tty; stty size; sleep 100 < /dev/tty"
    archive = command_archive(["sh", "-c", script], mode="tty")
    with boot(archive, "KVMKIT_ROWS=33 KVMKIT_COLUMNS=99") as guest:
        guest.wait_for(output=b"33 99")
        time.sleep(0.3)  # until sleep has begun; what comes before is lost to the shell as well
        guest.vm.send(b"\x03")
        output, reports, _ = guest.finish()
    assert b"/dev/ttyS0\r\n33 99\r\n" in output
    assert reports == ["ready", "exit 130"]


def test_shell_has_job_control_and_powers_off(boot: Boot) -> None:
    """Without a command there is a shell; its last output is not lost."""
    with boot(parameters="KVMKIT_NAME=somewhere") as guest:
        guest.wait_for(output=b"# ")
        guest.vm.send(b"hostname; sleep 0 & jobs; seq 1 3000; exit\n")
        output, reports, ending = guest.finish()
    assert b"somewhere\r\n" in output
    assert b"[1]" in output
    assert b"\r\n3000\r\n" in output
    assert (reports, ending.kind) == ([], EndKind.POWERED_OFF)


def test_what_programs_expect_is_mounted(boot: Boot) -> None:
    """proc, sys, devices, pseudo terminals, memory file systems; the network's loopback is up."""
    script = "cut -d' ' -f2,3 /proc/mounts; test -c /dev/pts/ptmx; echo $?; ifconfig lo"
    with boot(command_archive(["sh", "-c", script])) as guest:
        output, _, _ = guest.finish()
    lines = output.decode().splitlines()
    for mount in ("/proc proc", "/sys sysfs", "/dev devtmpfs", "/dev/pts devpts", "/run tmpfs"):
        assert mount in lines
    assert "/tmp tmpfs" in lines
    assert "0" in lines
    assert b"127.0.0.1" in output
    assert b"UP LOOPBACK RUNNING" in output


def test_agent_mounts_and_changes_the_root(kernel: Path, busybox: Path, tmp_path: Path) -> None:
    """Mounts in their order, flags among the options, directories made; then another root."""
    script = "echo /*; cut -d' ' -f2,3,4 /proc/mounts; touch /bin/x; cat /proc/1/comm"
    records = [
        *order_records(["sh", "-c", script]),
        *(("mount", "/new/root"), ("type", "tmpfs"), ("options", "size=1m,nosuid,mode=700")),
        *(("mount", "/new/root/bin"), ("source", "/bin"), ("options", "bind,ro")),
        ("root", "/new/root"),
    ]
    initrd = busybox_initramfs(busybox, init=init_program("agent"))
    archive = instructions_archive(instructions(records))
    with Guest(kernel, tmp_path, initrd + archive) as guest:
        output, reports, _ = guest.finish()
    first, *lines = output.decode().splitlines()
    assert first == "/bin /dev /proc /run /sys /tmp"
    mounts = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("/")}
    assert mounts["/"][0] == "tmpfs"
    assert {"nosuid", "size=1024k", "mode=700"} <= set(mounts["/"][1].split(","))
    assert mounts["/bin"][1].startswith("ro")
    assert "touch: /bin/x: Read-only file system" in lines
    assert reports == ["ready", "exit 0"]


def test_agent_says_which_mount_failed(kernel: Path, busybox: Path, tmp_path: Path) -> None:
    """The command does not run without what it was to find."""
    records = [*order_records(["echo", "ran"]), ("mount", "/x"), ("type", "nosuchfs")]
    initrd = busybox_initramfs(busybox, init=init_program("agent"))
    archive = instructions_archive(instructions(records))
    with Guest(kernel, tmp_path, initrd + archive) as guest:
        output, reports, ending = guest.finish()
    assert output == b""
    assert reports == ["trouble mount /x 19", "exit 125"]
    assert ending.status == 125
