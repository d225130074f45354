"""Networks and published ports as a user names them."""

from __future__ import annotations

import pytest

from kvmkit.backends.net.options import NetOptions, net_words, parse_net
from kvmkit.backends.net.publish import Published, parse_published
from kvmkit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", Published("127.0.0.1", 8080, 80)),
        ("8080", Published("127.0.0.1", 8080, 8080)),
        ("53:53/udp", Published("127.0.0.1", 53, 53, udp=True)),
        ("0.0.0.0:22:2222/tcp", Published("0.0.0.0", 22, 2222)),
    ],
)
def test_published_ports(text, expected):
    """And their text gives the same again."""
    assert parse_published(text) == expected == parse_published(str(expected))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "80:",
        "0:80",
        "65536:1",
        "1:2:3",
        "a:b:c:d",
        "80/sctp",
        "80:80/",
        "١:80",
        "localhost:1:2",
    ],
)
def test_published_ports_that_are_none(text):
    """One line that says what was expected."""
    with pytest.raises(UsageError):
        parse_published(text)


def test_networks():
    """Every word, and back to text."""
    net = parse_net("user,mac=52:54:00:00:00:01,mtu=1500,publish=80:80,publish=5:6/udp")
    assert net.kind == "user" and net.mtu == 1500 and len(net.publish) == 2
    assert parse_net(str(net)) == net
    tap = parse_net("tap=tap7,bridge=br0")
    assert (tap.kind, tap.interface, tap.bridge) == ("tap", "tap7", "br0")
    assert parse_net(str(tap)) == tap
    assert parse_net("mode=user") == NetOptions()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slirp",
        "user,mtu=1",
        "user,mac=no",
        "user,bridge=br0",
        "user=x",
        "tap,publish=1:1",
        "user,x",
    ],
)
def test_networks_that_are_none(text):
    """Refused before anything is opened."""
    with pytest.raises(UsageError):
        parse_net(text)


def test_publishing_makes_a_user_network():
    """Or joins the first one there is; none means none."""
    assert net_words([], ["80:80"]) == ("user,publish=127.0.0.1:80:80",)
    assert net_words(["tap", "user"], ["1:2"]) == ("tap", "user,publish=127.0.0.1:1:2")
    assert net_words(["none"], []) == ()
    with pytest.raises(UsageError):
        net_words(["none"], ["80:80"])


def test_what_the_guest_is_told():
    """Addresses that are known, or a question."""
    assert NetOptions().guest_word(0) == "eth0,10.0.2.15/24,10.0.2.2,10.0.2.3"
    assert NetOptions(kind="tap").guest_word(1) == "eth1,dhcp"
