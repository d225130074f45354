"""Names and directories of VMs."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.control.claim import Claim, NameTaken, claim_name, is_alive, remove_dead
from kvmkit.control.directory import runtime_directory
from kvmkit.control.names import LONGEST, check_name, generate_name, is_name
from kvmkit.errors import PermissionTrouble, UsageError


@pytest.fixture
def base(runtime: Path) -> Path:
    return runtime / "kvmkit"


def dead(base: Path, name: str) -> Path:
    """What a VM that was killed leaves: everything but the lock."""
    claim = claim_name(name)
    copy = base / "copy"
    copy.mkdir()
    for file in os.listdir(claim.path):
        (copy / file).write_text("4000000\n")
    claim.release()
    copy.rename(base / name)
    return base / name


def test_generated_names_are_names() -> None:
    """Readable, valid, and different enough."""
    names = {generate_name(tries) for tries in range(8) for _ in range(100)}

    assert len(names) > 400 and all(map(is_name, names))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", ".hidden", "-n", "ä", "a b", "x" * 65, "a\n"]
)
def test_names_that_cannot_be(name: str) -> None:
    """Nothing that is a path, an option, or hidden."""
    with pytest.raises(UsageError, match="letters, digits"):
        check_name(name)


@given(st.text(max_size=LONGEST + 2))
@settings(deadline=None)
def test_a_name_is_one_file(name: str) -> None:
    """Whatever passes the check is one plain path component."""
    if is_name(name):
        assert os.path.basename(name) == name and name not in (".", "..") and name.isprintable()


def test_a_claim_and_its_end(base: Path) -> None:
    """Mode 0700, a locked pid file, a bound socket; nothing after release."""
    claim = claim_name("box")

    assert stat.S_IMODE(os.stat(claim.path).st_mode) == 0o700
    assert sorted(os.listdir(claim.path)) == ["pid", "qmp.sock", "state"]
    assert (base / "box/pid").read_text() == f"{os.getpid()}\n"
    assert is_alive(claim.path)
    claim.release()
    claim.release()
    assert os.listdir(base) == []


def test_a_name_that_is_taken(base: Path) -> None:
    """An error that says who has it; without insisting, another name."""
    first = claim_name("box")

    with pytest.raises(NameTaken, match=rf"'box' is running \(process {os.getpid()}\)"):
        claim_name("box")
    second = claim_name("box", insist=False)

    assert second.name != "box" and is_alive(first.path)
    first.release()
    second.release()


def test_a_dead_vms_name_is_free(base: Path) -> None:
    """Who claims it cleans up."""
    dead(base, "box")

    claim = claim_name("box")

    assert is_alive(claim.path) and (base / "box/pid").read_text() == f"{os.getpid()}\n"
    claim.release()


def test_remove_dead(base: Path) -> None:
    """A dead one goes, a living one stays, what is not there is no trouble."""
    path = dead(base, "gone")
    alive = claim_name("here")

    assert not is_alive(str(path))
    assert remove_dead(str(path)) and not path.exists()
    assert not remove_dead(alive.path) and is_alive(alive.path)
    assert not remove_dead(str(base / "never"))
    alive.release()


def test_an_empty_directory_is_dead(base: Path) -> None:
    """As a process leaves it that dies between two steps of its start."""
    runtime_directory(make=True)
    (base / "half").mkdir()

    assert not is_alive(str(base / "half"))
    assert remove_dead(str(base / "half")) and not (base / "half").exists()


def test_foreign_files_are_not_removed(base: Path) -> None:
    """Only what a VM puts there goes."""
    path = dead(base, "box")
    (path / "precious").write_text("mine")

    remove_dead(str(path))

    assert os.listdir(path) == ["precious"]


def test_rename(base: Path) -> None:
    """The directory moves; to a dead VM's name too, not to a living one's or a bad one."""
    claim, other = claim_name("one"), claim_name("two")
    dead(base, "three")

    claim.rename("three")
    with pytest.raises(NameTaken):
        claim.rename("two")
    with pytest.raises(UsageError):
        claim.rename("a/b")

    assert sorted(os.listdir(base)) == ["three", "two"]
    assert is_alive(str(base / "three")) and claim.name == "three"
    claim.release()
    other.release()
    assert os.listdir(base) == []


def test_a_path_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than sun_path: bound all the same, and reachable through its directory."""
    deep = tmp_path / ("d" * 80) / ("e" * 80)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))

    claim = claim_name("box")

    assert (deep / "kvmkit/box/qmp.sock").is_socket()
    fd = os.open(claim.path, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{fd}/qmp.sock")
    os.close(fd)
    claim.release()


def test_no_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable: the system's place, or one in /tmp with the user's number."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    user = os.geteuid()

    assert runtime_directory() in (f"/run/user/{user}/kvmkit", f"/tmp/kvmkit-{user}")


def test_a_place_that_is_not_there(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear line with the variable's name."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "nowhere"))

    with pytest.raises(PermissionTrouble, match=r"nowhere/kvmkit: No such file") as error:
        claim_name("box")
    assert "XDG_RUNTIME_DIR" in error.value.hint


@pytest.mark.parametrize("kind", ["file", "link", "open"])
def test_a_place_that_is_not_to_be_trusted(runtime: Path, kind: str) -> None:
    """A file, a link, a directory others can write to."""
    place = runtime / "kvmkit"
    if kind == "file":
        place.write_text("")
    elif kind == "link":
        (runtime / "there").mkdir()
        place.symlink_to(runtime / "there")
    else:
        place.mkdir()
        place.chmod(0o777)

    with pytest.raises(PermissionTrouble, match="nobody else can write to"):
        claim_name("box")


def test_links_in_a_vms_directory_are_not_followed(base: Path, tmp_path: Path) -> None:
    """A pid file that is a link is nobody's."""
    runtime_directory(make=True)
    target = tmp_path / "target"
    target.write_text("1\n")
    (base / "trap").mkdir()
    (base / "trap/pid").symlink_to(target)

    assert not is_alive(str(base / "trap"))
    remove_dead(str(base / "trap"))
    assert target.read_text() == "1\n"


def test_a_child_of_fork_does_not_clean_up(base: Path) -> None:
    """It has the descriptors, but the VM is its parent's."""
    claim: Claim = claim_name("box")
    child = os.fork()
    if not child:
        claim.release()
        os._exit(0)
    os.waitpid(child, 0)

    assert is_alive(claim.path)
    claim.release()


def test_names_for_shells_and_people(base: Path) -> None:
    """The order of a list is the one people count in."""
    from kvmkit.control.listing import list_names, list_vms

    claims = [claim_name(name) for name in ("vm10", "vm2", "vm1", "a")]
    ours = [vm.name for vm in list_vms() if vm.path.startswith(str(base))]

    assert ours == ["a", "vm1", "vm2", "vm10"]
    assert {"vm10", "vm2"} <= set(list_names())
    for claim in claims:
        claim.release()
