"""Kernels and busybox from Debian packages, kept in the user's cache.

An image is a directory ``$XDG_CACHE_HOME/kvmkit/images/PACKAGE`` with

``vmlinuz``, ``config``, ``System.map``, ``modules/``
    of a ``linux-image-*`` package (``modules`` is its ``/lib/modules/RELEASE``),
``busybox``
    of ``busybox-static``,
``about``
    package, version and kernel release, a ``Key: value`` line each.

A meta package such as ``linux-image-cloud-amd64`` becomes a symbolic link to
the image of the kernel it stands for. Everything is written aside and renamed;
any number of processes may pull at once.
"""

from __future__ import annotations

import os

from kvmkit.cache_home import cache_home, is_ours
from kvmkit.errors import FileTrouble, KvmkitError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kvmkit.packages import Apt, Package

__all__ = [
    "Image",
    "NoSuchImage",
    "default_busybox",
    "default_image",
    "get_image",
    "images_directory",
    "list_images",
    "pull",
    "remove",
]

DEFAULT_NAMES = ("linux-image-cloud-amd64", "linux-image-amd64")
"""What :func:`default_image` looks for first: the cloud kernel starts fastest."""

_PARTS = ("vmlinuz", "config", "System.map", "modules", "busybox")
_META_DEPTH = 3
_ASIDE = ".aside-"


class NoSuchImage(KvmkitError):
    """An image that was not pulled."""

    exit_code = 116


class Image(Record):
    """A pulled package. ``path`` is its directory; a part it lacks is None.

    ``release`` is the kernel's, as in ``uname -r``; ``aliases`` are the meta
    packages that led to it.
    """

    name: str
    version: str
    release: str
    path: str
    aliases: tuple[str, ...] = ()

    def _part(self, name: str) -> str | None:
        path = f"{self.path}/{name}"
        return path if os.path.exists(path) else None

    @property
    def kernel(self) -> str | None:
        """The bzImage."""
        return self._part("vmlinuz")

    @property
    def config(self) -> str | None:
        """The kernel's configuration."""
        return self._part("config")

    @property
    def system_map(self) -> str | None:
        """The kernel's symbols; in newer packages a file that says where they are."""
        return self._part("System.map")

    @property
    def modules(self) -> str | None:
        """The directory of modules, ``/lib/modules/RELEASE`` of the package."""
        return self._part("modules")

    @property
    def busybox(self) -> str | None:
        """The busybox program."""
        return self._part("busybox")

    def size(self) -> int:
        """Bytes on disk."""
        return sum(
            os.lstat(os.path.join(directory, name)).st_blocks * 512
            for directory, _, files in os.walk(self.path)
            for name in files
        )


def _cache() -> str:
    home = cache_home()
    if not is_ours(home):
        raise FileTrouble(
            f"{home} is another user's, or others can write to it",
            "set XDG_CACHE_HOME to a directory of your own",
        )
    return home


def images_directory() -> str:
    """Where the images are: ``$XDG_CACHE_HOME/kvmkit/images``. It may not exist yet.

    Raises FileTrouble where it is not this user's own.
    """
    return f"{_cache()}/images"


# -- what there is ---------------------------------------------------------------------------


def _load(name: str, aliases: tuple[str, ...] = ()) -> Image | None:
    path = f"{images_directory()}/{name}"
    try:
        with open(f"{path}/about", encoding="utf-8") as file:
            about = dict(line.rstrip("\n").partition(": ")[::2] for line in file)
    except OSError:
        return None
    return Image(name, about.get("Version", ""), about.get("Release", ""), path, aliases)


def _aliases() -> dict[str, str]:
    # Meta package to image.
    with _scan() as entries:
        return {entry.name: os.readlink(entry.path) for entry in entries if entry.is_symlink()}


def _scan() -> Any:
    from contextlib import nullcontext

    try:
        return os.scandir(images_directory())
    except (FileNotFoundError, NotADirectoryError):
        return nullcontext(())
    except OSError as error:
        raise FileTrouble(f"{images_directory()}: {error.strerror}") from error


def list_images() -> list[Image]:
    """All pulled images, by name. Raises FileTrouble when their directory cannot be read."""
    aliases = _aliases()
    with _scan() as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and not entry.is_symlink()
        )
    found = (
        _load(name, tuple(sorted(alias for alias, target in aliases.items() if target == name)))
        for name in names
    )
    return [image for image in found if image is not None]


def get_image(name: str) -> Image:
    """The image of that name, or that a meta package of that name led to.

    Raises NoSuchImage, with near matches, when it was not pulled.
    """
    for image in list_images():
        if name == image.name or name in image.aliases:
            return image
    import difflib

    known = [known for image in list_images() for known in (image.name, *image.aliases)]
    near = difflib.get_close_matches(name, known, 3)
    hint = f"Near matches: {', '.join(near)}" if near else f"kvmkit image pull {name}"
    raise NoSuchImage(f"there is no image {name}", hint)


def default_image() -> Image | None:
    """The kernel to boot when none was named: the cloud kernel, the normal one, or the newest.

    None when no kernel was pulled.
    """
    base = images_directory()
    for name in DEFAULT_NAMES:
        try:
            image = _load(os.readlink(f"{base}/{name}"), (name,))
        except OSError:
            continue
        if image is not None and image.kernel:
            return image
    kernels = [image for image in list_images() if image.kernel]
    return max(kernels, key=lambda image: os.stat(image.path).st_mtime_ns, default=None)


def default_busybox() -> str | None:
    """A pulled busybox, or the host's (which may not be static); None when there is neither."""
    for path in (f"{images_directory()}/busybox-static/busybox", "/bin/busybox"):
        if os.access(path, os.R_OK):
            return path
    return None


