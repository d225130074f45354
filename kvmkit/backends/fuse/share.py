"""A share: a directory of the host that a guest mounts, in one call."""

from __future__ import annotations

import os

from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.virtio.fs import VirtioFs

    PathLike = str | os.PathLike[str]

__all__ = ["Share"]

WORKERS = 4


def Share(
    path: PathLike,
    *,
    tag: str,
    read_only: bool = False,
    cache: str = "auto",
    owner: int | None = None,
) -> VirtioFs:
    """The device for ``VM.add_virtio``; the guest does ``mount -t virtiofs TAG DIRECTORY``.

    ``tag`` has at most 36 bytes. ``cache`` says how long the guest believes what it
    knows of names and attributes: ``"never"``, ``"auto"`` (a second), ``"always"`` (for
    a directory nobody else changes). ``owner`` is the user, and group, of the guest
    as which this process's own user appears: 0 unless given, when we are not root;
    a root process shows and sets all ids as they are.

    Raises UsageError, FileTrouble or PermissionTrouble.
    """
    from kvmkit.backends.disk_queue import DiskQueue
    from kvmkit.backends.fuse.server import Server
    from kvmkit.backends.fuse.session import Session
    from kvmkit.virtio.fs import VirtioFs

    if owner is None and os.geteuid() != 0:
        owner = 0
    if owner is not None and not 0 <= owner < 1 << 32:
        raise UsageError(f"a share's owner is the number of a user, not {owner}")
    name = tag.encode(errors="surrogateescape")
    session = Session(os.fspath(path), read_only=read_only, cache=cache, owner=owner)
    return VirtioFs(name, Server(session), DiskQueue("share", WORKERS))
