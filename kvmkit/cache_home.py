"""The user's cache: ``$XDG_CACHE_HOME/kvmkit`` (XDG Base Directory Specification 0.8).

What is found there is booted, so it counts only if it is ours: where the variable
names a place that others can write to, ``/tmp`` for instance, a stranger may have
made the directory before us, with a kernel of his in it or with links to files of
ours to write to.
"""

from __future__ import annotations

import os

__all__ = ["cache_home", "is_ours", "own_cache"]

_NOWHERE = "/dev/null"
"""For who has no home: nothing is found below, and nothing can be made there."""

_OTHERS_WRITE = 0o002


def cache_home() -> str:
    """Where the cache is, whether it is there or not, and whoever's it is."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # relative paths are to be ignored, says the specification
        base = os.path.expanduser("~/.cache")
    return os.path.join(base if base.startswith("/") else _NOWHERE, "kvmkit")


def is_ours(path: str) -> bool:
    """Whether a directory, or the link to it, is this user's or root's, and closed to others.

    True when nothing is there, in a place where we may make it.
    """
    good = (os.geteuid(), 0)
    try:
        if os.lstat(path).st_uid not in good:
            return False
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return status.st_uid in good and not status.st_mode & _OTHERS_WRITE


def own_cache(room: str) -> str | None:
    """The directory ``room`` in the cache, which may not exist yet; None if it is not ours."""
    home = cache_home()
    return os.path.join(home, room) if is_ours(home) else None
