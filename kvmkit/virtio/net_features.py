"""The features of a network card: virtio 1.2, section 5.1.3."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["ALWAYS", "OFFLOADS", "consistent"]

F_CSUM: Final = 0
F_GUEST_CSUM: Final = 1
F_MTU: Final = 3
F_MAC: Final = 5
F_GUEST_TSO4: Final = 7
F_GUEST_TSO6: Final = 8
F_GUEST_ECN: Final = 9
F_HOST_TSO4: Final = 11
F_HOST_TSO6: Final = 12
F_HOST_ECN: Final = 13
F_MRG_RXBUF: Final = 15
F_STATUS: Final = 16
F_CTRL_VQ: Final = 17
F_CTRL_RX: Final = 18
F_CTRL_RX_EXTRA: Final = 20
F_GUEST_ANNOUNCE: Final = 21
F_CTRL_MAC_ADDR: Final = 23

OFFLOADS: Final = sum(
    1 << bit
    for bit in (
        F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN,
        F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN,
    )
)  # fmt: skip
ALWAYS: Final = (
    F_MTU, F_MAC, F_MRG_RXBUF, F_STATUS, F_CTRL_VQ, F_CTRL_RX, F_CTRL_RX_EXTRA,
    F_GUEST_ANNOUNCE, F_CTRL_MAC_ADDR,
)  # fmt: skip

# Each of these needs another of these (5.1.3.1)
_REQUIRES = {
    F_GUEST_TSO4: (F_GUEST_CSUM,),
    F_GUEST_TSO6: (F_GUEST_CSUM,),
    F_GUEST_ECN: (F_GUEST_TSO4, F_GUEST_TSO6),
    F_HOST_TSO4: (F_CSUM,),
    F_HOST_TSO6: (F_CSUM,),
    F_HOST_ECN: (F_HOST_TSO4, F_HOST_TSO6),
    F_CTRL_RX: (F_CTRL_VQ,),
    F_CTRL_RX_EXTRA: (F_CTRL_VQ,),
    F_GUEST_ANNOUNCE: (F_CTRL_VQ,),
    F_CTRL_MAC_ADDR: (F_CTRL_VQ,),
}


def consistent(features: int) -> bool:
    """Whether each feature that needs another has one of those."""
    return all(
        any(features >> other & 1 for other in others)
        for bit, others in _REQUIRES.items()
        if features >> bit & 1
    )
