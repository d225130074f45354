"""State records to JSON and back, and what a stranger's JSON may do."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.lapic_registers import LapicState, LapicTimerState
from kvmkit.devices.pit_counter import CounterState
from kvmkit.engine.cpu import CpuState, DescriptorTable, Fpu, Segment
from kvmkit.errors import BadSnapshot
from kvmkit.frozen import Record, replace
from kvmkit.snapshot.records import decode, encode
from kvmkit.snapshot.shapes import fits, shape
from kvmkit.snapshot.text import parse

U16, U64 = st.integers(0, 0xFFFF), st.integers(0, (1 << 64) - 1)
U256 = st.integers(0, (1 << 256) - 1)
SEGMENTS = st.builds(Segment, U16, U64, st.integers(0, 0xFFFFFFFF), U16)
TABLES = st.builds(DescriptorTable, U64, U16)
FPUS = st.builds(
    Fpu,
    fcw=U16,
    fip=U64,
    st=st.tuples(*[st.binary(min_size=10, max_size=10)] * 8),
    xmm=st.tuples(*[st.binary(min_size=16, max_size=16)] * 16),
)
CPUS = st.builds(
    CpuState,
    gprs=st.tuples(*[U64] * 16),
    cs=SEGMENTS,
    gdt=TABLES,
    fpu=FPUS,
    dr=st.tuples(*[U64] * 6),
    msrs=st.dictionaries(st.integers(0, 0xFFFFFFFF), U64, max_size=5),
    halted=st.booleans(),
)
TIMERS = st.builds(LapicTimerState, started=U64, alarm=st.none() | U64)
LAPICS = st.builds(LapicState, U64, TIMERS, isr=U256, irr=U256, extint=st.booleans())
COUNTERS = st.builds(CounterState, st.booleans(), count=st.none() | U16, origin=st.integers())
RECORDS = CPUS | LAPICS | COUNTERS
NUMBERS = st.integers(-(1 << 256) + 1, (1 << 256) - 1)
PLAIN = st.none() | st.booleans() | NUMBERS | st.binary(max_size=20) | st.text(max_size=20)
VALUES = st.recursive(
    PLAIN | RECORDS,
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(NUMBERS | st.text(max_size=5) | st.binary(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["0x10000", "kvmkit.engine.cpu:Segment", "kvmkit.frozen:Record"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["record", "bytes", "text", "map", "selector", "base"]) | st.text(),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)  # fmt: skip


def through(value, like=None):
    """To the text of a file and back."""
    return decode(json.loads(json.dumps(encode(value))), "here", like)


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_is_read(value):
    """Encoding and decoding any nested value is the identity, types and all."""
    assert through(value) == value
    assert repr(through(value)) == repr(value)


@settings(deadline=None)
@given(RECORDS)
def test_a_record_like_another_is_read(record):
    """A template of the same class changes nothing."""
    assert through(record, record) == record


@settings(deadline=None, max_examples=400)
@given(JSON)
def test_a_strangers_json_is_refused_clearly(value):
    """Any JSON gives a value or BadSnapshot in one short line, never another exception."""
    for like in (None, Segment(), LapicState(0), 5, b"ab", (1, Segment())):
        try:
            decode(value, "here", like)
        except BadSnapshot as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


@settings(deadline=None, max_examples=200)
@given(CPUS, st.data())
def test_one_wrong_value_is_found(cpu, data):
    """A field of a kind that its record does not have is named."""
    name = data.draw(st.sampled_from(["rip", "cs", "gprs", "halted", "msrs", "fpu", "dr"]))
    encoded = encode(cpu)
    encoded[name] = data.draw(st.sampled_from([None, {"text": "x"}, [{"text": "x"}], {}, 1.5]))
    with pytest.raises(BadSnapshot, match=f"here.*{name}"):
        decode(encoded, "here")


@pytest.mark.parametrize(
    "value",
    [
        {"record": "os:system"},
        {"record": "kvmkit.vm:VM"},
        {"record": "kvmkit.frozen:Record"},
        {"record": "kvmkit.engine.cpu:replace"},
        {"record": "kvmkit.engine.cpu:CpuState.__init__"},
        {"record": "kvmkit.engine.kvm.engine:KvmEngine"},
        {"record": "kvmkit.engine.engine:CpuEnd", "vcpu": 0, "reason": 1, "detail": {"text": ""}},
        {"record": ["kvmkit.engine.cpu:Segment"]},
        {"map": [[[1], 2]]},
        {"map": [[1, 2], [1, 3]]},
        {"bytes": "0"},
        {"bytes": 5},
        {"bytes": "00", "text": ""},
        {},
        "10",
        "0x_10",
        " 0x10",
        "0X10",
        "0x010",
        "0x1" + "0" * 64,
        "0x" + "f" * 5000,
        1 << 300,
        1.0,
    ],
)
def test_what_no_state_holds_is_refused(value):
    """Classes that are no records, two spellings of a number, numbers without end."""
    with pytest.raises(BadSnapshot):
        decode(value, "here")


@pytest.mark.parametrize("bottom", [[], {"map": [[1, 1]]}])
def test_deep_nesting_is_refused(bottom):
    """At a depth that no state has, long before Python's own."""
    value = bottom
    for _ in range(500):
        value = [value]
    with pytest.raises(BadSnapshot, match="nested too deep"):
        decode(value, "here")


