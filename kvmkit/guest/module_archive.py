"""Modules for a guest as an archive behind the initramfs, kept in a cache.

The archive holds the modules, unpacked, where they would be in the kernel's own
``/lib/modules/RELEASE``, and ``/kvmkit/modules``: their paths in the order in
which the guest's first process loads them, one a line.

A run that asks for what an earlier one asked for reads one small index, and
looks whether the files it names are the same (``stat``).
"""

from __future__ import annotations

import os

from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvmkit.guest.modules import Module, ModuleTree

    PathLike = str | os.PathLike[str]

__all__ = ["cached_modules", "modules_archive"]

_KEEP = 8  # archives in the cache; the oldest go first
_VERSION = "1"  # of what is made of the same modules


def modules_archive(tree: ModuleTree, modules: Sequence[Module]) -> bytes:
    """A cpio archive with ``modules`` of ``tree``, to be loaded in this order.

    Raises FileTrouble for a module that cannot be read.
    """
    from kvmkit.guest.cpio import Archive
    from kvmkit.guest.modinfo import read_module

    archive = Archive()
    places = []
    for module in modules:
        places.append(f"lib/modules/{tree.release}/{module.place}")
        archive.file(places[-1], read_module(module.path))
    archive.file("kvmkit/modules", "".join(f"/{place}\n" for place in places).encode())
    return archive.finish()


def cached_modules(
    tree: ModuleTree, wanted: Iterable[str], cache: PathLike, *, optional: Iterable[str] = ()
) -> str | None:
    """The file in the directory ``cache`` with the modules of ``tree`` that are needed.

    Made when it is missing or a module has changed; None when all is built in. See
    :meth:`ModuleTree.resolve` for the names and errors. FileTrouble also when the
    cache cannot be written.
    """
    where = os.fspath(cache)
    request = _request(tree, sorted(set(wanted)), sorted(set(optional)))
    index = f"{where}/modules-{_short(request)}.index"
    found = _look_up(index, request, where)
    if found is not None:
        return found or None
    modules = tree.resolve(wanted, optional)
    try:
        return _fill(tree, modules, where, index, request)
    except OSError as error:
        raise FileTrouble(
            f"{error.filename or where}: {error.strerror}", "set XDG_CACHE_HOME elsewhere"
        ) from error


def _request(tree: ModuleTree, wanted: list[str], optional: list[str]) -> str:
    # What was asked for, as one line. The tree's lists change when a module comes or goes.
    place = os.path.realpath(tree.directory)
    lists = [_identity(f"{place}/modules.{name}") for name in ("dep", "order", "builtin")]
    return repr([_VERSION, place, tree.stated_release, lists, wanted, optional])


def _short(text: str) -> str:
    # A file's name for the text; importing a better digest would take longer than all the rest.
    import zlib

    data = text.encode(errors="surrogateescape")
    return f"{zlib.crc32(data):08x}{zlib.adler32(data):08x}"


def _identity(path: str) -> str:
    # Changes whenever the file's content may have changed; empty if there is no file.
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_dev:x}.{status.st_ino:x}.{status.st_size:x}.{status.st_ctime_ns:x}"


def _look_up(index: str, request: str, cache: str) -> str | None:
    # The archive, "" for "none is needed", None if there is nothing to go by.
    try:
        with open(index, encoding="utf-8", errors="surrogateescape") as file:
            asked, name, *files = file.read().split("\n")
    except (OSError, ValueError):
        return None
    if asked != request:  # another one with the same short name
        return None
    for line in files:
        identity, _, path = line.partition(" ")
        if identity != _identity(path):
            return None
    if not name:
        return ""
    return f"{cache}/{name}" if os.path.exists(f"{cache}/{name}") else None


def _fill(
    tree: ModuleTree, modules: list[Module], cache: str, index: str, request: str
) -> str | None:
    from hashlib import blake2b

    files = [f"{_identity(module.path)} {module.path}" for module in modules]
    content = "\0".join([_VERSION, tree.release, *files]).encode(errors="surrogateescape")
    digest = blake2b(content, digest_size=12).hexdigest()
    name = f"modules-{digest}.cpio" if modules else ""
    target = f"{cache}/{name}"
    os.makedirs(cache, exist_ok=True)
    if name and not os.path.exists(target):
        _write(target, modules_archive(tree, modules))
        try:
            _prune(cache)
        except OSError:
            pass  # another process prunes too
    text = "\n".join([request, name, *files])
    _write(index, text.encode(errors="surrogateescape"))
    return target if name else None


def _write(path: str, data: bytes) -> None:
    # Aside, then renamed: any number of processes may do this at once.
    aside = f"{os.path.dirname(path)}/.modules-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    finally:
        try:
            os.unlink(aside)
        except OSError:
            pass


def _prune(cache: str) -> None:
    # Archives, and indexes that nobody wrote for as many archives.
    entries = [entry for entry in os.scandir(cache) if entry.name.startswith("modules-")]
    for suffix, keep in ((".cpio", _KEEP), (".index", 4 * _KEEP)):
        some = [entry for entry in entries if entry.name.endswith(suffix)]
        some.sort(key=lambda entry: entry.stat().st_mtime_ns)
        for entry in some[:-keep]:
            os.unlink(entry.path)
