"""Console device: terminals and named byte streams between guest and host.

Virtio 1.2, section 5.3. With VIRTIO_CONSOLE_F_MULTIPORT there are named ports
(``/dev/virtio-ports/NAME`` in a Linux guest with udev, ``/dev/vportNpM`` anywhere)
which either end opens and closes; a pair of control queues tells of that. Port 0
is the terminal (``/dev/hvc0``), if there is one; others are numbered from 1.

Flow control: a request of the guest is taken when the host's end has room for
more, and stays in its ring till then, so that the guest's writer waits and nobody
else; what the host sends waits at the host's end until the guest gives buffers.
"""

from __future__ import annotations

from collections import deque
from struct import Struct, pack

from kvmkit.errors import UsageError
from kvmkit.frozen import Record
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.memory import QueueError
from kvmkit.virtio.port import REQUEST_MAX, Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from kvmkit.virtio.port import PortBackend, PortHost

__all__ = ["Console", "ConsoleState"]

# Feature bits, 5.3.3
F_SIZE: Final = 0
F_MULTIPORT: Final = 1
F_EMERG_WRITE: Final = 2

# struct virtio_console_config, 5.3.4: cols, rows, max_nr_ports, emerg_wr
CONFIG: Final = Struct("<HHII")
EMERGENCY_WRITE: Final = 8

# struct virtio_console_control, 5.3.6.2: id, event, value
CONTROL: Final = Struct("<IHH")
DEVICE_READY: Final = 0
PORT_ADD: Final = 1
PORT_REMOVE: Final = 2
PORT_READY: Final = 3
CONSOLE_PORT: Final = 4
RESIZE: Final = 5
PORT_OPEN: Final = 6
PORT_NAME: Final = 7

CONTROL_RECEIVE: Final = 2
CONTROL_TRANSMIT: Final = 3

QUEUE_SIZE: Final = 32
"""Linux puts a page into each entry of a queue for what it receives."""

CONTROL_MAX: Final = 4096
PORTS_MAX: Final = 31
NAME_MAX: Final = 64
ANSWERS_EACH: Final = 8  # control messages to the guest that may wait, for each port


class ConsoleState(Record):
    """``ready`` and ``guest_open`` are of the ports in order, ``answers`` the control
    messages that wait, ``heard`` whether any output came. What was under way between
    the ends is not in it: for a guest that is restored, the host closes its ends and
    opens them anew."""

    ready: tuple[bool, ...]
    guest_open: tuple[bool, ...]
    answers: tuple[bytes, ...]
    heard: bool


