"""The host's side of the agent's protocol: frames, and a client against a made-up agent."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.guest import protocol
from kvmkit.guest.client import AgentClient, AgentGone, Session
from kvmkit.guest.protocol import Decoder, Frame, ProtocolError, encode, order_frames

FRAMES = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.binary(max_size=300),
)


class Agent:
    """The other end of a client: what it got, and a way to answer."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.got: list[Frame] = []
        self.client = AgentClient(lambda data: self.got.extend(self.decoder.feed(data)))
        self.outputs: list[tuple[int, bytes]] = []
        self.ended: list[Session] = []

    def say(self, kind: int, session: int = 0, stream: int = 0, payload: bytes | int = b"") -> None:
        self.client.receive(encode(kind, session, stream, payload))

    def hello(self, *texts: str) -> None:
        self.say(protocol.HELLO, payload="\0".join(("protocol=1", *texts)).encode())

    def start(self) -> Session:
        return self.client.start(
            [("arg", "x")], lambda *output: self.outputs.append(output), self.ended.append
        )

    def data(self) -> bytes:
        """All input that came."""
        return b"".join(frame.payload for frame in self.got if frame.type == protocol.DATA)


@pytest.fixture
def agent() -> Agent:
    """One that has said hello."""
    agent = Agent()
    agent.hello()
    return agent


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 400), max_size=30))
def test_frames_survive_any_pieces(frames: list[Frame], cuts: list[int]) -> None:
    """Whatever pieces a stream comes in, the frames are those that were sent."""
    data = b"".join(encode(one.type, one.session, one.stream, one.payload) for one in frames)
    decoder, found = Decoder(), []
    for cut in cuts:
        found += decoder.feed(data[:cut])
        data = data[cut:]
    assert found + decoder.feed(data) == frames


def test_a_frame_that_is_too_long_is_an_error() -> None:
    """Before its payload is waited for."""
    with pytest.raises(ProtocolError, match="65537"):
        Decoder().feed((65537).to_bytes(4, "little") + bytes(4))


def test_a_long_order_takes_several_frames() -> None:
    """All but the last are parts."""
    frames = Decoder().feed(order_frames(5, b"x" * 140000))
    assert [frame.type for frame in frames] == [protocol.ORDER, protocol.ORDER, protocol.START]
    assert b"".join(frame.payload for frame in frames) == b"x" * 140000


def test_a_program_from_start_to_end(agent: Agent) -> None:
    """Its order, its output on two streams, its status, once."""
    session = agent.start()
    assert agent.got == [Frame(protocol.START, session.ident, 0, b"arg=x\0")]
    agent.say(protocol.STARTED, session.ident, 0, 42)
    agent.say(protocol.DATA, session.ident, 1, b"out")
    agent.say(protocol.DATA, session.ident, 2, b"err")
    agent.say(protocol.EXITED, session.ident, 0, 7)
    agent.say(protocol.EXITED, session.ident, 0, 8)
    assert agent.outputs == [(1, b"out"), (2, b"err")]
    assert (agent.ended, session.pid, session.status) == ([session], 42, 7)


def test_input_waits_for_room(agent: Agent) -> None:
    """Never more under way than the agent allows; the end comes behind all of it."""
    agent.hello("window=1000")
    session = agent.start()
    session.write(b"a" * 1500)
    session.close_input()
    assert (len(agent.data()), session.backlog) == (1000, 500)
    assert agent.got[-1].type == protocol.DATA
    agent.say(protocol.WINDOW_MORE, session.ident, 0, 600)
    assert (len(agent.data()), session.backlog) == (1500, 0)
    assert agent.got[-1] == Frame(protocol.END, session.ident, 0, b"")
    session.write(b"late")
    assert len(agent.data()) == 1500


def test_output_that_was_taken_makes_room(agent: Agent) -> None:
    """In portions, so that not every frame is answered."""
    session = agent.start()
    for _ in range(8):
        agent.say(protocol.DATA, session.ident, 1, b"x" * 8000)
    more = [frame for frame in agent.got if frame.type == protocol.WINDOW_MORE]
    assert 0 < len(more) < 8
    assert sum(frame.number for frame in more) > 40000


def test_nothing_starts_before_hello() -> None:
    """A clear error instead of a program that never starts."""
    with pytest.raises(AgentGone, match="not answered"):
        Agent().start()


def test_a_hello_under_way_is_not_the_answer(agent: Agent) -> None:
    """Only the one with our token says that the agent has taken ours."""
    agent.client.hello()
    agent.hello()
    assert not agent.client.ready
    token = agent.got[-1].payload.partition(b"token=")[2].rstrip(b"\0").decode()
    agent.hello(f"token={token}")
    assert agent.client.ready


def test_a_new_agent_ends_what_ran(agent: Agent) -> None:
    """After a reboot, say: whoever waits for a program is told."""
    session = agent.start()
    agent.hello()
    assert (session.ended, session.status) == (True, None)
    assert "anew" in session.problem


def test_a_session_that_failed_says_why(agent: Agent) -> None:
    """The agent's own words."""
    session = agent.start()
    agent.say(protocol.FAILED, session.ident, 0, (11).to_bytes(4, "little") + b"no memory")
    assert (session.ended, session.status, session.problem) == (True, None, "no memory")


def test_a_broken_link_ends_everything(agent: Agent) -> None:
    """Bytes that are no frames: nothing that follows is believed."""
    session = agent.start()
    agent.client.receive(b"\xff" * 8)
    agent.hello()
    assert session.ended
    assert not agent.client.ready
    with pytest.raises(AgentGone, match="sent a frame of"):
        agent.start()


def test_identifiers_are_not_used_again_at_once(agent: Agent) -> None:
    """Late frames of an old session must not reach a new one."""
    first = agent.start()
    first.close()
    assert agent.start().ident != first.ident
    assert agent.got[1] == Frame(protocol.CLOSE, first.ident)


@settings(deadline=None)
@given(st.lists(FRAMES | st.binary(max_size=40), max_size=12))
def test_no_guest_breaks_the_client(parts: list[Frame | bytes]) -> None:
    """Whatever a guest sends, nothing is raised; sessions end at most once."""
    agent = Agent()
    agent.hello()
    session = agent.start()
    session.write(b"x" * 70000)
    for part in parts:
        if isinstance(part, Frame):
            kind = part.type % 16
            agent.say(kind, part.session % 3, part.stream % 4, part.payload)
        else:
            agent.client.receive(part)
    assert len(agent.ended) <= 1
