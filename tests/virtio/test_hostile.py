"""Guests that do anything to a device: it ends in NEEDS_RESET with a reason, at worst."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.hostile import SIZE, Player, play
from tests.virtio.mock import FakeRam, PackedDriver, SplitDriver

STEP = st.tuples(
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535)
)


def encode(packed, steps):
    """As :func:`tests.virtio.hostile.play` reads it."""
    parts = [bytes((code, a, b)) + c.to_bytes(2, "little") for code, a, b, c in steps]
    return bytes((packed,)) + b"".join(parts)


@settings(deadline=None, max_examples=300)
@given(packed=st.booleans(), steps=st.lists(STEP, max_size=60))
def test_any_driver_is_survived(packed, steps):
    """No exception, no memory outside, no endless work; a reset mends everything."""
    play(encode(packed, steps))


def test_random_drivers_are_survived():
    """Long runs; and they do come through: requests are served, rings are broken."""
    generator = random.Random(1)
    served = broken = 0
    reasons = set()
    for _ in range(150):
        player = play(generator.randbytes(1000))
        served += player.served
        broken += len(player.host.warnings)
        reasons |= {warning.rstrip("0123456789") for warning in player.host.warnings}
    assert served > 100
    assert broken > 100
    assert len(reasons) > 8, reasons


@settings(deadline=None, max_examples=200)
@given(
    packed=st.booleans(),
    ring=st.binary(max_size=16 * SIZE + 64),
    table=st.binary(max_size=256),
)
def test_any_bytes_in_a_ring(packed, ring, table):
    """Raw bytes for descriptors, indices and an indirect table."""
    player = Player(packed=packed)
    player.ram.data[0x1000 : 0x1000 + len(ring)] = ring
    player.ram.data[0x5000 : 0x5000 + len(table)] = table
    for _ in range(3):
        player.driver.notify(0)
        player.host.turn()
        player.check()


def test_longest_chains_take_bounded_time():
    """Rings full of the longest indirect tables there may be."""
    for kind in (SplitDriver, PackedDriver):
        ram = FakeRam()
        driver = kind(ram, 256)
        queue = driver.device_queue()
        table = [(0, 1, 1, index + 1) for index in range(1024)]
        for index, (address, length, flags, after) in enumerate(table):
            flags = 0 if index == 1023 or kind is PackedDriver else flags
            words = (flags, after) if kind is SplitDriver else (0, flags)
            driver_table = 0x8_0000 + 16 * index
            ram.data[driver_table : driver_table + 16] = (
                address.to_bytes(8, "little")
                + length.to_bytes(4, "little")
                + words[0].to_bytes(2, "little")
                + words[1].to_bytes(2, "little")
            )
        for position in range(256):
            if kind is SplitDriver:
                driver.descriptor(position, 0x8_0000, 16 * 1024, 4, 0)
                driver.publish(position)
            else:
                driver.descriptor(position, 0x8_0000, 16 * 1024, 0, driver.flags(position, 4))
        start = time.process_time()
        chains = []
        while (chain := queue.pop()) is not None:
            chains.append(chain)
        assert len(chains) == 256
        assert time.process_time() - start < 10
