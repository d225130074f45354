"""``kvmkit doctor``: what works here, what does not, and the command that mends it."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "Finding", "examine", "main"]

COMMAND = Command(
    "kvmkit doctor",
    "Say which CPU engine will be used and why, what is missing, and how to mend it.\n"
    "Ends with 0 when a kernel can be run here, else with 1.",
    (Option("--json", "", "for programs"),),
)

GOOD, POOR, BAD = "ok", "limited", "missing"


class Finding:
    """One thing looked at: ``state`` is "ok", "limited" or "missing"; ``mend`` may be empty."""

    __slots__ = ("mend", "state", "text", "what")

    def __init__(self, what: str, state: str, text: str, mend: str = "") -> None:
        self.what = what
        self.state = state
        self.text = text
        self.mend = mend

    def record(self) -> dict[str, str]:
        """For --json."""
        return {"what": self.what, "state": self.state, "text": self.text, "mend": self.mend}


def main(arguments: Sequence[str]) -> int:
    """Look and tell; 0 when some engine works."""
    parsed = COMMAND.parse(arguments)
    if parsed is None:
        return 0
    engine, why, findings = examine()
    if parsed["json"]:
        import json

        record = {"engine": engine, "why": why, "findings": [one.record() for one in findings]}
        print(json.dumps(record, indent=2))
    else:
        _tell(engine, why, findings)
    return 0 if engine else 1


def examine() -> tuple[str, str, list[Finding]]:
    """The engine that ``--engine auto`` takes ("" if none can run), why, and all findings."""
    from kvmkit.engine.kvm.probe import probe

    verdict = probe()
    soft = _soft()
    findings = [
        Finding(
            "/dev/kvm",
            GOOD if verdict.native else POOR if verdict.usable else BAD,
            _kvm_trouble() or verdict.why,
            _kvm_mend() or verdict.mend,
        ),
    ]
    if soft.state != GOOD:
        findings += [_compiler(), _headers()]
    findings += [soft, _kernel(), _busybox(), _packages()]
    if verdict.native:
        return "kvm", "it runs kernels on this CPU itself", findings
    if soft.state == GOOD:
        return "soft", _why_not_kvm(verdict.usable), findings
    return "", f"the software CPU is not built, and {_why_not_kvm(verdict.usable)}", findings


def _why_not_kvm(usable: bool) -> str:
    return "KVM only emulates kernel code here" if usable else "/dev/kvm cannot be used"


def _tell(engine: str, why: str, findings: list[Finding]) -> None:
    from textwrap import wrap

    names = {"kvm": "KVM", "soft": "the software CPU", "": "no engine"}
    print(f"kvmkit uses {names[engine]}: {why}.\n")
    left = max(len(one.what) for one in findings)
    for one in findings:
        head = f"  {one.what:<{left}}  {one.state:<7}  "
        lines = wrap(
            one.text, max(96 - len(head), 40), break_on_hyphens=False, break_long_words=False
        )
        if one.mend and one.state != GOOD:
            lines.append(f"-> {one.mend}")
        for line in lines:
            print(f"{head}{line}")
            head = " " * len(head)


def _kvm_trouble() -> str:
    """Why there is no usable /dev/kvm, in more detail than opening it tells; "" if it opens."""
    import os

    if not os.path.exists("/dev/kvm"):
        if _cpu_flags() & {"vmx", "svm"}:
            return "there is no /dev/kvm, though this CPU can: its module is not loaded"
        return "there is no /dev/kvm, and this CPU shows no VMX or SVM"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is there, but you may not use it"
    return ""


def _kvm_mend() -> str:
    import os

    if not os.path.exists("/dev/kvm"):
        flags = _cpu_flags()
        if "vmx" in flags:
            return "sudo modprobe kvm_intel"
        if "svm" in flags:
            return "sudo modprobe kvm_amd"
        return "switch on virtualisation in the firmware, or nested virtualisation for this VM"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        group = _group("/dev/kvm")
        if group in ("", "root"):
            return "sudo chmod a+rw /dev/kvm   (until the next boot)"
        return f"sudo usermod -aG {group} $USER   (then log in again)"
    return ""


def _group(path: str) -> str:
    import grp
    import os

    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (KeyError, OSError):
        return ""


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def _soft() -> Finding:
    try:
        import kvmkit.engine.soft._core  # noqa: F401
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        return Finding(
            "software CPU",
            BAD,
            "not built" if missing else f"built, but it does not load: {error}",
            _rebuild(),
        )
    return Finding("software CPU", GOOD, "built, and runs everywhere")


def _rebuild() -> str:
    """The command that builds the core: installing again from where this came from."""
    import os
    import sys

    import kvmkit

    root = os.path.dirname(os.path.dirname(kvmkit.__file__ or ""))
    if os.path.exists(f"{root}/setup.py"):
        what = f"--editable {root}"
    else:
        what = _origin() or "--no-binary kvmkit kvmkit"
    return f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir {what}"


def _origin() -> str:
    """The folder or address it was installed from, or "" (PyPA, "Recording the Direct URL")."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        record = json.loads(distribution("kvmkit").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(record.get("url", "")).removeprefix("file://")


def _compiler() -> Finding:
    from shutil import which

    found = which("gcc") or which("cc") or which("clang")
    if found:
        return Finding("C compiler", GOOD, found)
    return Finding("C compiler", BAD, "needed to build the software CPU", _apt("gcc libc6-dev"))


def _headers() -> Finding:
    import os
    import sysconfig

    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if os.path.exists(header):
        return Finding("Python headers", GOOD, header)
    return Finding("Python headers", BAD, "needed to build the software CPU", _apt("python3-dev"))


def _apt(packages: str) -> str:
    return f"sudo apt-get install {packages}"


def _kernel() -> Finding:
    from kvmkit.cli.session import first_kernel
    from kvmkit.errors import KvmkitError

    try:
        return Finding("kernel", GOOD, first_kernel())
    except KvmkitError as error:
        text = str(error).partition(";")[0]
        return Finding("kernel", BAD, text, "kvmkit image pull linux-image-cloud-amd64")


def _busybox() -> Finding:
    from kvmkit.errors import KvmkitError
    from kvmkit.guest.initramfs import busybox_initramfs
    from kvmkit.images import default_busybox

    mend = "kvmkit image pull busybox-static"
    path = default_busybox()
    if path is None:
        return Finding("busybox", BAD, "needed for a shell or a command in the guest", mend)
    try:
        busybox_initramfs(path)
    except KvmkitError as error:
        return Finding("busybox", BAD, str(error), mend)
    return Finding("busybox", GOOD, path)


def _packages() -> Finding:
    from shutil import which

    missing = [tool for tool in ("apt-get", "apt-cache") if not which(tool)]
    if missing:
        return Finding(
            "apt",
            POOR,
            f"no {' and no '.join(missing)}: kvmkit image pull needs Debian's",
            "name kernels with -k and initial RAM disks with -i",
        )
    return Finding("apt", GOOD, "kvmkit image pull can fetch kernels")