class Console(VirtioDevice):
    """A terminal, or ports, or both, as they are added before the machine has the device.

    A terminal alone is a device without VIRTIO_CONSOLE_F_MULTIPORT; prefer that when
    its size matters: Linux had the numbers of the RESIZE message the wrong way round
    until its commit 5326ab737a47; those of the configuration are right in all.
    """

    device_id = 3
    name = "console"
    pci_class = 0x07_80_00  # communication controller, other

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self._by_ident: dict[int, Port] = {}
        self._next = 1
        self._size = (0, 0)
        self._answers: deque[bytes] = deque()
        # Output came. Linux looks at the size when it changes only, and before it has made
        # its console that is a null pointer (config_work_handler).
        self._heard = False
        self._shape()
        super().__init__()
        self._write_config()

    # Before the machine has it

    def add_terminal(self, backend: PortBackend) -> Port:
        """Port 0. Raises UsageError for a second one."""
        if 0 in self._by_ident:
            raise UsageError("a console device has one terminal")
        return self._add(0, "", backend)

    def add_port(self, name: str, backend: PortBackend) -> Port:
        """A named port. Raises UsageError for a name that is taken or cannot be one."""
        good = name.isascii() and name.isprintable() and not set(name) & {"/", " "}
        if not good or not 0 < len(name) <= NAME_MAX or name[0] == ".":
            raise UsageError(
                f"a port's name is 1 to {NAME_MAX} ASCII characters without blanks and slashes, "
                f"not {name!r}"
            )
        if any(port.name == name for port in self.ports):
            raise UsageError(f"there is a port named {name} already")
        if self._next > PORTS_MAX:
            raise UsageError(f"a console device has at most {PORTS_MAX} ports")
        self._next += 1
        return self._add(self._next - 1, name, backend)

    def _add(self, ident: int, name: str, backend: PortBackend) -> Port:
        if self.transport is not None:
            raise UsageError("ports are added before a VM starts")
        port = Port(self, ident, name, backend)
        self.ports.append(port)
        self._by_ident[ident] = port
        self._shape()
        VirtioDevice.__init__(self)
        self._write_config()
        return port

    def _shape(self) -> None:
        """Queues and features for the ports there are."""
        self.features = 0
        self.queue_sizes = (QUEUE_SIZE,) * 2
        if 0 in self._by_ident:
            self.features |= 1 << F_SIZE | 1 << F_EMERG_WRITE
        if self._next > 1:
            self.features |= 1 << F_MULTIPORT
            self.queue_sizes = (QUEUE_SIZE,) * (2 * self._next + 2)

    # The terminal

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has this size now; from any thread."""
        self._size = (columns & 0xFFFF, rows & 0xFFFF)
        if self.transport is None:
            self._write_config()
        else:
            self.call_soon(self._resized)

    def _resized(self) -> None:
        self._write_config()
        if self._heard or self._multiport:
            self.config_changed()
        port = self._by_ident.get(0)
        if port is not None and port.ready:
            self._say_size(port)
            self._talk()

    def _first_output(self) -> None:
        if not self._heard:
            self._heard = True
            if not self._multiport and any(self._size):
                self.config_changed()

    def _write_config(self) -> None:
        self.config = bytearray(CONFIG.pack(*self._size, self._next, 0))

    def config_write(self, offset: int, size: int, value: int) -> None:
        """An emergency write puts one character out, with no queue set up (5.3.4)."""
        port = self._by_ident.get(0)
        if offset == EMERGENCY_WRITE and port is not None and port.backend.room() > 0:
            port.backend.take(bytes((value & 0xFF,)))

    # The driver

    @property
    def host(self) -> PortHost:
        """What surrounds the device."""
        host: Any = self._attached().host
        surroundings: PortHost = host
        return surroundings

    def attached(self) -> None:
        """Let the backends get ready."""
        for port in self.ports:
            port.backend.open(self.host)

    def resumed(self) -> None:
        """Do what had to wait during a pause."""
        self.call_soon(self._serve_all)

    def _serve_all(self) -> None:
        self._talk()
        for port in self.ports:
            self.serve(port)

    @property
    def _multiport(self) -> bool:
        return bool(self.driver_features >> F_MULTIPORT & 1)

    def activated(self, features: int) -> None:
        """Without the feature there is no more to tell about port 0."""
        port = self._by_ident.get(0)
        if port is not None and not self._multiport:
            self._set_guest_open(port, True)
            self.serve(port)

    def notified(self, index: int) -> None:
        """Serve the port or the control messages of that queue."""
        if index in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
            if self._multiport:
                self._talk()
                self._listen()
            return
        port = self._by_ident.get(index // 2 - 1 if index > CONTROL_TRANSMIT else 0)
        if port is not None:
            if index == port.transmit:
                self._take(port)
                self._first_output()
            else:
                self._give(port)

    def reset(self) -> None:
        """The guest's ends are closed."""
        self._answers.clear()
        self._heard = False
        for port in self.ports:
            port.ready = False
            self._set_guest_open(port, False)

    def end(self) -> None:
        """The machine has ended: give the backends what the guest wrote last, and tell
        them; from any thread."""
        if self.transport is not None:
            self.call_soon(self._end)

    def _end(self) -> None:
        for port in self.ports:
            try:
                self._take(port)
            finally:
                port.backend.end()

    def close(self) -> None:
        """Let go of the backends."""
        for port in self.ports:
            port.backend.close()

    # Data

    def serve(self, port: Port) -> None:
        """Move what can move, both ways; nothing while the machine stands."""
        if self.host.paused:
            return
        self._take(port)
        self._give(port)

    def _take(self, port: Port) -> None:
        """From the guest, while the backend has room."""
        queue, backend = self.queues[port.transmit], port.backend
        left = 2 * queue.size
        while backend.room() > 0:
            chain = queue.pop()
            if chain is None:
                self._end_closing(port)
                break
            backend.take(chain.read_all(REQUEST_MAX))
            queue.push(chain, 0)
            left -= 1
            if not left:  # a driver as fast as we are does not keep us for ever
                self.call_soon(lambda: self.serve(port))
                break
        self.interrupt(queue)

    def _give(self, port: Port) -> None:
        """To the guest, as long as it has it open: Linux drops what comes for a closed port."""
        queue, backend = self.queues[port.receive], port.backend
        left = 2 * queue.size
        while port.guest_open and not port.closing and backend.pending():
            chain = queue.pop()
            if chain is None:
                break
            chain.write(backend.give(chain.writable_size))
            queue.push(chain)
            left -= 1
            if not left:
                self.call_soon(lambda: self.serve(port))
                break
        self.interrupt(queue)

    # Control messages

    def _listen(self) -> None:
        for chain in self.requests(CONTROL_TRANSMIT):
            message = chain.read_all(CONTROL_MAX)
            self.push(chain, 0)
            if len(message) < CONTROL.size:
                raise QueueError(f"a control message of {len(message)} bytes")
            self._hear(*CONTROL.unpack_from(message))
            if len(self._answers) > ANSWERS_EACH * (len(self.ports) + 1):
                raise QueueError("control messages without buffers for the answers")
            self._talk()

    def _hear(self, ident: int, event: int, value: int) -> None:
        """One message; what makes no sense is passed over."""
        if event == DEVICE_READY:
            if value == 1:
                for each in self.ports:
                    self._say(each, PORT_ADD)
            return
        port = self._by_ident.get(ident)
        if port is None:
            return
        if event == PORT_READY and value == 1:
            port.ready = True
            self._introduce(port)
        elif event == PORT_OPEN:
            self._guest_turned(port, value == 1)

    def _introduce(self, port: Port) -> None:
        if port.name:
            self._say(port, PORT_NAME, 1, port.name.encode())
        else:
            self._say(port, CONSOLE_PORT, 1)
            self._say_size(port)
        if port.host_open:
            self._say(port, PORT_OPEN, 1)

    def _say_size(self, port: Port) -> None:
        if self._multiport and self.driver_features >> F_SIZE & 1 and any(self._size):
            self._say_anew(port, RESIZE, 0, pack("<HH", *self._size))

    def _say(self, port: Port, event: int, value: int = 0, more: bytes = b"") -> None:
        self._answers.append(CONTROL.pack(port.ident, event, value) + more)

    def _say_anew(self, port: Port, event: int, value: int, more: bytes = b"") -> None:
        """As :meth:`_say`, for what the host does at any time: a guest that does not
        listen misses all but the last two."""
        head = CONTROL.pack(port.ident, event, 0)[:6]
        same = [answer for answer in self._answers if answer.startswith(head)]
        if len(same) > 1:
            self._answers.remove(same[0])
        self._say(port, event, value, more)

    def _talk(self) -> None:
        """Put the waiting messages into the guest's buffers."""
        if self.host.paused:
            return
        queue = self.queues[CONTROL_RECEIVE]
        while self._answers:
            chain = queue.pop()
            if chain is None:
                break
            if chain.writable_size < len(self._answers[0]):
                raise QueueError(f"a buffer of {chain.writable_size} bytes for a control message")
            chain.write(self._answers.popleft())
            queue.push(chain)
        self.interrupt(queue)

    # Open and closed

    def set_host_open(self, port: Port, is_open: bool) -> None:
        """See :meth:`Port.set_open`."""
        if port.host_open != is_open:
            port.host_open = is_open
            if port.ready:
                self._say_anew(port, PORT_OPEN, int(is_open))
                self._talk()

    def _guest_turned(self, port: Port, is_open: bool) -> None:
        if is_open:
            self._set_guest_open(port, True)
            self._give(port)
        elif port.guest_open:
            port.closing = True
            self._take(port)  # what it wrote before comes first

    def _end_closing(self, port: Port) -> None:
        if port.closing:
            self._set_guest_open(port, False)

    def _set_guest_open(self, port: Port, is_open: bool) -> None:
        if port.closing:  # it ends here, also if it was opened again meanwhile
            port.closing = port.guest_open = False
            port.backend.guest_opened(False)
        if port.guest_open != is_open:
            port.guest_open = is_open
            port.backend.guest_opened(is_open)

    # Life

    def state(self) -> ConsoleState:
        return ConsoleState(
            ready=tuple(port.ready for port in self.ports),
            guest_open=tuple(port.guest_open and not port.closing for port in self.ports),
            answers=tuple(self._answers),
            heard=self._heard,
        )

    def restore(self, state: Any) -> None:
        """The guest is told that the host has hung up and is back."""
        self._answers = deque(state.answers)
        self._heard = bool(state.heard)
        for port, ready, guest_open in zip(self.ports, state.ready, state.guest_open, strict=True):
            port.ready = ready
            self._set_guest_open(port, guest_open)
            if ready and port.name:
                self._say_anew(port, PORT_OPEN, 0)
                if port.host_open:
                    self._say_anew(port, PORT_OPEN, 1)
