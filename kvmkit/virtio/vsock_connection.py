"""One connection of the socket device: its state, credit, and what is to be sent.

Virtio 1.2, section 5.10.6.3 (buffer space management), 5.10.6.6 (stream sockets).
"""

from __future__ import annotations

from kvmkit.virtio import vsock_packet as packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    from kvmkit.virtio.vsock import Vsock
    from kvmkit.virtio.vsock_packet import Header

    class Peer(Protocol):
        """The host's end of a connection. All methods are called with the lock under which
        devices run, and must not block."""

        def connected(self, connection: Connection) -> None:
            """The guest has taken the connection that the host asked for."""

        def take(self, data: bytes) -> None:
            """The guest's bytes; never more than :data:`BUFFER` that have not been
            reported by :meth:`Connection.taken`."""

        def take_end(self) -> None:
            """The guest sends no more."""

        def pending(self) -> int:
            """How many bytes it has for the guest."""

        def give(self, most: int) -> bytes:
            """The next of them."""

        def closed(self) -> None:
            """The connection is no more. What was taken before may still be handed on,
            what is pending is void."""


__all__ = ["BUFFER", "Connection"]

BUFFER: Final = 128 << 10
"""Bytes that the guest may have sent and the host's end not handed on: ``buf_alloc``."""

_MASK = 0xFFFF_FFFF

# In which order what is to be sent goes out
_ORDER: Final = (
    packet.OP_RST,
    packet.OP_REQUEST,
    packet.OP_RESPONSE,
    packet.OP_RW,
    packet.OP_CREDIT_UPDATE,
    packet.OP_CREDIT_REQUEST,
    packet.OP_SHUTDOWN,
)


