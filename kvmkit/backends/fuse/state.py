"""A share's state taken down, and taken up again, perhaps by another process.

The record (``kvmkit.virtio.fs_state``) may come from a file: nothing in it is
trusted more than a guest is.
"""

from __future__ import annotations

import os
from stat import S_IFDIR, S_IFMT

from kvmkit.backends.fuse.abi import ROOT_ID
from kvmkit.backends.fuse.directories import open_directory
from kvmkit.backends.fuse.files import open_inode
from kvmkit.backends.fuse.handles import DirectoryHandle
from kvmkit.backends.fuse.inodes import MAX_INODES, Inode
from kvmkit.backends.fuse.request import check_name
from kvmkit.virtio.fs_state import ShareFile, ShareHandle, ShareState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.backends.fuse.session import Session

__all__ = ["restore", "save"]


def save(session: Session) -> ShareState:
    """What the guest knows and has open. No request may be under way."""
    inodes, handles = session.inodes, session.handles
    root = inodes.get(ROOT_ID)
    files = [
        ShareFile(
            inode.nodeid, inode.parent.nodeid, inode.name, inode.lookups, *inode.key
        )
        for inode in inodes.all()
        if inode.parent is not None
    ]  # fmt: skip
    return ShareState(
        root_device=root.key[0],
        writeback=session.writeback,
        no_open=session.no_open,
        no_opendir=session.no_opendir,
        last_node=inodes.last_id,
        last_handle=handles.last,
        files=tuple(files),
        handles=tuple(
            ShareHandle(number, handle.inode.nodeid, handle.flags)
            for number, handle in handles.all()
        ),
    )


def restore(session: Session, state: ShareState) -> None:
    """Become ``state``. What is not there any more is stale to the guest, or not open."""
    session.clear()
    session.writeback = bool(state.writeback) and not session.read_only
    session.no_open = bool(state.no_open) and session.read_only
    session.no_opendir = bool(state.no_opendir) and session.read_only
    root = session.inodes.get(ROOT_ID)
    made: dict[int, Inode] = {ROOT_ID: root}
    for file in state.files[:MAX_INODES]:
        if file.node not in made and file.node > ROOT_ID and _is_name(file.name):
            device = root.key[0] if file.device == state.root_device else file.device
            inode = Inode(file.node, (device, file.number, S_IFMT(file.kind)), None, file.name)
            inode.lookups = max(file.lookups, 1)
            made[file.node] = inode
    for file in state.files:
        if file.node != ROOT_ID and file.node in made:
            made[file.node].parent = made.get(file.parent)
    del made[ROOT_ID]
    session.inodes.adopt(made, max(state.last_node, ROOT_ID, *made))
    session.handles.last = max(state.last_handle, 0)
    for handle in state.handles:
        known = made.get(handle.node, root if handle.node == ROOT_ID else None)
        if known is not None and handle.number > 0:
            _reopen(session, known, handle)


def _is_name(name: bytes | None) -> bool:
    try:
        check_name(name or b"")
    except OSError:
        return name is None
    return True


def _reopen(session: Session, inode: Inode, handle: ShareHandle) -> None:
    try:
        if inode.kind == S_IFDIR:
            directory: DirectoryHandle = open_directory(session, inode)
            session.handles.put(handle.number, directory)
        else:
            opened, _ = open_inode(session, inode, handle.flags & ~os.O_TRUNC)
            session.handles.put(handle.number, opened)
    except (OSError, OverflowError):
        pass  # the guest gets EBADF
