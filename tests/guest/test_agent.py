"""The agent's protocol in a real guest, over a serial line: slow, but everywhere."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmkit.board.console import ConsoleInput
from kvmkit.board.power import EndKind
from kvmkit.guest import protocol
from kvmkit.guest.client import AgentClient, Session
from kvmkit.guest.initramfs import busybox_initramfs
from kvmkit.guest.instructions import agent_instructions, instructions_archive, order_records
from tests.guest.guests import PATIENCE, Guest, init_program

pytestmark = [pytest.mark.slow, pytest.mark.soft]


class Program:
    """A program in the guest, and what was heard of it."""

    def __init__(self) -> None:
        self.streams = {1: b"", 2: b""}
        self.session: Session | None = None

    @property
    def status(self) -> int | None:
        assert self.session is not None
        return self.session.status


class Link:
    """A client at the other end of a guest's COM3."""

    def __init__(self, guest: Guest) -> None:
        board = guest.vm.board
        self.lock = board.lock
        self.changed = threading.Condition(self.lock)
        self.entry = ConsoleInput(board.loop, board.lock, board.clock, hold=True)
        port = board.serial.ports[2]
        port._output, port._on_room = self.receive, self.entry.room
        self.entry.connect(port)
        self.client = AgentClient(self.entry.feed)

    def receive(self, data: bytes) -> None:
        with self.changed:
            self.client.receive(data)
            self.changed.notify_all()

    def until(self, there: object) -> None:
        with self.changed:
            assert self.changed.wait_for(there, PATIENCE)  # type: ignore[arg-type]

    def start(self, *argv: str, **how: object) -> Program:
        self.until(lambda: self.client.ready)
        program = Program()

        def on_output(stream: int, data: bytes) -> None:
            program.streams[stream] += data

        with self.lock:
            how.setdefault("mode", "pipe")
            order = order_records(argv, **how)  # type: ignore[arg-type]
            program.session = self.client.start(order, on_output, lambda session: None)
        return program

    def run(self, *argv: str, data: bytes = b"", **how: object) -> Program:
        program = self.start(*argv, **how)
        session = program.session
        assert session is not None
        with self.lock:
            session.write(data)
            session.close_input()
        self.until(lambda: session.ended)
        return program


@pytest.fixture(scope="module")
def guest(
    busybox: Path, kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Guest, Link]]:
    """A guest that takes orders, for all tests of this module but the last."""
    told = agent_instructions(hostname="somewhere", link="/dev/ttyS2", env={"FROM": "host"})
    initrd = busybox_initramfs(busybox, init=init_program("agent")) + instructions_archive(told)
    guest = Guest(kernel, tmp_path_factory.mktemp("guest"), initrd)
    with guest:
        yield guest, Link(guest)


@pytest.fixture
def link(guest: tuple[Guest, Link]) -> Link:
    """The guest's other end."""
    return guest[1]


def test_streams_are_separate_and_the_status_arrives(link: Link) -> None:
    """Output and errors on streams of their own, byte for byte, then the status."""
    done = link.run("sh", "-c", r"printf 'out\0\r\n'; echo err >&2; exit 7")
    assert (done.streams, done.status) == ({1: b"out\0\r\n", 2: b"err\n"}, 7)


def test_input_arrives_exactly_and_ends(link: Link) -> None:
    """All byte values and more than a window, to a program that ends with its input."""
    data = bytes(range(256)) * 16
    done = link.run("cat", data=data)
    assert (done.streams[1], done.status) == (data, 0)


def test_environment_user_and_directory(link: Link) -> None:
    """The order's variables, with the guest's own; another user, his home and groups."""
    done = link.run(
        "sh", "-c", "id; pwd; echo $HOME $USER $FROM $MORE; hostname", env={"MORE": "a b"}
    )
    lines = done.streams[1].decode().splitlines()
    assert lines == ["uid=0(root) gid=0(root)", "/root", "/root root host a b", "somewhere"]
    done = link.run("sh", "-c", "id; pwd; echo $HOME", user="1000:100", groups=[5], cwd="/tmp")
    lines = done.streams[1].decode().splitlines()
    assert lines == ["uid=1000 gid=100 groups=5(tty)", "/tmp", "/"]
    done = link.run("id", "-un", user="nobody")
    assert done.streams[1] == b"nobody\n"


@pytest.mark.parametrize(
    ("argv", "how", "status", "words"),
    [
        (["no-such"], {}, 127, b"no-such: not found in the guest\n"),
        (["/etc/passwd"], {}, 126, b"/etc/passwd: Permission denied\n"),
        (["true"], {"cwd": "/no"}, 126, b"/no: no such directory in the guest\n"),
        (["true"], {"user": "who"}, 126, b"who: no such user in the guest\n"),
    ],
)
def test_what_cannot_start_says_why(
    link: Link, argv: list[str], how: dict[str, str], status: int, words: bytes
) -> None:
    """A shell's statuses, and a line on the error stream."""
    done = link.run(*argv, **how)
    assert (done.status, done.streams[2]) == (status, words)