class Connection:
    """Between ``host_port`` and the guest's ``guest_port``.

    The methods for peers are called with the lock: through ``connection.device.call``.
    """

    def __init__(self, device: Vsock, host_port: int, guest_port: int, peer: Peer) -> None:
        self.device = device
        self.host_port = host_port
        self.guest_port = guest_port
        self.peer = peer
        self.established = False
        self.alive = True
        self.dialed = False
        """The host asked for it, and the guest has not answered."""
        self._to_send = 0  # a bit for each operation
        self._sent = 0  # tx_cnt
        self._forwarded = 0  # fwd_cnt
        self._received = 0
        self._told = 0  # the fwd_cnt that the guest knows
        self._peer_alloc = 0
        self._peer_forwarded = 0
        self._guest_shut = 0  # SHUTDOWN flags of the guest
        self._host_shut = 0  # ours, wanted or sent
        self._asked_credit = False

    # For peers

    def accept(self) -> None:
        """The host takes the connection that the guest asked for."""
        self.established = True
        self._want(packet.OP_RESPONSE)
        self._want(packet.OP_RW)

    def taken(self, size: int) -> None:
        """The peer has handed on ``size`` bytes: the guest may send as many more."""
        self._forwarded += size
        if self._forwarded - self._told >= BUFFER // 2 and not self._guest_shut & 2:
            self._want(packet.OP_CREDIT_UPDATE)
        self._finish()

    def ready(self) -> None:
        """The peer has bytes for the guest."""
        self._want(packet.OP_RW)

    def shut(self, flags: int) -> None:
        """The host's end will receive (1) or send (2) no more, after what is pending."""
        if self.alive and flags & ~self._host_shut:
            self._host_shut |= flags
            self._want(packet.OP_SHUTDOWN)

    def abort(self) -> None:
        """End it at once; the guest sees a reset."""
        if self.alive:
            self.device.reset_connection(self)

    # From the guest

    def hear(self, header: Header, data: list[memoryview]) -> bool:
        """A packet of this connection; False if it breaks the rules."""
        self._peer_alloc, self._peer_forwarded = header.buf_alloc, header.fwd_cnt
        op = header.op
        if op == packet.OP_RESPONSE:
            if not self.dialed:
                return False
            self.dialed = False
            self.established = True
            self.peer.connected(self)
        elif not self.established:
            return False
        elif op == packet.OP_RW:
            if not self._receive(header.size, data):
                return False
        elif op == packet.OP_SHUTDOWN:
            self._hear_shutdown(header.flags)
        elif op == packet.OP_CREDIT_REQUEST:
            self._want(packet.OP_CREDIT_UPDATE)
        elif op != packet.OP_CREDIT_UPDATE:
            return False
        if self.credit:
            self._asked_credit = False
        if self.alive and (self.peer.pending() or self._to_send):
            self._want(packet.OP_RW)
        return True

    def _receive(self, size: int, data: list[memoryview]) -> bool:
        if size > BUFFER - (self._received - self._forwarded):
            return False  # more than it had credit for
        if self._guest_shut & packet.SHUTDOWN_SEND:
            return False
        self._received += size
        if self._host_shut & packet.SHUTDOWN_RECEIVE:
            self._forwarded += size  # nobody wants it
        elif size:
            self.peer.take(b"".join(data))
        return True

    def _hear_shutdown(self, flags: int) -> None:
        new = flags & packet.SHUTDOWN_BOTH & ~self._guest_shut
        self._guest_shut |= new
        if new & packet.SHUTDOWN_SEND:
            self.peer.take_end()
        self._finish()

    def _finish(self) -> None:
        """After the guest's goodbye, once all it sent is handed on: the reset that ends it."""
        if (
            self.alive
            and self._guest_shut == packet.SHUTDOWN_BOTH
            and self._forwarded == self._received
        ):
            self.device.reset_connection(self)

    def open_with(self, header: Header) -> None:
        """The guest's request for it."""
        self._peer_alloc, self._peer_forwarded = header.buf_alloc, header.fwd_cnt

    # To the guest

    def dial(self) -> None:
        """Ask the guest for it."""
        self.dialed = True
        self._want(packet.OP_REQUEST)

    def _want(self, op: int) -> None:
        if self.alive:
            self._to_send |= 1 << op
            self.device.has_to_send(self)

    def next_op(self) -> int:
        """What is to be sent next; 0 for nothing, or nothing that can be sent now."""
        if not self._to_send:
            return 0
        for op in _ORDER:
            if self._to_send >> op & 1:
                if op == packet.OP_RW and not self._can_send():
                    self._to_send &= ~(1 << op)
                    continue
                if op == packet.OP_SHUTDOWN and self._must_wait():
                    continue  # after the data
                return op
        return 0

    def _can_send(self) -> bool:
        if not self.established or not self.peer.pending():
            return False
        if self._guest_shut & packet.SHUTDOWN_RECEIVE:
            self.peer.give(self.peer.pending())  # nobody wants it
            return False
        if self.credit:
            return True
        if not self._asked_credit:
            self._asked_credit = True
            self._to_send |= 1 << packet.OP_CREDIT_REQUEST
        return False

    def _must_wait(self) -> bool:
        sending = self._host_shut & packet.SHUTDOWN_SEND and self.peer.pending()
        return bool(sending) or not self.established

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        under_way = self._sent - self._peer_forwarded & _MASK
        return max(0, self._peer_alloc - under_way)

    def compose(self, op: int, room: int) -> tuple[tuple[int, ...], bytes]:
        """The header of a packet, from ``src_port`` on, and its data; it counts as sent."""
        data = b""
        flags = 0
        if op == packet.OP_RW:
            data = self.peer.give(min(self.credit, room))
            self._sent = self._sent + len(data) & _MASK
            if not self.peer.pending():
                self._to_send &= ~(1 << op)
        else:
            self._to_send &= ~(1 << op)
        if op == packet.OP_SHUTDOWN:
            flags = self._host_shut
        self._told = self._forwarded
        self._to_send &= ~(1 << packet.OP_CREDIT_UPDATE)  # every packet is one
        head = (self.host_port, self.guest_port, len(data), packet.TYPE_STREAM, op, flags)
        return (*head, BUFFER, self._forwarded & _MASK), data
