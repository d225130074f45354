"""``kvmkit run --warm``: the same as cold, but sooner; and its cache."""

from __future__ import annotations

import time

import pytest

from kvmkit.guest.initramfs import agent_program
from tests.cli.command import kvmkit
from tests.snapshot.test_engines import need

pytestmark = [pytest.mark.slow, pytest.mark.soft]


@pytest.fixture(scope="module")
def run(tmp_path_factory, kernels):
    """``kvmkit run`` with a cache of its own."""
    need("soft")
    if agent_program() is None:
        pytest.skip("the guest's agent is not built")
    cache = tmp_path_factory.mktemp("cache")
    kernel = kernels[min(kernels, key=lambda name: ("cloud" not in name, name))]

    def run(*words, stdin=None, warm=True, options=()):
        first = ["run", *(["--warm"] if warm else []), "--engine", "soft", "-k", str(kernel)]
        return kvmkit(*first, *options, "--", *words, stdin=stdin, XDG_CACHE_HOME=str(cache))

    done = run("true")
    if done.returncode:
        pytest.skip(done.stderr)
    run.cache = cache
    return run


COMMANDS = [
    (("true",), None),
    (("false",), None),
    (("echo", "a  b", "", "c"), None),
    (("sh", "-c", "exit 42"), None),
    (("nproc",), None),
    (("sh", "-c", "echo $#: \"$@\"", "sh", "one", "two words"), None),
    (("uname", "-srm"), None),
    (("id", "-u"), None),
    (("pwd",), None),
    (("cat",), "input\nof two lines\n"),
    (("md5sum",), "".join(f"line {n}\n" for n in range(500))),
    (("sh", "-c", "ls -1 /tmp /mnt"), None),
    (("cut", "-d ", "-f1-3", "/proc/mounts"), None),
    (("sh", "-c", "kill -TERM $$"), None),
    (("sh", "-c", "tr -d '\\0' < /proc/cmdline | wc -w"), None),
]


@pytest.mark.parametrize(("words", "stdin"), COMMANDS, ids=lambda each: str(each)[:30])
def test_warm_says_what_cold_says(run, words, stdin):
    """Output and status, for a table of commands."""
    cold = run(*words, stdin=stdin, warm=False)
    warm = run(*words, stdin=stdin)
    assert warm.returncode == cold.returncode, warm.stderr
    assert warm.stdout == cold.stdout


def test_the_streams_are_apart(run):
    """Errors come on standard error, unlike those of a cold start's one console."""
    done = run("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_the_time_of_day_is_right(run):
    """Though the guest was booted long ago."""
    time.sleep(2)
    assert abs(int(run("date", "+%s").stdout) - time.time()) < 3


def test_nothing_is_left_of_the_last_run(run):
    """Each starts from where the first was saved."""
    run("touch", "/tmp/trace")
    assert run("ls", "/tmp").stdout == ""


def test_options_belong_to_the_run(run):
    """Variables and a directory; another size is another guest."""
    done = run("sh", "-c", "echo $A; pwd", options=("--env", "A=b", "--cwd", "/proc"))
    assert done.stdout == "b\n/proc\n"
    assert run("nproc", options=("-c", "2")).stdout == "2\n"


@pytest.mark.parametrize("options", [("--disk", "x"), ("--detach",), ("--ro", "/tmp")])
def test_what_does_not_go_with_it_is_told(run, options):
    """Before anything is booted."""
    done = run("true", options=options)
    assert done.returncode == 2
    assert "--warm does not go with --" in done.stderr


def test_a_timeout_ends_it(run):
    """As cold: exit code 124."""
    assert run("sleep", "60", options=("--timeout", "1")).returncode == 124


def test_the_cache_is_listed_and_cleared(run):
    """And a damaged guest is booted anew."""
    run("true")
    more = {"XDG_CACHE_HOME": str(run.cache)}
    assert "512M, 1 CPUs" in kvmkit("cache", "list", **more).stdout
    for state in run.cache.glob("kvmkit/warm/*/snapshot/state.json"):
        state.write_text("{}")
    assert "not restorable" in kvmkit("cache", **more).stdout
    assert run("echo", "on").stdout == "on\n"
    assert kvmkit("cache", "clear", **more).stdout.startswith("removed ")
    assert kvmkit("cache", **more).stdout.startswith("no warm guests")
