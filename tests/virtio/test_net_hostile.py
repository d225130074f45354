"""Drivers and networks that do anything to a card: it lives, within bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.net_driver import Card, FakeNetwork, frame_to

STEP = st.one_of(
    st.tuples(st.just("send"), st.lists(st.binary(max_size=90), max_size=4)),
    st.tuples(st.just("offer"), st.integers(0, 4), st.sampled_from([1, 11, 12, 20, 60, 300])),
    st.tuples(st.just("arrive"), st.lists(st.integers(14, 700), max_size=6)),
    st.tuples(st.just("command"), st.binary(max_size=40), st.integers(0, 3)),
    st.tuples(st.just("room"), st.integers(0, 3)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("index"), st.integers(0, 2), st.integers(0, 0xFFFF)),
    st.tuples(st.just("reset")),
)


def do(card: Card, step: tuple) -> None:
    """One step of a driver or a network, good or bad."""
    rings = (card.rx, card.tx, card.ctrl)
    match step:
        case ("send", parts):
            if card.tx.free > len(parts):
                card.tx.add(parts or [b""])
            card.driver.notify(1)
        case ("offer", count, size):
            card.offer(min(count, card.rx.free), size)
        case ("arrive", sizes):
            taken = card.arrive(
                *(bytes(12) * card.network.header + frame_to(size=n) for n in sizes)
            )
            assert 0 <= taken <= len(sizes)
        case ("command", data, room):
            if card.ctrl.free > 3:
                card.ctrl.add([data], [room] if room else [])
            card.driver.notify(2)
        case ("room", count):
            card.network.room = count
            card.net.call(card.net.writable)
        case ("pause", paused):
            card.host.paused = paused
            card.net.resumed()
        case ("index", which, value):
            if not card.packed:
                rings[which].set_index(value)
            card.driver.notify(which)
        case _:
            card.set_up()
    card.host.turn()


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(STEP, max_size=40),
    packed=st.booleans(),
    header=st.booleans(),
    shared=st.booleans(),
)
def test_anything_is_survived(steps, packed, header, shared):
    """No exception; a card that stopped has said why; a reset mends everything."""
    card = Card(
        FakeNetwork(header=header, shared=shared, features=3 if header else 0), packed=packed
    )
    for step in steps:
        do(card, step)
        if card.driver.status & 64:
            assert card.host.warnings
        for queue in card.net.queues:
            assert queue.in_flight == 0
    card.host.paused = False
    card.network.room = 1 << 20
    card.set_up()
    card.network.sent.clear()
    card.send(frame_to())
    assert card.network.sent == [bytes(12) * header + frame_to()]
    card.offer(2, 1526)
    assert card.arrive(bytes(12) * header + frame_to()) == 1
    assert [data[12:] for data in card.arrived()] == [frame_to()]


def test_a_flood_of_packets_takes_turns():
    """A driver that fills its queue as fast as it is emptied does not keep the card for ever."""
    card = Card()
    sends = 0
    plain_send = card.network.send

    def send(frames):
        nonlocal sends
        sends += 1
        for _ in range(card.tx.free):
            card.tx.add([bytes(12) + frame_to()])
        return plain_send(frames)

    card.network.send = send
    card.send(frame_to())
    assert 1 <= sends <= 64
