"""The program that a run is about: in the guest, started and heard through its agent.

Everything here happens on the main thread, except for the port's wake-ups.
"""

from __future__ import annotations

from time import monotonic

from kvmkit.backends.agent_port import AgentPort
from kvmkit.guest.client import AgentClient, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GuestCommand"]

INSISTENCE = 3
"""So many times the same signal within :data:`MOMENT` seconds is for us, not the program."""

MOMENT = 2.0


class GuestCommand:
    """Starts ``order`` as soon as the agent is there. ``wake`` is called, on any thread,
    when :meth:`attend` has something to do."""

    def __init__(self, order: list[tuple[str, str]], wake: Callable[[], None]) -> None:
        self.port = AgentPort(wake)
        self._client = AgentClient(self.port.send, self._begin)
        self._order = order
        self._session: Session | None = None
        self._early = bytearray()
        self._early_end = False
        self._size: tuple[int, int] | None = None
        self._seen: dict[int, list[float]] = {}
        self.on_output: Callable[[int, bytes], None] = lambda stream, data: None
        self.gone = False
        """Set when the guest has ended."""

    @property
    def ended(self) -> bool:
        """Whether the program or its guest has ended."""
        return self.gone or (self._session is not None and self._session.ended)

    @property
    def status(self) -> int | None:
        """As a shell has it; None if there is none."""
        return None if self._session is None else self._session.status

    @property
    def problem(self) -> str:
        """Why there is no status."""
        if self._session is not None:
            return self._session.problem
        return self._client.problem

    def _begin(self, client: AgentClient) -> None:
        if self._session is not None:  # it has started anew: that is the end of this one
            return
        session = self._session = client.start(
            self._order, lambda stream, data: self.on_output(stream, data), lambda session: None
        )
        session.holds = True
        session.write(bytes(self._early))
        if self._early_end:
            session.close_input()
        if self._size is not None:
            session.resize(*self._size)

    def attend(self) -> None:
        """Take what the guest has sent."""
        data = self.port.receive()
        if data:
            self._client.receive(data)
        if self.port.closed and not self.ended:
            self._client.gone("the guest's agent is gone")
            self.gone = True

    def power_off(self) -> None:
        """Let the guest write what it has to write, and end."""
        self._client.power()

    # The program's

    def wants_input(self, most: int) -> bool:
        """Whether less than ``most`` bytes of input wait."""
        waiting = len(self._early) if self._session is None else self._session.backlog
        return waiting < most

    def write(self, data: bytes) -> None:
        """Input."""
        if self._session is None:
            self._early += data
        else:
            self._session.write(data)

    def close_input(self) -> None:
        """The input's end."""
        if self._session is None:
            self._early_end = True
        else:
            self._session.close_input()

    def taken(self, stream: int, size: int) -> None:
        """So much output is where it belongs."""
        if self._session is not None:
            self._session.taken(stream, size)

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's size."""
        self._size = rows, columns
        if self._session is not None:
            self._session.resize(rows, columns)

    def signal(self, number: int) -> bool:
        """Send it a signal; False before it runs, and when somebody insists."""
        now = monotonic()
        seen = [time for time in self._seen.get(number, ()) if now - time < MOMENT]
        self._seen[number] = [*seen, now]
        if self._session is None or len(seen) + 1 >= INSISTENCE:
            return False
        self._session.signal(number)
        return True
