"""The pytest plugin, used by pytest runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvmkit.guest.initramfs import agent_program
from tests.cli.command import environment
from tests.snapshot.test_engines import need

pytestmark = [pytest.mark.slow, pytest.mark.soft]

SUITE = """
import pytest

def test_one(vm):
    assert vm.execute("touch /tmp/trace; ls /tmp").text == "trace"

@pytest.mark.parametrize("number", range(6))
def test_nobody_sees_anothers_files(vm, number):
    assert vm.execute("ls /tmp").text == ""
    vm.execute(f"echo {number} > /tmp/trace", check=True)

@pytest.mark.vm(cpus=2, memory="256M")
def test_marker(vm):
    assert vm.execute("nproc").text == "2"
    assert int(vm.execute("grep MemTotal /proc/meminfo").text.split()[1]) < 262144

def test_two(vm_factory):
    one, other = vm_factory(), vm_factory()
    one.execute("echo 1 > /tmp/f", check=True)
    assert other.execute("cat /tmp/f").returncode == 1
"""

FAILING = """
def test_fails(vm):
    vm.execute("echo what the guest said > /dev/console", check=True)
    assert vm.execute("true").returncode == 1
"""


@pytest.fixture
def suite(tmp_path, kernel, busybox):
    """Runs pytest on a file; its result."""
    need("soft")
    if agent_program() is None:
        pytest.skip("the guest's agent is not built")

    def run(text, *words, kernels=(kernel,)):
        file = tmp_path / "test_suite.py"
        file.write_text(text)
        named = [word for path in kernels for word in ("--kvmkit-kernel", str(path))]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "kvmkit.pytest_plugin", "-p", "no:cacheprovider",
             "--strict-markers", "--kvmkit-engine", "soft", *named, *words, str(file)],
            cwd=tmp_path, env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


def test_each_test_has_a_fresh_machine(suite):
    """Files of one test are not seen by another; markers and the factory work."""
    done = suite(SUITE)
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_workers_share_what_was_booted(suite):
    """Under xdist."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    done = suite(SUITE, "-p", "xdist", "-n", "2")
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_a_failure_shows_the_console(suite):
    """In the report, with the machine's name."""
    done = suite(FAILING)
    assert done.returncode == 1
    assert "--- console of " in done.stdout
    assert "what the guest said" in done.stdout


def test_tests_run_with_each_kernel(suite, kernels):
    """Named several times, or by a pattern."""
    text = "def test_it(vm, kernel):\n    print('release', vm.execute('uname -r').text)\n"
    chosen = dict(sorted(kernels.items())[:2])
    done = suite(text, "-s", kernels=list(chosen.values()))
    assert done.returncode == 0, done.stdout
    for release in chosen:
        assert f"release {release}\n" in done.stdout
    path = next(iter(chosen.values()))
    pattern = os.path.join(os.path.dirname(path), f"[{path.name[0]}]{path.name[1:]}")
    assert suite(text, kernels=[pattern]).returncode == 0


def test_a_kernel_that_is_not_there_is_told(suite):
    """Before anything runs."""
    done = suite(SUITE, kernels=["/nowhere/vmlinuz"])
    assert done.returncode == 4
    assert "no kernel at /nowhere/vmlinuz" in done.stderr + done.stdout
