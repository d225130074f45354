"""Whose a file is: users and groups of the host, as the guest sees them.

A server that runs as root shows the host's ids as they are and makes new files
the guest's user's. One that runs as an ordinary user can make files only as
himself: his files then appear as those of one user of the guest (root, unless told
otherwise), and whatever that user makes is his on the host.
"""

from __future__ import annotations

import os

from kvmkit.backends.fuse.syscalls import act_as, act_as_self

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.request import Request

__all__ = ["UNCHANGED", "Ids"]

OVERFLOW: Final = 65534
"""Who else has an id that another is shown with: nobody, nogroup."""

UNCHANGED: Final = 0xFFFF_FFFF


class Ids:
    """``owner`` is the guest's user (and group) as whom this process's own files appear;
    None to show all ids as they are."""

    def __init__(self, owner: int | None) -> None:
        uid, gid = os.geteuid(), os.getegid()
        self.privileged = uid == 0 and owner is None
        """Whether new files can be given to whom they belong."""
        guest_uid = uid if owner is None else owner
        guest_gid = gid if owner is None else owner
        if owner == uid:
            guest_gid = gid
        self._uids = {guest_uid: OVERFLOW, uid: guest_uid}
        self._gids = {guest_gid: OVERFLOW, gid: guest_gid}
        self._back_uids = {guest_uid: uid}
        self._back_gids = {guest_gid: gid}

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        """A file's owner for the guest."""
        return self._uids.get(uid, uid), self._gids.get(gid, gid)

    def wanted(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids for what the guest gives a file; :data:`UNCHANGED` stays."""
        return self._back_uids.get(uid, uid), self._back_gids.get(gid, gid)

    def acting(self, request: Request) -> Acting:
        """``with ids.acting(request):`` files are made as the request's user."""
        if self.privileged and (request.uid or request.gid):
            return _Acting(request.uid, request.gid)
        return _NOTHING


class Acting:
    """Nothing to do: as the server itself."""

    __slots__ = ()

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End."""


class _Acting(Acting):
    __slots__ = ("_gid", "_uid")

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def __enter__(self) -> None:
        act_as(self._uid, self._gid)

    def __exit__(self, *_: object) -> None:
        act_as_self()


_NOTHING = Acting()
