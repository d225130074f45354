"""The FUSE server, asked by a proper guest."""

from __future__ import annotations

import os
from pathlib import Path
from struct import pack, unpack

import pytest

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.abi import Op
from kvmkit.backends.fuse.session import Session
from kvmkit.errors import FileTrouble, UsageError
from tests.backends.fuse_client import Client, Entry, FuseError


def fails(call, *args, **options):
    """The name of the error it ends in; "" if it ends in none."""
    try:
        call(*args, **options)
    except FuseError as error:
        return error.name
    return ""


def test_structures_have_the_sizes_of_the_header():
    """As sizeof() says of linux/fuse.h."""
    sizes = {
        "IN_HEADER": 40, "OUT_HEADER": 16, "INIT_OUT": 64, "ATTR": 88, "ENTRY_OUT": 40,
        "ATTR_OUT": 16, "SETATTR_IN": 88, "READ_IN": 40, "WRITE_IN": 40, "STATFS_OUT": 80,
        "COPY_FILE_RANGE_IN": 56, "FALLOCATE_IN": 32, "LSEEK_IN": 24, "STATX_IN": 24,
        "STATX": 256, "STATX_OUT": 32, "RELEASE_IN": 24, "FLUSH_IN": 24, "CREATE_IN": 16,
    }  # fmt: skip
    assert {name: getattr(abi, name).size for name in sizes} == sizes


def test_init_agrees_on_version_and_features(tmp_path):
    """What the guest does not offer is not agreed on; requests may have 1 MiB."""
    client = Client(tmp_path, flags=abi.BIG_WRITES | abi.MAX_PAGES | abi.WRITEBACK_CACHE)
    major, _, readahead, flags, _, _, max_write, gran, max_pages, _, _ = client.init
    assert (major, readahead, max_write, gran, max_pages) == (7, 1 << 17, 1 << 20, 1, 256)
    assert flags == abi.BIG_WRITES | abi.MAX_PAGES


@pytest.mark.parametrize(("major", "minor", "error"), [(7, 30, "EPROTO"), (6, 99, "EPROTO")])
def test_init_refuses_old_versions(tmp_path, major, minor, error):
    """Structures were shorter then."""
    client = Client(tmp_path)
    assert fails(client.call, Op.INIT, 0, pack("<IIII48x", major, minor, 0, 0)) == error


def test_init_answers_a_newer_major_version_with_ours(tmp_path):
    """And promises nothing; the guest asks again."""
    answer = Client(tmp_path).call(Op.INIT, 0, pack("<IIII48x", 8, 0, 0, 0xFFFF))
    assert abi.INIT_OUT.unpack(answer)[:4] == (7, abi.MINOR, 0, 0)


@pytest.mark.parametrize("cuts", [(), (1,), (40,), (16, 1, 2, 3), (39, 1, 40), (4096,) * 3])
def test_data_goes_through_buffers_cut_anywhere(tmp_path, cuts):
    """A WRITE's header, structure and data, and a READ's answer."""
    data = os.urandom(20000)
    client = Client(tmp_path)
    entry, handle = client.create("file")
    assert client.write(entry.nodeid, handle, data, 100, cuts) == len(data)
    assert client.read(entry.nodeid, handle, 30000, 50, cuts) == bytes(50) + data
    assert (tmp_path / "file").read_bytes() == bytes(100) + data


def test_a_file_has_one_node_under_all_its_names(tmp_path):
    """Hard links: same node id, same inode number."""
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    client = Client(tmp_path)
    a, b = client.lookup("a"), client.lookup("b")
    assert (a.nodeid, a.ino, a.nlink) == (b.nodeid, b.ino, 2)


def test_forgotten_nodes_are_gone_and_their_numbers_not_used_again(tmp_path):
    """Each look-up counts; what is forgotten is stale."""
    (tmp_path / "a").touch()
    client = Client(tmp_path)
    first = client.lookup("a").nodeid
    assert client.lookup("a").nodeid == first
    client.forget(first)
    client.getattr(first)
    client.forget(first)
    assert fails(client.getattr, first) == "ESTALE"
    assert client.lookup("a").nodeid > first


