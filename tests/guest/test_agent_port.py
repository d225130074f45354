"""The agent over a port of a virtio console, with the kernel's own driver."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmkit.board.power import EndKind
from kvmkit.guest import protocol
from kvmkit.guest.client import AgentClient, Session
from kvmkit.guest.initramfs import busybox_initramfs
from kvmkit.guest.instructions import agent_instructions, instructions_archive, order_records
from kvmkit.guest.module_archive import modules_archive
from kvmkit.guest.modules import find_module_tree
from tests.guest.guests import PATIENCE, Guest, init_program

console = pytest.importorskip("kvmkit.virtio.console", reason="there is no console device yet")

pytestmark = [pytest.mark.slow, pytest.mark.soft]

MIB = 1 << 20


class ClientPort:
    """The host's end of a port: a client of the agent. Under the board's lock."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        self.client = AgentClient(self.send)
        self.opened: list[bool] = []
        self.changed: threading.Condition | None = None

    def send(self, data: bytes) -> None:
        self.waiting += data
        self.port.kick()

    def attach(self, port: console.Port) -> None:
        self.port = port

    def open(self, host: object) -> None:
        pass

    def room(self) -> int:
        return MIB

    def take(self, data: bytes) -> None:
        self.client.receive(data)
        if self.changed is not None:
            self.changed.notify_all()

    def pending(self) -> int:
        return len(self.waiting)

    def give(self, most: int) -> bytes:
        data = bytes(self.waiting[:most])
        del self.waiting[:most]
        return data

    def guest_opened(self, is_open: bool) -> None:
        self.opened.append(is_open)

    def close(self) -> None:
        pass


class Machine:
    """A guest with the port."""

    def __init__(self, guest: Guest, end: ClientPort) -> None:
        self.guest, self.end = guest, end
        self.lock = guest.vm.board.lock
        with self.lock:
            end.changed = threading.Condition(self.lock)

    def until(self, there: Callable[[], bool]) -> None:
        assert self.end.changed is not None
        with self.end.changed:
            assert self.end.changed.wait_for(there, PATIENCE), self.guest.reports

    def run(self, *argv: str, data: bytes = b"", close: bool = True) -> tuple[bytes, Session]:
        """A program with that input, to its end: its output."""
        self.until(lambda: self.end.client.ready)
        output = bytearray()
        with self.lock:
            session = self.end.client.start(
                order_records(argv, mode="pipe"),
                lambda stream, data: output.extend(data),
                lambda session: None,
            )
            session.write(data)
            session.close_input()
        self.until(lambda: session.ended)
        return bytes(output), session


@pytest.fixture(scope="module")
def machine(
    busybox: Path, kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A guest whose agent found the port by its name, its drivers loaded by the agent."""
    tree = find_module_tree(kernel)
    if tree is None:
        pytest.skip("no modules next to the kernel")
    initrd = busybox_initramfs(busybox, init=init_program("agent"))
    modules = tree.resolve(["virtio_pci", "virtio_console"])
    if modules:
        initrd += modules_archive(tree, modules)
    initrd += instructions_archive(agent_instructions(hostname="ported"))
    guest = Guest(kernel, tmp_path_factory.mktemp("guest"), initrd)
    device, end = console.Console(), ClientPort()
    device.add_port("org.example.other", ClientPort())
    device.add_port(protocol.PORT_NAME, end)
    guest.vm.add_virtio(device)
    with guest:
        yield Machine(guest, end)


def test_the_agent_finds_its_port_by_name(machine: Machine) -> None:
    """Among others."""
    output, session = machine.run("sh", "-c", "hostname; exit 9")
    assert (output, session.status) == (b"ported\n", 9)


def test_megabytes_pass_both_ways(machine: Machine) -> None:
    """Far more than all windows and rings hold, byte for byte."""
    data = random.Random(1).randbytes(4 * MIB)
    begin = time.perf_counter()
    output, session = machine.run("cat", data=data)
    assert output == data
    assert session.status == 0
    print(f"{len(data) / MIB / (time.perf_counter() - begin):.1f} MiB/s each way")


def test_a_host_that_comes_back_finds_a_new_agent(machine: Machine) -> None:
    """Closing the host's end hangs up what ran; the agent says hello when it opens again."""
    end = machine.end
    seen: list[bytes] = []
    machine.until(lambda: end.client.ready)
    with machine.lock:
        order = order_records(["sh", "-c", "echo up; sleep 999"], mode="pipe")
        end.client.start(order, lambda stream, data: seen.append(data), lambda session: None)
    machine.until(lambda: b"up\n" in seen)
    with machine.lock:
        end.port.set_open(False)
    time.sleep(0.3)
    with machine.lock:
        end.waiting.clear()
        end.client = AgentClient(end.send)
        end.port.set_open(True)
    output, _ = machine.run("sh", "-c", "ps | grep -c '[s]leep 999'")
    assert output == b"0\n"


def test_power_off_by_order(machine: Machine) -> None:
    """The last test: the guest is gone."""
    machine.until(lambda: machine.end.client.ready)
    with machine.lock:
        machine.end.client.power()
    _, reports, ending = machine.guest.finish()
    assert ending.kind is EndKind.POWERED_OFF
    assert reports == ["agent 1"]
