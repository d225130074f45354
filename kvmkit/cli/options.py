"""Options of the command line: one table per command, read by everybody.

From the same table come the parser, the ``--help`` text, the suggestions for a
mistyped option and the completion scripts. It follows POSIX.1-2017, XBD 12.2
with GNU long options: ``-m 1G``, ``-m1G``, ``--mem 1G``, ``--mem=1G``; ``--``
ends the options. It stands in for ``argparse``, which costs 4 ms of every start.
"""

from __future__ import annotations

from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

__all__ = ["Command", "Option", "Parsed", "closest"]

_WIDTH = 26  # of the left column of a help text


class Option:
    """One option: ``names`` are ``"-m --mem"``; without ``metavar`` it is a flag.

    ``convert`` turns the text into a value and raises ValueError with what was
    expected. ``complete`` says what a shell may offer: ``"file"``, ``"kernel"``,
    ``"vm"`` (a running VM's name) or nothing; ``choices`` are offered and enforced.
    """

    __slots__ = (
        "choices",
        "complete",
        "convert",
        "default",
        "key",
        "metavar",
        "names",
        "repeat",
        "text",
    )

    def __init__(
        self,
        names: str,
        metavar: str,
        text: str,
        *,
        convert: Callable[[str], Any] = str,
        default: Any = None,
        repeat: bool = False,
        choices: tuple[str, ...] = (),
        complete: str = "",
    ) -> None:
        self.names = tuple(names.split())
        self.key = self.names[-1].lstrip("-").replace("-", "_")
        self.metavar = metavar
        self.text = text
        self.convert = convert
        self.default = default
        self.repeat = repeat
        self.choices = choices
        self.complete = complete

    def value(self, name: str, text: str) -> Any:
        """``text`` as this option's value; raises UsageError."""
        if self.choices and text not in self.choices:
            raise UsageError(
                f"{name} expects one of {', '.join(self.choices)}, found {text!r}",
                closest(text, self.choices, "did you mean '{}'?"),
            )
        try:
            return self.convert(text)
        except ValueError as error:
            raise UsageError(f"{name} expects {error}, found {text!r}") from None

    def start(self) -> Any:
        """The value before any word was read."""
        if self.repeat:
            return []
        return self.default if self.metavar else False


class Parsed:
    """What was given: option values by key, plain words, and the words after ``--``."""

    __slots__ = ("rest", "values", "words")

    def __init__(self, values: dict[str, Any], words: list[str], rest: list[str] | None) -> None:
        self.values = values
        self.words = words
        self.rest = rest

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


class Command:
    """A command's usage, options and help; ``words`` names its plain words in the usage line.

    ``complete`` says what a shell may offer for these: ``"vm"``, or else files.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        options: Iterable[Option] = (),
        *,
        words: str = "",
        rest: str = "",
        notes: str = "",
        most_words: int | None = 0,
        complete: str = "file",
    ) -> None:
        self.name = name
        self.summary = summary
        self.options = (*options, Option("-h --help", "", "show this text"))
        self.words = words
        self.rest = rest
        self.notes = notes
        self.most_words = most_words
        self.complete = complete

    def parse(self, arguments: Sequence[str]) -> Parsed | None:
        """The values, or None when help was asked for and printed; raises UsageError."""
        by_name = {name: option for option in self.options for name in option.names}
        values = {option.key: option.start() for option in self.options}
        words: list[str] = []
        rest: list[str] | None = None
        todo = iter(arguments)
        for word in todo:
            if word == "--" and self.rest:
                rest = list(todo)
                break
            if word == "--":
                words += todo
                break
            if not word.startswith("-") or word == "-":
                words.append(word)
                continue
            name, joined = _split(word)
            option = by_name.get(name) or self._unknown(word, name, by_name)
            if not option.metavar:
                if joined is not None:
                    raise UsageError(f"{name} takes no value, found {joined!r}")
                values[option.key] = True
                continue
            text = next(todo, None) if joined is None else joined
            if text is None:
                raise UsageError(f"{name} expects a value: {option.metavar}", self._see())
            value = option.value(name, text)
            if option.repeat:
                values[option.key].append(value)
            else:
                values[option.key] = value
        if values["help"]:
            print(self.help())
            return None
        if self.most_words is not None and len(words) > self.most_words:
            raise UsageError(f"unexpected word {words[self.most_words]!r}", self._see())
        return Parsed(values, words, rest)

    def usage(self) -> str:
        """The one-line form."""
        tail = "".join(f" {part}" for part in (self.words, self.rest) if part)
        return f"usage: {self.name} [options]{tail}"

    def help(self) -> str:
        """The whole help text."""
        lines = [self.usage(), "", self.summary, "", "Options:"]
        for option in self.options:
            short = option.names[0] if len(option.names) > 1 else ""
            left = f"{short + ',' if short else '':<4}{option.names[-1]}"
            left = f"  {left}{' ' + option.metavar if option.metavar else ''}"
            if len(left) > _WIDTH:
                lines.append(left)
                left = ""
            first, *more = option.text.split("\n")
            lines.append(f"{left:<{_WIDTH}}  {first}")
            lines += [f"{'':<{_WIDTH}}  {line}" for line in more]
        return "\n".join([*lines, "", self.notes.strip("\n")] if self.notes else lines)

    def _unknown(self, word: str, name: str, known: dict[str, Option]) -> Option:
        raise UsageError(
            f"unknown option {(name if word.startswith('--') else word)!r}",
            closest(name, (known_name for known_name in known), "did you mean {}?") or self._see(),
        )

    def _see(self) -> str:
        return f"see {self.name} --help"


def _split(word: str) -> tuple[str, str | None]:
    """``--mem=1G`` and ``-m1G`` as name and joined value."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals else None
    return word[:2], word[2:] or None


def closest(word: str, known: Iterable[str], template: str) -> str:
    """``template`` filled with the known word nearest to ``word``; "" if none is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), 1, 0.6)
    return template.format(near[0]) if near else ""
