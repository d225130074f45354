"""What a kernel module says about itself: the section ``.modinfo`` of its file.

A module is a relocatable ELF file (System V ABI, "Object files"), in many
distributions compressed with xz, zstd or gzip. ``.modinfo`` holds ``key=value``
texts, each ended by a NUL: Linux ``include/linux/module.h``, MODULE_INFO.
"""

from __future__ import annotations

import struct

from kvmkit.errors import FileTrouble

__all__ = ["SUFFIXES", "module_info", "module_name", "read_module"]

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
"""How a module's file name may end."""

_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_GZIP = b"\x1f\x8b"
_LARGEST = 256 << 20  # with all its debug information

_ELF = b"\x7fELF\x02\x01"
_EHDR = struct.Struct("<40xQ10xHHH")  # e_shoff, e_shentsize, e_shnum, e_shstrndx
_SHDR = struct.Struct("<I20xQQ24x")  # sh_name, sh_offset, sh_size


def module_name(file: str) -> str:
    """The module's name by its file's: no directory, no suffix, ``_`` for ``-``."""
    name = file.rpartition("/")[2]
    for suffix in (*SUFFIXES, ".o"):
        if name.endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name.replace("-", "_")


def read_module(path: str) -> bytes:
    """The module's file, unpacked. Raises FileTrouble for what cannot be read or unpacked."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise FileTrouble(f"{path}: {error.strerror}") from error
    data = _unpack(path, data)
    if not data.startswith(_ELF):
        raise FileTrouble(f"{path}: expected a kernel module (an ELF file), found something else")
    return data


def _unpack(path: str, data: bytes) -> bytes:
    # Errors of three libraries have nothing in common but that they are errors.
    try:
        if data.startswith(_XZ):
            import lzma

            unpacker = lzma.LZMADecompressor(memlimit=_LARGEST)
            unpacked = unpacker.decompress(data, max_length=_LARGEST)
            whole = unpacker.eof
        elif data.startswith(_ZSTD):
            from zstandard import ZstdDecompressor

            stream = ZstdDecompressor().decompressobj()
            unpacked = stream.decompress(data)
            whole = stream.eof
        elif data.startswith(_GZIP):
            import zlib

            inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
            unpacked = inflater.decompress(data, _LARGEST)
            whole = inflater.eof
        else:
            return data
    except Exception as error:
        raise FileTrouble(f"{path}: the module cannot be unpacked: {error}") from error
    if not whole:
        raise FileTrouble(f"{path}: the module cannot be unpacked: it is cut off")
    return unpacked


def _section(data: bytes, wanted: bytes) -> bytes:
    at, size, count, names = _EHDR.unpack_from(data)
    if size != _SHDR.size or names >= count or at + size * count > len(data):
        raise ValueError("no table of sections")
    headers = [_SHDR.unpack_from(data, at + index * size) for index in range(count)]
    for name, start, length in headers:
        if data.startswith(wanted + b"\0", headers[names][1] + name):
            return data[start : start + length]
    raise ValueError(f"no section {wanted.decode()}")


def module_info(path: str, data: bytes) -> dict[str, list[str]]:
    """The values of each key of the module ``data``, the contents of ``path``.

    Raises FileTrouble for what is no module.
    """
    try:
        section = _section(data, b".modinfo")
    except (struct.error, ValueError) as error:
        raise FileTrouble(f"{path}: expected a kernel module, found a file with {error}") from error
    found: dict[str, list[str]] = {}
    for text in section.split(b"\0"):
        key, equals, value = text.decode("utf-8", "replace").partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return found
