"""``kvmkit run``: boot a kernel, to a shell or to run one command in it."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option
from kvmkit.cli.values import count, device, seconds, size, variable
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]

MOST_CPUS = 64

NEED_AGENT = {name: f"--{name}" for name in ("root", "rw", "ro", "user", "env", "cwd")}
"""With one of these the command runs under the guest's agent (cli/agent_session.py)."""

COMMAND = Command(
    "kvmkit run",
    "Boot a Linux kernel in a virtual machine, to a shell or to run one command.",
    (
        Option(
            "-k --kernel",
            "FILE",
            "bzImage, vmlinux or PVH kernel, or a pulled image's\n"
            "name (default, whichever is there first:\n"
            "arch/x86/boot/bzImage, bzImage, the pulled image,\n"
            "/boot/vmlinuz-$(uname -r))",
            complete="file",
        ),
        Option(
            "-i --initrd",
            "FILE",
            "initial RAM disk; several are put one after the\n"
            "other (default: a busybox with a shell)",
            repeat=True,
            complete="file",
        ),
        Option(
            "-p --params",
            "PARAMS",
            "parameters to add to the kernel's command line",
            repeat=True,
        ),
        Option("-m --mem", "SIZE", "memory, as 512M or 4G (default: 512M)", convert=size),
        Option(
            "-c --cpus",
            "NUMBER",
            "virtual CPUs (default: 1)",
            convert=count(1, MOST_CPUS),
            default=1,
        ),
        Option(
            "-d --disk",
            "FILE[,ro][,snapshot][,format=raw|qcow2][,serial=TEXT][,queues=N]",
            "a disk, /dev/vda in the guest: an image, raw or\n"
            "qcow2, or a block device (docs/disks.md); with\n"
            "snapshot, writes are forgotten at the end;\n"
            "several are possible",
            repeat=True,
            complete="file",
        ),
        Option(
            "-n --net",
            "NETWORK[,WORD=VALUE...]",
            "a network card: user (through passt, without\n"
            "privileges), tap, tap=IFNAME, or none, which is\n"
            "the default (docs/network.md); several are possible",
            repeat=True,
        ),
        Option(
            "--publish",
            "[ADDRESS:]PORT:GUEST_PORT[/udp]",
            "let a port of this host lead into the guest;\nmakes a user network if there is none",
            repeat=True,
        ),
        Option(
            "--root",
            "host|DIR",
            "the guest's root: this machine's, or a directory;\n"
            "what the guest changes there is forgotten\n"
            "(docs/run.md)",
            complete="file",
        ),
        Option(
            "--rw",
            "DIR",
            "share a directory with the guest, at the same\npath; several are possible",
            repeat=True,
            complete="file",
        ),
        Option("--ro", "DIR", "the same, read-only", repeat=True, complete="file"),
        Option(
            "--user",
            "NAME|UID[:GID]",
            "whom the command runs as (default: with\n--root host you, else root)",
        ),
        Option("--env", "NAME=TEXT", "a variable for the command", convert=variable, repeat=True),
        Option(
            "--cwd",
            "DIR",
            "where it starts (default: here, if the guest has\nthis directory)",
        ),
        Option(
            "--device",
            "MODULE:CLASS[,ARGUMENT=VALUE...]",
            "a device of your own, from a Python module\n(docs/devices.md); several are possible",
            convert=device,
            repeat=True,
        ),
        Option(
            "--warm",
            "",
            "run the command in a guest that was booted before\n(kvmkit cache lists them)",
        ),
        Option("--name", "NAME", "the VM's name"),
        Option(
            "--engine",
            "ENGINE",
            "auto, kvm or soft (default: auto; kvmkit doctor\nsays which one that is here)",
            default="auto",
            choices=("auto", "kvm", "soft"),
        ),
        Option(
            "--console",
            "WHERE",
            "the guest's first serial port: tty (this terminal,\n"
            "the default), none, or a file to write to",
            default="tty",
            complete="file",
        ),
        Option(
            "--kernel-log",
            "FILE",
            "write the kernel's messages there",
            complete="file",
        ),
        Option(
            "--timeout",
            "SECONDS",
            "end the VM after that time, with exit code 124",
            convert=seconds,
        ),
        Option(
            "--hang-timeout",
            "SECONDS",
            "a boot that prints nothing for that time hangs\n(default: 60)",
            convert=seconds,
            default=60.0,
        ),
        Option("--no-reboot", "", "end with exit code 113 when the guest reboots"),
        Option(
            "--detach",
            "",
            "run in the background: print the VM's name and\n"
            "return when the guest runs its first process",
        ),
        Option("--no-wait", "", "with --detach: return when its CPUs run"),
        Option(
            "--config",
            "FILE",
            "take options from a TOML or JSON file; those given\nhere come after and win",
            complete="file",
        ),
        Option("--dump-config", "", "print the options as such a file, and do no more"),
    ),
    words="[KERNEL]",
    rest="[-- COMMAND [ARGUMENT...]]",
    most_words=1,
    notes="""
In the VM:  Ctrl-a x  end it    Ctrl-a c  kvmkit's prompt (pause, reset, ...)
            Ctrl-a h  all keys

kvmkit run -- COMMAND ends with the command's exit status; its input, output and
errors are this command's, and may be pipes; signals are passed on. Kernel
messages are not shown then (see --kernel-log). Exit codes of kvmkit's own: 110
panic, 111 triple fault, 112 hang, 113 reboot, 114 engine error, 116-123 errors
before the start, 124 timeout, 125 internal error.

Examples:
  kvmkit run                         boot the kernel that is there to a shell
  kvmkit run -k bzImage -m 1G -c 4   your own kernel, 1 GiB, 4 CPUs
  kvmkit run -k bzImage -- sh -c 'dmesg | tail'
  kvmkit run -i root.cpio.gz -p 'rdinit=/bin/sh quiet'
  kvmkit run --root host --rw . -- make test
  kvmkit run --detach --name box     in the background; kvmkit console box
""",
)


def main(arguments: Sequence[str]) -> int:
    """Boot as told; the exit code. Raises a KvmkitError for what cannot be started."""
    parsed = COMMAND.parse(arguments)
    if parsed is not None and parsed["config"] is not None:
        from kvmkit.cli.run_config import config_words

        parsed = COMMAND.parse([*config_words(parsed["config"]), *arguments])
    if parsed is None:
        return 0
    if parsed["dump_config"]:
        from kvmkit.cli.run_config import dump

        print(dump(parsed), end="")
        return 0
    import gc

    # Looking for garbage while modules load takes 2 ms and finds none. The session switches
    # it on when the VM has started.
    gc.disable()
    try:
        if parsed["warm"]:
            from kvmkit.cli.warm import run as run_warm

            return run_warm(parsed)
        with_agent = any(parsed[name] for name in NEED_AGENT)
        if with_agent and not parsed["detach"]:
            from kvmkit.cli.agent_session import run as run_with_agent

            return run_with_agent(parsed)
        if with_agent:
            raise UsageError(f"--detach goes with none of {', '.join(NEED_AGENT.values())}")
        if parsed["detach"] or parsed["no_wait"]:
            from kvmkit.cli.detach import detach

            return detach(parsed)
        if parsed.rest:
            from kvmkit.cli.agent_session import run as run_with_agent
            from kvmkit.cli.agent_session import suits

            if suits(parsed):
                return run_with_agent(parsed)
        # late: --help and mistakes need none of it
        from kvmkit.cli.session import run

        return run(parsed)
    finally:
        gc.enable()
