"""The control socket of a running VM: QMP as QEMU's own client speaks it, and as nobody should."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit import VM
from kvmkit.control import schema
from kvmkit.control.server import MOST_CLIENTS
from tests.control.machines import eventually

Start = Callable[..., VM]


class Qmp:
    """A client that only knows lines."""

    def __init__(self, vm: VM, negotiate: bool = True) -> None:
        assert vm.control is not None
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(f"{vm.control.claim.path}/qmp.sock")
        self.file = self.socket.makefile("rb")
        self.events: list[dict[str, Any]] = []
        self.greeting = self.read()
        if negotiate:
            self.ask("qmp_capabilities")

    def read(self) -> dict[str, Any]:
        line = self.file.readline()
        assert line.endswith(b"\r\n"), line
        found: dict[str, Any] = json.loads(line)
        return found

    def send(self, data: bytes | dict[str, Any]) -> dict[str, Any]:
        self.socket.sendall(data if isinstance(data, bytes) else json.dumps(data).encode())
        while "event" in (answer := self.read()):
            self.events.append(answer)
        return answer

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.send({"execute": command, "arguments": named})

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self.events.append(self.read())

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def vm(start: Start) -> VM:
    vm = start("box", cpus=2)
    eventually(lambda: vm.console_log == b"up\n")
    return vm


@pytest.fixture
def qmp(vm: VM):
    client = Qmp(vm)
    yield client
    client.close()


def test_greeting_and_negotiation(vm: VM) -> None:
    """The server speaks first; qmp_capabilities comes before all else, and once."""
    client = Qmp(vm, negotiate=False)

    early = client.ask("query-status")
    unknown = client.ask("nonsense")
    oob = client.ask("qmp_capabilities", enable=["oob"])
    done = client.ask("qmp_capabilities")
    again = client.ask("qmp_capabilities")

    assert set(client.greeting["QMP"]) == {"version", "capabilities"}
    assert early["error"]["class"] == unknown["error"]["class"] == "CommandNotFound"
    assert "Expecting capabilities negotiation" in early["error"]["desc"]
    assert oob["error"]["class"] == "GenericError"
    assert done == {"return": {}} and "already complete" in again["error"]["desc"]
    client.close()


ARGUMENTS: dict[str, dict[str, Any]] = {
    "human-monitor-command": {"command-line": "info status"},
    "kvmkit-rename": {"name": "box2"},
    "kvmkit-send": {"data": "x"},
    "kvmkit-resize": {"rows": 24, "columns": 80},
    "kvmkit-sysrq": {"key": "h"},
    "kvmkit-memory": {"address": 0x1000, "size": 16},
}
UNFIT = {"qmp_capabilities", "quit", "inject-nmi", "kvmkit-console", "system_powerdown",
         "kvmkit-powerdown"}  # fmt: skip


def test_every_answer_fits_the_schema(qmp: Qmp, tmp_path: Path) -> None:
    """All commands that leave the VM running, and the events they bring."""
    wrong = {}
    arguments = ARGUMENTS | {"kvmkit-snapshot": {"path": str(tmp_path / "snapshot")}}
    for name, (_, returns) in schema.COMMANDS.items():
        if name not in UNFIT:
            answer = qmp.send({"execute": name, "arguments": arguments.get(name, {}), "id": name})
            assert answer["id"] == name and "return" in answer, answer
            wrong[name] = schema.check(answer["return"], returns)
    answer = qmp.ask("kvmkit-powerdown")
    wrong["kvmkit-powerdown"] = schema.check(answer["return"], "KvmkitHeard")
    qmp.event("SHUTDOWN")
    for event in qmp.events:
        wrong[event["event"]] = schema.check_members(
            event.get("data", {}), schema.EVENTS[event["event"]]
        )
        assert set(event["timestamp"]) == {"seconds", "microseconds"}

    assert set(filter(None, wrong.values())) == set(), wrong
    assert {"STOP", "RESUME", "RESET", "POWERDOWN"} <= set(wrong)


def test_introspection_is_closed(qmp: Qmp) -> None:
    """Every type that is named is described, and query-commands tells of the same commands."""
    entities = qmp.ask("query-qmp-schema")["return"]
    names = {entity["name"] for entity in entities}
    named = set()
    for entity in entities:
        named |= {entity[key] for key in ("arg-type", "ret-type", "element-type") if key in entity}
        if entity["meta-type"] == "object":
            named |= {member["type"] for member in entity["members"]}
    commands = {each["name"] for each in qmp.ask("query-commands")["return"]}

    assert named <= names
    assert commands == {e["name"] for e in entities if e["meta-type"] == "command"}
    assert len(entities) == len({(e["name"], e["meta-type"]) for e in entities})


def test_the_switches(vm: VM, qmp: Qmp) -> None:
    """stop, cont, system_reset, quit: what they do, and the events, also for the owner's calls."""
    qmp.ask("stop")
    paused, status = vm.paused, qmp.ask("query-status")["return"]
    qmp.ask("cont")
    vm.pause()
    vm.resume()
    qmp.ask("system_reset")
    reset = qmp.event("RESET")
    kinds = [event["event"] for event in qmp.events]
    qmp.ask("quit")
    shutdown = qmp.event("SHUTDOWN")

    assert paused and status == {"status": "paused", "running": False}
    assert kinds == ["STOP", "RESUME", "STOP", "RESUME"]
    assert reset["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
    assert shutdown["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert vm.wait(5) is not None


def test_powerdown_is_heard(vm: VM, qmp: Qmp) -> None:
    """The guest switches itself off."""
    qmp.ask("system_powerdown")

    assert qmp.event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-shutdown"}
    assert qmp.ask("query-status")["return"]["status"] == "shutdown"
    assert "has ended" in qmp.ask("cont")["error"]["desc"]
    ending = vm.wait(5)
    assert ending is not None and ending.ok


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "lacks member 'execute'"),
        ([], "must be a JSON object"),
        (3, "must be a JSON object"),
        ({"execute": 3}, "'execute' must be a string"),
        ({"execute": "stop", "arguments": []}, "'arguments' must be an object"),
        ({"execute": "stop", "extra": 1}, "'extra' is unexpected"),
        ({"exec-oob": "stop"}, "'exec-oob' is unexpected"),
        ({"execute": "stop", "arguments": {"now": True}}, "Parameter 'now' is unexpected"),
        ({"execute": "nonsense"}, "The command nonsense has not been found"),
        ({"execute": "human-monitor-command"}, "Parameter 'command-line' is missing"),
        (
            {"execute": "human-monitor-command", "arguments": {"command-line": 3}},
            "Invalid parameter type for 'command-line', expected: string",
        ),
        ({"execute": "kvmkit-log", "arguments": {"source": "x"}}, "does not accept value 'x'"),
        ({"execute": "kvmkit-rename", "arguments": {"name": "a/b"}}, "letters, digits"),
        ({"execute": "kvmkit-sysrq", "arguments": {"key": "tt"}}, "a letter or digit"),
        ({"execute": "kvmkit-memory", "arguments": {"address": -1, "size": 1}}, "no address"),
        ({"execute": "kvmkit-memory", "arguments": {"address": 1 << 50, "size": 1}}, ""),
        ({"execute": "kvmkit-memory", "arguments": {"address": 0, "size": 1 << 40}}, "size is"),
        (
            {"execute": "kvmkit-memory", "arguments": {"address": 0, "size": 1, "cpu-index": 9}},
            "no CPU 9",
        ),
        ({"execute": "kvmkit-resize", "arguments": {"rows": 0, "columns": 1}}, "rows"),
    ],
)
def test_what_cannot_be_meant(qmp: Qmp, message: Any, words: str) -> None:
    """An error in QEMU's words, and the connection goes on."""
    # a bare number ends at a space
    answer = qmp.send(json.dumps(message).encode() + b" ")

    assert words in answer["error"]["desc"]
    assert qmp.ask("query-status")["return"]["running"]


