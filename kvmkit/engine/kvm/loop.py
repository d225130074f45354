"""A vCPU's thread: enter the guest, serve its exits, stand when told (``api.rst``, 5).

The way of a port access through Python is the hot path. One ``unpack_from`` reads
all of ``kvm_run`` that a port exit needs; ``ioctl`` gets no third argument, since
for an integer ``fcntl`` first tries two buffer types and throws two exceptions
away.

Stopping: whoever wants a vCPU to stand sets ``immediate_exit`` in its ``kvm_run``
and then sends its thread a signal. If the thread has not entered the kernel yet,
the byte turns it back; if it is inside, the signal does. The signal is blocked in
the thread and unblocked only inside KVM_RUN (KVM_SET_SIGNAL_MASK), so it needs no
handler, works from any thread of any program, and can interrupt nothing else.
KVM_RUN with ``immediate_exit`` also completes the access that is under way, so a
vCPU stands between two instructions, never in one.
"""

from __future__ import annotations

from errno import EAGAIN, EINTR
from fcntl import ioctl
from struct import Struct

from kvmkit.engine.engine import CpuEnd, CpuEndReason
from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.run_structs import kvm_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from kvmkit.engine.engine import Bus
    from kvmkit.engine.kvm.vcpu_fd import VcpuFd

    Handler = Callable[[VcpuFd], bool]
else:
    import _signal as signal  # without its enumerations: 1.5 ms of a start

__all__ = ["IMMEDIATE_EXIT", "KICK", "block_signals", "drain_kicks", "run_vcpu", "signals_in_guest"]

KICK = signal.SIGRTMIN + 4
"""The signal that turns a vCPU back; its default action never happens, as it stays blocked."""

IMMEDIATE_EXIT = kvm_run.offset_of("immediate_exit")

# Faults of the thread itself cannot be blocked sensibly.
_OWN_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}

# exit_reason, then io: direction, size, port, count, data_offset
_EXIT_AND_IO = Struct("<8xI20xBBHIQ")
_MMIO = Struct("<32xQ8sIB")
_MMIO_DATA = kvm_run.offset_of("mmio.data")
_U16 = Struct("<H")
_U32 = Struct("<I")
assert _EXIT_AND_IO.size == kvm_run.offset_of("io") + 16

_MASKS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: (1 << 64) - 1}

_NOTHING_TO_DO = frozenset(
    {
        abi.KVM_EXIT_INTR,
        abi.KVM_EXIT_IRQ_WINDOW_OPEN,
        abi.KVM_EXIT_SET_TPR,
        abi.KVM_EXIT_NMI,
        abi.KVM_EXIT_X86_BUS_LOCK,
    }
)


