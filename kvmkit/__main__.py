"""``python -m kvmkit``: the same as the ``kvmkit`` command."""

from __future__ import annotations

from kvmkit.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
