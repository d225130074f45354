"""The KVM engine keeps the promise of engine.Engine."""

from __future__ import annotations

import os
import queue
import threading
import time

import pytest

from kvmkit.engine.engine import CpuEnd, CpuEndReason
from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.engine import KvmEngine
from kvmkit.engine.kvm.vcpu_fd import VcpuFd
from kvmkit.errors import EngineUnavailable, UsageError
from kvmkit.frozen import replace
from tests.engine.kvm.guest import (
    CODE,
    DATA,
    HLT,
    NOP,
    RDMSR,
    SPIN,
    STI,
    forever,
    increment,
    inp,
    load,
    mov,
    mov_rax,
    needs_kvm,
    out,
    real_mode,
    store,
    wrmsr,
)
from tests.engine.kvm.machine import Bus, machine

pytestmark = needs_kvm

MMIO = 0xD0000000
COUNT_FOREVER = forever(increment(DATA))

# mov eax, [DATA]; mov edx, 0x80; out dx, eax; inc dword [DATA]
SAY_AND_COUNT = forever(
    b"\x8b\x04\x25" + DATA.to_bytes(4, "little") + mov("edx", 0x80) + b"\xef" + increment(DATA)
)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_port_accesses_reach_the_bus_from_the_vcpus_thread() -> None:
    """All widths of OUT, and what IN gives, on a thread named vcpu0."""
    code = out(0x110, 0x11) + out(0x120, 0x2233, 2) + out(0x130, 0x44556677, 4)
    code += inp(0x140, 4) + mov("edx", 0x150) + b"\xef" + HLT
    with machine(code, start=False) as m:
        m.bus.answer = lambda kind, address, size: 0xAABBCCDD if address == 0x140 else 0
        m.start()
        seen = [m.bus.next() for _ in range(4)]
    assert seen == [
        ("out", 0x110, 1, 0x11),
        ("out", 0x120, 2, 0x2233),
        ("out", 0x130, 4, 0x44556677),
        ("out", 0x150, 4, 0xAABBCCDD),
    ]
    assert m.bus.threads == {"vcpu0"}


def test_too_wide_answers_are_cut() -> None:
    """A bus that answers more bits than asked does no harm."""
    with machine(mov("eax", 0) + inp(0x140) + mov("edx", 0x150) + b"\xef" + HLT, start=False) as m:
        m.bus.answer = lambda kind, address, size: -1
        m.start()
        assert m.bus.value() == 0xFF


def test_string_io_reaches_the_bus_item_by_item() -> None:
    """REP OUTSW and REP INSB."""
    code = mov("esi", DATA) + mov("ecx", 3) + mov("edx", 0x70) + b"\x66\xf3\x6f"
    code += mov("edi", DATA + 0x100) + mov("ecx", 4) + mov("edx", 0x71) + b"\xf3\x6c"
    code += load(DATA + 0x100) + mov("edx", 0x72) + b"\xef" + HLT
    values = iter((0x61, 0x62, 0x63, 0x64))
    with machine(code, start=False) as m:
        m.memory.write(DATA, b"\x01\x02\x03\x04\x05\x06")
        m.bus.answer = lambda kind, address, size: next(values)
        m.start()
        seen = [m.bus.next() for _ in range(4)]
    assert seen[:3] == [("out", 0x70, 2, n) for n in (0x0201, 0x0403, 0x0605)]
    assert seen[3] == ("out", 0x72, 4, 0x64636261)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_accesses_reach_the_bus(size: int) -> None:
    """Stores and loads outside RAM, by width."""
    code = mov_rax(0x1122334455667788) + store(MMIO + 8, size)
    code += mov_rax(0) + load(MMIO + 16, size) + store(MMIO + 24, 8) + HLT
    mask = (1 << 8 * size) - 1
    with machine(code, start=False) as m:
        m.bus.answer = lambda kind, address, size: 0x8877665544332211 & mask
        m.start()
        assert m.bus.next() == ("store", MMIO + 8, size, 0x1122334455667788 & mask)
        assert m.bus.next() == ("store", MMIO + 24, 8, 0x8877665544332211 & mask)