def test_a_directory_is_listed_in_answers_of_any_size(tmp_path):
    """Nothing twice, nothing missing, with and without attributes."""
    names = sorted(b"%d" % n * (1 + n % 40) for n in range(300))
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    client = Client(tmp_path)
    for plus in (False, True):
        for size in (300, 1000, 4096, 1 << 20):
            assert client.list(plus=plus, size=size) == names


def test_readdirplus_counts_as_look_ups(tmp_path):
    """For all but "." and ".."; a name that did not fit does not count."""
    (tmp_path / "a").touch()
    client = Client(tmp_path)
    handle = client.opendir()
    found = {name: entry for name, _, _, entry in client.entries(1, handle, plus=True)}
    assert found[b"."].nodeid == found[b".."].nodeid == 0
    client.forget(found[b"a"].nodeid)
    assert len(client.session.inodes) == 1
    assert len(client.entries(1, handle, plus=True, size=170)) == 1
    assert len(client.session.inodes) <= 2


def test_a_file_removed_while_known_can_be_used(tmp_path):
    """By its handle and without one, until it is forgotten."""
    client = Client(tmp_path)
    entry, handle = client.create("file")
    client.write(entry.nodeid, handle, b"data")
    client.unlink("file")
    assert client.getattr(entry.nodeid).nlink == 0
    assert client.read(entry.nodeid, client.open(entry.nodeid), 10) == b"data"
    client.forget(entry.nodeid)
    assert client.session.inodes.held == 0


def test_what_the_host_replaces_is_stale(tmp_path):
    """Another file under the old name is not taken for the old one."""
    (tmp_path / "a").write_text("old")
    client = Client(tmp_path)
    node = client.lookup("a").nodeid
    (tmp_path / "b").write_text("new")
    os.rename(tmp_path / "b", tmp_path / "a")
    assert fails(client.open, node) == "ESTALE"
    assert client.read(0, client.open(client.lookup("a").nodeid), 9) == b"new"


def test_pages_are_kept_while_a_file_is_the_same(tmp_path):
    """Opened again with the same size and time; not after a change."""
    file = tmp_path / "a"
    file.write_text("1")
    client = Client(tmp_path)
    node = client.lookup("a").nodeid
    assert not client.open_flags(node) & abi.FOPEN_KEEP_CACHE
    assert client.open_flags(node) & abi.FOPEN_KEEP_CACHE
    os.utime(file, ns=(0, 0))
    assert not client.open_flags(node) & abi.FOPEN_KEEP_CACHE


def test_rename_flags_keep_names_and_nodes_together(tmp_path):
    """After an exchange each node has the other's name; NOREPLACE replaces nothing."""
    client = Client(tmp_path)
    a, _ = client.create("a")
    b, _ = client.create("b")
    client.rename("a", "b", flags=2)
    assert client.lookup("a").nodeid == b.nodeid and client.lookup("b").nodeid == a.nodeid
    assert fails(client.rename, "a", "b", flags=1) == "EEXIST"
    assert fails(client.rename, "a", "b", flags=8) == "EINVAL"
    client.rename("a", "b")
    assert client.getattr(b.nodeid).nlink == 1 and client.getattr(a.nodeid).nlink == 0


def test_a_renamed_directory_takes_its_files_along(tmp_path):
    """Nodes below it are found under the new name, without descriptors of their own."""
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/file").write_text("text")
    client = Client(tmp_path)
    node = client.lookup("d/e/file").nodeid
    client.rename("d", "moved")
    assert client.read(0, client.open(node), 9) == b"text"


def test_a_file_without_a_name_gets_one(tmp_path):
    """TMPFILE, then LINK."""
    client = Client(tmp_path)
    answer = client.call(Op.TMPFILE, 1, pack("<IIII", os.O_RDWR, 0o600, 0, 0) + b"\0")
    entry, handle = Entry(answer), unpack("<Q", answer[128:136])[0]
    client.write(entry.nodeid, handle, b"tmp")
    client.call(Op.LINK, 1, pack("<Q", entry.nodeid) + b"name\0")
    assert (tmp_path / "name").read_text() == "tmp"
    assert client.lookup("name").nodeid == entry.nodeid


