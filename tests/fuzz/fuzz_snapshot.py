"""Fuzz snapshots with atheris: any state file gives a state or BadSnapshot.

Run ``python tests/fuzz/fuzz_snapshot.py CORPUS_DIR [-max_total_time=600]`` for as long
as you like; pytest runs a few seconds of it (``test_fuzz_snapshot.py``).
"""

from __future__ import annotations

import os
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import atheris  # type: ignore[import-untyped,unused-ignore]

with atheris.instrument_imports(include=["kvmkit.snapshot"]):
    from kvmkit.snapshot.format import Snapshot
    from kvmkit.snapshot.records import decode, encode
    from kvmkit.snapshot.text import parse
from kvmkit.engine.cpu import CpuState
from kvmkit.errors import BadSnapshot

FOLDER = Path(tempfile.mkdtemp(prefix="kvmkit-fuzz-"))
MEMORY = 4096


def one_input(data: bytes) -> None:
    """``data`` as a state file with the right checksum; then as a state alone."""
    (FOLDER / "state.json").write_bytes(data)
    (FOLDER / "checksum").write_text(sha256(data).hexdigest())
    try:
        with Snapshot(str(FOLDER)) as snapshot:
            snapshot.check(thorough=True)
            snapshot.state(CpuState())
    except BadSnapshot as error:
        assert "\n" not in str(error)
    try:
        value = parse(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return
    for like in (None, CpuState()):
        try:
            made = decode(value, "state", like)
        except BadSnapshot as error:
            assert "\n" not in str(error)
        else:
            assert decode(encode(made), "state", like) == made


def seeds() -> list[bytes]:
    """A snapshot's state file, and the state of a CPU alone."""
    from json import dumps

    config = {"kernel": "k", "initrd": [], "cmdline": "", "cpus": 1}
    head = {"format": 1, "kvmkit": "0", "saved": 0, "name": "n", "config": config}
    state = encode(CpuState())
    whole = {**head, "memory": MEMORY, "extents": [[0, 4096, 3339060242]], "state": state}
    return [dumps(whole).encode(), dumps(state).encode(), b'{"map": [[1, {"bytes": "00"}]]}']


def main() -> None:
    """Write the seeds into the corpus directory named first, if there is one, and fuzz."""
    arguments = list(sys.argv)
    folders = [argument for argument in arguments[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        os.makedirs(folder, exist_ok=True)
        for index, seed in enumerate(seeds()):
            (Path(folder) / f"seed-{index}").write_bytes(seed)
    (FOLDER / "memory").write_bytes(bytes(MEMORY))
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
