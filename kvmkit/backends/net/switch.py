"""A network between the VMs of one program: an Ethernet switch without wires.

It learns which station is behind which port as IEEE 802.1D bridges do (7.8), with
bounds: so many addresses, so many bytes that wait at a port. What exceeds them is
flooded, or lost.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque

from kvmkit.virtio.net_features import F_CSUM, F_GUEST_CSUM
from kvmkit.virtio.net_header import HEADER_SIZE, only_checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmkit.virtio.net_backend import NetHost, Station

__all__ = ["Network", "Port"]

ADDRESSES_MAX: Final = 1024
WAITING_MAX: Final = 1 << 20
"""Bytes that may wait at a port for its guest."""

MTU: Final = 1500


class Network:
    """A switch; each card gets a :meth:`port` of it. ``mtu`` in bytes.

    Its methods may be called from any thread.
    """

    def __init__(self, *, mtu: int = MTU) -> None:
        self.mtu = mtu
        self._lock = allocate_lock()  # a leaf: nothing is called with it held
        self._ports: list[Port] = []
        self._learned: dict[bytes, Port] = {}

    def port(self) -> Port:
        """A new port, for one card."""
        port = Port(self)
        with self._lock:
            self._ports.append(port)
        return port

    def forward(self, frame: bytearray, source: Port) -> None:
        """Pass on a frame with its header."""
        target, sender = (bytes(frame[at : at + 6]) for at in (HEADER_SIZE, HEADER_SIZE + 6))
        with self._lock:
            known = sender in self._learned or len(self._learned) < ADDRESSES_MAX
            if known and not sender[0] & 1:
                self._learned[sender] = source
            found = None if target[0] & 1 else self._learned.get(target)
            targets = [found] if found is not None else list(self._ports)
        for port in targets:
            if port is not source:
                port.put(frame if found is not None else bytearray(frame))

    def forget(self, port: Port) -> None:
        """Nobody is at this port any more."""
        with self._lock:
            if port in self._ports:
                self._ports.remove(port)
            for address in [one for one, at in self._learned.items() if at is port]:
                del self._learned[address]

    @property
    def learned(self) -> int:
        """How many stations it knows."""
        return len(self._learned)


class Port:
    """One port of a :class:`Network`, the backend of one card."""

    features = 1 << F_CSUM | 1 << F_GUEST_CSUM
    header = True
    shared = True

    def __init__(self, network: Network) -> None:
        self.network = network
        self.mtu = network.mtu
        self.lost = 0
        """Frames that had no room."""
        self._lock = allocate_lock()
        self._frames: deque[bytearray] = deque()
        self._waiting = 0  # bytes
        self._scheduled = False
        self._host: NetHost | None = None

    def open(self, host: NetHost, station: Station) -> None:
        """See :class:`~kvmkit.virtio.net_backend.NetBackend`, as with all that follows."""
        self._host = host
        self._station = station

    def negotiated(self, features: int) -> None:
        """The card completes what its driver cannot take."""

    def send(self, frames: Sequence[Sequence[memoryview]]) -> int:
        """Pass them on; a guest's header counts only as far as it is about a checksum."""
        for parts in frames:
            frame = bytearray().join(parts)
            frame[:HEADER_SIZE] = only_checksum(
                bytes(frame[:HEADER_SIZE]), len(frame) - HEADER_SIZE
            )
            self.network.forward(frame, self)
        return len(frames)

    def put(self, frame: bytearray) -> None:
        """A frame for this port's card. From any thread."""
        host = self._host
        if host is None:
            return
        with self._lock:
            if self._waiting + len(frame) > WAITING_MAX:
                self.lost += 1
                return
            self._frames.append(frame)
            self._waiting += len(frame)
            if self._scheduled:
                return
            self._scheduled = True
        host.call_soon(self._deliver)

    def resume(self) -> None:
        """The card takes frames again."""
        if self._frames and self._host is not None:
            self._host.call_soon(self._deliver)

    def _deliver(self) -> None:
        """Give the card what waits; on its I/O thread, under its board's lock."""
        with self._lock:
            self._scheduled = False
            frames = list(self._frames)
        taken = self._station.receive([memoryview(frame) for frame in frames])
        with self._lock:
            for _ in range(taken):
                self._waiting -= len(self._frames.popleft())

    def close(self) -> None:
        """Pull the plug."""
        self._host = None
        self.network.forget(self)
        with self._lock:
            self._frames.clear()
            self._waiting = 0
