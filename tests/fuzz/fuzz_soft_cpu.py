"""Random code on the software CPU, in all modes: the process must survive whatever runs.

``python -m tests.fuzz.fuzz_soft_cpu [seed [rounds]]`` runs on and prints each
round's seed first, so that the last line names a crash's.
"""

from __future__ import annotations

import random
import sys
import threading
from mmap import mmap
from struct import pack

from kvmkit.engine.cpu import CpuState
from kvmkit.engine.engine import CpuEnd, CpuEndReason
from kvmkit.frozen import replace
from tests.engine.soft import guest as lib
from tests.engine.soft.asm import assemble

__all__ = ["Fuzz"]

GUARD = 1 << 20  # bytes before and after the RAM that nobody may touch
AREA = 0x40000  # random code from here on
CHUNK = 0x100
CHUNKS = 64
COUNTER = 0x6F0

# What random bytes rarely form, to be followed by random operands.
_HEX = (
    "0f00 0f01 0f02 0f03 0f05 0f06 0f07 0f08 0f09 0f0b 0f0d 0f18 0f1e 0f1f 0f20 0f21 0f22 "
    "0f23 0f30 0f31 0f32 0f33 0f34 0f35 0f37 0fa0 0fa1 0fa2 0fa8 0fa9 0faa 0fae 0fb2 0fb4 "
    "0fb5 0fc7 0f38 0f3a 660f38 660f3a f20f38 f30f38 f20f f30f 660f 0f10 0fc0 0fb0 0fb1 "
    "0fa4 0fac 0fba c8 ca cb cc cd ce cf 9a ea ff d8 d9 da db dc dd de df 6c 6d 6e 6f e4 e5 "
    "e6 e7 ec ed ee ef f3a4 f3a5 f3aa f3a6 f2ae f36c f36e 8e 8c c4 c5 62 8f 0f0f 9b 9d 9c "
    "07 17 1f 63 f0 64 65 f4 fa fb e0 e1 e2 e3 eb 66 67 48 6648 f390 0fff 0fb9 d6 f1 f00fc7 "
    "f0480fc7 0f01d0 0f01f8 0f01f9 0f01c1 0f01c8 0f01ca 0f01cb 0f01d1 0f01d8 0f01df 0f00d8 "
    "0f0018 0f0110 0f0118 0f0130 "
)
SEEDS = tuple(bytes.fromhex(text) for text in _HEX.split())