def test_modes_are_the_guests_and_not_cut_by_our_umask(tmp_path):
    """The guest has applied its own."""
    old = os.umask(0o077)
    try:
        client = Client(tmp_path)
    finally:
        os.umask(old)
    os.umask(0o077)
    try:
        client.mkdir("dir", 0o1777)
        client.create("file", mode=0o666)
        client.call(Op.MKNOD, 1, pack("<IIII", 0o010666, 0, 0, 0) + b"fifo\0")
    finally:
        os.umask(old)
    modes = [(tmp_path / name).stat().st_mode & 0o7777 for name in ("dir", "file", "fifo")]
    assert modes == [0o1777, 0o666, 0o666]


def test_xattrs_in_their_name_spaces(tmp_path):
    """``user`` is passed on; access lists and labels are the host's own."""
    (tmp_path / "a").touch()
    client = Client(tmp_path)
    node = client.lookup("a").nodeid
    client.call(Op.SETXATTR, node, pack("<II", 3, 0) + b"user.x\0" + b"abc")
    assert client.xattr(node, "user.x") == b"abc"
    assert client.xattr(node, "user.x", 0) == pack("<II", 3, 0)
    assert fails(client.xattr, node, "user.x", 2) == "ERANGE"
    assert fails(client.xattr, node, "system.posix_acl_access") == "ENOTSUP"
    assert fails(client.xattr, node, "security.selinux") == "ENOTSUP"
    assert client.call(Op.LISTXATTR, node, pack("<II", 99, 0)) == b"user.x\0"


def test_set_user_id_goes_when_a_file_is_changed(tmp_path):
    """Also where we are root, and the host's kernel would let it stay."""
    client = Client(tmp_path)
    entry, handle = client.create("a", mode=0o755)
    client.setattr(entry.nodeid, abi.FATTR_MODE, mode=0o6755)
    body = abi.WRITE_IN.pack(handle, 0, 1, abi.WRITE_KILL_SUIDGID, 0, 0, 0) + b"x"
    client.call(Op.WRITE, entry.nodeid, body)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755


CHANGES = {
    Op.SETATTR: bytes(88), Op.SYMLINK: b"n\0t\0", Op.MKNOD: bytes(16) + b"n\0",
    Op.MKDIR: bytes(8) + b"n\0", Op.UNLINK: b"file\0", Op.RMDIR: b"dir\0",
    Op.RENAME: pack("<Q", 1) + b"file\0n\0", Op.LINK: pack("<Q", 2) + b"n\0",
    Op.WRITE: bytes(40), Op.SETXATTR: bytes(8) + b"user.x\0", Op.REMOVEXATTR: b"user.x\0",
    Op.CREATE: pack("<IIII", os.O_RDWR | os.O_CREAT, 0o644, 0, 0) + b"n\0",
    Op.FALLOCATE: bytes(32), Op.RENAME2: pack("<QII", 1, 0, 0) + b"file\0n\0",
    Op.COPY_FILE_RANGE: bytes(56), Op.TMPFILE: pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"\0",
}  # fmt: skip


@pytest.mark.parametrize("opcode", CHANGES)
def test_a_read_only_share_refuses_every_change(tmp_path, opcode):
    """EROFS, before anything is looked at."""
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    client = Client(tmp_path, read_only=True)
    assert client.lookup("file").nodeid == 2
    assert fails(client.call, opcode, 1, CHANGES[opcode]) == "EROFS"
    assert sorted(os.listdir(tmp_path)) == ["dir", "file"]