def block_signals() -> None:
    """Leave all signals to the program's other threads; for a vCPU's thread."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - _OWN_FAULTS)


def signals_in_guest() -> set[int]:
    """What is blocked inside KVM_RUN: as outside, without the kick."""
    return {int(s) for s in signal.valid_signals() - _OWN_FAULTS} - {KICK}


def drain_kicks() -> None:
    """Forget kicks that have arrived; else each would turn the next KVM_RUN back."""
    while signal.sigtimedwait((KICK,), 0) is not None:
        pass


def run_vcpu(
    vcpu: VcpuFd, bus: Bus, stand: Callable[[], bool], handlers: dict[int, Handler]
) -> CpuEnd | None:
    """Run the guest until it can go no further, or until ``stand`` says to leave (None).

    ``stand`` is called when the vCPU was turned back, between two instructions; it
    returns True when the thread shall end. ``handlers`` take exits by reason; one
    that returns False ends the vCPU.
    """
    run, fd, page = abi.KVM_RUN, vcpu.fd, vcpu.map
    exit_and_io = _EXIT_AND_IO.unpack_from
    port_read, port_write = bus.port_read, bus.port_write
    io_exit = abi.KVM_EXIT_IO
    while True:
        try:
            ioctl(fd, run)
        except OSError as error:
            if error.errno == EINTR:
                if stand():
                    return None
                continue
            if error.errno == EAGAIN:  # an INIT or start-up interrupt changed what it waits for
                continue
            return _host_error(vcpu, error)
        reason, out, size, port, count, at = exit_and_io(page)
        if reason == io_exit:
            if count != 1:
                _string_io(page, bus, out, size, port, count, at)
            elif out:
                if size == 1:
                    port_write(port, 1, page[at])
                elif size == 2:
                    port_write(port, 2, _U16.unpack_from(page, at)[0])
                else:
                    port_write(port, 4, _U32.unpack_from(page, at)[0])
            elif size == 1:
                page[at] = port_read(port, 1) & 0xFF
            elif size == 2:
                _U16.pack_into(page, at, port_read(port, 2) & 0xFFFF)
            else:
                _U32.pack_into(page, at, port_read(port, 4) & 0xFFFFFFFF)
        elif reason == abi.KVM_EXIT_MMIO and reason not in handlers:
            address, data, length, write = _MMIO.unpack_from(page)
            if write:
                _memory_write(bus, address, data[:length])
            else:
                found = _memory_read(bus, address, length)
                page[_MMIO_DATA : _MMIO_DATA + length] = found
        else:
            handler = handlers.get(reason)
            if handler is not None:
                if handler(vcpu):
                    continue
            elif reason in _NOTHING_TO_DO:
                continue
            return _end(vcpu, reason)


def _string_io(page: object, bus: Bus, out: int, size: int, port: int, count: int, at: int) -> None:
    """INS and OUTS: ``count`` items in one exit."""
    data = memoryview(page)[at : at + count * size]  # type: ignore[arg-type]
    try:
        for start in range(0, count * size, size):
            if out:
                value = int.from_bytes(data[start : start + size], "little")
                bus.port_write(port, size, value)
            else:
                value = bus.port_read(port, size) & _MASKS[size]
                data[start : start + size] = value.to_bytes(size, "little")
    finally:
        data.release()


def _pieces(address: int, length: int) -> list[tuple[int, int, int]]:
    """An access of 1 to 8 bytes as accesses of sizes a bus knows: (offset, address, size).

    KVM cuts an access at a page's end, so any length may come.
    """
    if length in _MASKS:
        return [(0, address, length)]
    result = []
    offset = 0
    while offset < length:
        size = 4 if length - offset >= 4 else 2 if length - offset >= 2 else 1
        result.append((offset, address + offset, size))
        offset += size
    return result


def _memory_read(bus: Bus, address: int, length: int) -> bytes:
    return b"".join(
        (bus.memory_read(at, size) & _MASKS[size]).to_bytes(size, "little")
        for _, at, size in _pieces(address, length)
    )


def _memory_write(bus: Bus, address: int, data: bytes) -> None:
    for offset, at, size in _pieces(address, len(data)):
        bus.memory_write(at, size, int.from_bytes(data[offset : offset + size], "little"))


def _end(vcpu: VcpuFd, reason: int) -> CpuEnd:
    from kvmkit.engine.kvm.describe import describe_exit

    kind = (
        CpuEndReason.TRIPLE_FAULT
        if reason == abi.KVM_EXIT_SHUTDOWN
        else CpuEndReason.INTERNAL_ERROR
    )
    return CpuEnd(vcpu.index, kind, describe_exit(vcpu, reason))


def _host_error(vcpu: VcpuFd, error: OSError) -> CpuEnd:
    """KVM_RUN itself failed, EFAULT for memory the host cannot give for instance."""
    from kvmkit.engine.kvm.describe import describe_position

    where = describe_position(vcpu)
    return CpuEnd(
        vcpu.index, CpuEndReason.INTERNAL_ERROR, f"KVM_RUN failed: {error.strerror}, {where}"
    )
