"""Every exit reason this host's KVM can be made to give, through the thin owners."""

from __future__ import annotations

import signal
import threading

import pytest

from kvmkit.engine.kvm import abi
from kvmkit.engine.kvm.describe import describe_exit
from tests.engine.kvm.guest import (
    CLI,
    CODE,
    CPUID,
    DATA,
    HLT,
    IRETQ,
    NOP,
    RDMSR,
    SPIN,
    STI,
    forever,
    guest,
    inp,
    load,
    mov,
    mov_rax,
    needs_kvm,
    out,
    store,
    wrmsr,
)

pytestmark = needs_kvm

MMIO = 0xD0000000


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_write_shows_port_size_and_value(size: int) -> None:
    """An OUT of each width exits with its operands."""
    value = 0x11223344 & (1 << 8 * size) - 1
    with guest(out(0x123, value, size) + HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        io = g.vcpu.run.io
        assert (io.direction, io.port, io.size, io.count) == (abi.KVM_EXIT_IO_OUT, 0x123, size, 1)
        assert int.from_bytes(g.vcpu.io_data(), "little") == value


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_read_takes_the_value_given(size: int) -> None:
    """What is put in the data area arrives in the guest's register."""
    with guest(mov("eax", 0) + inp(0x321, size) + HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        assert g.vcpu.run.io.direction == abi.KVM_EXIT_IO_IN
        g.vcpu.io_data()[:] = b"\xa1\xb2\xc3\xd4"[:size]
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        assert g.vcpu.regs().rax == int.from_bytes(b"\xa1\xb2\xc3\xd4"[:size], "little")


def test_repeated_string_output_gives_all_bytes() -> None:
    """REP OUTSB of a text arrives whole, in as many exits as KVM likes."""
    text = b"the quick brown fox"
    code = mov("esi", DATA) + mov("ecx", len(text)) + mov("edx", 0xE9) + b"\xf3\x6e" + HLT
    with guest(code) as g:
        g.memory.write(DATA, text)
        found = b""
        while g.vcpu.enter() == abi.KVM_EXIT_IO:
            found += bytes(g.vcpu.io_data())
        assert found == text
        assert g.vcpu.run.exit_reason == abi.KVM_EXIT_HLT


def test_repeated_string_input_fills_memory() -> None:
    """REP INSW stores what the exits are given."""
    code = mov("edi", DATA) + mov("ecx", 8) + mov("edx", 0x1F0) + b"\x66\xf3\x6d" + HLT
    with guest(code) as g:
        number = 0
        while g.vcpu.enter() == abi.KVM_EXIT_IO:
            data = g.vcpu.io_data()
            for at in range(0, len(data), 2):
                data[at : at + 2] = (0x1000 + number).to_bytes(2, "little")
                number += 1
        words = g.memory.view[DATA : DATA + 16].cast("H").tolist()
        assert number == 8
        assert words == [0x1000 + n for n in range(8)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_write_outside_ram(size: int) -> None:
    """A store where no RAM is exits with address, length and data."""
    with guest(mov_rax(0x1122334455667788) + store(MMIO + 0x10, size) + HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_MMIO
        mmio = g.vcpu.run.mmio
        assert (mmio.phys_addr, mmio.len, mmio.is_write) == (MMIO + 0x10, size, 1)
        assert bytes(mmio.data[:size]) == (0x1122334455667788).to_bytes(8, "little")[:size]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_read_outside_ram(size: int) -> None:
    """A load there takes what ``mmio.data`` is given."""
    with guest(mov("eax", 0) + load(MMIO, size) + HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_MMIO
        assert g.vcpu.run.mmio.is_write == 0
        g.vcpu.run.mmio.data = b"\x81\x82\x83\x84\x85\x86\x87\x88"
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        assert g.vcpu.regs().rax == int.from_bytes(
            b"\x81\x82\x83\x84\x85\x86\x87\x88"[:size], "little"
        )


def test_write_to_read_only_ram_exits_and_read_does_not() -> None:
    """KVM_MEM_READONLY: loads come from memory, stores are MMIO."""
    from kvmkit.engine.kvm.kvm import Memory

    rom = Memory(0x1000)
    rom.write(0, (0xCAFE).to_bytes(4, "little"))
    with guest(load(0x100000) + store(0x100004) + HLT) as g:
        g.vm.set_memory(1, 0x100000, rom.address, rom.size, abi.KVM_MEM_READONLY)
        assert g.vcpu.enter() == abi.KVM_EXIT_MMIO
        assert g.vcpu.run.mmio.phys_addr == 0x100004
        assert bytes(g.vcpu.run.mmio.data[:2]) == b"\xfe\xca"


def test_halt_without_interrupt_chip() -> None:
    """HLT exits where the host has to know of interrupts."""
    with guest(HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        assert g.vcpu.regs().rip == CODE + 1


def test_triple_fault_is_a_shutdown() -> None:
    """A fault that cannot be delivered, since there is no IDT."""
    with guest(b"\x0f\x0b") as g:  # ud2
        assert g.vcpu.enter() == abi.KVM_EXIT_SHUTDOWN
        assert "KVM_EXIT_SHUTDOWN" in describe_exit(g.vcpu, abi.KVM_EXIT_SHUTDOWN)


def test_code_outside_ram_is_an_internal_error() -> None:
    """Nobody can run instructions from where there is no memory; the error has words."""
    with guest(b"\xff\xe0") as g:  # jmp rax
        regs = g.vcpu.regs()
        regs.rax = MMIO
        g.vcpu.set_regs(regs)
        assert g.vcpu.enter() == abi.KVM_EXIT_INTERNAL_ERROR
        assert g.vcpu.run.internal.suberror == abi.KVM_INTERNAL_ERROR_EMULATION
        text = describe_exit(g.vcpu, abi.KVM_EXIT_INTERNAL_ERROR)
        assert "must emulate" in text
        assert hex(MMIO) in text


def test_single_step_stops_after_each_instruction() -> None:
    """KVM_GUESTDBG_SINGLESTEP: DEBUG exits with growing RIP and DR6.BS."""
    with guest(NOP * 8 + HLT) as g:
        g.vcpu.set_debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP)
        seen = []
        for _ in range(3):
            assert g.vcpu.enter() == abi.KVM_EXIT_DEBUG
            arch = g.vcpu.run.debug.arch
            assert arch.exception == abi.DB_VECTOR
            assert arch.dr6 & 1 << 14
            seen.append(g.vcpu.regs().rip)
        assert seen == [CODE + 1, CODE + 2, CODE + 3]


def test_hardware_breakpoint() -> None:
    """DR0 in KVM_SET_GUEST_DEBUG stops before the instruction."""
    with guest(NOP * 8 + HLT) as g:
        g.vcpu.set_debug(
            abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP,
            (CODE + 5, 0, 0, 0, 0, 0, 0, 0x402),
        )
        assert g.vcpu.enter() == abi.KVM_EXIT_DEBUG
        assert g.vcpu.run.debug.arch.pc == CODE + 5
        assert g.vcpu.run.debug.arch.dr6 & 1


def test_software_breakpoint() -> None:
    """An INT3 put into the code comes to the debugger, not to the guest."""
    with guest(NOP * 2 + b"\xcc" + HLT) as g:
        g.vcpu.set_debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_SW_BP)
        reason = g.vcpu.enter()
        if reason == abi.KVM_EXIT_INTERNAL_ERROR:
            pytest.skip("this KVM emulates ring 0 and cannot emulate INT3")
        assert reason == abi.KVM_EXIT_DEBUG
        assert g.vcpu.run.debug.arch.exception == abi.BP_VECTOR
        assert g.vcpu.run.debug.arch.pc == CODE + 2


def test_unknown_msr_read_exits_to_user_space() -> None:
    """KVM_CAP_X86_USER_SPACE_MSR: RDMSR of an MSR nobody knows is ours to answer."""
    with guest(mov("ecx", 0x12345678) + RDMSR + HLT) as g:
        g.vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        assert g.vcpu.enter() == abi.KVM_EXIT_X86_RDMSR
        msr = g.vcpu.run.msr
        assert (msr.index, msr.reason) == (0x12345678, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        msr.data = 0x1111222233334444
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        regs = g.vcpu.regs()
        assert (regs.rax, regs.rdx) == (0x33334444, 0x11112222)


def test_filtered_msr_write_exits_to_user_space() -> None:
    """KVM_X86_SET_MSR_FILTER: a write of a known MSR that we forbid."""
    with guest(wrmsr(0x174, 0x5555) + HLT) as g:
        g.vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_FILTER)
        g.vm.filter_msrs([(abi.KVM_MSR_FILTER_WRITE, 0x174, b"\xfe")])
        assert g.vcpu.enter() == abi.KVM_EXIT_X86_WRMSR
        msr = g.vcpu.run.msr
        assert (msr.index, msr.data) == (0x174, 0x5555)
        assert msr.reason == abi.KVM_MSR_EXIT_REASON_FILTER
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        assert g.vcpu.msrs([0x174]) == {0x174: 0}


def test_refused_msr_faults_in_the_guest() -> None:
    """``msr.error`` makes RDMSR a #GP."""
    caught = out(0x80, 0x0D) + HLT
    with guest(mov("ecx", 0x12345678) + RDMSR + HLT, handlers={13: caught}) as g:
        g.vm.enable(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_UNKNOWN)
        assert g.vcpu.enter() == abi.KVM_EXIT_X86_RDMSR
        g.vcpu.run.msr.error = 1
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        assert g.vcpu.io_data()[0] == 0x0D


def test_immediate_exit_returns_at_once() -> None:
    """With ``immediate_exit`` no guest instruction runs."""
    with guest(SPIN) as g:
        g.vcpu.run.immediate_exit = 1
        assert g.vcpu.enter() == abi.KVM_EXIT_INTR
        assert g.vcpu.regs().rip == CODE


def test_immediate_exit_completes_a_port_read() -> None:
    """The access under way is finished before KVM turns back: the register is set."""
    with guest(mov("eax", 0) + inp(0x10) + NOP + HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        g.vcpu.io_data()[0] = 0x5A
        g.vcpu.run.immediate_exit = 1
        assert g.vcpu.enter() == abi.KVM_EXIT_INTR
        regs = g.vcpu.regs()
        assert regs.rax == 0x5A
        assert regs.rip == CODE + 11


def test_blocked_signal_turns_a_running_guest_back() -> None:
    """KVM_SET_SIGNAL_MASK: a signal without a handler ends KVM_RUN and stays pending."""
    number = signal.SIGRTMIN + 4
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        with guest(SPIN) as g:
            g.vcpu.set_signal_mask(set())
            me = threading.get_ident()
            timer = threading.Timer(0.05, lambda: signal.pthread_kill(me, number))
            timer.start()
            assert g.vcpu.enter() == abi.KVM_EXIT_INTR
            timer.join()
            assert g.vcpu.run.exit_reason == abi.KVM_EXIT_INTR
            assert signal.sigtimedwait({number}, 0) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_interrupt_window_opens_when_interrupts_are_allowed() -> None:
    """Without an interrupt chip: ask for the window, inject, see the handler run."""
    handler = out(0x80, 0x20) + IRETQ
    with guest(CLI + NOP + STI + forever(NOP), handlers={0x20: handler}) as g:
        g.vcpu.run.request_interrupt_window = 1
        assert g.vcpu.enter() == abi.KVM_EXIT_IRQ_WINDOW_OPEN
        assert g.vcpu.run.ready_for_interrupt_injection == 1
        assert g.vcpu.run.if_flag == 1
        g.vcpu.run.request_interrupt_window = 0
        g.vcpu.interrupt(0x20)
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        assert g.vcpu.io_data()[0] == 0x20


def test_non_maskable_interrupt_runs_its_handler() -> None:
    """KVM_NMI reaches vector 2 with interrupts off."""
    with guest(CLI + NOP * 4 + HLT, handlers={2: out(0x80, 2) + IRETQ}) as g:
        g.vcpu.nmi()
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        assert g.vcpu.io_data()[0] == 2
        assert g.vcpu.events().nmi.masked == 1
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT


def test_lowering_the_task_priority_exits_without_a_chip() -> None:
    """KVM_EXIT_SET_TPR: MOV to CR8 that lowers it, with an APIC in user space."""
    lower = mov("eax", 0) + b"\x44\x0f\x22\xc0"  # mov cr8, rax
    with guest(lower + HLT) as g:
        g.vcpu.run.cr8 = 9
        reason = g.vcpu.enter()
        if reason == abi.KVM_EXIT_HLT:
            pytest.skip("this KVM emulates ring 0 and reports no CR8 writes")
        assert reason == abi.KVM_EXIT_SET_TPR
        assert g.vcpu.run.cr8 == 0


def test_task_priority_access_reporting() -> None:
    """KVM_TPR_ACCESS_REPORTING: an access to the APIC's TPR shows where it came from."""
    from kvmkit.engine.kvm.calls import call
    from kvmkit.engine.kvm.structs import kvm_tpr_access_ctl

    with guest(load(0xFEE00080) + forever(NOP), irqchip=True) as g:
        control = kvm_tpr_access_ctl()
        control.enabled = 1
        call(g.vcpu.fd, abi.KVM_TPR_ACCESS_REPORTING, control.memory)
        assert g.vcpu.enter() == abi.KVM_EXIT_TPR_ACCESS
        assert g.vcpu.run.tpr_access.rip == CODE + 5
        assert g.vcpu.run.tpr_access.is_write == 0


def test_level_interrupt_eoi_with_split_chip() -> None:
    """KVM_EXIT_IOAPIC_EOI: the local APIC is the kernel's, the I/O APIC ours."""
    from kvmkit.engine.kvm.vm_fd import MsiRoute

    # x2APIC on, software-enabled; the handler ends the interrupt at MSR 0x80b.
    code = wrmsr(0x1B, 0xFEE00D00) + wrmsr(0x80F, 0x1FF) + out(0x80, 1)
    code += STI + forever(NOP)
    handler = wrmsr(0x80B, 0) + out(0x80, 0x99) + IRETQ
    with guest(code, handlers={0x40: handler}, split=24) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_IO  # the APIC is on
        # data bit 15: level; bits 7-0: vector
        g.vm.set_routing([MsiRoute(4, 0xFEE00000, 0x8040)])
        assert g.vm.signal_msi(0xFEE00000, 0x8040) > 0
        # An emulating KVM may get as far as the handler's OUT before it reports.
        reasons = [g.vcpu.enter()]
        if reasons == [abi.KVM_EXIT_IO]:
            assert g.vcpu.io_data()[0] == 0x99
            reasons.append(g.vcpu.enter())
        assert reasons[-1] == abi.KVM_EXIT_IOAPIC_EOI
        assert g.vcpu.run.eoi.vector == 0x40


def test_full_dirty_ring_exits() -> None:
    """KVM_EXIT_DIRTY_RING_FULL: a ring above its limit stops the guest until it is harvested."""
    import mmap

    from kvmkit.engine.kvm.kvm import Memory, System
    from kvmkit.engine.kvm.state import write_state
    from kvmkit.engine.kvm.structs import kvm_dirty_gfn
    from tests.engine.kvm.guest import RAM_SIZE, prepare

    entries, count = 1024, 1000
    # write a word to each page from 1 MiB on
    code = (
        mov("edi", 0x100000)
        + mov("ecx", count)
        + b"\x89\x07"  # mov [rdi], eax
        + b"\x81\xc7\x00\x10\x00\x00"  # add edi, 0x1000
        + b"\xff\xc9\x75\xf4"  # dec ecx; jnz
        + out(0x80, 0)
        + HLT
    )
    memory, more = Memory(RAM_SIZE), Memory(count * 4096)
    with System() as system, system.create_vm() as vm:
        if vm.check(abi.KVM_CAP_DIRTY_LOG_RING) < entries * 16:
            pytest.skip("no KVM_CAP_DIRTY_LOG_RING here")
        vm.enable(abi.KVM_CAP_DIRTY_LOG_RING, entries * 16)
        vm.set_memory(0, 0, memory.address, memory.size)
        vm.set_memory(1, 0x100000, more.address, more.size, abi.KVM_MEM_LOG_DIRTY_PAGES)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(system.supported_cpuid())
        write_state(vcpu, prepare(memory, code), irqchip=False)
        reason = vcpu.enter()
        if reason == abi.KVM_EXIT_IO:  # an emulating KVM looks at the ring only when it enters
            reason = vcpu.enter()
        assert reason == abi.KVM_EXIT_DIRTY_RING_FULL
        offset = abi.KVM_DIRTY_LOG_PAGE_OFFSET * 4096
        with mmap.mmap(vcpu.fd, entries * 16, mmap.MAP_SHARED, offset=offset) as ring:
            pages = []
            for n in range(entries):
                record = kvm_dirty_gfn(ring, n * 16)
                if record.flags & abi.KVM_DIRTY_GFN_F_DIRTY:
                    pages.append((record.slot, record.offset))
                    record.flags = abi.KVM_DIRTY_GFN_F_RESET
                record.memory.release()
        assert pages == [(1, n) for n in range(len(pages))]
        assert vm.reset_dirty_rings() == len(pages) > 100
        assert vcpu.enter() in (abi.KVM_EXIT_IO, abi.KVM_EXIT_HLT)


def test_coalesced_port_writes_do_not_exit() -> None:
    """KVM_REGISTER_COALESCED_MMIO on ports: the writes wait in the ring until another exit."""
    from kvmkit.engine.kvm.structs import kvm_coalesced_mmio_ring

    code = out(0x3F8, 0x41) + out(0x3F8, 0x42) + out(0x80, 0)
    with guest(code) as g:
        g.vm.coalesce(0x3F8, 1, port=True)
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        assert g.vcpu.run.io.port == 0x80
        page = g.vm.check(abi.KVM_CAP_COALESCED_MMIO) * 4096
        ring = kvm_coalesced_mmio_ring(g.vcpu.map, page, 4096)
        written = [ring.coalesced_mmio[n] for n in range(ring.first, ring.last)]
        assert [(w.phys_addr, w.data[0], w.pio) for w in written] == [
            (0x3F8, 0x41, 1),
            (0x3F8, 0x42, 1),
        ]


def test_shared_registers() -> None:
    """KVM_CAP_SYNC_REGS: registers come with the exit, and go back with the next entry."""
    with guest(out(0x80, 7) + HLT) as g:
        g.vcpu.run.kvm_valid_regs = abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS
        assert g.vcpu.enter() == abi.KVM_EXIT_IO
        shared = g.vcpu.run.s.regs
        assert shared.regs.rax == 7
        assert shared.sregs.cr3 == g.vcpu.sregs().cr3
        shared.regs.rbx = 0x1234
        g.vcpu.run.kvm_dirty_regs = abi.KVM_SYNC_X86_REGS
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        assert g.vcpu.regs().rbx == 0x1234


def test_cpuid_is_answered_as_set() -> None:
    """The guest sees the leaf that KVM_SET_CPUID2 was given."""
    with guest(mov("eax", abi.KVM_CPUID_SIGNATURE) + CPUID + HLT) as g:
        assert g.vcpu.enter() == abi.KVM_EXIT_HLT
        regs = g.vcpu.regs()
        signature = b"".join(n.to_bytes(4, "little") for n in (regs.rbx, regs.rcx, regs.rdx))
        assert signature == abi.KVM_SIGNATURE
