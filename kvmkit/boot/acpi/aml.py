"""A small AML encoder.

AML is the byte code in which a DSDT describes devices to the guest's ACPI
interpreter: ACPI 6.5, chapter 20 ("ACPI Machine Language"). Every function
here returns the encoding of one term as ``bytes``; terms nest by passing
them on. Names are written as in ASL ("\\\\_SB.PCI0") and padded with "_".

Resource descriptors, which are plain data to AML, are in ``resources``.
"""

from __future__ import annotations

__all__ = [
    "ONES",
    "and_",
    "arg",
    "buffer",
    "create_dword_field",
    "device",
    "eisa_id",
    "else_",
    "equal",
    "if_",
    "integer",
    "local",
    "method",
    "name",
    "name_string",
    "not_equal",
    "notify",
    "or_",
    "package",
    "pkg_length",
    "return_",
    "scope",
    "store",
    "string",
    "uuid",
]

# 20.3, table 20.1 "AML Byte Stream Byte Values", in order
_ZERO_OP = b"\x00"
_ONE_OP = b"\x01"
_NAME_OP = b"\x08"
_BYTE_PREFIX = b"\x0a"
_WORD_PREFIX = b"\x0b"
_DWORD_PREFIX = b"\x0c"
_STRING_PREFIX = b"\x0d"
_QWORD_PREFIX = b"\x0e"
_SCOPE_OP = b"\x10"
_BUFFER_OP = b"\x11"
_PACKAGE_OP = b"\x12"
_METHOD_OP = b"\x14"
_DUAL_NAME_PREFIX = b"\x2e"
_MULTI_NAME_PREFIX = b"\x2f"
_DEVICE_OP = b"\x5b\x82"
_LOCAL0_OP = 0x60
_ARG0_OP = 0x68
_STORE_OP = b"\x70"
_AND_OP = b"\x7b"
_OR_OP = b"\x7d"
_CREATE_DWORD_FIELD_OP = b"\x8a"
_LNOT_OP = b"\x92"
_LEQUAL_OP = b"\x93"
_IF_OP = b"\xa0"
_ELSE_OP = b"\xa1"
_RETURN_OP = b"\xa4"

_NULL_NAME = b"\x00"  # as a target: the result is not stored
_METHOD_SERIALIZED = 0x08
_UNSIGNED_64 = (1 << 64) - 1

ONES = b"\xff"
"""An integer with all bits set (OnesOp)."""


# -- data ------------------------------------------------------------------------------------


def pkg_length(size: int) -> bytes:
    """PkgLength for ``size`` bytes that follow it; it counts itself too (20.2.4).

    Raises ValueError when the whole needs more than 28 bits.
    """
    if size < 0:
        raise ValueError(f"a package cannot have {size} bytes")
    if size + 1 < 1 << 6:
        return bytes((size + 1,))
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"a package has at most {(1 << 28) - 1} bytes, not {size}")


def integer(value: int) -> bytes:
    """A constant in its shortest form (20.2.3). Raises ValueError outside 0..2**64-1."""
    if value == 0:
        return _ZERO_OP
    if value == 1:
        return _ONE_OP
    if 0 < value <= 0xFF:
        return _BYTE_PREFIX + value.to_bytes(1, "little")
    if 0 < value <= 0xFFFF:
        return _WORD_PREFIX + value.to_bytes(2, "little")
    if 0 < value <= 0xFFFF_FFFF:
        return _DWORD_PREFIX + value.to_bytes(4, "little")
    if 0 < value <= _UNSIGNED_64:
        return _QWORD_PREFIX + value.to_bytes(8, "little")
    raise ValueError(f"an AML integer has 64 bits, unsigned; {value} has not")


def string(text: str) -> bytes:
    """A string constant: ASCII without NUL (20.2.3)."""
    raw = text.encode("ascii")
    if 0 in raw:
        raise ValueError(f"an AML string ends at its first NUL: {text!r}")
    return _STRING_PREFIX + raw + b"\0"


def buffer(data: bytes) -> bytes:
    """A buffer initialised with ``data``."""
    body = integer(len(data)) + data
    return _BUFFER_OP + pkg_length(len(body)) + body


def package(*elements: bytes) -> bytes:
    """A package of up to 255 elements."""
    if len(elements) > 0xFF:
        raise ValueError(f"a package has at most 255 elements, not {len(elements)}")
    body = bytes((len(elements),)) + b"".join(elements)
    return _PACKAGE_OP + pkg_length(len(body)) + body


