"""CPU state out of KVM and back in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.engine.cpu import CpuState, flat_long_mode, flat_protected_mode
from kvmkit.engine.kvm import abi
from kvmkit.frozen import replace
from tests.engine.kvm.guest import CODE, GDT, HLT, NOP, STI, TABLES, needs_kvm, out, real_mode
from tests.engine.kvm.machine import Machine, machine

pytestmark = needs_kvm

MSR_TSC = 0x10
MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP = 0x174, 0x175, 0x176
MSR_STAR, MSR_LSTAR, MSR_FMASK, MSR_KERNEL_GS_BASE = 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000102

u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
canonical = st.one_of(st.integers(0, (1 << 47) - 1), st.integers(0xFFFF800000000000, (1 << 64) - 1))


@pytest.fixture(scope="module")
def standing() -> Iterator[Machine]:
    """A machine that never starts: its vCPUs' state is ours."""
    with machine(HLT, vcpus=2, start=False) as m:
        yield m


def still(state: CpuState) -> CpuState:
    """Without what runs on its own."""
    return replace(state, msrs={k: v for k, v in state.msrs.items() if k != MSR_TSC})


ENTRIES = {
    "reset": CpuState(),
    "real mode": real_mode(0x700),
    "long mode": flat_long_mode(CODE, cr3=TABLES, gdt=GDT, stack=0x8000),
    "protected mode": flat_protected_mode(0x100000, gdt=GDT),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_states_arrive_as_given(standing: Machine, name: str) -> None:
    """Every register of the states machines start in reads back as it was set."""
    vcpu = standing.engine.vcpus[0]
    state = ENTRIES[name]
    vcpu.restore(state)
    found = vcpu.state()
    assert replace(found, msrs={}, efer=0, ldt=state.ldt) == replace(state, efer=0)
    assert found.efer & 0x500 == state.efer & 0x500
    assert found.ldt.selector == 0


def test_restore_of_state_is_the_identity(standing: Machine) -> None:
    """restore(state()) changes nothing, MSRs included."""
    vcpu = standing.engine.vcpus[0]
    vcpu.restore(ENTRIES["long mode"])
    before = vcpu.state()
    vcpu.restore(before)
    assert still(vcpu.state()) == still(before)
    assert len(before.msrs) > 10


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    gprs=st.tuples(*[u64] * 16),
    rip=canonical,
    dr=st.tuples(canonical, canonical, canonical, canonical),
    xmm=st.tuples(*[st.binary(min_size=16, max_size=16)] * 16),
    stack=st.tuples(*[st.binary(min_size=10, max_size=10)] * 8),
    control=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x7FF)),
    bases=st.tuples(canonical, canonical, canonical),
    msrs=st.tuples(u32, canonical, canonical, u64, canonical, u32, canonical),
    halted=st.booleans(),
    shadow=st.booleans(),
    masked=st.booleans(),
    cr2=u64,
    cr8=st.integers(0, 15),
)
def test_any_long_mode_state_round_trips(
    standing: Machine,
    gprs: tuple[int, ...],
    rip: int,
    dr: tuple[int, int, int, int],
    xmm: tuple[bytes, ...],
    stack: tuple[bytes, ...],
    control: tuple[int, int, int],
    bases: tuple[int, int, int],
    msrs: tuple[int, ...],
    halted: bool,
    shadow: bool,
    masked: bool,
    cr2: int,
    cr8: int,
) -> None:
    """Registers of all kinds come back as they went in."""
    vcpu = standing.engine.vcpus[0]
    base = ENTRIES["long mode"]
    values = dict(
        zip(
            (
                MSR_SYSENTER_CS,
                MSR_SYSENTER_ESP,
                MSR_SYSENTER_EIP,
                MSR_STAR,
                MSR_LSTAR,
                MSR_FMASK,
                MSR_KERNEL_GS_BASE,
            ),
            msrs,
            strict=True,
        )
    )
    state = replace(
        base,
        gprs=gprs,
        rip=rip,
        rflags=0x202,
        dr=(*dr, 0xFFFF0FF0, 0x400),
        fs=replace(base.fs, base=bases[0]),
        gs=replace(base.gs, base=bases[1]),
        gdt=replace(base.gdt, base=bases[2]),
        fpu=replace(
            base.fpu, fcw=0x37F, fsw=control[0] & 0x3F00, ftw=control[1], xmm=xmm, st=stack
        ),
        msrs=values,
        halted=halted,
        interrupt_shadow=shadow,
        nmi_masked=masked,
        cr2=cr2,
        cr8=cr8,
    )
    vcpu.restore(state)
    found = vcpu.state()
    assert replace(found, msrs={}, efer=0, ldt=state.ldt) == replace(state, msrs={}, efer=0)
    assert {index: found.msrs[index] for index in values} == values


