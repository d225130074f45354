"""A network card's side of a network: keeps what arrives, as long as it has room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LoopHost", "Station"]


class LoopHost:
    """A host whose watched descriptors and calls are served by :meth:`turn`."""

    paused = False

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.calls: list[Callable[[], None]] = []
        self.watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self.ram: Any = None

    def call(self, action: Callable[[], None]) -> None:
        action()

    def call_soon(self, action: Callable[[], None]) -> None:
        self.calls.append(action)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self.watched.pop(fd, None)
        if events:
            self.watched[fd] = events, callback

    def turn(self, timeout: float = 0.0) -> None:
        """One turn of an event loop."""
        import select

        poll = select.poll()
        for fd, (events, _) in self.watched.items():
            poll.register(fd, events)
        for fd, events in poll.poll(timeout * 1000):
            if fd in self.watched:
                self.watched[fd][1](events)
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Station:
    """Takes ``room`` frames."""

    mac = bytes.fromhex("525400123456")

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.frames: list[bytes] = []
        self.writables = 0
        self.link: bool | None = None

    def receive(self, frames: list[memoryview]) -> int:
        count = min(self.room, len(frames))
        self.room -= count
        self.frames += [bytes(frame) for frame in frames[:count]]
        return count

    def writable(self) -> None:
        self.writables += 1

    def set_link(self, up: bool) -> None:
        self.link = up
