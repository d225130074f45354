"""Acting on running VMs from outside: one command, a shutdown that is seen through, the end.

Everything goes through the control socket, except the end of a VM that does not
answer: its process is signalled, by a pidfd (pidfd_open(2)), so that no other
process that got the same number meanwhile can be hit.
"""

from __future__ import annotations

import os
import signal
from time import monotonic, sleep

from kvmkit.control.claim import PID, is_alive, read_pid
from kvmkit.control.client import VmClient, VmUnreachable
from kvmkit.errors import KvmkitError, PermissionTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.control.listing import RunningVm

__all__ = ["StopFailed", "kill", "stop_all", "tell"]

_QUIT_PATIENCE = 3.0
_TERM_PATIENCE = 3.0
_END_PATIENCE = 5.0
_KEPT_PATIENCE = 1.0


class StopFailed(KvmkitError):
    """A guest did not shut down."""

    exit_code = 1


def tell(vm: RunningVm, command: str, **arguments: Any) -> Any:
    """One QMP command to ``vm``; its answer."""
    with VmClient(vm) as client:
        return client.execute(command, **arguments)


def kill(vm: RunningVm) -> None:
    """End ``vm``, by word if it listens, else by signals to its process; returns when it is gone.

    A process that has other VMs as well, or that is a program of the user's, is not
    signalled as long as the VM answers. Raises StopFailed or PermissionTrouble.
    """
    try:
        with VmClient(vm, patience=_QUIT_PATIENCE) as client:
            client.execute("quit")
            if client.wait_end(_QUIT_PATIENCE) and _wait_over(vm):
                return
    except VmUnreachable:
        pass
    _signal(vm, signal.SIGTERM, _TERM_PATIENCE)
    if is_alive(vm.path):
        _signal(vm, signal.SIGKILL, _END_PATIENCE)
        if is_alive(vm.path):
            raise StopFailed(f"{vm.address} cannot be ended: process {vm.pid} does not die")
    from kvmkit.control.listing import clean_up

    clean_up(vm)


def _signal(vm: RunningVm, number: signal.Signals, patience: float) -> None:
    try:
        process = os.pidfd_open(vm.pid)
    except OSError:
        return
    try:
        # The number still means this VM's process: the lock is held, the file names it, and
        # what another user wrote there can only be a process of his own.
        same = is_alive(vm.path) and read_pid(vm.path) == vm.pid
        if not same or os.stat(f"/proc/{vm.pid}").st_uid != vm.uid:
            return
        signal.pidfd_send_signal(process, number)
        _wait_gone(vm, patience)
    except PermissionError:
        raise PermissionTrouble(f"process {vm.pid} of {vm.address} may not be signalled") from None
    except (ProcessLookupError, FileNotFoundError):
        pass
    finally:
        os.close(process)


def stop_all(
    vms: list[RunningVm], *, force: bool, timeout: float
) -> dict[RunningVm, KvmkitError | None]:
    """Press each VM's power button, then wait for all; the error for each that did not stop.

    With ``force`` those that do not listen, or take longer than ``timeout`` seconds,
    are ended.
    """
    outcomes: dict[RunningVm, KvmkitError | None] = {}
    waiting: list[tuple[RunningVm, VmClient]] = []
    for vm in vms:
        outcomes[vm] = None
        try:
            client = VmClient(vm)
            try:
                heard = _press(client)
            except BaseException:
                client.close()
                raise
        except KvmkitError as trouble:
            outcomes[vm] = trouble
            continue
        if heard:
            waiting.append((vm, client))
        else:
            client.close()
            outcomes[vm] = StopFailed(
                f"{vm.address}: the guest does not listen to the power button",
                f"kvmkit stop --force {vm.address} ends it",
            )
    limit = monotonic() + timeout
    for vm, client in waiting:
        with client:
            if not client.wait_end(max(0.0, limit - monotonic())):
                outcomes[vm] = StopFailed(
                    f"{vm.address} has not shut down within {timeout:g} s",
                    f"kvmkit stop --force {vm.address} ends it",
                )
            else:
                _wait_over(vm)
    if force:
        for vm, error in outcomes.items():
            if error is not None:
                try:
                    kill(vm)
                    outcomes[vm] = None
                except KvmkitError as worse:
                    outcomes[vm] = worse
    return outcomes


def _press(client: VmClient) -> bool:
    """The power button of a VM that runs; whether the guest listens to it."""
    if client.execute("query-status")["status"] == "paused":
        client.execute("cont")
    answer = client.execute("kvmkit-powerdown")
    return bool(answer["heard"])


def _wait_over(vm: RunningVm) -> bool:
    """Whether the VM is gone, or over although its process keeps it, a notebook's for instance."""
    from kvmkit.control.claim import STATE, read_small

    if _wait_gone(vm, _KEPT_PATIENCE):
        return True
    if read_small(os.path.join(vm.path, STATE), 32).strip() == b"ended":
        return True
    return _wait_gone(vm, _END_PATIENCE)


def _wait_gone(vm: RunningVm, patience: float) -> bool:
    """Whether the VM is gone, at the latest after ``patience`` seconds."""
    limit = monotonic() + patience
    step = 0.001
    while os.path.exists(os.path.join(vm.path, PID)) and is_alive(vm.path):
        if monotonic() > limit:
            return False
        sleep(step)
        step = min(2 * step, 0.05)
    return True
