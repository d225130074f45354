"""The FUSE server and guests that mean no good."""

from __future__ import annotations

import os
import shutil
import threading
import time
from struct import pack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.abi import Op
from kvmkit.backends.fuse.inodes import InodeTable
from kvmkit.backends.fuse.session import Session
from tests.backends.fuse_client import Client, FuseError
from tests.backends.fuse_hostile import SECRET, Place, play
from tests.backends.test_fuse_server import fails


@pytest.fixture
def place(tmp_path):
    """A share with a secret beside it."""
    return Place(tmp_path)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"/", b"a/b", b"../outside", b"/etc/passwd"])
@pytest.mark.parametrize("opcode", [Op.LOOKUP, Op.MKDIR, Op.UNLINK, Op.CREATE, Op.SYMLINK])
def test_only_names_of_one_file_are_names(place, name, opcode):
    """A path, or a way up, is EINVAL and nothing happens."""
    client = Client(place.share)
    sizes = {Op.MKDIR: 8, Op.CREATE: 16}
    body = bytes(sizes.get(opcode, 0)) + name + b"\0target\0"
    assert fails(client.call, opcode, 1, body) == "EINVAL"
    place.check()


@pytest.mark.parametrize("body", [b"", b"name", b"n" * 300 + b"\0", b"x" * 70000])
def test_a_name_ends_and_is_not_too_long(place, body):
    """In the request, and after 255 bytes at most."""
    assert fails(Client(place.share).call, Op.LOOKUP, 1, body) in ("EINVAL", "ENAMETOOLONG")


def test_symbolic_links_are_not_followed(place):
    """Every operation on a link is on itself or fails; what it points at stays untouched."""
    os.setxattr(place.outside / "secret", "user.hidden", SECRET)
    place.before = place._outside()
    client = Client(place.share)
    node, folder = client.lookup("out").nodeid, client.lookup("outdir").nodeid
    assert fails(client.open, node) == "ELOOP"
    assert fails(client.opendir, folder) == "ENOTDIR"
    assert fails(client.lookup, "secret", folder) == "ENOTDIR"
    assert fails(client.create, "new", parent=folder) == "ENOTDIR"
    assert fails(client.create, "out") == "ELOOP"
    assert fails(client.setattr, node, abi.FATTR_SIZE, size=0) == "EINVAL"
    assert fails(client.setattr, node, abi.FATTR_MODE, mode=0) in ("ENOTSUP", "")
    client.setattr(node, abi.FATTR_MTIME, mtime=1)
    assert fails(client.xattr, node, "user.hidden")
    assert fails(client.call, Op.SETXATTR, node, pack("<II", 1, 0) + b"user.x\0x")
    assert client.call(Op.LISTXATTR, node, pack("<II", 99, 0)) == b""
    assert client.call(Op.READLINK, node) == b"../outside/secret"
    client.call(Op.LINK, 1, pack("<Q", node) + b"link2\0")
    assert (place.share / "link2").is_symlink()
    place.check()


def test_a_directory_turned_into_a_link_is_not_followed(place):
    """Between the look-up and the use, a directory becomes a way out."""
    client = Client(place.share, budget=1)
    folder = client.lookup("d").nodeid
    file = client.lookup("file", folder).nodeid
    deep = client.lookup("deep", folder).nodeid
    client.list(client.lookup("d2").nodeid)  # the only descriptor goes to another
    shutil.rmtree(place.share / "d")
    (place.share / "d").symlink_to(place.outside)
    for name in ("file", "deep"):
        (place.outside / name).write_bytes(SECRET)
    place.before = place._outside()
    for call in (
        lambda: client.lookup("secret", folder),
        lambda: client.open(file),
        lambda: client.list(deep),
        lambda: client.getattr(file),
        lambda: client.setattr(file, abi.FATTR_MODE, mode=0),
        lambda: client.create("new", parent=folder),
        lambda: client.unlink("secret", folder),
        lambda: client.rename("a", "a", target=folder),
    ):
        assert fails(call) in ("ESTALE", "ENOENT", "ENOTDIR")
    place.check()


