"""``kvmkit stat``: what a VM's CPUs are busy with."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option
from kvmkit.cli.values import seconds
from kvmkit.cli.vms import NAME, bytes_text, one, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit stat",
    "Show a VM's counters: exits by reason, interrupts, accesses to devices.",
    (
        NAME,
        Option("--json", "", "as JSON, as the VM tells it"),
        Option("--zero", "", "also the counters that are 0"),
        Option("-w --watch", "", "show it again and again, with rates, until Ctrl-C"),
        Option(
            "--interval", "SECONDS", "how often --watch looks (default: 1)",
            convert=seconds, default=1.0,
        ),
    ),
    words="[NAME]",
    most_words=None,
    complete="vm",
    notes="""
The counters are the engine's, since the VM's start: KVM's statistics (Linux
virt/kvm/api.rst, 4.133) or the software CPU's. --json --watch gives one line
per look.
""",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Show the counters; 0."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.control.client import VmClient

    vm = one(options)
    before: dict[str, Any] = {}
    with VmClient(vm) as client:

        def view() -> str:
            nonlocal before
            now = client.execute("kvmkit-stat")
            if options["json"]:
                import json

                return json.dumps(now, indent=None if options["watch"] else 2)
            text = _text(now, before, zero=options["zero"])
            before = now
            return text

        if not options["watch"]:
            print(view())
            return 0
        from kvmkit.cli.watch import repeat

        return repeat(view, options["interval"])


def _text(now: dict[str, Any], before: dict[str, Any], *, zero: bool) -> str:
    """A line per counter: the sum, the change per second, each CPU's share."""
    span = now["time"] - before["time"] if before else 0.0
    cpus = [entry["counts"] for entry in now["cpus"]]
    several = len(cpus) > 1 and any(cpus)
    titles = ["COUNTER", "TOTAL", *(["PER SECOND"] if span else [])]
    if several:
        titles += [f"CPU {index}" for index in range(len(cpus))]
    rows = []
    for name, total in now["machine"].items():
        if not total and not zero:
            continue
        row = [name, str(total)]
        if span:
            row.append(f"{(total - before['machine'].get(name, 0)) / span:.0f}")
        if several:
            row += [str(counts.get(name, 0)) for counts in cpus]
        rows.append(tuple(row))
    for line in now["serial"]:
        row = [f"serial {line['name']} bytes", str(line["sent"])]
        if span:
            old = {entry["name"]: entry["sent"] for entry in before["serial"]}
            row.append(f"{(line['sent'] - old.get(line['name'], 0)) / span:.0f}")
        rows.append(tuple(row + [""] * (len(titles) - len(row))))
    numbers = "".join(str(index) for index in range(1, min(len(titles), 10)))
    lines = table(tuple(titles), rows, numbers)
    return "\n".join([*lines, f"memory in use: {bytes_text(now['memory-used'])}"])
