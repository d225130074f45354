"""A guest goes on on the engine it was saved on, and on the other."""

from __future__ import annotations

import re
import time

import pytest

from kvmkit import VM
from kvmkit.board.state import state_of
from kvmkit.errors import BadSnapshot, EngineUnavailable, KvmkitError
from kvmkit.vm import make_engine
from tests.snapshot.tiny_guest import PERIOD_MS, tiny_kernel

ENGINES = [
    pytest.param("kvm", marks=pytest.mark.kvm),
    pytest.param("soft", marks=pytest.mark.soft),
]
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def need(*engines):
    """Skip where one of them does not work."""
    for engine in engines:
        try:
            make_engine(engine, 1).close()
        except KvmkitError as error:
            pytest.skip(f"{engine}: {error}")


def wait(vm, out, count):
    """Until the guest has said so many letters."""
    limit = time.monotonic() + 30
    while len(out) < count:
        assert vm.ending is None and time.monotonic() < limit, (vm.ending, bytes(out))
        time.sleep(0.005)


def follows(text):
    """Whether both alphabets go on, letter after letter."""
    for letters in (LETTERS, LETTERS.lower()):
        own = bytes(c for c in text if c in letters)
        assert own, text
        start = letters.index(own[0])
        assert own == (letters * 20)[start : start + len(own)], text
    assert re.fullmatch(rb"[A-Za-z]*", text), text


@pytest.mark.parametrize("path", ["kk", "ss", "ks", "sk", "ksksks", "skskks"])
def test_a_guest_counts_on(tmp_path, path):
    """Through a chain of engines: no letter lost, none twice, the timers at their pace."""
    engines = [{"k": "kvm", "s": "soft"}[letter] for letter in path]
    need(*set(engines))
    kernel = tiny_kernel(tmp_path)
    snap = tmp_path / "snap"
    out = bytearray()
    vm = VM(kernel, memory="2M", engine=engines[0], console=out.extend, timeout=60)
    for engine in [*engines[1:], None]:
        with vm:
            vm.start()
            wait(vm, out, len(out) + 7)
            vm.snapshot(snap)
            vm.kill()
        if engine is not None:
            # what was said after the snapshot is said again
            vm = VM.restore(snap, engine=engine, console=out.extend, timeout=60)
            del out[len(vm_said(snap, out)) :]
    follows(bytes(out))


def vm_said(snap, out):
    """What the guest had said when it was saved: its own count of letters is in its memory."""
    with open(snap / "memory", "rb") as file:
        said = []
        for at in (0x9004, 0x9014):
            file.seek(at)
            said.append(int.from_bytes(file.read(4), "little"))
    upper, lower = said
    text = bytes(out)
    while text and (last(text, LETTERS) != upper or last(text, LETTERS.lower()) != lower):
        text = text[:-1]
    assert text, (bytes(out), said)
    return text


def last(text, letters):
    """The number of the letter that comes next."""
    own = [c for c in text if c in letters]
    return (letters.index(own[-1]) + 1) % 26 if own else 0


@pytest.mark.parametrize("there", ENGINES)
@pytest.mark.parametrize("here", ENGINES)
def test_time_stands_between(tmp_path, there, here):
    """The next letters come a period after those before, however long the snapshot lay."""
    need(there, here)
    out = bytearray()
    with VM(tiny_kernel(tmp_path), memory="2M", engine=there, console=out.extend) as vm:
        vm.start()
        wait(vm, out, 6)
        vm.snapshot(tmp_path / "snap")
    time.sleep(3 * PERIOD_MS / 1000)
    out = bytearray()
    with VM.restore(tmp_path / "snap", engine=here, console=out.extend) as vm:
        vm.start()
        start = vm.board.clock.now()
        wait(vm, out, 8)
        passed = (vm.board.clock.now() - start) / 1e6
    follows(bytes(out))
    assert 2.5 * PERIOD_MS < passed < 8 * PERIOD_MS


def saved_state(tmp_path, engine):
    """The state of a tiny guest that was paused, as the board gives it."""
    out = bytearray()
    with VM(tiny_kernel(tmp_path), memory="2M", engine=engine, console=out.extend) as vm:
        vm.start()
        wait(vm, out, 2)
        vm.pause()
        vm.snapshot(tmp_path / "snap")
        return state_of(vm.board)


