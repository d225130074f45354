"""The agent's sources compile without a warning, to a small program that needs nothing."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmkit.guest import initramfs

SOURCES = Path(initramfs.__file__).parent / "agent"
SETUP = Path(__file__).parents[2] / "setup.py"


def setup_constant(name: str) -> str:
    """A constant of setup.py, which cannot be imported without running it."""
    for node in ast.parse(SETUP.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"setup.py has no {name}")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_warnings(compiler: str, tmp_path: Path) -> None:
    """With the build's own flags, and every warning an error."""
    if shutil.which(compiler) is None or not SOURCES.is_dir() or not SETUP.exists():
        pytest.skip(f"needs {compiler} and the sources")
    program = tmp_path / "agent"
    flags = [*setup_constant("AGENT_FLAGS").split(), "-Werror", "-Wconversion"]
    flags.append("-Wno-sign-conversion")
    sources = sorted(map(str, SOURCES.glob("*.c")))
    subprocess.run([compiler, *flags, *sources, "-o", str(program)], check=True)
    data = program.read_bytes()
    assert len(data) < 40_000
    initramfs._check_static(program, data)


def test_the_built_one_is_static() -> None:
    """What guests start with."""
    agent = initramfs.agent_program()
    if agent is None:
        pytest.skip("the guest's agent is not built: needs a C compiler")
    initramfs._check_static(agent, Path(agent).read_bytes())
