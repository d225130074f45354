"""The snapshot's directory: crashes, damage, foreign versions, wrong contents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit import VM
from kvmkit.board.memory import GuestMemory
from kvmkit.engine.cpu import CpuState
from kvmkit.errors import BadSnapshot, FileTrouble, KvmkitError
from kvmkit.snapshot.format import Snapshot, remove, save
from kvmkit.snapshot.stamp import STAMP

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
CONFIG = {"kernel": "/boot/vmlinuz", "initrd": [], "cmdline": "quiet", "cpus": 1}
ABOUT = {"kvmkit": "0", "saved": 0, "name": "it", "config": CONFIG}
STATE = CpuState(rip=0x1234)


@pytest.fixture
def ram():
    """The RAM of a small guest, with something in it."""
    memory = GuestMemory(4 * MIB)
    memory.write(MIB, b"hello")
    yield memory
    memory.close()


@pytest.fixture
def saved(tmp_path, ram):
    """A snapshot."""
    save(str(tmp_path / "snap"), ram, STATE, ABOUT)
    return tmp_path / "snap"


def rewrite(path, change):
    """Change the head of a snapshot, or return another, with the right checksum."""
    head = json.loads((path / "state.json").read_text())
    other = change(head)
    text = json.dumps(head if other is None else other).encode()
    (path / "state.json").write_bytes(text)
    (path / "checksum").write_text(f"{sha256(text).hexdigest()}  state.json\n")


def test_a_snapshot_is_read_as_it_was_written(saved):
    """The configuration, the state, the memory."""
    with Snapshot(str(saved)) as snapshot:
        snapshot.check()
        assert snapshot.config == CONFIG
        assert snapshot.state(CpuState()) == STATE
        assert os.pread(snapshot.fd, 5, MIB) == b"hello"
        assert snapshot.resident() <= 64 << 10
    snapshot.close()


def test_the_checksum_is_sha256sums(saved):
    """The tool everybody has checks it."""
    subprocess.run(["sha256sum", "--quiet", "-c", "checksum"], cwd=saved, check=True)


def test_saving_replaces_the_older_one(saved, ram):
    """And leaves nothing beside it."""
    ram.write(MIB, b"world")
    save(str(saved), ram, STATE, ABOUT)
    with Snapshot(str(saved)) as snapshot:
        assert os.pread(snapshot.fd, 5, MIB) == b"world"
    assert os.listdir(saved.parent) == ["snap"]


def test_a_vm_that_goes_on_keeps_its_memory_when_the_snapshot_is_replaced(saved, ram):
    """The file that is mapped is never written again."""
    with Snapshot(str(saved)) as old:
        ram.write(MIB, b"world")
        save(str(saved), ram, STATE, ABOUT)
        assert os.pread(old.fd, 5, MIB) == b"hello"
        assert os.fstat(old.fd).st_mode & 0o222 == 0


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_no_snapshot_is_not_replaced(tmp_path, ram, make):
    """A folder or a file of the user's stays."""
    make(tmp_path / "mine")
    with pytest.raises(FileTrouble, match="exists and is no snapshot"):
        save(str(tmp_path / "mine"), ram, STATE, ABOUT)
    assert os.listdir(tmp_path) == ["mine"]


def test_saving_where_nothing_can_be_written_says_so(tmp_path, ram):
    """No such folder; a full or read-only disk is the same path."""
    (tmp_path / "file").touch()
    with pytest.raises(KvmkitError, match="file"):
        save(str(tmp_path / "file" / "snap"), ram, STATE, ABOUT)
    with pytest.raises(FileTrouble, match="/proc/snap"):
        save("/proc/snap", ram, STATE, ABOUT)


def test_a_failure_leaves_the_old_one(saved, ram):
    """What cannot be encoded is no snapshot, and the old one stays."""
    with pytest.raises(TypeError):
        save(str(saved), ram, object(), ABOUT)
    assert os.listdir(saved.parent) == ["snap"]
    Snapshot(str(saved)).close()


