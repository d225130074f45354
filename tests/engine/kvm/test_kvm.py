"""The owners of KVM's descriptors, and what they say when something is wrong."""

from __future__ import annotations

import errno
import os

import pytest

from kvmkit.engine.kvm import abi, mend
from kvmkit.engine.kvm.kvm import Memory, System, open_trouble
from kvmkit.errors import EngineUnavailable, PermissionTrouble
from tests.engine.kvm.guest import guest, needs_kvm, out

with_kvm = [needs_kvm[0], needs_kvm[1]]


def test_missing_device_is_told_with_a_way_out() -> None:
    """No /dev/kvm: what is missing, and a step."""
    with pytest.raises(EngineUnavailable, match="/dev/no-kvm is missing") as caught:
        System("/dev/no-kvm")
    assert caught.value.hint


def test_foreign_device_is_told() -> None:
    """A file that is no KVM."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineUnavailable, match="/dev/null is not KVM's device"):
        System("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == before


def test_forbidden_device_comes_with_the_command() -> None:
    """EACCES becomes PermissionTrouble with a command that mends it."""
    trouble = open_trouble(OSError(errno.EACCES, "Permission denied"))
    assert isinstance(trouble, PermissionTrouble)
    assert "/dev/kvm exists but may not be opened" in str(trouble)
    assert trouble.hint


def test_other_trouble_is_quoted() -> None:
    """What the kernel says is passed on."""
    trouble = open_trouble(OSError(errno.EMFILE, "Too many open files"))
    assert isinstance(trouble, EngineUnavailable)
    assert "Too many open files" in str(trouble)


def test_group_that_may_open_it_is_named(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of the group kvm: join the group."""
    import grp
    import pwd
    import stat
    from types import SimpleNamespace

    status = SimpleNamespace(st_mode=stat.S_IFCHR | 0o660, st_gid=104)
    monkeypatch.setattr(os, "stat", lambda path: status)
    monkeypatch.setattr(os, "getgroups", lambda: [1000])
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="kvm", gr_gid=gid, gr_mem=[])
    )
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="alice"))
    assert mend.permission_hint("/dev/kvm").startswith("sudo usermod -aG kvm alice")
    monkeypatch.setattr(os, "getgroups", lambda: [104])
    assert "container" in mend.permission_hint("/dev/kvm")
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="kvm", gr_gid=gid, gr_mem=["alice"])
    )
    monkeypatch.setattr(os, "getgroups", lambda: [1000])
    assert "log in again" in mend.permission_hint("/dev/kvm")
    status.st_mode = stat.S_IFCHR | 0o600
    assert mend.permission_hint("/dev/kvm") == "sudo setfacl -m u:alice:rw /dev/kvm"


