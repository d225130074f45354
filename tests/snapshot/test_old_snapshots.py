"""Snapshots that older versions saved, kept in ``data``: they are still read, and go on."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.snapshot.format import Snapshot
from tests.snapshot.test_engines import ENGINES, follows, need

DATA = Path(__file__).with_name("data")


@pytest.fixture(params=sorted(path.name for path in DATA.glob("*.tar.xz")))
def old(request, tmp_path):
    """One of them, unpacked."""
    if shutil.which("tar") is None or shutil.which("xz") is None:
        pytest.skip("tar and xz are missing")
    subprocess.run(["tar", "-xf", DATA / request.param], cwd=tmp_path, check=True)
    return tmp_path / request.param.removesuffix(".tar.xz")


def test_an_old_snapshot_is_whole(old):
    """Its checksums are those of today."""
    with Snapshot(str(old)) as snapshot:
        snapshot.check(thorough=True)
        assert snapshot.config["kernel"] == "/nowhere/tiny"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_old_snapshot_goes_on(old, engine):
    """The guest counts on from the letter it had come to, on either engine."""
    need(engine)
    said = bytearray()
    with VM.restore(old, engine=engine, console=said.extend) as vm:
        vm.start()
        limit = time.monotonic() + 30
        while len(said) < 6 and time.monotonic() < limit:
            assert vm.ending is None, vm.ending
            time.sleep(0.01)
    follows(bytes(said))
    assert said[0] in b"CDcd"
