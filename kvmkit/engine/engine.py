"""What a CPU engine promises.

An engine runs vCPUs over a guest-physical memory map. It knows no device: what
the guest does outside its RAM goes to a :class:`Bus`, and the end of a vCPU to
``ended``. The two engines, KVM and the software CPU, keep this same promise, so
a board and a saved CPU state work on either.

Life cycle: ``add_ram`` as needed, ``vcpus[0].restore(...)`` for the entry state,
``start()``, then any number of ``pause()``/``resume()``, and ``close()``. CPU
state is read and written only before ``start`` and while paused.
"""

from __future__ import annotations

from kvmkit.frozen import Record
from kvmkit.named import Named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from kvmkit.engine.cpu import CpuState
else:
    Protocol = object  # typing takes 3 ms to import

__all__ = ["Bus", "CpuEnd", "CpuEndReason", "Engine", "Vcpu"]


class Bus(Protocol):
    """Where an engine sends accesses that are not RAM. Sizes are 1, 2, 4 or 8 bytes.

    Called from a vCPU's thread without any lock held; must not raise.
    """

    def port_read(self, port: int, size: int) -> int: ...
    def port_write(self, port: int, size: int, value: int) -> None: ...
    def port_written(self, port: int, data: bytes) -> None:
        """Bytes written to one port, which the engine was told to collect."""

    def memory_read(self, address: int, size: int) -> int: ...
    def memory_write(self, address: int, size: int, value: int) -> None: ...


class CpuEndReason(Named):
    """Why a vCPU can go no further."""

    TRIPLE_FAULT = "triple fault"
    INTERNAL_ERROR = "the engine met something it cannot execute"


class CpuEnd(Record):
    """The end of a vCPU: which, why, and what the engine can say about it."""

    vcpu: int
    reason: CpuEndReason
    detail: str = ""


class Vcpu(Protocol):
    """One virtual CPU."""

    index: int

    def state(self) -> CpuState:
        """All registers, by name."""

    def restore(self, state: CpuState) -> None:
        """Set all registers."""


class Engine(Protocol):
    """A CPU engine that holds the vCPUs of one VM."""

    name: str

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """All vCPUs, in the order of their APIC IDs."""

    def add_ram(
        self, slot: int, address: int, host: int, size: int, *, readonly: bool = False
    ) -> None:
        """Map ``size`` bytes at host address ``host`` into the guest at ``address``.

        All three are multiples of 4096. With ``readonly``, writes go to the bus.
        """

    def remove_ram(self, slot: int) -> None:
        """Undo :meth:`add_ram`."""

    def start(self, bus: Bus, ended: Callable[[CpuEnd], None]) -> None:
        """Run all vCPUs on threads of the engine's own; returns at once.

        ``ended`` is called at most once per vCPU, from its thread.
        """

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; returns when they stand.

        Callable from any thread but a vCPU's own.
        """

    def resume(self) -> None:
        """Undo :meth:`pause`."""

    def close(self) -> None:
        """Stop for good and free everything. Callable twice."""
