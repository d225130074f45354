"""A blocking QMP client for the command line: one VM, one command at a time, with a limit.

Built on the ``_socket`` module alone; ``socket`` and ``asyncio`` would take longer to
import than a command takes.
"""

from __future__ import annotations

import json
import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from time import monotonic

from kvmkit.control.claim import SOCKET, short_path
from kvmkit.control.wire import encode
from kvmkit.errors import KvmkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from kvmkit.control.listing import RunningVm

__all__ = ["CommandRefused", "VmClient", "VmUnreachable"]

PATIENCE = 5.0
"""Seconds a VM may take to answer before it counts as stuck."""

_LONGEST_LINE = 64 << 20
_SHUTDOWN = b'"event": "SHUTDOWN"'
_EVENTS_KEPT = 1 << 16


class VmUnreachable(KvmkitError):
    """A VM runs, but does not answer, or stopped answering."""

    exit_code = 1


class CommandRefused(KvmkitError):
    """The VM answered with an error."""

    exit_code = 1


class VmClient:
    """A connection to ``vm``, ready for commands. Raises VmUnreachable."""

    def __init__(self, vm: RunningVm, *, patience: float = PATIENCE) -> None:
        self.vm = vm
        self.patience = patience
        self.events: list[dict[str, Any]] = []
        """Events that came while answers were waited for."""
        self._input = bytearray()
        self.socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            self.socket.settimeout(patience)
            with short_path(vm.path, SOCKET) as address:
                self.socket.connect(address)
            self._message()
            self.execute("qmp_capabilities")
        except (OSError, TimeoutError) as error:
            self.close()
            raise self._unreachable(error) from None
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """The command's answer. A ``_`` in an argument's name is sent as ``-``.

        Raises CommandRefused with the VM's words, VmUnreachable if there are none.
        """
        message: dict[str, Any] = {"execute": command}
        if arguments:
            named = {name.replace("_", "-"): value for name, value in arguments.items()}
            message["arguments"] = named
        try:
            self.socket.settimeout(self.patience)
            self.socket.sendall(encode(message))
            while "event" in (answer := self._message()):
                self.events.append(answer)
        except OSError as error:
            raise self._unreachable(error) from None
        if "error" in answer:
            refusal = answer["error"]
            text = refusal.get("desc") if isinstance(refusal, dict) else refusal
            raise CommandRefused(f"{self.vm.address}: {text}")
        return answer.get("return")

    def wait_end(self, timeout: float | None) -> bool:
        """Wait for the VM's end: its word for it, or silence for ever; False after ``timeout``."""
        limit = None if timeout is None else monotonic() + timeout
        if any(event.get("event") == "SHUTDOWN" for event in self.events):
            return True
        while _SHUTDOWN not in self._input:
            left = None if limit is None else limit - monotonic()
            if left is not None and left <= 0:
                return False
            try:
                self.socket.settimeout(left)
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return False
            except OSError:
                return True
            if not data:
                return True
            self._input = (self._input + data)[-_EVENTS_KEPT:]
        return True

    def take_rest(self) -> bytes:
        """Bytes that came after the last answer; the console's, after ``kvmkit-console``."""
        rest = bytes(self._input)
        self._input.clear()
        return rest

    def close(self) -> None:
        """Close the connection. Callable twice."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _message(self) -> dict[str, Any]:
        limit = monotonic() + self.patience
        while (end := self._input.find(b"\n")) < 0:
            left = limit - monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("it has ended")
            self._input += data
            if len(self._input) > _LONGEST_LINE:
                raise ConnectionError("its answer is endless")
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ConnectionError("it does not speak QMP")
        return message

    def _unreachable(self, error: OSError) -> VmUnreachable:
        vm = self.vm
        if isinstance(error, TimeoutError):
            return VmUnreachable(
                f"{vm.address} does not answer (process {vm.pid})",
                f"is it stopped (SIGSTOP) or overloaded? kvmkit kill {vm.address} ends it",
            )
        if not os.path.exists(vm.path):
            return VmUnreachable(f"{vm.address} has ended")
        return VmUnreachable(f"{vm.address} cannot be reached: {error.strerror or error}")