def test_a_race_of_links_and_directories_leads_nowhere(place):
    """While the host swaps a directory for a link, nothing outside is read."""
    inside, outside = place.share / "x", place.share / "y"
    inside.mkdir()
    (inside / "secret").write_bytes(b"harmless")
    outside.symlink_to(place.outside)
    end = threading.Event()

    def swap():
        names = [str(place.share / name) for name in "xyz"]
        while not end.is_set():
            os.rename(names[0], names[2])
            os.rename(names[1], names[0])
            os.rename(names[2], names[1])

    thread = threading.Thread(target=swap)
    thread.start()
    good = 0
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            client = Client(place.share, budget=2)
            try:
                node = client.lookup("x/secret").nodeid
                content = client.read(node, client.open(node), 99)
                assert content == b"harmless"
                good += 1
            except FuseError as error:
                assert error.name in ("ENOTDIR", "ESTALE", "ENOENT", "ELOOP")
    finally:
        end.set()
        thread.join()
    assert good


@pytest.mark.parametrize("kind", [0o010644, 0o140644])
def test_pipes_and_sockets_are_not_opened(place, kind):
    """A guest's kernel opens them itself; a pipe would hold our thread for ever."""
    client = Client(place.share)
    client.call(Op.MKNOD, 1, pack("<IIII", kind, 0, 0, 0) + b"special\0")
    assert fails(client.open, client.lookup("special").nodeid) == "EINVAL"
    assert fails(client.create, "special") == "EINVAL"


def test_device_nodes_are_not_made(place):
    """But whiteouts, which an overlay needs."""
    client = Client(place.share)
    for kind, number in ((0o060600, 0x800), (0o020600, 0x101), (0o060600, 0)):
        body = pack("<IIII", kind, number, 0, 0) + b"device\0"
        assert fails(client.call, Op.MKNOD, 1, body) == "EPERM"
    assert not (place.share / "device").exists()


def test_the_hosts_kernel_is_not_in_a_share_of_the_root():
    """/proc and /sys are there, as empty directories."""
    client = Client("/", read_only=True)
    for name in ("proc", "sys"):
        node = client.lookup(name).nodeid
        assert client.list(node) == client.list(node, plus=True) == []
        assert fails(client.lookup, "self", node) == "ENOENT"
        assert fails(client.lookup, "kernel", node) == "ENOENT"
    assert b"proc" in client.list()


def test_numbers_of_nodes_and_handles_are_checked(place):
    """Unknown, stale, of the wrong kind, or the largest there are."""
    client = Client(place.share)
    file, folder = client.lookup("a").nodeid, client.lookup("d").nodeid
    handle, directory = client.open(file), client.opendir(folder)
    for node in (0, 99, (1 << 64) - 1):
        assert fails(client.getattr, node) == "ESTALE"
    assert fails(client.read, file, directory, 9) == "EBADF"
    assert fails(client.entries, folder, handle) == "EBADF"
    assert fails(client.read, file, 99, 9) == "EBADF"
    client.release(file, handle)
    client.release(file, handle)
    assert fails(client.read, file, handle, 9) == "EBADF"
    assert fails(client.opendir, file) == "ENOTDIR"
    assert fails(client.open, folder) == "EISDIR"


def test_forgetting_too_much_is_forgetting(place):
    """Below zero, unknown nodes, the root, and a batch that promises more than it has."""
    client = Client(place.share)
    node = client.lookup("a").nodeid
    client.forget(node, (1 << 64) - 1)
    client.forget(node)
    client.forget(1, 1 << 63)
    message = client.message(Op.BATCH_FORGET, 0, pack("<IIQQ", (1 << 32) - 1, 0, 1, 1))
    assert client.raw(message, 0) == b""
    assert fails(client.getattr, node) == "ESTALE"
    assert client.getattr(1).ino


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_offsets_no_file_has(place, offset):
    """EINVAL, for reads, writes, lists, seeks and sizes."""
    client = Client(place.share)
    node = client.lookup("a").nodeid
    handle = client.open(node, os.O_RDWR)
    assert fails(client.read, node, handle, 9, offset) == "EINVAL"
    assert fails(client.write, node, handle, b"x", offset) == "EINVAL"
    assert fails(client.setattr, node, abi.FATTR_SIZE, size=offset) == "EINVAL"
    assert fails(client.call, Op.LSEEK, node, abi.LSEEK_IN.pack(handle, offset, 3, 0)) == "EINVAL"
    assert fails(client.entries, 1, client.opendir(), offset=offset) == "EINVAL"


