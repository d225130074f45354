"""State records as JSON that a person can read, and back.

A record becomes an object that names its class; numbers of more than 16 bits are
hexadecimal text, as registers are read. What comes back from a file is not
trusted: only record classes of kvmkit's own devices and engines are made, with
exactly the fields they have, and each value must be of the kind that a template,
the state of the device it is for, has there.

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["decode", "encode"]

_ROOMS = ("kvmkit.devices.", "kvmkit.virtio.", "kvmkit.engine.", "kvmkit.board.")
_PLAIN = 0xFFFF
_DEPTH = 16
_NUMBERS = (int, bool)


def encode(value: Any) -> Any:
    """``value`` in terms of JSON. Raises TypeError for what no state may hold."""
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if isinstance(value, int):
        return int(value) if -_PLAIN <= value <= _PLAIN else hex(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if kind is str:
        return {"text": value}
    if kind is tuple or kind is list:
        return [encode(item) for item in value]
    if kind is dict:
        return {"map": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Record):
        name = f"{kind.__module__}:{kind.__qualname__}"
        return {"record": name} | {key: encode(getattr(value, key)) for key in fields(value)}
    raise TypeError(f"a state holds a {kind.__name__}, which a snapshot cannot")


def decode(value: Any, where: str, template: Any = None, depth: int = 0) -> Any:
    """What :func:`encode` made of a value like ``template``; ``where`` names it in errors.

    Raises BadSnapshot for anything else.
    """
    if depth > _DEPTH:
        raise BadSnapshot(f"{where}: nested too deep")
    made = _decode(value, where, template, depth)
    if template is not None and made is not None:
        alike = type(made) is type(template) or (
            isinstance(made, _NUMBERS) and isinstance(template, _NUMBERS)
        )
        if not alike:
            raise BadSnapshot(
                f"{where}: expected a {type(template).__name__}, found a {type(made).__name__}"
            )
        if isinstance(made, bytes) and template and len(made) != len(template):
            raise BadSnapshot(f"{where}: expected {len(template)} bytes, found {len(made)}")
    return made


def _decode(value: Any, where: str, template: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        try:
            return int(value, 16) if len(value) < 4096 else _refuse(where)
        except ValueError:
            _refuse(where)
    if isinstance(value, list):
        parts = template if type(template) is tuple and len(template) == len(value) else None
        return tuple(
            decode(item, f"{where}[{i}]", parts[i] if parts else None, depth + 1)
            for i, item in enumerate(value)
        )
    if not isinstance(value, dict) or not value:
        _refuse(where)
    if value.keys() == {"bytes"}:
        try:
            return bytes.fromhex(value["bytes"])
        except (TypeError, ValueError):
            _refuse(where)
    if value.keys() == {"text"} and isinstance(value["text"], str):
        return value["text"]
    if value.keys() == {"map"} and isinstance(value["map"], list):
        return _decode_map(value["map"], where, template, depth)
    if "record" in value:
        return _decode_record(value, where, template, depth)
    _refuse(where)


def _decode_map(pairs: list[Any], where: str, template: Any, depth: int) -> dict[Any, Any]:
    made = {}
    like = template if isinstance(template, dict) else {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            _refuse(where)
        key = decode(pair[0], f"{where}: a key", None, depth + 1)
        if not isinstance(key, int | str | bytes):
            _refuse(where)
        made[key] = decode(pair[1], f"{where}[{key}]", like.get(key), depth + 1)
    return made


def _decode_record(value: dict[str, Any], where: str, template: Any, depth: int) -> Record:
    cls = _record_class(value["record"], where)
    if isinstance(template, Record) and type(template) is not cls:
        raise BadSnapshot(
            f"{where}: expected a {type(template).__name__}, found a {cls.__name__}",
            "the snapshot is of another version of kvmkit, or of another device",
        )
    names = fields(cls)
    given = [name for name in value if name != "record"]
    if set(given) != set(names):
        odd = sorted(set(given) ^ set(names))
        raise BadSnapshot(f"{where}: {cls.__name__} does not have just these fields: {odd[0]}")
    like = template if type(template) is cls else None
    return cls(
        *(
            decode(value[name], f"{where}.{name}", getattr(like, name, None), depth + 1)
            for name in names
        )
    )


def _record_class(name: Any, where: str) -> type[Record]:
    """A record class by ``module:Class``; only of modules that are in use already."""
    module, _, qualname = name.partition(":") if isinstance(name, str) else ("", "", "")
    if module.startswith(_ROOMS):
        found = getattr(modules.get(module), qualname, None)
        if isinstance(found, type) and issubclass(found, Record):
            return found
    raise BadSnapshot(f"{where}: there is no state record {name!r}")


def _refuse(where: str) -> Any:
    raise BadSnapshot(f"{where}: not a value that a snapshot holds")
