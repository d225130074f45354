"""Fuzz virtqueues and the PCI transport with atheris: a driver may do anything.

Run ``python tests/fuzz/fuzz_virtio.py CORPUS_DIR [-max_total_time=600]`` for as
long as you like; pytest runs a few seconds of it (``test_fuzz_virtio.py``). What
an input means is in ``tests/virtio/hostile.py``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["kvmkit.virtio"]):
    from tests.virtio.hostile import play

SEEDS = (b"\0", b"\1", bytes(range(1, 200)), b"\1" + bytes(range(200)))


def main() -> None:
    """Write the seeds into the corpus directory named first, if there is one, and fuzz."""
    arguments = list(sys.argv)
    folders = [argument for argument in arguments[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        os.makedirs(folder, exist_ok=True)
        for index, seed in enumerate(SEEDS):
            (Path(folder) / f"seed-{index}").write_bytes(seed)
    atheris.Setup(arguments, lambda data: play(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