def test_a_read_only_share_is_read_without_opening(tmp_path):
    """OPEN is not needed, if the guest can do without; nor may it be for writing."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "dir").mkdir()
    client = Client(tmp_path, read_only=True, cache="always")
    node = client.lookup("file").nodeid
    assert fails(client.open, node) == "ENOSYS" and fails(client.opendir) == "ENOSYS"
    assert client.read(node, 0, 9) == b"text"
    assert sorted(name for name, *_ in client.entries(1, 0)) == [b".", b"..", b"dir", b"file"]
    assert fails(client.read, client.lookup("dir").nodeid, 0, 9) == "EISDIR"
    plain = Client(tmp_path, read_only=True, flags=0)
    node = plain.lookup("file").nodeid
    assert fails(plain.open, node, os.O_RDWR) == "EROFS"
    assert fails(plain.open, node, os.O_RDONLY | os.O_TRUNC) == "EROFS"
    assert plain.read(node, plain.open(node), 9) == b"text"


@pytest.mark.parametrize(
    "opcode", [Op.GETLK, Op.SETLK, Op.SETLKW, Op.IOCTL, Op.POLL, Op.BMAP, Op.SETUPMAPPING, 4096, 0]
)
def test_what_is_not_offered_is_enosys(tmp_path, opcode):
    """Linux then does it itself, or without."""
    assert fails(Client(tmp_path).call, opcode, 1, bytes(64)) == "ENOSYS"


def test_destroy_forgets_all(tmp_path):
    """The next mount begins anew."""
    client = Client(tmp_path)
    entry, handle = client.create("a")
    client.call(Op.DESTROY, 0)
    assert (len(client.session.inodes), len(client.session.handles)) == (1, 0)
    assert fails(client.getattr, entry.nodeid) == "ESTALE"
    assert fails(client.read, entry.nodeid, handle, 1) == "EBADF"


def test_the_host_must_have_the_directory(tmp_path):
    """Clear words for what cannot be shared."""
    (tmp_path / "file").touch()
    for name in ("file", "missing", "nul\0"):
        with pytest.raises(FileTrouble, match="share"):
            Session(str(tmp_path / name))
    with pytest.raises(UsageError, match="cache"):
        Session(str(tmp_path), cache="sometimes")


def test_statfs_statx_and_access(tmp_path):
    """As statvfs(3) and statx(2) say on the host."""
    client = Client(tmp_path)
    blocks = abi.STATFS_OUT.unpack(client.call(Op.STATFS, 1))[0]
    assert blocks == os.statvfs(tmp_path).f_blocks
    fields = abi.STATX.unpack(client.call(Op.STATX, 1, abi.STATX_IN.pack(0, 0, 0, 0, 0xFFF))[32:])
    assert fields[0] & 0x7FF == 0x7FF and fields[7] == tmp_path.stat().st_ino
    assert client.call(Op.ACCESS, 1, pack("<II", os.W_OK, 0)) == b""


def test_nothing_stays_open(tmp_path):
    """All descriptors go with the share."""
    (tmp_path / "d").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    client = Client(Path(tmp_path))
    client.list(client.lookup("d").nodeid)
    client.create("d/x".replace("/", "-"))
    client.server.reset()
    del client
    assert len(os.listdir("/proc/self/fd")) == before


def serve_now(client, opcode, node, body, room=1 << 20):
    """How many bytes the answer has, or None if it has to wait."""
    message = client.message(opcode, node, body)
    return client.server.serve_now([memoryview(message)], [memoryview(bytearray(16 + room))])


def test_what_is_in_the_page_cache_is_read_at_once(tmp_path):
    """Up to the file's end; what is not there, or is much, is for a thread."""
    (tmp_path / "file").write_bytes(bytes(300_000))
    client = Client(tmp_path)
    node = client.lookup("file").nodeid
    handle = client.open(node)

    def read(offset, size):
        body = abi.READ_IN.pack(handle, offset, size, 0, 0, 0, 0)
        return serve_now(client, Op.READ, node, body, min(size, 1 << 17))

    assert read(0, 4096) == 16 + 4096
    assert read(299_000, 4096) == 16 + 1000
    assert read(400_000, 4096) == 16
    with open(tmp_path / "file", "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert read(0, 4096) in (None, 16 + 4096)  # not every file system forgets
    body = abi.READ_IN.pack(handle, 0, 1 << 20, 0, 0, 0, 0)
    assert serve_now(client, Op.READ, node, body) is None


def test_what_waits_for_a_medium_is_for_a_thread(tmp_path):
    """And after something that took long, the next requests are too."""
    client = Client(tmp_path)
    entry, handle = client.create("file")
    assert serve_now(client, Op.FSYNC, entry.nodeid, pack("<QII", handle, 0, 0)) is None
    assert serve_now(client, Op.GETATTR, entry.nodeid, bytes(16)) == 120
    client.server._wait = 1
    assert serve_now(client, Op.GETATTR, entry.nodeid, bytes(16)) is None
    assert serve_now(client, Op.GETATTR, entry.nodeid, bytes(16)) == 120