SAVER = """
import sys
from kvmkit.board.memory import GuestMemory
from kvmkit.engine.cpu import CpuState
from kvmkit.snapshot.format import save
ram = GuestMemory(64 << 20)
ram.fill(0, 48 << 20, 0x55)
about = {"kvmkit": "0", "saved": 0, "name": "it",
         "config": {"kernel": "k", "initrd": [], "cmdline": "", "cpus": 1}}
print("ready", flush=True)
while True:
    save(sys.argv[1], ram, CpuState(rip=7), about)
    print("saved", flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_snapshot(tmp_path, ram):
    """Killed again and again in the middle: the old one or the new one, and no litter for long."""
    path = tmp_path / "snap"
    save(str(path), ram, STATE, ABOUT)
    for delay in (0.005, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Snapshot(str(path)) as snapshot:
            snapshot.check(thorough=True)
            assert snapshot.state(CpuState()).rip in (7, STATE.rip)
    save(str(path), ram, STATE, ABOUT)
    assert os.listdir(tmp_path) == ["snap"]


@pytest.mark.parametrize("name", ["state.json", "memory", "checksum"])
def test_a_missing_file_is_told(saved, name):
    """Each of the three."""
    (saved / name).unlink()
    with pytest.raises(BadSnapshot, match="is no snapshot: No such file"):
        Snapshot(str(saved))


def test_nothing_there_is_told(tmp_path):
    """A path that is not there, a file, an empty folder."""
    (tmp_path / "file").touch()
    for name in ("absent", "file", "."):
        with pytest.raises(BadSnapshot, match="is no snapshot"):
            Snapshot(str(tmp_path / name))


@settings(deadline=None, max_examples=60)
@given(st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_in_the_state_is_found(tmp_path_factory, at, bit):
    """The checksum covers all of it."""
    path = tmp_path_factory.mktemp("flip") / "snap"
    memory = GuestMemory(2 * MIB)
    save(str(path), memory, STATE, ABOUT)
    memory.close()
    text = bytearray((path / "state.json").read_bytes())
    text[at % len(text)] ^= 1 << bit
    (path / "state.json").write_bytes(text)
    with pytest.raises(BadSnapshot, match="its checksum differs"):
        Snapshot(str(path))


def test_a_touched_memory_is_read_again(saved):
    """The note that it was whole does not hold after a write, nor for a copy."""
    time.sleep(0.06)
    with Snapshot(str(saved)) as snapshot:
        snapshot.check()  # younger than a tick when it was saved: noted now
        snapshot.check()
    os.chmod(saved / "memory", 0o600)
    with open(saved / "memory", "r+b") as file:
        file.seek(MIB)
        file.write(b"J")
    with (
        Snapshot(str(saved)) as snapshot,
        pytest.raises(BadSnapshot, match=r"snap: the memory is damaged at 0x100000"),
    ):
        snapshot.check()


def test_an_untouched_memory_is_not_read_twice(saved, monkeypatch):
    """Noted once, unless asked to be thorough."""
    time.sleep(0.06)
    read = []
    monkeypatch.setattr("kvmkit.snapshot.format.check_pages", lambda *_: read.append(1))
    with Snapshot(str(saved)) as snapshot:
        (saved / STAMP).unlink()
        snapshot.check()
        snapshot.check()
        assert len(read) == 1
        snapshot.check(thorough=True)
        assert len(read) == 2
        (saved / STAMP).write_text("nonsense")
        snapshot.check()
        assert len(read) == 3


def test_another_format_is_refused(saved):
    """With both numbers and what to do."""
    rewrite(saved, lambda head: head.update(format=99))
    with pytest.raises(BadSnapshot, match="has format 99, this kvmkit reads format 1") as caught:
        Snapshot(str(saved))
    assert "take a new snapshot" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda head: [],
        lambda head: "text",
        lambda head: head.update(format=None),
        lambda head: head.update(format=True),
        lambda head: head.update(format="1"),
        lambda head: head.update(memory=None),
        lambda head: head.update(memory="4M"),
        lambda head: head.update(memory=-1),
        lambda head: head.update(memory=1 << 80),
        lambda head: head.update(extents={}),
        lambda head: head.update(config=[]),
        lambda head: head["config"].update(kernel=5),
        lambda head: head["config"].update(kernel="a\0b"),
        lambda head: head["config"].update(initrd=[5]),
        lambda head: head["config"].update(initrd="x"),
        lambda head: head["config"].update(cpus=0),
        lambda head: head["config"].update(cpus=10**9),
        lambda head: head["config"].update(cpus="many"),
        lambda head: head["config"].update(cmdline=None),
        lambda head: head.update(name=None),
        lambda head: head.update(state=5),
    ],
)
def test_a_head_that_cannot_be_is_refused(saved, change):
    """Each field that is read, of another kind or missing; a VM is never made of it."""
    rewrite(saved, change)
    with pytest.raises(BadSnapshot):
        VM.restore(saved)


@pytest.mark.parametrize("extents", [[5], [[1, 2]], [[1, 2, "3"]], [[1, 2, True]], [[0, 1, 2, 3]]])
def test_extents_that_are_no_numbers_are_refused(saved, extents):
    """Before the memory is looked at."""
    rewrite(saved, lambda head: head.update(extents=extents))
    with Snapshot(str(saved)) as snapshot, pytest.raises(BadSnapshot, match="three numbers"):
        snapshot.check(thorough=True)


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode))
def test_any_state_file_is_judged(tmp_path_factory, data):
    """Bytes that are no JSON, and JSON that is no snapshot."""
    path = tmp_path_factory.mktemp("any")
    (path / "state.json").write_bytes(data)
    (path / "checksum").write_text(sha256(data).hexdigest())
    (path / "memory").touch()
    with pytest.raises(BadSnapshot):
        Snapshot(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"format": 1e999}', "NaN", "\ud800"])
def test_json_without_end_is_refused(tmp_path, text):
    """Depth, digits, numbers that are none."""
    data = text.encode(errors="surrogatepass")
    (tmp_path / "state.json").write_bytes(data)
    (tmp_path / "checksum").write_text(sha256(data).hexdigest())
    (tmp_path / "memory").touch()
    with pytest.raises(BadSnapshot):
        Snapshot(str(tmp_path))


def test_removing_takes_the_snapshot_only(saved):
    """A damaged one as well; what the user put there stays; what is none is refused."""
    (saved / "memory").unlink()
    (saved / "mine").touch()
    remove(str(saved))
    assert os.listdir(saved) == ["mine"]
    with pytest.raises(BadSnapshot, match="is no snapshot"):
        remove(str(saved))