class _Bus:
    """Devices that answer anything."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.accesses = 0

    def port_read(self, port: int, size: int) -> int:
        return self._rng.getrandbits(8 * size)

    def port_write(self, port: int, size: int, value: int) -> None:
        assert 0 <= port < 1 << 16 and size in (1, 2, 4) and 0 <= value < 1 << 8 * size
        self.accesses += 1

    def port_written(self, port: int, data: bytes) -> None:
        self.accesses += 1

    def memory_read(self, address: int, size: int) -> int:
        return self._rng.getrandbits(8 * size)

    def memory_write(self, address: int, size: int, value: int) -> None:
        assert size in (1, 2, 4, 8) and 0 <= value < 1 << 8 * size
        self.accesses += 1


class Fuzz(lib.Guest):
    """A machine whose RAM has guards around it."""

    def __init__(self, seed: int, vcpus: int = 2) -> None:
        super().__init__(vcpus, chips=True)
        self.rng = random.Random(seed)
        self.stopped = threading.Event()
        self.reasons: dict[CpuEndReason, int] = {}
        self.details: list[str] = []
        self.guarded = mmap(-1, GUARD + lib.RAM_SIZE + GUARD)
        self.pattern = random.Random(0).randbytes(GUARD)
        self.guarded[:GUARD] = self.pattern
        self.guarded[-GUARD:] = self.pattern
        from kvmkit.engine.soft._core import address_of

        self.engine.remove_ram(0)
        self.engine.add_ram(0, 0, address_of(self.guarded) + GUARD, lib.RAM_SIZE)
        self.image = {bits: self._image(bits) for bits in (16, 32, 64)}
        self.started = False

    def _image(self, bits: int) -> tuple[bytes, CpuState]:
        """Tables, and handlers that go on with the next piece of random code."""
        self.ram[:] = bytes(lib.RAM_SIZE)
        state = {16: lib.real_mode, 32: lib.protected_mode, 64: lib.long_mode}[bits](self)
        a = {16: "", 32: "e", 64: "r"}[bits]
        handler = f"""
            mov {a}sp, {lib.STACK}; inc word ptr [{COUNTER}]; mov ax, [{COUNTER}]
            and ax, {CHUNKS - 1}
        """
        if bits == 16:
            handler += "shl ax, 4; add ax, 0x4000; push ax; push 0; retf"
            for vector in range(256):
                self.write(4 * vector, pack("<HH", lib.HANDLERS, 0))
        else:
            handler += f"movzx eax, ax; shl eax, 8; add eax, {AREA}; push {a}ax; ret"
            for vector in range(32):
                if bits == 64:
                    lib.set_gate(self, vector, lib.HANDLERS, ist=vector in (8, 12), dpl=3)
        self.write(lib.HANDLERS, assemble(handler, lib.HANDLERS, bits).ljust(0x200, b"\xf4"))
        if bits == 32:
            for vector in range(32):
                gate = pack("<HHHH", lib.HANDLERS, lib.CODE32, 0xEE00, 0)
                self.write(lib.IDT + 8 * vector, gate)
        return self.ram[:0x100000], replace(state, rip=lib.HANDLERS)

    def _code(self) -> bytes:
        rng, code = self.rng, bytearray()
        while len(code) < CHUNK * CHUNKS:
            if rng.random() < 0.6:
                code += rng.choice(SEEDS)
            code += rng.randbytes(rng.randrange(1, 6))
        return bytes(code[: CHUNK * CHUNKS])

    def _ended(self, end: CpuEnd) -> None:
        self.reasons[end.reason] = self.reasons.get(end.reason, 0) + 1
        if end.reason is not CpuEndReason.TRIPLE_FAULT:
            self.details.append(end.detail)
        self.stopped.set()

    def round(self, seconds: float = 0.004) -> None:
        """Run one lot of random code for so long, or until it ends the CPU."""
        rng = self.rng
        bits = rng.choice((16, 32, 64))
        image, state = self.image[bits]
        if self.started:
            self.pause()
        self.guarded[GUARD : GUARD + len(image)] = image
        self.guarded[GUARD + AREA : GUARD + AREA + CHUNK * CHUNKS] = self._code()
        self.guarded[GUARD + COUNTER] = rng.randrange(CHUNKS)
        self.engine.core.invalidate(0, lib.RAM_SIZE)
        gprs = tuple(
            rng.choice((rng.getrandbits(64), rng.getrandbits(22), AREA)) for _ in range(16)
        )
        state = replace(state, gprs=gprs)
        self.restore(state)
        if len(self.engine.vcpus) > 1 and rng.random() < 0.3:
            self.restore(state.with_gprs(rsp=lib.STACK - 0x400), 1)
        else:
            self.restore(CpuState(waiting_for_sipi=True), 1)
        self.stopped.clear()
        if self.started:
            self.resume()
        else:
            self.bus = _Bus(random.Random(rng.random()))  # type: ignore[assignment]
            self.start()
            self.started = True
        self.stopped.wait(seconds)
        self.pause()
        for index in range(len(self.engine.vcpus)):
            self.state(index)

    def check(self) -> None:
        """Nothing outside the RAM was written, and the engine met nothing it cannot execute."""
        assert self.guarded[:GUARD] == self.pattern
        assert self.guarded[-GUARD:] == self.pattern
        assert not self.details, self.details


def main() -> None:
    """Rounds without end, or as many as asked for."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1 << 60
    fuzz = Fuzz(seed)
    for n in range(rounds):
        fuzz.round()
        if n % 100 == 99:
            print(seed, n, {reason.name: count for reason, count in fuzz.reasons.items()},
                  fuzz.engine.core.stats(), flush=True)  # fmt: skip
            fuzz.check()
    fuzz.close()


if __name__ == "__main__":
    main()
