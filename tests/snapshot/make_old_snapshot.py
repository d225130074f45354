"""Make a snapshot for ``data``: ``python -m tests.snapshot.make_old_snapshot NAME ENGINE``.

Done once for each format, and never again for the same: that what an older kvmkit
saved is still read is what ``test_old_snapshots.py`` is there to show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvmkit import VM
from tests.snapshot.tiny_guest import tiny_kernel

DATA = Path(__file__).with_name("data")


def main(name: str, engine: str) -> None:
    """Run the tiny guest for a while and save it."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = tiny_kernel(Path(folder))
        said = bytearray()
        with VM(kernel, memory="2M", engine=engine, name="old", console=said.extend) as vm:
            vm.start()
            while len(said) < 4:
                time.sleep(0.01)
            vm.kernel = "/nowhere/tiny"
            vm.snapshot(Path(folder) / name)
        (Path(folder) / name / "checked").unlink()
        subprocess.run(
            ["tar", "--create", "--xz", "--sparse", "--owner=0", "--group=0", "--numeric-owner",
             "--sort=name", "--mtime=@0", f"--file={DATA / name}.tar.xz", name],
            cwd=folder, check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
