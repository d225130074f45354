"""Devices that are added to a board: what they are handed, and how they are joined to it."""

from __future__ import annotations

import os

from kvmkit.board.loop import READABLE
from kvmkit.virtio.pci import NOTIFY, NOTIFY_STRIDE, REGISTER_BAR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.virtio.pci import VirtioPci

__all__ = ["BoardHost", "KernelNotify"]

_NOTIFY_SIZE = 2
"""Linux notifies by 16-bit writes; what a driver does otherwise takes the bus."""


class BoardHost:
    """A board as its devices see it; keeps the promise of :class:`kvmkit.virtio.memory.Host`."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.ram = board.ram

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` now, under the board's lock."""
        with self._board.lock:
            action()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the I/O thread, under the board's lock."""
        self._board.loop.call_soon(lambda: self.call(action))

    def warn(self, text: str) -> None:
        """Log one line about what the guest did wrong."""
        self._board.warn(text)

    @property
    def paused(self) -> bool:
        """Whether nothing from outside may reach the guest now; read under the lock."""
        return self._board.paused or self._board.bus.frozen

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` on the I/O thread, without the lock, when ``fd`` has one
        of ``events`` (epoll(7)); 0 for none. From any thread, in the order of the calls."""
        loop = self._board.loop

        def act() -> None:
            if events:
                loop.watch(fd, events, callback)
            else:
                loop.unwatch(fd)

        if loop.inside:
            act()
        else:
            loop.call_soon(act)


class KernelNotify:
    """Notifications that KVM takes without stopping the vCPU: an ioeventfd for each queue.

    The I/O thread then serves the queue, while the guest runs on. KVM's
    ``Documentation/virt/kvm/api.rst``, KVM_IOEVENTFD.
    """

    def __init__(self, board: Board, function: VirtioPci) -> None:
        self._board = board
        self._function = function
        self._engine: Any = board.engine
        self._address: int | None = None
        self._fds: list[int] = []
        for index in range(len(function.device.queue_sizes)):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._fds.append(fd)
            board.loop.watch(fd, READABLE, self._hearer(fd, index))

    def moved(self, bar: int, address: int | None) -> None:
        """BAR ``bar`` is at ``address`` now, or nowhere."""
        if bar != REGISTER_BAR:
            return
        if self._address is not None:
            self._each(self._address, remove=True)
        self._address = address
        if address is not None:
            self._each(address, remove=False)

    def _each(self, address: int, *, remove: bool) -> None:
        for index, fd in enumerate(self._fds):
            place = address + NOTIFY + NOTIFY_STRIDE * index
            try:
                self._engine.ioeventfd(fd, place, _NOTIFY_SIZE, remove=remove)
            except OSError:
                pass  # over something else, or one too many: the bus takes the write

    def _hearer(self, fd: int, index: int) -> Callable[[int], None]:
        def hear(events: int) -> None:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                return
            with self._board.lock:
                if not self._board.bus.frozen:
                    self._function.notify(index)

        return hear

    def close(self) -> None:
        """Free the descriptors; the engine and the loop have stopped."""
        while self._fds:
            fd = self._fds.pop()
            self._board.loop.unwatch(fd)
            os.close(fd)
