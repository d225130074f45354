"""The VMs of this host as records, read from their directories and ``/proc``.

No VM is asked: one that hangs cannot hold up a list. Whoever lists removes what
dead VMs of the same user left. Root sees every user's; what another user's
directory says is checked against ``/proc`` before it is believed.
"""

from __future__ import annotations

import os

from kvmkit.control import claim
from kvmkit.control.directory import other_directories, runtime_directory
from kvmkit.control.names import is_name
from kvmkit.errors import KvmkitError, UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = [
    "NoSuchVm",
    "RunningVm",
    "clean_up",
    "find_vm",
    "find_vms",
    "list_names",
    "list_vms",
    "user_name",
]

_MOST_INFO = 64 << 10
_TICKS = os.sysconf("SC_CLK_TCK")
_STATES = ("starting", "running", "paused", "ended")


class NoSuchVm(KvmkitError):
    """No running VM has the name asked for."""

    exit_code = 116


class RunningVm(Record, kw_only=True):
    """One VM. Sizes in bytes, times in seconds; ``cpu_time`` is that of its own threads.

    ``uid`` owns it. ``address`` is how the command line names it: its name, with
    the user in front if he is not the caller.
    """

    name: str
    path: str
    pid: int
    uid: int
    state: str = "starting"
    kernel: str = ""
    engine: str = ""
    cpus: int = 0
    memory: int = 0
    memory_used: int = 0
    cpu_time: float = 0.0
    uptime: float = 0.0

    @property
    def address(self) -> str:
        """What to call it on the command line."""
        return self.name if self.uid == os.geteuid() else f"{user_name(self.uid)}:{self.name}"

    @property
    def socket(self) -> str:
        """The path of its control socket."""
        return os.path.join(self.path, claim.SOCKET)


def list_vms() -> list[RunningVm]:
    """Every VM that runs, by name; those of other users last, for root only."""
    found = [vm for vm in _look_all() if vm is not None]
    own = os.geteuid()
    return sorted(found, key=lambda vm: (vm.uid != own, vm.uid, _natural(vm.name)))


def list_names() -> list[str]:
    """The addresses of all running VMs; quicker than :func:`list_vms`."""
    return sorted(_address(uid, name) for uid, base, name in _places() if _alive(uid, base, name))


def find_vm(address: str) -> RunningVm:
    """The VM of that name (for root also ``USER:NAME``). Raises NoSuchVm or UsageError."""
    user, colon, name = address.rpartition(":")
    if not is_name(name):
        raise UsageError(f"no VM has a name like {address!r}", "kvmkit list shows all")
    if not colon:  # the usual case needs no look at the others
        vm = _look(os.geteuid(), runtime_directory(), name)
        if vm is not None:
            return vm
    matches = [
        vm for vm in list_vms()
        if vm.name == name and (not colon or user in (str(vm.uid), user_name(vm.uid)))
    ]  # fmt: skip
    if len(matches) > 1:
        several = ", ".join(vm.address for vm in matches)
        raise UsageError(f"several VMs are named {name!r}: {several}")
    if not matches:
        raise NoSuchVm(f"no VM named {address!r} is running", _known(address))
    return matches[0]


def find_vms(addresses: list[str], *, all: bool = False) -> list[RunningVm]:
    """The VMs named, each once; with ``all`` every one in the caller's own directory."""
    if all:
        own = runtime_directory()
        return [vm for vm in list_vms() if os.path.dirname(vm.path) == own]
    return [find_vm(address) for address in dict.fromkeys(addresses)]


def clean_up(vm: RunningVm) -> None:
    """Remove what a VM left that is no more; only the caller's own."""
    if vm.uid == os.geteuid():
        claim.remove_dead(vm.path)


def _known(address: str) -> str:
    names = list_names()
    if not names:
        return "no VM is running"
    from difflib import get_close_matches

    if near := get_close_matches(address, names, 1, 0.6):
        return f"did you mean {near[0]!r}?"
    return f"running: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def _places() -> Iterator[tuple[int, str, str]]:
    """``(uid, base directory, name)`` of everything that looks like a VM's directory."""
    bases = [(os.geteuid(), runtime_directory()), *other_directories()]
    for uid, base in bases:
        try:
            entries = os.listdir(base)
        except OSError:
            continue
        for entry in entries:
            if is_name(entry):
                yield uid, base, entry


def _look_all() -> Iterator[RunningVm | None]:
    for uid, base, name in _places():
        yield _look(uid, base, name)


def _alive(uid: int, base: str, name: str) -> bool:
    path = os.path.join(base, name)
    if claim.is_alive(path):
        return True
    if uid == os.geteuid():
        claim.remove_dead(path)
    return False


def _look(uid: int, base: str, name: str) -> RunningVm | None:
    """The VM of one directory; None, and the directory gone if it is ours, if it is dead."""
    if not _alive(uid, base, name):
        return None
    path = os.path.join(base, name)
    pid = claim.read_pid(path)
    if pid is None or _owner(pid) not in (uid, None):
        return None
    info = _read_info(path)
    state = claim.read_small(os.path.join(path, claim.STATE), 32).strip().decode(errors="replace")
    values: dict[str, Any] = {
        key: info[key]
        for key, kind in (("kernel", str), ("engine", str), ("cpus", int), ("memory", int))
        if isinstance(info.get(key), kind)
    }
    return RunningVm(
        name=name,
        path=path,
        pid=pid,
        uid=uid,
        state=state if state in _STATES else _STATES[0],
        memory_used=_memory_used(pid, info.get("memory_fd")),
        cpu_time=_cpu_time(pid, info.get("threads")),
        uptime=_uptime(info.get("started")),
        **values,
    )


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _read_info(path: str) -> dict[str, Any]:
    text = claim.read_small(os.path.join(path, claim.INFO), _MOST_INFO)
    if text:
        import json

        try:
            info = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        if isinstance(info, dict):
            return info
    return {}


def _memory_used(pid: int, fd: object) -> int:
    """The pages behind the guest's RAM, which is a file of that process (proc(5))."""
    if isinstance(fd, int):
        try:
            return os.stat(f"/proc/{pid}/fd/{fd}").st_blocks * 512
        except OSError:  # may not be looked into, as after setuid
            pass
    return 0


def _cpu_time(pid: int, threads: object) -> float:
    """Seconds of CPU the VM's threads have used (proc(5), ``stat`` fields 14 and 15)."""
    total = 0
    for thread in threads if isinstance(threads, list) else ():
        if isinstance(thread, int):
            text = claim.read_small(f"/proc/{pid}/task/{thread}/stat", 1024)
            fields = text.rpartition(b")")[2].split()
            if len(fields) > 12:
                total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _uptime(started: object) -> float:
    """Since the start, by the host's monotonic clock."""
    from time import monotonic

    return max(0.0, monotonic() - started) if isinstance(started, int | float) else 0.0


def _natural(name: str) -> tuple[object, ...]:
    """A key that sorts ``vm2`` before ``vm10``."""
    parts: list[tuple[int, int | str]] = []
    word = ""
    for character in name + "\0":
        if word and character.isdigit() != word[-1].isdigit():
            parts.append((0, int(word)) if word.isdigit() else (1, word))
            word = ""
        word += character
    return tuple(parts)


def _address(uid: int, name: str) -> str:
    return name if uid == os.geteuid() else f"{user_name(uid)}:{name}"


def user_name(uid: int) -> str:
    """The user's name, or his number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
