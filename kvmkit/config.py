"""A VM's configuration as a value: written to and read from TOML 1.0 and JSON (RFC 8259).

The fields are named as the arguments of :class:`kvmkit.VM`. A file gives some
or all of them::

    kernel = "bzImage"
    memory = "1G"
    cpus = 2

Paths in a file are relative to the file's directory. A limit of 0 seconds means
none, as neither format can say so otherwise.
"""

from __future__ import annotations

import os

from kvmkit.errors import FileTrouble, UsageError
from kvmkit.frozen import Record, asdict, fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

__all__ = ["VmConfig"]

MIB = 1 << 20
_ENGINES = ("auto", "kvm", "soft")
_PATHS = ("kernel", "initrd", "kernel_log", "disks")
_ARRAYS = ("initrd", "disks", "nets")
_MOST = 1 << 20  # bytes of a file


class VmConfig(Record, kw_only=True):
    """What a VM is to be; sizes in bytes, times in seconds, 0 for no limit.

    Values are checked by :meth:`check`, which every way of reading calls.
    """

    kernel: str = ""
    initrd: tuple[str, ...] = ()
    cmdline: str = ""
    cpus: int = 1
    memory: int = 512 * MIB
    engine: str = "auto"
    name: str = ""
    kernel_log: str = ""
    timeout: float = 0
    hang_timeout: float = 60
    reboot: bool = True
    huge_pages: str = ""
    bare_cmdline: bool = False
    disks: tuple[str, ...] = ()
    nets: tuple[str, ...] = ()

    def check(self) -> Self:
        """Itself; raises UsageError naming the field whose value cannot be meant."""
        from kvmkit.board.layout import MAX_CPUS
        from kvmkit.board.memory import check_size
        from kvmkit.control.names import check_name

        if not 1 <= self.cpus <= MAX_CPUS:
            raise _wrong("cpus", f"1 to {MAX_CPUS}", self.cpus)
        if self.engine not in _ENGINES:
            raise _wrong("engine", f"one of {', '.join(_ENGINES)}", self.engine)
        if self.huge_pages not in ("", "thp", "hugetlb"):
            raise _wrong("huge_pages", "thp or hugetlb", self.huge_pages)
        for name in ("timeout", "hang_timeout"):
            if not 0 <= getattr(self, name) < 1e9:
                raise _wrong(name, "seconds, 0 for no limit", getattr(self, name))
        for name in fields(self):
            value = getattr(self, name)
            if "\0" in (value if isinstance(value, str) else "".join(_texts(value))):
                raise _wrong(name, "text without zero bytes", value)
        if self.disks:
            from kvmkit.backends.disk_options import parse_disk

            for disk in self.disks:
                parse_disk(disk)
        if self.nets:
            from kvmkit.backends.net.options import parse_net

            for net in self.nets:
                parse_net(net)
        if "\n" in self.cmdline:
            raise _wrong("cmdline", "one line", self.cmdline)
        try:
            check_size(self.memory)
        except UsageError as error:
            raise UsageError(f"memory: {error}", error.hint) from None
        if self.name:
            try:
                check_name(self.name)
            except UsageError as error:
                raise UsageError(f"name: {error}") from None
        return self

    def arguments(self) -> dict[str, Any]:
        """The arguments of :class:`kvmkit.VM` for it."""
        found = asdict(self)
        for name in ("name", "kernel_log", "huge_pages", "timeout", "hang_timeout"):
            found[name] = found[name] or None
        return found

    # Writing

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for any format; sizes as text where that is exact."""
        found = asdict(self)
        for name in _ARRAYS:
            found[name] = list(found[name])
        if self.memory % MIB == 0:
            found["memory"] = f"{self.memory // MIB}M"
        return found

    def to_json(self) -> str:
        """As a JSON object."""
        import json

        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_toml(self) -> str:
        """As a TOML document, every field on a line of its own."""
        import json  # a JSON text or number is one of TOML as well, once DEL is escaped

        lines = []
        for name, value in self.to_dict().items():
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{name} = {text}\n")
        return "".join(lines)

    # Reading

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, base: str = "") -> VmConfig:
        """From plain values by field; ``base`` is what paths are relative to.

        Raises UsageError naming the field that is unknown or has a value of the
        wrong type or size.
        """
        known = fields(cls)
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in known:
                from difflib import get_close_matches

                near = get_close_matches(name, known, 1, 0.6)
                hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(known)}"
                raise UsageError(f"{key}: unknown field", hint)
            value = _CONVERT[name](name, value)
            if base and name in _PATHS:
                value = _join(base, value)
            found[name] = value
        return cls(**found).check()

    @classmethod
    def from_json(cls, text: str, *, base: str = "") -> VmConfig:
        """From a JSON object; raises UsageError, with the line for what is no JSON."""
        import json

        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise UsageError(f"expected a JSON object, found {type(values).__name__}")
        return cls.from_dict(values, base=base)

    @classmethod
    def from_toml(cls, text: str, *, base: str = "") -> VmConfig:
        """From a TOML document; raises UsageError, with the line for what is no TOML."""
        import tomllib

        try:
            values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not TOML: {error}") from None
        return cls.from_dict(values, base=base)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VmConfig:
        """From a file, JSON if it is named ``*.json``. Raises FileTrouble or UsageError."""
        path = os.fspath(path)
        try:
            with open(path, "rb") as file:
                data = file.read(_MOST + 1)
        except OSError as error:
            raise FileTrouble(f"{path}: the configuration: {error.strerror}") from None
        if len(data) > _MOST:
            raise UsageError(f"{path}: no configuration is larger than {_MOST} bytes")
        base = os.path.dirname(os.path.abspath(path))
        try:
            text = data.decode()
            read = cls.from_json if path.endswith(".json") else cls.from_toml
            return read(text, base=base)
        except UnicodeDecodeError:
            raise UsageError(f"{path}: expected UTF-8 text") from None
        except UsageError as error:
            raise UsageError(f"{path}: {error}", error.hint) from None


def _wrong(name: str, expected: str, found: object) -> UsageError:
    return UsageError(f"{name}: expected {expected}, found {found!r}")


def _texts(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    return value


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "a whole number", value)
    return value


def _seconds(name: str, value: Any) -> float:
    if value is None:  # JSON's null
        return 0
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, "seconds, 0 for no limit", value)
    return value


def _size(name: str, value: Any) -> int:
    from kvmkit.vm import memory_size

    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong(name, "a size such as '512M', or bytes", value)
    try:
        return memory_size(value)
    except UsageError:
        raise _wrong(name, "a size such as '512M', or bytes", value) from None


def _paths(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise _wrong(name, "a path or an array of paths", value)
    return tuple(value)


def _join(base: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple([_join(base, each) for each in value])
    return os.path.join(base, value) if value else value


_CONVERT = {
    "kernel": _text,
    "initrd": _paths,
    "cmdline": _text,
    "cpus": _count,
    "memory": _size,
    "engine": _text,
    "name": _text,
    "kernel_log": _text,
    "timeout": _seconds,
    "hang_timeout": _seconds,
    "reboot": _bool,
    "huge_pages": _text,
    "bare_cmdline": _bool,
    "disks": _paths,
    "nets": _paths,
}
