"""Interrupts of virtio queues by eventfd, for backends that are other processes.

A vhost or vhost-user backend interrupts by writing to an eventfd. With KVM, and
while the queue's MSI-X vector is open, the kernel sends the message (irqfd, and a
route for it: ``Documentation/virt/kvm/api.rst``, KVM_IRQFD and
KVM_SET_GSI_ROUTING). At all other times, and with the software CPU, the I/O
thread reads the eventfd and interrupts as the device would, so that masked
vectors stay pending and INTx works.
"""

from __future__ import annotations

import os

from kvmkit.board.loop import READABLE
from kvmkit.virtio.transport import NO_VECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.virtio.pci import VirtioPci

__all__ = ["CallFds"]


class CallFds:
    """The eventfds that interrupt for the queues of ``function``, made when asked for.

    ``new_gsi()`` gives a GSI that nobody else routes.
    """

    def __init__(self, board: Board, function: VirtioPci, new_gsi: Callable[[], int]) -> None:
        self._board = board
        self._function = function
        self._engine: Any = board.engine
        self._kernel = hasattr(board.engine, "irqfd")
        self._new_gsi = new_gsi
        self._fds: dict[int, int] = {}  # by queue
        self._gsis: dict[int, int] = {}
        self._joined: set[int] = set()  # queues whose eventfd KVM reads
        function.transport.vectors_changed = self._refresh
        function.routes_changed = self._refresh

    def fd(self, queue: int) -> int:
        """The eventfd of ``queue``; ours to close. Under the board's lock."""
        fd = self._fds.get(queue)
        if fd is None:
            fd = self._fds[queue] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._watch(queue)
            self._place(queue)
        return fd

    def _refresh(self) -> None:
        for queue in self._fds:
            self._place(queue)

    def _place(self, queue: int) -> None:
        """Let KVM read the eventfd if it can do what we would; else do it ourselves."""
        route = self._route(queue)
        if route is not None and self._kernel and self._join(queue, *route):
            return
        if queue in self._joined:
            self._joined.discard(queue)
            self._engine.irqfd(self._fds[queue], self._gsis[queue], remove=True)
            self._watch(queue)

    def _route(self, queue: int) -> tuple[int, int] | None:
        msix = self._function.msix
        vector = self._function.transport.queues[queue].vector
        if msix is None or not msix.enabled or vector == NO_VECTOR:
            return None
        return msix.route(vector)

    def _join(self, queue: int, address: int, data: int) -> bool:
        try:
            gsi = self._gsis.get(queue)
            if gsi is None:
                gsi = self._gsis[queue] = self._new_gsi()
            self._engine.route_msi(gsi, address, data)
            if queue not in self._joined:
                self._engine.irqfd(self._fds[queue], gsi)
        except Exception:  # no more routes, or a KVM that cannot: it goes on with us
            return queue in self._joined
        if queue not in self._joined:
            self._joined.add(queue)
            fd = self._fds[queue]
            self._board.loop.call_soon(lambda: self._board.loop.unwatch(fd))
        return True

    def _watch(self, queue: int) -> None:
        """Let the I/O thread read it; what was written meanwhile is still there."""
        loop, fd = self._board.loop, self._fds[queue]
        loop.call_soon(lambda: loop.watch(fd, READABLE, lambda events: self._hear(queue)))

    def _hear(self, queue: int) -> None:
        with self._board.lock:
            if queue in self._joined:
                return
            try:
                os.eventfd_read(self._fds[queue])
            except (BlockingIOError, KeyError):
                return
            if not self._board.bus.frozen:
                self._function.transport.interrupt_queue(queue)

    def close(self) -> None:
        """Free the descriptors; the engine and the loop have stopped."""
        while self._fds:
            _, fd = self._fds.popitem()
            self._board.loop.unwatch(fd)
            os.close(fd)
