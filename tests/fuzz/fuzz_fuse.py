"""Fuzz the FUSE server with atheris: a guest may send anything.

Run ``python tests/fuzz/fuzz_fuse.py CORPUS_DIR [-max_total_time=600]`` for as
long as you like; pytest runs a few seconds of it (``test_fuzz_fuse.py``). What
an input means is in ``tests/backends/fuse_hostile.py``.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["kvmkit.backends.fuse"]):
    from tests.backends.fuse_hostile import Place, play

SEEDS = tuple(random.Random(seed).randbytes(2000) for seed in range(8))


def main() -> None:
    """Write the seeds into the corpus directory named first, if there is one, and fuzz."""
    arguments = list(sys.argv)
    folders = [argument for argument in arguments[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        os.makedirs(folder, exist_ok=True)
        for index, seed in enumerate(SEEDS):
            (Path(folder) / f"seed-{index}").write_bytes(seed)
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))

        def one(data: bytes) -> None:
            place.refill()
            play(data, place)

        atheris.Setup(arguments, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
