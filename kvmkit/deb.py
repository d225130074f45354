"""Unpacking a Debian package without dpkg.

deb(5): an ``ar`` archive of three members: ``debian-binary``, ``control.tar``
and ``data.tar``, the last two compressed, by the suffix of their names.
"""

from __future__ import annotations

import os

from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

__all__ = ["members", "unpack_deb"]

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60  # name 16, time 12, user 6, group 6, mode 8, size 10, end 2
_AR_END = b"`\n"
_TAR_MODES = {"": "r|", ".gz": "r|gz", ".xz": "r|xz", ".bz2": "r|bz2", ".zst": "r|"}


class _Window:
    # A part of a file, as the tar reader wants it: something with read().

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= len(data)
        return data


def members(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Name and size of each member of an ``ar`` archive.

    The file stands at the member's first byte while it is the current one.
    Raises ValueError for what is not such an archive.
    """
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError("it does not begin as an ar archive")
    position = len(_AR_MAGIC)
    while True:
        file.seek(position)
        header = file.read(_AR_HEADER)
        if not header:
            return
        digits = header[48:58].strip()
        if len(header) < _AR_HEADER or header[58:] != _AR_END or not digits.isdigit():
            raise ValueError("a member's header is damaged")
        size = int(digits)
        yield header[:16].decode("ascii", "replace").rstrip(" ").removesuffix("/"), size
        position += _AR_HEADER + size + size % 2


def unpack_deb(deb: str, directory: str) -> None:
    """Unpack the regular files of the package ``deb`` into ``directory``.

    Links and special files are left out, owners too, so that nothing can be
    written elsewhere. Raises FileTrouble for a damaged package or a full disk.
    """
    name = os.path.basename(deb)
    try:
        with open(deb, "rb") as file:
            for member, size in members(file):
                if member.startswith("data.tar"):
                    _untar(_Window(file, size), member.removeprefix("data.tar"), directory)
                    return
        raise ValueError("it has no data")
    except OSError as error:
        raise FileTrouble(f"cannot unpack {name}: {error.strerror or error}") from error
    except Exception as error:  # each decompressor has errors of its own
        raise FileTrouble(f"cannot unpack {name}: {error}") from error


def _untar(data: Any, suffix: str, directory: str) -> None:
    import shutil
    import tarfile

    mode: Any = _TAR_MODES.get(suffix)
    if mode is None:
        raise ValueError(f"its data are compressed in an unknown way ({suffix})")
    if suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(data)
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for member in archive:
            steps = [step for step in member.name.split("/") if step not in ("", ".")]
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or not steps:
                continue
            if ".." in steps:
                raise ValueError(f"a file in it is called {member.name!r}")
            path = "/".join([directory, *steps])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            os.chmod(path, member.mode & 0o777)
