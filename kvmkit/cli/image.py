"""``kvmkit image``: fetch, list and remove kernels and other guest parts."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option, closest
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmkit.images import Image

__all__ = ["COMMAND", "SUBCOMMANDS", "main"]

COMMAND = Command(
    "kvmkit image",
    "Fetch, list and remove kernels and other guest parts: Debian packages,\n"
    "unpacked into the cache ($XDG_CACHE_HOME/kvmkit/images). Needs no root.",
    words="pull|list|rm",
    most_words=None,
    notes="""
  kvmkit image pull PACKAGE...   fetch Debian packages by their exact names
  kvmkit image list              what is here
  kvmkit image rm NAME...        remove

kvmkit image pull --help tells more, and so do the others.
""",
)

SUBCOMMANDS = {
    "pull": Command(
        "kvmkit image pull",
        "Fetch kernels or busybox by the exact names of their Debian packages.\n"
        "Prints the path of each kernel or program.",
        words="PACKAGE...",
        most_words=None,
        notes="""
Well-known names:
  linux-image-cloud-amd64   the small kernel for virtual machines; starts fastest
  linux-image-amd64         the normal kernel
  busybox-static            the guest's shell and tools
""",
    ),
    "list": Command(
        "kvmkit image list",
        "List what is in the cache.",
        (Option("--json", "", "for programs"),),
    ),
    "rm": Command(
        "kvmkit image rm",
        "Remove images from the cache.",
        words="NAME...",
        most_words=None,
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Do what the first word says; 0. Raises a KvmkitError for what cannot be done."""
    word = arguments[0] if arguments else ""
    if word not in SUBCOMMANDS:
        if word.startswith("-") and COMMAND.parse(arguments[:1]) is None:
            return 0
        raise UsageError(
            f"expected one of {', '.join(SUBCOMMANDS)}, found {word!r}",
            closest(word, SUBCOMMANDS, "did you mean 'kvmkit image {}'?")
            or "see kvmkit image --help",
        )
    parsed = SUBCOMMANDS[word].parse(arguments[1:])
    if parsed is None:
        return 0
    if word == "list":
        _list(as_json=parsed["json"])
        return 0
    if not parsed.words:
        raise UsageError(
            f"image {word} expects at least one name", f"see kvmkit image {word} --help"
        )
    {"pull": _pull, "rm": _remove}[word](parsed.words)
    return 0


def _pull(names: list[str]) -> None:
    from kvmkit.images import pull
    from kvmkit.progress import Progress

    for name in names:
        with Progress() as progress:
            image = pull(name, progress)
        print(image.kernel or image.busybox or image.path, flush=True)


def _remove(names: list[str]) -> None:
    from kvmkit.images import remove

    for name in names:
        print(f"removed {remove(name).name}", flush=True)


def _list(*, as_json: bool) -> None:
    from kvmkit.images import list_images

    images = list_images()
    if as_json:
        import json

        print(json.dumps([_record(image) for image in images], indent=2))
    elif not images:
        print("no images; kvmkit image pull linux-image-cloud-amd64 busybox-static")
    else:
        _table(images)


def _record(image: Image) -> dict[str, object]:
    return {
        "name": image.name,
        "aliases": list(image.aliases),
        "version": image.version,
        "release": image.release,
        "size": image.size(),
        "path": image.path,
        "kernel": image.kernel,
        "busybox": image.busybox,
        "modules": image.modules,
    }


def _table(images: list[Image]) -> None:
    rows = [("NAME", "VERSION", "SIZE", "ALSO CALLED")]
    for image in images:
        size = f"{image.size() / (1 << 20):.0f} MiB"
        rows.append((image.name, image.version, size, ", ".join(image.aliases)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, version, size, aliases in rows:
        line = f"{name:<{widths[0]}}  {version:<{widths[1]}}  {size:>{widths[2]}}  {aliases}"
        print(line.rstrip())
