"""A board's whole state but for its RAM, as one record."""

from __future__ import annotations

from kvmkit.engine.cpu import CpuState
from kvmkit.errors import BadSnapshot, KvmkitError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.board.board import Board

CHIPS = ("pic", "ioapic", "apicbus", "pit")
"""The devices that only a board with our models of the chips has, with the local APICs."""

__all__ = ["BoardState", "restore_board", "state_of"]


class BoardState(Record):
    """A machine that stands still at ``now`` nanoseconds of guest time.

    ``devices`` are state records by name; ``engine`` names the engine, ``tsc_hz`` is
    the frequency of its CPUs' time-stamp counters, and ``engine_devices`` what it has
    of the machine inside itself, in its own terms.
    """

    now: int
    cpus: tuple[CpuState, ...]
    devices: dict[str, Any]
    engine: str
    tsc_hz: int
    engine_devices: Any = None


def state_of(board: Board) -> BoardState:
    """The state of a board that is paused, or has not started."""
    engine: Any = board.engine
    with board.lock:
        inside = None
        if hasattr(engine, "chips"):
            inside = (engine.chips(), tuple(vcpu.rest() for vcpu in engine.vcpus))
        return BoardState(
            now=board.clock.now(),
            cpus=tuple(vcpu.state() for vcpu in engine.vcpus),
            devices={name: device.state() for name, device in board.devices.items()},
            engine=engine.name,
            tsc_hz=engine.tsc_hz,
            engine_devices=inside,
        )


def restore_board(board: Board, state: BoardState) -> None:
    """Let a board that has not started become ``state``. Raises BadSnapshot if it cannot.

    Time first, which the devices' alarms count by, and the CPUs last. A state of the
    other engine is translated (:mod:`kvmkit.board.translate`).
    """
    engine: Any = board.engine
    other = state.engine != engine.name
    _same_machine(board, state, other=other)
    with board.lock:
        board.clock.stand_at(state.now)
        try:
            if not other:
                _restore(board, state)
            else:
                from kvmkit.board import translate

                if hasattr(engine, "chips"):
                    translate.restore_into_kvm(board, state)
                else:
                    translate.restore_into_models(board, state)
        except KvmkitError:
            raise
        except Exception as error:  # whatever a device says to numbers that cannot be
            text = f"{type(error).__name__}: {error}"
            raise BadSnapshot(f"the snapshot holds a state that cannot be: {text}") from None


def _restore(board: Board, state: BoardState) -> None:
    """Devices in the board's order: our models of the chips, which come first, then have
    their levels before lines are driven. KVM's come after the lines, which they would else
    take for edges."""
    engine: Any = board.engine
    for name, device in board.devices.items():
        device.restore(state.devices[name])
    if state.engine_devices is None:
        for vcpu, cpu in zip(engine.vcpus, state.cpus, strict=True):
            vcpu.restore(cpu)
        return
    chips, rests = state.engine_devices
    engine.set_tsc_hz(state.tsc_hz)
    engine.restore_chips(chips)
    for vcpu, cpu, rest in zip(engine.vcpus, state.cpus, rests, strict=True):
        vcpu.restore(cpu)
        vcpu.restore_rest(rest, cpu)


def _same_machine(board: Board, state: BoardState, *, other: bool) -> None:
    """Raise BadSnapshot unless ``state`` is of a machine with the same parts."""
    if len(state.cpus) != len(board.engine.vcpus):
        raise BadSnapshot(
            f"the snapshot has {len(state.cpus)} CPUs, this VM {len(board.engine.vcpus)}"
        )
    there, here = set(state.devices), set(board.devices)
    if other:  # the interrupt chips are devices on the software CPU only
        there, here = (
            {name for name in names if name not in CHIPS and not name.startswith("lapic")}
            for names in (there, here)
        )
    if odd := there ^ here:
        where = "VM lacks" if min(odd) in state.devices else "snapshot lacks"
        raise BadSnapshot(f"the machines differ: the {where} the device {ascii(min(odd))[:40]}")
    pci_here = {devfn for devfn, _ in board.pci.bus.state().functions}
    pci_there = {devfn for devfn, _ in state.devices["pci"].functions}
    if odd_slots := pci_here ^ pci_there:
        slot = min(odd_slots) >> 3
        where = "VM lacks" if min(odd_slots) in pci_there else "snapshot lacks"
        raise BadSnapshot(
            f"the machines differ: the {where} the device in PCI slot {slot}",
            "a VM that goes on needs the devices it was saved with",
        )
