"""Records: small immutable classes whose fields are their annotations.

    class Segment(Record):
        selector: int = 0
        base: int = 0

They do what ``dataclasses.dataclass(frozen=True, slots=True)`` does (Python
library reference, ``dataclasses``), and are made differently: dataclasses writes
Python source for each class and compiles it, which with the modules it imports
is 25 ms of a start that should take as long in all. Here the methods are written
once, in :class:`Record`, and go through the fields' names; a class costs 20 us.

The standard library's ``dataclasses.replace``, ``fields`` and ``asdict`` take
records as well, for whoever has imported them anyway.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_):
        """What type checkers know as PEP 681; nothing at run time."""
        return lambda decorated: decorated


__all__ = ["FrozenRecordError", "Record", "asdict", "field", "fields", "replace"]


class FrozenRecordError(AttributeError):
    """Somebody assigns to, or deletes, a field of a record."""


class _Factory:
    """A default that is made anew for each record."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], Any]) -> Any:
    """A field's default that is made for each record: ``field(default_factory=dict)``."""
    return _Factory(default_factory)


class _RecordType(type):
    """Makes a record class: annotations become slots, and values given to them defaults.

    Raises TypeError for a field without a default after one with, ValueError for a
    default that could be changed (one that cannot be hashed).
    """

    _names: tuple[str, ...]
    _defaults: dict[str, Any]
    _puts: tuple[Callable[[object, Any], None], ...]
    _positions: int  # how many arguments may have no name
    _complete: int  # how many without a name are all there can be; -1 if none are enough

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        kw_only: bool = False,
    ) -> _RecordType:
        own = tuple(namespace.get("__annotations__", ()))
        names: tuple[str, ...] = ()
        puts: tuple[Callable[[object, Any], None], ...] = ()
        defaults: dict[str, Any] = {}
        for base in bases:
            if isinstance(base, _RecordType):
                names += base._names
                puts += base._puts
                defaults |= base._defaults
                kw_only |= base._positions < len(base._names)
        for key in own:
            if key in namespace:
                default = defaults[key] = namespace.pop(key)
                if type(default).__hash__ is None:
                    raise ValueError(
                        f"mutable default {type(default)} for field {key} is not allowed: "
                        "use default_factory"
                    )
            elif defaults and not kw_only:
                raise TypeError(f"non-default argument {key!r} follows default argument")
        names += own
        namespace["__slots__"] = own
        if not kw_only:
            namespace["__match_args__"] = names
        cls = super().__new__(mcs, name, bases, namespace)
        members = cls.__dict__
        cls._names = names
        cls._puts = puts + tuple([members[key].__set__ for key in own])
        cls._defaults = defaults
        cls._positions = 0 if kw_only else len(names)
        cls._complete = -1 if kw_only else len(names)
        return cls

    @property
    def __dataclass_fields__(cls) -> dict[str, Any]:
        """The fields as the standard library's functions want them, made when asked for."""
        from dataclasses import make_dataclass

        stand_in: Any = make_dataclass(cls.__name__, cls._names)
        found: dict[str, Any] = stand_in.__dataclass_fields__
        return found


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record(metaclass=_RecordType):
    """The base of all records.

    Arguments are given by position or name (by name only for a subclass with
    ``kw_only=True``); TypeError for one too many, missing, or unknown. Records are
    equal if they are of the same class and their fields are equal; they can be
    hashed if their fields can. Setting a field raises :class:`FrozenRecordError`.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]
    else:

        def __init__(self, *values: Any, **named: Any) -> None:
            if named or len(values) != self._complete:
                values = _arrange(type(self), values, named)
            for put, value in zip(self._puts, values):  # noqa: B905 - strict= costs, lengths agree
                put(self, value)

        __dataclass_fields__ = property(lambda self: type(self).__dataclass_fields__)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenRecordError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenRecordError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(tuple(_values(self)))

    def __repr__(self) -> str:
        pairs = zip(type(self)._names, _values(self), strict=True)
        text = ", ".join([f"{name}={value!r}" for name, value in pairs])
        return f"{type(self).__qualname__}({text})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (type(self), *_values(self))

    def __replace__(self: R, **changes: Any) -> R:
        """For ``copy.replace`` of Python 3.13."""
        return replace(self, **changes)


def fields(record: Record | type[Record]) -> tuple[str, ...]:
    """The names of a record's fields, in order."""
    return record._names if isinstance(record, type) else type(record)._names


def replace(record: R, **changes: Any) -> R:
    """A copy of ``record`` with some fields changed; TypeError for a name that is none."""
    values = dict(zip(type(record)._names, _values(record), strict=True))
    return type(record)(**values | changes)


def asdict(record: Record) -> dict[str, Any]:
    """The fields by name; records in them, also within tuples, lists and dicts, likewise."""
    return {name: _plain(getattr(record, name)) for name in type(record)._names}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if type(value) in (tuple, list):
        return type(value)([_plain(entry) for entry in value])
    return value


def _values(record: Record) -> list[Any]:
    return [getattr(record, name) for name in type(record)._names]


def _make(cls: type[R], *values: Any) -> R:
    """A record of all its values: what pickle and copy call."""
    record = cls.__new__(cls)
    for put, value in zip(cls._puts, values, strict=True):
        put(record, value)
    return record


def _arrange(cls: _RecordType, given: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """The arguments of a call in the order of the fields, the defaults for those not given."""
    names, defaults = cls._names, cls._defaults
    call = f"{cls.__qualname__}.__init__()"
    if len(given) > cls._positions:
        most = cls._positions + 1
        raise TypeError(f"{call} takes {most} positional arguments but {len(given) + 1} were given")
    values = list(given)
    missing = []
    used = 0
    for name in names[len(given) :]:
        if name in named:
            values.append(named[name])
            used += 1
        elif name in defaults:
            default = defaults[name]
            values.append(default.make() if type(default) is _Factory else default)
        else:
            missing.append(repr(name))
    if used != len(named):
        for name in named:
            if name not in names:
                raise TypeError(f"{call} got an unexpected keyword argument {name!r}")
            if name in names[: len(given)]:
                raise TypeError(f"{call} got multiple values for argument {name!r}")
    if missing:
        raise TypeError(f"{call} missing required arguments: {', '.join(missing)}")
    return values
