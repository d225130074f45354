"""Between a VM and its snapshot: what is noted of how it was made, and making it again."""

from __future__ import annotations

import os

from kvmkit.errors import BadSnapshot
from kvmkit.snapshot.format import INITRD, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.vm import VM

__all__ = ["about", "config_of", "loose_initrds", "make", "open_vm"]

_OURS = "/proc/self/fd/"


def about(vm: VM) -> dict[str, Any]:
    """What a snapshot of ``vm`` says of it, for people and for :func:`make`."""
    from time import time

    from kvmkit import __version__

    return {
        "kvmkit": __version__,
        "saved": int(time()),
        "name": vm.name,
        "config": config_of(vm),
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
    }


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
        config["initrd"] = [os.path.join(folder, name) for name in config["initrd"]]
        vm = make(cls, config, snapshot.memory, engine=wanted, **options)
    except BaseException as error:
        snapshot.close()
        if isinstance(error, BadSnapshot) and path not in str(error):
            raise BadSnapshot(f"{path}: {error}", error.hint) from None
        raise
    return vm, snapshot
