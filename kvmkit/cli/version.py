"""``kvmkit version``: what is installed here."""

from __future__ import annotations

from kvmkit.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]

COMMAND = Command("kvmkit version", "Print kvmkit's version.")


def main(arguments: Sequence[str]) -> int:
    """Print the version; 0."""
    if COMMAND.parse(arguments) is not None:
        from kvmkit import __version__

        print(f"kvmkit {__version__}")
    return 0
