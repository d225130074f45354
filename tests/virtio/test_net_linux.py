"""The network card under Linux's own driver: passt, tap, and VMs among themselves."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kvmkit import VM
from kvmkit.backends.net.passt import Passt
from kvmkit.backends.net.switch import Network
from kvmkit.backends.net.tap import Tap
from kvmkit.backends.net.trouble import NetworkTrouble
from kvmkit.board.power import EndKind
from kvmkit.virtio.net import Net
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

DRIVERS = ("virtio_pci", "virtio_net")
UP = """
mkdir /etc; ip link set lo up; ip link set eth0 up; ip addr add {address}/24 dev eth0
ip route add default via 10.0.2.2 2>/dev/null
"""
SIZE = 3_000_000
MAC = "52:54:00:12:34:56"

needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="apt install passt")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def web_server(folder):
    """The folder's files on a port of the loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def sink():
    """A port that takes bytes until the end; their digests by connection."""
    server = socket.create_server(("127.0.0.1", 0))
    digests = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            digest = hashlib.sha256()
            while data := connection.recv(1 << 16):
                digest.update(data)
            digests.append(digest.hexdigest())
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1], digests
    finally:
        server.close()


def make_vm(kernel, busybox, tmp_path, script, **options):
    """A guest with the driver, and a script."""
    initrd = module_initrd(tmp_path, kernel, busybox, DRIVERS, script)
    return VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=60, **options)


def run(vm):
    """To its end; the console's lines."""
    try:
        ending = vm.run()
    except NetworkTrouble as error:
        pytest.skip(str(error))
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    return vm.console_log.decode().splitlines()


@needs_passt
@pytest.mark.parametrize(("cpus", "mtu"), [(1, 65520), (2, 1500)])
def test_files_through_passt(kernel, busybox, tmp_path, cpus, mtu):
    """A file comes from the host's loopback and goes back, bit for bit."""
    data = os.urandom(SIZE)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/file").write_bytes(data)
    with web_server(tmp_path / "www") as web, sink() as (port, digests):
        script = UP.format(address="10.0.2.15") + (
            f"wget -q -O /tmp/file http://10.0.2.2:{web}/file; sha256sum /tmp/file\n"
            f"nc 10.0.2.2 {port} < /tmp/file; cat /sys/class/net/eth0/mtu\n"
        )
        net = f"user,mtu={mtu}"
        log = run(make_vm(kernel, busybox, tmp_path, script, cpus=cpus, nets=[net]))
    digest = hashlib.sha256(data).hexdigest()
    assert f"{digest}  /tmp/file" in log
    assert digests == [digest]
    assert str(mtu) in log


