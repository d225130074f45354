"""The state of a share: what the guest knows of it and has open.

Files are known by their names; a file that has none (removed while open) is lost
to a VM that goes on elsewhere, and gives the guest ESTALE.
"""

from __future__ import annotations

from kvmkit.frozen import Record

__all__ = ["ShareFile", "ShareHandle", "ShareState"]


class ShareFile(Record):
    """A file the guest knows as ``node``: ``name`` in ``parent``, looked up so many times,
    and by which device, inode number and kind it is known again."""

    node: int
    parent: int
    name: bytes | None
    lookups: int
    device: int
    number: int
    kind: int


class ShareHandle(Record):
    """``node``, open under ``number`` with open(2)'s ``flags``."""

    number: int
    node: int
    flags: int


class ShareState(Record):
    """All of it, and what was agreed on in INIT."""

    root_device: int
    writeback: bool
    no_open: bool
    no_opendir: bool
    last_node: int
    last_handle: int
    files: tuple[ShareFile, ...]
    handles: tuple[ShareHandle, ...]
