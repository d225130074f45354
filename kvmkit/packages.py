"""Debian packages by exact name, fetched and unpacked without root.

``apt-get download`` needs no root, only package lists; where the host has
none (containers often do not) or only old ones, private lists are kept in a
directory of ours: apt.conf(5), ``Dir::State`` and ``Dir::Cache``. A package
is an ``ar`` archive with a compressed tar file in it: deb(5).

apt takes a name that does not exist and has regular expression characters in
it as a pattern, and then fetches all that match; so ``apt-get download`` gets
only what ``apt-cache show`` has shown under exactly that name.
"""

from __future__ import annotations

import os
import time

from kvmkit.errors import KvmkitError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Package", "PackageTrouble", "check_name", "download", "find", "unpack"]

_LISTS_GOOD_FOR = 24 * 3600.0  # seconds
_FORCED_GOOD_FOR = 60.0  # seconds, when the mirror has proved lists to be old
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+-.")  # Debian Policy 5.6.1
_NEAR_MATCHES = 4
_POLL = 0.1  # seconds between two looks at a download's size

_NO_NETWORK = (
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Cannot initiate the connection",
    "Connection failed",
    "Connection timed out",
    "Connection refused",
    "Network is unreachable",
)
_NO_SPACE = ("No space left on device", "enough free space")


class PackageTrouble(KvmkitError):
    """A package that does not exist, cannot be fetched or does not hold what was expected."""

    exit_code = 116


class Package(Record):
    """What apt knows of a package: ``depends`` are names only, ``size`` is in bytes."""

    name: str
    version: str
    depends: tuple[str, ...]
    size: int


def check_name(name: str) -> str:
    """``name``, if it can be a package's; raises PackageTrouble for anything else."""
    if len(name) < 2 or not name[0].isalnum() or not _NAME_CHARACTERS.issuperset(name):
        raise PackageTrouble(
            f"not a package name: {name!r}",
            "A name has lower-case letters, digits, and + - . only; patterns are not taken.",
        )
    if name[-1] in "+-":  # apt's way to say "install" and "remove"
        raise PackageTrouble(f"not a package name: {name!r}; a name does not end in + or -")
    return name


def _run(
    command: Sequence[str], watch: Callable[[], None], cwd: str | None = None
) -> tuple[int, str, str]:
    # Exit status, output and errors of a tool of the host; ``watch`` is called while it runs.
    import subprocess

    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": ""},  # its messages are read below
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise PackageTrouble(
            f"fetching packages needs {command[0]}, which this host does not have",
            "On a host that is not Debian or Ubuntu, name a kernel of your own with -k.",
        ) from None
    with process:
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=_POLL)
                    return process.returncode, output, errors
                except subprocess.TimeoutExpired:
                    watch()
        except BaseException:
            process.kill()
            raise


def _reason(errors: str) -> str:
    # The line of a tool's complaints that tells a person most.
    for phrase in _NO_NETWORK:
        if phrase in errors:
            start = errors.index(phrase)
            return f"no network ({errors[start:].splitlines()[0].strip()})"
    if any(phrase in errors for phrase in _NO_SPACE):
        return "no space left on the disk"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("E:") and "Some index files" not in line]
    return (told or lines or ["no reason given"])[0].removeprefix("E: ")


def _hint(errors: str) -> str:
    if any(phrase in errors for phrase in _NO_SPACE):
        return "Remove images with kvmkit image rm, or set XDG_CACHE_HOME to another disk."
    return "Check the network and try again."


