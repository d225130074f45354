"""passt: started, ready, and gone with us. Needs passt."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from kvmkit.backends.net.passt import Passt
from kvmkit.backends.net.publish import parse_published
from kvmkit.backends.net.trouble import NetworkTrouble
from tests.backends.net_station import LoopHost, Station

needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="apt install passt")


def open_passt(**options) -> Passt:
    """A running one; skips where it cannot run."""
    passt = Passt(**options)
    try:
        passt.open(LoopHost(), Station())
    except NetworkTrouble as error:
        passt.close()
        pytest.skip(str(error))
    return passt


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_soon(process: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(process)


def test_a_host_without_passt(monkeypatch):
    """The line says how to get it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NetworkTrouble) as error:
        Passt()
    assert "apt install passt" in error.value.hint


def test_a_port_that_is_taken():
    """Told before anything is started, by its number."""
    if shutil.which("passt") is None:
        pytest.skip("apt install passt")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(NetworkTrouble, match=str(port)):
            Passt(publish=[parse_published(f"{port}:80")])


def test_a_program_that_ends_at_once(tmp_path):
    """What it said last is the reason."""
    program = tmp_path / "passt"
    program.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    program.chmod(0o755)
    passt = Passt(program=str(program))
    with pytest.raises(NetworkTrouble, match="no such thing"):
        passt.open(LoopHost(), Station())
    passt.close()
    passt.close()


@needs_passt
def test_it_answers_and_ends_with_us():
    """Ready after open; its process, its socket and its ports are gone after close."""
    port = free_port()
    passt = open_passt(publish=[parse_published(f"{port}:80")])
    process = passt.process
    assert alive(process)
    with pytest.raises(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
    passt.close()
    assert not os.path.exists(f"/proc/{process}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


@needs_passt
def test_it_dies_with_a_killed_program():
    """Even SIGKILL leaves no passt behind."""
    open_passt().close()
    code = (
        "from kvmkit.backends.net.passt import Passt; import os, time\n"
        "from tests.backends.net_station import *\n"
        "p = Passt(); p.open(LoopHost(), Station()); print(p.process, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process = int(child.stdout.readline())
    assert alive(process)
    child.kill()
    child.wait()
    child.stdout.close()
    assert gone_soon(process)


@needs_passt
def test_a_passt_that_dies_takes_the_link_down():
    """With a warning; the VM goes on."""
    passt = open_passt()
    host, station = passt._host, passt._station
    passt.resume()
    host.turn()
    os.kill(passt.process, 9)
    for _ in range(10):
        host.turn(0.5)
        if station.link is False:
            break
    assert station.link is False
    assert "passt has ended" in host.warnings[0]
    passt.close()
