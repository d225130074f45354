"""What to do when ``/dev/kvm`` is missing or may not be opened: the command that mends it.

Imported only when something is wrong.
"""

from __future__ import annotations

import os
import stat

__all__ = ["missing_hint", "permission_hint"]


def permission_hint(path: str) -> str:
    """The command that lets this user open ``path``."""
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    try:
        status = os.stat(path)
        group = grp.getgrgid(status.st_gid)
    except (OSError, KeyError):
        return f"sudo setfacl -m u:{user}:rw {path}"
    readable = status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP
    if not readable or group.gr_gid == 0:
        return f"sudo setfacl -m u:{user}:rw {path}"
    if status.st_gid in os.getgroups():
        return (
            f"the group {group.gr_name} may open it and you are in it: a container or a security"
            " module forbids it; start the container with --device /dev/kvm"
        )
    if user in group.gr_mem:
        return f"you are in the group {group.gr_name}, but not since this login: log in again"
    return f"sudo usermod -aG {group.gr_name} {user}   (then log in again)"


def missing_hint(path: str) -> str:
    """What brings ``path`` into being on this host, as far as /proc tells."""
    flags: set[str] = set()
    vendor = ""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.startswith("vendor_id"):
                    vendor = value.strip()
                elif name.startswith("flags"):
                    flags = set(value.split())
                    break
    except OSError:
        pass
    if "vmx" in flags or "svm" in flags:
        module = "kvm_intel" if "vmx" in flags else "kvm_amd"
        if os.path.isdir("/sys/module/kvm"):
            return f"KVM is loaded; in a container, start it with --device {path}"
        return f"sudo modprobe {module}"
    if "hypervisor" in flags:
        return (
            "this host is itself a virtual machine without nested virtualisation:"
            " switch it on where that machine is run, or use --engine soft"
        )
    feature = "SVM" if vendor == "AuthenticAMD" else "VT-x"
    return f"switch on {feature} in the firmware's set-up, or use --engine soft"
