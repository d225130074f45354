"""Copies of a running VM that share its memory until they write to it.

Nothing is copied at first: the memory's file is sealed as it is, and the VM and its
copies map it privately (mmap(2), ``MAP_PRIVATE``), each with its own pages where it
writes. The state is handed on as records, not as text.
"""

from __future__ import annotations

import os

from kvmkit.errors import UsageError
from kvmkit.snapshot.machine import config_of, make

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from kvmkit.board.console import Sink
    from kvmkit.vm import VM

__all__ = ["Moment", "fork"]


class Moment:
    """A VM's state and memory at one moment; what a snapshot is, without a disk."""

    def __init__(self, fd: int, state: Any) -> None:
        self.fd = fd
        self._state = state

    def state(self, like: Any) -> Any:
        """The machine's state; ``like`` is not needed, these are records of our own."""
        return self._state

    def close(self) -> None:
        """Close the memory's file. Callable twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def fork(
    vm: VM,
    count: int,
    consoles: Sequence[Sink | None] = (),
    prepare: Callable[[VM, int], None] | None = None,
) -> list[VM]:
    """``count`` running copies of ``vm``, which runs on; see :meth:`kvmkit.VM.fork`."""
    from kvmkit.board.state import state_of

    if count < 1:
        raise UsageError(f"a number of copies is 1 or more, not {count}")
    if vm.disks or vm.nets:
        raise UsageError("copies cannot share disks or networks; fork a VM without")
    board = vm.board
    with board.control:
        running = not board.paused
        board.pause()
        try:
            for device in board.virtio:
                device.drain()
            with board.lock:
                state = state_of(board)
                image = board.ram.freeze()
        finally:
            if running:
                board.resume()
    copies: list[VM] = []
    try:
        for index in range(count):
            config = config_of(vm)
            config["initrd"] = list(vm.initrds)
            copy = make(
                type(vm),
                config,
                board.ram.size,
                engine=board.engine.name,
                console=consoles[index] if index < len(consoles) else None,
            )
            copies.append(copy)
            copy._snapshot = Moment(os.dup(image), state)
            if prepare is not None:
                prepare(copy, index)
            copy.start()
    except BaseException:
        for copy in copies:
            copy.close()
        raise
    finally:
        os.close(image)
    return copies
