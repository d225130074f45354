"""A snapshot: a directory with a VM that stands still.

=============  ==============================================================
``state.json``  what it is, every CPU's and device's state record by name
``memory``      the guest's RAM (:mod:`kvmkit.snapshot.pages`)
``checksum``    SHA-256 of ``state.json``, as sha256sum(1) writes and checks it
``checked``     that the memory was found whole (:mod:`kvmkit.snapshot.stamp`)
``initrd0``...  archives that were no files of the user's
=============  ==============================================================

It is made aside and put in its place (:mod:`kvmkit.snapshot.place`), so that a
crash leaves the old one or the new one. Compatibility: ``format`` counts up when the
directory changes; a state record that gained or lost a field is refused by name. A
kvmkit reads what it wrote itself, and snapshots of other versions whose records are
the same.
"""

from __future__ import annotations

import os
from hashlib import sha256

from kvmkit.errors import BadSnapshot, FileTrouble, KvmkitError
from kvmkit.snapshot.pages import check_pages, save_pages
from kvmkit.snapshot.place import put_directory, remove_directory, write_file
from kvmkit.snapshot.records import decode, encode
from kvmkit.snapshot.shapes import fits
from kvmkit.snapshot.stamp import STAMP, is_stamped, stamp
from kvmkit.snapshot.text import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmkit.board.memory import GuestMemory
    from kvmkit.snapshot.pages import Extent

    Progress = Callable[[str], None]

__all__ = ["FORMAT", "Snapshot", "is_snapshot", "remove", "save"]

FORMAT = 1

_STATE, _MEMORY, _CHECKSUM = "state.json", "memory", "checksum"
INITRD = "initrd{}"
"""An archive that existed in the VM's process only; for when the guest is reset."""

_MOST_INITRDS = 16
_FILES = (_STATE, _MEMORY, _CHECKSUM, STAMP, *map(INITRD.format, range(_MOST_INITRDS)))
_STATE_MAX = 64 << 20
_CPUS_MAX = 64

_RECORDS = {
    "kvm": ("kvmkit.engine.kvm.engine", "kvmkit.engine.kvm.state"),
    "soft": ("kvmkit.board.model_chips",),
}
"""Where the classes are of what only boards on one engine have in their state."""

_HEAD = {"kvmkit": "str", "name": "str", "saved": "int", "memory": "int"}
_PARTS = {"extents": list, "config": dict, "state": dict}
_CONFIG = {
    "kernel": "str",
    "initrd": "tuple[str, ...]",
    "cmdline": "str",
    "cpus": "int",
    "disks": "tuple[tuple[str, int, int], ...] | None",
    "nets": "tuple[str, ...] | None",
}


class Snapshot:
    """A snapshot that was opened, its state read. Close it, or use it as a context.

    Raises BadSnapshot when it is damaged or none, FileTrouble when it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        try:
            text = _read(os.path.join(path, _STATE), _STATE_MAX)
            listed = _read(os.path.join(path, _CHECKSUM), 4096).decode("ascii", "replace").split()
            self._digest = sha256(text).hexdigest()
            if listed[:1] != [self._digest]:
                raise BadSnapshot(f"{path}: {_STATE} is not what was saved (its checksum differs)")
            self.head = _head(parse(text.decode()), path)
            self.fd = os.open(os.path.join(path, _MEMORY), os.O_RDONLY | os.O_CLOEXEC)
        except (ValueError, RecursionError) as error:
            raise BadSnapshot(f"{path}: {_STATE} is not JSON: {error}") from None
        except OSError as error:
            raise _trouble(path, error) from None
        if os.fstat(self.fd).st_size != self.memory:
            size = os.fstat(self.fd).st_size
            self.close()
            raise BadSnapshot(f"{path}: the memory is {size} bytes, not {self.memory}")

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

    @property
    def engine(self) -> str:
        """The engine it was saved on."""
        named = self.head["state"].get("engine")
        text = named.get("text") if isinstance(named, dict) else None
        return text if text in ("kvm", "soft") else "auto"

    @property
    def extents(self) -> list[Extent]:
        """What of the memory was saved. Raises BadSnapshot."""
        extents: list[Extent] = []
        for entry in self.head["extents"]:
            if not (isinstance(entry, list) and [type(n) for n in entry] == [int, int, int]):
                raise BadSnapshot(f"{self.path}: an extent of the memory is not three numbers")
            extents.append((entry[0], entry[1], entry[2]))
        return extents

    def check(self, *, thorough: bool = False, progress: Progress | None = None) -> None:
        """Read the whole memory, unless that was done since it was last written.

        ``thorough`` reads it anyway. Raises BadSnapshot if it is not what was saved.
        """
        if not thorough and is_stamped(self.path, self.fd, self._digest):
            return
        try:
            check_pages(self.fd, self.memory, self.extents, progress)
        except BadSnapshot as error:
            raise BadSnapshot(f"{self.path}: {error}", error.hint) from None
        except OSError as error:
            raise _trouble(self.path, error) from None
        stamp(self.path, self.fd, self._digest)

    def state(self, like: Any) -> Any:
        """The machine's state, a record as ``like``. Raises BadSnapshot if it is none."""
        for module in _RECORDS.get(self.engine, ()):
            __import__(module)  # only classes that are there are made
        return decode(self.head["state"], f"{self.path}: state", like)

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


