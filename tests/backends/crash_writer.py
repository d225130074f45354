"""Writes to a disk until it is killed, and says what it does.

``crash_writer.py IMAGE SEED SECTORS``. On standard output, unbuffered, a line
before each request and one after each flush.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from kvmkit.backends.disk import open_disk
from tests.backends.disk_model import SECTOR, pattern


def main() -> None:
    path, seed, sectors = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    disk = open_disk(path)
    chance = random.Random(seed)
    os.write(1, b"open\n")
    while True:
        kind = chance.choice(("write",) * 12 + ("flush", "flush", "discard", "zero"))
        sector = chance.randrange(sectors)
        count = min(chance.choice((1, 2, 8, 8, 60, 300)), sectors - sector)
        value = chance.randrange(1, 1 << 30)
        os.write(1, f"{kind} {sector} {count} {value}\n".encode())
        if kind == "write":
            disk.write(sector * SECTOR, [memoryview(pattern(value, count * SECTOR))])
        elif kind == "discard":
            disk.discard(sector * SECTOR, count * SECTOR)
        elif kind == "zero":
            disk.write_zeroes(sector * SECTOR, count * SECTOR, unmap=bool(value & 1))
        else:
            disk.flush()
            os.write(1, b"flushed\n")


if __name__ == "__main__":
    main()
