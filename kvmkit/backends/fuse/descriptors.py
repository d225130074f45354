"""File descriptors that several threads use, and how many a share may have.

A descriptor's number may be another file as soon as it is closed. So nobody closes
one: whoever uses it holds the object, and the last to let go closes.
"""

from __future__ import annotations

from os import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Descriptor", "descriptor_budget"]

_WANTED = 1 << 16
_SHARE_OF_ALL = 8
_MOST = 8192


class Descriptor:
    """Owns ``fd``, which is closed with the object."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = close) -> None:
        try:
            close(self.fd)
        except OSError:  # an error of an earlier write, of a network's file system
            pass


def descriptor_budget() -> int:
    """How many descriptors a share may keep of each sort, known files and open ones.

    Raises this process's soft limit on open files towards the hard one, as servers
    of file systems do: a guest that has a system's root here opens hundreds.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # a container may forbid it
            pass
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(16, min(soft // _SHARE_OF_ALL, _MOST))
