"""``kvmkit reset``: Press the reset button."""

from __future__ import annotations

from kvmkit.cli.options import Command
from kvmkit.cli.vms import ALL, NAME, chosen, each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit reset",
    "Press the reset button",
    (NAME, ALL),
    words="[NAME...]",
    most_words=None,
    complete="vm",
)


def main(arguments: Sequence[str]) -> int:
    """the guest boots again.:Reset the VMs named; the exit code."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.control.steer import tell

    return each(chosen(options), lambda vm: tell(vm, "system_reset"))
