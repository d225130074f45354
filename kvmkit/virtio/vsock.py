"""Socket device: stream sockets (AF_VSOCK) between programs in the guest and the host.

Virtio 1.2, section 5.10. The device keeps the connections and their credit; what is at
the host's end of each is its peer's affair, and who answers a guest that connects
is the hub's (:mod:`kvmkit.backends.vsock`).
"""

from __future__ import annotations

from collections import deque

from kvmkit.frozen import Record
from kvmkit.virtio import vsock_packet as packet
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.memory import QueueError
from kvmkit.virtio.vsock_connection import Connection
from kvmkit.virtio.vsock_packet import HEADER, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from kvmkit.virtio.chain import Chain
    from kvmkit.virtio.port import PortHost
    from kvmkit.virtio.vsock_connection import Peer

    class Hub(Protocol):
        """The host's network. Called with the lock under which devices run."""

        def open(self, device: Vsock, host: PortHost) -> None:
            """The machine is there, and will start. Raises a KvmkitError if that cannot be."""

        def answer(self, port: int) -> Peer | None:
            """Who answers when the guest connects to ``port``; None: nobody."""

        def begun(self, connection: Connection, peer: Peer) -> None:
            """The connection for which :meth:`answer` gave ``peer``."""

        def close(self) -> None:
            """The machine is gone."""


__all__ = ["Vsock", "VsockState"]

F_STREAM: Final = 0  # 5.10.3

RECEIVE: Final = 0  # 5.10.2
TRANSMIT: Final = 1
EVENT: Final = 2

QUEUE_SIZE: Final = 128
CONNECTIONS_MAX: Final = 1024
ANSWERS_MAX: Final = 256  # resets for connections that there are not
FIRST_PORT: Final = 1 << 30  # of the host's own connections, as Firecracker has it
DATA_MAX: Final = 64 << 10
GUEST_CID_MAX: Final = 0xFFFF_FFFE


class VsockState(Record):
    """No connection survives: a guest that is restored is told so (5.10.6.7)."""

    cid: int


