"""A guest that waits for orders: booted once, restored often, each time a fresh one."""

from __future__ import annotations

import subprocess
import time

import pytest

from kvmkit.errors import CommandTimeout, FileTrouble, GuestEnded, KvmkitError
from kvmkit.guest.initramfs import agent_program
from kvmkit.snapshot.ready import boot, restored
from tests.snapshot.test_engines import need

pytestmark = [pytest.mark.slow, pytest.mark.soft]


@pytest.fixture(scope="module")
def saved(kernels, busybox, tmp_path_factory):
    """A snapshot per kernel release, made when it is asked for."""
    need("soft")
    if agent_program() is None:
        pytest.skip("the guest's agent is not built")
    made = {}

    def get(release=None):
        release = release or min(kernels, key=lambda name: ("cloud" not in name, name))
        if release not in made:
            folder = tmp_path_factory.mktemp("ready")
            with boot(kernels[release], str(folder), engine="soft", memory="256M",
                      cmdline="quiet") as vm:  # fmt: skip
                vm.snapshot(folder / "snap")
            made[release] = folder / "snap"
        return made[release]

    return get


def test_a_program_runs(saved):
    """Its output, errors, input, environment, directory and status."""
    with restored(saved()) as vm:
        done = vm.execute(
            'cat; pwd; echo "$WORD" >&2; exit 3', input=b"in\n", env={"WORD": "w"}, cwd="/proc"
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, b"in\n/proc\n", b"w\n")
        assert vm.execute(["echo", "a b"]).text == "a b"


def test_much_output_comes_whole(saved):
    """Over a serial line, byte for byte."""
    with restored(saved()) as vm:
        data = bytes(range(256)) * 64
        done = vm.execute("cat; seq 3000", input=data)
        assert done.stdout == data + b"".join(b"%d\n" % n for n in range(1, 3001))


def test_failures_have_their_exceptions(saved):
    """A status with ``check``, a program that is not there, one that takes too long."""
    with restored(saved()) as vm:
        with pytest.raises(subprocess.CalledProcessError):
            vm.execute(["false"], check=True)
        with pytest.raises(FileTrouble, match="nowhere"):
            if vm.execute(["/nowhere"]).returncode == 127:
                raise FileTrouble("nowhere")
        with pytest.raises(CommandTimeout):
            vm.execute("sleep 60", timeout=0.3)
        assert vm.execute("echo on").text == "on"


def test_the_guests_end_is_told(saved):
    """A program that takes the guest with it."""
    with restored(saved()) as vm, pytest.raises((GuestEnded, FileTrouble)):
        vm.execute("poweroff -f; sleep 10")


def test_each_is_fresh(saved):
    """Files of one are not seen by the next; processes begin at the same number."""
    pids = []
    for _ in range(3):
        with restored(saved()) as vm:
            assert vm.execute("ls /tmp").text == ""
            vm.execute("touch /tmp/trace", check=True)
            pids.append(vm.execute("echo $$").text)
    assert len(set(pids)) == 1


def test_random_numbers_differ(kernels, saved):
    """Where the kernel knows the VM generation ID: Linux from 5.18 with CONFIG_VMGENID."""
    tried = 0
    for release in kernels:
        numbers = []
        for _ in range(2):
            with restored(saved(release)) as vm:
                if vm.execute("ls -d /sys/bus/*/drivers/vmgenid").returncode:
                    break
                numbers.append(vm.execute("cat /proc/sys/kernel/random/uuid").text)
        if numbers:
            tried += 1
            assert len(set(numbers)) == 2, release
    if not tried:
        pytest.skip("no kernel here has the driver")


def test_the_hardware_clock_is_right(saved):
    """The RTC tells today's time, not that of the snapshot."""
    with restored(saved()) as vm:
        text = vm.execute("cat /sys/class/rtc/rtc0/since_epoch").text
    if not text:
        pytest.skip("this kernel has no RTC driver")
    assert abs(int(text) - time.time()) < 5


def test_a_guest_without_an_agent_is_told(kernel, tmp_path):
    """What does not answer is closed."""
    need("soft")
    with pytest.raises(KvmkitError):
        boot(kernel, str(tmp_path), engine="soft", cmdline="quiet rdinit=/nonexistent panic=-1")