# -- pull and remove -------------------------------------------------------------------------


def pull(package: str, progress: Callable[[str], None] | None = None) -> Image:
    """Fetch the Debian package of exactly that name, unless its newest version is here.

    ``progress`` gets a line of text now and then, several times a second while
    something takes long. Raises PackageTrouble (no such package, no network,
    no apt, nothing bootable in it) and FileTrouble (the cache cannot be
    written).
    """
    from kvmkit.packages import check_name

    check_name(package)
    tell = progress or (lambda text: None)
    base = images_directory()
    try:
        os.makedirs(base, exist_ok=True)
        return _pull(package, base, tell)
    except OSError as error:
        where = error.filename or base
        raise FileTrouble(
            f"cannot keep {package}: {where}: {error.strerror or error}",
            "Set XDG_CACHE_HOME to a directory with room.",
        ) from error


def _pull(name: str, base: str, tell: Callable[[str], None]) -> Image:
    from kvmkit.packages import PackageTrouble

    tell(f"looking up {name}")
    apt, package = _resolve(name, tell, stale=False)
    try:
        _install(apt, package, base, tell)
    except PackageTrouble as trouble:
        # Lists that are too old name files which the mirrors have no more.
        if "404" not in str(trouble):
            raise
        apt, package = _resolve(name, tell, stale=True)
        _install(apt, package, base, tell)
    if name != package.name:
        aside = f"{base}/{_ASIDE}{name}@{os.urandom(6).hex()}"
        os.symlink(package.name, aside)
        os.replace(aside, f"{base}/{name}")
    return get_image(package.name)


def _resolve(name: str, tell: Callable[[str], None], *, stale: bool) -> tuple[Apt, Package]:
    # From a meta package to the package with the kernel in it.
    from kvmkit.packages import PackageTrouble, find

    wanted = name
    for _ in range(_META_DEPTH):
        apt, package = find(wanted, f"{_cache()}/apt", tell, stale=stale)
        kernels = [other for other in package.depends if other.startswith("linux-image-")]
        if not kernels:
            return apt, package
        wanted = kernels[0]
    raise PackageTrouble(f"{name} depends on one package after the other, but on no kernel")


def _install(apt: Apt, package: Package, base: str, tell: Callable[[str], None]) -> None:
    with _lock(base, package.name, tell):
        image = _load(package.name)
        if image is not None and image.version == package.version:
            return
        import shutil
        import tempfile

        from kvmkit.packages import download, unpack

        prefix = f"{_ASIDE}{package.name}@"
        for entry in os.listdir(base):
            if entry.startswith(prefix):  # of a process that died: this one holds the lock
                shutil.rmtree(f"{base}/{entry}", ignore_errors=True)
        aside = tempfile.mkdtemp(prefix=prefix, dir=base)
        try:
            for directory in ("deb", "files", "image"):
                os.mkdir(f"{aside}/{directory}")
            deb = download(apt, package, f"{aside}/deb", tell)
            unpack(deb, f"{aside}/files", tell)
            _arrange(package, f"{aside}/files", f"{aside}/image")
            target = f"{base}/{package.name}"
            if os.path.lexists(target):
                os.rename(target, f"{aside}/old")
            os.rename(f"{aside}/image", target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _arrange(package: Package, files: str, image: str) -> None:
    # Move what we keep of a package's files to its place in the image.
    from kvmkit.packages import PackageTrouble

    release = ""
    for name in sorted(os.listdir(f"{files}/boot")) if os.path.isdir(f"{files}/boot") else ():
        part, dash, version = name.partition("-")
        if dash and part in _PARTS:
            os.rename(f"{files}/boot/{name}", f"{image}/{part}")
            release = version if part == "vmlinuz" else release
    for place in ("lib/modules", "usr/lib/modules"):
        if release and os.path.isdir(f"{files}/{place}/{release}"):
            os.rename(f"{files}/{place}/{release}", f"{image}/modules")
    for place in ("bin/busybox", "usr/bin/busybox"):
        if os.path.isfile(f"{files}/{place}"):
            os.rename(f"{files}/{place}", f"{image}/busybox")
    if not os.path.exists(f"{image}/vmlinuz") and not os.path.exists(f"{image}/busybox"):
        raise PackageTrouble(
            f"{package.name} holds neither a kernel nor a busybox",
            "Packages with a kernel are called linux-image-*.",
        )
    with open(f"{image}/about", "w", encoding="utf-8") as file:
        file.write(f"Package: {package.name}\nVersion: {package.version}\nRelease: {release}\n")


def _lock(base: str, name: str, tell: Callable[[str], None]) -> Any:
    # One process at a time works on an image; the lock goes with the process.
    from contextlib import contextmanager

    @contextmanager
    def locked() -> Iterator[None]:
        import fcntl

        with open(f"{base}/.lock-{name}", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"waiting for another process that fetches {name}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return locked()


def remove(name: str) -> Image:
    """Delete an image, or what a meta package led to, and all names that lead to it.

    Returns what was removed. Raises NoSuchImage, and FileTrouble when it
    cannot be deleted.
    """
    import shutil

    image = get_image(name)
    base = images_directory()
    aside = f"{base}/{_ASIDE}{image.name}@{os.urandom(6).hex()}"
    try:
        with _lock(base, image.name, lambda text: None):
            for alias in image.aliases:
                os.unlink(f"{base}/{alias}")
            os.rename(image.path, aside)
            shutil.rmtree(aside)
    except OSError as error:
        raise FileTrouble(f"cannot remove {image.name}: {error.strerror}") from error
    return image