def test_fuzzed_input(vm: VM) -> None:
    """Any bytes, any JSON, any arguments to any command: the VM runs on and answers others."""
    client = Qmp(vm)
    fit = sorted(set(schema.COMMANDS) - UNFIT - {"kvmkit-snapshot"})
    names = st.sampled_from(fit) | st.text(max_size=10)
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats()
    members = st.sampled_from(
        sorted({name.lstrip("*") for takes, _ in schema.COMMANDS.values() for name in takes})
    )
    messages = st.fixed_dictionaries(
        {"execute": names, "arguments": st.dictionaries(members | st.text(max_size=5), values)}
    )

    @given(st.binary(max_size=100) | messages.map(lambda each: json.dumps(each).encode()))
    @settings(
        deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def throw(data: bytes) -> None:
        client.socket.sendall(data + b'\n\xff\n{"execute": "query-name", "id": 7}\n')
        while client.read().get("id") != 7:
            pass

    throw()
    client.close()
    other = Qmp(vm)
    vm.resume()
    assert other.ask("query-status")["return"]["running"] and vm.running
    other.close()


def test_a_client_that_does_not_read_is_dropped(vm: VM) -> None:
    """It asks for ever more and never listens: others are served, memory stays bounded."""
    stuck, other = Qmp(vm), Qmp(vm)
    stuck.socket.setblocking(False)
    flood = b'{"execute": "query-qmp-schema"}' * 2000
    sent = 0
    try:
        for _ in range(50):
            sent += stuck.socket.send(flood)
    except (BlockingIOError, BrokenPipeError):
        pass
    begin = time.monotonic()
    for _ in range(20):
        other.ask("stop")
        other.ask("cont")
    took = time.monotonic() - begin
    server = vm.control._server  # type: ignore[union-attr]
    assert server is not None

    assert sent and took < 3
    assert max(client.unsent for client in server.clients) < 1 << 20
    stuck.close()
    eventually(lambda: len(server.clients) == 1)
    other.close()


def test_events_drop_a_client_that_never_reads(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events cannot wait for room, so the client goes."""
    monkeypatch.setattr("kvmkit.control.server.TOO_MUCH", 4096)
    deaf = Qmp(vm)
    server = vm.control._server  # type: ignore[union-attr]
    assert server is not None
    deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    for _ in range(20_000):
        vm.board.loop.call_soon(lambda: server.tell("STOP", 0.0))

    eventually(lambda: not server.clients)
    assert vm.running
    deaf.close()


def test_more_clients_than_are_served(vm: VM) -> None:
    """The one that was silent longest goes; the VM has no more descriptors than that."""
    clients = [Qmp(vm) for _ in range(MOST_CLIENTS + 8)]

    assert clients[-1].ask("query-name") == {"return": {"name": "box"}}
    assert len(vm.control._server.clients) == MOST_CLIENTS  # type: ignore[union-attr]
    for client in clients:
        client.close()


def test_commands_of_a_client_that_left_count(vm: VM) -> None:
    """As ``printf ... | nc -U`` sends them."""
    client = Qmp(vm, negotiate=False)
    client.socket.sendall(b'{"execute":"qmp_capabilities"}{"execute":"stop"}')
    client.close()

    eventually(lambda: vm.paused)


def test_pieces_and_several_at_once(qmp: Qmp) -> None:
    """A byte at a time, and two commands in one packet."""
    for byte in b'{"execute": "query-name", "id": {"a": [1]}}':
        qmp.socket.sendall(bytes((byte,)))
    first = qmp.read()
    qmp.socket.sendall(b'{"execute":"query-kvm","id":1}{"execute":"query-kvm","id":2}\n')
    second, third = qmp.read(), qmp.read()

    assert first == {"return": {"name": "box"}, "id": {"a": [1]}}
    assert (second["id"], third["id"]) == (1, 2)


def test_the_human_monitor(qmp: Qmp) -> None:
    """The lines people type into qmp-shell -H."""

    def hmp(line: str, **more: int) -> str:
        answer: str = qmp.ask("human-monitor-command", command_line=line, **more)["return"]
        return answer

    assert hmp("info status") == "VM status: running\r\n"
    assert hmp("info name") == "box\r\n"
    assert "RIP" in hmp("info registers") and "CPU 1" in hmp("info registers", cpu_index=1)
    assert hmp("info registers -a").count("RIP") == 2
    assert hmp("info cpus").startswith("* CPU #0: thread_id=")
    assert hmp("stop") == "" and hmp("info status") == "VM status: paused\r\n"
    assert hmp("cont") == "" and "unknown command: 'fly'" in hmp("fly")
    assert "info registers" in hmp("help") and hmp("") == ""


def test_rename(vm: VM, qmp: Qmp, runtime: Path) -> None:
    """The directory, the threads, and what the VM says of itself."""
    qmp.ask("kvmkit-rename", name="other")
    threads = {
        Path(f"/proc/self/task/{task}/comm").read_text().strip()
        for task in os.listdir("/proc/self/task")
    }

    assert (vm.name, os.listdir(runtime / "kvmkit")) == ("other", ["other"])
    assert qmp.ask("query-name")["return"] == {"name": "other"}
    assert "other/io" in threads and threads & {"other/0", "other/cpu"}


def test_the_console_over_the_socket(vm: VM) -> None:
    """The output so far, then what comes; end of file with the VM's end."""
    client = Qmp(vm)
    answer = client.ask("kvmkit-console")

    seen = client.file.read(answer["return"]["log-bytes"])
    vm.reset()
    again = client.file.read(3)
    vm.close()

    assert (seen, again, client.file.read()) == (b"up\n", b"up\n", b"")
    client.close()


def test_qemus_own_client(vm: VM) -> None:
    """The qemu.qmp package negotiates, runs commands, hears events."""
    package = pytest.importorskip("qemu.qmp", reason="the qemu.qmp package is not installed")
    assert vm.control is not None
    path = f"{vm.control.claim.path}/qmp.sock"

    async def drive() -> tuple[Any, ...]:
        client = package.QMPClient("test")
        await client.connect(path)
        with client.listener() as events:
            await client.execute("stop")
            status = await client.execute("query-status")
            await client.execute("cont")
            kinds = [(await events.get())["event"] for _ in range(2)]
            with pytest.raises(package.ExecuteError, match="has not been found"):
                await client.execute("nonsense")
            await client.execute("quit")
            kinds.append((await events.get())["event"])
        await client.disconnect()
        return status, kinds

    status, kinds = asyncio.run(drive())

    assert status == {"status": "paused", "running": False}
    assert kinds == ["STOP", "RESUME", "SHUTDOWN"]


def test_qmp_shell(vm: VM) -> None:
    """QEMU's shell, with words on its standard input."""
    pytest.importorskip("qemu.qmp", reason="the qemu.qmp package is not installed")
    assert vm.control is not None
    result = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", f"{vm.control.claim.path}/qmp.sock"],
        input="query-status\nhuman-monitor-command command-line='info status'\nstop\n",
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert "Connected to QEMU 0." in result.stdout, result.stderr
    assert "'running': True" in result.stdout.replace('"', "'").replace("true", "True")
    assert vm.paused


def test_a_vm_nobody_asks_loads_no_server(polite: Path, engine: str) -> None:
    """What answers QMP is imported with the first client."""
    code = (
        "import sys; from kvmkit import VM; "
        f"vm = VM({str(polite)!r}, memory='32M', engine={engine!r}); vm.start(); "
        "import time; time.sleep(0.2); "
        "print([m for m in ('json', 'socket', 'kvmkit.control.server') if m in sys.modules]); "
        "vm.close()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (result.stdout, result.stderr) == ("[]\n", "")
