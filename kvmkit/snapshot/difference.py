"""What differs between two snapshots: configuration, registers by name, pages of memory."""

from __future__ import annotations

import os

from kvmkit.board.residence import data_extents, merged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from kvmkit.snapshot.format import Snapshot

__all__ = ["Change", "memory_changes", "state_changes"]

Change = tuple[str, str, str]
"""Where, and what each of the two has there."""

PAGE = 4096
_PIECE = 256 * PAGE
_NOTHING = "nothing"
_KINDS = ("bytes", "text")
_HEAD = ("kvmkit", "name", "memory", "config")


def state_changes(one: Snapshot, other: Snapshot) -> Iterator[Change]:
    """Each value that differs, by its path: ``cpus[0].rip``, ``devices[com1].lcr``."""
    for name in _HEAD:
        yield from _walk(name, one.head.get(name), other.head.get(name))
    yield from _walk("", one.head["state"], other.head["state"])


def memory_changes(one: Snapshot, other: Snapshot) -> list[tuple[int, int]]:
    """Offset and size of the ranges of whole pages that differ; both memories are as large."""
    found: list[tuple[int, int]] = []
    size = min(one.memory, other.memory)
    places = merged([*data_extents(one.fd, size), *data_extents(other.fd, size)])
    for offset, length in places:
        for at in range(offset, offset + length, _PIECE):
            most = min(_PIECE, offset + length - at)
            first, second = os.pread(one.fd, most, at), os.pread(other.fd, most, at)
            if first != second:
                found += _pages(first, second, at)
    return merged(found)


def _pages(first: bytes, second: bytes, at: int) -> Iterator[tuple[int, int]]:
    for start in range(0, max(len(first), len(second)), PAGE):
        if first[start : start + PAGE] != second[start : start + PAGE]:
            yield at + start, PAGE


def _walk(path: str, one: Any, other: Any) -> Iterator[Change]:
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() == other.keys() == {"map"}:
            yield from _walk_map(path, one["map"], other["map"])
            return
        if not (one.keys() | other.keys()) & set(_KINDS):
            for key in dict.fromkeys([*one, *other]):
                inner = f"{path}.{key}" if path else key
                yield from _walk(inner, one.get(key), other.get(key))
            return
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from _walk(f"{path}[{index}]", first, second)
        return
    yield path, _show(one), _show(other)


def _walk_map(path: str, one: Any, other: Any) -> Iterator[Change]:
    first, second = _pairs(one), _pairs(other)
    for key in dict.fromkeys([*first, *second]):
        yield from _walk(f"{path}[{key}]", first.get(key), second.get(key))


def _pairs(pairs: Any) -> dict[str, Any]:
    if not isinstance(pairs, list):
        return {}
    return {_show(pair[0]): pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2}


def _show(value: Any) -> str:
    """Short, on one line."""
    if value is None:
        return _NOTHING
    if isinstance(value, dict) and len(value) == 1 and not value.keys().isdisjoint(_KINDS):
        value = next(iter(value.values()))
    text = value if isinstance(value, str) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
