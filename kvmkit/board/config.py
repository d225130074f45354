"""What a board is asked to be."""

from __future__ import annotations

from kvmkit.board import layout
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmkit.board.console import Sink

__all__ = ["BoardConfig"]


class BoardConfig:
    """The choices of one board; the values are checked here.

    ``memory`` is in bytes, ``hang_timeout`` and ``timeout`` in seconds (None:
    no limit). ``console`` are the sinks of COM1, ``kernel_log`` those of COM2
    (None: nobody asked for a kernel log there). Without ``reboot``, a guest's
    reset ends the machine. With ``hold_input``, typed bytes wait for the guest's
    driver. Raises UsageError for values that no machine can have.
    """

    __slots__ = (
        "console",
        "cpus",
        "hang_timeout",
        "hold_input",
        "huge_pages",
        "kernel_log",
        "memory",
        "reboot",
        "timeout",
    )

    def __init__(
        self,
        *,
        cpus: int = 1,
        memory: int = 512 * layout.MIB,
        huge_pages: str | None = None,
        console: Sequence[Sink] = (),
        kernel_log: Sequence[Sink] | None = None,
        reboot: bool = True,
        timeout: float | None = None,
        hang_timeout: float | None = None,
        hold_input: bool = False,
    ) -> None:
        if not 1 <= cpus <= layout.MAX_CPUS:
            raise UsageError(f"a machine has 1 to {layout.MAX_CPUS} CPUs, not {cpus}")
        for name, seconds in (("timeout", timeout), ("hang timeout", hang_timeout)):
            if seconds is not None and not 0 < seconds < 1e9:
                raise UsageError(f"the {name} must be more than 0 seconds, not {seconds:g}")
        self.cpus = cpus
        self.memory = memory  # checked by GuestMemory
        self.huge_pages = huge_pages
        self.console = tuple(console)
        self.kernel_log = None if kernel_log is None else tuple(kernel_log)
        self.reboot = reboot
        self.timeout = timeout
        self.hang_timeout = hang_timeout
        self.hold_input = hold_input
