"""Every error a user can meet, and the exit code each has in the shell.

A message says in one line what was expected and what was found; ``hint`` says
what to do about it.
"""

from __future__ import annotations

__all__ = [
    "BadInitrd",
    "BadKernel",
    "BadSnapshot",
    "EngineUnavailable",
    "FileTrouble",
    "GuestAddressError",
    "KvmkitError",
    "NotEnoughMemory",
    "PermissionTrouble",
    "UsageError",
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


class BadSnapshot(KvmkitError):
    """A snapshot that is damaged, of another version, or none at all."""

    exit_code = 115
