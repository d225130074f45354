"""Compressed clusters of a qcow2 image.

QEMU, ``docs/interop/qcow2.rst``, "Compressed Clusters Descriptor": raw deflate
(RFC 1951) or zstd (RFC 8878), at any byte of the file.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from kvmkit.backends.qcow2_header import ZSTD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.backends.qcow2_file import ImageFile

__all__ = ["Unpacker", "place"]

CACHE_BYTES = 4 << 20
MAX_WINDOW = 8 << 20
"""Of zstd: what unpacking may keep in memory. QEMU's clusters need their own size."""


def place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Offset and size of the packed data that a compressed cluster's L2 entry names."""
    bits = 62 - (cluster_bits - 8)
    offset = entry & (1 << bits) - 1
    sectors = (entry & (1 << 62) - 1) >> bits
    return offset, (sectors + 1) * 512 - offset % 512


class Unpacker:
    """Unpacks clusters, and keeps the last few. For several threads."""

    def __init__(self, file: ImageFile, compression: int) -> None:
        self._file = file
        self._zstd = compression == ZSTD
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._most = max(2, CACHE_BYTES // file.cluster_size)
        self._lock = Lock()

    def cluster(self, entry: int) -> bytes:
        """The whole cluster. Raises OSError for what cannot be unpacked."""
        with self._lock:
            data = self._kept.get(entry)
            if data is None:
                data = self._unpack(entry)
                if len(self._kept) >= self._most:
                    self._kept.popitem(last=False)
                self._kept[entry] = data
            return data

    def _unpack(self, entry: int) -> bytes:
        offset, size = place(entry, self._file.cluster_bits)
        packed = self._file.read(offset, size)
        unpack = _zstd if self._zstd else _deflated
        data = unpack(packed, self._file.cluster_size)
        if data is None or len(data) != self._file.cluster_size:
            raise self._file.damaged(f"the compressed cluster at {offset:#x} cannot be unpacked")
        return data


def _deflated(packed: bytes, size: int) -> bytes | None:
    import zlib

    try:
        return zlib.decompressobj(-15).decompress(packed, size)
    except zlib.error:
        return None


def _zstd(packed: bytes, size: int) -> bytes | None:
    from zstandard import ZstdDecompressor, ZstdError

    try:
        with ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(packed) as reader:
            return bytes(reader.read(size))
    except ZstdError:
        return None
