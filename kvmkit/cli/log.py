"""``kvmkit log``: what a VM has written to its console so far."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option
from kvmkit.cli.vms import NAME, one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmkit.control.client import VmClient

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit log",
    "Print what a VM has written to its console, at most the last 256 KiB.",
    (
        NAME,
        Option("-f --follow", "", "go on printing until the VM ends"),
        Option("--kernel", "", "the kernel's own line instead\n(kvmkit run --kernel-log)"),
    ),
    words="[NAME]",
    most_words=None,
    complete="vm",
)


def main(arguments: Sequence[str]) -> int:
    """Print the log; 0."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.control.client import VmClient
    from kvmkit.errors import UsageError

    if options["follow"] and options["kernel"]:
        raise UsageError("--follow is for the console, not for the kernel's line")
    with VmClient(one(options)) as client:
        if options["follow"]:
            return _follow(client)
        from base64 import b64decode

        source = "kernel" if options["kernel"] else "console"
        _write(b64decode(client.execute("kvmkit-log", source=source)["data"]))
    return 0


def _follow(client: VmClient) -> int:
    client.execute("kvmkit-console", input=False)
    data = client.take_rest()
    client.socket.settimeout(None)
    try:
        while True:
            _write(data)
            data = client.socket.recv(1 << 16)
            if not data:
                return 0
    except ConnectionError:
        return 0


def _write(data: bytes) -> None:
    """To standard output as it came."""
    import os

    while data:
        data = data[os.write(1, data) :]