def eisa_id(text: str) -> bytes:
    """A compressed EISA identifier such as "PNP0501", as an integer (19.3.4).

    Three letters of five bits each and four hexadecimal digits, big-endian.
    """
    letters, digits = text[:3], text[3:]
    if len(text) != 7 or not (letters.isascii() and letters.isalpha() and letters.isupper()):
        raise ValueError(f"an EISA identifier is three capitals and four digits, not {text!r}")
    value = 0
    for letter in letters:
        value = value << 5 | (ord(letter) - 0x40)
    raw = (value << 16 | int(digits, 16)).to_bytes(4, "big")
    return integer(int.from_bytes(raw, "little"))


def uuid(text: str) -> bytes:
    """A UUID as the 16-byte buffer that ASL's ToUUID makes (19.6.142)."""
    first, second, third, fourth, fifth = (bytes.fromhex(part) for part in text.split("-"))
    return buffer(first[::-1] + second[::-1] + third[::-1] + fourth + fifth)


# -- names -----------------------------------------------------------------------------------


def _segment(text: str) -> bytes:
    # NameSeg (20.2.2): a capital or "_", then up to three of those or digits.
    if not 1 <= len(text) <= 4 or not text.isascii() or text[0].isdigit():
        raise ValueError(f"an AML name segment is 1 to 4 of A-Z, 0-9, _; not {text!r}")
    if not all(letter.isupper() or letter.isdigit() or letter == "_" for letter in text):
        raise ValueError(f"an AML name segment is 1 to 4 of A-Z, 0-9, _; not {text!r}")
    return text.encode("ascii").ljust(4, b"_")


def name_string(path: str) -> bytes:
    """NameString for a path such as ``_S5``, ``\\_SB.PCI0`` or ``^COM1`` (20.2.2)."""
    rest = path.lstrip("^") if path[:1] == "^" else path.removeprefix("\\")
    prefix = path[: len(path) - len(rest)].encode("ascii")
    if not rest:
        return prefix + _NULL_NAME
    segments = [_segment(part) for part in rest.split(".")]
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + _DUAL_NAME_PREFIX + b"".join(segments)
    return prefix + _MULTI_NAME_PREFIX + bytes((len(segments),)) + b"".join(segments)


# -- objects ---------------------------------------------------------------------------------


def name(path: str, value: bytes) -> bytes:
    """Name (path, value): a named constant."""
    return _NAME_OP + name_string(path) + value


def _block(op: bytes, head: bytes, terms: tuple[bytes, ...]) -> bytes:
    body = head + b"".join(terms)
    return op + pkg_length(len(body)) + body


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) {terms}: more objects under an existing name."""
    return _block(_SCOPE_OP, name_string(path), terms)


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) {terms}."""
    return _block(_DEVICE_OP, name_string(path), terms)


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """Method (path, arguments) {terms}; ``serialized`` when it creates named objects."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"a method has 0 to 7 arguments, not {arguments}")
    flags = arguments | (_METHOD_SERIALIZED if serialized else 0)
    return _block(_METHOD_OP, name_string(path) + bytes((flags,)), terms)


# -- statements and expressions --------------------------------------------------------------


def arg(number: int) -> bytes:
    """ArgX of the method, 0 to 6."""
    if not 0 <= number <= 6:
        raise ValueError(f"a method has Arg0 to Arg6, not {number}")
    return bytes((_ARG0_OP + number,))


def local(number: int) -> bytes:
    """LocalX of the method, 0 to 7."""
    if not 0 <= number <= 7:
        raise ValueError(f"a method has Local0 to Local7, not {number}")
    return bytes((_LOCAL0_OP + number,))


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) {terms}."""
    return _block(_IF_OP, condition, terms)


def else_(*terms: bytes) -> bytes:
    """Else {terms}, right behind its If."""
    return _block(_ELSE_OP, b"", terms)


def equal(left: bytes, right: bytes) -> bytes:
    """left == right."""
    return _LEQUAL_OP + left + right


def not_equal(left: bytes, right: bytes) -> bytes:
    """left != right."""
    return _LNOT_OP + _LEQUAL_OP + left + right


def and_(left: bytes, right: bytes, target: bytes = _NULL_NAME) -> bytes:
    """And (left, right, target): bitwise."""
    return _AND_OP + left + right + target


def or_(left: bytes, right: bytes, target: bytes = _NULL_NAME) -> bytes:
    """Or (left, right, target): bitwise."""
    return _OR_OP + left + right + target


def store(value: bytes, target: bytes) -> bytes:
    """target = value."""
    return _STORE_OP + value + target


def create_dword_field(source: bytes, offset: int, path: str) -> bytes:
    """CreateDWordField (source, offset in bytes, path)."""
    return _CREATE_DWORD_FIELD_OP + source + integer(offset) + name_string(path)


def notify(object: bytes, value: bytes) -> bytes:
    """Notify: tell the driver of ``object`` that something happened (DefNotify)."""
    return b"\x86" + object + value


def return_(value: bytes) -> bytes:
    """Return (value)."""
    return _RETURN_OP + value
