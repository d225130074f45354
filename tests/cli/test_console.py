"""The console on a real pseudo-terminal: keys, signals, and the terminal afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("echo_console.py")
ROOT = Path(__file__).parents[2]
PATIENCE = 20
SHELL = b"prompt> "


class Session:
    """The program on a pseudo-terminal of its own, and the user in front of it."""

    def __init__(
        self, *words: str, program: list[str] | None = None, ready: bytes = b"READY"
    ) -> None:
        self.master, slave = os.openpty()
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        self.process = subprocess.Popen(
            program or [sys.executable, str(PROGRAM), *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(slave),
            env={**os.environ, "PYTHONPATH": str(ROOT), "PS1": SHELL.decode()},
        )
        self.expect(ready)

    def expect(self, text: bytes) -> bytes:
        """Read until ``text`` has come; what came before it."""
        limit = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < limit, f"{text!r} did not come, only {self.seen!r}"
            os.set_blocking(self.master, False)
            try:
                self.seen += os.read(self.master, 4096)
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def attributes(self) -> list[object]:
        return list(termios.tcgetattr(self.slave))

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _take_terminal(slave: int) -> None:
    """Make the terminal the new session's controlling one (TIOCSCTTY, tty_ioctl(4))."""
    import fcntl

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


def test_every_key_reaches_the_guest(session: Session) -> None:
    """Control characters are not acted on by the host."""
    session.type(b"a\x03\x04\x1a\x1c\x11\x13\r")

    session.expect(rb"<b'a\x03\x04\x1a\x1c\x11\x13\r'>")


def test_ctrl_a_x_ends_and_restores(session: Session) -> None:
    """The quit key ends with 0 and leaves the terminal as it was."""
    assert session.is_raw()

    session.type(b"\x01x")

    assert session.end() == 0
    assert session.attributes() == session.before


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_and_restores(session: Session, number: signal.Signals, code: int) -> None:
    """Being told to end leaves nothing behind, and the code says by what."""
    session.process.send_signal(number)

    assert session.end() == code
    assert session.attributes() == session.before


def test_an_exception_restores() -> None:
    """Even a bug of ours leaves the terminal usable."""
    session = Session("raise")

    session.type(b"x")

    session.expect(b"thrown by the test")
    assert session.end() == 1
    assert session.attributes() == session.before
    session.close()


def test_an_editor_that_dies_with_its_guest_is_undone() -> None:
    """The alternate screen is left and the cursor shown again."""
    session = Session("modes")

    session.type(b"\x01x")

    session.expect(b"\x1b[?25h\x1b[?1049l\x1b[0m")
    session.end()
    session.close()


def test_the_prompt_steers_the_vm(session: Session) -> None:
    """Ctrl-a c opens it, commands act, Ctrl-a c closes it again."""
    session.type(b"\x01c")
    session.expect(b"(kvmkit) ")

    session.type(b"infx\x7fo\r")
    session.expect(b"an echo\r\n(kvmkit) ")
    session.type(b"pause\rresume\rreset\rpowerdown\r")
    session.expect(b"<pause>")
    session.expect(b"<resume>")
    session.expect(b"<reset>")
    session.expect(b"<powerdown>")
    session.type(b"what\r")
    session.expect(b"unknown command 'what'")
    session.type(b"\x01ck")
    session.expect(b"<b'k'>")


def test_the_prompt_quits(session: Session) -> None:
    """quit at the prompt ends the VM as Ctrl-a x does."""
    session.type(b"\x01cquit\r")

    assert session.end() == 0
    assert session.attributes() == session.before


def test_help_key(session: Session) -> None:
    """Ctrl-a h lists the keys."""
    session.type(b"\x01h")

    session.expect(b"Ctrl-a x")


def test_stopping_the_job_gives_the_terminal_back() -> None:
    """Under a shell with job control SIGTSTP pauses the VM, and fg takes it up again.

    A shell is needed: a process group whose parents are in another session is
    never stopped by SIGTSTP (POSIX, "orphaned process group").
    """
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash for job control")
    session = Session(program=[shell, "--norc", "--noprofile", "--noediting", "-i"], ready=SHELL)
    session.type(f"{sys.executable} {PROGRAM}\r".encode())
    session.expect(b"READY ")
    number = int(session.expect(b"."))

    os.kill(number, signal.SIGTSTP)
    session.expect(b"<pause>")
    session.expect(b"Stopped")
    assert session.attributes() == session.before

    session.type(b"fg\r")
    session.expect(b"<resume>")
    session.type(b"k")
    session.expect(b"<b'k'>")
    assert session.is_raw()
    session.type(b"\x01x")
    session.expect(SHELL)
    assert session.attributes() == session.before
    session.close()


def test_a_new_window_size_is_passed_on(session: Session) -> None:
    """A resized window tells the guest rows and columns."""
    termios.tcsetwinsize(session.slave, (50, 132))

    session.expect(b"<size 50x132>")


def test_a_reader_that_goes_away_ends_the_vm() -> None:
    """Output into a closed pipe ends as SIGPIPE would have it."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"READY")

    process.stdout.close()

    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
