"""Where a kernel is looked for when none was named.

The order is kvmtool's (``builtin-run.c``), which suits those who work on Linux:
the tree one stands in, then what the host boots. Between the two comes an
image that was pulled.
"""

from __future__ import annotations

import os

from kvmkit.errors import BadKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    PathLike = str | os.PathLike[str]

__all__ = ["candidates", "find_kernel"]

IN_TREE = ("arch/x86/boot/bzImage", "bzImage")
OF_HOST = ("vmlinuz-{release}", "bzImage-{release}")


def find_kernel(
    pulled: Sequence[PathLike] = (), *, tree: PathLike = "", boot: PathLike = "/boot"
) -> str:
    """The first kernel there is: in the current directory, among ``pulled``, in ``/boot``.

    ``tree`` and ``boot`` stand for the current directory and ``/boot``. A kernel that is there
    but may not be read is passed over, and the error says so. Raises BadKernel with where it
    looked.
    """
    unreadable: list[str] = []
    looked: list[str] = []
    for path in candidates(pulled, tree=tree, boot=boot):
        if os.path.isfile(path):
            if os.access(path, os.R_OK):
                return path
            unreadable.append(path)
        looked.append(path)
    message = f"no kernel found; looked for {', '.join(looked)}"
    if unreadable:
        message += f" (there, but not readable by you: {', '.join(unreadable)})"
        raise BadKernel(message, f"sudo chmod a+r {unreadable[0]}, or: kvmkit image pull")
    raise BadKernel(message, "Name one with -k, or fetch one: kvmkit image pull")


def candidates(
    pulled: Sequence[PathLike] = (), *, tree: PathLike = "", boot: PathLike = "/boot"
) -> Iterator[str]:
    """The places a kernel may be at, in the order they are tried."""
    release = os.uname().release
    for name in IN_TREE:
        yield os.path.join(tree, name)
    for path in pulled:
        yield os.fspath(path)
    for name in OF_HOST:
        yield os.path.join(boot, name.format(release=release))
