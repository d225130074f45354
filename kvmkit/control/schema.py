"""The types of QMP: what commands take and return, and what events carry, as data.

Names and members are those of QEMU's QAPI schema (``qapi/*.json``, documented in
its "QEMU QMP Reference Manual"); ours begin with ``kvmkit-`` and ``Kvmkit``. From these tables come
``query-qmp-schema``, the check of arguments, and the tests' check of answers. A
member's name with ``*`` in front is optional; ``[T]`` is an array.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["BUILTINS", "COMMANDS", "ENUMS", "EVENTS", "OBJECTS", "check", "introspect"]

BUILTINS = {
    "str": "string",
    "int": "int",
    "number": "number",
    "bool": "boolean",
    "null": "null",
    "any": "value",
}
"""The built-in types and the JSON types they are."""

ENUMS = {
    "RunState": (
        "running", "paused", "prelaunch", "shutdown", "guest-panicked", "internal-error",
    ),
    "ShutdownCause": (
        "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui",
        "guest-shutdown", "guest-reset", "guest-panic",
    ),
    "GuestPanicAction": ("pause", "poweroff", "run"),
    "QMPCapability": ("oob",),
    "SysEmuTarget": ("x86_64",),
    "SchemaMetaType": ("builtin", "enum", "array", "object", "alternate", "command", "event"),
    "KvmkitLogSource": ("console", "kernel"),
}  # fmt: skip

OBJECTS: dict[str, dict[str, str]] = {
    "Empty": {},
    "StatusInfo": {"status": "RunState", "running": "bool"},
    "NameInfo": {"*name": "str"},
    "VersionTriple": {"major": "int", "minor": "int", "micro": "int"},
    "VersionInfo": {"qemu": "VersionTriple", "package": "str"},
    "CpuInstanceProperties": {"*socket-id": "int", "*core-id": "int", "*thread-id": "int"},
    "CpuInfoFast": {
        "cpu-index": "int",
        "qom-path": "str",
        "thread-id": "int",
        "*props": "CpuInstanceProperties",
        "target": "SysEmuTarget",
    },
    "KvmInfo": {"enabled": "bool", "present": "bool"},
    "BlockInfo": {
        "device": "str",
        "*qdev": "str",
        "type": "str",
        "removable": "bool",
        "locked": "bool",
    },
    "CommandInfo": {"name": "str"},
    "EventInfo": {"name": "str"},
    "TargetInfo": {"arch": "SysEmuTarget"},
    "MemoryInfo": {"base-memory": "int", "*plugged-memory": "int"},
    "SchemaMember": {"name": "str", "*type": "str", "*default": "any", "*features": "[str]"},
    "SchemaInfo": {
        "name": "str",
        "meta-type": "SchemaMetaType",
        "*features": "[str]",
        "*json-type": "str",
        "*members": "[SchemaMember]",
        "*values": "[str]",
        "*element-type": "str",
        "*arg-type": "str",
        "*ret-type": "str",
        "*allow-oob": "bool",
    },
    "KvmkitEnding": {"kind": "str", "reason": "str", "detail": "str", "exit-code": "int"},
    "KvmkitInfo": {
        "name": "str",
        "pid": "int",
        "version": "str",
        "state": "str",
        "kernel": "str",
        "command-line": "str",
        "engine": "str",
        "cpus": "int",
        "memory": "int",
        "memory-used": "int",
        "uptime": "number",
        "guest-time": "number",
        "directory": "str",
        "*ending": "KvmkitEnding",
    },
    "KvmkitLog": {"data": "str", "total": "int"},
    "KvmkitCpuStat": {"cpu-index": "int", "counts": "any"},
    "KvmkitPortStat": {"name": "str", "sent": "int"},
    "KvmkitStat": {
        "time": "number",
        "engine": "str",
        "machine": "any",
        "cpus": "[KvmkitCpuStat]",
        "serial": "[KvmkitPortStat]",
        "memory-used": "int",
    },
    "KvmkitCpuDebug": {
        "cpu-index": "int",
        "registers": "any",
        "text": "str",
        "stack": "str",
    },
    "KvmkitHeard": {"heard": "bool"},
    "KvmkitAttached": {"log-bytes": "int"},
    "KvmkitBytes": {"data": "str"},
}

COMMANDS: dict[str, tuple[dict[str, str], str]] = {
    "qmp_capabilities": ({"*enable": "[QMPCapability]"}, "Empty"),
    "query-status": ({}, "StatusInfo"),
    "query-name": ({}, "NameInfo"),
    "query-version": ({}, "VersionInfo"),
    "query-cpus-fast": ({}, "[CpuInfoFast]"),
    "query-kvm": ({}, "KvmInfo"),
    "query-target": ({}, "TargetInfo"),
    "query-memory-size-summary": ({}, "MemoryInfo"),
    "query-block": ({}, "[BlockInfo]"),
    "query-commands": ({}, "[CommandInfo]"),
    "query-events": ({}, "[EventInfo]"),
    "query-qmp-schema": ({}, "[SchemaInfo]"),
    "stop": ({}, "Empty"),
    "cont": ({}, "Empty"),
    "system_reset": ({}, "Empty"),
    "system_powerdown": ({}, "Empty"),
    "inject-nmi": ({}, "Empty"),
    "quit": ({}, "Empty"),
    "human-monitor-command": ({"command-line": "str", "*cpu-index": "int"}, "str"),
    "kvmkit-info": ({}, "KvmkitInfo"),
    "kvmkit-snapshot": ({"path": "str"}, "Empty"),
    "kvmkit-rename": ({"name": "str"}, "Empty"),
    "kvmkit-powerdown": ({}, "KvmkitHeard"),
    "kvmkit-log": ({"*source": "KvmkitLogSource"}, "KvmkitLog"),
    "kvmkit-send": ({"data": "str"}, "Empty"),
    "kvmkit-console": ({"*input": "bool", "*replay": "bool"}, "KvmkitAttached"),
    "kvmkit-resize": ({"rows": "int", "columns": "int"}, "Empty"),
    "kvmkit-stat": ({}, "KvmkitStat"),
    "kvmkit-debug": ({}, "[KvmkitCpuDebug]"),
    "kvmkit-sysrq": ({"key": "str"}, "KvmkitHeard"),
    "kvmkit-memory": (
        {"address": "int", "size": "int", "*virtual": "bool", "*cpu-index": "int"},
        "KvmkitBytes",
    ),
}
"""Each command's arguments and what it returns."""