def test_signals_reach_the_whole_group(link: Link) -> None:
    """A shell and what it waits for end together."""
    program = link.start("sh", "-c", "echo go; sleep 1000; true")
    link.until(lambda: program.streams[1] == b"go\n")
    assert program.session is not None
    with link.lock:
        program.session.signal(15)
    link.until(lambda: program.session.ended)  # type: ignore[union-attr]
    assert program.status == 128 + 15


def test_terminal_has_a_size_that_changes(link: Link) -> None:
    """A pseudo terminal: its size, a change of it, and the key that interrupts."""
    program = link.start("sh", mode="tty", size=(40, 100), env={"PS1": "% "})
    session = program.session
    assert session is not None
    link.until(lambda: b"% " in program.streams[1])
    with link.lock:
        session.write(b"tty; stty size\n")
    link.until(lambda: b"40 100\r\n% " in program.streams[1])
    with link.lock:
        session.resize(50, 120)
        session.write(b"stty size; sleep 1000\n")
    link.until(lambda: b"50 120\r\n" in program.streams[1])
    with link.lock:
        session.write(b"\x03")
    link.until(lambda: b"^C\r\n" in program.streams[1])
    with link.lock:
        session.write(b"exit 3\n")
    link.until(lambda: session.ended)
    assert b"/dev/pts/0" in program.streams[1]
    assert program.status == 3


def test_programs_run_side_by_side(link: Link) -> None:
    """Several sessions at once; the slow one does not hold up the quick one."""
    slow = link.start("cat")
    quick = [link.start("echo", str(number)) for number in range(5)]
    for number, program in enumerate(quick):
        link.until(lambda program=program: program.session.ended)
        assert program.streams[1] == b"%d\n" % number
    assert slow.session is not None
    with link.lock:
        slow.session.write(b"still here")
        slow.session.close_input()
    link.until(lambda: slow.session.ended)  # type: ignore[union-attr]
    assert slow.streams[1] == b"still here"


def test_a_background_process_does_not_hold_the_end(link: Link) -> None:
    """The status comes when the program ends, though its output is still open elsewhere."""
    done = link.run("sh", "-c", "sleep 1000 & echo started")
    assert (done.streams[1], done.status) == (b"started\n", 0)


def test_a_new_host_finds_a_clean_agent(link: Link) -> None:
    """After a hello the programs of the host before are gone."""
    old = link.start("sh", "-c", "echo up; sleep 999")
    link.until(lambda: old.streams[1] == b"up\n")
    with link.lock:
        link.client.hello()
    link.until(lambda: old.session.ended and link.client.ready)  # type: ignore[union-attr]
    done = link.run("sh", "-c", "sleep 0.2; ps | grep -c '[s]leep 999'")
    assert done.streams[1] == b"0\n"


def test_nonsense_is_answered_and_survived(link: Link) -> None:
    """Frames without a session, of unknown types, with too much input; the agent goes on."""
    answers: list[bytes] = []
    program = link.start("sleep", "1000")
    assert program.session is not None
    ident = program.session.ident
    with link.lock:
        link.client.latency = answers.append
        for kind in range(256):
            if kind not in (protocol.HELLO, protocol.POWER, protocol.PING):
                link.entry.feed(protocol.encode(kind, 77, 9, b"\xff" * 5))
        for kind in (protocol.WINDOW_MORE, protocol.RESIZE, protocol.SIGNAL):
            link.entry.feed(protocol.encode(kind, ident, 3, b"\xff"))
        link.entry.feed(protocol.encode(protocol.PING, 5, 0, b"there?"))
    link.until(lambda: answers == [b"there?"])
    assert link.run("echo", "fine").streams[1] == b"fine\n"
    with link.lock:
        program.session.close()


def test_random_frames_are_survived(link: Link) -> None:
    """Orders, data and all else at random, for sessions that are there and not."""
    chance = random.Random(3)
    answers: list[bytes] = []
    kinds = [kind for kind in range(20) if kind not in (protocol.HELLO, protocol.POWER)]
    pieces = (b"arg=", b"env=", b"cwd=", b"user=", b"mode=tty", b"groups=1,2,,x", b"rows=9", b"=")
    with link.lock:
        link.client.latency = answers.append
        for _ in range(400):
            payload = b"\0".join(chance.choices(pieces, k=chance.randrange(6)))
            payload = chance.choice((payload, chance.randbytes(chance.randrange(300))))
            frame = (chance.choice(kinds), chance.randrange(900, 980), chance.randrange(4))
            link.entry.feed(protocol.encode(*frame, payload))
        for ident in range(900, 980):
            link.entry.feed(protocol.encode(protocol.CLOSE, ident))
        link.entry.feed(protocol.encode(protocol.PING, 0, 0, b"alive"))
    link.until(lambda: b"alive" in answers)
    assert link.run("echo", "fine").streams[1] == b"fine\n"


def test_power_off_by_order(guest: tuple[Guest, Link]) -> None:
    """The guest ends its processes and switches off. The last test: the guest is gone."""
    machine, link = guest
    link.until(lambda: link.client.ready)
    with link.lock:
        link.client.power()
    _, reports, ending = machine.finish()
    assert ending.kind is EndKind.POWERED_OFF
    assert reports == ["agent 1"]