def test_access_across_a_page_comes_in_sizes_the_bus_knows() -> None:
    """KVM cuts it at the page's end into 3 and 5 bytes; the bus sees 2+1 and 4+1."""
    with machine(mov_rax(0x0807060504030201) + store(MMIO + 0xFFD, 8) + out(0x80, 0) + HLT) as m:
        seen = []
        while (item := m.bus.next())[0] == "store":
            seen.append(item)
    assert {size for _, _, size, _ in seen} <= {1, 2, 4, 8}
    written = {}
    for _, address, size, value in seen:
        for n, byte in enumerate(value.to_bytes(size, "little")):
            written[address + n] = byte
    assert written == {MMIO + 0xFFD + n: n + 1 for n in range(8)}


def test_pause_stands_and_resume_goes_on() -> None:
    """A counter in RAM stops, and then counts again."""
    with machine(COUNT_FOREVER) as m:
        m.engine.pause()
        first = m.word(DATA)
        time.sleep(0.02)
        assert m.word(DATA) == first
        m.engine.resume()
        deadline = time.monotonic() + 5
        while m.word(DATA) == first and time.monotonic() < deadline:
            time.sleep(0.001)
        assert m.word(DATA) != first


def test_many_pauses_lose_and_repeat_no_output() -> None:
    """Stops in the middle of port writes: every number comes exactly once, in order."""
    with machine(SAY_AND_COUNT) as m:
        for _ in range(300):
            m.engine.pause()
            m.engine.resume()
        m.engine.pause()
        said = m.word(DATA)
        values = []
        while True:
            try:
                values.append(m.bus.seen.get_nowait()[3])
            except queue.Empty:
                break
    assert values == list(range(len(values)))
    assert len(values) in (said, said + 1)


def test_pauses_from_two_threads() -> None:
    """Whoever pauses and resumes at the same time: nobody hangs, the guest goes on."""
    with machine(COUNT_FOREVER, vcpus=2) as m:

        def toggle() -> None:
            for _ in range(100):
                m.engine.pause()
                m.engine.resume()

        others = [threading.Thread(target=toggle) for _ in range(2)]
        for other in others:
            other.start()
        for other in others:
            other.join(10)
            assert not other.is_alive()
        before = m.word(DATA)
        time.sleep(0.02)
        assert m.word(DATA) != before


def test_pause_is_idempotent_and_works_before_start() -> None:
    """A machine started while paused stands until it is resumed."""
    with machine(out(0x80, 1) + HLT, start=False) as m:
        m.engine.pause()
        m.engine.pause()
        m.start()
        with pytest.raises(queue.Empty):
            m.bus.seen.get(timeout=0.05)
        m.engine.resume()
        m.engine.resume()
        assert m.bus.value() == 1


def test_halted_vcpu_can_be_paused() -> None:
    """One that waits for an interrupt in HLT stands too, and its state says so."""
    with machine(out(0x80, 1) + STI + HLT) as m:
        m.bus.next()
        time.sleep(0.02)
        m.engine.pause()
        assert m.engine.vcpus[0].state().halted


def test_pause_completes_the_access_under_way() -> None:
    """A stop during IN: the register has the value, RIP is behind the instruction."""
    entered, go = threading.Event(), threading.Event()

    def answer(kind: str, address: int, size: int) -> int:
        entered.set()
        go.wait(10)
        return 0x77

    with machine(mov("eax", 0) + inp(0x10) + NOP + SPIN, start=False) as m:
        m.bus.answer = answer
        m.start()
        entered.wait(10)
        threading.Timer(0.02, go.set).start()
        m.engine.pause()
        state = m.engine.vcpus[0].state()
    assert state.rax == 0x77
    assert state.rip >= CODE + 11


def test_own_thread_may_not_pause() -> None:
    """It would wait for itself; it is told so instead."""
    trouble: queue.Queue[BaseException] = queue.Queue()
    with machine(out(0x80, 1) + HLT, start=False) as m:

        def write(port: int, size: int, value: int) -> None:
            try:
                m.engine.pause()
            except RuntimeError as error:
                trouble.put(error)

        m.bus.port_write = write  # type: ignore[method-assign]
        m.start()
        assert "own thread" in str(trouble.get(timeout=5))


