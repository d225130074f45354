"""kvmkit: a native Linux KVM tool in Python.

One board, two CPU engines: the host's KVM where it runs kernels natively, a
software CPU everywhere else. :class:`VM` is the object users hold; everything
``kvmkit run`` does is a method of it.

Importing this package imports nothing else: ``VM`` is fetched when it is used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.aio import AsyncVM
    from kvmkit.config import VmConfig
    from kvmkit.vm import VM

__all__ = ["VM", "AsyncVM", "VmConfig", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import what is used at its first use (PEP 562)."""
    if name == "VM":
        from kvmkit.vm import VM

        return VM
    if name == "AsyncVM":
        from kvmkit.aio import AsyncVM

        return AsyncVM
    if name == "VmConfig":
        from kvmkit.config import VmConfig

        return VmConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
