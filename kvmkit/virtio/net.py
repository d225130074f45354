"""Network card.

Virtio 1.2, section 5.1: a queue of buffers for what arrives, one of packets to
send, one of commands. Checksums and segments are left to the other side where
the network behind the card carries that.
"""

from __future__ import annotations

from struct import Struct

from kvmkit.frozen import Record
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.memory import QueueError
from kvmkit.virtio.net_features import (
    ALWAYS,
    F_CSUM,
    F_GUEST_ANNOUNCE,
    F_GUEST_CSUM,
    F_MRG_RXBUF,
    OFFLOADS,
    consistent,
)
from kvmkit.virtio.net_filter import MAC_SIZE, FilterState, ReceiveFilter
from kvmkit.virtio.net_header import (
    HDR_DATA_VALID,
    HDR_NEEDS_CSUM,
    HEADER,
    HEADER_SIZE,
    NUM_BUFFERS,
    complete_checksum,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from kvmkit.virtio.chain import Chain
    from kvmkit.virtio.net_backend import NetBackend, NetHost
    from kvmkit.virtio.queue import Queue

__all__ = ["Net", "NetState", "mac_address"]

# Queues, 5.1.2
RECEIVE: Final = 0
TRANSMIT: Final = 1
CONTROL: Final = 2

# status in the configuration, 5.1.4
S_LINK_UP: Final = 1
S_ANNOUNCE: Final = 2

_CONFIG = Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu
MTU_MIN: Final = 68
MTU_MAX: Final = 65535

# Commands, 5.1.6.5: a byte for the class, one for the command
CTRL_RX: Final = 0
CTRL_MAC: Final = 1
CTRL_ANNOUNCE: Final = 3
MAC_TABLE_SET: Final = 0
MAC_ADDR_SET: Final = 1
ANNOUNCE_ACK: Final = 0
ACK_OK: Final = b"\0"
ACK_ERR: Final = b"\1"
COMMAND_MAX: Final = 64 << 10

FRAME_MIN: Final = 14
FRAME_MAX: Final = 65535 + 18  # a packet of the largest size with a VLAN tag
BATCH: Final = 32  # packets handed to the backend at a time
PARTS_MAX: Final = 32  # of one packet; more are joined, as a system call takes 1024


class NetState(Record):
    """What the driver has changed of a card."""

    mac: bytes
    link: bool
    filter: FilterState


class Net(VirtioDevice):
    """A card at ``backend``. ``mac`` is text such as ``52:54:00:12:34:56``, 6 bytes, or None
    for a random one; ``mtu`` in bytes, None for the backend's.

    Raises ValueError for what is no address or no size.
    """

    device_id = 1
    name = "network"
    pci_class = 0x02_00_00  # Ethernet
    queue_sizes = (256, 256, 64)

    def __init__(
        self, backend: NetBackend, *, mac: str | bytes | None = None, mtu: int | None = None
    ) -> None:
        super().__init__()
        self.backend = backend
        self.mac = mac_address(mac)
        self.mtu = backend.mtu if mtu is None else mtu
        if not MTU_MIN <= self.mtu <= MTU_MAX:
            raise ValueError(f"an MTU is {MTU_MIN} to {MTU_MAX} bytes, not {self.mtu}")
        self.features = sum(1 << bit for bit in ALWAYS) | backend.features & OFFLOADS
        self.link = True
        self.filter = ReceiveFilter()
        self.received = self.sent = self.dropped = 0
        """Packets since the start."""
        self.taken_up = False
        """Whether a driver has ever taken it up."""
        self._first_mac = self.mac
        self._starved = False  # the backend waits for buffers
        self._full = False  # we wait for the backend
        self._announce = False
        self._set_features(0)
        self._configure()

    def _configure(self) -> None:
        status = S_LINK_UP * self.link | S_ANNOUNCE * self._announce
        self.config = bytearray(_CONFIG.pack(self.mac, status, 1, self.mtu))

    def _set_features(self, features: int) -> None:
        self._mergeable = bool(features >> F_MRG_RXBUF & 1)
        self._completes = bool(features >> F_GUEST_CSUM & 1)
        flags = HDR_DATA_VALID if self._completes else 0
        # Of frames whose backend has no headers; those never left this host.
        self._plain = bytearray(HEADER.pack(flags, 0, 0, 0, 0, 0, 1))

    # Life

    def attached(self) -> None:
        """Open the backend; what cannot be opened is closed."""
        try:
            self.backend.open(self._host, self)
        except BaseException:
            self.backend.close()
            raise

    @property
    def _host(self) -> NetHost:
        host: Any = self._attached().host
        return host  # type: ignore[no-any-return]

    def accepts(self, features: int) -> bool:
        """Features that need others come with one of them."""
        return consistent(features)

    def activated(self, features: int) -> None:
        """Let frames come."""
        self.taken_up = True
        self._set_features(features)
        self.backend.negotiated(features)
        self._starved = self._full = False
        self.backend.resume()

    def reset(self) -> None:
        """The address is the first one again, and nothing is filtered."""
        self.mac = self._first_mac
        self.filter.reset()
        self._announce = self._starved = self._full = False
        self._configure()

    def queue_reset(self, index: int) -> None:
        """Nothing of a queue is kept here."""

    def drain(self) -> None:
        """Wait until what just arrives has arrived; during a pause nothing follows."""
        self._host.call(_nothing)

    def resumed(self) -> None:
        """Go on with both directions."""
        self.backend.resume()
        self.call(self._transmit)

    def close(self) -> None:
        """Leave the network."""
        self.backend.close()

    def state(self) -> NetState:
        return NetState(self.mac, self.link, self.filter.state())

    def restore(self, state: NetState) -> None:
        self.mac, self.link = state.mac, state.link
        self.filter.restore(state.filter)
        self._configure()
        features = self.driver_features
        self._set_features(features)
        if self.queues[RECEIVE].alive:
            self.activated(features)
            self.call_soon(self._restored)

    def _restored(self) -> None:
        """Tell the network where we are now, 5.1.6.5.4; and send what was left."""
        if self.driver_features >> F_GUEST_ANNOUNCE & 1:
            self._announce = True
            self._configure()
            self.config_changed()
        self._transmit()

    # The driver's side

    def notified(self, index: int) -> None:
        """Something to send, buffers to fill, or a command."""
        if index == TRANSMIT:
            self._transmit()
        elif index == CONTROL:
            for chain in self.requests(CONTROL):
                self._command(chain)
        elif self._starved:
            self._starved = False
            self.backend.resume()

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out. From any thread, without the lock."""

        def change() -> None:
            if up != self.link:
                self.link = up
                self._configure()
                self.config_changed()

        self.call_soon(change)

    # Sending

    def writable(self) -> None:
        """The backend has room again."""
        self._full = False
        self._transmit()

    def _transmit(self) -> None:
        queue = self.queues[TRANSMIT]
        if self._full or self._host.paused:
            return
        try:
            for _ in range(max(1, 2 * queue.size // BATCH)):
                if not self._send_some(queue):
                    return
            if queue.alive:  # a driver that fills it as fast: others want a turn, too
                self.call_soon(self._transmit)
        finally:
            self.interrupt(queue)

    def _send_some(self, queue: Queue) -> bool:
        """Send a batch; whether there may be more."""
        chains: list[Chain] = []
        frames: list[Sequence[memoryview]] = []
        dropped: list[tuple[Chain, int]] = []
        while len(chains) < BATCH and (chain := queue.pop()) is not None:
            frame = self._frame(chain)
            if frame is None:
                if chains:  # its turn comes after those before it
                    queue.unpop(chain)
                    break
                self.dropped += 1
                dropped.append((chain, 0))
                break
            chains.append(chain)
            frames.append(frame)
        if dropped:
            queue.push_all(dropped)
            return True
        if not chains:
            return False
        sent = self.backend.send(frames)
        self.sent += sent
        queue.push_all([(chain, 0) for chain in chains[:sent]])
        for chain in reversed(chains[sent:]):
            queue.unpop(chain)
        self._full = sent < len(chains)
        return not self._full

    def _frame(self, chain: Chain) -> Sequence[memoryview] | None:
        """What to send of a request; None for what is no frame. Raises QueueError."""
        size = chain.readable_size
        if size < HEADER_SIZE:
            raise QueueError("a packet without room for its header")
        if not HEADER_SIZE + FRAME_MIN <= size <= HEADER_SIZE + FRAME_MAX:
            return None
        parts = chain.readable
        if self.backend.header:
            return parts if len(parts) <= PARTS_MAX else [memoryview(b"".join(parts))]
        header = HEADER.unpack(chain.read(HEADER_SIZE))
        if header[0] & HDR_NEEDS_CSUM and self.driver_features >> F_CSUM & 1:
            frame = bytearray().join(parts)
            complete_checksum(frame, header[4], header[5])
            return [memoryview(frame)]
        return parts if len(parts) <= PARTS_MAX else [memoryview(b"".join(parts))]

    # Receiving

    def receive(self, frames: Sequence[memoryview]) -> int:
        """See :meth:`kvmkit.virtio.net_backend.Station.receive`."""
        taken = 0

        def take() -> None:
            nonlocal taken
            if self.queues[RECEIVE].alive and not self._host.paused:
                taken = self._deliver(frames)

        self.call(take)
        return taken

    def _deliver(self, frames: Sequence[memoryview]) -> int:
        queue = self.queues[RECEIVE]
        backend = self.backend
        shared, plain = backend.shared, not backend.header
        before = HEADER_SIZE if plain else 0
        filled: list[tuple[Chain, int]] = []
        taken = 0
        for frame in frames:
            at = HEADER_SIZE - before
            if shared and not self.filter.takes(bytes(frame[at : at + MAC_SIZE]), self.mac):
                taken += 1
                continue
            chain = queue.pop()
            if chain is None:
                self._starved = True
                break
            size = before + len(frame)
            if not plain:
                self._prepare(frame)
            if chain.writable_size >= size:
                if plain:
                    chain.write(self._plain)
                chain.write(frame)
                filled.append((chain, size))
            elif not self._mergeable:
                queue.unpop(chain)
                self.dropped += 1
            elif not self._spread(queue, chain, frame, plain, filled):
                break
            taken += 1
        self.received += len(filled)
        queue.push_all(filled)
        self.interrupt(queue)
        return taken

    def _prepare(self, frame: memoryview) -> None:
        """Make a header of the backend one of this device."""
        frame[NUM_BUFFERS : NUM_BUFFERS + 2] = b"\1\0"
        if not self._completes:
            header = HEADER.unpack(frame[:HEADER_SIZE])
            if header[0] & HDR_NEEDS_CSUM:
                complete_checksum(frame[HEADER_SIZE:], header[4], header[5])
            frame[0] = 0

    def _spread(
        self,
        queue: Queue,
        first: Chain,
        frame: memoryview,
        plain: bool,
        filled: list[tuple[Chain, int]],
    ) -> bool:
        """Fill several buffers, ``first`` and more; False if there are not enough."""
        whole = len(frame) + (HEADER_SIZE if plain else 0)
        chains = [first]
        room = first.writable_size
        if room < HEADER_SIZE:
            raise QueueError(f"a receive buffer of {room} bytes, less than a header")
        while room < whole:
            more = queue.pop()
            if more is None:
                # Would more come? Not if it has them all, and the others are for frames before.
                hopeless = sum(chain.count for chain in chains) >= queue.size
                for chain in reversed(chains):
                    queue.unpop(chain)
                self._starved = not hopeless
                self.dropped += hopeless
                return hopeless
            chains.append(more)
            room += more.writable_size
        header = bytearray(self._plain) if plain else bytearray(frame[:HEADER_SIZE])
        header[NUM_BUFFERS : NUM_BUFFERS + 2] = len(chains).to_bytes(2, "little")
        first.write(header)
        rest = frame if plain else frame[HEADER_SIZE:]
        for chain in chains:
            rest = rest[chain.write(rest) :]
            filled.append((chain, chain.written))
        return True

    # Commands

    def _command(self, chain: Chain) -> None:
        answer = chain.cut_tail(1)[0]
        data = chain.read_all(COMMAND_MAX)
        done = len(data) >= 2 and self._obey(data[0], data[1], data[2:])
        answer[:] = ACK_OK if done else ACK_ERR
        self.push(chain, 1)

    def _obey(self, kind: int, command: int, data: bytes) -> bool:
        """Whether the command could be done."""
        if kind == CTRL_RX:
            return len(data) == 1 and self.filter.set_mode(command, data[0] != 0)
        if kind == CTRL_MAC and command == MAC_TABLE_SET:
            return self.filter.set_table(data)
        if kind == CTRL_MAC and command == MAC_ADDR_SET and len(data) == MAC_SIZE:
            self.mac = data
        elif kind == CTRL_ANNOUNCE and command == ANNOUNCE_ACK:
            self._announce = False
        else:
            return False
        self._configure()
        return True


def mac_address(given: str | bytes | None) -> bytes:
    """Six bytes of an address in text or bytes; a random one for None. Raises ValueError."""
    if given is None:
        from os import urandom

        return b"\x52\x54\x00" + urandom(3)  # as QEMU's, which tools know as a virtual machine's
    try:
        address = bytes.fromhex(given.replace(":", " ")) if isinstance(given, str) else given
    except ValueError:
        address = b""
    if len(address) != MAC_SIZE or address[0] & 1 or not any(address):
        raise ValueError(f"a MAC address is such as 52:54:00:12:34:56, not {given!r}")
    return address


def _nothing() -> None:
    """For a lock that is to be waited for."""
