"""Consoles and ports under Linux's driver. Needs kernels with their modules."""

from __future__ import annotations

import os
import socket
import time
from hashlib import sha256

import pytest

from kvmkit import VM
from kvmkit.backends.ports import PortStream
from kvmkit.virtio.console import Console
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

MODULES = ("virtio_pci", "virtio_console")
FIND = (
    "port() { grep -lx $1 /sys/class/virtio-ports/*/name | sed 's,.*ports/,/dev/,;s,/name,,'; }; "
)


def guest(kernel, busybox, tmp_path, script):
    """A VM that will run ``script``, in which ``$(port NAME)`` is a port's file."""
    initrd = module_initrd(tmp_path, kernel, busybox, MODULES, FIND + script)
    return VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=90)


def sums(data):
    return sha256(data).hexdigest().encode() + b"  -\n"


def test_streams_both_ways(kernel, busybox, tmp_path):
    """Megabytes to the guest and from it, byte for byte; ends are ends."""
    script = (
        "sha256sum < $(port data) > $(port sum); "
        "dd if=/dev/urandom bs=32k count=64 2>/dev/null > /tmp/f; "
        "sha256sum < /tmp/f > $(port sum); cat /tmp/f > $(port data); "
    )
    vm = guest(kernel, busybox, tmp_path, script)
    data, report = vm.port("data"), vm.port("sum")
    sent = os.urandom(3 << 20)
    with vm:
        vm.start()
        assert data.wait_open(60)
        data.write(sent, timeout=60)
        while data.pending():
            time.sleep(0.01)
        data._port.set_open(False)  # the only end of input that a port has
        assert report.read(timeout=60) == sums(sent)
        data._port.set_open(True)
        assert report.read(timeout=60) == b""  # its close
        assert data.read(timeout=60) == b""
        expected = report.read(timeout=60)
        got = b""
        while part := data.read(timeout=60):
            got += part
        assert len(got) == 2 << 20
        assert sums(got) == expected
        vm.wait(60)
        assert vm.port("data") is data
        assert data.read() == b""


def test_stuck_reader_stops_the_writer_only(kernel, busybox, tmp_path):
    """A port that nobody reads holds its writer; the guest lives on, and goes on later."""
    script = (
        "dd if=/dev/zero bs=32k count=100 of=$(port stuck) 2>/dev/null & "
        "sleep 1; echo alive > $(port other); wait; echo over > $(port other); "
    )
    vm = guest(kernel, busybox, tmp_path, script)
    stuck, other = vm.port("stuck"), vm.port("other")
    with vm:
        vm.start()
        assert other.read(timeout=60) == b"alive\n"
        assert other.read(timeout=60) == b""
        count = 0
        while part := stuck.read(timeout=60):
            count += len(part)
        assert count == 3200 << 10
        assert other.read(timeout=60) == b"over\n"


def test_terminal_with_its_size(kernel, busybox, tmp_path):
    """hvc0 is a terminal, has the size that was set, and hears of a new one."""
    script = "exec 3<>/dev/hvc0; stty -F /dev/hvc0 -echo; echo up >&3; sleep 0.3; "
    script += "stty -F /dev/hvc0 size; echo ready >&3; read x <&3; "
    script += "stty -F /dev/hvc0 size; echo got $x >&3; "
    vm = guest(kernel, busybox, tmp_path, script)
    console, terminal = Console(), PortStream("terminal")
    console.add_terminal(terminal)
    console.resize(123, 45)
    vm.add_device(console)
    with vm:
        vm.start()
        shown = b""
        while b"ready" not in shown:
            shown += terminal.read(timeout=60)
        console.resize(80, 24)
        time.sleep(0.5)
        terminal.write(b"typed\n")
        while b"got typed" not in shown:
            shown += terminal.read(timeout=60)
        vm.wait(60)
        lines = vm.console_log.decode().splitlines()
    assert "45 123" in lines and "24 80" in lines


def test_socket_clients_come_and_go(kernel, busybox, tmp_path):
    """Each connection to the socket is one the guest sees, with its end."""
    vm = guest(kernel, busybox, tmp_path, "for n in 1 2; do wc -c < $(port s); sleep 1; done; ")
    path = str(tmp_path / "port")
    vm.port_to_socket("s", path)
    with vm:
        vm.start()
        for size in (1000, 300_000):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.settimeout(60)
                client.sendall(bytes(size))
                client.shutdown(socket.SHUT_WR)
                time.sleep(1)
            time.sleep(0.5)  # until the guest has closed its end, too
        vm.wait(60)
        log = vm.console_log.decode().split()
    assert not os.path.exists(path)
    assert "300000" in log


def test_files_at_the_ends(kernel, busybox, tmp_path):
    """From a file and into a pipe."""
    source = tmp_path / "source"
    source.write_bytes(b"line\n" * 1000)
    script = "exec 3<>$(port f); head -n 1000 <&3 | wc -l >&3; "
    vm = guest(kernel, busybox, tmp_path, script)
    out, into = os.pipe()
    with open(source, "rb") as file, vm:
        vm.port_to_files("f", file.fileno(), into)
        vm.start()
        vm.wait(60)
    os.close(into)
    with open(out, "rb") as file:
        assert file.read() == b"1000\n"


def test_port_goes_through_a_snapshot(kernel, busybox, tmp_path):
    """The guest that is restored has its port, and talks to who has it now."""
    script = "exec 3<>$(port s); while read x <&3; do echo got $x >&3; done; echo gone; sleep 9"
    vm = guest(kernel, busybox, tmp_path, script)
    stream = vm.port("s")
    place = str(tmp_path / "saved")
    with vm:
        vm.start()
        assert stream.wait_open(60)
        stream.write(b"one\n")
        assert stream.read(timeout=60) == b"got one\n"
        vm.snapshot(place)
        stream.write(b"two\n")
        assert stream.read(timeout=60) == b"got two\n"
    again = VM.restore(place)
    stream = again.port("s")
    with again:
        again.start()
        assert stream.guest_open
        stream.write(b"three\n")
        assert stream.read(timeout=60) == b"got three\n"