def test_a_wrong_number_of_bytes_is_refused():
    """Memory in a device has the size it has."""
    with pytest.raises(BadSnapshot, match="expected 3 bytes, found 2"):
        decode(encode(b"ab"), "here", b"abc")


def test_another_record_is_refused():
    """What stands where a record of another class belongs."""
    with pytest.raises(BadSnapshot, match="expected a Segment, found a DescriptorTable"):
        decode(encode(DescriptorTable()), "here", Segment())


def test_a_lost_field_is_named():
    """A record of another version's is refused with the field it lacks or has too much."""
    encoded = encode(Segment())
    del encoded["limit"]
    with pytest.raises(BadSnapshot, match="Segment does not have just these fields: 'limit'"):
        decode(encoded, "here")


def test_the_place_is_named():
    """The path to the wrong value, from the outside in."""
    cpu = replace(CpuState(), msrs={0x10: 5})
    encoded = encode((cpu,))
    encoded[0]["msrs"]["map"][0][1] = {"text": "x"}
    with pytest.raises(BadSnapshot, match=r"here\[0\]\.msrs: expected dict\[int, int\]"):
        decode(encoded, "here")


@pytest.mark.parametrize("value", [object(), 1.5, {(1,): 2}, 1 << 256, {1, 2}])
def test_what_cannot_be_saved_is_refused_when_saving(value):
    """A mistake of ours shows when the snapshot is taken, not when it is needed."""
    with pytest.raises(TypeError, match="a state holds"):
        encode(value)


def test_a_large_hostile_state_takes_bounded_time():
    """A million values are looked at in seconds."""
    value = [[{"bytes": "00"}] * 1000] * 300 + [1.5]
    start = time.monotonic()
    with pytest.raises(BadSnapshot):
        decode(value, "here")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("value", "annotation", "fit"),
    [
        (5, "int", True),
        (True, "int", True),
        (2, "bool", False),
        (None, "int | None", True),
        ("x", "int | None", False),
        ((1, b""), "tuple[int, bytes]", True),
        ((1,), "tuple[int, bytes]", False),
        ([1], "tuple[int, ...]", False),
        ((), "tuple[int, ...]", True),
        ({1: (2, None)}, "dict[int, tuple[int, int | None]]", True),
        ({1: (2, b"")}, "dict[int, tuple[int, int | None]]", False),
        (Segment(), "Segment", True),
        (DescriptorTable(), "Segment", False),
        (object(), "Any", True),
    ],
)
def test_annotations_are_checked(value, annotation, fit):
    """The small language of the records' annotations."""
    assert fits(value, annotation) is fit


@settings(deadline=None)
@given(st.text() | JSON.map(json.dumps) | JSON.map(json.dumps).map(lambda text: text[:-1]))
def test_parsing_agrees_with_the_standard_library(text):
    """Our door to the scanner reads what json.loads reads, and refuses the rest."""
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        with pytest.raises((ValueError, RecursionError)):
            parse(text)
        return
    if "NaN" not in text and "Infinity" not in text:
        assert parse(text) == expected


def test_numbers_without_end_are_refused():
    """Python refuses to read a million digits; so do we, as a ValueError."""
    with pytest.raises(ValueError, match="limit"):
        parse("9" * 100_000)


def state_records():
    """Every record class of the rooms whose records snapshots hold."""
    import importlib
    import pkgutil

    import kvmkit.board
    import kvmkit.devices
    import kvmkit.virtio

    for room in (kvmkit.board, kvmkit.devices, kvmkit.virtio):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            loaded = importlib.import_module(module.name)
            for each in vars(loaded).values():
                if isinstance(each, type) and issubclass(each, Record) and each is not Record:
                    yield each


def test_every_state_records_annotations_can_be_checked():
    """A device whose record says more than the language knows could not be restored."""
    seen = set()
    for record in state_records():
        if record.__name__.endswith(("State", "Setup")):
            seen.add(record.__name__)
            for annotation in record.__annotations__.values():
                shape(annotation)
    assert {"SerialState", "TransportState", "BoardState"} <= seen
