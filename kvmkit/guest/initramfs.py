"""The initial file system: busybox, its applets and the guest's first process.

A static busybox is a whole small Unix; the names it answers to become
symbolic links in ``/bin``, and ``/sbin``, ``/usr/bin`` and ``/usr/sbin`` are
the same directory. ``/init`` is the agent, or where that could not be built the
shell script ``init``. The result depends on the busybox and on the files of this
room only, so it is kept in a cache directory.
"""

from __future__ import annotations

import os

from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    PathLike = str | os.PathLike[str]

__all__ = ["agent_initramfs", "agent_program", "busybox_applets", "busybox_initramfs"]
__all__ += ["cached_initramfs"]

_ROOM = os.path.dirname(__file__)
_SHELL_INIT = f"{_ROOM}/init"
_AGENT = f"{_ROOM}/agent.elf"
_SOURCES = (f"{_ROOM}/initramfs.py", f"{_ROOM}/cpio.py")  # besides busybox and the init
_KEEP = 4  # archives in the cache; the oldest go first

# As fstab(5) has it; init mounts the entries in this order, /dev/pts separately because its
# directory must be made first.
_FSTAB = """\
proc /proc proc nosuid,nodev,noexec 0 0
sysfs /sys sysfs nosuid,nodev,noexec 0 0
devtmpfs /dev devtmpfs nosuid,mode=755 0 0
devpts /dev/pts devpts noauto,nosuid,noexec,gid=5,mode=620,ptmxmode=666 0 0
tmpfs /run tmpfs nosuid,nodev,mode=755 0 0
tmpfs /tmp tmpfs nosuid,nodev,mode=1777 0 0
"""

_ETC = {
    "fstab": _FSTAB,
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 kvmkit\n",
    "profile": "PS1='\\w \\$ '\nexport PS1\n",
}

# What busybox's udhcpc runs with what it was told; its own idea of where that is found.
_DHCP_SCRIPT = """\
#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
for one in $router; do ip route add default via "$one" dev "$interface" && break; done
: > /etc/resolv.conf
[ -z "$domain" ] || echo "search $domain" >> /etc/resolv.conf
for one in $dns; do echo "nameserver $one" >> /etc/resolv.conf; done
[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
"""
_DHCP_PLACES = ("etc/udhcpc/default.script", "usr/share/udhcpc/default.script")

# Elf64_Ehdr and Elf64_Phdr (System V ABI, "Object files")
_ELF_MAGIC = b"\x7fELF\x02\x01"
_EM_X86_64 = 62
_PT_INTERP = 3
_PHDR_SIZE = 56


def busybox_applets(image: bytes) -> list[str]:
    """The names that the busybox program ``image`` answers to.

    Busybox holds them sorted, each ended by a NUL and the last by another one
    (``applet_names``), and "[" or "[[" comes first in every build that has a
    shell. Returns an empty list for what is not such a program.
    """
    for first in (b"\0[\0[[\0", b"\0[\0", b"\0ash\0"):
        start = image.find(first)
        while start >= 0:
            end = image.find(b"\0\0", start + 1)
            names = image[start + 1 : end].split(b"\0") if 0 <= end - start < 8192 else []
            if b"mount" in names and b"sh" in names and names == sorted(names):
                return [name.decode("ascii", "replace") for name in names]
            start = image.find(first, start + 1)
    return []


def _check_static(path: PathLike, image: bytes) -> None:
    if not image.startswith(_ELF_MAGIC) or int.from_bytes(image[18:20], "little") != _EM_X86_64:
        raise FileTrouble(
            f"{path}: expected a program for x86-64 (an ELF file), found something else",
            "kvmkit image pull busybox-static",
        )
    table = int.from_bytes(image[32:40], "little")
    for index in range(int.from_bytes(image[56:58], "little")):
        header = image[table + index * _PHDR_SIZE :][:4]
        if int.from_bytes(header, "little") == _PT_INTERP:
            raise FileTrouble(
                f"{path}: expected a static program, found one that needs shared libraries",
                "kvmkit image pull busybox-static",
            )


def _read(path: PathLike) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise FileTrouble(f"{path}: {error.strerror}") from error


def agent_program() -> str | None:
    """The agent's file; None where it was not built."""
    return _AGENT if os.path.exists(_AGENT) else None


def busybox_initramfs(
    busybox: PathLike,
    files: Mapping[str, tuple[bytes, int]] | None = None,
    *,
    init: PathLike | None = None,
) -> bytes:
    """A cpio archive with ``busybox``, its applets and ``init``.

    ``init`` is the first process's file: the agent, if there is one, or the shell
    script. ``files`` are more files: path to content and mode. Raises FileTrouble
    when ``busybox`` cannot be read or is not a static busybox for x86-64.
    """
    return _assemble(busybox, _read(busybox), init or agent_program() or _SHELL_INIT, files or {})