@pytest.mark.kvm
@needs_kvm[1]
class TestOwners:
    """On the real /dev/kvm."""

    def test_version_and_capabilities(self) -> None:
        """API 12, and what every KVM has."""
        with System() as system:
            assert system.api_version() == 12
            found = system.capabilities()
            assert found["KVM_CAP_USER_MEMORY"] == 1
            assert system.vcpu_mmap_size() >= 4096

    def test_cpuid_and_msr_lists(self) -> None:
        """Leaf 0 is there, IA32_TSC is among the state's MSRs."""
        with System() as system:
            assert any(e.leaf == 0 for e in system.supported_cpuid())
            assert 0x10 in system.msr_indices()
            assert isinstance(system.feature_msr_indices(), list)
            assert isinstance(system.emulated_cpuid(), list)

    def test_cpuid_set_is_cpuid_got(self) -> None:
        """KVM_SET_CPUID2 and KVM_GET_CPUID2 agree on KVM's leaves."""
        with System() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid(system.supported_cpuid())
            assert any(e.leaf == abi.KVM_CPUID_SIGNATURE for e in vcpu.cpuid())

    def test_failing_call_is_named(self) -> None:
        """An OSError tells which ioctl it was."""
        with System() as system, system.create_vm() as vm:
            with pytest.raises(OSError, match="KVM_SET_USER_MEMORY_REGION: Invalid") as caught:
                vm.set_memory(0, 1, 1, 1)
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(FileExistsError, match="KVM_CREATE_VCPU"):
                vm.create_vcpu(0)
                vm.create_vcpu(0)

    def test_descriptors_go_with_their_owners(self) -> None:
        """Nothing stays open; closing twice is harmless."""
        before = set(os.listdir("/proc/self/fd"))
        with System() as system, system.create_vm() as vm:
            vcpu = vm.create_vcpu(0)
            vm.close()
            vcpu.close()
            vm.close()
        system.close()
        assert set(os.listdir("/proc/self/fd")) == before

    def test_held_view_keeps_only_the_page(self) -> None:
        """Closing while somebody looks at kvm_run works; it goes when they let go."""
        before = set(os.listdir("/proc/self/fd"))
        with System() as system, system.create_vm() as vm:
            view = vm.create_vcpu(0).run.io.memory
            vm.close()
            assert bytes(view)
            view.release()
        del vm
        assert set(os.listdir("/proc/self/fd")) == before

    def test_statistics(self) -> None:
        """Counters by name; the exits are counted."""
        with guest(out(0x80, 1) * 5) as g:
            for _ in range(5):
                g.vcpu.enter()
            stats = g.vcpu.stats()
            assert stats["exits"] >= 1
            assert "remote_tlb_flush" in g.vm.stats()

    def test_translation(self) -> None:
        """KVM_TRANSLATE walks the guest's page tables; beyond 4 GiB nothing is mapped."""
        with guest(b"\xf4") as g:
            assert g.vcpu.translate(0x1234) == 0x1234
            assert g.vcpu.translate(0x5_0000_0000) is None

    def test_clock_counts(self) -> None:
        """KVM_GET_CLOCK goes up, KVM_SET_CLOCK is taken."""
        with System() as system, system.create_vm() as vm:
            vm.create_irqchip()
            vm.create_vcpu(0)
            vm.set_clock(5_000_000_000)
            assert 5_000_000_000 <= vm.clock().clock < 6_000_000_000

    def test_fpu_and_extended_registers(self) -> None:
        """KVM_SET_FPU shows in KVM_GET_XSAVE; XCR0 has x87."""
        with guest(b"\xf4") as g:
            fpu = g.vcpu.fpu()
            fpu.xmm[3][:] = bytes(range(16))
            g.vcpu.set_fpu(fpu)
            assert bytes(g.vcpu.xsave()[160 + 48 : 160 + 64]) == bytes(range(16))
            assert g.vcpu.xcrs().xcrs[0].value & 1

    def test_tsc_frequency(self) -> None:
        """KVM_GET_TSC_KHZ is a plausible number."""
        with guest(b"\xf4") as g:
            assert 100_000 < g.vcpu.tsc_khz() < 20_000_000

    def test_manual_dirty_log(self) -> None:
        """With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 reading does not clear, clearing does."""
        from tests.engine.kvm.guest import RAM_SIZE, store

        with guest(store(0x20000) + out(0x80, 1), flags=abi.KVM_MEM_LOG_DIRTY_PAGES) as g:
            if not g.vm.check(abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2):
                pytest.skip("no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
            g.vm.enable(abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1)
            g.vcpu.enter()
            for _ in range(2):
                assert g.vm.dirty_log(0, RAM_SIZE)[4] & 1
            g.vm.clear_dirty_log(0, 0, RAM_SIZE // 4096, g.vm.dirty_log(0, RAM_SIZE))
            assert not g.vm.dirty_log(0, RAM_SIZE)[4] & 1


def test_memory_is_aligned_and_checked() -> None:
    """The host address is a page's; a write beyond the end is refused."""
    memory = Memory(8192)
    assert memory.address % 4096 == 0
    memory.write(8190, b"ab")
    assert bytes(memory.view[-2:]) == b"ab"
    with pytest.raises(ValueError):
        memory.write(8191, b"ab")
