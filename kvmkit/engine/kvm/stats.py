"""KVM's binary statistics: counters that describe themselves (``api.rst``, 4.133).

The descriptor from KVM_GET_STATS_FD is a file: a header, an identity string, a
table of descriptors with names, then the 64-bit values.
"""

from __future__ import annotations

import os
from struct import Struct

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.calls import call

__all__ = ["open_stats", "read_counters", "read_stats"]

_HEADER = Struct("<6I")  # struct kvm_stats_header
_DESCRIPTOR = Struct("<IhHII")  # struct kvm_stats_desc, before its name


def read_stats(fd: int) -> dict[str, int]:
    """The counters of a VM or vCPU descriptor by name; of a histogram the sum.

    Raises OSError where KVM has no KVM_CAP_BINARY_STATS_FD (before Linux 5.14).
    """
    stats = open_stats(fd)
    try:
        return read_counters(stats)
    finally:
        os.close(stats)


def open_stats(fd: int) -> int:
    """A descriptor for :func:`read_counters`, which the caller closes.

    A vCPU must stand: the call waits for it to leave KVM_RUN. Raises OSError.
    """
    return call(fd, abi.KVM_GET_STATS_FD)


def read_counters(stats: int) -> dict[str, int]:
    """The counters of a descriptor from :func:`open_stats`; also while the guest runs."""
    header = os.pread(stats, _HEADER.size, 0)
    _, name_size, count, _, descriptors, data = _HEADER.unpack(header)
    stride = _DESCRIPTOR.size + name_size
    table = os.pread(stats, stride * count, descriptors)
    values = os.pread(stats, 1 << 20, data)
    result = {}
    for n in range(count):
        _, _, size, offset, _ = _DESCRIPTOR.unpack_from(table, n * stride)
        name = table[n * stride + _DESCRIPTOR.size : (n + 1) * stride]
        numbers = memoryview(values)[offset : offset + 8 * size].cast("Q")
        result[name.split(b"\0", 1)[0].decode()] = sum(numbers)
    return result
