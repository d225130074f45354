"""C structures as views over a buffer, without ctypes (whose import alone takes 6 ms).

A :class:`Record` holds a ``memoryview`` of exactly its bytes; a field reads or
writes there, so a record over ``kvm_run`` is the mapped page itself, and one over
a ``bytearray`` is what ``fcntl.ioctl`` takes::

    regs = kvm_regs()
    fcntl.ioctl(vcpu, KVM_GET_REGS, regs.memory)
    regs.rip += 2

Numbers are little-endian, as x86 is. Arrays of numbers are typed memoryviews
(index, slice, iterate), arrays of records are tuples of records. A record that
ends in an array without a length is made with :meth:`Record.sized`.
"""

from __future__ import annotations

from functools import cache
from struct import Struct, pack_into

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable
    from typing import Any, Generic, Self, TypeVar

    T = TypeVar("T", bound="Record")

    class _Of(Generic[T]):
        """A field that is, or is made of, records of type T."""

else:

    class _Of:
        __slots__ = ()

        def __class_getitem__(cls, _item):
            return cls


__all__ = [
    "Bits", "Nested", "Nesteds", "Number", "Numbers", "Record", "Rest", "Rows",
    "s16", "s32", "s64", "u8", "u16", "u32", "u64",
]  # fmt: skip

_FORMATS = {
    "u8": "B",
    "s8": "b",
    "u16": "H",
    "s16": "h",
    "u32": "I",
    "s32": "i",
    "u64": "Q",
    "s64": "q",
}
_STRUCTS = {kind: Struct("<" + code) for kind, code in _FORMATS.items()}


class Record:
    """A structure of ``SIZE`` bytes at ``offset`` of a buffer, or of zeroes of its own.

    Raises ValueError if the buffer is too small.
    """

    __slots__ = ("memory",)
    SIZE = 0
    memory: memoryview

    def __init__(
        self,
        buffer: bytearray | memoryview | mmap.mmap | None = None,
        offset: int = 0,
        size: int | None = None,
    ) -> None:
        if size is None:
            size = self.SIZE
        view = memoryview(bytearray(size) if buffer is None else buffer)[offset : offset + size]
        if len(view) < size:
            raise ValueError(f"{type(self).__name__} needs {size} bytes, found {len(view)}")
        self.memory = view

    @classmethod
    def sized(cls, count: int) -> Self:
        """A new record with room for ``count`` elements in the array at its end.

        Raises TypeError for a structure without one.
        """
        for field in vars(cls).values():
            if isinstance(field, Rest) or (isinstance(field, Numbers) and field.count is None):
                return cls(size=cls.SIZE + count * field.stride)
        raise TypeError(f"{cls.__name__} does not end in an array without a length")

    @classmethod
    def offset_of(cls, path: str) -> int:
        """The offset in bytes of a member: ``kvm_run.offset_of("io.port")``.

        Raises KeyError for a name that is none.
        """
        name, _, rest = path.partition(".")
        field = vars(cls)[name]
        offset: int = field.offset
        return offset + (field.record.offset_of(rest) if rest else 0)

    def as_dict(self) -> dict[str, Any]:
        """All members as plain values, for printing; every arm of a union."""
        result = {}
        for name, field in vars(type(self)).items():
            if hasattr(field, "offset"):
                value = getattr(self, name)
                if isinstance(value, Record):
                    value = value.as_dict()
                elif isinstance(value, tuple):
                    value = [v.as_dict() if isinstance(v, Record) else v.tolist() for v in value]
                elif isinstance(value, memoryview):
                    value = value.tolist()
                result[name] = value
        return result

    def __bytes__(self) -> bytes:
        return bytes(self.memory)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.memory == other.memory

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.as_dict().items())})"
        )


class Number:
    """An integer member."""

    __slots__ = ("offset", "pack", "unpack")

    def __init__(self, kind: str, offset: int) -> None:
        codec = _STRUCTS[kind]
        self.offset = offset
        self.unpack = codec.unpack_from
        self.pack = codec.pack_into

    def __get__(self, record: Record, owner: type) -> int:
        value: int = self.unpack(record.memory, self.offset)[0]
        return value

    def __set__(self, record: Record, value: int) -> None:
        self.pack(record.memory, self.offset, value)


# A member has no state of its own, so structures share those at the same offset: that makes
# importing all the structures a third faster.


