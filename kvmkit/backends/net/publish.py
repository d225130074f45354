"""Ports of the host that lead into the guest: ``[ADDRESS:]PORT[:GUEST_PORT][/udp]``."""

from __future__ import annotations

from kvmkit.errors import UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["Published", "parse_published"]

LOOPBACK: Final = "127.0.0.1"
PORT_MAX: Final = 65535
_FORM = "[ADDRESS:]PORT[:GUEST_PORT][/udp]"


class Published(Record):
    """``port`` of the host's ``address`` leads to ``guest_port``; ``udp`` or else TCP."""

    address: str
    port: int
    guest_port: int
    udp: bool = False

    def __str__(self) -> str:
        end = "/udp" if self.udp else ""
        return f"{self.address}:{self.port}:{self.guest_port}{end}"


def parse_published(text: str) -> Published:
    """The port forward of an option. Without an address it is the loopback's: nobody but this
    host reaches it. Raises UsageError for what is none."""
    body, slash, protocol = text.partition("/")
    words = body.split(":")
    address = LOOPBACK
    if len(words) > 1 and not words[0].isdecimal():
        address = words.pop(0)
    if not 1 <= len(words) <= 2 or (slash and protocol not in ("tcp", "udp")):
        raise UsageError(f"a published port is {_FORM}, not {text!r}", "--publish 8080:80")
    port, guest_port = _port(words[0], text), _port(words[-1], text)
    return Published(_address(address, text), port, guest_port, protocol == "udp")


def _port(word: str, text: str) -> int:
    number = int(word) if word.isascii() and word.isdecimal() and len(word) < 6 else 0
    if not 1 <= number <= PORT_MAX:
        raise UsageError(f"a port is a number up to {PORT_MAX}, not {word!r}, in {text!r}")
    return number


def _address(word: str, text: str) -> str:
    parts = word.split(".")
    if len(parts) != 4 or any(
        not (part.isascii() and part.isdecimal() and len(part) < 4 and int(part) < 256)
        for part in parts
    ):
        raise UsageError(
            f"an address of this host is such as 127.0.0.1 or 0.0.0.0, not {word!r}, in {text!r}"
        )
    return word
