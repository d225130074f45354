"""Whose files are: the guest's users and the host's."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path
from struct import pack

import pytest

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.abi import Op
from kvmkit.backends.fuse.ids import OVERFLOW, UNCHANGED, Ids
from tests.backends.fuse_client import Client
from tests.backends.test_fuse_server import fails

OTHER = 54321  # a user of the host's that is not root

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: needs root")


def test_ids_as_they_are():
    """Without an owner, what the host says is what the guest sees."""
    ids = Ids(None)
    assert ids.shown(7, 8) == ids.wanted(7, 8) == (7, 8)
    assert ids.wanted(UNCHANGED, 8) == (UNCHANGED, 8)


def test_our_own_user_appears_as_the_guests(monkeypatch):
    """And back; who has that id on the host appears as nobody."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    ids = Ids(0)
    assert ids.shown(1000, 100) == (0, 0)
    assert ids.shown(0, 0) == (OVERFLOW, OVERFLOW)
    assert ids.shown(33, 34) == (33, 34)
    assert ids.wanted(0, 0) == (1000, 100)
    same = Ids(1000)
    assert same.shown(1000, 100) == (1000, 100) and same.shown(0, 0) == (0, 0)


@needs_root
def test_a_server_that_is_root_makes_files_as_the_guests_user(tmp_path):
    """From the first moment, with the group of a set-group-id directory; this thread stays root."""
    tmp_path.chmod(0o700)  # which the guest's kernel has checked, not we
    client = Client(tmp_path)
    client.uid, client.gid = 1234, 567
    client.mkdir("dir")
    client.create("file")
    client.call(Op.SYMLINK, 1, b"link\0target\0")
    client.call(Op.MKNOD, 1, pack("<IIII", 0o010644, 0, 0, 0) + b"fifo\0")
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in tmp_path.iterdir()}
    assert owners == {(1234, 567)}
    (tmp_path / "mine").touch()
    assert (tmp_path / "mine").stat().st_uid == 0
    client.uid = UNCHANGED
    assert fails(client.mkdir, "nobody's") == "EPERM"


@needs_root
def test_a_server_that_is_root_gives_files_away(tmp_path):
    """SETATTR with an owner, and with the owner it has."""
    client = Client(tmp_path)
    entry, _ = client.create("file")
    attr = client.setattr(entry.nodeid, abi.FATTR_UID | abi.FATTR_GID, uid=5, gid=6)
    assert (attr.uid, attr.gid) == (5, 6)
    client.setattr(entry.nodeid, abi.FATTR_UID, uid=5)
    assert (tmp_path / "file").stat().st_gid == 6


def use_as_other(share):
    """What a guest finds whose server is an ordinary user."""
    client = Client(share, owner=0)
    entry, _ = client.create("file", mode=0o640)
    assert (entry.uid, entry.gid) == (0, 0)
    both = abi.FATTR_UID | abi.FATTR_GID
    assert client.setattr(entry.nodeid, both, uid=0, gid=0).uid == 0
    assert fails(client.setattr, entry.nodeid, abi.FATTR_UID, uid=77) == "EPERM"
    client.uid = 77
    assert client.mkdir("dir").uid == 0
    assert client.lookup("roots").uid == OVERFLOW
    assert fails(client.open, client.lookup("roots").nodeid, os.O_RDWR) == "EACCES"
    assert fails(client.open, client.lookup("hidden").nodeid) == "EACCES"
    client.call(Op.TMPFILE, 1, pack("<IIII", os.O_RDWR, 0o600, 0, 0) + b"\0")
    client.rename("file", "renamed")
    client.unlink("renamed")
    assert client.getattr(entry.nodeid).nlink == 0


@needs_root
def test_a_server_that_is_not_root(tmp_path):
    """Its files are guest root's, root's are nobody's, and the host's permissions hold."""
    above = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if above in folder.parents:
            folder.chmod(0o755)
    share = tmp_path / "share"
    share.mkdir()
    os.chown(share, OTHER, OTHER)
    (share / "roots").touch(0o644)
    (share / "hidden").touch(0o600)
    Client(tmp_path).mkdir("imports-what-it-needs")
    trouble = tmp_path / "trouble"
    with trouble.open("w") as file:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setgroups([])
                os.setgid(OTHER)
                os.setuid(OTHER)
                use_as_other(share)
                status = 0
            except BaseException:
                traceback.print_exc(file=file)
                file.flush()
            finally:
                os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, trouble.read_text()
    assert (share / "dir").stat().st_uid == OTHER
