"""The guest's root and shares: which directories of the host are where in the guest.

A root from the host is read through a share and never written: an overlay (Linux
``Documentation/filesystems/overlayfs.rst``) keeps what the guest changes in a tmpfs of
its own. Other shares lie at the path they have on the host. The guest's first process
makes the mounts in the order in which they stand here (``docs/guest-protocol.md``).
"""

from __future__ import annotations

from kvmkit.errors import UsageError
from kvmkit.frozen import Record
from kvmkit.guest.instructions import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Plan", "Shared", "plan_root"]

LOWER = "/kvmkit/lower"
OVER = "/kvmkit/over"
ROOT = "/kvmkit/root"
ROOT_TAG = "kvmkit-root"

_KERNELS = ("/dev", "/proc", "/sys", "/run")
"""The guest's own, which move from its first root to the other."""


class Shared(Record):
    """A directory of the host's, and the tag under which the guest finds it."""

    path: str
    tag: str
    read_only: bool = True


class Plan(Record):
    """What the machine gets, and what its first process does with it."""

    shares: tuple[Shared, ...]
    mounts: tuple[Mount, ...]
    root: str | None

    @property
    def keeps(self) -> bool:
        """Whether something that the guest writes is to reach the host."""
        return not all(share.read_only for share in self.shares)


def plan_root(
    root: str | None, shares: Iterable[tuple[str, bool]] = (), *, temporary: bool = True
) -> Plan:
    """The plan for ``root``, a directory of the host or None for what the initramfs holds.

    ``shares`` are directories, absolute and without symbolic links on the way, and
    whether each is read-only; the last word on a directory counts. ``temporary`` says that
    the root has a directory ``/tmp``. Raises UsageError for the root as such, or one of the
    guest kernel's own directories, as a share.
    """
    shared: list[Shared] = []
    mounts: list[Mount] = []
    if root is not None:
        shared.append(Shared(root, ROOT_TAG))
        layers = f"lowerdir={LOWER},upperdir={OVER}/upper,workdir={OVER}/work"
        mounts.append(Mount(LOWER, "virtiofs", ROOT_TAG, "ro"))
        mounts.append(Mount(OVER, "tmpfs", "tmpfs", "mode=755"))
        mounts.append(Mount(ROOT, "overlay", "root", layers))
        if temporary:
            # The first process takes its /tmp along to the root. What is there on the host
            # is wanted: build trees, and what other programs have put there for this one.
            mounts.append(Mount("/tmp", "none", f"{ROOT}/tmp", "bind"))
    # Sorted, so that a directory comes before those in it.
    for number, (path, read_only) in enumerate(sorted(dict(shares).items())):
        if path == "/" or any(path == own for own in _KERNELS):
            raise UsageError(
                f"{path} cannot be shared: the guest has its own", "share directories in it"
            )
        tag = f"kvmkit-{number}"
        shared.append(Shared(path, tag, read_only))
        mounts.append(Mount(_place(path, root), "virtiofs", tag, "ro" if read_only else "rw"))
    return Plan(tuple(shared), tuple(mounts), None if root is None else ROOT)


def _place(path: str, root: str | None) -> str:
    """Where the first process mounts it, before the other root becomes the root."""
    own = any(path.startswith(f"{place}/") for place in (*_KERNELS, "/tmp"))
    return path if own or root is None or path == "/tmp" else ROOT + path
