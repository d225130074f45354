"""QEMU's human monitor, the few lines people and scripts type: ``info status``, ``x``, ``quit``.

Behind QMP's ``human-monitor-command``, and so behind ``qmp-shell -H``. Answers end
lines with CR LF, as QEMU's do.
"""

from __future__ import annotations

from kvmkit.control.commands import version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.control.commands import Commands
    from kvmkit.vm import VM

__all__ = ["answer"]

_ACTIONS = {
    "stop": "stop",
    "s": "stop",
    "cont": "cont",
    "c": "cont",
    "system_reset": "system_reset",
    "system_powerdown": "system_powerdown",
    "nmi": "inject-nmi",
    "quit": "quit",
    "q": "quit",
}
_INFO = {
    "status": "whether the VM runs",
    "name": "its name",
    "version": "kvmkit's version",
    "cpus": "its CPUs and their threads",
    "registers": "the CPUs' registers (-a: of all)",
    "kvm": "whether KVM is used",
    "block": "its disks",
}


def answer(vm: VM, commands: Commands, line: str, cpu: int | None = None) -> str:
    """What the human monitor says to ``line``."""
    words = line.split()
    if not words:
        return ""
    if words[0] in _ACTIONS:
        commands.execute(_ACTIONS[words[0]], {})
        return ""
    if words[0] in ("help", "?"):
        lines = [f"info {topic} -- {text}" for topic, text in _INFO.items()]
        return _join([*lines, *sorted(_ACTIONS)])
    if words[0] == "info":
        return _info(vm, commands, words[1:], cpu)
    return _join([f"unknown command: '{words[0]}'"])


def _info(vm: VM, commands: Commands, words: list[str], cpu: int | None) -> str:
    topic = words[0] if words else ""
    if topic == "status":
        state = commands.state()
        return _join([f"VM status: {state}"])
    if topic == "name":
        return _join([vm.name])
    if topic == "version":
        return _join([str(version()["package"]).removeprefix("kvmkit-")])
    if topic == "kvm":
        return _join([f"kvm support: {'enabled' if vm.engine == 'kvm' else 'disabled'}"])
    if topic == "block":
        return ""
    if topic == "cpus":
        current = cpu or 0
        return _join(
            [
                f"{'*' if entry['cpu-index'] == current else ' '} CPU #{entry['cpu-index']}: "
                f"thread_id={entry['thread-id']}"
                for entry in commands.execute("query-cpus-fast", {})
            ]
        )
    if topic == "registers":
        entries = commands.execute("kvmkit-debug", {})
        if "-a" not in words:
            entries = [entry for entry in entries if entry["cpu-index"] == (cpu or 0)]
        if not entries:
            return _join([f"there is no CPU {cpu}" if cpu else "the VM does not run"])
        return _join([line for entry in entries for line in entry["text"].splitlines()])
    lines = [f"info {known} -- {text}" for known, text in _INFO.items()]
    return _join(lines if not topic else [f"unknown command: 'info {topic}'", *lines])


def _join(lines: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)
