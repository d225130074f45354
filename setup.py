"""The C core of the software CPU; everything else is in pyproject.toml.

The core is linked against the static library that the ``unicorn`` wheel
carries. Where it cannot be built (no compiler, no Python headers, a platform
without that wheel) kvmkit installs all the same and runs on ``/dev/kvm`` only;
``kvmkit doctor`` says so and what to do.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = Path("kvmkit/engine/soft/core")
WITHOUT = "kvmkit: building without the software CPU, only /dev/kvm can be used: "


def find_unicorn() -> Path | None:
    """The installed ``unicorn`` package with headers and static library, or None."""
    spec = importlib.util.find_spec("unicorn")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "lib/libunicorn.a").exists():
            return Path(place)
    return None


def extensions() -> list[Extension]:
    """The core as an optional extension; none where it has no sources or no library."""
    sources = sorted(str(path) for path in CORE.glob("*.c"))
    if not sources:
        return []
    unicorn = find_unicorn()
    if unicorn is None:
        print(WITHOUT + "the unicorn package here has no libunicorn.a", file=sys.stderr)
        return []
    arguments = CORE / "link.args"
    headers = [str(path) for path in (*CORE.glob("*.h"), arguments) if path.exists()]
    return [
        Extension(
            "kvmkit.engine.soft._core",
            sources=sources,
            include_dirs=[str(CORE), str(unicorn / "include")],
            extra_compile_args=["-O2", "-fvisibility=hidden", "-std=gnu11"],
            extra_objects=[str(unicorn / "lib/libunicorn.a")],
            extra_link_args=(
                shlex.split(arguments.read_text(), comments=True) if arguments.exists() else []
            ),
            depends=headers,
            optional=True,
        )
    ]


class BuildCore(build_ext):
    """build_ext that says plainly what a failed build of the core means."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            print(f"{WITHOUT}{error}", file=sys.stderr)
            raise


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildCore})
