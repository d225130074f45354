"""Which frames a network card takes.

Virtio 1.2, section 5.1.6.5.1 (receive filtering) and 5.1.6.5.2 (MAC addresses).
The device may take more than it was told to; it does when the table is full.
"""

from __future__ import annotations

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["FilterState", "ReceiveFilter"]

# Commands of class VIRTIO_NET_CTRL_RX
RX_PROMISC: Final = 0
RX_ALLMULTI: Final = 1
RX_ALLUNI: Final = 2
RX_NOMULTI: Final = 3
RX_NOUNI: Final = 4
RX_NOBCAST: Final = 5
RX_MODES: Final = 6

TABLE_MAX: Final = 64  # addresses of each kind
MAC_SIZE: Final = 6
BROADCAST: Final = b"\xff" * MAC_SIZE


class FilterState(Record):
    """The record of a filter: a bit for each mode, and the addresses, None for all."""

    modes: int
    unicast: tuple[bytes, ...] | None
    multicast: tuple[bytes, ...] | None


class ReceiveFilter:
    """The filter of one card; at first everything is taken (5.1.6.5.1: promiscuous)."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """All frames are for us, until the driver says otherwise."""
        self._modes = 1 << RX_PROMISC
        self._unicast: frozenset[bytes] | None = frozenset()
        self._multicast: frozenset[bytes] | None = frozenset()

    def set_mode(self, mode: int, on: bool) -> bool:
        """One of the modes above; False if there is no such mode."""
        if mode >= RX_MODES:
            return False
        self._modes = self._modes & ~(1 << mode) | on << mode
        return True

    def set_table(self, data: bytes) -> bool:
        """Two lists, each of a 32-bit count and addresses; False if they are none."""
        lists: list[frozenset[bytes] | None] = []
        for _ in range(2):
            count = int.from_bytes(data[:4], "little")
            size = count * MAC_SIZE
            if len(data) < 4 + size:
                return False
            addresses = data[4 : 4 + size]
            data = data[4 + size :]
            if count > TABLE_MAX:
                lists.append(None)
            else:
                starts = range(0, size, MAC_SIZE)
                lists.append(frozenset(addresses[at : at + MAC_SIZE] for at in starts))
        if data:
            return False
        self._unicast, self._multicast = lists
        return True

    def takes(self, address: bytes, mac: bytes) -> bool:
        """Whether a card of address ``mac`` takes frames for ``address``."""
        modes = self._modes
        if modes & 1 << RX_PROMISC:
            return True
        if address == BROADCAST:
            return not modes & 1 << RX_NOBCAST
        if address[0] & 1:
            if modes & 1 << RX_NOMULTI:
                return False
            table = self._multicast
            return bool(modes & 1 << RX_ALLMULTI) or table is None or address in table
        if modes & 1 << RX_NOUNI:
            return False
        if modes & 1 << RX_ALLUNI or address == mac:
            return True
        return self._unicast is None or address in self._unicast

    def state(self) -> FilterState:
        unicast, multicast = self._unicast, self._multicast
        return FilterState(
            self._modes,
            None if unicast is None else tuple(sorted(unicast)),
            None if multicast is None else tuple(sorted(multicast)),
        )

    def restore(self, state: FilterState) -> None:
        self._modes = state.modes
        self._unicast = None if state.unicast is None else frozenset(state.unicast)
        self._multicast = None if state.multicast is None else frozenset(state.multicast)