class Vsock(VirtioDevice):
    """The guest has the address ``cid`` (3 or more), the host 2."""

    device_id = 19
    name = "vsock"
    pci_class = 0x07_80_00
    features = 1 << F_STREAM
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE, 8)

    def __init__(self, cid: int, hub: Hub) -> None:
        super().__init__()
        if not packet.HOST_CID < cid <= GUEST_CID_MAX:
            raise ValueError(f"a guest's address is 3 to {GUEST_CID_MAX:#x}, not {cid}")
        self.cid = cid
        self.hub = hub
        self.config = bytearray(cid.to_bytes(8, "little"))
        self.connections: dict[tuple[int, int], Connection] = {}
        """By port of the host and of the guest."""
        self._senders: deque[Connection] = deque()  # those with something to send, in turn
        self._queued: set[Connection] = set()
        self._answers: deque[tuple[int, ...]] = deque()
        self._next_port = FIRST_PORT
        self._event_due = False
        self._pumping = False

    # The host's side, with the lock

    @property
    def host(self) -> PortHost:
        """What surrounds the device."""
        host: Any = self._attached().host
        surroundings: PortHost = host
        return surroundings

    def guard(self, action: Callable[[], None]) -> None:
        """Do it; what a guest made of its rings ends here."""
        self._attached().guarded(action)

    def connect(self, port: int, peer: Peer) -> Connection | None:
        """Ask the guest for a connection to its ``port``; None if there can be no more.

        ``peer.connected`` or ``peer.closed`` is the answer.
        """
        if len(self.connections) >= CONNECTIONS_MAX or not self.queues[RECEIVE].alive:
            return None
        while (self._next_port, port) in self.connections:
            self._step_port()
        connection = Connection(self, self._next_port, port, peer)
        self._step_port()
        self.connections[connection.host_port, port] = connection
        connection.dial()
        return connection

    def _step_port(self) -> None:
        following = self._next_port + 1
        self._next_port = following if following < packet.HOST_CID << 30 else FIRST_PORT

    def has_to_send(self, connection: Connection) -> None:
        """A connection has something for the guest."""
        if connection not in self._queued:
            self._queued.add(connection)
            self._senders.append(connection)
        if not self._pumping:
            self._pump()

    def reset_connection(self, connection: Connection) -> None:
        """End it, and tell the guest."""
        self._reply_reset(connection.host_port, connection.guest_port)
        self._drop(connection)
        self._pump()

    def _drop(self, connection: Connection) -> None:
        if connection.alive:
            connection.alive = False
            self.connections.pop((connection.host_port, connection.guest_port), None)
            if connection in self._queued:
                self._queued.discard(connection)
                self._senders.remove(connection)
            connection.peer.closed()

    # The driver

    def attached(self) -> None:
        """Let the hub get ready."""
        self.hub.open(self, self.host)

    def notified(self, index: int) -> None:
        """Serve the queue."""
        if index == EVENT:
            self._tell_event()
            return
        if index == RECEIVE:
            self._pump()
        self._listen()

    def resumed(self) -> None:
        """Do what had to wait during a pause."""
        self.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._tell_event()
        self._pump()
        self._listen()

    def reset(self) -> None:
        """All connections are gone."""
        self._answers.clear()
        for connection in list(self.connections.values()):
            self._drop(connection)
        self._event_due = False

    def close(self) -> None:
        """Let go of the hub."""
        self.reset()
        self.hub.close()

    # From the guest

    def _listen(self) -> None:
        """Take packets, as long as there is room for the resets that they may ask for."""
        queue = self.queues[TRANSMIT]
        left = 2 * queue.size
        self._pumping = True
        try:
            while len(self._answers) < ANSWERS_MAX and not self.host.paused:
                chain = queue.pop()
                if chain is None:
                    break
                self._hear(chain)
                queue.push(chain, 0)
                left -= 1
                if not left:
                    self.call_soon(self._listen)
                    break
        finally:
            self._pumping = False
        self.interrupt(queue)
        self._pump()

    def _hear(self, chain: Chain) -> None:
        head = chain.read(HEADER.size)
        if len(head) < HEADER.size:
            raise QueueError(f"a packet of {len(head)} bytes")
        header = Header(*HEADER.unpack(head))
        if header.size > chain.readable_size:
            raise QueueError(
                f"a packet with {chain.readable_size} bytes of data that says {header.size}"
            )
        if header.src_cid != self.cid or header.dst_cid != packet.HOST_CID:
            return  # to or from nobody (5.10.6.4)
        key = (header.dst_port, header.src_port)
        connection = self.connections.get(key)
        if header.op == packet.OP_RST:
            if connection is not None:
                self._drop(connection)
        elif header.type != packet.TYPE_STREAM:
            self._refuse(key, connection)
        elif header.op == packet.OP_REQUEST:
            self._requested(header, key, connection)
        elif connection is None or not connection.hear(header, _cut(chain, header.size)):
            self._refuse(key, connection)

    def _refuse(self, key: tuple[int, int], connection: Connection | None) -> None:
        if connection is not None:
            self._drop(connection)
        self._reply_reset(*key)

    def _requested(
        self, header: Header, key: tuple[int, int], connection: Connection | None
    ) -> None:
        """The guest wants to connect."""
        if connection is not None or len(self.connections) >= CONNECTIONS_MAX:
            self._refuse(key, connection)
            return
        peer = self.hub.answer(header.dst_port)
        if peer is None:
            self._refuse(key, None)
            return
        connection = self.connections[key] = Connection(self, *key, peer)
        connection.open_with(header)
        self.hub.begun(connection, peer)

    def _reply_reset(self, host_port: int, guest_port: int) -> None:
        if len(self._answers) < 2 * ANSWERS_MAX + CONNECTIONS_MAX:
            op = packet.OP_RST
            self._answers.append((host_port, guest_port, 0, packet.TYPE_STREAM, op, 0, 0, 0))

    # To the guest

    def _pump(self) -> None:
        """Fill the guest's buffers: resets first, then one packet of each connection in turn."""
        if self._pumping or self.host.paused:
            return
        queue = self.queues[RECEIVE]
        left = 2 * queue.size
        self._pumping = True
        try:
            while left and (self._answers or self._next_sender()):
                chain = queue.pop()
                if chain is None:
                    break
                self._fill(chain)
                queue.push(chain)
                left -= 1
        finally:
            self._pumping = False
        self.interrupt(queue)
        if not left and queue.alive:
            self.call_soon(self._pump)

    def _next_sender(self) -> bool:
        """Whether the first in turn can send; who cannot is not in turn."""
        while self._senders:
            if self._senders[0].next_op():
                return True
            self._queued.discard(self._senders.popleft())
        return False

    def _fill(self, chain: Chain) -> None:
        room = chain.writable_size - HEADER.size
        if room < 0:
            raise QueueError(f"a buffer of {chain.writable_size} bytes for a packet")
        data = b""
        if self._answers:
            fields = self._answers.popleft()
        else:
            connection = self._senders[0]
            op = connection.next_op()
            if op == packet.OP_RW and not room:
                raise QueueError("a buffer without room for data")
            self._senders.rotate(-1)
            fields, data = connection.compose(op, min(room, DATA_MAX))
        chain.write(HEADER.pack(packet.HOST_CID, self.cid, *fields))
        if data:
            chain.write(data)

    def _tell_event(self) -> None:
        """All connections are gone: the guest was restored (5.10.6.7)."""
        queue = self.queues[EVENT]
        if self._event_due and not self.host.paused:
            chain = queue.pop()
            if chain is not None:
                self._event_due = False
                chain.write(packet.EVENT_TRANSPORT_RESET.to_bytes(4, "little"))
                queue.push(chain)
                self.interrupt(queue)

    # Life

    def state(self) -> VsockState:
        return VsockState(cid=self.cid)

    def restore(self, state: Any) -> None:
        """The guest will hear that its connections are gone, and what its address is now."""
        self.reset()
        self._event_due = True


def _cut(chain: Chain, size: int) -> list[memoryview]:
    """The first ``size`` bytes that are left to read, as they are in memory."""
    found = []
    for view in chain.readable:
        if not size:
            break
        found.append(view[:size])
        size -= len(found[-1])
    return found
