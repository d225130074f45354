"""A board's whole state but for its RAM, as one record."""

from __future__ import annotations

from kvmkit.engine.cpu import CpuState
from kvmkit.errors import BadSnapshot, KvmkitError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.board.board import Board

__all__ = ["BoardState", "restore_board", "state_of"]


class BoardState(Record):
    """A machine that stands still at ``now`` nanoseconds of guest time.

    ``devices`` are state records by name; ``engine`` names the engine, and
    ``engine_devices`` what it has of the machine inside itself, in its own terms.
    """

    now: int
    cpus: tuple[CpuState, ...]
    devices: dict[str, Any]
    engine: str
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
            engine_devices=inside,
        )


def restore_board(board: Board, state: BoardState) -> None:
    """Let a board that has not started become ``state``. Raises BadSnapshot if it cannot.

    Time first, which the devices' alarms count by; devices in the board's order, so
    that the chips have their levels before lines are driven; the CPUs last.
    """
    engine: Any = board.engine
    if state.engine != engine.name:
        raise BadSnapshot(
            f"the snapshot was taken on the engine {state.engine}, this VM has {engine.name}",
            f"restore it with --engine {state.engine}",
        )
    _same_machine(board, state)
    with board.lock:
        board.clock.stand_at(state.now)
        try:
            chips, rests = state.engine_devices or (None, ())
            if chips is not None:
                engine.restore_chips(chips)
            for name, device in board.devices.items():
                device.restore(state.devices[name])
            for vcpu, cpu in zip(engine.vcpus, state.cpus, strict=True):
                vcpu.restore(cpu)
            for vcpu, rest, cpu in zip(engine.vcpus, rests, state.cpus, strict=False):
                vcpu.restore_rest(rest, cpu)
        except KvmkitError:
            raise
        except Exception as error:  # whatever a device says to numbers that cannot be
            raise BadSnapshot(f"the snapshot holds a state that cannot be: {error}") from None


def _same_machine(board: Board, state: BoardState) -> None:
    """Raise BadSnapshot unless ``state`` is of a machine with the same parts."""
    if len(state.cpus) != len(board.engine.vcpus):
        raise BadSnapshot(
            f"the snapshot has {len(state.cpus)} CPUs, this VM {len(board.engine.vcpus)}"
        )
    if odd := state.devices.keys() ^ board.devices.keys():
        where = "VM lacks" if min(odd) in state.devices else "snapshot lacks"
        raise BadSnapshot(f"the machines differ: the {where} the device {ascii(min(odd))[:40]}")
    here = {devfn for devfn, _ in board.pci.bus.state().functions}
    there = {devfn for devfn, _ in state.devices["pci"].functions}
    if odd_slots := here ^ there:
        slot = min(odd_slots) >> 3
        where = "VM lacks" if min(odd_slots) in there else "snapshot lacks"
        raise BadSnapshot(
            f"the machines differ: the {where} the device in PCI slot {slot}",
            "a VM that goes on needs the devices it was saved with",
        )
