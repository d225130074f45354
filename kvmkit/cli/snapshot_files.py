"""``kvmkit snapshot`` but for restore: saving a running VM, and looking at what was saved."""

from __future__ import annotations

import os

from kvmkit.cli.vms import bytes_text, table
from kvmkit.errors import FileTrouble, KvmkitError
from kvmkit.snapshot.format import Snapshot, is_snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmkit.cli.options import Parsed

__all__ = ["check", "diff", "info", "listing", "remove", "save"]

_PATIENCE = 3600.0
"""Seconds that saving may take: a slow disk, a guest of many gigabytes."""

_SHOWN = 40
"""Lines of a kind that ``diff`` prints."""


def save(parsed: Parsed) -> int:
    """Have a running VM saved."""
    from threading import Timer

    from kvmkit.control.client import VmClient
    from kvmkit.control.listing import find_vm
    from kvmkit.progress import PATIENCE, Progress

    name, path = parsed.words
    vm = find_vm(name)
    with Progress(patience=0) as progress:
        word = Timer(PATIENCE, lambda: progress(f"saving {vm.address}"))
        word.daemon = True
        word.start()
        try:
            with VmClient(vm) as client:
                client.patience = _PATIENCE
                client.execute("kvmkit-snapshot", path=os.path.abspath(path))
        finally:
            word.cancel()
    return 0


def info(parsed: Parsed) -> int:
    """Print what a snapshot is of."""
    with Snapshot(parsed.words[0]) as snapshot:
        record = _record(snapshot)
    if parsed["json"]:
        import json

        print(json.dumps(record, indent=2))
        return 0
    for name, text in (
        ("name", record["name"]),
        ("saved", f"{_moment(record['saved'])} by kvmkit {record['kvmkit']}"),
        ("kernel", record["kernel"]),
        ("initrd", " ".join(record["initrd"]) or "none"),
        ("parameters", record["cmdline"]),
        ("engine", record["engine"]),
        ("CPUs", str(record["cpus"])),
        ("memory", f"{bytes_text(record['memory'])}, {bytes_text(record['resident'])} on disk"),
    ):
        print(f"{name:<11} {text}")
    return 0


def listing(parsed: Parsed) -> int:
    """Print the snapshots in a directory, also those that cannot be restored here."""
    folder = parsed.words[0] if parsed.words else "."
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise FileTrouble(f"{folder}: {error.strerror}") from None
    paths = [folder] if is_snapshot(folder) else [os.path.join(folder, name) for name in names]
    records: list[dict[str, Any]] = []
    for path in paths:
        if is_snapshot(path):
            try:
                with Snapshot(path) as snapshot:
                    records.append(_record(snapshot))
            except KvmkitError as error:
                records.append({"path": path, "trouble": str(error)})
    if parsed["json"]:
        import json

        print(json.dumps(records, indent=2))
    elif not records:
        print("no snapshots")
    else:
        for line in table(("SNAPSHOT", "NAME", "ENGINE", "CPUS", "MEMORY", "ON DISK", "SAVED"),
                          [_row(record) for record in records], "345"):  # fmt: skip
            print(line)
    return 0


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if "trouble" in record:
        return (os.path.basename(record["path"]), "damaged", "", "", "", "", "")
    return (
        os.path.basename(os.path.abspath(record["path"])),
        record["name"],
        record["engine"],
        str(record["cpus"]),
        bytes_text(record["memory"]),
        bytes_text(record["resident"]),
        _moment(record["saved"]),
    )


def diff(parsed: Parsed) -> int:
    """Print what differs; 1 if anything does."""
    from kvmkit.snapshot.difference import memory_changes, state_changes

    one, other = parsed.words
    with Snapshot(one) as first, Snapshot(other) as second:
        lines = [f"{path}: {old} -> {new}" for path, old, new in state_changes(first, second)]
        ranges = memory_changes(first, second)
    pages = [f"memory {start:#x}-{start + size - 1:#x}" for start, size in ranges]
    for found in (lines, pages):
        for line in found[:_SHOWN]:
            print(line)
        if len(found) > _SHOWN:
            print(f"... and {len(found) - _SHOWN} more")
    if ranges:
        print(f"{bytes_text(sum(size for _, size in ranges))} of memory differ")
    return int(bool(lines or ranges))


def check(parsed: Parsed) -> int:
    """Read all of a snapshot."""
    from kvmkit.progress import Progress

    with Snapshot(parsed.words[0]) as snapshot, Progress() as progress:
        snapshot.check(thorough=True, progress=progress)
    return 0


def remove(parsed: Parsed) -> int:
    """Remove snapshots."""
    from kvmkit.snapshot.format import remove as remove_one

    for path in parsed.words:
        remove_one(path)
        print(f"removed {path}", flush=True)
    return 0


def _record(snapshot: Snapshot) -> dict[str, Any]:
    head, config = snapshot.head, snapshot.config
    return {
        "path": os.path.abspath(snapshot.path),
        "name": head["name"],
        "kvmkit": head["kvmkit"],
        "saved": head["saved"],
        "engine": snapshot.engine,
        "kernel": config["kernel"],
        "initrd": config["initrd"],
        "cmdline": config["cmdline"],
        "cpus": config["cpus"],
        "memory": snapshot.memory,
        "resident": snapshot.resident(),
    }


def _moment(seconds: int) -> str:
    from time import localtime, strftime

    try:
        return strftime("%Y-%m-%d %H:%M:%S", localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)
