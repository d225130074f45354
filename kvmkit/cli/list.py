"""``kvmkit list``: the VMs that run on this host."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option
from kvmkit.cli.values import seconds
from kvmkit.cli.vms import bytes_text, seconds_text, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmkit.control.listing import RunningVm

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit list",
    "List the running VMs: yours, or everybody's for root.",
    (
        Option("--json", "", "as JSON, one array"),
        Option("--names", "", "only the names, one per line"),
        Option("-w --watch", "", "show it again and again, until Ctrl-C"),
        Option(
            "--interval",
            "SECONDS",
            "how often --watch looks (default: 2)",
            convert=seconds,
            default=2.0,
        ),
    ),
    notes="""
MEMORY is what of the guest's memory takes up memory of the host, and how much
the guest could have. CPU is the time its virtual CPUs have used.
""",
)

_TITLES = ("NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "CPU", "UPTIME", "PID", "KERNEL")
_NUMBERS = "34567"


def main(arguments: Sequence[str]) -> int:
    """Print the list; 0, also for an empty one."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    if options["names"]:
        from kvmkit.control.listing import list_names

        for name in list_names():
            print(name)
        return 0
    from kvmkit.control.listing import list_vms

    show = _json if options["json"] else _text
    if not options["watch"]:
        print(show(list_vms()))
        return 0
    from kvmkit.cli.watch import repeat

    return repeat(lambda: show(list_vms()), options["interval"])


def _text(vms: list[RunningVm]) -> str:
    rows = [
        (
            vm.address,
            vm.state,
            vm.engine,
            str(vm.cpus),
            f"{bytes_text(vm.memory_used)}/{bytes_text(vm.memory)}",
            seconds_text(vm.cpu_time),
            seconds_text(vm.uptime),
            str(vm.pid),
            vm.kernel.rpartition("/")[2],
        )
        for vm in vms
    ]
    return "\n".join(table(_TITLES, rows, _NUMBERS))


def _json(vms: list[RunningVm]) -> str:
    import json

    from kvmkit.frozen import asdict

    return json.dumps([asdict(vm) | {"socket": vm.socket} for vm in vms], indent=2)
