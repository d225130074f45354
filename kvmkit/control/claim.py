"""A VM's claim to its name: the directory ``NAME/`` and what is in it.

``pid`` holds the process's number and is locked (flock(2)) as long as the VM
lives; the kernel lets go of the lock however the process ends, so a dead VM is
known for sure. ``state`` is one word, ``info`` a JSON object that does not
change, ``qmp.sock`` the control socket. There is no lock above the directories:
whoever has got the lock of a ``pid`` file looks whether that file is still the
one in the directory, and begins anew if somebody has cleaned up meanwhile.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOTEMPTY
from fcntl import LOCK_EX, LOCK_NB, flock
from time import sleep

from kvmkit.control.directory import runtime_directory
from kvmkit.control.names import check_name, generate_name
from kvmkit.errors import PermissionTrouble, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

__all__ = ["Claim", "NameTaken", "claim_name", "is_alive", "remove_dead", "short_path"]

SOCKET = "qmp.sock"
PID = "pid"
STATE = "state"
INFO = "info"
_FILES = (SOCKET, INFO, INFO + ".new", STATE, PID)  # in the order of removal: the lock goes last

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LONGEST_SOCKET = 107  # bytes of sun_path before its zero byte (unix(7))
_STATE_SIZE = 16
_BACKLOG = 64
_PATIENCE = 50  # times 2 ms for somebody who is cleaning up
_MOST_TRIES = 1000


class NameTaken(UsageError):
    """A running VM has that name."""


class Claim:
    """The directory of one running VM; :meth:`release` gives it back."""

    def __init__(self, base: str, name: str, lock: int) -> None:
        self.base = base
        self.name = name
        self.socket: socket | None = None
        """Listens at :data:`SOCKET` for QMP clients."""
        self._lock = lock
        self._state = -1
        self._pid = os.getpid()

    @property
    def path(self) -> str:
        """The directory."""
        return os.path.join(self.base, self.name)

    def open(self) -> None:
        """Write the number, the state and bind the socket. Raises OSError."""
        from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket

        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % self._pid, 0)
        for name in _FILES[:-1]:  # of the name's last owner
            try:
                os.unlink(os.path.join(self.path, name))
            except FileNotFoundError:
                pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._state = os.open(os.path.join(self.path, STATE), flags, 0o600)
        self.set_state("starting")
        self.socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        with short_path(self.path, SOCKET) as address:
            self.socket.bind(address)
        self.socket.listen(_BACKLOG)

    def set_state(self, state: str) -> None:
        """One word for who lists the VMs. From any thread; never raises."""
        if self._state >= 0:
            try:
                os.pwrite(self._state, f"{state:<{_STATE_SIZE - 1}}\n".encode(), 0)
            except OSError:  # the file system is full
                pass

    def set_info(self, text: str) -> None:
        """Write the info file, whole or not at all. Never raises."""
        place = os.path.join(self.path, INFO)
        try:
            with open(place + ".new", "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(place + ".new", place)
        except OSError:  # somebody took the directory away; the VM runs on without
            pass

    def rename(self, name: str) -> None:
        """Take another name. Raises UsageError or NameTaken, and keeps the old one then."""
        check_name(name)
        if name == self.name:
            return
        new = os.path.join(self.base, name)
        remove_dead(new)
        try:
            if os.path.lexists(new):
                raise OSError(EEXIST, "")
            os.rename(self.path, new)
        except OSError as error:
            if error.errno in (EEXIST, ENOTEMPTY):
                raise _taken(name, new) from None
            raise UsageError(f"{self.name} cannot become {name}: {error.strerror}") from None
        self.name = name

    def release(self) -> None:
        """Close the socket and remove everything. Callable twice; never raises."""
        server, self.socket = self.socket, None
        if server is not None:
            server.close()
        state, self._state = self._state, -1
        if state >= 0:
            os.close(state)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            # a child of fork(2) has our descriptors, but the VM is not in it
            if os.getpid() == self._pid and _is_in_place(lock, self.path):
                _remove(self.path)
            os.close(lock)


def claim_name(name: str, *, insist: bool = True, base: str | None = None) -> Claim:
    """The directory for a VM that starts now; unless we ``insist``, of another name if need be.

    Raises UsageError for a bad name, NameTaken, and PermissionTrouble when the
    directory cannot be made.
    """
    check_name(name)
    base = base or runtime_directory(make=True)
    try:
        for tries in range(_MOST_TRIES):
            try:
                return _claim(base, name)
            except NameTaken:
                if insist:
                    raise
                name = generate_name(tries)
        raise UsageError(f"no free name found in {base} after {_MOST_TRIES} tries")
    except OSError as error:
        raise PermissionTrouble(
            f"no place for the VM's control socket: {error.filename or base}: {error.strerror}",
            "XDG_RUNTIME_DIR says where it is",
        ) from None


def _claim(base: str, name: str) -> Claim:
    path = os.path.join(base, name)
    lock = _lock(path, wait=True)
    if lock is None:
        raise _taken(name, path)
    claim = Claim(base, name, lock)
    try:
        claim.open()
    except BaseException:
        claim.release()
        raise
    return claim


def _taken(name: str, path: str) -> NameTaken:
    pid = read_pid(path)
    where = f" (process {pid})" if pid else ""
    return NameTaken(
        f"a VM named {name!r} is running{where}",
        f"kvmkit list shows all; kvmkit stop {name} ends it",
    )


def _lock(path: str, *, wait: bool) -> int | None:
    """The locked ``pid`` file of a directory, both made if need be; None: a VM has it."""
    patience = _PATIENCE
    while True:
        try:
            if wait:
                os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        try:
            lock = os.open(os.path.join(path, PID), _OPEN | os.O_CREAT, 0o600)
        except FileNotFoundError:
            if not wait:
                return None
            continue  # cleaned up between two steps
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            pid = read_pid(path)
            if not wait or not patience or (pid and _exists(pid)):
                return None
            patience -= 1  # somebody cleans up, or is about to write his number
            sleep(0.002)
            continue
        except BaseException:
            os.close(lock)
            raise
        if _is_in_place(lock, path):
            return lock
        os.close(lock)
        if not wait:
            return None


def is_alive(path: str) -> bool:
    """Whether the VM of this directory runs. Changes nothing there."""
    try:
        lock = os.open(os.path.join(path, PID), _OPEN & ~os.O_RDWR)
    except OSError:
        return False
    try:
        flock(lock, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        pid = read_pid(path)
        return pid is None or _exists(pid)
    finally:
        os.close(lock)
    return False


def remove_dead(path: str) -> bool:
    """Remove the directory of a VM that is no more; False if it lives or was none."""
    try:
        lock = _lock(path, wait=False)
        if lock is None:
            return False
        try:
            _remove(path)
        finally:
            os.close(lock)
    except OSError:
        return False
    return True


def read_pid(path: str) -> int | None:
    """What ``pid`` says, or None."""
    text = read_small(os.path.join(path, PID), 16).strip()
    return int(text) if text.isdigit() else None


def read_small(path: str, most: int) -> bytes:
    """A plain file's first bytes; b"" if it is none. No link, pipe or device is followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(fd, most)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    for name in _FILES:
        try:
            os.unlink(os.path.join(path, name))
        except OSError:
            pass
    try:
        os.rmdir(path)
    except OSError:  # somebody is just claiming it, or put something there
        pass


def _is_in_place(lock: int, path: str) -> bool:
    try:
        there = os.stat(os.path.join(path, PID), follow_symlinks=False)
    except OSError:
        return False
    ours = os.fstat(lock)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


class short_path:
    """A socket's address that fits: through an open directory when the path is too long."""

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._name = name
        self._fd = -1

    def __enter__(self) -> str:
        path = os.path.join(self._directory, self._name)
        if len(os.fsencode(path)) <= _LONGEST_SOCKET:
            return path
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._name}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
