"""The two parts in C; everything else is in pyproject.toml.

The core of the software CPU is linked against the static library that the
``unicorn`` wheel carries. Where it cannot be built (no compiler, no Python
headers, a platform without that wheel) kvmkit installs all the same and runs on
``/dev/kvm`` only; ``kvmkit doctor`` says so and what to do.

The guest's first process is a static program that needs a compiler and the
kernel's headers only. Without it guests start with a shell script.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = Path("kvmkit/engine/soft/core")
WITHOUT = "kvmkit: building without the software CPU, only /dev/kvm can be used: "

AGENT = Path("kvmkit/guest/agent")
# No C library: what the compiler may expect of one is not there.
AGENT_FLAGS = """
    -std=gnu11 -Os -Wall -Wextra -Wshadow -ffreestanding -fno-builtin -fno-stack-protector
    -fno-strict-aliasing -fno-pie -fno-asynchronous-unwind-tables -fcf-protection=none
    -static -nostdlib -no-pie -Wl,--gc-sections,--build-id=none,-z,norelro,-z,noseparate-code -s
"""
WITHOUT_AGENT = "kvmkit: building without the guest's agent, guests start with a shell script: "


class Program(Extension):
    """An executable for the guest, not a Python module."""


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


def programs() -> list[Program]:
    """The agent, where it can run at all; guests have the host's architecture."""
    sources = sorted(str(path) for path in AGENT.glob("*.c"))
    if not sources or platform.machine() not in ("x86_64", "AMD64"):
        return []
    headers = [str(path) for path in AGENT.glob("*.h")]
    return [Program(".".join(AGENT.parts), sources=sources, depends=headers, optional=True)]


class BuildParts(build_ext):
    """build_ext that also makes programs, and says plainly what a failed build means."""

    def build_extension(self, ext: Extension) -> None:
        is_program = isinstance(ext, Program)
        try:
            if is_program:
                self.build_program(ext)
            else:
                super().build_extension(ext)
        except Exception as error:
            print(f"{WITHOUT_AGENT if is_program else WITHOUT}{error}", file=sys.stderr)
            raise

    def build_program(self, ext: Extension) -> None:
        """One call of the compiler: the agent is small."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # As Python was built, or as the environment says; its flags are for Python's modules.
        compiler = shlex.split(os.environ.get("CC", "")) or [self.compiler.compiler_so[0]]
        self.compiler.spawn(
            [*compiler, *shlex.split(AGENT_FLAGS), *ext.sources, "-o", os.fspath(target)]
        )

    def get_ext_filename(self, fullname: str) -> str:
        """The file of an extension, with its directory if ``fullname`` has its package."""
        *package, name = fullname.split(".")
        if name == AGENT.name:
            return os.path.join(*package, name + ".elf")
        return str(super().get_ext_filename(fullname))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """A program exports none."""
        return [] if isinstance(ext, Program) else list(super().get_export_symbols(ext))


setup(ext_modules=[*extensions(), *programs()], cmdclass={"build_ext": BuildParts})
