"""Opening kernels: kinds, and one clear line for each file that is none."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.boot.image import open_kernel
from kvmkit.errors import BadKernel, KvmkitError
from tests.boot.kernel_images import PACKERS, Part, bzimage, elf32, elf64, pvh_note


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "kernel"
    path.write_bytes(data)
    return path


def test_open_tells_a_bzimage(tmp_path: Path) -> None:
    """Kind, version and payload of a bzImage, without unpacking it."""
    payload = PACKERS["gzip"](elf64())

    image = open_kernel(_file(tmp_path, bzimage(payload)))

    assert (image.kind, image.version) == ("bzImage", "6.9.1-test (me@here) #1 SMP")
    assert image.release == "6.9.1-test"
    assert bytes(image.payload) == payload


def test_open_tells_a_vmlinux(tmp_path: Path) -> None:
    """An ELF file linked as Linux is a vmlinux; its release comes from the banner."""
    image = open_kernel(_file(tmp_path, elf64(notes=pvh_note(0x100_0040))))

    assert (image.kind, image.version) == ("vmlinux", "6.9.1-test")


def test_open_prefers_pvh_when_asked(tmp_path: Path) -> None:
    """The same file is a PVH kernel on request."""
    path = _file(tmp_path, elf64(notes=pvh_note(0x100_0040)))

    assert open_kernel(path, pvh=True).kind == "pvh"


def test_open_takes_pvh_for_what_is_not_linux(tmp_path: Path) -> None:
    """A 32-bit ELF file with the note needs no asking."""
    part = Part(0x10_0000, b"\xf4" * 64)
    data = elf32(part, entry=0x10_0000, notes=pvh_note(0x10_0000, 4))

    assert open_kernel(_file(tmp_path, data)).kind == "pvh"


def test_open_refuses_pvh_without_a_note(tmp_path: Path) -> None:
    """Asking for PVH where there is none is an error, not a surprise."""
    with pytest.raises(BadKernel, match="no PVH entry"):
        open_kernel(_file(tmp_path, elf64()), pvh=True)


def _at(offset: int, magic: bytes) -> bytes:
    return bytes(offset) + magic + bytes(0x1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MZ" + _at(0x36, b"ARM\x64"), "arm64"),
        (_at(0x38, b"RSC\x05"), "RISC-V"),
        (b"MZ" + bytes(0x1000), "PE/EFI program"),
        (b"\x1f\x8b\x08" + bytes(0x1000), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(0x1000), "zstd"),
        (b"\xfd7zXZ\0" + bytes(0x1000), "an xz file"),
        (b"070701" + bytes(0x1000), "cpio"),
        (b"QFI\xfb" + bytes(0x1000), "qcow2"),
        (b"!<arch>\ndebian-binary" + bytes(0x1000), "Debian package"),
        (b"#!/bin/sh\n" + b"x" * 0x1000, "script"),
        (b"Once upon a time\n" * 100, "a text file"),
        (bytes(0x1000), "zeros"),
        (bytes(10), "10 bytes"),
        (b"\x01" + bytes(0x1FD) + b"\x55\xaa" + bytes(0x1000), "boot sector"),
        (b"\xde\xad\xbe\xef" + bytes(0x1000), "de ad be ef"),
        (elf64(machine=183), "arm64"),
        (elf64([Part(0x10_0000, b"x", virtual=0x10_0000)]), "neither"),
        (elf32(Part(0x10_0000, b"x"), entry=0x10_0000), "32-bit only"),
        (bzimage(b"\x1f\x8b" + bytes(100))[:5000][:-1000], "truncated"),
    ],
)
def test_open_says_what_a_foreign_file_is(tmp_path: Path, data: bytes, message: str) -> None:
    """The error names the file and what it looks like, in one line."""
    path = _file(tmp_path, data)

    with pytest.raises(BadKernel, match=message) as caught:
        open_kernel(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_says_what_a_tar_archive_is(tmp_path: Path) -> None:
    """A packed tree is no kernel."""
    with tarfile.open(tmp_path / "kernel", "w") as archive:
        archive.add(__file__)

    with pytest.raises(BadKernel, match="tar archive"):
        open_kernel(tmp_path / "kernel")


def test_open_rejects_an_empty_file(tmp_path: Path) -> None:
    """Zero bytes."""
    with pytest.raises(BadKernel, match="empty"):
        open_kernel(_file(tmp_path, b""))


def test_open_rejects_a_missing_file(tmp_path: Path) -> None:
    """A path that does not exist."""
    with pytest.raises(BadKernel, match="does not exist"):
        open_kernel(tmp_path / "nothing")


def test_open_rejects_a_directory(tmp_path: Path) -> None:
    """A path that is a directory."""
    with pytest.raises(BadKernel, match="directory"):
        open_kernel(tmp_path)


def test_open_rejects_a_device() -> None:
    """A path that is a device."""
    with pytest.raises(BadKernel, match="neither a file nor a pipe"):
        open_kernel(Path("/dev/null"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_open_rejects_an_unreadable_file(tmp_path: Path) -> None:
    """A file without permission comes with the command that mends it."""
    path = _file(tmp_path, bzimage(b""))
    path.chmod(0)

    with pytest.raises(BadKernel, match="may not be read") as caught:
        open_kernel(path)

    assert "chmod" in caught.value.hint


def test_open_reads_a_pipe(tmp_path: Path) -> None:
    """``-k <(curl ...)``: a pipe is read to its end."""
    reader, writer = os.pipe()
    os.write(writer, elf64())
    os.close(writer)

    image = open_kernel(Path(f"/dev/fd/{reader}"))
    os.close(reader)

    assert (image.kind, image.version) == ("vmlinux", "6.9.1-test")


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=700), st.sampled_from([0, 0x38, 0x1FE, 0x200, 0x202]))
def test_open_survives_any_file(tmp_path: Path, data: bytes, at: int) -> None:
    """Random bytes, over zeros or at the places that matter, are never a traceback."""
    path = _file(tmp_path, bytes(at) + data)

    try:
        open_kernel(path)
    except KvmkitError as error:
        assert str(error)
