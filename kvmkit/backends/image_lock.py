"""Locks that keep two writers, or a reader and a writer, from one disk image.

The scheme of QEMU, whose programs therefore respect ours and we theirs (QEMU,
``block/file-posix.c``, "raw_handle_perm_lock"): what one does to an image, and
what one forbids others to do, are read locks on single bytes, taken per open file
(fcntl(2), open file description locks). Whoever may not share looks whether such
a byte is locked.
"""

from __future__ import annotations

import fcntl
from struct import Struct

__all__ = ["lock_image"]

_DOES = 100
_FORBIDS = 200
# The permissions, as offsets from both
_CONSISTENT_READ = 0
_WRITE = 1
_RESIZE = 3

_FLOCK = Struct("hhxxxxqqixxxx")  # l_type, l_whence, l_start, l_len, l_pid


def lock_image(fd: int, *, write: bool) -> bool:
    """Lock the open image until it is closed; False if somebody else's use forbids that.

    Nobody is kept out where the file system has no locks.
    """
    does = (_CONSISTENT_READ, _WRITE, _RESIZE) if write else (_CONSISTENT_READ,)
    forbids = (_WRITE, _RESIZE)
    try:
        # Ours first, then a look: of two at the same time at least one sees the other.
        for byte in (*(_DOES + what for what in does), *(_FORBIDS + what for what in forbids)):
            lock = _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        found = [_held(fd, _FORBIDS + what) for what in does]
        found += [_held(fd, _DOES + what) for what in forbids]
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not any(found)


def _held(fd: int, byte: int) -> bool:
    """Whether somebody else has locked the byte."""
    lock = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(lock)[0] != fcntl.F_UNLCK)
