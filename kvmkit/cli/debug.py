"""``kvmkit debug``: where a VM's CPUs are, and two ways to make a kernel speak."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option
from kvmkit.cli.vms import NAME, one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]


def _sysrq_key(text: str) -> str:
    if len(text) != 1 or not text.isascii() or not text.isalnum():
        raise ValueError("one letter or digit, as t for all tasks' stacks")
    return text


COMMAND = Command(
    "kvmkit debug",
    "Show registers, code and stack of each virtual CPU, all stopped for a moment.",
    (
        NAME,
        Option("--json", "", "as JSON, as the VM tells it"),
        Option("--nmi", "", "send every CPU a non-maskable interrupt"),
        Option(
            "--sysrq",
            "KEY",
            "press SysRq and KEY on the serial console: a break,\n"
            "then the key (t: all tasks, l: all CPUs, w: who is\n"
            "blocked, c: crash); the answer is in kvmkit log",
            convert=_sysrq_key,
        ),
    ),
    words="[NAME]",
    most_words=None,
    complete="vm",
    notes="""
With --nmi or --sysrq, only that is done. A Linux guest takes SysRq keys if its
console is the serial one and kernel.sysrq allows them.
""",
)


def main(arguments: Sequence[str]) -> int:
    """Show the CPUs, or press what is asked for; 0, or 1 if the guest does not listen."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.control.client import VmClient
    from kvmkit.control.steer import StopFailed

    vm = one(options)
    with VmClient(vm) as client:
        if options["nmi"]:
            client.execute("inject-nmi")
        if options["sysrq"] is not None:
            answer = client.execute("kvmkit-sysrq", key=options["sysrq"])
            if not answer["heard"]:
                raise StopFailed(f"{vm.address}: nobody listens at the serial console")
        if options["nmi"] or options["sysrq"] is not None:
            return 0
        cpus = client.execute("kvmkit-debug")
    if options["json"]:
        import json

        print(json.dumps(cpus, indent=2))
        return 0
    for number, cpu in enumerate(cpus):
        if number:
            print()
        print(cpu["text"])
        print(f"stack:\n{cpu['stack']}")
    return 0
