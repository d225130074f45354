"""``kvmkit kill``: end VMs at once, as pulling the plug does."""

from __future__ import annotations

from kvmkit.cli.options import Command
from kvmkit.cli.vms import ALL, NAME, chosen, each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit kill",
    "End VMs at once, without asking the guest; also those that do not answer.",
    (NAME, ALL),
    words="[NAME...]",
    most_words=None,
    complete="vm",
)


def main(arguments: Sequence[str]) -> int:
    """End the VMs named; the exit code."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.control.steer import kill

    return each(chosen(options), kill)
