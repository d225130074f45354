"""A guest that does what it likes with a share, for property tests and the fuzzer.

Bytes are taken as requests, proper and improper, on a share next to a directory
with a secret. Whatever they say: the server answers, knows no more files than
there are requests, keeps within its descriptors, and the secret stays one.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import pack

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.abi import Op
from tests.backends.fuse_client import Client

__all__ = ["SECRET", "Place", "play"]

SECRET = b"kept from the guest"
BUDGET = 8
STEPS = 120

NAMES = (
    b"a", b"b", b"d", b"d2", b"out", b"outdir", b"deep", b"new", b"fifo", b"..", b".", b"",
    b"../secret", b"/", b"/etc/passwd", b"d/../../secret", b"n" * 255, b"n" * 256, b"\xff\xfe",
    b"user.x", b"security.capability", b"system.posix_acl_access", b"trusted.x", b"x" * 5000,
)  # fmt: skip
NUMBERS = (
    0, 1, 2, 3, 5, 7, 8, 16, 100, 255, 4095, 4096, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, os.O_RDWR, os.O_TMPFILE | 2,
    os.O_TRUNC | 1, 0o100644, 0o010644, 0o060600, 0o020600, 0x1F, 0x800,
)  # fmt: skip
OPCODES = sorted(value for name, value in vars(Op).items() if name.isupper())


class Place:
    """A folder with a share and, beside it, what must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.share = folder / "share"
        self.outside = folder / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(SECRET)
        self.fill()
        self.before = self._outside()

    def fill(self) -> None:
        """The share's content."""
        share = self.share
        (share / "d/deep/deeper").mkdir(parents=True)
        (share / "d2").mkdir()
        for name in ("a", "b", "d/file", "d/deep/deeper/a"):
            (share / name).write_bytes(b"content of " + name.encode())
        (share / "out").symlink_to("../outside/secret")
        (share / "outdir").symlink_to(self.outside)
        (share / "d/up").symlink_to("../..")
        os.mkfifo(share / "fifo")

    def refill(self) -> None:
        """As at first."""
        import shutil

        shutil.rmtree(self.share)
        self.fill()

    def _outside(self) -> list[tuple[str, int, int, int, int]]:
        paths = [self.outside, *self.outside.rglob("*")]
        found = [(str(path), path.lstat()) for path in paths]
        return [
            (name, status.st_mode, status.st_ino, status.st_mtime_ns, status.st_size)
            for name, status in found
        ]

    def check(self) -> None:
        """Nothing outside was touched."""
        assert self._outside() == self.before


