"""Warm starts: guests that were booted before, kept where they wait for orders.

One snapshot for each kernel, initramfs, command line, size and version of kvmkit, in
``$XDG_CACHE_HOME/kvmkit/warm/KEY/snapshot``, named by the digest of all that. What is
longest unused is removed when they take more than :data:`LIMIT`. A snapshot that cannot
be restored (of another build, damaged) is booted anew.
"""

from __future__ import annotations

import os

from kvmkit.cache_home import own_cache
from kvmkit.errors import FileTrouble
from kvmkit.snapshot.format import is_snapshot, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.snapshot.ready import ReadyVM

__all__ = ["LIMIT", "Kept", "clear", "kept", "warm_vm"]

LIMIT = 1 << 30
"""Bytes on disk that all of them may take."""

_SNAPSHOT = "snapshot"


class Kept:
    """One of them: its directory, bytes on disk, and when it was used last (seconds since 1970)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = sum(
            os.stat(os.path.join(folder, name)).st_blocks * 512
            for folder, _, names in os.walk(path)
            for name in names
        )
        self.used = os.stat(path).st_mtime

    def remove(self) -> None:
        """Remove it. Raises FileTrouble."""
        snapshot = os.path.join(self.path, _SNAPSHOT)
        if is_snapshot(snapshot):
            remove(snapshot)
        try:
            for name in os.listdir(self.path):
                os.unlink(os.path.join(self.path, name))
            os.rmdir(self.path)
        except OSError as error:
            raise FileTrouble(f"{self.path} cannot be removed: {error.strerror}") from None


def kept() -> list[Kept]:
    """All there are, the one that was used last first."""
    home = own_cache("warm")
    try:
        names = os.listdir(home) if home is not None else []
    except OSError:
        return []
    assert home is not None or not names
    found = []
    for name in names:
        try:
            found.append(Kept(os.path.join(home or "", name)))
        except OSError:
            continue  # somebody removes it
    return sorted(found, key=lambda each: -each.used)


def clear() -> int:
    """Remove all; how many there were. Raises FileTrouble."""
    all_of_them = kept()
    for each in all_of_them:
        each.remove()
    return len(all_of_them)


def warm_vm(kernel: str, *, name: str | None, timeout: float | None, **options: Any) -> ReadyVM:
    """A running guest that waits for orders: restored, or booted and kept if there is none.

    ``options`` are those of :class:`kvmkit.VM` that the guest is booted with. Raises
    FileTrouble without a cache that is ours, and what booting raises.
    """
    from fcntl import LOCK_EX, flock

    from kvmkit.errors import BadSnapshot, EngineUnavailable
    from kvmkit.snapshot.ready import boot, restored

    home = own_cache("warm")
    if home is None:
        raise FileTrouble("there is no cache directory of ours to keep warm guests in")
    place = os.path.join(home, _key(kernel, options))
    snapshot = os.path.join(place, _SNAPSHOT)
    again = {"name": name, "timeout": timeout}
    if is_snapshot(snapshot):
        try:
            os.utime(place)
            return restored(snapshot, **again)
        except (BadSnapshot, EngineUnavailable):
            pass  # of another build of ours, or damaged
    try:
        os.makedirs(place, 0o700, exist_ok=True)
        with open(os.path.join(place, "lock"), "w") as lock:
            flock(lock, LOCK_EX)  # several that start at once boot one
            with boot(kernel, place, **options) as vm:
                vm.snapshot(snapshot)
    except OSError as error:
        raise FileTrouble(f"{place}: {error.strerror}") from None
    _prune(place)
    return restored(snapshot, **again)


def _prune(newest: str) -> None:
    total = 0
    for each in kept():
        total += each.size
        if total > LIMIT and each.path != newest:
            try:
                each.remove()
            except FileTrouble:
                pass


def _key(kernel: str, options: dict[str, Any]) -> str:
    """Of all that makes a guest what it is when it takes its first order."""
    from hashlib import sha256

    from kvmkit import __version__
    from kvmkit.guest.initramfs import agent_program
    from kvmkit.images import default_busybox

    facts: list[Any] = [__version__, sorted(options.items())]
    for path in (kernel, default_busybox(), agent_program()):
        if path is None:
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise FileTrouble(f"{path}: {error.strerror}") from None
        facts.append((os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return sha256(repr(facts).encode()).hexdigest()[:24]
