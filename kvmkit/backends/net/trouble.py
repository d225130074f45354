"""What goes wrong with networks."""

from __future__ import annotations

from kvmkit.errors import KvmkitError

__all__ = ["NetworkTrouble"]


class NetworkTrouble(KvmkitError):
    """A network that the guest was to have cannot be had."""

    exit_code = 116
