"""A tap interface of the host: frames that the host's kernel sends to and takes from.

Linux ``Documentation/networking/tuntap.rst``, ``include/uapi/linux/if_tun.h``. With
IFF_VNET_HDR the kernel speaks virtio's header, so checksums and the cutting of
large TCP packets are left to whoever comes last, often to nobody.
"""

from __future__ import annotations

import fcntl
import os
import select
from struct import pack, unpack_from

from kvmkit.backends.net.trouble import NetworkTrouble
from kvmkit.virtio.net_features import (
    F_CSUM,
    F_GUEST_CSUM,
    F_GUEST_ECN,
    F_GUEST_TSO4,
    F_GUEST_TSO6,
    F_HOST_ECN,
    F_HOST_TSO4,
    F_HOST_TSO6,
    OFFLOADS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmkit.virtio.net_backend import NetHost, Station

__all__ = ["Tap"]

READABLE: Final = select.EPOLLIN

# if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 1
TUN_F_TSO4: Final = 2
TUN_F_TSO6: Final = 4
TUN_F_TSO_ECN: Final = 8

# sockios.h, if.h
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFMTU: Final = 0x8921
SIOCBRADDIF: Final = 0x89A2
IFF_UP: Final = 1
IFREQ_SIZE: Final = 40
IFNAMSIZ: Final = 16

HEADER_SIZE: Final = 12
FRAME_MAX: Final = HEADER_SIZE + 65535 + 18
BUFFER_SIZE: Final = 8 * FRAME_MAX
BATCH: Final = 64

_OFFLOADS = (
    (F_GUEST_CSUM, TUN_F_CSUM),
    (F_GUEST_TSO4, TUN_F_TSO4),
    (F_GUEST_TSO6, TUN_F_TSO6),
    (F_GUEST_ECN, TUN_F_TSO_ECN),
)


class Tap:
    """Interface ``name``: one that exists and is ours to use (``ip tuntap add ... user``), or
    with the right to make interfaces (CAP_NET_ADMIN) a new one, named by the kernel if
    ``name`` is empty. ``bridge`` is where a new one is plugged in.

    Raises NetworkTrouble when it cannot be had.
    """

    features = sum(
        1 << bit
        for bit in (
            F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN,
            F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN,
        )
    )  # fmt: skip
    header = True
    shared = True

    def __init__(self, name: str = "", *, bridge: str = "") -> None:
        if len(name.encode()) >= IFNAMSIZ or len(bridge.encode()) >= IFNAMSIZ or "/" in name:
            raise NetworkTrouble(f"an interface's name has at most 15 bytes: {name or bridge!r}")
        self.name = name
        self.fd = _open()
        try:
            self._join(bridge)
        except BaseException:
            self.close()
            raise
        self._view = memoryview(bytearray(BUFFER_SIZE))
        self._frames: list[memoryview] = []
        self._reading = False

    def _join(self, bridge: str) -> None:
        request = bytearray(IFREQ_SIZE)
        request[: len(self.name)] = self.name.encode()
        request[16:18] = pack("<H", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, request)
            self.name = bytes(request[:IFNAMSIZ]).rstrip(b"\0").decode()
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, pack("<i", HEADER_SIZE))
        except OSError as error:
            raise NetworkTrouble(
                f"tap interface {self.name or '(new)'}: {error.strerror}",
                "as root: ip tuntap add dev tap0 mode tap user $USER; ip link set tap0 up",
            ) from None
        self.mtu = 1500
        self._settle(bridge)

    def _settle(self, bridge: str) -> None:
        """Plug it in and switch it on, as far as we may: both may have been done for us."""
        import _socket

        control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        try:
            if bridge:
                index = _socket.if_nametoindex(self.name)
                fcntl.ioctl(control.fileno(), SIOCBRADDIF, _ifreq(bridge, pack("<i", index)))
            request = bytearray(_ifreq(self.name))
            fcntl.ioctl(control.fileno(), SIOCGIFMTU, request)
            self.mtu = min(unpack_from("<i", request, 16)[0], 65535)
            request = bytearray(_ifreq(self.name))
            fcntl.ioctl(control.fileno(), SIOCGIFFLAGS, request)
            flags = unpack_from("<H", request, 16)[0]
            if not flags & IFF_UP:
                fcntl.ioctl(
                    control.fileno(), SIOCSIFFLAGS, _ifreq(self.name, pack("<H", flags | IFF_UP))
                )
        except OSError as error:
            what = f"bridge {bridge}" if bridge else f"switching {self.name} on"
            raise NetworkTrouble(f"{what}: {error.strerror}") from None
        finally:
            control.close()

    # For the card

    def open(self, host: NetHost, station: Station) -> None:
        """See :class:`~kvmkit.virtio.net_backend.NetBackend`, as with all that follows."""
        self._host = host
        self._station = station

    def negotiated(self, features: int) -> None:
        """Tell the kernel what the guest can take."""
        flags = sum(flag for bit, flag in _OFFLOADS if features & OFFLOADS & 1 << bit)
        try:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, flags)
        except OSError as error:
            self._host.warn(f"network: {self.name}: offloads: {error.strerror}")

    def send(self, frames: Sequence[Sequence[memoryview]]) -> int:
        """Each is taken: a frame that the kernel does not like, or has no room for, is lost."""
        for frame in frames:
            try:
                os.writev(self.fd, frame)
            except OSError:
                pass
        return len(frames)

    def resume(self) -> None:
        """Read on."""
        self._host.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._reading and self.fd >= 0:
            self._reading = True
            if self._deliver():
                self._host.watch(self.fd, READABLE, self._hear)

    def _hear(self, events: int) -> None:
        if not self._reading:
            return
        view, at = self._view, 0
        frames: list[memoryview] = []
        while at + FRAME_MAX <= BUFFER_SIZE and len(frames) < BATCH:
            try:
                size = os.readv(self.fd, [view[at : at + FRAME_MAX]])
            except BlockingIOError:
                break
            except OSError as error:  # the interface was removed
                self._host.watch(self.fd, 0, self._hear)
                self._reading = False
                self._host.warn(f"network: {self.name}: {error.strerror}")
                self._station.set_link(False)
                return
            frames.append(view[at : at + size])
            at += size
        self._frames = frames
        if not self._deliver():
            self._host.watch(self.fd, 0, self._hear)

    def _deliver(self) -> bool:
        """Give frames to the card; whether all were taken. If not, the kernel keeps the rest."""
        frames = self._frames
        if frames:
            taken = self._station.receive(frames)
            self._frames = frames[taken:]
            if self._frames:
                self._reading = False
                return False
        return True

    def close(self) -> None:
        """Let go of the interface; one that was made for us vanishes."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _open() -> int:
    path = "/dev/net/tun"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NetworkTrouble(
            f"{path}: {error.strerror}", "modprobe tun, or --net user, which needs no privileges"
        ) from None


def _ifreq(name: str, data: bytes = b"") -> bytes:
    """``struct ifreq`` (netdevice(7))."""
    return (name.encode().ljust(IFNAMSIZ, b"\0") + data).ljust(IFREQ_SIZE, b"\0")
