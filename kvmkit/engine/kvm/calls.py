"""Calling KVM: ``ioctl`` with errors that name the call (Linux ``virt/kvm/api.rst``)."""

from __future__ import annotations

from fcntl import ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from array import array

__all__ = ["Memory", "call", "pointer_array", "request_name"]


def call(fd: int, request: int, argument: memoryview | bytearray | int | None = None) -> int:
    """``ioctl(fd, request, argument)``: the result, with ``argument`` changed in place.

    Raises OSError with the name of the request in its text.
    """
    try:
        if argument is None:
            return int(ioctl(fd, request))
        if isinstance(argument, int):
            # fcntl takes a C int; the kernel gets the same 32 bits.
            return int(ioctl(fd, request, argument - (1 << 32) if argument >> 31 else argument))
        return int(ioctl(fd, request, argument, True))
    except OSError as error:
        raise type(error)(error.errno, f"{request_name(request)}: {error.strerror}") from None


def request_name(request: int) -> str:
    """The name of an ioctl number: ``KVM_RUN``; a few numbers have two names."""
    from kvmkit.engine.kvm.abi import IOCTLS

    names = [name for name, (number, _) in IOCTLS.items() if number == request]
    return "/".join(names) or f"ioctl {request:#x}"


def pointer_array(data: bytes) -> tuple[array[int], int]:
    """A buffer holding ``data``, and its address: for structures that hold a pointer.

    The address is good as long as the buffer lives.
    """
    from array import array  # late: array imports collections.abc, and few start-ups need it

    buffer = array("B", data)
    return buffer, buffer.buffer_info()[0]


class Memory:
    """``size`` bytes of zeroed memory at a page-aligned host address, for small guests.

    ``view`` is its content, ``address`` goes into :meth:`Vm.set_memory`. Must
    outlive the VM it is mapped in.
    """

    __slots__ = ("_buffer", "address", "size", "view")

    def __init__(self, size: int) -> None:
        self._buffer, start = pointer_array(bytes(size + 4095))
        skip = -start % 4096
        self.address = start + skip
        self.size = size
        self.view = memoryview(self._buffer)[skip : skip + size]

    def write(self, offset: int, data: bytes | bytearray | mmap.mmap) -> None:
        """Copy ``data`` to ``offset``. Raises ValueError if it does not fit."""
        self.view[offset : offset + len(data)] = memoryview(data)
