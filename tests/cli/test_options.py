"""The option parser: forms of an option, what is refused, and the help text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.cli.options import Command, Option, Parsed
from kvmkit.cli.values import count, seconds, size
from kvmkit.errors import UsageError

TABLE = Command(
    "tool do",
    "Does it.",
    (
        Option("-m --mem", "SIZE", "memory", convert=size),
        Option("-i --initrd", "FILE", "add a file", repeat=True, complete="file"),
        Option("--engine", "NAME", "which", default="auto", choices=("auto", "kvm", "soft")),
        Option("--no-reboot", "", "end at a reboot"),
    ),
    words="[KERNEL]",
    rest="[-- COMMAND]",
    most_words=1,
)


def parse(*words: str) -> Parsed:
    """The parsed words, which did not ask for help."""
    parsed = TABLE.parse(words)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    "words", [("-m", "1G"), ("-m1G",), ("--mem", "1G"), ("--mem=1G",)], ids=" ".join
)
def test_an_option_has_four_forms(words: tuple[str, ...]) -> None:
    """Short and long, joined and apart, mean the same."""
    assert parse(*words)["mem"] == 1 << 30


def test_defaults_stand_when_nothing_is_given() -> None:
    """Each option has its value from the table."""
    parsed = parse()

    assert parsed.values == {
        "mem": None, "initrd": [], "engine": "auto", "no_reboot": False, "help": False,
    }  # fmt: skip
    assert parsed.rest is None


def test_a_repeated_option_collects_in_order() -> None:
    """Several initrds stay in the order given."""
    assert parse("-i", "b", "--initrd=a", "-ic")["initrd"] == ["b", "a", "c"]


def test_words_after_two_dashes_are_left_alone() -> None:
    """The guest's command keeps its own options."""
    parsed = parse("--no-reboot", "--", "ls", "-m", "--", "x")

    assert parsed.rest == ["ls", "-m", "--", "x"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--memm", "1"], "unknown option '--memm'", "did you mean --mem?"),
        (["--no-rebot"], "unknown option '--no-rebot'", "did you mean --no-reboot?"),
        (["-Z"], "unknown option '-Z'", ""),
        (["--mem"], "--mem expects a value: SIZE", "tool do --help"),
        (["--no-reboot=1"], "--no-reboot takes no value, found '1'", ""),
        (["--engine", "sofd"], "--engine expects one of auto, kvm, soft, found 'sofd'", "soft"),
        (["--mem", "much"], "--mem expects a size", ""),
        (["a", "b"], "unexpected word 'b'", "--help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_with_a_way_out(words: list[str], message: str, hint: str) -> None:
    """The message says what was expected and found; the hint suggests."""
    with pytest.raises(UsageError) as caught:
        TABLE.parse(words)

    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints the table and parses nothing further."""
    assert TABLE.parse(["--help"]) is None

    text = capsys.readouterr().out
    assert "usage: tool do [options] [KERNEL] [-- COMMAND]" in text
    assert all(option.names[-1] in text for option in TABLE.options)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512 << 20),
        ("64M", 64 << 20),
        ("1.5G", 3 << 29),
        ("4GiB", 4 << 30),
        ("4gb", 4 << 30),
        ("65536K", 64 << 20),
        ("1048576B", 1 << 20),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text: str, value: int) -> None:
    """A bare number is MiB, as in lkvm; units are binary."""
    assert size(text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", "0", "M", "1X", "1e3", ".5G", "1.G.", "9999999T", "½G", "1 G", "0x10"]
)
def test_sizes_refuse(text: str) -> None:
    """What is no size is told what one looks like."""
    with pytest.raises(ValueError, match="a size such as"):
        size(text)


@settings(deadline=None)
@given(st.text())
def test_converters_raise_nothing_but_value_error(text: str) -> None:
    """Any text is a value or a ValueError."""
    for convert in (size, seconds, count(1, 64)):
        try:
            assert convert(text) > 0
        except ValueError:
            pass


@settings(deadline=None)
@given(st.lists(st.text()))
def test_any_words_parse_or_are_refused(words: list[str]) -> None:
    """No list of words makes the parser fail otherwise."""
    try:
        TABLE.parse([word for word in words if word not in ("-h", "--help")])
    except UsageError as error:
        assert str(error)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", ""])
def test_seconds_refuse(text: str) -> None:
    """A duration is a positive finite number."""
    with pytest.raises(ValueError, match="positive number"):
        seconds(text)


@pytest.mark.parametrize("text", ["0", "65", "1.5", "many", ""])
def test_counts_refuse(text: str) -> None:
    """A count says its range."""
    with pytest.raises(ValueError, match="from 1 to 64"):
        count(1, 64)(text)
