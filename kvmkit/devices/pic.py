"""The PC's pair of 8259A interrupt controllers, cascaded through IRQ2.

Intel 231468-003 (8259A), "Cascade Mode"; the edge/level control registers are
those of the PIIX and ICH datasheets (ELCR1 and ELCR2, ports 0x4d0 and 0x4d1).
"""

from __future__ import annotations

from kvmkit.devices.pic_chip import PicChip, PicChipState
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.devices.device import Line

__all__ = ["Elcr", "PicPair", "PicPairState"]

CASCADE = 2
"""The primary's input that the secondary's output is wired to."""

PRIMARY_ELCR = 0xF8
"""IRQ0 (timer), 1 (keyboard) and 2 (cascade) are always edges."""

SECONDARY_ELCR = 0xDE
"""IRQ8 (clock) and 13 (coprocessor) are always edges."""


class PicPairState(Record):
    """Both chips."""

    primary: PicChipState
    secondary: PicChipState


class Elcr:
    """The two edge/level control registers, a byte for IRQ0-7 and one for IRQ8-15."""

    def __init__(self, primary: PicChip, secondary: PicChip) -> None:
        self._chips = (primary, secondary)

    def read(self, offset: int, size: int) -> int:
        """One register, or both with a 2-byte read."""
        value = self._chips[0].elcr | self._chips[1].elcr << 8
        return value >> 8 * (offset & 1) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one register, or both with a 2-byte write."""
        first = offset & 1
        for index, chip in enumerate(self._chips[first : first + size]):
            chip.set_elcr(value >> 8 * index & 0xFF)

    def reset(self) -> None:
        """Every input an edge."""
        for chip in self._chips:
            chip.set_elcr(0)

    def state(self) -> tuple[int, int]:
        """Both registers; they are part of the pair's state as well."""
        return self._chips[0].elcr, self._chips[1].elcr

    def restore(self, state: tuple[int, int]) -> None:
        """Become ``state``."""
        for chip, value in zip(self._chips, state, strict=True):
            chip.set_elcr(value)


class PicPair:
    """IRQ0-15 in, ``intr`` out: what goes to the CPU, or to LINT0 of its local APIC."""

    def __init__(self, intr: Line) -> None:
        self.primary = PicChip(intr, PRIMARY_ELCR, master=True)
        """Two ports: 0x20."""
        self.secondary = PicChip(self._cascade, SECONDARY_ELCR, master=False)
        """Two ports: 0xa0."""
        self.elcr = Elcr(self.primary, self.secondary)
        """Two ports: 0x4d0."""

    def _cascade(self, level: bool) -> None:
        self.primary.set_line(CASCADE, level)

    def set_line(self, irq: int, level: bool) -> None:
        """Set an IRQ line, 0-15. IRQ2 is the cascade and has no line; others are ignored."""
        if not 0 <= irq < 16 or irq == CASCADE:
            return
        chip = self.secondary if irq & 8 else self.primary
        chip.set_line(irq & 7, level)

    def acknowledge(self) -> int:
        """The CPU's INTA: the vector of the highest request; IRQ7's or IRQ15's if it went away."""
        vector, cascaded = self.primary.acknowledge()
        return self.secondary.acknowledge()[0] if cascaded else vector

    def reset(self) -> None:
        """Go to the power-on state; lines keep their level."""
        self.secondary.reset()
        self.primary.reset()

    def state(self) -> PicPairState:
        """The whole state."""
        return PicPairState(self.primary.state(), self.secondary.state())

    def restore(self, state: PicPairState) -> None:
        """Become ``state``; ``intr`` is called once if its level differs."""
        # The primary first: it then knows the cascade's level, and driving it changes nothing.
        self.primary.restore(state.primary)
        self.secondary.restore(state.secondary)
