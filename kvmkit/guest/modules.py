"""The kernel modules that a guest needs, with all that they need, in order.

A kernel's modules are a directory ``/lib/modules/RELEASE`` as ``make
modules_install`` and depmod(8) leave it, the same without depmod's files (as
packages bring it), or the tree in which a kernel was built. The files that
depmod makes are modules.dep(5), ``modules.alias`` and ``modules.softdep``; from
the build itself are ``modules.order`` and ``modules.builtin`` (Linux
``Documentation/kbuild/kbuild.rst``). Without ``modules.dep``, each module's
``.modinfo`` says what it depends on.

Names are those of ``lsmod``: ``-`` and ``_`` mean the same.
"""

from __future__ import annotations

import os

from kvmkit.errors import KvmkitError
from kvmkit.frozen import Record
from kvmkit.guest.modinfo import SUFFIXES, module_info, module_name, read_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    PathLike = str | os.PathLike[str]

__all__ = ["MissingDriver", "Module", "ModuleTree", "find_module_tree"]

_MISSING_SHOWN = 4


class MissingDriver(KvmkitError):
    """A driver that the kernel has neither built in nor as a module."""

    exit_code = 108


class Module(Record):
    """A module: its name, its file, and that file's place in ``/lib/modules/RELEASE``.

    ``path`` is on the host, ``place`` without the suffix of a compression.
    """

    name: str
    path: str
    place: str


