"""Between a VM and its snapshot: what is noted of how it was made, and making it again."""

from __future__ import annotations

import os

from kvmkit.errors import BadSnapshot, UsageError
from kvmkit.frozen import replace
from kvmkit.snapshot.format import INITRD, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.vm import VM

__all__ = ["about", "check_disks", "config_of", "disks_of", "loose_initrds", "make", "open_vm"]

_OURS = "/proc/self/fd/"


def about(vm: VM) -> dict[str, Any]:
    """What a snapshot of ``vm`` says of it, for people and for :func:`make`."""
    from time import time

    from kvmkit import __version__

    return {
        "kvmkit": __version__,
        "saved": int(time()),
        "name": vm.name,
        "config": {**config_of(vm), "disks": disks_of(vm)},
    }


def loose_initrds(vm: VM) -> dict[str, bytes]:
    """The archives that go with this process, by the names that :func:`config_of` gives them."""
    found = {}
    for index, path in enumerate(vm.initrds):
        if path.startswith(_OURS):
            with open(path, "rb") as file:
                found[INITRD.format(index)] = file.read()
    return found


def config_of(vm: VM) -> dict[str, Any]:
    """How ``vm`` was made, in plain values; its memory's size is the memory's."""
    return {
        "kernel": os.path.abspath(vm.kernel),
        "initrd": [
            INITRD.format(index) if path.startswith(_OURS) else os.path.abspath(path)
            for index, path in enumerate(vm.initrds)
        ],
        "cmdline": vm.cmdline,
        "cpus": vm.config.cpus,
        "reboot": vm.config.reboot,
        "nets": [str(net) for net in vm.nets],
    }


def disks_of(vm: VM) -> list[list[Any]]:
    """Each disk of ``vm`` as words, with the size and time by which a change is seen.

    The machine stands, and its devices have written what they had. Raises UsageError for a
    disk whose contents nobody keeps.
    """
    found: list[list[Any]] = []
    for disk in vm.disks:
        if disk.snapshot and not disk.read_only:
            raise UsageError(
                f"{disk.path}: what the guest writes to a disk with \",snapshot\" is not kept",
                "use an overlay file instead: qemu-img create -f qcow2 -b ...",
            )
        path = os.path.abspath(disk.path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        found.append([str(replace(disk, path=path)), *_facts(path)])
    return found


def _facts(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def check_disks(config: dict[str, Any]) -> list[str]:
    """The disks' words. Raises BadSnapshot for one that was written since."""
    from kvmkit.backends.disk_options import parse_disk

    words = []
    for text, *facts in config.get("disks", []):
        path = parse_disk(text).path
        try:
            now = _facts(path)
        except OSError as error:
            raise BadSnapshot(f"the disk {path} is gone: {error.strerror}") from None
        if now != tuple(facts):
            raise BadSnapshot(
                f"the disk {path} was written since the snapshot was taken",
                "the guest would find other contents than it knows; keep a copy of the disk "
                "with each snapshot and put it back first (cp --reflink=auto -p)",
            )
        words.append(text)
    return words


def make(
    cls: type[VM], config: dict[str, Any], memory: int, *, engine: str, **options: Any
) -> VM:
    """A VM of class ``cls`` made as ``config`` says, for a machine that goes on in it.

    Raises UsageError for options that cannot be meant, and BadSnapshot for a
    configuration that cannot be.
    """
    try:
        return cls(
            config["kernel"],
            initrd=config["initrd"],
            cmdline=config["cmdline"],
            cpus=config["cpus"],
            memory=memory,
            engine=engine,
            reboot=bool(config.get("reboot", True)),
            disks=config.get("disks", ()),
            nets=config.get("nets", ()),
            bare_cmdline=True,
            hang_timeout=None,
            **options,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadSnapshot(f"the snapshot's configuration is wrong: {error}") from None


def open_vm(
    cls: type[VM], path: str, *, engine: str, check: bool, **options: Any
) -> tuple[VM, Snapshot]:
    """A VM for the snapshot at ``path``, and the snapshot, which the caller closes."""
    snapshot = Snapshot(path)
    try:
        if check:
            snapshot.check()
        wanted = snapshot.engine if engine == "auto" else engine
        config = snapshot.config
        folder = os.path.abspath(path)
        config["disks"] = check_disks(config)
        config["initrd"] = [os.path.join(folder, name) for name in config["initrd"]]
        vm = make(cls, config, snapshot.memory, engine=wanted, **options)
    except BaseException as error:
        snapshot.close()
        if isinstance(error, BadSnapshot) and path not in str(error):
            raise BadSnapshot(f"{path}: {error}", error.hint) from None
        raise
    return vm, snapshot
