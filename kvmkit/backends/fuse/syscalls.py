"""System calls that Python's ``os`` does not have, or not as a server needs them.

Linux manual pages, section 2: openat2, getdents64, renameat2, utimensat, fallocate,
statx, fstatfs, syncfs, setfsuid, setfsgid, capset. All raise OSError. ctypes is
imported when the first of them is called, which is when a guest mounts a share.
"""

from __future__ import annotations

import os
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

__all__ = [
    "UTIME_NOW",
    "UTIME_OMIT",
    "act_as",
    "act_as_self",
    "beneath",
    "fallocate",
    "filesystem_type",
    "getdents",
    "renameat2",
    "statx",
    "syncfs",
    "utimensat",
]

_OPENAT2: Final = 437  # x86-64, as the others of its age the same on all architectures
_OPEN_HOW = Struct("<QQQ")  # flags, mode, resolve

# linux/openat2.h
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_HOW = _OPEN_HOW.pack(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE)

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
_TIMES = Struct("<qqqq")

_AT_EMPTY_PATH: Final = 0x1000
_STATX_SIZE: Final = 256
_STATFS_SIZE: Final = 256  # struct statfs has 120 bytes on x86-64

# linux/capability.h
_CAP_VERSION_3: Final = 0x2008_0522
_CAPS_OF_FILES: Final = 0x0000_000E  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
_CAP_DATA = Struct("<IIIIII")  # effective, permitted, inheritable, twice

_calls: dict[str, Any] = {}


def _call(name: str) -> Any:
    """The C library's function; all are looked up at the first call."""
    if not _calls:
        from ctypes import CDLL, c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_void_p

        library = CDLL(None, use_errno=True)
        shapes: dict[str, tuple[Any, ...]] = {
            "syscall": (c_long, c_long, c_char_p, c_char_p, c_size_t),
            "getdents64": (c_int, c_void_p, c_size_t),
            "renameat2": (c_int, c_char_p, c_int, c_char_p, c_uint),
            "utimensat": (c_int, c_char_p, c_char_p, c_int),
            "fallocate": (c_int, c_int, c_int64, c_int64),
            "statx": (c_int, c_char_p, c_int, c_uint, c_void_p),
            "fstatfs": (c_int, c_void_p),
            "syncfs": (c_int,),
            "setfsuid": (c_uint,),
            "setfsgid": (c_uint,),
            "capget": (c_char_p, c_void_p),
            "capset": (c_char_p, c_char_p),
        }
        found = {}
        for known, arguments in shapes.items():
            function = getattr(library, known)
            function.argtypes = arguments
            found[known] = function
        found["syscall"].restype = c_long
        _calls.update(found)
    return _calls[name]


def _failed() -> OSError:
    from ctypes import get_errno

    number = get_errno()
    return OSError(number, os.strerror(number))


def _buffer(size: int) -> Any:
    from ctypes import create_string_buffer

    return create_string_buffer(size)


def beneath(directory: int, name: bytes) -> int:
    """An O_PATH descriptor of ``name`` in ``directory``; a symbolic link is itself opened.

    The kernel refuses to leave the directory, whatever the name (openat2(2)).
    """
    fd: int = _call("syscall")(_OPENAT2, directory, name, _HOW, len(_HOW))
    if fd < 0:
        error = _failed()
        if error.errno not in (38, 1):  # ENOSYS, EPERM: an old kernel, a filter that knows it not
            raise error
        if name in (b"..", b".", b"") or b"/" in name:
            raise OSError(18, "EXDEV")
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    return fd


def getdents(fd: int, size: int) -> bytes:
    """The next records (struct linux_dirent64) of a directory; b"" at its end."""
    buffer = _buffer(size)
    got = _call("getdents64")(fd, buffer, size)
    if got < 0:
        raise _failed()
    found: bytes = buffer.raw[:got]
    return found


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename, with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    if _call("renameat2")(old_dir, old, new_dir, new, flags):
        raise _failed()


def utimensat(directory: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times, each as seconds and nanoseconds; the latter may be UTIME_NOW or UTIME_OMIT."""
    if _call("utimensat")(directory, name, _TIMES.pack(*atime, *mtime), 0):
        raise _failed()


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2) with its modes."""
    if _call("fallocate")(fd, mode, offset, size):
        raise _failed()


def statx(fd: int, mask: int) -> bytes:
    """struct statx of what an O_PATH descriptor is."""
    buffer = _buffer(_STATX_SIZE)
    if _call("statx")(fd, b"", _AT_EMPTY_PATH, mask, buffer):
        raise _failed()
    found: bytes = buffer.raw
    return found


def filesystem_type(fd: int) -> int:
    """The magic number of the file system (statfs(2), linux/magic.h)."""
    buffer = _buffer(_STATFS_SIZE)
    if _call("fstatfs")(fd, buffer):
        raise _failed()
    return int.from_bytes(buffer.raw[:8], "little")


def syncfs(fd: int) -> None:
    """Write all of a file system's dirty data out."""
    if _call("syncfs")(fd):
        raise _failed()


def act_as(uid: int, gid: int) -> None:
    """Let this thread make files as ``uid`` and ``gid``, keeping root's access to files.

    For a server that is root; undo it with :func:`act_as_self`. setfsuid(2) drops the
    capabilities over files, which the guest's own kernel has checked already, with its
    supplementary groups, which we do not know: they are taken up again. Raises
    PermissionError if the ids cannot be had.
    """
    setfsuid, setfsgid = _call("setfsuid"), _call("setfsgid")
    setfsgid(gid)
    setfsuid(uid)
    # Both return what was before, and -1 is no id: so are they asked.
    if setfsuid(0xFFFF_FFFF) & 0xFFFF_FFFF != uid or setfsgid(0xFFFF_FFFF) & 0xFFFF_FFFF != gid:
        act_as_self()
        raise PermissionError(1, "EPERM")
    header = _CAP_VERSION_3.to_bytes(4, "little") + bytes(4)
    buffer = _buffer(_CAP_DATA.size)
    if _call("capget")(header, buffer) == 0:
        effective, permitted, *rest = _CAP_DATA.unpack(buffer.raw)
        effective |= permitted & _CAPS_OF_FILES
        _call("capset")(header, _CAP_DATA.pack(effective, permitted, *rest))


def act_as_self() -> None:
    """Undo :func:`act_as`."""
    _call("setfsuid")(os.geteuid())
    _call("setfsgid")(os.getegid())
