"""What a guest knows of a share: a table from its node ids to files of the host.

A file is found again by its name in its directory, one name at a time and never
through a symbolic link, or by an O_PATH descriptor. Descriptors are opened when
something needs one and closed again, the oldest first, when there are too many; a
file without a name (the guest removed it, and has it open) keeps the one it has.

A node id stands for the file that had this device, inode number and kind. When
something else has the name, the id is stale (ESTALE) and Linux looks the name up
again.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import ENFILE, ESTALE
from stat import S_IFMT

from kvmkit.backends.fuse.abi import ROOT_ID
from kvmkit.backends.fuse.descriptors import Descriptor
from kvmkit.backends.fuse.syscalls import beneath, filesystem_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.handles import Handle

__all__ = ["Inode", "InodeTable", "key_of"]

MAX_INODES: Final = 1 << 20
"""Files a guest may know at a time; each costs about half a kilobyte."""

_INO_BITS: Final = 48

# linux/magic.h: file systems that hold no files but the host's kernel and its processes.
_PSEUDO: Final = frozenset(
    (
        0x0000_9FA0,  # proc
        0x6265_6572,  # sysfs
        0x0000_1CD1,  # devpts
        0x0027_E0EB,  # cgroup
        0x6367_7270,  # cgroup2
        0x6462_6720,  # debugfs
        0x7472_6163,  # tracefs
        0x7363_6673,  # securityfs
        0x6165_676C,  # pstore
        0xCAFE_4A11,  # bpf
        0x6265_6570,  # configfs
        0xDE5E_81E4,  # efivarfs
        0x6573_5543,  # fusectl
        0xF97C_FF8C,  # selinux
        0x1980_0202,  # mqueue
        0x0000_0187,  # autofs
        0x4249_4E4D,  # binfmt_misc
        0x6E73_6673,  # nsfs
    )
)


def key_of(status: os.stat_result) -> tuple[int, int, int]:
    """What makes a file the same file: device, inode number, kind."""
    return status.st_dev, status.st_ino, S_IFMT(status.st_mode)


def stale() -> OSError:
    """What a request gets for a file that is not there any more."""
    return OSError(ESTALE, "ESTALE")


class Inode:
    """A file the guest knows. ``name`` in ``parent`` is the last name it was seen under."""

    __slots__ = (
        "closed", "data", "held", "key", "lookups", "name", "nodeid", "parent", "version",
    )  # fmt: skip

    def __init__(
        self, nodeid: int, key: tuple[int, int, int], parent: Inode | None, name: bytes | None
    ) -> None:
        self.nodeid = nodeid
        self.key = key
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.held: Descriptor | None = None
        """Its O_PATH descriptor, if it has one now."""
        self.data: Handle | None = None
        """Open for reading, for guests that do not open what they read (INIT)."""
        self.version: tuple[int, int] | None = None
        """Modification time and size when it was last opened."""
        self.closed = False
        """A mount of the host's kernel's: shown as an empty directory."""

    @property
    def kind(self) -> int:
        """S_IFREG, S_IFDIR, ..."""
        return self.key[2]


class InodeTable:
    """The files below the directory ``root``, with at most ``most_held`` descriptors."""

    def __init__(self, root: Descriptor, most_held: int, most: int = MAX_INODES) -> None:
        status = os.fstat(root.fd)
        self._root = Inode(ROOT_ID, key_of(status), None, None)
        self._root.held = root
        self._most_held = most_held
        self._most = most
        self._lock = allocate_lock()
        self._devices: dict[int, tuple[int, bool]] = {status.st_dev: (0, False)}
        self.last_id = ROOT_ID
        """The highest node id so far."""
        self.clear()

    def clear(self) -> None:
        """The guest has unmounted: it knows the root only. Node ids are never used again."""
        with self._lock:
            self._root.data = None
            self._by_id = {ROOT_ID: self._root}
            self._by_key = {self._root.key: self._root}
            self._held: dict[int, Inode] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def held(self) -> int:
        """How many descriptors are open, besides the root's."""
        return len(self._held)

    def all(self) -> list[Inode]:
        """What the guest knows, the root too."""
        return list(self._by_id.values())

    def adopt(self, inodes: dict[int, Inode], last_id: int) -> None:
        """Know these, and the root, and nothing else."""
        with self._lock:
            self._by_id = {ROOT_ID: self._root, **inodes}
            self._by_key = {inode.key: inode for inode in self._by_id.values()}
            self._held = {}
            self.last_id = last_id

    # Finding

    def get(self, nodeid: int) -> Inode:
        """The guest's ``nodeid``. Raises OSError (ESTALE) if that is none."""
        inode = self._by_id.get(nodeid)
        if inode is None:
            raise stale()
        return inode

    def known(self, status: os.stat_result) -> Inode | None:
        """The file with this status, if the guest knows it."""
        return self._by_key.get(key_of(status))

    def remember(self, parent: Inode, name: bytes | None, status: os.stat_result) -> Inode:
        """The guest learns of ``name`` in ``parent``: one more look-up. Raises OSError (ENFILE)."""
        key = key_of(status)
        closed = status.st_dev != parent.key[0] and self._is_pseudo(parent, name, status)
        with self._lock:
            inode = self._by_key.get(key)
            if inode is None:
                if len(self._by_id) >= self._most:
                    raise OSError(ENFILE, "ENFILE")
                self.last_id = nodeid = self.last_id + 1
                inode = Inode(nodeid, key, parent, name)
                inode.closed = closed
                self._by_id[nodeid] = self._by_key[key] = inode
            elif inode is not self._root and name is not None:
                inode.parent, inode.name = parent, name
            inode.lookups += 1
        return inode

    def forget(self, nodeid: int, count: int) -> None:
        """The guest drops ``count`` look-ups; more than it has is as all of them."""
        with self._lock:
            inode = self._by_id.get(nodeid)
            if inode is None or inode is self._root:
                return
            inode.lookups -= count
            if inode.lookups <= 0:
                del self._by_id[nodeid]
                if self._by_key.get(inode.key) is inode:
                    del self._by_key[inode.key]
                self._held.pop(nodeid, None)
                inode.held = inode.data = None

    # Using

    def hold(self, inode: Inode) -> Descriptor:
        """Its O_PATH descriptor. Raises OSError: ESTALE if it cannot be found again."""
        descriptor = inode.held
        if descriptor is not None:
            return descriptor
        missing = [inode]
        seen = {inode.nodeid}
        node = inode
        while True:
            if node.parent is None or node.name is None:
                raise stale()
            node = node.parent
            descriptor = node.held
            if descriptor is not None:
                break
            if node.nodeid in seen:  # names the host has since moved into each other
                raise stale()
            seen.add(node.nodeid)
            missing.append(node)
        for node in reversed(missing):
            name = node.name
            if name is None:
                raise stale()
            try:
                found = Descriptor(beneath(descriptor.fd, name))
            except FileNotFoundError:
                raise stale() from None
            if key_of(os.fstat(found.fd)) != node.key:
                raise stale()
            self.keep(node, found)
            descriptor = found
        return descriptor

    def keep(self, inode: Inode, descriptor: Descriptor) -> None:
        """Let ``inode`` have this descriptor; another one may go for it."""
        with self._lock:
            if self._by_id.get(inode.nodeid) is not inode or inode is self._root:
                return  # forgotten meanwhile: the caller's reference is the last
            inode.held = descriptor
            self._held.pop(inode.nodeid, None)
            self._held[inode.nodeid] = inode
            if len(self._held) > self._most_held:
                self._drop(self._most_held // 8 + 1)

    def attach(self, inode: Inode, handle: Handle) -> None:
        """Let ``inode`` have it for reading, as long as it has an O_PATH descriptor."""
        with self._lock:
            if inode.nodeid in self._held or inode is self._root:
                inode.data = handle

    def relieve(self) -> None:
        """The process has no descriptors left: close half of ours."""
        with self._lock:
            self._drop((len(self._held) + 1) // 2)

    def _drop(self, count: int) -> None:
        """Close the oldest, those that can be opened again first. With the lock."""
        order = sorted(self._held.values(), key=lambda inode: inode.name is None)
        for inode in order[:count]:
            del self._held[inode.nodeid]
            inode.held = inode.data = None

    def status(self, inode: Inode) -> os.stat_result:
        """stat(2) of it. Raises OSError: ESTALE if it cannot be found again."""
        descriptor = inode.held
        if descriptor is not None:
            return os.fstat(descriptor.fd)
        parent, name = inode.parent, inode.name
        if parent is None or name is None:
            raise stale()
        directory = self.hold(parent)
        try:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            raise stale() from None
        if key_of(status) != inode.key:
            raise stale()
        return status

    # Names that go

    def unnamed(self, parent: Inode, name: bytes) -> Inode | None:
        """``name`` is about to go: if the guest knows its file, keep a descriptor of it."""
        directory = self.hold(parent)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        inode = self.known(status)
        if inode is not None and inode.held is None:
            try:
                descriptor = Descriptor(beneath(directory.fd, name))
                if key_of(os.fstat(descriptor.fd)) == inode.key:
                    self.keep(inode, descriptor)
            except FileNotFoundError:
                pass
        return inode

    def moved(
        self, inode: Inode, parent: Inode, name: bytes, to: tuple[Inode, bytes] | None
    ) -> None:
        """It has lost the name ``name`` in ``parent``, and got another or none."""
        with self._lock:
            if to is not None:
                inode.parent, inode.name = to
            elif inode.parent is parent and inode.name == name:
                inode.name = None

    # Numbers

    def number(self, status: os.stat_result) -> int:
        """An inode number that no two files of the share have, also across its mounts."""
        return self.number_of(status.st_dev, status.st_ino)

    def number_of(self, device: int, number: int) -> int:
        """The same, of inode ``number`` on ``device``."""
        known = self._devices.get(device)
        index = 0 if known is None else known[0]
        return (number ^ index << _INO_BITS) & 0xFFFF_FFFF_FFFF_FFFF

    def _is_pseudo(self, parent: Inode, name: bytes | None, status: os.stat_result) -> bool:
        """Whether a mount below the share is one of the host's kernel's own."""
        device = self._devices.get(status.st_dev)
        if device is None or name is None:
            if name is None:
                return False
            directory = self.hold(parent)
            descriptor = Descriptor(beneath(directory.fd, name))
            pseudo = filesystem_type(descriptor.fd) in _PSEUDO
            with self._lock:
                device = self._devices.setdefault(status.st_dev, (len(self._devices), pseudo))
        return device[1]