def ask(port):
    """What an echo behind the port answers; nothing if there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as client:
            client.settimeout(1)
            client.sendall(b"hello\n")
            return client.recv(100)
    except OSError:
        return b""


@needs_passt
def test_a_published_port(kernel, busybox, tmp_path):
    """A client on the host speaks with a server in the guest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = UP.format(address="10.0.2.15") + "while :; do nc -l -p 80 -e /bin/cat; done\n"
    with make_vm(kernel, busybox, tmp_path, script, nets=[f"user,publish={port}:80"]) as vm:
        try:
            vm.start()
        except NetworkTrouble as error:
            pytest.skip(str(error))
        deadline = time.monotonic() + 40
        while not (answer := ask(port)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert answer == b"hello\n"


@needs_passt
def test_datagrams_through_passt(kernel, busybox, tmp_path):
    """A question to a name server on the host's loopback, by UDP, and its answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)

        def serve():
            question, client = server.recvfrom(512)
            # the same question, with one answer: an address for the name at offset 12
            answer = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:]
            answer += b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes((192, 0, 2, 77))
            server.sendto(answer, client)

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        script = UP.format(address="10.0.2.15") + (
            f"nslookup -type=a guest.example 10.0.2.2:{port}\n"
        )
        log = run(make_vm(kernel, busybox, tmp_path, script, nets=["user"]))
    assert any("192.0.2.77" in line for line in log), log


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_two_vms_on_a_switch(kernel, busybox, tmp_path, packed):
    """They ping each other, and a file goes over with its checksum intact."""
    network = Network()
    for name in "ab":
        (tmp_path / name).mkdir()
    server = make_vm(
        kernel,
        busybox,
        tmp_path / "a",
        UP.format(address="10.0.9.1") + "nc -l -p 99 > /tmp/got; sha256sum /tmp/got\n",
    )
    client = make_vm(
        kernel,
        busybox,
        tmp_path / "b",
        UP.format(address="10.0.9.2")
        + f"head -c {SIZE} /dev/urandom > /tmp/file; sha256sum /tmp/file\n"
        + "until ping -c 1 -W 1 10.0.9.1 >/dev/null; do :; done; ping -c 3 -i 0.1 10.0.9.1\n"
        + "until nc 10.0.9.1 99 < /tmp/file; do sleep 0.2; done\n",
    )
    for vm in (server, client):
        vm.add_virtio(Net(network.port()), packed=packed)
    with server, client:
        server.start()
        client.start()
        endings = client.wait(), server.wait()
        assert {ending.kind for ending in endings} == {EndKind.POWERED_OFF}, endings
        logs = [vm.console_log.decode().splitlines() for vm in (server, client)]
    digests = [line.split()[0] for log in logs for line in log if line.endswith(("got", "file"))]
    assert len(digests) == 2 and digests[0] == digests[1]
    assert any("3 packets received" in line for line in logs[1])


def test_a_tap_interface(kernel, busybox, tmp_path):
    """With segments of the guest's cut by nobody: TCP of the host's own stack, both ways."""
    try:
        tap = Tap()
    except NetworkTrouble as error:
        pytest.skip(str(error))
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((0x8916, "10.99.7.1"), (0x891C, "255.255.255.0")):
            data = struct.pack("16sHH4s16x", tap.name.encode(), 2, 0, socket.inet_aton(address))
            fcntl.ioctl(control, request, data)
    data = os.urandom(SIZE)
    server = socket.create_server(("10.99.7.1", 0))
    digests = []

    def serve():
        connection, _ = server.accept()
        digest = hashlib.sha256()
        while part := connection.recv(1 << 16):
            digest.update(part)
        digests.append(digest.hexdigest())
        connection.sendall(data)
        connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    script = UP.format(address="10.99.7.2") + (
        "ping -c 2 -i 0.1 10.99.7.1; head -c 2000000 /dev/urandom > /tmp/out; sha256sum /tmp/out\n"
        f"nc 10.99.7.1 {server.getsockname()[1]} < /tmp/out > /tmp/in; sha256sum /tmp/in\n"
    )
    vm = make_vm(kernel, busybox, tmp_path, script)
    vm.add_virtio(Net(tap))
    log = run(vm)
    server.close()
    thread.join(5)
    assert any("2 packets received" in line for line in log)
    assert f"{hashlib.sha256(data).hexdigest()}  /tmp/in" in log
    assert f"{digests[0]}  /tmp/out" in log


@needs_passt
def test_a_restored_guest_has_its_network_again(kernel, busybox, tmp_path):
    """A snapshot is taken between downloads; the guest that goes on downloads on, with
    another passt behind its card."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/file").write_text("a file\n")
    script = UP.format(address="10.0.2.15") + (
        "while :; do wget -q -O - http://10.0.2.2:{port}/file; sleep 0.1; done\n"
    )

    class Heard:
        def __init__(self):
            self.text = b""

        def __call__(self, data):
            self.text += data

        def waits_for(self, count):
            deadline = time.monotonic() + 40
            while self.text.count(b"a file") < count and time.monotonic() < deadline:
                time.sleep(0.05)
            return self.text.count(b"a file") >= count

    with web_server(tmp_path / "www") as port:
        heard = Heard()
        vm = make_vm(kernel, busybox, tmp_path, script.format(port=port), console=heard)
        vm.add_virtio(Net(Passt(), mac=MAC))
        with vm:
            try:
                vm.start()
            except NetworkTrouble as error:
                pytest.skip(str(error))
            assert heard.waits_for(2), heard.text
            vm.snapshot(tmp_path / "snapshot")
            assert heard.waits_for(heard.text.count(b"a file") + 2), heard.text
        heard = Heard()
        restored = VM.restore(tmp_path / "snapshot", console=heard)
        restored.add_virtio(Net(Passt(), mac=MAC))
        with restored:
            restored.start()
            assert heard.waits_for(3), heard.text


@needs_passt
def test_kvmkit_run_with_a_network(kernel, tmp_path):
    """Configured when the command starts, and by DHCP when asked; the exit status is its own."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/file").write_text("a file\n")
    with web_server(tmp_path / "www") as port:
        command = (
            f"wget -q -O - http://10.0.2.2:{port}/file; cat /etc/resolv.conf; "
            "udhcpc -i eth0 -n -q -f 2>&1 | grep obtained; exit 3"
        )
        words = ["run", "-k", str(kernel), "--engine", "soft", "--net", "user", "--timeout", "60"]
        done = subprocess.run(
            [sys.executable, "-m", "kvmkit", *words, "--", "sh", "-c", command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    if "busybox" in done.stderr or "passt" in done.stderr:
        pytest.skip(done.stderr)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["a file", "nameserver 10.0.2.3"], done
    assert "lease of 10.0.2.15 obtained" in lines[2]
    assert done.returncode == 3
