"""What a guest is told: records that its first process can take apart."""

from __future__ import annotations

import pytest

from kvmkit.errors import UsageError
from kvmkit.guest.instructions import (
    Mount,
    agent_instructions,
    instructions,
    instructions_archive,
    order_records,
)
from tests.guest.test_command import member


def test_an_order_has_a_record_for_each_thing() -> None:
    """Arguments in their order; anything but NUL in them."""
    records = order_records(
        ["echo", "a\nb", "=", ""],
        {"NAME": "x=y", "BASH_FUNC_f%%": "() { :; }"},
        "/tmp",
        mode="tty",
        user="1:2",
        groups=[3, 4],
        size=(24, 80),
    )
    assert instructions(records).decode().split("\0") == [
        *("kvmkit-agent=1", "arg=echo", "arg=a\nb", "arg==", "arg="),
        *("env=NAME=x=y", "env=BASH_FUNC_f%%=() { :; }", "cwd=/tmp", "user=1:2", "groups=3,4"),
        *("rows=24", "columns=80", "mode=tty", ""),
    ]


def test_names_that_are_not_utf8_pass() -> None:
    """As file names of the host may be."""
    name = b"\xff\xfe".decode(errors="surrogateescape")
    assert b"arg=\xff\xfe\0" in instructions(order_records([name]))


def test_mounts_and_root() -> None:
    """Each mount's four words together, then the root."""
    told = agent_instructions(
        hostname="h",
        vsock=7,
        mounts=[Mount("/m", "virtiofs", "tag", "ro")],
        root="/m",
    )
    texts = told.decode().split("\0")
    assert texts[:4] == ["kvmkit-agent=1", "mode=agent", "hostname=h", "root=/m"]
    assert texts[4:9] == ["vsock=7", "mount=/m", "type=virtiofs", "source=tag", "options=ro"]
    assert member(instructions_archive(told), "kvmkit/instructions") == told


@pytest.mark.parametrize(
    ("argv", "more"),
    [
        ([], {}),
        (["a\0"], {}),
        (["a"], {"cwd": "\0"}),
        (["a"], {"user": "\0"}),
        (["a"], {"env": {"": "x"}}),
        (["a"], {"env": {"a\0": "x"}}),
        (["a"], {"mode": "agent"}),
    ],
)
def test_what_cannot_be_told_is_refused(argv: list[str], more: dict[str, object]) -> None:
    """Before a machine is started."""
    with pytest.raises(UsageError):
        order_records(argv, **more)  # type: ignore[arg-type]


def test_more_than_a_guest_takes_is_refused() -> None:
    """The agent's own limit, which is above the kernel's."""
    with pytest.raises(UsageError, match="at most"):
        instructions(order_records(["x" * (4 << 20)]))
