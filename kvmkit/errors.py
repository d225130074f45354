"""Every error a user can meet, and the exit code each has in the shell.

A message says in one line what was expected and what was found; ``hint`` says
what to do about it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.board.power import Ending

__all__ = [
    "BadInitrd",
    "BadKernel",
    "BadSnapshot",
    "BootTimeout",
    "CommandTimeout",
    "EngineUnavailable",
    "FileTrouble",
    "GuestAddressError",
    "GuestEnded",
    "GuestHang",
    "GuestPanic",
    "KvmkitError",
    "NotEnoughMemory",
    "PermissionTrouble",
    "TripleFault",
    "UsageError",
    "ending_error",
]


class KvmkitError(Exception):
    """Base of all errors that are shown to a user as one clear line."""

    exit_code = 125

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(KvmkitError):
    """An option or a configuration value that cannot be meant."""

    exit_code = 2


class PermissionTrouble(KvmkitError):
    """Something exists but may not be used, ``/dev/kvm`` above all."""

    exit_code = 119


class BadKernel(KvmkitError):
    """A kernel image that is truncated, foreign, encrypted or of a kind we cannot start."""

    exit_code = 120


class BadInitrd(KvmkitError):
    """An initial RAM disk that cannot be read or does not fit."""

    exit_code = 121


class NotEnoughMemory(KvmkitError):
    """The guest's memory is too small for what must be in it."""

    exit_code = 122


class FileTrouble(KvmkitError):
    """A file the user named cannot be read or written."""

    exit_code = 123


class EngineUnavailable(KvmkitError):
    """The CPU engine asked for cannot run here."""

    exit_code = 118


class GuestAddressError(KvmkitError):
    """A guest-physical range that is not guest memory."""

    exit_code = 117


class CommandTimeout(KvmkitError, TimeoutError):
    """Something in the guest did not happen in the time it was given."""

    exit_code = 124


class BootTimeout(CommandTimeout):
    """The guest did not come up in the time it was given."""


class GuestEnded(KvmkitError):
    """The guest ended while something else was expected of it; ``ending`` says how.

    ``str`` is its one line, ``ending.detail`` what else is known: the decoded trace
    of a panic, the registers of a hang.
    """

    def __init__(self, ending: Ending, hint: str = "") -> None:
        super().__init__(ending.reason, hint)
        self.ending = ending
        self.exit_code = ending.exit_code


class GuestPanic(GuestEnded):
    """The guest's kernel panicked."""


class GuestHang(GuestEnded):
    """The guest's boot hangs."""


class TripleFault(GuestEnded):
    """A CPU of the guest could not even deliver a double fault."""


def ending_error(ending: Ending) -> GuestEnded:
    """The exception for a VM that ended so."""
    kinds = {"PANIC": GuestPanic, "HUNG": GuestHang, "TRIPLE_FAULT": TripleFault}
    return kinds.get(ending.kind.name, GuestEnded)(ending)


class BadSnapshot(KvmkitError):
    """A snapshot that is damaged, of another version, or none at all."""

    exit_code = 115