EVENTS: dict[str, dict[str, str]] = {
    "SHUTDOWN": {"guest": "bool", "reason": "ShutdownCause"},
    "POWERDOWN": {},
    "RESET": {"guest": "bool", "reason": "ShutdownCause"},
    "STOP": {},
    "RESUME": {},
    "GUEST_PANICKED": {"action": "GuestPanicAction"},
}


def check(value: Any, kind: str) -> str:
    """What is wrong with ``value`` as a ``kind``, where it is; "" if nothing."""
    if kind.startswith("["):
        if not isinstance(value, list):
            return "expected: array"
        wrong = [(index, check(entry, kind[1:-1])) for index, entry in enumerate(value)]
        return next((f"[{index}] {text}" for index, text in wrong if text), "")
    if kind in ENUMS:
        if not isinstance(value, str):
            return "expected: string"
        return "" if value in ENUMS[kind] else f"does not accept value {value!r}"
    if kind in BUILTINS:
        return "" if _is_builtin(value, kind) else f"expected: {BUILTINS[kind]}"
    if not isinstance(value, dict):
        return "expected: object"
    return check_members(value, OBJECTS[kind])


def check_members(value: Mapping[str, Any], members: Mapping[str, str]) -> str:
    """What is wrong with an object of these members, in QEMU's words; "" if nothing."""
    known = {name.lstrip("*"): (kind, name[0] == "*") for name, kind in members.items()}
    for name in value:
        if name not in known:
            return f"Parameter '{name}' is unexpected"
    for name, (kind, optional) in known.items():
        if name not in value:
            if not optional:
                return f"Parameter '{name}' is missing"
        elif text := check(value[name], kind):
            if text.startswith("expected"):
                return f"Invalid parameter type for '{name}', {text}"
            return text if text.startswith(("Param", "Inval")) else f"Parameter '{name}' {text}"
    return ""


def _is_builtin(value: Any, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "any":
        return True
    return isinstance(value, {"str": str, "bool": bool, "null": type(None)}[kind])


def introspect() -> list[dict[str, Any]]:
    """All of it as ``SchemaInfo`` (QEMU ``qapi/introspect.json``).

    Types keep their names here, where QEMU hides them behind numbers.
    """
    found: list[dict[str, Any]] = []
    arrays: set[str] = set()

    def members(of: Mapping[str, str]) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = []
        for name, kind in of.items():
            if kind.startswith("["):
                arrays.add(kind)
            result.append({"name": name.lstrip("*"), "type": kind})
            if name.startswith("*"):
                result[-1]["default"] = None
        return result

    def arguments(name: str, of: Mapping[str, str]) -> str:
        if not of:
            return "Empty"
        found.append({"name": name, "meta-type": "object", "members": members(of)})
        return name

    for name, (takes, gives) in COMMANDS.items():
        if gives.startswith("["):
            arrays.add(gives)
        kinds = {"arg-type": arguments(f"{name}-arg", takes), "ret-type": gives}
        found.append({"name": name, "meta-type": "command", **kinds})
    for name, carries in EVENTS.items():
        kind = arguments(f"{name}-arg", carries)
        found.append({"name": name, "meta-type": "event", "arg-type": kind})
    for name, of in OBJECTS.items():
        found.append({"name": name, "meta-type": "object", "members": members(of)})
    for name, values in ENUMS.items():
        each = [{"name": value} for value in values]
        found.append({"name": name, "meta-type": "enum", "members": each, "values": list(values)})
    for name, kind in BUILTINS.items():
        found.append({"name": name, "meta-type": "builtin", "json-type": kind})
    for name in sorted(arrays):
        found.append({"name": name, "meta-type": "array", "element-type": name[1:-1]})
    return found
