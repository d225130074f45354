"""The network card, as a driver and a network see it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.virtio.net import Net, mac_address
from kvmkit.virtio.net_filter import ReceiveFilter
from kvmkit.virtio.net_header import HEADER, complete_checksum
from tests.virtio.net_driver import MAC, Card, FakeNetwork, frame_to

NEEDS_RESET = 64
CSUM, GUEST_CSUM = 1 << 0, 1 << 1
PLAIN = bytes(10) + b"\1\0"


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def card(request):
    return Card(packed=request.param)


def test_the_configuration(card):
    """MAC, link up, one pair of queues, and the network's MTU."""
    assert card.config(0, 4).to_bytes(4, "little") == MAC[:4]
    assert card.config(6, 2) == 1
    assert card.config(8, 2) == 1
    assert card.config(10, 2) == 1500


def test_a_frame_is_sent_whole(card):
    """However it is cut; its buffers come back empty."""
    card.send(frame_to()[:20], frame_to()[20:])
    assert card.network.sent == [frame_to()]
    assert [data for _, data in card.tx.collect()] == [b""]
    assert card.net.sent == 1


def test_header_and_frame_in_one_buffer(card):
    """Nothing depends on how a driver cuts requests (2.6.2)."""
    card.tx.add([bytes(12) + frame_to()])
    card.driver.notify(1)
    assert card.network.sent == [frame_to()]


@pytest.mark.parametrize("size", [1, 13, 65_600])
def test_frames_that_are_none_are_dropped(card, size):
    """Too short or too long: the buffer comes back, nothing is sent, and the next one is."""
    card.send(bytes(size))
    card.send(frame_to())
    assert card.network.sent == [frame_to()]
    assert card.net.dropped == 1
    assert len(list(card.tx.collect())) == 2


def test_a_packet_without_header_breaks_the_device(card):
    """With the reason told."""
    card.tx.add([bytes(11)])
    card.driver.notify(1)
    assert card.driver.status & NEEDS_RESET
    assert "header" in card.host.warnings[0]


def test_a_full_network_stops_the_card_until_it_has_room(card):
    """Frames stay in the queue, in order, and none is lost or sent twice."""
    card.network.room = 2
    frames = [frame_to(fill=bytes((65 + n,))) for n in range(5)]
    for frame in frames:
        card.tx.add([bytes(12), frame])
    card.driver.notify(1)
    assert card.network.sent == frames[:2]
    assert len(list(card.tx.collect())) == 2
    card.driver.notify(1)
    assert card.network.sent == frames[:2]
    card.network.room = 100
    card.net.call(card.net.writable)
    assert card.network.sent == frames
    assert len(list(card.tx.collect())) == 3


def test_a_checksum_is_completed_where_the_network_cannot():
    """The sum over a UDP datagram is right afterwards: it adds up to zero."""
    card = Card(FakeNetwork(features=CSUM), features=CSUM)
    frame = bytearray(frame_to(size=61))
    frame[34:] = bytes(range(27))
    frame[40:42] = b"\x12\x34"
    card.send(bytes(frame), header=HEADER.pack(1, 0, 0, 0, 34, 6, 0))
    [sent] = card.network.sent
    assert sent[:40] == frame[:40] and sent[42:] == frame[42:]
    words = sent[34:] + b"\0"
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total + 0x1234) % 0xFFFF == 0  # with the pseudo header's sum, as receivers do


def test_a_frame_arrives_with_its_header(card):
    """With one buffer, and the interrupt that the driver wants."""
    card.offer(2, 1526)
    assert card.arrive(frame_to()) == 1
    assert card.arrived() == [PLAIN + frame_to()]
    assert card.net.received == 1


def test_a_large_frame_fills_several_buffers(card):
    """The number of buffers is in the header of the first."""
    card.offer(4, 100)
    frame = frame_to(size=250)
    assert card.arrive(frame) == 1
    parts = card.arrived()
    assert [len(part) for part in parts] == [100, 100, 62]
    assert parts[0][10:12] == b"\3\0"
    assert b"".join(parts)[12:] == frame


def test_without_buffers_the_network_waits(card):
    """Frames are not taken; new buffers make it come again."""
    card.offer(1, 1526)
    before = card.network.resumed
    assert card.arrive(frame_to(), frame_to()) == 1
    assert card.network.resumed == before
    card.offer(1, 1526)
    assert card.network.resumed == before + 1
    assert card.arrive(frame_to()) == 1
    assert len(card.arrived()) == 2


def test_too_few_buffers_for_a_large_frame_stay_in_the_queue(card):
    """They are not used up; with one more the frame fits."""
    card.offer(2, 100)
    frame = frame_to(size=250)
    assert card.arrive(frame) == 0
    assert card.arrived() == []
    card.offer(1, 100)
    assert card.arrive(frame) == 1
    assert b"".join(card.arrived())[12:] == frame


def test_a_frame_larger_than_all_buffers_is_dropped(card):
    """Waiting for more would be for ever."""
    card.offer(16, 20)
    assert card.arrive(frame_to(size=600), frame_to(size=20)) == 2
    assert card.net.dropped == 1
    assert b"".join(card.arrived())[12:] == frame_to(size=20)


def test_without_mergeable_buffers_large_frames_are_dropped():
    """And their buffer serves the next."""
    card = Card(features=0)
    card.offer(1, 1526)
    assert card.arrive(frame_to(size=1515), frame_to()) == 2
    assert card.arrived() == [PLAIN + frame_to()]


