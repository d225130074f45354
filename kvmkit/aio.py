"""The VM for asyncio programs: what waits is awaited, what does not is the VM's own.

    async with AsyncVM("bzImage", initrd=["root.cpio"]) as vm:
        await vm.expect("login:", timeout=30)
        vm.vm.console.send("root\\n")
        ending = await vm.wait()

Everything that may wait runs on a thread of asyncio's pool (``asyncio.to_thread``),
so the event loop goes on; events come to the event loop's own thread.
"""

from __future__ import annotations

import asyncio

from kvmkit.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Any, Self

    from kvmkit.board.power import Ending
    from kvmkit.events import Event

__all__ = ["AsyncVM"]

_STEP = 0.05


class AsyncVM:
    """A VM whose arguments are those of :class:`kvmkit.VM`; ``vm`` is that object.

    Cancelling what waits leaves the VM as it is; leaving the ``async with`` block
    closes it. Use it from one event loop.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.vm = VM(*arguments, **named)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """See :meth:`kvmkit.VM.start`."""
        await _whole(self.vm.start)

    async def close(self) -> None:
        """See :meth:`kvmkit.VM.close`."""
        await _whole(self.vm.close)

    async def wait(self) -> Ending:
        """Until it has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self.vm.on_end(lambda _: _hand_over(loop, ended.set))
        if self.vm.ending is None:
            await ended.wait()
        assert self.vm.ending is not None
        return self.vm.ending

    async def pause(self) -> None:
        """See :meth:`kvmkit.VM.pause`."""
        await asyncio.to_thread(self.vm.pause)

    async def resume(self) -> None:
        """See :meth:`kvmkit.VM.resume`."""
        await asyncio.to_thread(self.vm.resume)

    async def reset(self) -> None:
        """See :meth:`kvmkit.VM.reset`."""
        await asyncio.to_thread(self.vm.reset)

    async def wait_for(
        self, what: str | Callable[[], object], timeout: float | None = None
    ) -> Event | object:
        """See :meth:`kvmkit.VM.wait_for`."""
        found: object = await self._cancellable(lambda: self.vm.wait_for(what, timeout))
        return found

    async def expect(
        self, pattern: str | re.Pattern[str], timeout: float | None = None
    ) -> re.Match[str]:
        """See :meth:`kvmkit.expect.ConsoleView.expect`."""
        found: re.Match[str] = await self._cancellable(
            lambda: self.vm.console.expect(pattern, timeout)
        )
        return found

    async def events(self) -> AsyncIterator[Event]:
        """Every event from now on, the last being ``shutdown``."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()

        def listen(event: Event) -> None:
            _hand_over(loop, lambda: queue.put_nowait(event))

        self.vm.on(None, listen)
        try:
            while True:
                event = await queue.get()
                yield event
                if event.kind == "shutdown":
                    return
        finally:
            self.vm.off(listen)

    async def _cancellable(self, wait: Callable[[], Any]) -> Any:
        """``wait`` on a thread that gives up soon after the task was cancelled."""
        cancelled = False

        def check() -> None:
            if cancelled:
                raise asyncio.CancelledError

        def run() -> Any:
            with self.vm.interruptible(check):
                return wait()

        try:
            return await asyncio.to_thread(run)
        except asyncio.CancelledError:
            cancelled = True
            raise


async def _whole(call: Callable[[], None]) -> None:
    """``call`` on a thread, to its end also when the task is cancelled meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _hand_over(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the event loop is closed; nobody waits
        pass