def test_works_from_another_than_the_main_thread() -> None:
    """No signal handler is needed, so any thread can own an engine."""
    result: queue.Queue[int] = queue.Queue()

    def whole_life() -> None:
        with machine(SAY_AND_COUNT) as m:
            m.bus.next()
            m.engine.pause()
            m.engine.resume()
            m.bus.next()
            result.put(1)

    thread = threading.Thread(target=whole_life)
    thread.start()
    thread.join(10)
    assert result.get_nowait() == 1


def test_triple_fault_ends_once_and_shows_where() -> None:
    """``ended`` is told once, with the CPU's place; the registers can be read."""
    with machine(NOP + b"\x0f\x0b") as m:
        end = m.end()
        assert (end.vcpu, end.reason) == (0, CpuEndReason.TRIPLE_FAULT)
        assert "cr3=0x10000" in end.detail
        m.engine.pause()
        assert m.engine.vcpus[0].state().cr3 == 0x10000
        m.engine.resume()
        assert m.ends.empty()


def test_ended_vcpu_runs_again_when_restored() -> None:
    """A machine that resets after a triple fault uses the same engine."""
    with machine(b"\x0f\x0b") as m:
        m.end()
        m.engine.pause()
        m.memory.write(0x7000, b"\xb0\x2a\xe6\x80\xf4")  # mov al, 42; out 0x80, al; hlt
        m.engine.vcpus[0].restore(real_mode(0x700))
        m.engine.resume()
        assert m.bus.value() == 42


def test_what_kvm_cannot_run_is_an_internal_error() -> None:
    """A jump to where there is no memory ends the vCPU with words."""
    with machine(mov_rax(MMIO) + b"\xff\xe0") as m:
        end = m.end()
    assert end.reason is CpuEndReason.INTERNAL_ERROR
    assert "KVM_EXIT_INTERNAL_ERROR" in end.detail
    assert hex(MMIO) in end.detail


def test_raising_bus_ends_the_vcpu_not_the_process() -> None:
    """A device that raises is a bug of ours; it is reported, nothing hangs."""

    def write(port: int, size: int, value: int) -> None:
        raise ValueError("no such register")

    with machine(out(0x80, 1) + HLT, start=False) as m:
        m.bus.port_write = write  # type: ignore[method-assign]
        m.start()
        assert "ValueError in a device: no such register" in m.end().detail


def test_handler_takes_an_exit() -> None:
    """``on_exit``: MSR reads answered by us."""

    def answer(vcpu: VcpuFd) -> bool:
        vcpu.run.msr.data = 0x42
        return True

    code = mov("ecx", 0x12345678) + RDMSR + mov("edx", 0x80) + b"\xee" + HLT
    with machine(code, start=False) as m:
        m.engine._vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        m.engine.on_exit(abi.KVM_EXIT_X86_RDMSR, answer)
        m.start()
        assert m.bus.value() == 0x42


def test_exit_without_handler_ends_with_its_name() -> None:
    """An exit the engine has no answer to is reported, not looped on."""
    with machine(mov("ecx", 0x12345678) + RDMSR + HLT, start=False) as m:
        m.engine._vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        m.start()
        assert "KVM_EXIT_X86_RDMSR: MSR 0x12345678" in m.end().detail


def test_second_cpu_starts_with_init_and_sipi() -> None:
    """INIT and start-up IPIs through the in-kernel APICs; both CPUs run on their own threads."""
    ap = b"\xb0\x02\xe6\x80\xf4"  # mov al, 2; out 0x80, al; hlt
    code = wrmsr(0x1B, 0xFEE00D00) + wrmsr(0x80F, 0x1FF)
    code += wrmsr(0x830, 1 << 32 | 0x4500) + wrmsr(0x830, 1 << 32 | 0x4607)
    code += out(0x80, 1) + HLT
    with machine(code, vcpus=2, start=False) as m:
        m.memory.write(0x7000, ap)
        m.start()
        assert {m.bus.value(), m.bus.value()} == {1, 2}
        assert m.bus.threads == {"vcpu0", "vcpu1"}


