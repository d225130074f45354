"""A board's whole state but for its RAM, as one record."""

from __future__ import annotations

from kvmkit.engine.cpu import CpuState
from kvmkit.errors import BadSnapshot
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
    if len(state.cpus) != len(engine.vcpus) or state.devices.keys() != board.devices.keys():
        raise BadSnapshot("the snapshot is of a machine with other CPUs or devices")
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
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, OSError) as error:
            raise BadSnapshot(f"the snapshot holds a state that cannot be: {error}") from None
