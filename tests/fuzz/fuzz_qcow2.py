"""Fuzz qcow2 images with atheris: a file that calls itself a disk may be anything.

Run ``python tests/fuzz/fuzz_qcow2.py CORPUS_DIR [-max_total_time=600]`` for as long
as you like. What an input means is in ``tests/backends/hostile_image.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["kvmkit.backends"]):
    import kvmkit.backends.qcow2
    import kvmkit.backends.qcow2_compressed
    import kvmkit.backends.qcow2_refcounts  # noqa: F401 - imported late otherwise, uninstrumented
    from tests.backends.hostile_image import play_bytes

REQUESTS = bytes((12, 0, 0, 3, 1, 1, 0, 9, 1, 2, 1, 4, 1, 3, 2, 9, 1, 4, 0, 0, 0, 0, 8, 90, 5))
OPTIONS = ("cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=4k,refcount_bits=1")


def seeds(folder: str) -> None:
    """Images made by qemu-img, where it is installed, plain and compressed."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "data").write_bytes(bytes(range(256)) * 64)
        for index, options in enumerate(OPTIONS * 2):
            packed = ["-c"] if index >= len(OPTIONS) else []
            words = ["qemu-img", "convert", "-Oqcow2", "-o", options, *packed, "data", "image"]
            subprocess.run(words, cwd=name, check=True)
            image = (Path(name) / "image").read_bytes()
            (Path(folder) / f"seed-{index}").write_bytes(REQUESTS.ljust(49, b"\1") + image)


def main() -> None:
    """Write the seeds into the corpus directory named first, if there is one, and fuzz."""
    arguments = list(sys.argv)
    folders = [argument for argument in arguments[1:] if not argument.startswith("-")]
    if folders:
        seeds(folders[0])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        path = Path(name) / "disk"
        atheris.Setup([*arguments, "-max_len=20000"], lambda data: play_bytes(path, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
