"""The host's end of the agent's port: nothing waits for anything, and memory stays bounded."""

from __future__ import annotations

from types import SimpleNamespace as Any

from kvmkit.backends.agent_port import AgentPort


def make() -> tuple[AgentPort, list[str]]:
    """A port, and what it told the two sides around it."""
    seen: list[str] = []
    port = AgentPort(lambda: seen.append("wake"))
    port.attach(Any(kick=lambda: seen.append("kick")))  # type: ignore[arg-type]
    return port, seen


def test_what_the_guest_writes_is_fetched_at_once() -> None:
    """All of it, in order; the reader is told of each piece."""
    port, seen = make()

    port.take(b"one ")
    port.take(b"two")

    assert seen == ["wake", "wake"]
    assert port.receive() == b"one two"
    assert port.receive() == b""


def test_a_guest_that_writes_too_much_waits() -> None:
    """There is no room until the reader has been here; then the device is told."""
    port, seen = make()
    piece = bytes(port.room())

    port.take(piece)
    assert port.room() <= 0
    seen.clear()
    assert port.receive() == piece

    assert port.room() == len(piece)
    assert seen == ["kick"]


def test_what_is_sent_waits_for_the_guests_buffers() -> None:
    """However much it is."""
    port, seen = make()

    port.send(b"x" * 1_000_000)
    port.send(b"y")

    assert port.pending() == 1_000_001
    assert len(port.give(1_000_000)) == 1_000_000
    assert (port.give(4096), port.pending()) == (b"y", 0)
    assert seen == ["kick", "kick"]


def test_a_guest_that_closes_the_port_is_gone() -> None:
    """What was for it is void; the reader hears of it."""
    port, seen = make()
    port.guest_opened(True)
    assert not port.closed

    port.send(b"late")
    port.guest_opened(False)

    assert (port.closed, port.pending(), seen[-1]) == (True, 0, "wake")
