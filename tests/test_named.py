"""Named values against the standard library's enumerations, which they stand in for."""

from __future__ import annotations

import copy
import enum
import pickle

import pytest

from kvmkit.named import Named, NamedInt


class Colour(Named):
    RED = "red"
    BLUE = "blue"


class EnumColour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(NamedInt):
    SMALL = 1
    LARGE = 2


def test_members_have_names_and_values():
    """As enum.Enum's have."""
    pairs = [(member.name, member.value) for member in Colour]
    assert pairs == [(member.name, member.value) for member in EnumColour]
    assert len(Colour) == 2


def test_members_are_found_by_value_and_name():
    """There is one object for each."""
    assert Colour("red") is Colour.RED
    assert Colour["BLUE"] is Colour.BLUE
    assert Colour(Colour.RED) is Colour.RED


@pytest.mark.parametrize("value", ["green", 1, None, []])
def test_unknown_values_are_refused_as_by_enum(value):
    """ValueError, with enum's words."""
    with pytest.raises(ValueError) as ours:
        Colour(value)
    with pytest.raises(ValueError) as theirs:
        EnumColour(value)
    assert str(ours.value) == str(theirs.value).replace("EnumColour", "Colour")


def test_members_differ_from_their_values():
    """A member of Named is only itself."""
    assert Colour.RED != "red"
    assert Colour.RED != Colour.BLUE
    assert {Colour.RED: 1}[Colour.RED] == 1


def test_integers_are_integers():
    """NamedInt's members count, compare and print as numbers."""
    assert Size.LARGE + 1 == 3
    assert Size.SMALL < Size.LARGE
    assert f"{Size.LARGE} {Size.LARGE:02x}" == "2 02"
    assert isinstance(Size.SMALL, int)


@pytest.mark.parametrize("member", [Colour.RED, Size.LARGE])
def test_copies_are_the_member_itself(member):
    """Through copy, deepcopy and pickle."""
    assert copy.copy(member) is member
    assert copy.deepcopy(member) is member
    assert pickle.loads(pickle.dumps(member)) is member


def test_texts():
    """As enum writes them."""
    assert repr(Colour.RED) == "<Colour.RED: 'red'>"
    assert str(Colour.RED) == "Colour.RED"
