"""MSI-X: the capability, its vector table and its pending bits.

PCI Local Bus specification 3.0, section 6.8.2 (capability and table
structures) and 6.8.3 (operation).

The table and the pending bit array (PBA) are memory of their own, to map in a
BAR: the table at offset 0, the PBA in the second half. A vector goes out when
MSI-X is enabled, neither it nor the function is masked and the function may
master the bus; else its pending bit is set and it goes out when that changes.
"""

from __future__ import annotations

from struct import pack, unpack_from

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

__all__ = ["MAX_VECTORS", "Msix", "MsixState", "VectorChange"]

MAX_VECTORS: Final = 2048
ENTRY_SIZE: Final = 16
MIN_REGION: Final = 4096

# Table entry: address (8 bytes), data, vector control
VECTOR_CONTROL: Final = 12
VECTOR_MASKED: Final = 0x01
ENTRY_AFTER_RESET: Final = bytes(VECTOR_CONTROL) + bytes((VECTOR_MASKED, 0, 0, 0))
ENTRY_WRITABLE: Final = b"\xfc" + b"\xff" * 11 + b"\x01\0\0\0"

# Message control, byte 2 of the capability
CONTROL_ENABLE: Final = 0x8000
CONTROL_FUNCTION_MASK: Final = 0x4000

VectorChange: TypeAlias = "Callable[[int, int, int, bool], None]"
"""``(vector, address, data, masked)``: how a vector would go out from now on.
An engine that lets the kernel inject (irqfd) routes it so; while ``masked`` the
signal must come through :meth:`Msix.trigger`, which keeps it pending."""


class MsixState(Record):
    """Table and pending bits; the message control is in configuration space."""

    table: bytes
    pending: int


class Msix:
    """The vectors of one function, and the device that is their BAR.

    ``msi`` delivers a message: ``(address, data)``. ``on_vector_change`` hears
    of each change of what an unmasked vector sends, and of masking.
    """

    def __init__(
        self,
        vectors: int,
        msi: Callable[[int, int], None],
        on_vector_change: VectorChange | None = None,
    ) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"expected 1 to {MAX_VECTORS} MSI-X vectors, found {vectors}")
        self.vectors = vectors
        self._msi = msi
        self._on_vector_change = on_vector_change
        self._table = bytearray(ENTRY_AFTER_RESET * vectors)
        self._pending = 0
        self._routes: list[tuple[int, int] | None] = [None] * vectors
        self.enabled = False
        self._open = False  # enabled, the function not masked, bus master
        region = MIN_REGION
        while region < 2 * ENTRY_SIZE * vectors:
            region *= 2
        self.size = region
        """Bytes of the BAR; a power of two."""
        self.pba = region // 2
        """Where the pending bits begin in it."""

    def capability(self, bar: int) -> tuple[bytes, bytes]:
        """Body and write mask of the capability, the region being BAR ``bar``."""
        body = pack("<HII", self.vectors - 1, bar, self.pba | bar)
        return body, pack("<H", CONTROL_ENABLE | CONTROL_FUNCTION_MASK)

    # The function's side

    def configure(self, control: int, master: bool) -> None:
        """Message control and bus master, as configuration space has them now."""
        self.enabled = bool(control & CONTROL_ENABLE)
        was_open = self._open
        self._open = self.enabled and not control & CONTROL_FUNCTION_MASK and master
        if self._open != was_open:
            self._refresh_all()

    def trigger(self, vector: int) -> bool:
        """Send ``vector``, or leave it pending while masked. False: MSI-X is not
        enabled or has no such vector, and nothing was done."""
        if not self.enabled or not 0 <= vector < self.vectors:
            return False
        route = self._routes[vector]
        if route is None:
            self._pending |= 1 << vector
        else:
            self._msi(*route)
        return True

    def pending(self, vector: int) -> bool:
        """Whether ``vector`` waits for being unmasked."""
        return bool(self._pending >> vector & 1)

    def route(self, vector: int) -> tuple[int, int] | None:
        """Address and data that ``vector`` sends; None while it is masked."""
        return self._routes[vector]

    def _refresh_all(self) -> None:
        for vector in range(self.vectors):
            self._refresh(vector)

    def _refresh(self, vector: int) -> None:
        """Work out what ``vector`` sends now; tell of a change; send what waited."""
        address, data, control = unpack_from("<QII", self._table, vector * ENTRY_SIZE)
        masked = not self._open or bool(control & VECTOR_MASKED)
        route = None if masked else (address, data)
        if route != self._routes[vector]:
            self._routes[vector] = route
            if self._on_vector_change is not None:
                self._on_vector_change(vector, address, data, masked)
        if route is not None and self.pending(vector):
            self._pending &= ~(1 << vector)
            self._msi(*route)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if offset < len(self._table):
            data = self._table[offset : offset + size]
            return int.from_bytes(data, "little")
        at = offset - self.pba
        if at < 0:
            return 0
        return self._pending >> 8 * at & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes to the table; the pending bits are read-only."""
        end = min(offset + size, len(self._table))
        if offset >= end:
            return
        for at in range(offset, end):
            mask = ENTRY_WRITABLE[at % ENTRY_SIZE]
            self._table[at] = self._table[at] & ~mask | value & mask
            value >>= 8
        for vector in range(offset // ENTRY_SIZE, (end - 1) // ENTRY_SIZE + 1):
            self._refresh(vector)

    # Life

    def reset(self) -> None:
        """MSI-X off, every vector masked, none pending."""
        self._table[:] = ENTRY_AFTER_RESET * self.vectors
        self._pending = 0
        self.configure(0, False)

    def state(self) -> MsixState:
        return MsixState(bytes(self._table), self._pending)

    def restore(self, state: MsixState) -> None:
        """Take over the table; :meth:`configure` must follow, as the function's restore does."""
        self._open = False
        self._refresh_all()
        self._table[:] = state.table
        self._pending = state.pending
