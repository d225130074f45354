"""VM, the object users hold."""

from __future__ import annotations

import os
import threading
import time

import pytest

from kvmkit import VM
from kvmkit.board.power import EndKind
from kvmkit.errors import BadInitrd, BadKernel, FileTrouble, KvmkitError, UsageError
from kvmkit.vm import command_line, make_engine, memory_size
from tests.boot.kernel_images import Part, elf32, pvh_note

MIB = 1 << 20
ENTRY = 0x10_0000
ENGINES = [
    pytest.param("kvm", marks=pytest.mark.kvm),
    pytest.param("soft", marks=pytest.mark.soft),
]


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al in 32-bit code."""
    return b"\x66\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes((value,)) + b"\xee"


def say(text: bytes, port: int = 0x3F8) -> bytes:
    return b"".join(out(port, byte) for byte in text)


POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef"
FOREVER = b"\xeb\xfe"
RESET = out(0xCF9, 6) + FOREVER


@pytest.fixture(params=ENGINES)
def engine(request) -> str:
    """An engine that works on this host."""
    try:
        make_engine(request.param, 1).close()
    except KvmkitError as error:
        pytest.skip(f"{request.param}: {error}")
    return request.param


@pytest.fixture
def kernel(tmp_path):
    """A maker of PVH kernels of the code given."""

    def make(code: bytes):
        path = tmp_path / "kernel"
        path.write_bytes(elf32(Part(ENTRY, code), entry=ENTRY, notes=pvh_note(ENTRY)))
        return path

    return make


def test_run_gives_output_and_ending(engine, kernel):
    """The whole life of a VM in one call."""
    pieces: list[bytes] = []
    vm = VM(kernel(say(b"hi\n") + POWER_OFF + FOREVER), engine=engine, console=pieces.append)
    ending = vm.run()
    assert (ending.kind, b"".join(pieces), vm.console_log) == (
        EndKind.POWERED_OFF, b"hi\n", b"hi\n",
    )  # fmt: skip


def test_kernel_log_goes_to_a_file(engine, kernel, tmp_path):
    """COM2 goes to the file named, which is closed afterwards."""
    log = tmp_path / "log"
    VM(kernel(say(b"log\n", 0x2F8) + POWER_OFF + FOREVER), engine=engine, kernel_log=log).run()
    assert log.read_bytes() == b"log\n"


def test_limit_of_time(engine, kernel):
    """A VM that runs too long."""
    ending = VM(kernel(FOREVER), engine=engine, timeout=0.1).run()
    assert (ending.kind, ending.exit_code) == (EndKind.TIMED_OUT, 124)


def test_reboot_runs_the_kernel_again(engine, kernel):
    """The code counts its runs in memory it does not load."""
    count = b"\xfe\x05\x00\x00\x30\x00"  # inc byte [0x300000]
    third = b"\x80\x3d\x00\x00\x30\x00\x03"  # cmp byte [0x300000], 3
    code = say(b"r") + count + third + b"\x74" + bytes((len(RESET),)) + RESET
    vm = VM(kernel(code + POWER_OFF + FOREVER), engine=engine, timeout=10)
    ending = vm.run()
    assert (ending.kind, vm.console_log) == (EndKind.POWERED_OFF, b"rrr")


def test_no_reboot(engine, kernel):
    """reboot=False: the guest's wish ends the VM."""
    assert VM(kernel(RESET), engine=engine, reboot=False).run().exit_code == 113


def wait_for(vm, text):
    """Until the guest has written ``text``, at most 5 s."""
    limit = time.monotonic() + 5
    while vm.console_log != text and time.monotonic() < limit:
        time.sleep(0.001)