class ModuleTree:
    """The modules of one kernel, in ``directory``.

    ``release`` is the kernel's, found out if it is not given; ``config`` its
    configuration, for hints. Nothing is read before it is needed.
    """

    def __init__(
        self, directory: PathLike, *, release: str | None = None, config: PathLike | None = None
    ) -> None:
        self.directory = os.fspath(directory)
        self.config = None if config is None else os.fspath(config)
        self.stated_release = release or ""
        self._release = release
        self._files: dict[str, str] | None = None  # name to path below the directory
        self._needs: dict[str, tuple[str, ...]] = {}
        self._builtin: frozenset[str] | None = None
        self._aliases: list[tuple[str, str]] | None = None
        self._soft: dict[str, tuple[list[str], list[str]]] | None = None

    def __repr__(self) -> str:
        return f"ModuleTree({self.directory!r})"

    # What there is

    @property
    def release(self) -> str:
        """The kernel's release, as ``uname -r`` says it; empty if there is no module to ask."""
        if self._release is None:
            self._release = self._find_release()
        return self._release

    def _find_release(self) -> str:
        built = self._lines("include/config/kernel.release")
        if built:
            return built[0]
        for name in list(self.files):
            relative = self._file(name)
            if relative is not None:
                path = f"{self.directory}/{relative}"
                magic = module_info(path, read_module(path)).get("vermagic", [""])
                return magic[0].partition(" ")[0]
        name = os.path.basename(os.path.realpath(self.directory))
        return name if name[:1].isdigit() else ""

    @property
    def files(self) -> dict[str, str]:
        """The modules by name: their files relative to the directory, or those without suffix."""
        if self._files is None:
            self._files = self._read_dependencies() or self._read_order() or self._walk()
        return self._files

    @property
    def builtin(self) -> frozenset[str]:
        """The names of what would be a module, were it not part of the kernel."""
        if self._builtin is None:
            self._builtin = frozenset(map(module_name, self._lines("modules.builtin")))
        return self._builtin

    def _text(self, name: str) -> str:
        try:
            with open(f"{self.directory}/{name}", encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def _lines(self, name: str) -> list[str]:
        return [line for line in self._text(name).split("\n") if line]

    def _read_dependencies(self) -> dict[str, str]:
        files = {}
        needs = {}
        for line in self._lines("modules.dep"):
            path, colon, others = line.partition(":")
            if colon:
                name = module_name(path)
                files[name] = path
                # The nearest first; nothing is to be loaded before what it needs.
                needs[name] = tuple(map(module_name, reversed(others.split())))
        self._needs = needs
        return files

    def _read_order(self) -> dict[str, str]:
        # Since Linux 6.3 a build tree lists the objects, not the modules.
        return {
            module_name(line): line.removesuffix(".o").removesuffix(".ko")
            for line in self._lines("modules.order")
        }

    def _file(self, name: str) -> str | None:
        # The module's file. A stem becomes one: there are thousands, and few are asked for.
        relative = self.files.get(name)
        if relative is None or relative.endswith(SUFFIXES):
            return relative
        for suffix in SUFFIXES:
            if os.path.exists(f"{self.directory}/{relative}{suffix}"):
                self.files[name] = relative + suffix
                return relative + suffix
        del self.files[name]  # built, but not in this package
        return None

    def _walk(self) -> dict[str, str]:
        files = {}
        start = len(self.directory) + 1
        for directory, subdirectories, names in os.walk(self.directory):
            subdirectories.sort()
            for name in names:
                if name.endswith(SUFFIXES):
                    files[module_name(name)] = f"{directory}/{name}"[start:]
        return files

    # What is needed

    def resolve(self, wanted: Iterable[str], optional: Iterable[str] = ()) -> list[Module]:
        """The modules for ``wanted``, each behind what it needs; nothing for what is built in.

        ``optional`` ones that do not exist are left out. Raises MissingDriver for
        what is missing, with the option that builds it, FileTrouble for a module
        that cannot be read.
        """
        order: list[Module] = []
        done: set[str] = set()
        missing: list[str] = []
        for name in wanted:
            if not self._visit(name.replace("-", "_"), order, done):
                missing.append(name)
        if missing:
            raise self._missing(missing)
        for name in optional:
            self._visit(name.replace("-", "_"), order, done)
        return order

    def _visit(self, name: str, order: list[Module], done: set[str]) -> bool:
        # Depth first; a soft dependency may lead in a circle, so a name is done at once.
        if name in done or name in self.builtin:
            return True
        relative = self._file(name)
        if relative is None:
            found = [other for other in self._by_alias(name) if other != name]
            there = [self._visit(other, order, done) for other in found]  # all of them
            return bool(there) and all(there)
        done.add(name)
        before, after = self._soft_needs(name)
        for other in before:
            self._visit_soft(other, order, done)
        for other in self._hard_needs(name):
            if not self._visit(other, order, done):
                raise self._missing([other], for_whom=name)
        stem = relative[: relative.rindex(".ko")] + ".ko"
        place = stem if stem.startswith(("kernel/", "updates/", "extra/")) else f"kernel/{stem}"
        order.append(Module(name, f"{self.directory}/{relative}", place))
        for other in after:
            self._visit_soft(other, order, done)
        return True

    def _visit_soft(self, name: str, order: list[Module], done: set[str]) -> None:
        # Often an algorithm's name ("crypto-crc32c"), which modules.alias would translate.
        if not self._visit(name, order, done):
            self._visit(name.removeprefix("crypto_") + "_generic", order, done)

    def _hard_needs(self, name: str) -> tuple[str, ...]:
        needs = self._needs.get(name)
        if needs is None:
            self._read_info(name)
            needs = self._needs[name]
        return needs

    def _soft_needs(self, name: str) -> tuple[list[str], list[str]]:
        if self._soft is None:
            self._soft = {}
            for line in self._lines("modules.softdep"):
                word, _, rest = line.partition(" ")
                subject, _, what = rest.partition(" ")
                if word == "softdep":
                    self._add_soft(module_name(subject), what)
        if name not in self._soft:
            if self._needs.get(name) is None:
                self._read_info(name)
            self._soft.setdefault(name, ([], []))
        return self._soft[name]

    def _add_soft(self, name: str, text: str) -> None:
        # modprobe.d(5): "pre: one two post: three"
        assert self._soft is not None
        lists = self._soft.setdefault(name, ([], []))
        into = None
        for word in text.split():
            if word in ("pre:", "post:"):
                into = lists[word == "post:"]
            elif into is not None:
                into.append(word.replace("-", "_"))

    def _read_info(self, name: str) -> None:
        path = f"{self.directory}/{self.files[name]}"
        info = module_info(path, read_module(path))
        names = ",".join(info.get("depends", [])).split(",")
        self._needs[name] = tuple(module_name(other) for other in names if other)
        for text in info.get("softdep", []):
            self._add_soft(name, text)

    def _by_alias(self, name: str) -> Iterator[str]:
        # Modules whose alias, a pattern, is the name: "fs-overlay", "virtio:d00000001v00001AF4".
        if self._aliases is None:
            self._aliases = []
            for line in self._lines("modules.alias"):
                word, _, rest = line.partition(" ")
                pattern, _, target = rest.rpartition(" ")
                if word == "alias":
                    self._aliases.append((pattern.replace("-", "_"), target))
            self._aliases += self._builtin_aliases()
        if not self._aliases:
            return
        from fnmatch import fnmatchcase

        for pattern, target in self._aliases:
            if pattern[:3] == name[:3] and fnmatchcase(name, pattern):
                yield target.replace("-", "_")

    def _builtin_aliases(self) -> Iterator[tuple[str, str]]:
        for text in self._text("modules.builtin.modinfo").split("\0"):
            key, _, value = text.partition("=")
            owner, dot, what = key.partition(".")
            if dot and what == "alias":
                yield value.replace("-", "_"), owner

    def _missing(self, names: list[str], for_whom: str = "") -> MissingDriver:
        from kvmkit.guest.drivers import OPTIONS, option_state

        shown = ", ".join(names[:_MISSING_SHOWN])
        purpose = f", which {for_whom} needs" if for_whom else ""
        kernel = self._release or "the kernel"
        options = [OPTIONS[key] for name in names if (key := name.replace("-", "_")) in OPTIONS]
        hint = ""
        if options:
            off = self.config and all(option_state(self.config, one) == "n" for one in options)
            state = "It was built without" if off else "Build it with"
            hint = f"{state} {', '.join(options)}{'' if off else ' (=y or =m)'}."
        return MissingDriver(
            f"{kernel} has no driver {shown}{purpose}, neither built in nor in {self.directory}",
            hint or "Name the modules' directory of the kernel that is booted.",
        )


def find_module_tree(kernel: PathLike, release: str | None = None) -> ModuleTree | None:
    """The modules that belong to the kernel image ``kernel``, or None if there are none.

    Looked for in a pulled image (``modules`` next to it), next to the root that
    it was installed or unpacked in (``/boot/vmlinuz-RELEASE``), in
    ``/lib/modules/RELEASE`` itself, and in the tree it was built in.
    """
    path = os.path.realpath(kernel)
    directory, _, name = path.rpartition("/")
    if os.path.isdir(f"{directory}/modules/kernel"):
        config = f"{directory}/config"
        return ModuleTree(f"{directory}/modules", release=release, config=config)
    _, dash, version = name.partition("-")
    if dash:
        root = os.path.dirname(directory)
        for place in ("lib/modules", "usr/lib/modules"):
            if os.path.isdir(f"{root}/{place}/{version}"):
                config = f"{directory}/config-{version}"
                return ModuleTree(f"{root}/{place}/{version}", release=version, config=config)
    top = directory
    if directory.endswith(("/boot", "/boot/compressed")):  # arch/x86/boot/bzImage
        top = directory[: directory.rindex("/arch/")] if "/arch/" in directory else directory
    for place in (top, directory):
        if any(os.path.exists(f"{place}/modules.{which}") for which in ("dep", "order")):
            config = f"{place}/.config"
            return ModuleTree(place, release=release, config=config)
    return None