@cache
def u8(offset: int) -> Number:
    return Number("u8", offset)


@cache
def u16(offset: int) -> Number:
    return Number("u16", offset)


@cache
def u32(offset: int) -> Number:
    return Number("u32", offset)


@cache
def u64(offset: int) -> Number:
    return Number("u64", offset)


@cache
def s16(offset: int) -> Number:
    return Number("s16", offset)


@cache
def s32(offset: int) -> Number:
    return Number("s32", offset)


@cache
def s64(offset: int) -> Number:
    return Number("s64", offset)


class Bits:
    """A bit field: ``width`` bits from bit ``shift`` of the byte at ``offset``, in that byte."""

    __slots__ = ("mask", "offset", "shift")

    def __init__(self, offset: int, shift: int, width: int) -> None:
        self.offset = offset
        self.shift = shift
        self.mask = (1 << width) - 1

    def __get__(self, record: Record, owner: type) -> int:
        value: int = record.memory[self.offset] >> self.shift & self.mask
        return value

    def __set__(self, record: Record, value: int) -> None:
        kept = record.memory[self.offset] & ~(self.mask << self.shift)
        record.memory[self.offset] = kept | (value & self.mask) << self.shift


class Numbers:
    """An array of integers; ``count`` None: as many as the record has room for."""

    __slots__ = ("code", "count", "offset", "stride")

    def __init__(self, kind: str, offset: int, count: int | None) -> None:
        self.offset = offset
        self.count = count
        self.code = _FORMATS[kind]
        self.stride = _STRUCTS[kind].size

    def __get__(self, record: Record, owner: type) -> memoryview:
        view = record.memory[self.offset :]
        count = len(view) // self.stride if self.count is None else self.count
        view = view[: count * self.stride]
        return view if self.code == "B" else view.cast(self.code)  # type: ignore[call-overload]

    def __set__(self, record: Record, values: Iterable[int]) -> None:
        numbers = tuple(values)
        have = len(self.__get__(record, type(record)))
        if len(numbers) > have:
            raise ValueError(f"expected at most {have} numbers, found {len(numbers)}")
        pack_into(f"<{len(numbers)}{self.code}", record.memory, self.offset, *numbers)


class Rows:
    """A two-dimensional array of integers, as a tuple of arrays."""

    __slots__ = ("columns", "offset")

    def __init__(self, kind: str, offset: int, rows: int, columns: int) -> None:
        stride = _STRUCTS[kind].size * columns
        self.offset = offset
        self.columns = tuple(Numbers(kind, offset + row * stride, columns) for row in range(rows))

    def __get__(self, record: Record, owner: type) -> tuple[memoryview, ...]:
        return tuple(column.__get__(record, owner) for column in self.columns)


class Nested(_Of["T"]):
    """A structure inside a structure. Assigning copies the bytes of another record."""

    __slots__ = ("offset", "record")

    def __init__(self, record: type[T], offset: int) -> None:
        self.record = record
        self.offset = offset

    def __get__(self, record: Record, owner: type) -> T:
        size = None if self.record.SIZE else len(record.memory) - self.offset
        return self.record(record.memory, self.offset, size)

    def __set__(self, record: Record, value: T) -> None:
        record.memory[self.offset : self.offset + len(value.memory)] = value.memory


class Nesteds(_Of["T"]):
    """An array of ``count`` structures."""

    __slots__ = ("count", "offset", "record")

    def __init__(self, record: type[T], offset: int, count: int) -> None:
        self.record = record
        self.offset = offset
        self.count = count

    def __get__(self, record: Record, owner: type) -> tuple[T, ...]:
        size = self.record.SIZE
        return tuple(self.record(record.memory, self.offset + n * size) for n in range(self.count))


class Rest(_Of["T"]):
    """An array of structures as long as the record has room for."""

    __slots__ = ("offset", "record")

    def __init__(self, record: type[T], offset: int) -> None:
        self.record = record
        self.offset = offset

    @property
    def stride(self) -> int:
        """The size of one element, in bytes."""
        return self.record.SIZE

    def __get__(self, record: Record, owner: type) -> tuple[T, ...]:
        size = self.record.SIZE
        count = (len(record.memory) - self.offset) // size
        return tuple(self.record(record.memory, self.offset + n * size) for n in range(count))
