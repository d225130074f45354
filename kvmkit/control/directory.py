"""Where the VMs of a user are: ``$XDG_RUNTIME_DIR/kvmkit`` (XDG Base Directory 0.8).

Without that variable it is ``/run/user/UID/kvmkit``, and where the system has no
such place, ``/tmp/kvmkit-UID``. ``/tmp`` is everybody's: a directory there counts
only if it is ours and closed to others.
"""

from __future__ import annotations

import os
import stat

from kvmkit.errors import PermissionTrouble

__all__ = ["other_directories", "runtime_directory", "trusted_owner"]

_SHARED = "/tmp"
_RUN = "/run/user"


def runtime_directory(*, make: bool = False) -> str:
    """This user's directory of VMs; with ``make`` it is there afterwards, mode 0700.

    Raises PermissionTrouble when there is no place for it, or a stranger's
    directory stands there.
    """
    user = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/"):  # relative paths are to be ignored, says the specification
        path = os.path.join(given, "kvmkit")
    elif _is_own(f"{_RUN}/{user}"):
        path = f"{_RUN}/{user}/kvmkit"
    else:
        path = f"{_SHARED}/kvmkit-{user}"
    if make:
        _make(path, given)
    return path


def _make(path: str, given: str) -> None:
    hint = "set XDG_RUNTIME_DIR to a directory of your own" + (", or unset it" if given else "")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        what = f"no place for the VM's control socket: {path}: {error.strerror}"
        raise PermissionTrouble(what, hint) from None
    if not _is_own(path):
        raise PermissionTrouble(
            f"{path} must be a directory of this user's that nobody else can write to", hint
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionTrouble(
            f"no place for the VM's control socket: {path} is not writable", hint
        )


def _is_own(path: str) -> bool:
    """A directory, no link to one, of ours, that only we can write to."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    private = not stat.S_IMODE(status.st_mode) & 0o022
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and private


def other_directories() -> list[tuple[int, str]]:
    """For root: the other users' directories as ``(uid, path)``; empty for anybody else."""
    if os.geteuid() != 0:
        return []
    own = runtime_directory()
    found: list[tuple[int, str]] = []
    for parent, prefix, suffix in ((_RUN, "", "/kvmkit"), (_SHARED, "kvmkit-", "")):
        try:
            entries = os.listdir(parent)
        except OSError:
            continue
        for entry in sorted(entries):
            number = entry.removeprefix(prefix)
            if not (entry.startswith(prefix) and number.isascii() and number.isdigit()):
                continue
            path = f"{parent}/{entry}{suffix}"
            if path != own and trusted_owner(path) == int(number):
                found.append((int(number), path))
    return found


def trusted_owner(path: str) -> int | None:
    """The user of a directory that nobody else can write to; None if it is not one."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o022:
        return None
    return status.st_uid
