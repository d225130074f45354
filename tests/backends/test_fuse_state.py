"""A share's state: saved, and taken up by another server."""

from __future__ import annotations

import os
from struct import pack

from kvmkit.backends.fuse.abi import Op
from kvmkit.frozen import replace
from kvmkit.snapshot.records import decode, encode
from kvmkit.virtio.fs_state import ShareFile, ShareHandle
from tests.backends.fuse_client import Client
from tests.backends.test_fuse_server import fails


def worked_with(folder, **options):
    """A client that knows and has open all sorts of things, and what."""
    (folder / "d/e").mkdir(parents=True)
    (folder / "d/e/file").write_text("text")
    (folder / "top").write_text("top")
    client = Client(folder, **options)
    node = client.lookup("d/e/file").nodeid
    client.lookup("top")
    return client, node


def test_state_survives_and_is_the_same_again(tmp_path):
    """Nodes, look-up counts and handles, through the form they have in a file."""
    client, node = worked_with(tmp_path)
    handle, directory = client.open(node, os.O_RDWR), client.opendir(client.lookup("d").nodeid)
    state = decode(encode(client.server.save()), "share", Client(tmp_path).server.save())
    other = Client(tmp_path)
    other.server.restore(state)
    assert other.server.save() == state
    assert other.read(node, handle, 9) == b"text"
    assert other.write(node, handle, b"TEXT") == 4
    assert b"e" in {name for name, *_ in other.entries(0, directory)}
    assert other.lookup("d/e/file").nodeid == node
    assert other.create("new")[0].nodeid > state.last_node


def test_what_is_gone_is_stale_and_the_rest_is_there(tmp_path):
    """Removed, replaced, or without a name when it was saved."""
    client, node = worked_with(tmp_path)
    top = client.lookup("top").nodeid
    removed, handle = client.create("removed")
    client.unlink("removed")
    state = client.server.save()
    os.rename(tmp_path / "d/e/file", tmp_path / "elsewhere")
    other = Client(tmp_path)
    other.server.restore(state)
    assert fails(other.getattr, node) == fails(other.getattr, removed.nodeid) == "ESTALE"
    assert fails(other.read, removed.nodeid, handle, 1) == "EBADF"
    assert other.read(top, other.open(top), 9) == b"top"


def test_a_state_that_lies_opens_nothing_else(tmp_path):
    """Names that are paths, unknown parents, other kinds, flags for more than is allowed."""
    share = tmp_path / "share"
    share.mkdir()
    (tmp_path / "secret").write_text("secret")
    (share / "file").write_text("file")
    status = (tmp_path / "secret").stat()
    client, _ = worked_with(share, read_only=True)
    file = (status.st_dev, status.st_ino, 0o100000)
    files = [
        ShareFile(20 + index, parent, name, 1, *file)
        for index, (parent, name) in enumerate(
            [(1, b"../secret"), (1, b".."), (99, b"file"), (20, b"x"), (25, b"y"), (24, b"z")]
        )
    ]
    inside = (share / "file").stat()
    files.append(ShareFile(40, 1, b"file", -5, inside.st_dev, inside.st_ino, 0o100000))
    handles = [ShareHandle(n, 20 + n, os.O_RDONLY) for n in range(6)]
    handles += [ShareHandle(50, 40, os.O_RDWR | os.O_TRUNC), ShareHandle(-1, 40, 0)]
    state = replace(client.server.save(), files=tuple(files), handles=tuple(handles))
    client.server.restore(state)
    for number in range(6):
        assert fails(client.open, 20 + number) in ("ESTALE", "ENOSYS")
        assert fails(client.read, 20 + number, number, 9)
    assert len(client.session.handles) == 0
    assert client.read(40, 0, 9) == b"file"


def test_a_guest_that_opens_nothing_goes_on_so(tmp_path):
    """What was agreed on in INIT holds."""
    client, node = worked_with(tmp_path, read_only=True, cache="always")
    other = Client(tmp_path, read_only=True, cache="always", flags=0)
    other.server.restore(client.server.save())
    assert fails(other.open, node) == "ENOSYS"
    assert other.read(node, 0, 9) == b"text"
    assert other.call(Op.READ, node, pack("<QQIIQII", 0, 2, 9, 0, 0, 0, 0)) == b"xt"
