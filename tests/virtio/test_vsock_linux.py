"""Sockets between host and guest under Linux's driver. Needs kernels with their modules."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.backends.vsock import VsockRefused
from kvmkit.guest.cpio import Archive
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

MODULES = ("virtio_pci", "vmw_vsock_virtio_transport")
PORT = 1234


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The guest's program. Skips without a compiler for static programs."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    path = tmp_path_factory.mktemp("vsock") / "vg"
    source = Path(__file__).with_name("vsock_guest.c")
    command = ["gcc", "-static", "-O2", "-o", str(path), str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc makes no static programs: libc6-dev is missing")
    return path


@pytest.fixture
def guest(kernel, busybox, tmp_path, program):
    """Makes a VM that will run a script, in which ``vg`` is the program."""

    def make(script):
        initrd = module_initrd(tmp_path, kernel, busybox, MODULES, script)
        more = Archive()
        more.file("bin/vg", program.read_bytes(), 0o755)
        second = tmp_path / "second"
        second.write_bytes(more.finish())
        vm = VM(kernel, initrd=[initrd, second], cmdline="quiet", engine="soft", timeout=90)
        vm.vsock(str(tmp_path / "v"))
        return vm

    return make


def dial(vm, port=PORT):
    """Connect, as soon as the guest listens."""
    limit = time.monotonic() + 60
    while True:
        try:
            return vm.vsock_connect(port, timeout=60)
        except VsockRefused:
            assert time.monotonic() < limit
            time.sleep(0.05)


def everything(client):
    """What comes until the end."""
    found = b""
    client.settimeout(60)
    while part := client.recv(1 << 16):
        found += part
    return found


def stop(vm, client=None):
    """Let the echo end; the guest powers off."""
    with dial(vm) as last:
        last.sendall(b"quit")
        vm.wait(60)


def test_host_connects(guest):
    """Bytes go to the guest and come back as they were; ends are ends."""
    data = os.urandom(2 << 20)
    with guest(f"vg echo {PORT}") as vm:
        vm.start()
        with dial(vm) as client:
            sender = threading.Thread(
                target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR))
            )
            sender.start()
            assert everything(client) == data
            sender.join()
        stop(vm)


def test_many_connections_at_once(guest):
    """A hundred, in any order; each has its own bytes."""
    with guest(f"vg echo {PORT}") as vm:
        vm.start()
        clients = [dial(vm) for _ in range(100)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number * 100)
        for number, client in reversed(list(enumerate(clients))):
            client.shutdown(socket.SHUT_WR)
            assert everything(client) == b"%d" % number * 100
            client.close()
        stop(vm)
        assert not vm.console_log.count(b"error")


def test_refused_port(guest):
    """A port that nobody listens at, in the guest and on the host."""
    with guest(f"vg send 77 1; vg echo {PORT}") as vm:
        vm.start()
        dial(vm).close()
        with pytest.raises(VsockRefused, match="port 4321"):
            vm.vsock_connect(4321, timeout=60)
        stop(vm)
        assert b"failed: Connection reset by peer" in vm.console_log


def test_guest_connects(guest, tmp_path):
    """To who listens at the path with its port; megabytes each way."""
    with socket.socket(socket.AF_UNIX) as server, guest("vg send 52 3000000") as vm:
        server.bind(str(tmp_path / "v_52"))
        server.listen()
        server.settimeout(60)
        vm.start()
        client, _ = server.accept()
        with client:
            assert everything(client) == b"g" * 3_000_000
            client.sendall(b"h" * 2_000_000)
        vm.wait(60)
        assert b"send got 2000000\r" in vm.console_log


def test_stuck_host_holds_the_guests_writer_only(guest, tmp_path):
    """Nobody reads on the host: the guest's program waits, everything else goes on."""
    script = f"vg send 52 3000000 & vg echo {PORT}; wait"
    with socket.socket(socket.AF_UNIX) as server, guest(script) as vm:
        server.bind(str(tmp_path / "v_52"))
        server.listen()
        server.settimeout(60)
        vm.start()
        client, _ = server.accept()
        with dial(vm) as other:
            other.sendall(b"alive")
            assert other.recv(5) == b"alive"
        hub = vm.board.virtio[0].hub
        time.sleep(0.5)
        assert sum(len(peer._output) for peer in hub.peers) <= 128 << 10
        with client:
            assert len(everything(client)) == 3_000_000
        stop(vm)
    assert not os.path.exists(tmp_path / "v")


def test_host_leaves(guest, tmp_path):
    """The host's program goes away in the middle: the guest's gets an error, and the end."""
    with socket.socket(socket.AF_UNIX) as server, guest("trap '' PIPE; vg send 52 9000000") as vm:
        server.bind(str(tmp_path / "v_52"))
        server.listen()
        server.settimeout(60)
        vm.start()
        client, _ = server.accept()
        client.recv(100)
        client.close()
        vm.wait(60)
        assert b"write: Broken pipe" in vm.console_log


def test_restored_guest_starts_without_connections(guest, tmp_path):
    """Those from before are reset for the guest, whose listener goes on."""
    place = str(tmp_path / "saved")
    with guest(f"vg echo {PORT}") as vm:
        vm.start()
        with dial(vm) as client:
            client.sendall(b"before")
            assert client.recv(6) == b"before"
            vm.snapshot(place)
            client.sendall(b"after")
            assert client.recv(5) == b"after"
    again = VM.restore(place)
    again.vsock(str(tmp_path / "v"))
    with again:
        again.start()
        with dial(again) as client:
            client.sendall(b"restored")
            assert client.recv(8) == b"restored"
        stop(again)
