"""Boards for tests: a few bytes of code at 0x1000, on the engine handed in."""

from __future__ import annotations

from typing import Any

from kvmkit.board.board import Board
from kvmkit.board.config import BoardConfig
from kvmkit.boot.plan import BootPlan, Load
from kvmkit.engine.cpu import CpuState, Segment

MIB = 1 << 20
CODE = 0x1000

REAL_MODE = CpuState(
    rip=CODE,
    cs=Segment(0, 0, 0xFFFF, 0x9B),
    ss=Segment(0, 0, 0xFFFF, 0x93),
    ds=Segment(0, 0, 0xFFFF, 0x93),
    es=Segment(0, 0, 0xFFFF, 0x93),
).with_gprs(rsp=0x8000, rdx=0)


def make_board(
    engine: Any, code: bytes = b"\xf4", *, entry: CpuState = REAL_MODE, **config: Any
) -> Board:
    """A board that starts ``code``, in real mode unless ``entry`` says otherwise."""
    config.setdefault("memory", 8 * MIB)
    config.setdefault("cpus", len(engine.vcpus))
    plan = BootPlan(loads=(Load(CODE, code),), entry=entry)
    return Board(BoardConfig(**config), engine, lambda board: plan)


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes((value,)) + b"\xee"


def out16(port: int, value: int) -> bytes:
    """mov dx, port; mov ax, value; out dx, ax."""
    return b"\xba" + port.to_bytes(2, "little") + b"\xb8" + value.to_bytes(2, "little") + b"\xef"


def say(text: bytes, port: int = 0x3F8) -> bytes:
    """Send ``text`` to a serial port."""
    return b"".join(out(port, byte) for byte in text)


POWER_OFF = out16(0x604, 5 << 10 | 1 << 13)
HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp back to hlt
FOREVER = b"\xeb\xfe"
INVALID = b"\x0f\x0b"  # ud2