class Apt:
    """apt with the system's package lists."""

    def __init__(self) -> None:
        self._options = ["-q", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=2"]
        if os.geteuid() == 0:
            self._options += ["-o", "APT::Sandbox::User=root"]  # _apt cannot write to our cache

    def run(
        self,
        tool: str,
        *arguments: str,
        watch: Callable[[], None] = lambda: None,
        cwd: str | None = None,
    ) -> tuple[int, str, str]:
        """Run ``apt-get`` or ``apt-cache``: its exit status, output and errors.

        Raises PackageTrouble when there is no such tool.
        """
        return _run([tool, *self._options, *arguments], watch, cwd)

    def names(self, prefix: str) -> set[str]:
        """All package names that begin with ``prefix``."""
        return set(self.run("apt-cache", "pkgnames", prefix)[1].split())

    def show(self, name: str) -> Package | None:
        """The newest version of exactly ``name``; None if these lists do not have it."""
        # A name that does not exist is a pattern to apt; what comes then has other names.
        status, output, _ = self.run("apt-cache", "show", "--no-all-versions", name)
        fields: dict[str, str] = {}
        for line in output.split("\n\n")[0].splitlines():
            key, colon, value = line.partition(":")
            if colon and not key.startswith(" "):
                fields[key] = value.strip()
        if status or fields.get("Package") != name or not fields.get("Version"):
            return None
        choices = fields.get("Depends", "").replace("|", ",").split(",")
        depends = tuple(choice.split()[0].split(":")[0] for choice in choices if choice.strip())
        size = fields.get("Size", "")
        return Package(name, fields["Version"], depends, int(size) if size.isdigit() else 0)


class PrivateApt(Apt):
    """apt with package lists of our own in the directory ``private``."""

    def __init__(self, private: str) -> None:
        super().__init__()
        self._private = private
        for option in (
            f"Dir::State={private}/state",
            f"Dir::State::lists={private}/lists",
            "Dir::State::status=/var/lib/dpkg/status",
            f"Dir::Cache={private}/cache",
            "APT::Update::Error-Mode=any",
        ):
            self._options += ["-o", option]

    def update(self, progress: Callable[[str], None], *, force: bool = False) -> str:
        """Fetch the lists unless they are less than a day old; what apt complained about.

        With ``force``, only lists of this very minute are good enough. One
        process at a time fetches; the others wait and use the result.
        """
        import fcntl

        for name in ("lists/partial", "state", "cache/archives/partial"):
            os.makedirs(f"{self._private}/{name}", exist_ok=True)
        good_for = _FORCED_GOOD_FOR if force else _LISTS_GOOD_FOR
        with open(f"{self._private}/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if 0 <= time.time() - self._updated() < good_for:
                return ""
            text = "fetching package lists"
            progress(text)
            status, _, errors = self.run("apt-get", "update", watch=lambda: progress(text))
            if status:
                return errors or f"apt-get update ended with {status}"
            with open(f"{self._private}/updated", "w"):
                return ""

    def _updated(self) -> float:
        try:
            return os.stat(f"{self._private}/updated").st_mtime
        except OSError:
            return 0.0


def find(
    name: str, private: str, progress: Callable[[str], None], *, stale: bool = False
) -> tuple[Apt, Package]:
    """The package called exactly ``name``, and the apt whose lists have it.

    The system's lists come first, unless they are known to be ``stale``; then
    private ones in the directory ``private``, fetched when they are missing or
    a day old. Raises PackageTrouble when there is no such package (with near
    matches), no network, or no apt.
    """
    check_name(name)
    system = Apt()
    package = None if stale else system.show(name)
    if package is not None:
        return system, package
    own = PrivateApt(private)
    complaint = own.update(progress, force=stale)
    package = own.show(name)
    if package is not None:
        return own, package
    if complaint:
        raise PackageTrouble(f"cannot fetch {name}: {_reason(complaint)}", _hint(complaint))
    import difflib

    prefix = "linux-image-" if name.startswith("linux") else name[:3]
    known = sorted(system.names(prefix) | own.names(prefix))
    near = difflib.get_close_matches(name, known, _NEAR_MATCHES)
    hint = f"Near matches: {', '.join(near)}" if near else "See: apt-cache pkgnames linux-image-"
    raise PackageTrouble(f"there is no package {name} in this host's package sources", hint)


def download(apt: Apt, package: Package, directory: str, progress: Callable[[str], None]) -> str:
    """Fetch ``package`` into the empty ``directory``; the path of the file.

    Raises PackageTrouble with the reason apt gave.
    """

    def watch() -> None:
        try:
            done = sum(entry.stat().st_size for entry in os.scandir(directory))
        except OSError:  # renamed by apt just now
            return
        progress(f"fetching {package.name}: {done >> 20} of {package.size >> 20} MiB")

    status, _, errors = apt.run(
        "apt-get", "download", f"{package.name}={package.version}", watch=watch, cwd=directory
    )
    files = [name for name in os.listdir(directory) if name.endswith(".deb")]
    if status or len(files) != 1:
        raise PackageTrouble(f"cannot fetch {package.name}: {_reason(errors)}", _hint(errors))
    return f"{directory}/{files[0]}"


def unpack(deb: str, directory: str, progress: Callable[[str], None]) -> None:
    """Unpack the files of the package ``deb`` into ``directory``.

    Raises PackageTrouble when the package is damaged or the disk full.
    """
    import shutil

    text = f"unpacking {os.path.basename(deb).split('_')[0]}"
    progress(text)
    if shutil.which("dpkg-deb") is None:
        from kvmkit.deb import unpack_deb

        unpack_deb(deb, directory)
        return
    status, _, errors = _run(["dpkg-deb", "-x", deb, directory], lambda: progress(text))
    if status:
        raise PackageTrouble(
            f"cannot unpack {os.path.basename(deb)}: {_reason(errors)}", _hint(errors)
        )
