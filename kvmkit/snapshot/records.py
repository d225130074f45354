"""State records as JSON that a person can read, and back.

A record becomes an object that names its class; numbers of more than 16 bits are
hexadecimal text, as registers are read. What comes back from a file is not
trusted: only record classes of kvmkit's own devices and engines are made, with
exactly the fields they have, each of the kind that its annotation says and like
what a template, the state of the device it is for, has there.

==============  ==================================================
Python          JSON
==============  ==================================================
int             number, or ``"0x..."`` above 65535
bytes           ``{"bytes": "hexadecimal"}``
str             ``{"text": "..."}``
tuple           array
dict            ``{"map": [[key, value], ...]}``
Record          ``{"record": "module:Class", field: value, ...}``
None, bool      ``null``, ``true``, ``false``
==============  ==================================================
"""

from __future__ import annotations

from sys import modules

from kvmkit.errors import BadSnapshot
from kvmkit.frozen import Record, fields
from kvmkit.snapshot.shapes import shape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["decode", "encode"]

_ROOMS = ("kvmkit.devices.", "kvmkit.virtio.", "kvmkit.engine.", "kvmkit.board.")
_PLAIN = 0xFFFF
_DEPTH = 16
_BITS = 256
"""Of the widest register: a local APIC's IRR as one number."""

_KEYS = (int, str, bytes)


def encode(value: Any) -> Any:
    """``value`` in terms of JSON. Raises TypeError for what no state may hold."""
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if isinstance(value, int):
        number = int(value)
        if number.bit_length() > _BITS:
            raise TypeError(f"a state holds a number of {number.bit_length()} bits")
        return number if -_PLAIN <= number <= _PLAIN else hex(number)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if kind is str:
        return {"text": value}
    if kind is tuple or kind is list:
        return [encode(item) for item in value]
    if kind is dict:
        if not all(isinstance(key, _KEYS) for key in value):
            raise TypeError("a state holds a dict whose keys are no numbers, text or bytes")
        return {"map": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Record):
        name = f"{kind.__module__}:{kind.__qualname__}"
        return {"record": name} | {key: encode(getattr(value, key)) for key in fields(value)}
    raise TypeError(f"a state holds a {kind.__name__}, which a snapshot cannot")


class _Misfit(Exception):
    """What is wrong, and in ``path`` where, put together on the way out."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint
        self.path: list[str] = []


def decode(value: Any, where: str, template: Any = None) -> Any:
    """What :func:`encode` made of a value like ``template``; ``where`` names it in errors.

    Raises BadSnapshot for anything else.
    """
    try:
        return _decode(value, template, 0)
    except _Misfit as misfit:
        place = where + "".join(reversed(misfit.path))
        raise BadSnapshot(f"{place}: {misfit}", misfit.hint) from None


def _decode(value: Any, template: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise _Misfit("nested too deep")
    made = _make(value, template, depth)
    if template is None or made is None:
        return made
    alike = type(made) is type(template) or (isinstance(made, int) and isinstance(template, int))
    if not alike:
        raise _Misfit(f"expected a {type(template).__name__}, found a {type(made).__name__}")
    if isinstance(made, bytes) and template and len(made) != len(template):
        raise _Misfit(f"expected {len(template)} bytes, found {len(made)}")
    return made


def _make(value: Any, template: Any, depth: int) -> Any:
    if value is None or isinstance(value, int):
        if value is not None and value.bit_length() > _BITS:
            _refuse()
        return value
    if isinstance(value, str):
        return _number(value)
    if isinstance(value, list):
        parts = template if type(template) is tuple and len(template) == len(value) else None
        made = []
        for index, item in enumerate(value):
            try:
                made.append(_decode(item, parts[index] if parts else None, depth + 1))
            except _Misfit as misfit:
                misfit.path.append(f"[{index}]")
                raise
        return tuple(made)
    if not isinstance(value, dict):
        _refuse()
    if "record" in value:
        return _record(value, template, depth)
    if len(value) != 1:
        _refuse()
    ((kind, content),) = value.items()
    if kind == "bytes" and isinstance(content, str):
        return _bytes(content)
    if kind == "text" and isinstance(content, str):
        return content
    if kind == "map" and isinstance(content, list):
        return _map(content, template, depth)
    _refuse()


def _number(text: str) -> int:
    """As :func:`encode` writes them, and no other spelling."""
    if len(text) <= _BITS // 4 + 3:
        try:
            number = int(text, 16)
        except ValueError:
            _refuse()
        if hex(number) == text and number.bit_length() <= _BITS:
            return number
    _refuse()


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        _refuse()


def _map(pairs: list[Any], template: Any, depth: int) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    like = template if isinstance(template, dict) else {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            _refuse()
        key = _decode(pair[0], None, depth + 1)
        if not isinstance(key, _KEYS) or key in made:
            _refuse()
        try:
            made[key] = _decode(pair[1], like.get(key), depth + 1)
        except _Misfit as misfit:
            misfit.path.append(f"[{key!r}]" if isinstance(key, int) else f"[{ascii(key)[:40]}]")
            raise
    return made


def _record(value: dict[str, Any], template: Any, depth: int) -> Record:
    cls = _record_class(value["record"])
    if isinstance(template, Record) and type(template) is not cls:
        raise _Misfit(
            f"expected a {type(template).__name__}, found a {cls.__name__}",
            "the snapshot is of another version of kvmkit, or of another device",
        )
    names = fields(cls)
    if value.keys() - {"record"} != set(names):
        odd = min((value.keys() - {"record"}) ^ set(names))
        raise _Misfit(
            f"{cls.__name__} does not have just these fields: {ascii(odd)[:40]}",
            "the snapshot is of another version of kvmkit",
        )
    like = template if type(template) is cls else None
    made = []
    for name in names:
        try:
            made.append(_field(cls, name, value[name], getattr(like, name, None), depth))
        except _Misfit as misfit:
            misfit.path.append(f".{name}")
            raise
    return cls(**dict(zip(names, made, strict=True)))


def _field(cls: type[Record], name: str, value: Any, like: Any, depth: int) -> Any:
    made = _decode(value, like, depth + 1)
    for base in cls.__mro__:
        annotation = vars(base).get("__annotations__", {}).get(name)
        if annotation is not None:
            if not shape(annotation)(made):
                raise _Misfit(f"expected {annotation}, found {_kind(made)}")
            break
    return made


def _kind(value: Any) -> str:
    if value is None or isinstance(value, int):
        return str(value)
    return f"a {type(value).__name__}"


def _record_class(name: Any) -> type[Record]:
    """A record class by ``module:Class``; only of modules that are in use already."""
    module, _, qualname = name.partition(":") if isinstance(name, str) else ("", "", "")
    if module.startswith(_ROOMS) and qualname.isidentifier():
        found = getattr(modules.get(module), qualname, None)
        if isinstance(found, type) and issubclass(found, Record) and found is not Record:
            return found
    raise _Misfit(f"there is no state record {ascii(name)[:80]}")


def _refuse() -> NoReturn:
    raise _Misfit("not a value that a snapshot holds")
