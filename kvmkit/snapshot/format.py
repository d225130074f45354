"""A snapshot: a directory with a VM that stands still.

=============  ==============================================================
``state.json``  what it is, every CPU's and device's state record by name
``memory``      the guest's RAM (:mod:`kvmkit.snapshot.pages`)
``checksum``    SHA-256 of ``state.json``, as sha256sum(1) writes and checks it
=============  ==============================================================

It is written beside its place and renamed, so that a crash leaves the old one or
the new one. Compatibility: ``format`` counts up when the directory changes; a
state record that gained or lost a field is refused by name. A kvmkit reads what it
wrote itself, and snapshots of other versions whose records are the same.
"""

from __future__ import annotations

import os
from hashlib import sha256
from json import JSONDecodeError, dumps, loads

from kvmkit.errors import BadSnapshot, FileTrouble, KvmkitError
from kvmkit.snapshot.pages import Extent, check_pages, save_pages
from kvmkit.snapshot.records import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.board.memory import GuestMemory
    from kvmkit.vm import VM

__all__ = ["FORMAT", "Snapshot", "about", "save"]

FORMAT = 1

_STATE, _MEMORY, _CHECKSUM = "state.json", "memory", "checksum"
_STATE_MAX = 64 << 20


class Snapshot:
    """A snapshot that was opened and found whole. Close it, or use it as a context.

    Raises BadSnapshot when it is not whole or not one, FileTrouble when it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        try:
            text = _read(os.path.join(path, _STATE), _STATE_MAX)
            listed = _read(os.path.join(path, _CHECKSUM), 4096).decode("ascii", "replace").split()
            if listed[:1] != [sha256(text).hexdigest()]:
                raise BadSnapshot(f"{path}: {_STATE} is not what was saved (its checksum differs)")
            self.head = _head(loads(text), path)
            self.fd = os.open(os.path.join(path, _MEMORY), os.O_RDONLY | os.O_CLOEXEC)
        except (JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BadSnapshot(f"{path}: {_STATE} is not JSON: {error}") from None
        except OSError as error:
            raise _trouble(path, error) from None

    @property
    def memory(self) -> int:
        """The guest's RAM in bytes."""
        size: int = self.head["memory"]
        return size

    @property
    def config(self) -> dict[str, Any]:
        """What the VM was made with: kernel, command line, CPUs and so on."""
        config: dict[str, Any] = self.head["config"]
        return config

    def check(self) -> None:
        """Read the whole memory. Raises BadSnapshot if it is not what was saved."""
        try:
            check_pages(self.fd, self.memory, _extents(self.head["extents"]))
        except BadSnapshot as error:
            raise BadSnapshot(f"{self.path}: {error}", error.hint) from None

    def state(self, like: Any) -> Any:
        """The machine's state, a record as ``like``. Raises BadSnapshot if it is none."""
        return decode(self.head["state"], f"{self.path}: state", like)

    def make(self, vm: type[VM], *, engine: str, **options: Any) -> VM:
        """A VM of class ``vm`` made as the one that was saved."""
        config = self.config
        wanted = self.head["state"].get("engine", {}).get("text") if engine == "auto" else engine
        try:
            return vm(
                config["kernel"],
                initrd=config["initrd"],
                cmdline=config["cmdline"],
                cpus=config["cpus"],
                memory=self.memory,
                engine=wanted,
                reboot=config["reboot"],
                bare_cmdline=True,
                hang_timeout=None,
                **options,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadSnapshot(f"{self.path}: its configuration is wrong: {error}") from None

    def resident(self) -> int:
        """Bytes the memory takes on disk."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Close its files. Callable twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def about(vm: VM) -> dict[str, Any]:
    """What a snapshot of ``vm`` says of it, for people and for :meth:`Snapshot.make`."""
    from time import time

    from kvmkit import __version__

    return {
        "kvmkit": __version__,
        "saved": int(time()),
        "name": vm.name,
        "config": {
            "kernel": os.path.abspath(vm.kernel),
            "initrd": [os.path.abspath(path) for path in vm.initrds],
            "cmdline": vm.cmdline,
            "cpus": vm.config.cpus,
            "reboot": vm.config.reboot,
        },
    }


def save(path: str, ram: GuestMemory, state: Any, about: dict[str, Any]) -> None:
    """Save a machine that stands still in directory ``path``, in place of a snapshot there.

    ``about`` is plain data for ``info``, with ``config``. Raises FileTrouble.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path) and not os.path.exists(os.path.join(path, _STATE)):
        raise FileTrouble(f"{path} exists and is no snapshot", "name another directory")
    aside = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(aside, 0o700)
        _write(aside, ram, state, about)
        _put(aside, path)
    except BaseException as error:
        _remove(aside)
        if isinstance(error, OSError) and not isinstance(error, KvmkitError):
            raise _trouble(path, error) from None
        raise


def _write(aside: str, ram: GuestMemory, state: Any, about: dict[str, Any]) -> None:
    fd = os.open(os.path.join(aside, _MEMORY), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        extents = save_pages(ram, fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    head = {"format": FORMAT, **about, "memory": ram.size, "extents": extents}
    text = _text({**head, "state": encode(state)})
    for name, data in (
        (_STATE, text),
        (_CHECKSUM, f"{sha256(text).hexdigest()}  {_STATE}\n".encode()),
    ):
        with open(os.path.join(aside, name), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync_directory(aside)


def _text(head: dict[str, Any]) -> bytes:
    """JSON for people: indented, but for the extents, three numbers that go together."""
    extents = head.pop("extents")
    lines = ",\n  ".join(dumps(extent) for extent in extents)
    text = dumps({**head, "extents": []}, indent=1)
    return text.replace('"extents": []', f'"extents": [\n  {lines}\n ]', 1).encode()


def _put(aside: str, path: str) -> None:
    """Rename; an older snapshot moves away first, since a directory replaces only empty ones."""
    old = f"{aside}.old"
    had = os.path.lexists(path)
    if had:
        os.rename(path, old)
    try:
        os.rename(aside, path)
    except OSError:
        if had:
            os.rename(old, path)
        raise
    _sync_directory(os.path.dirname(path))
    if had:
        _remove(old)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    for name in (_STATE, _MEMORY, _CHECKSUM):
        try:
            os.unlink(os.path.join(path, name))
        except OSError:
            pass
    try:
        os.rmdir(path)
    except OSError:
        pass


def _read(path: str, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadSnapshot(f"{path} is larger than {most} bytes")
    return data


def _head(head: Any, path: str) -> dict[str, Any]:
    if not isinstance(head, dict) or not isinstance(head.get("format"), int):
        raise BadSnapshot(f"{path} is no snapshot of kvmkit")
    if head["format"] != FORMAT:
        raise BadSnapshot(
            f"{path} has format {head['format']}, this kvmkit reads format {FORMAT}",
            "use the kvmkit that saved it, or take a new snapshot",
        )
    kinds = {"memory": int, "extents": list, "config": dict, "state": dict}
    for name, kind in kinds.items():
        if not isinstance(head.get(name), kind):
            raise BadSnapshot(f"{path}: {_STATE} lacks {name}")
    return head


def _extents(listed: list[Any]) -> list[Extent]:
    extents: list[Extent] = []
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 3 and all(type(n) is int for n in entry)):
            raise BadSnapshot("an extent of the memory is not three numbers")
        extents.append((entry[0], entry[1], entry[2]))
    return extents


def _trouble(path: str, error: OSError) -> KvmkitError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return BadSnapshot(f"{path} is no snapshot: {error.strerror}")
    return FileTrouble(f"{path}: {error.strerror}")
