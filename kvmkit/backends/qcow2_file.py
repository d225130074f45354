"""The file of a qcow2 image: reads, writes and barriers, and where its unused end begins."""

from __future__ import annotations

import errno
import os
from array import array
from sys import byteorder

__all__ = ["ImageFile"]


class ImageFile:
    """The image open as ``fd``, which :meth:`close` closes.

    ``virgin`` is the byte from which on the file was never written: what is there
    reads as zeroes.
    """

    def __init__(self, fd: int, path: str, cluster_bits: int) -> None:
        self.fd = fd
        self.path = path
        self.cluster_bits = cluster_bits
        self.cluster_size = 1 << cluster_bits
        self.virgin = os.lseek(fd, 0, os.SEEK_END)
        self._failed: OSError | None = None

    def damaged(self, text: str) -> OSError:
        """The error for an image whose tables make no sense."""
        return OSError(errno.EIO, f"{self.path}: {text}; see qemu-img check")

    def read(self, offset: int, size: int) -> bytes:
        """Zeroes past the end."""
        parts = []
        while size and (data := os.pread(self.fd, size, offset)):
            parts.append(data)
            size -= len(data)
            offset += len(data)
        return b"".join([*parts, bytes(size)])

    def read_words(self, offset: int, count: int, kind: str = "Q") -> array[int]:
        """Big-endian numbers of the width of array type ``kind``."""
        words = array(kind)
        words.frombytes(self.read(offset, count * words.itemsize))
        if byteorder == "little":
            words.byteswap()
        return words

    def write_words(self, offset: int, words: array[int]) -> None:
        """The opposite; changes ``words``."""
        if byteorder == "little":
            words.byteswap()
        self.write(offset, words.tobytes())

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of it. Raises OSError."""
        view = memoryview(data)
        self.virgin = max(self.virgin, offset + len(view))
        while view:
            done = os.pwrite(self.fd, view, offset)
            view, offset = view[done:], offset + done

    def sync(self) -> None:
        """Barrier: what was written before is on the medium before what is written after.

        After a failure the kernel has forgotten what it could not write, so that a
        second try would succeed without cause (fsync(2)): it fails for ever.
        """
        if self._failed is not None:
            raise self._failed
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._failed = error
            raise

    def close(self) -> None:
        """Callable twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
