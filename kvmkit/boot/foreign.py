"""What a file that is no kernel of ours looks like, for the error message.

Signatures are those of the formats' own documents: arm64 and RISC-V
``booting.rst``/``boot-image-header.rst`` in Linux, PE/COFF, RFC 1952, FIT.
"""

from __future__ import annotations

__all__ = ["describe"]

AT_START = (
    (b"\x1f\x8b", "a gzip file", "Unpack it, or give the bzImage (vmlinuz) itself."),
    (b"BZh", "a bzip2 file", "Unpack it, or give the bzImage (vmlinuz) itself."),
    (b"\xfd7zXZ", "an xz file", "Unpack it, or give the bzImage (vmlinuz) itself."),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "Unpack it, or give the bzImage (vmlinuz) itself."),
    (b"\x02\x21\x4c\x18", "an lz4 file", "Unpack it, or give the bzImage (vmlinuz) itself."),
    (b"070701", "a cpio archive", "That is an initrd: give it with -i."),
    (b"070702", "a cpio archive", "That is an initrd: give it with -i."),
    (b"!<arch>\n", "a Debian package or ar archive", "Unpack it: dpkg-deb -x FILE DIR."),
    (b"\xed\xab\xee\xdb", "an RPM package", "Unpack it and give the vmlinuz in it."),
    (b"QFI\xfb", "a qcow2 disk image", "That is a disk: give it with -d."),
    (b"\xd0\x0d\xfe\xed", "a flattened device tree or FIT image", ""),
    (b"\x27\x05\x19\x56", "a U-Boot legacy image", "Give the kernel without its U-Boot header."),
    (b"PK\x03\x04", "a zip archive", ""),
    (b"\xcf\xfa\xed\xfe", "a macOS executable", ""),
    (b"\x16\x00\x00\xea", "a 32-bit ARM kernel", "An x86-64 kernel is needed."),
    (b"#!", "a script", ""),
)

AT_OFFSET = (
    (0x38, b"ARM\x64", "an arm64 kernel (Image)", "An x86-64 kernel is needed."),
    (0x38, b"RSC\x05", "a RISC-V kernel (Image)", "An x86-64 kernel is needed."),
    (0x38, b"\xcd\x23\x82\x81", "a LoongArch kernel (Image)", "An x86-64 kernel is needed."),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit ARM kernel (zImage)", "An x86-64 kernel is needed."),
    (257, b"ustar", "a tar archive", ""),
    (0x8001, b"CD001", "an ISO image", "That is a disk: give it with -d."),
)


def describe(data: memoryview) -> tuple[str, str]:
    """What ``data`` looks like ("a gzip file") and a hint what to do, perhaps empty."""
    for offset, magic, what, hint in AT_OFFSET:
        if data[offset : offset + len(magic)] == magic:
            return what, hint
    for magic, what, hint in AT_START:
        if data[: len(magic)] == magic:
            return what, hint
    if bytes(data[:2]) == b"MZ":
        return (
            "a PE/EFI program without a Linux setup header",
            "A unified kernel image: objcopy -O binary --only-section=.linux FILE vmlinuz",
        )
    if len(data) < 0x290:
        return f"{len(data)} bytes", "The file may be truncated."
    start = bytes(data[:512])
    if not any(start):
        return "a file that starts with zeros", "The file may be damaged."
    if all(byte in TEXT for byte in start):
        return "a text file", "Give the vmlinuz file itself."
    if bytes(data[0x1FE:0x200]) == b"\x55\xaa":
        return "a boot sector or disk image", "A disk is given with -d."
    return f"a file that starts with {start[:8].hex(' ')}", ""


TEXT = frozenset(b"\t\n\r\x1b" + bytes(range(32, 127)) + bytes(range(128, 256)))
