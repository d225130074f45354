"""Does the host's KVM run a kernel's code on the CPU itself?

``/dev/kvm`` alone does not say so: a KVM without VMX or SVM (``kvm_pvm``, nested in
a virtual machine) runs ring 0 in the kernel's instruction emulator, a thousand
times slower and without many instructions. So a tiny VM runs a loop of 2000
iterations in 64-bit ring 0, as Linux would, and KVM's own counter of emulated
instructions tells. That takes a few milliseconds, and is remembered until the
next boot or another KVM module.
"""

from __future__ import annotations

import os
from time import perf_counter

from kvmkit.errors import KvmkitError
from kvmkit.frozen import Record

__all__ = ["KvmVerdict", "measure", "probe"]

_ITERATIONS = 2000
_SLOW_PER_SECOND = 50e6
"""Loop iterations per second: emulators reach 2 million, the slowest CPU of today 500 million."""

_CACHE_FILE = "kvm-probe"
_CACHE_FORMAT = "1"

# The tiny VM, at guest address 0: page tables, then code. Two-MiB page, identity-mapped.
_PML4, _PDPT, _PD, _CODE = 0x1000, 0x2000, 0x3000, 0x4000
_SIZE = 0x5000
_PRESENT_WRITABLE = 3
_LARGE_PAGE = 0x83
_LOOP = (
    b"\xb9" + _ITERATIONS.to_bytes(4, "little")  # mov ecx, 2000
    + b"\xff\xc9"  # dec ecx
    + b"\x75\xfc"  # jnz the dec
    + b"\xf4"  # hlt
)  # fmt: skip


class KvmVerdict(Record):
    """What this host's KVM is good for, in values and in plain words.

    ``usable``: it can be opened and runs a guest. ``native``: it runs ring 0 on the
    CPU. ``mend`` is the command or step that would help, "" if none is needed.
    """

    usable: bool
    native: bool
    why: str
    mend: str = ""


def probe(device: str = "/dev/kvm", *, cache: bool = True) -> KvmVerdict:
    """The verdict on ``device``; never raises. Remembered in ``$XDG_CACHE_HOME/kvmkit``.

    Only what a whole measurement found is remembered, so that a mended
    permission or a loaded module counts at once.
    """
    key = _key(device) if cache else ""
    if key and os.access(device, os.R_OK | os.W_OK):
        native = _recall(key)
        if native is not None:
            return _verdict(native)
    try:
        native = measure(device)
    except KvmkitError as error:
        return KvmVerdict(False, False, str(error), error.hint)
    except OSError as error:
        return KvmVerdict(
            False, False, f"{device} opens, but cannot run a guest: {error}", "see dmesg"
        )
    if key:
        _remember(key, native)
    return _verdict(native)


def _verdict(native: bool) -> KvmVerdict:
    if native:
        return KvmVerdict(True, True, "KVM runs kernels on the CPU itself")
    return KvmVerdict(
        True,
        False,
        "KVM works, but this host's CPU gives it no VMX or SVM: it emulates kernel code,"
        " about a thousand times slower and without many instructions",
        "where this host is a virtual machine, switch on nested virtualisation for it",
    )


def measure(device: str = "/dev/kvm") -> bool:
    """Whether ring 0 runs natively, found by running some.

    Raises EngineUnavailable or PermissionTrouble if there is no KVM to ask, and
    OSError if it cannot run the loop.
    """
    from kvmkit.engine.cpu import flat_long_mode
    from kvmkit.engine.kvm import abi
    from kvmkit.engine.kvm.kvm import Memory, System
    from kvmkit.engine.kvm.state import write_state

    memory = Memory(_SIZE)
    for table, entry in ((_PML4, _PDPT), (_PDPT, _PD)):
        memory.write(table, (entry | _PRESENT_WRITABLE).to_bytes(8, "little"))
    memory.write(_PD, _LARGE_PAGE.to_bytes(8, "little"))
    memory.write(_CODE, _LOOP)
    with System(device) as system, system.create_vm() as vm:
        vm.set_memory(0, 0, memory.address, memory.size)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(system.supported_cpuid())  # long mode must be in it
        write_state(vcpu, flat_long_mode(_CODE, cr3=_PML4, gdt=0, stack=_SIZE), irqchip=False)
        start = perf_counter()
        reason = vcpu.enter()
        while reason == abi.KVM_EXIT_INTR:
            reason = vcpu.enter()
        seconds = perf_counter() - start
        if reason != abi.KVM_EXIT_HLT:
            from kvmkit.engine.kvm.describe import describe_exit

            raise OSError(0, f"a loop in ring 0 ended with {describe_exit(vcpu, reason)}")
        try:
            return vcpu.stats()["insn_emulation"] < _ITERATIONS // 2
        except (OSError, KeyError):  # before Linux 5.14
            return _ITERATIONS / seconds > _SLOW_PER_SECOND


def _key(device: str) -> str:
    """What a remembered verdict is good for: this boot of this kernel, this KVM module."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        # devtmpfs makes the node anew when a module registers it
        node = os.stat(device)
    except OSError:
        return ""
    modules = [m for m in ("kvm_intel", "kvm_amd", "kvm_pvm") if os.path.exists(f"/sys/module/{m}")]
    release = os.uname().release
    return f"{_CACHE_FORMAT} {release} {boot} {node.st_rdev} {node.st_ino} {' '.join(modules)}"


def _cache_path() -> str:
    from kvmkit.cache_home import own_cache

    path = own_cache(_CACHE_FILE)
    if path is None:
        raise OSError("the cache is not ours")
    return path


def _recall(key: str) -> bool | None:
    try:
        with open(_cache_path()) as file:
            known, answer = file.read().split("\n")[:2]
    except (OSError, ValueError, UnicodeDecodeError):
        return None
    if known != key or answer not in ("native", "emulated"):
        return None
    return answer == "native"


def _remember(key: str, native: bool) -> None:
    try:
        path = _cache_path()
        scratch = f"{path}.{os.getpid()}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(scratch, "w") as file:
            file.write(f"{key}\n{'native' if native else 'emulated'}\n")
        os.replace(scratch, path)
    except OSError:
        pass  # a cache that cannot be written costs milliseconds, nothing else