@pytest.mark.parametrize(("there", "here"), [("kvm", "soft"), ("soft", "kvm")])
@pytest.mark.kvm
@pytest.mark.soft
def test_registers_have_the_same_values(tmp_path, there, here):
    """Before anything runs: general and control registers, x87 and SSE, the interrupt chips."""
    need(there, here)
    before = saved_state(tmp_path, there).cpus[0]
    vm = VM.restore(tmp_path / "snap", engine=here)
    with vm:
        after = restored(vm).cpus[0]
    for name in ("gprs", "rip", "rflags", "cr0", "cr3", "cr4", "efer", "gdt", "idt", "fpu", "cs"):
        assert getattr(after, name) == getattr(before, name), name


def restored(vm):
    """A VM's state before it runs."""
    from kvmkit.board.board import Board

    states = []
    real = Board.start
    try:
        Board.start = lambda board, bus=None: states.append(state_of(board))
        vm.start()
    finally:
        Board.start = real
    return states[0]


@pytest.mark.kvm
@pytest.mark.soft
def test_there_and_back_is_the_identity(tmp_path):
    """What the chips' records hold survives KVM's: all but the 8254's phase."""
    need("kvm", "soft")
    there = saved_state(tmp_path, "soft")
    with VM.restore(tmp_path / "snap", engine="kvm") as vm:
        vm.start()
        vm.pause()
        vm.snapshot(tmp_path / "again")
    with VM.restore(tmp_path / "again", engine="soft") as vm:
        back = restored(vm)
    for field in ("imr", "icw2", "elcr", "isr", "lowest", "step"):
        for chip in ("primary", "secondary"):
            one, other = (getattr(state.devices["pic"], chip) for state in (there, back))
            assert getattr(one, field) == getattr(other, field), (chip, field)
    assert back.devices["ioapic"].redirections == there.devices["ioapic"].redirections
    one, other = there.devices["lapic0"], back.devices["lapic0"]
    for field in ("base", "svr", "lvt", "dfr", "ldr", "tpr"):
        assert getattr(one, field) == getattr(other, field), field
    assert other.timer.initial == one.timer.initial
    counters = [state.devices["pit"].counters[0] for state in (there, back)]
    assert counters[0].count == counters[1].count
    assert counters[0].control == counters[1].control


@pytest.mark.kvm
@pytest.mark.soft
def test_what_the_software_cpu_lacks_is_refused(tmp_path):
    """AVX, protection keys, a counter of another frequency: each with its name."""
    from kvmkit.board.state import restore_board
    from kvmkit.frozen import replace
    from tests.board.machine import MIB, make_board

    need("kvm", "soft")
    state = saved_state(tmp_path, "kvm")
    cpu = state.cpus[0]
    chips, (rest,) = state.engine_devices
    deadline = bytearray(rest.lapic)
    deadline[0x320:0x324] = (0x40040).to_bytes(4, "little")
    cases = [
        (replace(state, cpus=(replace(cpu, cr4=cpu.cr4 | 1 << 18),)), "uses XSAVE"),
        (replace(state, cpus=(replace(cpu, cr4=cpu.cr4 | 1 << 17),)), "CR4.PCIDE"),
        (replace(state, cpus=(replace(cpu, efer=1 << 12),)), "mode that the software CPU has not"),
        (
            replace(
                state,
                tsc_hz=3_000_000_000,
                engine_devices=(chips, (replace(rest, lapic=bytes(deadline)),)),
            ),
            "time-stamp counter of 3000000 kHz, here it has 1000000 kHz",
        ),
    ]
    for bad, words in cases:
        board = make_board(make_engine("soft", 1), memory=2 * MIB)
        try:
            with pytest.raises(BadSnapshot, match=words):
                restore_board(board, bad)
        finally:
            board.close()


@pytest.mark.kvm
@pytest.mark.soft
def test_an_operating_system_is_refused_where_it_would_miss_something(tmp_path, kernel):
    """A Linux of the software CPU on a KVM whose counter or instructions differ."""
    need("kvm", "soft")
    with VM(kernel, engine="soft", memory="128M") as vm:
        vm.start()
        limit = time.monotonic() + 60
        while b"Switched to clocksource" not in vm.console_log and time.monotonic() < limit:
            time.sleep(0.02)
        vm.snapshot(tmp_path / "snap")
    try:
        with VM.restore(tmp_path / "snap", engine="kvm") as vm:
            vm.start()
    except (BadSnapshot, EngineUnavailable) as error:
        assert "counter" in str(error) or "lacks" in str(error) or "state" in str(error)
    else:
        pytest.skip("this host's KVM can be the software CPU")