class _Choice:
    """Decisions out of bytes, zeroes when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __call__(self, most: int) -> int:
        value = self.data[self.at] if self.at < len(self.data) else 0
        self.at += 1
        return value % most


def _request(choose: _Choice, nodes: list[int], handles: list[int]) -> tuple[int, int, bytes]:
    """An operation, a node, and a body of numbers and names."""
    opcode = choose(64) if choose(8) == 7 else OPCODES[choose(len(OPCODES))]
    node = nodes[choose(len(nodes))] if choose(8) else NUMBERS[choose(len(NUMBERS))]
    parts = []
    for _ in range(choose(6)):
        kind = choose(4)
        if kind == 0:
            parts.append(pack("<Q", handles[choose(len(handles))]))
        elif kind == 1:
            parts.append(pack("<Q", nodes[choose(len(nodes))]))
        elif kind == 2:
            parts.append(pack("<I", NUMBERS[choose(len(NUMBERS))] & 0xFFFF_FFFF))
        else:
            parts.append(pack("<Q", NUMBERS[choose(len(NUMBERS))]))
    for _ in range(choose(3)):
        parts.append(NAMES[choose(len(NAMES))] + b"\0" * choose(3))
    return opcode, node, b"".join(parts)


def _proper(
    client: Client, choose: _Choice, nodes: list[int], handles: list[int]
) -> tuple[int, int, bytes]:
    """An operation with a structure as it should be, of perhaps improper values."""
    number = lambda: NUMBERS[choose(len(NUMBERS))] if choose(4) == 3 else choose(256)  # noqa: E731
    handle = handles[choose(len(handles))]
    node = nodes[choose(len(nodes))]
    name = NAMES[choose(len(NAMES))] + b"\0"
    bodies = (
        (Op.LOOKUP, name), (Op.LOOKUP, name), (Op.LOOKUP, name),
        (Op.GETATTR, bytes(16)), (Op.READLINK, b""),
        (Op.STATX, abi.STATX_IN.pack(0, 0, 0, 0, 4095)),
        (Op.OPEN, pack("<II", number() & 0xFFFF_FFFF, 0)), (Op.OPENDIR, bytes(8)),
        (Op.OPEN, pack("<II", os.O_RDWR, 0)),
        (Op.READ, abi.READ_IN.pack(handle, number(), number() & 0xFFFF_FFFF, 0, 0, 0, 0)),
        (Op.READDIR, abi.READ_IN.pack(handle, number(), 4096, 0, 0, 0, 0)),
        (Op.READDIRPLUS, abi.READ_IN.pack(handle, 0, 4096, 0, 0, 0, 0)),
        (Op.WRITE, abi.WRITE_IN.pack(handle, choose(100), 4, choose(8), 0, 0, 0) + b"data"),
        (Op.CREATE, pack("<IIII", choose(4) | os.O_EXCL * choose(2), 0o644, 0, 0) + name),
        (Op.MKDIR, pack("<II", 0o755, 0) + name),
        (Op.MKNOD, pack("<IIII", number() & 0xFFFF_FFFF, choose(2), 0, 0) + name),
        (Op.SYMLINK, name + b"../outside/secret\0"), (Op.UNLINK, name), (Op.RMDIR, name),
        (Op.LINK, pack("<Q", nodes[choose(len(nodes))]) + name),
        (Op.RENAME2, pack("<QII", nodes[choose(len(nodes))], choose(8), 0) + name
         + NAMES[choose(len(NAMES))] + b"\0"),
        (Op.SETATTR, abi.SETATTR_IN.pack(
            choose(256) | choose(16) << 8, 0, handle, choose(100), 0, number(), number(), 0,
            number() & 0xFFFF_FFFF, 0, 0, choose(8) * 0o777, 0, 0, 0, 0)),
        (Op.GETXATTR, pack("<II", number() & 0xFFFF_FFFF, 0) + name),
        (Op.SETXATTR, pack("<II", choose(8), choose(4)) + name + b"value"),
        (Op.LISTXATTR, pack("<II", 4096, 0)),
        (Op.FALLOCATE, abi.FALLOCATE_IN.pack(handle, choose(100), choose(100), choose(64), 0)),
        (Op.COPY_FILE_RANGE, abi.COPY_FILE_RANGE_IN.pack(
            handle, 0, 1, handles[choose(len(handles))], choose(100), number(), 0)),
        (Op.LSEEK, abi.LSEEK_IN.pack(handle, number(), choose(6), 0)),
        (Op.TMPFILE, pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"\0"),
        (Op.RELEASE, abi.RELEASE_IN.pack(handle, 0, 0, 0)),
        (Op.FORGET, pack("<Q", number())),
    )  # fmt: skip
    opcode, body = bodies[choose(len(bodies))]
    return opcode, node, body


def play(data: bytes, place: Place) -> Client:
    """Do what ``data`` says on the share of ``place``."""
    choose = _Choice(data)
    options = {"read_only": bool(choose(4) == 1), "cache": ("auto", "always", "never")[choose(3)]}
    client = Client(place.share, budget=BUDGET, **options)
    nodes, handles = [1], [0, 1]
    for _ in range(STEPS):
        if choose.at >= len(data):
            break
        if choose(4):
            opcode, node, body = _proper(client, choose, nodes, handles)
        else:
            opcode, node, body = _request(choose, nodes, handles)
        if opcode in (Op.INIT, Op.SYNCFS):
            continue
        message = client.message(opcode, node, body)
        if choose(16) == 0:  # a length that is not the message's
            message = pack("<I", NUMBERS[choose(len(NUMBERS))] & 0xFFFF_FFFF) + message[4:]
        room = (0, 15, 16, 100, 160, 4112)[choose(6)] if choose(4) == 0 else 4112
        answer = client.raw(message, room, ((), (1,), (40,), (16, 7))[choose(4)])
        assert SECRET not in answer
        assert not client.warnings, client.warnings
        if len(answer) >= 16 + 128 and opcode in (Op.LOOKUP, Op.CREATE, Op.MKDIR, Op.TMPFILE):
            nodes.append(int.from_bytes(answer[16:24], "little"))
        if opcode in (Op.OPEN, Op.OPENDIR) and len(answer) == 32:
            handles.append(int.from_bytes(answer[16:24], "little"))
        if opcode in (Op.CREATE, Op.TMPFILE) and len(answer) == 160:
            handles.append(int.from_bytes(answer[144:152], "little"))
        assert len(client.session.handles) <= BUDGET
        assert client.session.inodes.held <= BUDGET
    place.check()
    client.server.reset()
    return client