def test_a_huge_read_fills_what_room_there_is(place):
    """Not more, and without a buffer of that size."""
    client = Client(place.share)
    node = client.lookup("a").nodeid
    body = abi.READ_IN.pack(client.open(node), 0, (1 << 32) - 1, 0, 0, 0, 0)
    assert client.call(Op.READ, node, body, room=5) == b"conte"


def test_open_files_are_bounded(place):
    """ENFILE for one too many; room again when one is closed."""
    client = Client(place.share, budget=4)
    node = client.lookup("a").nodeid
    handles = [client.open(node) for _ in range(4)]
    assert fails(client.open, node) == "ENFILE"
    client.release(node, handles[0])
    client.open(node)


def test_known_files_are_bounded(place):
    """ENFILE for one too many; room again when one is forgotten."""
    session = Session(str(place.share))
    table = InodeTable(session.inodes.hold(session.inodes.get(1)), 4, most=3)
    root = table.get(1)
    names = [b"a", b"b", b"d"]
    for name in names[:2]:
        table.remember(root, name, os.stat(place.share / os.fsdecode(name)))
    with pytest.raises(OSError, match="ENFILE"):
        table.remember(root, b"d", os.stat(place.share / "d"))
    table.forget(2, 1)
    table.remember(root, b"d", os.stat(place.share / "d"))


def test_a_deep_tree_is_found_again_with_few_descriptors(tmp_path):
    """All descriptors went to others: the way down is gone again, name by name."""
    client = Client(tmp_path, budget=3)
    node, nodes = 1, []
    for _ in range(400):
        node = client.mkdir("d", parent=node).nodeid
        nodes.append(node)
    client.create("bottom", parent=node)
    for other in nodes[:10]:
        client.list(other)
    assert client.list(node) == [b"bottom"]
    assert client.session.inodes.held <= 3


def test_a_circle_of_names_is_stale(tmp_path):
    """The host moves directories into each other: no way leads there, and none for ever."""
    (tmp_path / "a/b").mkdir(parents=True)
    client = Client(tmp_path, budget=1)
    a = client.lookup("a").nodeid
    b = client.lookup("b", a).nodeid
    (tmp_path / "a/b").rename(tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "b/a")
    client.lookup("b")
    client.lookup("a", b)
    nodes = client.session.inodes
    nodes.get(b).parent = nodes.get(a)
    nodes.relieve()
    assert fails(client.lookup, "x", a) == "ESTALE"


def test_handles_closed_in_use_read_no_other_file(place):
    """While one thread closes and opens, another reads: only ever the file it asked for."""
    client = Client(place.share)
    node, other = client.lookup("a").nodeid, client.lookup("b").nodeid
    end = threading.Event()
    bad = []
    current = [client.open(node)]

    def read():
        reader = client.server
        while not end.is_set():
            body = abi.READ_IN.pack(current[0], 0, 99, 0, 0, 0, 0)
            head = abi.IN_HEADER.pack(80, Op.READ, 7, node, 0, 0, 1, 0, 0)
            room = bytearray(200)
            size = reader.serve([memoryview(head + body)], [memoryview(room)])
            if size > 16 and room[16:size] != b"content of a":
                bad.append(bytes(room[:size]))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        client.release(node, current[0])
        wrong = client.open(other)
        current[0] = client.open(node)
        client.release(other, wrong)
    end.set()
    for thread in threads:
        thread.join()
    assert not bad


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(min_size=20, max_size=1500))
def test_any_requests_leave_server_and_host_in_order(place, data):
    """Proper and improper operations in any order; see ``fuse_hostile.py``."""
    place.refill()
    play(data, place)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_bytes_are_answered_or_not(data, room):
    """As a message, whatever they are."""
    client = Client("/usr/share", read_only=True)
    client.raw(data, room)
    length = pack("<I", len(data))
    client.raw(length + data[4:], room, (3, 50))
    assert not client.warnings
