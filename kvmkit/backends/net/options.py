"""A network as a user names it.

user,publish=8080:80,publish=5353:53/udp
tap=tap0,mac=52:54:00:12:34:56
tap,bridge=br0
"""

from __future__ import annotations

from kvmkit.backends.net.publish import Published, parse_published
from kvmkit.errors import UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.virtio.net import Net
    from kvmkit.virtio.net_backend import NetBackend

__all__ = ["NetOptions", "net_words", "parse_net"]

_MTU_MIN = 68
_MTU_MAX = 65520
_WORDS = "user, tap, tap=IFNAME; mac=ADDRESS, mtu=NUMBER, bridge=NAME, publish=PORT:PORT[/udp]"


class NetOptions(Record, kw_only=True):
    """A network card of a VM. ``kind`` is ``"user"`` or ``"tap"``; ``interface`` and ``bridge``
    are a tap's; ``mac`` is random if it is empty, ``mtu`` the network's if it is 0."""

    kind: str = "user"
    interface: str = ""
    bridge: str = ""
    mac: str = ""
    mtu: int = 0
    publish: tuple[Published, ...] = ()

    def check(self) -> NetOptions:
        """Itself. Raises UsageError for what cannot be meant."""
        from kvmkit.virtio.net import mac_address

        if self.kind not in ("user", "tap"):
            raise UsageError(f"a network is user or tap, not {self.kind!r}", _WORDS)
        if self.kind == "user" and (self.interface or self.bridge):
            raise UsageError("a user network has no interface and no bridge", "--net tap=IFNAME")
        if self.kind != "user" and self.publish:
            raise UsageError("only a user network publishes ports", "--net user")
        if self.mtu and not _MTU_MIN <= self.mtu <= _MTU_MAX:
            raise UsageError(f"an MTU is {_MTU_MIN} to {_MTU_MAX} bytes, not {self.mtu}")
        try:
            mac_address(self.mac or None)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return self

    def __str__(self) -> str:
        words = [f"tap={self.interface}" if self.interface else self.kind]
        words += [
            f"{name}={value}" for name in ("bridge", "mac", "mtu") if (value := getattr(self, name))
        ]
        words += [f"publish={one}" for one in self.publish]
        return ",".join(words)

    def open(self) -> Net:
        """The device. Raises NetworkTrouble."""
        from kvmkit.virtio.net import Net

        backend: NetBackend
        if self.kind == "user":
            from kvmkit.backends.net.passt import MTU, Passt

            backend = Passt(publish=self.publish, mtu=self.mtu or MTU)
        else:
            from kvmkit.backends.net.tap import Tap

            backend = Tap(self.interface, bridge=self.bridge)
        return Net(backend, mac=self.mac or None, mtu=self.mtu or None)

    def guest_word(self, index: int) -> str:
        """What our init is told to do with card number ``index``: ``eth0,ADDRESS/BITS,ROUTER,DNS``,
        or to ask for that (DHCP)."""
        if self.kind != "user":
            return f"eth{index},dhcp"
        from kvmkit.backends.net.passt import DNS, GUEST, PREFIX, ROUTER

        return f"eth{index},{GUEST}/{PREFIX},{ROUTER},{DNS}"


def parse_net(text: str) -> NetOptions:
    """From a command line's word; ``mode=user`` is the same as ``user``. Raises UsageError."""
    first, *words = text.split(",")
    kind, _, interface = first.removeprefix("mode=").partition("=")
    found: dict[str, Any] = {}
    publish = []
    for word in words:
        name, sign, value = word.partition("=")
        if name == "publish" and sign:
            publish.append(parse_published(value))
        elif name in ("mac", "bridge") and value:
            found[name] = value
        elif name == "mtu" and value.isascii() and value.isdecimal() and len(value) < 6:
            found[name] = int(value)
        else:
            raise UsageError(f"{text}: unknown word {word!r} for a network", _WORDS)
    return NetOptions(kind=kind, interface=interface, publish=tuple(publish), **found).check()


def net_words(networks: list[str], publish: list[str]) -> tuple[str, ...]:
    """The networks of ``--net`` and ``--publish``: none is no network, and what is published
    is so by the first user network, which is there for that if need be. Raises UsageError."""
    if "none" in networks:
        if len(networks) > 1 or publish:
            raise UsageError("--net none goes with no other network and publishes nothing")
        return ()
    found = [str(parse_net(text)) for text in networks]
    if publish:
        users = [index for index, word in enumerate(found) if word.startswith("user")]
        if not users:
            users = [len(found)]
            found.append("user")
        found[users[0]] += "".join(f",publish={parse_published(text)}" for text in publish)
    return tuple(found)