def agent_initramfs() -> bytes | None:
    """A cpio archive with the agent alone, for a guest that has its programs elsewhere.

    None where the agent was not built.
    """
    from kvmkit.guest.cpio import Archive

    agent = agent_program()
    if agent is None:
        return None
    archive = Archive()
    archive.file("init", _read(agent), 0o755)
    for name in ("dev", "proc", "sys", "run", "tmp"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    return archive.finish()


def _assemble(
    path: PathLike, image: bytes, init: PathLike, files: Mapping[str, tuple[bytes, int]]
) -> bytes:
    from kvmkit.guest.cpio import Archive

    _check_static(path, image)
    applets = busybox_applets(image)
    if not applets:
        raise FileTrouble(
            f"{path}: expected a busybox with a shell, found another program",
            "kvmkit image pull busybox-static",
        )
    archive = Archive()
    archive.file("init", _read(init), 0o755)
    archive.file("bin/busybox", image, 0o755)
    for applet in applets:
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    archive.symlink("sbin", "bin")
    archive.symlink("usr/bin", "../bin")
    archive.symlink("usr/sbin", "../bin")
    for name in ("dev", "proc", "sys", "run", "mnt", "usr/lib", "var"):
        archive.directory(name)
    archive.directory("root", 0o700)
    archive.directory("tmp", 0o1777)
    archive.symlink("var/run", "../run")
    archive.symlink("var/tmp", "../tmp")
    # The kernel opens this as the first process's standard input and output.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    for name, text in _ETC.items():
        archive.file(f"etc/{name}", text.encode())
    archive.symlink("etc/mtab", "/proc/mounts")
    for name in _DHCP_PLACES:
        archive.file(name, _DHCP_SCRIPT.encode(), 0o755)
    for name, (content, mode) in files.items():
        archive.file(name, content, mode)
    return archive.finish()


def _identity(path: PathLike) -> str:
    # Changes whenever the file's content may have changed.
    status = os.stat(path)
    return f"{status.st_dev:x}.{status.st_ino:x}.{status.st_size:x}.{status.st_ctime_ns:x}"


def cached_initramfs(busybox: PathLike, cache: PathLike, *, init: PathLike | None = None) -> str:
    """The file in the directory ``cache`` with :func:`busybox_initramfs`; made when missing.

    The archive is named by the digest of its sources; a symbolic link named by
    what ``stat`` says of them saves reading busybox again. Everything is
    written aside and renamed, so any number of processes may do this at once.
    Raises FileTrouble as :func:`busybox_initramfs` does, and when the cache
    cannot be written.
    """
    try:
        first = init or agent_program() or _SHELL_INIT
        sources = "-".join(_identity(source) for source in (first, *_SOURCES))
        shortcut = f"{os.fspath(cache)}/initramfs-{_identity(busybox)}-{sources}"
    except OSError as error:
        raise FileTrouble(f"{error.filename}: {error.strerror}") from error
    try:
        if os.path.exists(shortcut):
            return f"{os.fspath(cache)}/{os.readlink(shortcut)}"
        return _fill(busybox, first, os.fspath(cache), shortcut)
    except OSError as error:
        where = error.filename or cache
        raise FileTrouble(f"{where}: {error.strerror}", "set XDG_CACHE_HOME elsewhere") from error


def _fill(busybox: PathLike, init: PathLike, cache: str, shortcut: str) -> str:
    from hashlib import blake2b

    image = _read(busybox)
    digest = blake2b(image, digest_size=12)
    for source in (init, *_SOURCES):
        digest.update(_read(source))
    name = f"initramfs-{digest.hexdigest()}.cpio"
    target = f"{cache}/{name}"
    aside = f"{cache}/.initramfs-{os.getpid()}-{os.urandom(4).hex()}"
    os.makedirs(cache, exist_ok=True)
    try:
        if not os.path.exists(target):
            with open(aside, "wb") as file:
                file.write(_assemble(busybox, image, init, {}))
            os.replace(aside, target)
            try:
                _prune(cache)
            except OSError:
                pass  # another process prunes too
        os.symlink(name, aside)
        os.replace(aside, shortcut)
    finally:
        try:
            os.unlink(aside)
        except OSError:
            pass
    return target


def _prune(cache: str) -> None:
    # A guest that is just being loaded from a removed file still has it open.
    entries = [entry for entry in os.scandir(cache) if entry.name.startswith("initramfs-")]
    archives = [entry for entry in entries if not entry.is_symlink()]
    archives.sort(key=lambda entry: entry.stat().st_mtime_ns)
    stale = archives[:-_KEEP]
    gone = {entry.name for entry in stale}
    for entry in entries:
        if entry.name in gone or (entry.is_symlink() and os.readlink(entry.path) in gone):
            os.unlink(entry.path)
