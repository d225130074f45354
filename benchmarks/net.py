"""User networking: a TCP stream in each direction, and questions with answers.

The guest's ``net_io.c`` speaks with a server in this process, on the host's loopback.
kvmkit's network is passt, QEMU's is passt as well (``-netdev stream``) and its
built-in one (slirp). The init says a mark between the works on the serial console; the
host's clock and the CPU time of kvmkit or QEMU (without passt, a process of its own)
are read as the marks arrive. The figures are times: less is better, below 1 we are
faster. QEMU's machine is q35 with a modern virtio-net-pci; both have one CPU.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machines
from paired import Command, NotSeen, Run, alternate, ratio, spread, table, told

from kvmkit.guest.modinfo import read_module
from kvmkit.guest.modules import find_module_tree

WORK = {
    "send 256 MiB": f"send 10.0.2.2 PORT {256 << 20}",
    "receive 256 MiB": f"receive 10.0.2.2 PORT {256 << 20}",
    "ask 2000 times": "ask 10.0.2.2 PORT 2000",
}
MARK = "@done"
MARKS = (MARK.encode(),) * (len(WORK) + 1)
HEAD = ("work", "kvmkit s (quartiles)", "other", "s", "kvmkit's by it", "the same in CPU time")
PREPARE = """
mount -t devtmpfs dev /dev; mount -t proc proc /proc
for m in $(cat /order); do insmod /$m.ko; done
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
"""
PASST = "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2"


def main() -> int:
    parser = machines.arguments(__doc__ or "", rounds=5)
    parser.add_argument("kernels", nargs="*", type=Path, metavar="BZIMAGE")
    options = parser.parse_args()
    kernels = options.kernels or machines.default_kernels()[:1]
    if not kernels:
        sys.exit("no kernel: kvmkit image pull linux-image-cloud-amd64, or name bzImages")
    if shutil.which("gcc") is None or shutil.which("passt") is None:
        sys.exit("gcc and passt are needed (apt install gcc libc6-dev passt)")
    failed = False
    for kernel in kernels:
        print(f"Kernel {machines.release(kernel)}, {options.rounds} rounds\n")
        try:
            print(compare(kernel, options), end="\n\n", flush=True)
        except NotSeen as error:
            print(f"failed: {error}\n", flush=True)
            failed = True
    return int(failed)


def compare(kernel: Path, options: Namespace) -> str:
    """The table for one kernel. Raises NotSeen."""
    with tempfile.TemporaryDirectory(prefix="kvmkit-net-") as name, server() as port:
        place = Path(name)
        place.chmod(0o777)  # passt becomes another user
        initrd = guest(place, kernel, port)
        words = {"kvmkit": [*machines.soft(options, kernel, initrd, "quiet"), "--net", "user"]}
        if machines.has_qemu(options):
            qemu = machines.qemu_q35(options, kernel, initrd, "quiet")
            path = place / "passt"
            # passt serves one guest and ends: each start brings its own
            stream = f"stream,id=n,server=off,addr.type=unix,addr.path={path}"
            script = f'passt -1 -q -s {path} {PASST} >/dev/null 2>&1; exec "$@"'
            words["QEMU + passt"] = ["sh", "-c", script, "sh", *with_card(qemu, stream)]
            words["QEMU + slirp"] = with_card(qemu, "user,id=n")
        runs = alternate({key: Command(line, MARKS) for key, line in words.items()}, options.rounds)
    return table(HEAD, list(rows(runs)))


def with_card(qemu: list[str], network: str) -> list[str]:
    return [*qemu, "-netdev", network, "-device", "virtio-net-pci,netdev=n,disable-legacy=on"]


def rows(runs: dict[str, list[Run]]) -> Iterator[list[str]]:
    for number, work in enumerate(WORK, 1):
        own = spread([span(run, number) for run in runs["kvmkit"]])
        for other in [name for name in runs if name != "kvmkit"] or ["kvmkit"]:
            theirs = runs[other]
            yield [
                work,
                told(own),
                other,
                told(spread([span(run, number) for run in theirs])),
                told(ratio(runs["kvmkit"], theirs, lambda run, n=number: span(run, n))),
                told(ratio(runs["kvmkit"], theirs, lambda run, n=number: busy(run, n))),
            ]


def span(run: Run, number: int) -> float:
    return run.marks[number].wall - run.marks[number - 1].wall


def busy(run: Run, number: int) -> float:
    return max(run.marks[number].cpu - run.marks[number - 1].cpu, 0.005)


def guest(place: Path, kernel: Path, port: int) -> Path:
    """The initramfs: the driver, the program, and the works one after the other."""
    program = place / "net_io"
    source = Path(__file__).with_name("net_io.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    tree = find_module_tree(kernel)
    if tree is None:
        sys.exit(f"{kernel}: its modules are not there")
    modules = tree.resolve(("virtio_pci", "virtio_net"))
    files = {f"{module.name}.ko": read_module(module.path) for module in modules}
    files["order"] = " ".join(module.name for module in modules).encode()
    files["net_io"] = program.read_bytes()
    lines = [PREPARE, "cp /net_io /tmp/run; chmod 755 /tmp/run; sleep 0.5", f"echo {MARK}"]
    for work in WORK.values():
        lines.append(f"/tmp/run {work.replace('PORT', str(port))} && echo {MARK}")
    return machines.initramfs(place, "\n".join([*lines, "sleep 9", "poweroff -f"]), files)


@contextmanager
def server() -> Iterator[int]:
    """The other side of the works, on a port of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                attend(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def attend(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wanted = connection.recv(32, socket.MSG_WAITALL).decode()
    kind, count = wanted[:1], int(wanted[1:] or 0)
    buffer = bytearray(1 << 20)
    try:
        if kind == "r":
            while count > 0:
                count -= connection.send(memoryview(buffer)[:count])
        while size := connection.recv_into(buffer):
            if kind == "a":
                connection.sendall(memoryview(buffer)[:size])
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
