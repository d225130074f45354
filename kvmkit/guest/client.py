"""The host's side of the agent's protocol: programs in a guest that is up.

A pure object: bytes from the guest go in through :meth:`AgentClient.receive`, those for
it come out of the callable ``send``. It knows no port, thread or descriptor, and
nothing that the guest sends raises an exception.
"""

from __future__ import annotations

import os

from kvmkit.errors import KvmkitError
from kvmkit.guest import protocol
from kvmkit.guest.protocol import Decoder, Frame, ProtocolError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AgentClient", "AgentGone", "Session"]

_SESSION_MAX = 0xFFFF
_RENEW = 16384  # bytes taken after which the guest hears that it may send more


class AgentGone(KvmkitError):
    """The guest's agent does not answer any more."""

    exit_code = 109


class Session:
    """A program in the guest. Made by :meth:`AgentClient.start`."""

    def __init__(
        self,
        client: AgentClient,
        ident: int,
        on_output: Callable[[int, bytes], None],
        on_end: Callable[[Session], None],
    ) -> None:
        self._client = client
        self.ident = ident
        self._on_output = on_output
        self._on_end = on_end
        self.pid = 0
        self.status: int | None = None
        """As a shell has it, once the program has ended; None if it never started."""
        self.problem = ""
        """Why there is no status."""
        self.ended = False
        self._credit = client.window
        self._waiting = bytearray()
        self._input_open = True
        self._input_ends = False
        self._taken = [0, 0, 0]
        self.holds = False
        """Whether output counts as taken only when :meth:`taken` says so; else when
        ``on_output`` returns."""
        self.on_room: Callable[[], None] | None = None
        """Called when :attr:`backlog` has become smaller."""

    # To the guest

    @property
    def backlog(self) -> int:
        """Bytes of input that the guest has no room for yet."""
        return len(self._waiting)

    def write(self, data: bytes) -> None:
        """Give the program input; it is kept here until the guest has room."""
        if self._input_open and not self._input_ends and not self.ended:
            self._waiting += data
            self._push()

    def close_input(self) -> None:
        """The end of the input, behind what was written. A terminal needs its own character."""
        self._input_ends = True
        self._push()

    def _push(self) -> None:
        send = self._client.send
        while self._waiting and self._credit:
            size = min(self._credit, len(self._waiting), protocol.FRAME_MAX)
            send(encode(protocol.DATA, self.ident, protocol.INPUT, bytes(self._waiting[:size])))
            del self._waiting[:size]
            self._credit -= size
        if self._input_ends and self._input_open and not self._waiting:
            self._input_open = False
            send(encode(protocol.END, self.ident, protocol.INPUT))

    def signal(self, number: int) -> None:
        """Send the program's process group a signal; on a terminal, the foreground's."""
        if not self.ended:
            self._client.send(encode(protocol.SIGNAL, self.ident, 0, number))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the program's terminal its size."""
        if not self.ended:
            size = (rows & 0xFFFF) | (columns & 0xFFFF) << 16
            self._client.send(encode(protocol.RESIZE, self.ident, 0, size))

    def close(self) -> None:
        """Hang up: the program gets SIGHUP, and nothing is heard of it any more."""
        if not self.ended:
            self._client.send(encode(protocol.CLOSE, self.ident))
            self._client.forget(self)
            self.ended = True

    def taken(self, stream: int, size: int) -> None:
        """So many bytes of output have reached whom they were for: the guest may send more."""
        taken = self._taken[stream] = self._taken[stream] + size
        if taken >= min(_RENEW, protocol.WINDOW // 2) and not self.ended:
            self._taken[stream] = 0
            self._client.send(encode(protocol.WINDOW_MORE, self.ident, stream, taken))

    # From the guest

    def take(self, frame: Frame) -> None:
        """Do what a frame for this session says."""
        kind, stream = frame.type, frame.stream
        if kind == protocol.DATA and stream in (protocol.OUTPUT, protocol.ERROR):
            self._on_output(stream, frame.payload)
            if not self.holds:
                self.taken(stream, len(frame.payload))
        elif kind == protocol.END and stream in (protocol.OUTPUT, protocol.ERROR):
            self._on_output(stream, b"")
        elif kind == protocol.WINDOW_MORE and stream == protocol.INPUT:
            self._credit += frame.number
            self._push()
            if self.on_room is not None:
                self.on_room()
        elif kind == protocol.STARTED:
            self.pid = frame.number
        elif kind == protocol.EXITED:
            self.status = frame.number & 0xFF
            # What it left in the background may write no more.
            self._client.send(encode(protocol.CLOSE, self.ident))
            self.finish()
        elif kind == protocol.FAILED:
            self.finish(frame.payload[4:].decode("utf-8", "replace") or "the agent refused")

    def finish(self, problem: str = "") -> None:
        """The session is over; tell whoever waits, once."""
        if not self.ended:
            self.ended = True
            self.problem = problem
            self._on_end(self)


class AgentClient:
    """The agent of one guest; ``send`` takes bytes for it and keeps what it cannot send yet.

    ``on_ready(client)`` is called when the agent has said hello, and again if it
    had to start anew.
    """

    def __init__(
        self,
        send: Callable[[bytes], object],
        on_ready: Callable[[AgentClient], None] | None = None,
    ) -> None:
        self.send = send
        self.window = protocol.WINDOW
        self.ready = False
        self.problem = ""
        """Why nothing the guest sends is understood any more; empty as long as all is well."""
        self._on_ready = on_ready
        self._token = ""  # of our hello that was not answered yet
        self._decoder = Decoder()
        self._sessions: dict[int, Session] = {}
        self._next = 1
        self.latency: Callable[[bytes], None] | None = None

    def hello(self) -> None:
        """Say that a new host is there: the agent hangs up what an earlier one left behind.

        Not needed for a link that the agent has just opened: it says hello by itself.
        """
        self.ready = False
        self._token = os.urandom(8).hex()
        pairs = [("protocol", str(protocol.VERSION)), ("window", str(protocol.WINDOW))]
        pairs.append(("token", self._token))
        self.send(encode(protocol.HELLO, 0, 0, protocol.records(pairs)))

    def start(
        self,
        order: list[tuple[str, str]],
        on_output: Callable[[int, bytes], None],
        on_end: Callable[[Session], None],
    ) -> Session:
        """Start a program; the order is made by ``instructions.order_records``.

        ``on_output(stream, data)`` gets stream 1 (output, all of a terminal's) and 2
        (errors), with no data at a stream's end; ``on_end(session)`` is called once,
        when the program has ended and all it had written has come. Both are called
        by :meth:`receive`. Raises AgentGone when the agent is not there.
        """
        if not self.ready:
            raise AgentGone(self.problem or "the guest's agent has not answered yet")
        ident = self._free_ident()
        session = self._sessions[ident] = Session(self, ident, on_output, on_end)
        self.send(protocol.order_frames(ident, protocol.records(order)))
        return session

    def _free_ident(self) -> int:
        # Not one that was used lately: late frames of an old session must not hit a new one.
        for _ in range(_SESSION_MAX):
            ident = self._next
            self._next = ident % _SESSION_MAX + 1
            if ident not in self._sessions:
                return ident
        raise AgentGone("too many programs run through the guest's agent")

    def power(self, how: int = protocol.POWER_OFF) -> None:
        """End the guest in good order: processes are asked to end, disks are written."""
        self.send(encode(protocol.POWER, 0, 0, how))

    def ping(self, payload: bytes = b"") -> None:
        """Ask for a sign of life; the answer is given to :attr:`latency`."""
        self.send(encode(protocol.PING, 0, 0, payload[:256]))

    def forget(self, session: Session) -> None:
        """Let go of a session that is over."""
        if self._sessions.get(session.ident) is session:
            del self._sessions[session.ident]

    # From the guest

    def receive(self, data: bytes) -> None:
        """Take bytes of the guest."""
        if self.problem:
            return
        try:
            frames = self._decoder.feed(data)
        except ProtocolError as error:
            self.gone(f"the guest's agent sent {error}")
            return
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.type == protocol.HELLO:
            self._take_hello(frame)
        elif frame.type == protocol.PING:
            self.send(encode(protocol.PONG, frame.session, 0, frame.payload[:256]))
        elif frame.type == protocol.PONG:
            if self.latency is not None:
                self.latency(frame.payload)
        elif frame.type == protocol.FAILED and not frame.session:
            self.gone(frame.payload[4:].decode("utf-8", "replace"))
        else:
            session = self._sessions.get(frame.session)
            if session is not None:
                session.take(frame)
                if session.ended:
                    self.forget(session)

    def _take_hello(self, frame: Frame) -> None:
        texts = [text.partition(b"=")[::2] for text in frame.payload.split(b"\0")]
        if self._token and (b"token", self._token.encode()) not in texts:
            return  # was under way when we said hello; the answer follows
        self._token = ""
        # Whoever says hello knows of no sessions.
        self._end_all("the guest's agent started anew")
        for key, value in texts:
            if key == b"window" and value.isdigit() and len(value) < 10:
                self.window = int(value)
        self.ready = True
        if self._on_ready is not None:
            self._on_ready(self)

    def _end_all(self, problem: str) -> None:
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.finish(problem)

    def gone(self, problem: str) -> None:
        """The link is broken, or its end has come: nothing will be heard any more."""
        self.ready = False
        self.problem = problem or "the guest's agent is gone"
        self._end_all(self.problem)