def test_switches(engine, kernel):
    """Pause, resume, reset, typed bytes, description, kill; in one life."""
    ended: list[str] = []
    with VM(kernel(say(b".") + FOREVER), engine=engine, name="box", cpus=2) as vm:
        vm.on_end(lambda ending: ended.append(ending.kind.name))
        vm.start()
        wait_for(vm, b".")
        vm.pause()
        paused = vm.paused, vm.running
        description = vm.describe()
        vm.resume()
        vm.reset()
        wait_for(vm, b"..")
        vm.send(b"typed")
        heard = vm.powerdown()
        vm.kill()
        ending = vm.wait(5)
    assert paused == (True, False)
    assert description.startswith("box: paused\n") and f"engine  {engine}, 2 CPUs" in description
    assert (vm.console_log, heard, ended) == (b"..", False, ["KILLED"])
    assert ending is not None and ending.exit_code == 0


def test_wait_without_an_end(engine, kernel):
    """wait(seconds) gives None while it runs; leaving the block ends it."""
    with VM(kernel(FOREVER), engine=engine) as vm:
        vm.start()
        assert vm.wait(0.02) is None
    assert vm.ending is not None and vm.ending.kind is EndKind.KILLED


def test_nothing_is_left_behind(engine, kernel, tmp_path):
    """Neither by a life nor by a start that fails: descriptors and threads are as before."""
    good, missing = kernel(POWER_OFF + FOREVER), tmp_path / "none"
    VM(good, engine=engine).run()
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        VM(good, engine=engine, kernel_log=tmp_path / "log").run()
        with pytest.raises(BadInitrd):
            VM(good, initrd=missing, engine=engine, kernel_log=tmp_path / "log").start()
        with pytest.raises(BadKernel):
            VM(missing, engine=engine).start()
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_unwritable_log_is_one_clear_line(kernel, tmp_path):
    """The file's name and the reason."""
    with pytest.raises(FileTrouble, match="nowhere/log: the kernel log: No such file"):
        VM(kernel(FOREVER), kernel_log=tmp_path / "nowhere" / "log").start()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cpus": 0}, "1 to 64 CPUs, not 0"),
        ({"cpus": 65}, "1 to 64 CPUs, not 65"),
        ({"memory": 4096}, "at least 2 MiB"),
        ({"memory": "1000T"}, "at most 255 GiB"),
        ({"memory": "lots"}, "a size such as 512M or 4G, not 'lots'"),
        ({"memory": "-1G"}, "a size such as"),
        ({"engine": "qemu"}, "one of auto, kvm, soft, not 'qemu'"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"timeout": -1}, "the timeout must be more than 0 seconds, not -1"),
        ({"hang_timeout": 0}, "the hang timeout"),
        ({"cmdline": "a\nb"}, "one line"),
        ({"huge_pages": "big"}, "thp or hugetlb"),
    ],
)
def test_values_that_cannot_be_meant(values, words):
    """Each is a UsageError that says what was expected and found."""
    with pytest.raises(UsageError, match=words):
        VM("kernel", **values)


def test_vm_starts_once(engine, kernel):
    """A second start is an error, and so is a switch before the first."""
    vm = VM(kernel(POWER_OFF + FOREVER), engine=engine)
    with pytest.raises(UsageError):
        vm.pause()
    vm.run()
    with pytest.raises(UsageError):
        vm.start()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB), ("512M", 512 * MIB), ("1.5G", 1536 * MIB), ("2GiB", 2048 * MIB),
        ("4096K", 4 * MIB), ("4194304b", 4 * MIB), (4 * MIB, 4 * MIB), (" 1t ", MIB * MIB),
    ],
)  # fmt: skip
def test_memory_sizes(text, size):
    """Units as lkvm's; text without one is MiB, a number is bytes."""
    assert memory_size(text) == size


@pytest.mark.parametrize(
    ("given", "log", "full"),
    [
        ("", False, "console=ttyS0 panic=-1"),
        ("quiet", False, "console=ttyS0 panic=-1 quiet"),
        ("quiet", True, "console=ttyS1 console=ttyS0 panic=-1 quiet"),
        ("console=ttyS2 panic=5", True, "console=ttyS2 panic=5"),
        ("ro -- panic=5", False, "console=ttyS0 panic=-1 ro -- panic=5"),
    ],
)
def test_command_lines(given, log, full):
    """Ours come first and give way to the user's; what follows -- is init's."""
    assert command_line(given, log=log) == full