def save(
    path: str,
    ram: GuestMemory,
    state: Any,
    about: dict[str, Any],
    progress: Progress | None = None,
    files: dict[str, bytes] | None = None,
) -> None:
    """Save a machine that stands still in directory ``path``, in place of a snapshot there.

    ``about`` is plain data for ``info``, with ``config``; ``files`` named as :data:`INITRD`
    says are kept with it. Raises FileTrouble.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path) and not is_snapshot(path):
        raise FileTrouble(f"{path} exists and is no snapshot", "name another directory")
    try:
        put_directory(
            path, _FILES, lambda aside: _write(aside, ram, state, about, progress, files or {})
        )
    except OSError as error:
        raise FileTrouble(f"{path} cannot be written: {error.strerror}") from None


def is_snapshot(path: str) -> bool:
    """Whether the directory ``path`` looks like one, whole or not."""
    return os.path.isdir(path) and os.path.isfile(os.path.join(path, _STATE))


def remove(path: str) -> None:
    """Remove a snapshot, damaged or not. Raises BadSnapshot for what is none, FileTrouble."""
    if not is_snapshot(path):
        raise BadSnapshot(f"{path} is no snapshot")
    remove_directory(path, _FILES)
    if is_snapshot(path):
        raise FileTrouble(f"{path} cannot be removed")


def _write(
    aside: str,
    ram: GuestMemory,
    state: Any,
    about: dict[str, Any],
    progress: Progress | None,
    files: dict[str, bytes],
) -> None:
    encoded = encode(state)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(os.path.join(aside, _MEMORY), flags, 0o600)
    try:
        extents = save_pages(ram, fd, progress)
        os.fchmod(fd, 0o400)  # running VMs map it
        os.fsync(fd)
        head = {"format": FORMAT, **about, "memory": ram.size, "extents": extents}
        text = _text({**head, "state": encoded})
        digest = sha256(text).hexdigest()
        for name, data in files.items():
            write_file(os.path.join(aside, name), data)
        write_file(os.path.join(aside, _STATE), text)
        write_file(os.path.join(aside, _CHECKSUM), f"{digest}  {_STATE}\n".encode())
        stamp(aside, fd, digest)
    finally:
        os.close(fd)


def _text(head: dict[str, Any]) -> bytes:
    """JSON for people: indented, but for the extents, three numbers that go together."""
    from json import dumps

    extents = head.pop("extents")
    lines = ",\n  ".join(dumps(extent) for extent in extents)
    text = dumps({**head, "extents": []}, indent=1)
    return text.replace('"extents": []', f'"extents": [\n  {lines}\n ]', 1).encode()


def _read(path: str, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadSnapshot(f"{path} is larger than {most} bytes")
    return data


def _head(head: Any, path: str) -> dict[str, Any]:
    if not isinstance(head, dict) or type(head.get("format")) is not int:
        raise BadSnapshot(f"{path} is no snapshot of kvmkit")
    if head["format"] != FORMAT:
        raise BadSnapshot(
            f"{path} has format {head['format']}, this kvmkit reads format {FORMAT}",
            "use the kvmkit that saved it, or take a new snapshot",
        )
    for name, kind in _PARTS.items():
        if not isinstance(head.get(name), kind):
            raise BadSnapshot(f"{path}: {_STATE} lacks {name}")
    for place, shapes in ((head, _HEAD), (head["config"], _CONFIG)):
        for name, annotation in shapes.items():
            value = place.get(name)
            if not fits(_tuples(value), annotation):
                raise BadSnapshot(f"{path}: {_STATE}: {name} is not {annotation}")
            if isinstance(value, str) and "\0" in value:
                raise BadSnapshot(f"{path}: {_STATE}: {name} holds a zero byte")
    if not 1 <= head["config"]["cpus"] <= _CPUS_MAX:
        raise BadSnapshot(f"{path}: {_STATE}: {head['config']['cpus']} CPUs")
    return head


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _trouble(path: str, error: OSError) -> KvmkitError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return BadSnapshot(f"{path} is no snapshot: {error.strerror}")
    return FileTrouble(f"{path}: {error.strerror}")
