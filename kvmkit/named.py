"""Named values: the few members of a closed set, without the ``enum`` module.

    class BarKind(Named):
        IO = 1
        MEMORY32 = 0

The members have ``name`` and ``value``, are compared by identity, iterated in
order, and found by value (``BarKind(1)``); those of a :class:`NamedInt` are
integers as well. That is what kvmkit uses of ``enum.Enum`` and ``enum.IntEnum``,
which type checkers take these for; importing ``enum`` and making its classes is
3 ms of a start that should take 25.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum as Named
    from enum import IntEnum as NamedInt
else:

    class _Set(type):
        """A class whose plain attributes become its members."""

        def __new__(mcs, name, bases, namespace):
            values = {
                key: value
                for key, value in namespace.items()
                if not key.startswith("_") and not callable(value) and not hasattr(value, "__get__")
            }
            for key in values:
                del namespace[key]
            cls = super().__new__(mcs, name, bases, namespace)
            cls._members = {}
            for key, value in values.items():
                member = cls._make(value)
                member.name = key
                member.value = value
                cls._members[value] = member
                setattr(cls, key, member)
            return cls

        def __call__(cls, value):
            if type(value) is cls:
                return value
            try:
                return cls._members[value]
            except (KeyError, TypeError):
                raise ValueError(f"{value!r} is not a valid {cls.__qualname__}") from None

        def __getitem__(cls, name):
            for member in cls._members.values():
                if member.name == name:
                    return member
            raise KeyError(name)

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __contains__(cls, value):
            return type(value) is cls or value in cls._members

    class _Member:
        def __repr__(self):
            return f"<{type(self).__qualname__}.{self.name}: {self.value!r}>"

        def __reduce__(self):
            return type(self), (self.value,)

        def __copy__(self):
            return self

        def __deepcopy__(self, memo):
            return self

    class Named(_Member, metaclass=_Set):
        """A closed set of named values."""

        @classmethod
        def _make(cls, value):
            return object.__new__(cls)

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"

    class NamedInt(_Member, int, metaclass=_Set):
        """A closed set of named integers."""

        @classmethod
        def _make(cls, value):
            return int.__new__(cls, value)

        __str__ = int.__repr__
        __format__ = int.__format__


__all__ = ["Named", "NamedInt"]
