"""All benchmarks, and a dated section with their tables at the end of RESULTS.md.

A section says on which host and with which versions it was measured. Run it on
a host that does nothing else; the load before the start is in the section.
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
QUICK = "3"  # rounds
BUSY = 0.3  # load average above which the host is not quiet


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="*", type=Path, metavar="BZIMAGE")
    parser.add_argument("--print", action="store_true", help="leave RESULTS.md as it is")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds of each")
    parser.add_argument("--kvmkit", help="the kvmkit command (default: beside this Python)")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="default: %(default)s")
    parser.add_argument("--lkvm", default="lkvm", help="kvmtool's command (default: %(default)s)")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the load is {load:.1f}: another time gives better figures", file=sys.stderr)
    lines = [f"## {datetime.date.today()}, {cpu_model()}", "", *facts(options, load), ""]
    failed = False
    for title, words, fence in benchmarks(options):
        print(f"{title} ...", file=sys.stderr, flush=True)
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        failed |= done.returncode != 0
        text = done.stdout.strip() or f"failed: exit status {done.returncode}"
        lines += [f"### {title}", "", f"```\n{text}\n```" if fence else text, ""]
    section = "\n".join(lines)
    print(section)
    if not options.print:
        with RESULTS.open("a") as file:
            file.write(f"\n{section}")
    return int(failed)


def benchmarks(options: Namespace) -> Iterator[tuple[str, list[str], bool]]:
    """Title, command, and whether its output is a plain-text table."""
    shared = ["--qemu", options.qemu, *(("--kvmkit", options.kvmkit) if options.kvmkit else ())]
    rounds = ["--rounds", QUICK] if options.quick else []
    kernels = [str(path) for path in options.kernels]

    def script(name: str, *more: str) -> list[str]:
        return [sys.executable, str(HERE / f"{name}.py"), *rounds, *more]

    yield "Boot to the first userspace line", script("boot", *shared, *kernels), False
    yield "CPU-bound work in the guest", script("cpu_bound", *shared, *kernels[:1]), False
    yield (
        "Start to the first guest instruction (KVM)",
        script("start", *shared, "--lkvm", options.lkvm),
        False,
    )
    yield "Restore, and the memory of forks", script("snapshot", *shared, *kernels[:1]), False
    if (HERE / "port_exit.py").exists() and os.access("/dev/kvm", os.R_OK | os.W_OK):
        yield "Port exit (KVM)", script("port_exit"), True


def facts(options: Namespace, load: float) -> list[str]:
    """Host and versions, one per line."""
    found = {
        "kvmkit": commit(),
        "host": f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.2f} before",
        "Python": f"{platform.python_version()} ({platform.python_compiler()})",
        "Unicorn": package("unicorn"),
        "QEMU": first_line([options.qemu, "--version"]),
        "kvmtool": first_line([options.lkvm, "version"]),
    }
    return [f"- {name}: {text}" for name, text in found.items()]


def cpu_model() -> str:
    """The host's CPU, as it calls itself."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """The commit that was measured, and whether the files differ from it."""
    what = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    return first_line(what)


def package(name: str) -> str:
    """An installed package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def first_line(words: Sequence[str]) -> str:
    """What a program says of itself."""
    if shutil.which(words[0]) is None:
        return "not installed"
    done = subprocess.run(words, capture_output=True, text=True)
    return (done.stdout.strip() or "unknown").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