def test_waiting_cpus_can_be_paused_and_say_so() -> None:
    """A CPU that waits for its start-up IPI stands like any other."""
    with machine(out(0x80, 1) + SPIN, vcpus=4) as m:
        m.bus.next()
        m.engine.pause()
        states = [vcpu.state() for vcpu in m.engine.vcpus]
    assert [state.waiting_for_sipi for state in states] == [False, True, True, True]


def test_guest_clock_stands_through_a_pause() -> None:
    """kvmclock does not count the time of a stop."""
    with machine(COUNT_FOREVER) as m:
        m.engine.pause()
        before = m.engine._vm.clock().clock
        time.sleep(0.2)
        m.engine.resume()
        after = m.engine._vm.clock().clock
    assert after - before < 100_000_000


def test_dirty_log_names_the_written_pages() -> None:
    """Pages written since the last call, and only those."""
    code = store(0x20000) + store(0x25000) + out(0x80, 1) + store(0x26000) + out(0x80, 2) + HLT
    with machine(code, start=False) as m:
        m.engine.track_dirty(0)
        m.engine.dirty_log(0)
        gate = threading.Event()
        original = m.bus.port_write

        def write(port: int, size: int, value: int) -> None:
            original(port, size, value)
            gate.wait(10)
            gate.clear()

        m.bus.port_write = write  # type: ignore[method-assign]
        m.start()
        m.bus.next()
        first = int.from_bytes(m.engine.dirty_log(0), "little")
        gate.set()
        m.bus.next()
        second = int.from_bytes(m.engine.dirty_log(0), "little")
        gate.set()
    assert first >> 0x20 & 0x7F == 0b0100001
    assert second >> 0x20 & 0x7F == 0b1000000


def test_ram_can_be_taken_away_and_read_only() -> None:
    """What was RAM becomes the bus's; read-only RAM lets only writes through."""
    from kvmkit.engine.kvm.kvm import Memory

    rom = Memory(0x1000)
    rom.write(0, b"\x2a")
    code = load(0x100000) + mov("edx", 0x80) + b"\xee" + store(0x100000, 1) + HLT
    with machine(code, start=False) as m:
        m.engine.add_ram(1, 0x200000, rom.address, rom.size)
        m.engine.remove_ram(1)
        m.engine.add_ram(1, 0x100000, rom.address, rom.size, readonly=True)
        m.start()
        assert m.bus.value() == 0x2A
        assert m.bus.next() == ("store", 0x100000, 1, 0x2A)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("paused", [False, True])
def test_close_leaves_nothing(started: bool, paused: bool) -> None:
    """No descriptor and no thread stays, whatever the engine was doing; twice is harmless."""
    before = descriptors()
    with machine(COUNT_FOREVER, vcpus=3, start=started) as m:
        if paused:
            m.engine.pause()
        m.engine.close()
        m.engine.close()
    assert descriptors() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("vcpu")]


def test_failed_construction_leaves_nothing() -> None:
    """Too many vCPUs, no device: a clear error and no descriptor."""
    before = descriptors()
    with pytest.raises(UsageError, match="vCPUs, not 100000"):
        KvmEngine(100000)
    with pytest.raises(EngineUnavailable, match="is missing"):
        KvmEngine(1, device="/dev/no-such-kvm")
    assert descriptors() == before


def test_engine_starts_once() -> None:
    """A second start is a mistake of the caller."""
    with machine(HLT) as m, pytest.raises(RuntimeError, match="once"):
        m.engine.start(Bus(), lambda end: None)


def test_impossible_state_is_refused_in_words() -> None:
    """A state no CPU can be in: KVM says no, and so do we."""
    with machine(HLT, start=False) as m:
        bad = replace(m.engine.vcpus[0].state(), cr0=0x80000000)  # paging without protection
        with pytest.raises(EngineUnavailable, match="vCPU 0 cannot be put in this state"):
            m.engine.vcpus[0].restore(bad)


def test_ended_callback_type() -> None:
    """What ``ended`` gets is a CpuEnd of the vCPU that ended."""
    with machine(b"\x0f\x0b", vcpus=2) as m:
        assert isinstance(m.end(), CpuEnd)