def test_nothing_arrives_before_the_driver_or_in_a_pause(card):
    """The network keeps it meanwhile, and hears when it goes on."""
    card.offer(1, 1526)
    card.host.paused = True
    assert card.arrive(frame_to()) == 0
    card.send(frame_to())
    assert card.network.sent == []
    card.host.paused = False
    before = card.network.resumed
    card.net.resumed()
    assert card.network.resumed == before + 1
    assert card.network.sent == [frame_to()]
    card.driver.status = 0
    assert card.arrive(frame_to()) == 0


def test_headers_of_the_network_are_made_the_guests():
    """A checksum that the guest cannot complete is completed here, and flags are cleared."""
    card = Card(FakeNetwork(features=GUEST_CSUM, header=True))
    card.offer(1, 1526)
    frame = frame_to(size=80)
    assert card.arrive(HEADER.pack(1, 0, 0, 0, 34, 16, 0) + frame) == 1
    [data] = card.arrived()
    expected = bytearray(frame)
    complete_checksum(expected, 34, 16)
    assert data[:1] == b"\0" and data[10:12] == b"\1\0"
    assert data[12:] == bytes(expected)


def test_the_filter_of_a_shared_network():
    """Once the driver ends promiscuous mode, frames for others are not delivered."""
    card = Card(FakeNetwork(shared=True))
    card.offer(8, 1526)
    other, group = b"\x02" + bytes(5), b"\x01\0\x5e\0\0\1"
    card.arrive(frame_to(other))
    assert len(card.arrived()) == 1
    assert card.command(0, 0, b"\0") == b"\0"
    assert card.arrive(frame_to(other), frame_to(group), frame_to(), frame_to(b"\xff" * 6)) == 4
    assert [data[12:18] for data in card.arrived()] == [MAC, b"\xff" * 6]
    table = b"\1\0\0\0" + other + b"\1\0\0\0" + group
    assert card.command(1, 0, table) == b"\0"
    card.arrive(frame_to(other), frame_to(group), frame_to(group[:5] + b"\2"))
    assert [data[12:18] for data in card.arrived()] == [other, group]


def test_commands(card):
    """The MAC address, the announcement, and what there is not."""
    assert card.command(1, 1, b"\x02abcde") == b"\0"
    assert card.net.mac == b"\x02abcde" and card.config(0, 1) == 2
    assert card.command(3, 0) == b"\0"
    for wrong in (
        (0, 9, b"\1"),
        (0, 0, b""),
        (1, 1, b"short"),
        (1, 0, b"\5\0\0\0"),
        (4, 0, b"\2\0"),
    ):
        assert card.command(*wrong) == b"\1", wrong
    card.driver.status = 0
    assert card.net.mac == MAC


def test_the_link(card):
    """A driver reads that the cable is out."""
    card.net.set_link(False)
    card.host.turn()
    assert card.config(6, 2) == 0


def test_state_and_restore(card):
    """Another card becomes this one, announces itself, and goes on."""
    card.command(1, 1, b"\x02abcde")
    card.command(0, 0, b"\0")
    card.offer(1, 1526)
    state = card.function.device_state()
    twin = Card(packed=card.packed, features=1 << 15 | 1 << 21)
    twin.ram.data[:] = card.ram.data
    twin.rx, twin.tx, twin.ctrl = card.rx, card.tx, card.ctrl
    twin.function.restore_device(state)
    assert twin.function.device_state() == state
    twin.host.turn()
    for ring in (twin.rx, twin.tx, twin.ctrl):
        ring.ram = twin.ram
    assert twin.network.resumed
    assert twin.arrive(frame_to()) == 1
    assert twin.arrived() == [PLAIN + frame_to()]


def test_features_that_need_others(card):
    """TSO without checksums is not accepted (5.1.3.1)."""
    card = Card(FakeNetwork(features=1 | 1 << 11))
    assert not card.driver.accept(1 << 32 | 1 << 11)
    assert card.driver.accept(1 << 32 | 1 << 11 | 1)


def test_addresses():
    """Text, bytes or random; what is none is refused."""
    assert mac_address("52:54:00:12:34:56") == MAC == mac_address(MAC)
    assert mac_address(None) != mac_address(None)
    for wrong in ("52:54:00:12:34", "nonsense", "01:00:00:00:00:00", b"", bytes(6)):
        with pytest.raises(ValueError):
            mac_address(wrong)
    with pytest.raises(ValueError):
        Net(FakeNetwork(), mtu=10)


@settings(deadline=None)
@given(data=st.binary(min_size=0, max_size=200), start=st.integers(0, 250), at=st.integers(0, 250))
def test_checksums_are_rfc_1071s(data, start, at):
    """Against the plain sum of words; nothing outside the frame is touched."""
    frame = bytearray(data)
    complete_checksum(frame, start, at)
    expected = bytearray(data)
    if start + at + 2 <= len(data):
        words = data[start:] + b"\0" * (len(data[start:]) % 2)
        total = 0
        for place in range(0, len(words), 2):
            total += int.from_bytes(words[place : place + 2], "big")
            total = (total & 0xFFFF) + (total >> 16)
        expected[start + at : start + at + 2] = (~total & 0xFFFF).to_bytes(2, "big")
        zero = expected[start + at : start + at + 2] == b"\0\0"
        if zero or frame[start + at : start + at + 2] == b"\0\0":
            return  # the two zeros of one's complement
    assert frame == expected


@settings(deadline=None)
@given(data=st.binary(max_size=900))
def test_any_table_of_addresses(data):
    """It is taken or refused, never half; and the filter answers as before or after."""
    filter = ReceiveFilter()
    filter.set_mode(0, False)
    before = filter.state()
    taken = filter.set_table(data)
    assert taken or filter.state() == before
    assert filter.takes(MAC, MAC)
    again = ReceiveFilter()
    again.restore(filter.state())
    assert again.state() == filter.state()