def test_waiting_for_sipi_round_trips(standing: Machine) -> None:
    """A CPU that waits for its start-up IPI still does."""
    vcpu = standing.engine.vcpus[1]
    assert vcpu.state().waiting_for_sipi
    vcpu.restore(CpuState(waiting_for_sipi=True))
    assert vcpu.state().waiting_for_sipi
    assert standing.engine.vcpu(1).fd.mp_state() == abi.KVM_MP_STATE_UNINITIALIZED


def test_unknown_msr_with_a_value_is_refused_and_zero_is_not(standing: Machine) -> None:
    """An MSR this host lacks cannot be restored silently; one that is 0 means nothing."""
    from kvmkit.errors import EngineUnavailable

    vcpu = standing.engine.vcpus[0]
    state = ENTRIES["long mode"]
    vcpu.restore(replace(state, msrs={0x12345678: 0}))
    with pytest.raises(EngineUnavailable, match="0x12345678"):
        vcpu.restore(replace(state, msrs={0x12345678: 1}))


def test_guest_goes_on_after_a_round_trip() -> None:
    """A running guest, stopped, read, restored and resumed, misses nothing."""
    body = b"\xff\xc3" + b"\x89\xd8" + b"\xe7\x80"  # inc ebx; mov eax, ebx; out 0x80, eax
    code = (
        b"\xbb\x00\x00\x00\x00" + body + b"\xeb" + (-(len(body) + 2) & 0xFF).to_bytes(1, "little")
    )
    with machine(code) as m:
        for _ in range(20):
            m.engine.pause()
            m.engine.vcpus[0].restore(m.engine.vcpus[0].state())
            m.engine.resume()
        values = [m.bus.value() for _ in range(200)]
    assert values == list(range(1, 201))


def test_register_changed_while_paused_is_seen_by_the_guest() -> None:
    """What a debugger does."""
    body = b"\x89\xd8" + b"\xe7\x80"  # mov eax, ebx; out 0x80, eax
    code = (
        b"\xbb\x00\x00\x00\x00" + body + b"\xeb" + (-(len(body) + 2) & 0xFF).to_bytes(1, "little")
    )
    with machine(code) as m:
        assert m.bus.value() == 0
        m.engine.pause()
        vcpu = m.engine.vcpus[0]
        vcpu.restore(vcpu.state().with_gprs(rbx=0xABCD))
        m.engine.resume()
        while (value := m.bus.value()) == 0:
            pass
    assert value == 0xABCD


def test_restore_while_started_lets_the_counter_run() -> None:
    """The TSC of a machine that has started is not set back."""
    with machine(out(0x80, 1) + STI + HLT) as m:
        m.bus.next()
        m.engine.pause()
        vcpu = m.engine.vcpus[0]
        state = vcpu.state()
        vcpu.restore(replace(state, msrs={**state.msrs, MSR_TSC: 0}))
        assert vcpu.state().msrs[MSR_TSC] >= state.msrs[MSR_TSC]


def test_rest_goes_out_and_in_unchanged(standing: Machine) -> None:
    """XSAVE area, XCR0, events, APIC: restore_rest(rest()) is the identity."""
    vcpu = standing.engine.vcpu(0)
    state = vcpu.state()
    before = vcpu.rest()
    vcpu.restore_rest(before, state)
    assert vcpu.rest() == before
    assert len(before.xsave) >= 4096
    assert len(before.lapic) == 1024


def test_pending_nmi_travels_in_the_rest() -> None:
    """An NMI that had not arrived when the first machine stood arrives in the second."""
    handler = out(0x80, 2) + HLT
    with machine(NOP * 4 + HLT, handlers={2: handler}, start=False) as old:
        old.engine.vcpu(0).fd.nmi()
        state = old.engine.vcpus[0].state()
        rest = old.engine.vcpu(0).rest()
        content = bytes(old.memory.view)
    with machine(HLT, start=False) as new:
        new.memory.write(0, content)
        new.engine.vcpus[0].restore(state)
        new.engine.vcpu(0).restore_rest(rest, state)
        new.start()
        assert new.bus.value() == 2
