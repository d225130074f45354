"""Whether a value is what a record's annotation says: ``int | None``, ``tuple[bytes, ...]``.

Annotations are text here (PEP 563), of a small language: the names below and those of
record classes, ``|``, ``tuple[...]`` and ``dict[..., ...]``. A number that the
annotation calls a bool is 0 or 1; elsewhere bools are numbers.
"""

from __future__ import annotations

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[Any], bool]

__all__ = ["fits", "shape"]

_checks: dict[str, Check] = {}
_PAIR = 2


def fits(value: Any, annotation: str) -> bool:
    """Whether ``value`` is an ``annotation``. Raises ValueError for one of another language."""
    return shape(annotation)(value)


def shape(annotation: str) -> Check:
    """The check for an annotation. Raises ValueError for one of another language."""
    check = _checks.get(annotation)
    if check is None:
        check = _checks[annotation] = _union(annotation)
    return check


def _union(annotation: str) -> Check:
    arms = [_one(arm.strip()) for arm in _split(annotation, "|")]
    if len(arms) == 1:
        return arms[0]
    return lambda value: any(arm(value) for arm in arms)


def _one(name: str) -> Check:
    plain = _PLAIN.get(name)
    if plain is not None:
        return plain
    head, bracket, rest = name.partition("[")
    if bracket:
        if not rest.endswith("]") or head not in ("tuple", "dict"):
            raise ValueError(f"no annotation of a state record: {name}")
        parts = [part.strip() for part in _split(rest[:-1], ",")]
        return _tuple(parts) if head == "tuple" else _dict(parts)
    if not name.isidentifier():
        raise ValueError(f"no annotation of a state record: {name}")
    return lambda value: isinstance(value, Record) and type(value).__name__ == name


def _tuple(parts: list[str]) -> Check:
    if len(parts) == _PAIR and parts[1] == "...":
        each = shape(parts[0])
        return lambda value: type(value) is tuple and all(map(each, value))
    checks = [shape(part) for part in parts]
    return lambda value: (
        type(value) is tuple
        and len(value) == len(checks)
        and all(check(item) for check, item in zip(checks, value, strict=True))
    )


def _dict(parts: list[str]) -> Check:
    of_key, of_value = (shape(part) for part in parts)
    return lambda value: (
        type(value) is dict and all(map(of_key, value)) and all(map(of_value, value.values()))
    )


def _split(text: str, mark: str) -> list[str]:
    """``text`` at each ``mark`` that stands in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == mark and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


_PLAIN: dict[str, Check] = {
    "Any": lambda value: True,
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, int) and value in (0, 1),
    "int": lambda value: isinstance(value, int),
    "str": lambda value: type(value) is str,
    "bytes": lambda value: type(value) is bytes,
}
