"""Copies of a running VM: they share memory, and nothing else."""

from __future__ import annotations

import fcntl
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit import VM
from kvmkit.board.memory import GuestMemory
from kvmkit.errors import BadSnapshot, UsageError
from kvmkit.virtio.entropy import Entropy
from tests.snapshot.test_engines import ENGINES, follows, need, wait
from tests.snapshot.tiny_guest import tiny_kernel

MIB = 1 << 20
SIZE = 4 * MIB
PLACES = st.lists(
    st.tuples(st.integers(0, SIZE // 4096 - 1), st.integers(1, 255)), max_size=10
)


class Checked:
    """A guest's memory, and what should be in it."""

    def __init__(self, memory: GuestMemory, holds: bytes) -> None:
        self.memory = memory
        self.holds = bytearray(holds)

    def put(self, places: list[tuple[int, int]]) -> None:
        """A byte into each of some pages."""
        for page, byte in places:
            self.memory.write(page * 4096, bytes((byte,)))
            self.holds[page * 4096] = byte

    def copy(self) -> Checked:
        """A copy that goes its own way."""
        image = self.memory.freeze()
        assert os.pread(image, SIZE, 0) == self.holds
        copied = Checked(GuestMemory(SIZE, source=image), self.holds)
        os.close(image)
        return copied


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), PLACES), max_size=8))
def test_frozen_memory_is_everybodys_own(steps):
    """Copies, and copies of copies: each holds what it had and what it wrote, no other's."""
    all_of_them = [Checked(GuestMemory(SIZE), bytes(SIZE))]
    for which, places in steps:
        one = all_of_them[which % len(all_of_them)]
        one.put(places)
        all_of_them.append(one.copy())
    for index, each in enumerate(all_of_them):
        each.put([(index, 0xEE)])
    for each in all_of_them:
        assert each.memory.read(0, SIZE) == each.holds
        each.memory.close()


def test_frozen_memory_is_sealed():
    """Nobody can write to it or shorten it, by mistake or otherwise."""
    memory = GuestMemory(SIZE)
    memory.write(0, b"x")
    image = memory.freeze()
    assert fcntl.fcntl(image, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    with pytest.raises(PermissionError):
        os.pwrite(image, b"y", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(image, 0)
    memory.write(0, b"z")
    memory.write(MIB, b"w" * MIB)
    assert memory.read(0, 1) == b"z"
    assert memory.resident() == MIB + 4096
    os.close(image)
    memory.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_count_on_by_themselves(tmp_path, engine):
    """Each from where the first was; the first too, and a copy's copy."""
    need(engine)
    out = bytearray()
    copies = []
    with VM(tiny_kernel(tmp_path), memory="2M", engine=engine, console=out.extend) as vm:
        vm.start()
        wait(vm, out, 5)
        outs = [bytearray() for _ in range(4)]
        try:
            copies = vm.fork(3, consoles=[each.extend for each in outs])
            copies += copies[0].fork(1, consoles=[outs[3].extend])
            for copy, said in zip(copies, outs, strict=True):
                wait(copy, said, 6)
                follows(bytes(said))
                assert said[0] not in b"Aa"
            assert len({copy.name for copy in [vm, *copies]}) == 5
            wait(vm, out, len(out) + 6)
            follows(bytes(out))
        finally:
            for copy in copies:
                copy.close()


@pytest.mark.soft
def test_a_copy_of_a_paused_vm_runs(tmp_path):
    """And the VM stays paused."""
    need("soft")
    with VM(tiny_kernel(tmp_path), memory="2M", engine="soft") as vm:
        vm.start()
        vm.pause()
        out = bytearray()
        (copy,) = vm.fork(consoles=[out.extend])
        with copy:
            wait(copy, out, 3)
        assert vm.paused


@pytest.mark.soft
def test_a_copy_needs_the_devices(tmp_path):
    """They are handed to ``prepare``; without, nothing is left running."""
    need("soft")
    vm = VM(tiny_kernel(tmp_path), memory="2M", engine="soft")
    vm.add_device(Entropy(os.urandom))
    with vm:
        vm.start()
        with pytest.raises(BadSnapshot, match="VM lacks the device in PCI slot"):
            vm.fork()
        (copy,) = vm.fork(prepare=lambda copy, _: copy.add_device(Entropy(os.urandom)))
        with copy:
            assert copy.running
        with pytest.raises(UsageError, match="a number of copies"):
            vm.fork(0)
        time.sleep(0.05)
        assert vm.running
