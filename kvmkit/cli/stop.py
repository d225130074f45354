"""``kvmkit stop``: ask the guest to shut down, and see that it does."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option
from kvmkit.cli.values import seconds
from kvmkit.cli.vms import ALL, NAME, chosen, each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmkit.control.listing import RunningVm

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit stop",
    "Press the power button and wait until the guest has shut down.",
    (
        NAME,
        ALL,
        Option("-f --force", "", "end it if it does not listen, or takes too long"),
        Option(
            "-t --timeout",
            "SECONDS",
            "how long it may take (default: 60; with --force: 10)",
            convert=seconds,
        ),
    ),
    words="[NAME...]",
    most_words=None,
    complete="vm",
    notes="""
A paused VM is resumed, or it could not hear the button. A guest listens when
its ACPI button driver is loaded and somebody acts on it (systemd-logind,
acpid).
""",
)


def main(arguments: Sequence[str]) -> int:
    """Stop the VMs named, all at the same time; the exit code."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.control.steer import stop_all

    force = options["force"]
    timeout = options["timeout"] or (10.0 if force else 60.0)
    outcomes = stop_all(chosen(options), force=force, timeout=timeout)

    def report(vm: RunningVm) -> None:
        error = outcomes[vm]
        if error is not None:
            raise error

    return each(list(outcomes), report)
