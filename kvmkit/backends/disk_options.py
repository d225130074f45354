"""A disk as a user names it: a file, and how it is to be used.

    disk.img,ro
    root.qcow2,snapshot,serial=root,queues=2

A comma in a file's name is written twice.
"""

from __future__ import annotations

import os

from kvmkit.errors import UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.virtio.block import Block

__all__ = ["DiskOptions", "parse_disk"]

MOST_QUEUES = 16
SERIAL_MOST = 20
_FORMATS = ("raw", "qcow2")


class DiskOptions(Record, kw_only=True):
    """A disk of a VM. ``format`` is found out if it is empty; with ``snapshot`` the file stays
    as it is and writes are forgotten; ``serial`` is what ``/sys/block/vda/serial`` says."""

    path: str
    read_only: bool = False
    snapshot: bool = False
    format: str = ""
    serial: str = ""
    queues: int = 1

    def check(self) -> DiskOptions:
        """Itself. Raises UsageError for what cannot be meant."""
        if not self.path or "\0" in self.path:
            raise UsageError(f"a disk has a file, not {self.path!r}", "--disk FILE[,ro]...")
        if self.format not in ("", *_FORMATS):
            raise UsageError(f"{self.path}: a disk's format is raw or qcow2, not {self.format!r}")
        if not (self.serial.isascii() and self.serial.isprintable()):
            raise UsageError(f"{self.path}: a disk's serial is ASCII, not {self.serial!r}")
        if len(self.serial) > SERIAL_MOST:
            raise UsageError(
                f"{self.path}: a disk's serial has at most {SERIAL_MOST} characters, "
                f"{self.serial!r} has {len(self.serial)}"
            )
        if not 1 <= self.queues <= MOST_QUEUES:
            raise UsageError(f"{self.path}: a disk has 1 to {MOST_QUEUES} queues")
        return self

    def __str__(self) -> str:
        words = [self.path.replace(",", ",,")]
        words += [name for name in ("ro", "snapshot") if getattr(self, _FLAGS[name])]
        words += [f"{name}={value}" for name in ("format", "serial") if (value := _of(self, name))]
        if self.queues != 1:
            words.append(f"queues={self.queues}")
        return ",".join(words)

    def open(self) -> Block:
        """The device. Raises FileTrouble or PermissionTrouble."""
        from kvmkit.backends.disk import open_disk
        from kvmkit.backends.disk_queue import DiskQueue
        from kvmkit.virtio.block import Block

        disk = open_disk(
            self.path,
            read_only=self.read_only,
            format=self.format or None,
            snapshot=self.snapshot,
        )
        return Block(disk, DiskQueue("disk"), serial=self.serial, queues=self.queues)


_FLAGS = {"ro": "read_only", "snapshot": "snapshot"}


def _of(options: DiskOptions, name: str) -> str:
    value: str = getattr(options, name)
    return value.replace(",", ",,")


def parse_disk(text: str | os.PathLike[str]) -> DiskOptions:
    """From a command line's word, or a path. Raises UsageError."""
    if not isinstance(text, str):
        return DiskOptions(path=os.fspath(text)).check()
    if "\0" in text:
        raise UsageError(f"no file's name has a NUL character: {text!r}")
    path, *words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    found: dict[str, str | int | bool] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if name in _FLAGS and not sign:
            found[_FLAGS[name]] = True
        elif name in ("format", "serial") and sign:
            found[name] = value
        elif name == "queues" and value.isascii() and value.isdecimal() and len(value) < 4:
            found[name] = int(value)
        else:
            raise UsageError(
                f"{path}: unknown word {word!r} for a disk",
                "ro, snapshot, format=raw, format=qcow2, serial=TEXT, queues=NUMBER; "
                "a comma in a file's name is written twice",
            )
    return DiskOptions(path=path, **found).check()  # type: ignore[arg-type]
