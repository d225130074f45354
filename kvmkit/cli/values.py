"""Values of options: sizes, counts and durations, each with what was expected."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["count", "device", "seconds", "size", "variable"]

_UNITS = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = "a size such as 512M or 4G (without a unit: MiB)"
_SECONDS = "a positive number of seconds"


def size(text: str) -> int:
    """Bytes of ``512`` (MiB, as in lkvm), ``64M``, ``1.5G``, ``4GiB``; raises ValueError."""
    number = text.strip().upper()
    for suffix in ("IB", "B"):
        if number.endswith(suffix) and number[: -len(suffix)][-1:] in _UNITS:
            number = number[: -len(suffix)]
            break
    unit = "M"
    if number[-1:] in _UNITS:
        number, unit = number[:-1], number[-1]
    whole, _, fraction = number.partition(".")
    if not (_digits(whole) and (not fraction or _digits(fraction))) or len(number) > 20:
        raise ValueError(_SIZE)
    shift = _UNITS[unit]
    scale: int = 10 ** len(fraction)
    value = (int(whole) << shift) + (int(fraction or 0) << shift) // scale
    if value <= 0 or value >= 1 << 52:
        raise ValueError(_SIZE)
    return value


def count(least: int, most: int) -> Callable[[str], int]:
    """A converter for whole numbers from ``least`` to ``most``."""

    def convert(text: str) -> int:
        if not _digits(text) or len(text) > 9 or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return convert


def device(text: str) -> tuple[str, dict[str, str]]:
    """``module:Class,argument=value,...`` as name and arguments; raises ValueError."""
    name, *words = text.split(",")
    pairs = [word.partition("=") for word in words]
    module, colon, kind = name.partition(":")
    if not (module and colon and kind) or not all(key and sep for key, sep, _ in pairs):
        raise ValueError("module:Class, then ,argument=value as often as needed")
    return name, {key: value for key, _, value in pairs}


def variable(text: str) -> str:
    """``NAME=TEXT`` as it is; raises ValueError."""
    if not text.partition("=")[0] or "=" not in text:
        raise ValueError("NAME=TEXT")
    return text


def seconds(text: str) -> float:
    """A duration in seconds; raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(_SECONDS) from None
    if not 0 < value < 1e9:
        raise ValueError(_SECONDS)
    return value


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
