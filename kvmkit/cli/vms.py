"""What the commands on running VMs share: which VMs are meant, and doing the same to each."""

from __future__ import annotations

from kvmkit.cli.options import Option
from kvmkit.errors import KvmkitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvmkit.cli.options import Parsed
    from kvmkit.control.listing import RunningVm

__all__ = ["ALL", "NAME", "bytes_text", "chosen", "each", "one", "seconds_text", "table"]

NAME = Option("-n --name", "NAME", "the VM (as a plain word, too)", repeat=True, complete="vm")
ALL = Option("-a --all", "", "every VM of yours")

_UNITS = ("B", "K", "M", "G", "T")


def chosen(options: Parsed) -> list[RunningVm]:
    """The VMs named, or all. Raises UsageError when none is named, NoSuchVm for one that is not."""
    from kvmkit.control.listing import find_vms, list_names

    names = [*options.words, *options["name"]]
    if options["all"] and names:
        raise UsageError(f"either --all or names, not both: {' '.join(names)}")
    if not names and not options["all"]:
        known = list_names()
        raise UsageError(
            "which VM? expected a name or --all",
            f"running: {', '.join(known[:10])}" if known else "no VM is running",
        )
    return find_vms(names, all=options["all"])


def one(options: Parsed) -> RunningVm:
    """The VM named, or the only one there is. Raises UsageError or NoSuchVm."""
    from kvmkit.control.listing import NoSuchVm, find_vm, list_names

    names = [*options.words, *options["name"]]
    if len(names) > 1:
        raise UsageError(f"expected one VM, found {len(names)}: {' '.join(names)}")
    if not names:
        names = list_names()
        if not names:
            raise NoSuchVm("no VM is running", "kvmkit run --detach starts one")
        if len(names) > 1:
            raise UsageError("which VM? expected a name", f"running: {', '.join(names[:10])}")
    return find_vm(names[0])


def each(vms: list[RunningVm], action: Callable[[RunningVm], None]) -> int:
    """Do ``action`` to every VM, also after one failed; the first failure's exit code, or 0."""
    code = 0
    for vm in vms:
        try:
            action(vm)
        except KvmkitError as error:
            import sys

            print(f"kvmkit: {error}", file=sys.stderr)
            if error.hint:
                print(f"  hint: {error.hint}", file=sys.stderr)
            code = code or error.exit_code
    return code


def bytes_text(size: float) -> str:
    """``512M``, ``1.5G``: three digits at most."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    text = f"{size:.1f}" if unit and size < 9.95 else f"{size:.0f}"
    return f"{text.removesuffix('.0')}{_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """``4.2s``, ``3m07s``, ``5h12m``, ``9d04h``."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h"


def table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: str = "") -> list[str]:
    """Lines with columns as wide as needed; those whose index is in ``right`` end flush."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, *rows):
        cells = [
            cell.rjust(width) if str(index) in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
