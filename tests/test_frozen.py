"""Records: what dataclasses do, without their code generation."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.frozen import FrozenRecordError, Record, asdict, field, fields, replace


class Point(Record):
    """A record as they are written."""

    x: int
    y: int = 2
    tags: dict[str, int] = field(default_factory=dict)

    @property
    def sum(self) -> int:
        return self.x + self.y


class Deep(Point):
    """A record that adds fields."""

    z: tuple[Point, ...] = ()


class Named(Record, kw_only=True):
    """Fields by name only; one without default after one with."""

    first: int = 1
    second: int


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """The standard library's, to compare with."""

    x: int
    y: int = 2
    tags: dict[str, int] = dataclasses.field(default_factory=dict)


def test_positions_names_and_defaults():
    """All ways to give the fields make equal records."""
    records = [Point(1), Point(1, 2), Point(x=1), Point(1, y=2), Point(1, 2, {}), Point(y=2, x=1)]
    assert all(record == Point(1, 2, {}) for record in records)


def test_defaults_of_a_factory_are_not_shared():
    """Each record has its own."""
    assert Point(1).tags is not Point(1).tags


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, r"Point.__init__\(\) missing required arguments: 'x'"),
        ((1, 2, {}, 4), {}, "takes 4 positional arguments but 5 were given"),
        ((1,), {"x": 1}, "got multiple values for argument 'x'"),
        ((1,), {"w": 1}, "got an unexpected keyword argument 'w'"),
        ((1, 2, {}), {"w": 1}, "got an unexpected keyword argument 'w'"),
    ],
)
def test_wrong_arguments(arguments, named, message):
    """They are refused as a function's would be, and as a dataclass's are."""
    with pytest.raises(TypeError, match=message):
        Point(*arguments, **named)
    with pytest.raises(TypeError):
        Model(*arguments, **named)


def test_only_by_name():
    """kw_only: positions are refused, names taken, in any order of defaults."""
    with pytest.raises(TypeError, match="takes 1 positional arguments but 3 were given"):
        Named(1, 2)
    with pytest.raises(TypeError, match="missing required arguments: 'second'"):
        Named(first=2)
    assert Named(second=2) == Named(first=1, second=2)


def test_named_fields_without_any_argument() -> None:
    """kw_only: the defaults, and an error for what has none."""

    class Easy(Record, kw_only=True):
        a: int = 1

    assert Easy().a == 1
    with pytest.raises(TypeError, match="missing"):
        Named()


def test_fields_cannot_be_changed():
    """Neither set, nor deleted, nor added."""
    point = Point(1)
    with pytest.raises(FrozenRecordError, match="cannot assign to field 'x'"):
        point.x = 3
    with pytest.raises(FrozenRecordError, match="cannot delete field 'x'"):
        del point.x
    with pytest.raises(AttributeError):
        point.w = 3
    assert point.x == 1 and not hasattr(point, "__dict__")


def test_equality_is_per_class():
    """A subclass's record with the same values is another one; so is a tuple."""
    assert Point(1) != Deep(1) and Deep(1) != Point(1)
    assert Point(1) != (1, 2, {}) and Point(1) == Point(1)


def test_hash():
    """Equal records hash alike; one with a field that cannot be hashed cannot."""
    assert hash(Named(second=2)) == hash(Named(second=2))
    assert len({Named(second=2), Named(second=2), Named(second=3)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_repr_is_a_dataclass_s():
    """Class and fields, as one would write them."""
    assert repr(Point(1)) == "Point(x=1, y=2, tags={})"
    assert repr(Point(1)).removeprefix("Point") == repr(Model(1)).removeprefix("Model")


def test_subclass_adds_fields():
    """They come after those of the base."""
    assert fields(Deep) == fields(Deep(1)) == ("x", "y", "tags", "z")
    assert Deep(1, 2, {}, (Point(3),)).z[0].sum == 5


def test_replace():
    """A copy with changes; names that are none are refused."""
    assert replace(Point(1, 5), x=3) == Point(3, 5)
    assert replace(Named(second=2), second=4) == Named(second=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'w'"):
        replace(Point(1), w=1)


def test_asdict():
    """Records inside become dictionaries, too."""
    nested = Deep(1, 2, {"a": 1}, (Point(3),))
    assert asdict(nested) == {
        "x": 1,
        "y": 2,
        "tags": {"a": 1},
        "z": ({"x": 3, "y": 2, "tags": {}},),
    }


def test_the_standard_library_s_functions_take_records():
    """For code that has dataclasses imported anyway."""
    point: Any = Point(1, 2)
    assert dataclasses.is_dataclass(Point) and dataclasses.is_dataclass(point)
    assert dataclasses.replace(point, x=3) == Point(3, 2)
    assert dataclasses.asdict(point) == asdict(point)
    assert [entry.name for entry in dataclasses.fields(Point)] == list(fields(Point))


@pytest.mark.parametrize("record", [Point(1), Deep(1, 2, {}, (Point(3),)), Named(second=3)])
def test_pickle_and_copy(record):
    """They come back equal, and of their class."""
    copies = [pickle.loads(pickle.dumps(record, protocol)) for protocol in (0, 2, 5)]
    assert [*copies, copy.copy(record), copy.deepcopy(record)] == [record] * 5


def test_pattern_matching():
    """Fields by position in a match statement."""
    match Point(1, 5):
        case Point(x, y):
            assert (x, y) == (1, 5)


def test_classes_that_cannot_be():
    """A field without default after one with; a default all records would share."""
    with pytest.raises(TypeError, match="non-default argument 'b' follows default argument"):

        class Order(Record):
            a: int = 1
            b: int

    with pytest.raises(ValueError, match="mutable default <class 'list'> for field a"):

        class Shared(Record):
            a: list[int] = []


@settings(deadline=None)
@given(st.lists(st.integers() | st.text() | st.binary(), min_size=1, max_size=2))
def test_agrees_with_a_dataclass(values):
    """Same fields, same equality, same repr, for any values."""
    record, model = Point(*values), Model(*values)
    assert repr(record).removeprefix("Point") == repr(model).removeprefix("Model")
    assert asdict(record) == dataclasses.asdict(model)
    assert (record == Point(1)) == (model == Model(1))


def test_class_is_made_fast_and_imports_nothing():
    """What this module is for: 50 classes in the time of one dataclass or two."""
    namespace = {"__annotations__": dict.fromkeys("abcdefgh", "int"), "__module__": __name__}
    rounds = []
    for _ in range(20):
        start = time.perf_counter()
        type(Record)("Quick", (Record,), dict(namespace))
        rounds.append(time.perf_counter() - start)
    assert min(rounds) < 30e-6
    code = "import sys, kvmkit.frozen; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not {"dataclasses", "inspect", "typing", "enum"} & set(loaded.split())
