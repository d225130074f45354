"""What holds for a local APIC whatever its guest does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import ApicMessage, DeliveryMode
from tests.devices.lapic_rig import ENABLED, Rig

# --- properties ---

VALUES = st.one_of(
    st.integers(0, (1 << 64) - 1), st.integers(0, 0x1FFFF), st.sampled_from([0, 0x1FF, 0x700EC])
)
OFFSETS = st.one_of(
    st.integers(0, 0xFFF),
    st.sampled_from([v for k, v in vars(reg).items() if isinstance(v, int) and k.isupper()]).filter(
        lambda v: v < 0x1000
    ),
)
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, VALUES),
    st.tuples(st.just("register"), st.sampled_from([*reg.X2APIC_RESERVED, reg.ICR_LOW]), VALUES),
    st.tuples(st.just("msr"), st.integers(0x800, 0x83F), VALUES),
    st.tuples(st.just("base"), st.sampled_from([0, 0x800, 0xC00]), st.just(0)),
    st.tuples(st.just("deadline"), st.integers(0, 1 << 20), st.just(0)),
    st.tuples(st.just("deliver"), st.integers(0, 255), st.integers(0, 31)),
    st.tuples(st.just("lint"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("cr8"), VALUES, st.just(0)),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
    st.tuples(st.just("advance"), st.integers(0, 300_000), st.just(0)),
)


def drive(rig: Rig, step: tuple[str, int, int]) -> None:
    """One random thing that a guest or a machine does."""
    name, first, second = step
    apic = rig.apic
    if name == "write":
        for size in (1, 2, 4, 8):
            apic.read(first, size)
            apic.write(first, size, second & (1 << 8 * size) - 1)
    elif name == "register":
        apic.write(first, 4, second & 0xFFFFFFFF)
        apic.write_msr(0x800 + (first >> 4), second)
    elif name == "msr":
        apic.read_msr(first)
        apic.write_msr(first, second)
    elif name == "base":
        apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00000 | first)
    elif name == "deadline":
        apic.write_msr(reg.MSR_TSC_DEADLINE, first)
    elif name == "deliver":
        mode = DeliveryMode(second & 7)
        apic.deliver(ApicMessage(0, False, mode, first, bool(second & 8), bool(second & 16)))
    elif name == "lint":
        (apic.set_lint1 if first & 2 else apic.set_lint0)(bool(first & 1))
    elif name == "cr8":
        apic.set_cr8(second)
    elif name == "acknowledge":
        apic.acknowledge()
    else:
        rig.clock.advance(first)


@settings(deadline=None, max_examples=300)
@given(st.booleans(), st.lists(STEPS, max_size=40))
def test_no_driver_confuses_it(software_enabled: bool, steps: list[tuple[str, int, int]]) -> None:
    """Nothing raises; the CPU is told of changes only; what is pending is what is deliverable."""
    rig = Rig(3)
    if software_enabled:
        rig.write(reg.SVR, ENABLED)
    for step in steps:
        drive(rig, step)
        state = rig.apic.state()
        in_service = max(state.isr.bit_length() - 1, 0) & 0xF0
        ppr = state.tpr if in_service <= state.tpr & 0xF0 else in_service
        assert rig.apic.priority == ppr
        requested = state.irr.bit_length() - 1
        if not (state.lint0 or state.lint1 or state.extint):
            assert rig.pending() == (requested >> 4 > ppr >> 4)
        assert not (state.irr | state.isr) & 0xFFFF


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=10))
def test_state_round_trip(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """A restored APIC has the same state, signals the same, and behaves the same afterwards."""
    first, second = Rig(3), Rig(3)
    first.write(reg.SVR, ENABLED)
    for step in before:
        drive(first, step)
    second.clock.advance(first.clock.now())
    second.apic.restore(first.apic.state())
    assert second.apic.state() == first.apic.state()
    assert second.pending() == first.pending()
    for step in after:
        drive(first, step)
        drive(second, step)
        assert second.apic.state() == first.apic.state()


@settings(deadline=None)
@given(st.lists(st.integers(16, 255), max_size=30))
def test_vectors_come_in_order_of_priority(vectors: list[int]) -> None:
    """With an EOI after each, pending vectors are handed out once each, highest first."""
    rig = Rig()
    rig.write(reg.SVR, ENABLED)
    for vector in vectors:
        rig.fixed(vector)
    taken = []
    while (taken_now := rig.apic.acknowledge()) is not None:
        taken.append(taken_now)
        rig.eoi()
    assert taken == sorted(set(vectors), reverse=True)
