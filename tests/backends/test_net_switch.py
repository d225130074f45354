"""The switch between VMs of one program."""

from __future__ import annotations

from kvmkit.backends.net.switch import ADDRESSES_MAX, WAITING_MAX, Network
from kvmkit.virtio.net_header import HEADER
from tests.backends.net_station import LoopHost, Station

ALL = b"\xff" * 6


def frame(target: bytes, sender: bytes, body: bytes = b"\x08\0" + bytes(50)) -> list[memoryview]:
    return [memoryview(bytes(12)), memoryview(target + sender + body)]


def mac(number: int) -> bytes:
    return b"\x02\0" + number.to_bytes(4, "big")


class Stations:
    """A switch with cards; frames are delivered at once."""

    def __init__(self, count: int, **options: int) -> None:
        self.network = Network(**options)
        self.hosts = [LoopHost() for _ in range(count)]
        self.cards = [Station() for _ in range(count)]
        self.ports = [self.network.port() for _ in range(count)]
        for port, host, card in zip(self.ports, self.hosts, self.cards, strict=True):
            port.open(host, card)

    def send(self, source: int, *frames: list[memoryview]) -> list[int]:
        """How many frames each card then has."""
        assert self.ports[source].send(frames) == len(frames)
        for host in self.hosts:
            host.turn()
        return [len(card.frames) for card in self.cards]


def test_unknown_stations_are_looked_for_and_learned():
    """The first frame goes to all others, the answer and what follows only where it belongs."""
    switch = Stations(3)
    assert switch.send(0, frame(mac(1), mac(0))) == [0, 1, 1]
    assert switch.send(1, frame(mac(0), mac(1))) == [1, 1, 1]
    assert switch.send(0, frame(mac(1), mac(0))) == [1, 2, 1]
    assert switch.send(2, frame(ALL, mac(2))) == [2, 3, 1]


def test_a_station_that_moved_is_learned_anew():
    """Its frames come from another port now."""
    switch = Stations(3)
    switch.send(0, frame(ALL, mac(7)))
    switch.send(1, frame(ALL, mac(7)))
    before = [len(card.frames) for card in switch.cards]
    after = switch.send(2, frame(mac(7), mac(2)))
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 1, 0]


def test_the_table_is_bounded():
    """A guest that invents addresses fills it, no more; frames are flooded then."""
    switch = Stations(2)
    for number in range(ADDRESSES_MAX + 50):
        switch.send(0, frame(ALL, mac(number)))
    assert switch.network.learned == ADDRESSES_MAX
    assert switch.send(0, frame(mac(5000), mac(9999)))[1] == ADDRESSES_MAX + 51


def test_a_guest_that_takes_nothing_costs_bounded_memory():
    """What exceeds the bound is lost; what waited is delivered later, in order."""
    switch = Stations(2)
    switch.cards[1].room = 0
    big = frame(mac(1), mac(0), bytes(1400))
    for _ in range(2000):
        switch.ports[0].send([big])
    port = switch.ports[1]
    assert port._waiting <= WAITING_MAX and port.lost > 1000
    switch.hosts[1].turn()
    assert switch.cards[1].frames == []
    switch.cards[1].room = 1 << 30
    port.resume()
    switch.hosts[1].turn()
    assert len(switch.cards[1].frames) == 2000 - port.lost
    assert port._waiting == 0


def test_headers_are_reduced_to_checksums():
    """A guest cannot make another one cut segments or look outside a frame."""
    switch = Stations(2)
    wild = [memoryview(HEADER.pack(0xFF, 1, 50, 100, 14, 16, 9)), *frame(mac(1), mac(0))[1:]]
    outside = [memoryview(HEADER.pack(1, 0, 0, 0, 60, 60, 0)), *frame(mac(1), mac(0))[1:]]
    switch.send(0, wild, outside)
    first, second = switch.cards[1].frames
    assert HEADER.unpack(first[:12]) == (1, 0, 0, 0, 14, 16, 1)
    assert HEADER.unpack(second[:12]) == (0, 0, 0, 0, 0, 0, 1)


def test_a_card_that_leaves_is_forgotten():
    """Nothing is kept for it."""
    switch = Stations(2)
    switch.send(1, frame(ALL, mac(1)))
    switch.ports[1].close()
    assert switch.network.learned == 0
    assert switch.send(0, frame(mac(1), mac(0)))[1] == 0
