"""``kvmkit run --config`` and ``--dump-config``: options from a file, and back."""

from __future__ import annotations

from kvmkit.config import VmConfig
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.cli.options import Parsed

__all__ = ["config_words", "dump"]


def config_words(path: str) -> list[str]:
    """The command line's words for a configuration file; the user's own come after and win."""
    config = VmConfig.load(path)
    if config.bare_cmdline or config.huge_pages:
        name = "bare_cmdline" if config.bare_cmdline else "huge_pages"
        raise UsageError(f"{path}: {name}: kvmkit run has no such option; use kvmkit.VM in Python")
    default = VmConfig()
    words: list[str] = []
    for option, name in (
        ("--kernel", "kernel"), ("--params", "cmdline"), ("--cpus", "cpus"), ("--name", "name"),
        ("--engine", "engine"), ("--kernel-log", "kernel_log"), ("--timeout", "timeout"),
    ):  # fmt: skip
        value = getattr(config, name)
        if value != getattr(default, name):
            words.append(f"{option}={value}")
    words.append(f"--mem={config.memory}B")
    words += [f"--initrd={path}" for path in config.initrd]
    words += [f"--disk={disk}" for disk in config.disks]
    words += [f"--net={net}" for net in config.nets]
    # the option has no way to say "never"; 30 years come near
    words.append(f"--hang-timeout={config.hang_timeout or 999_999_999}")
    if not config.reboot:
        words.append("--no-reboot")
    return words


def dump(options: Parsed) -> str:
    """The options as a TOML document."""
    from kvmkit.backends.net.options import net_words
    from kvmkit.cli.session import find_kernel

    kernel = find_kernel(options["kernel"], options.words, options.rest is not None)
    more = {} if options["mem"] is None else {"memory": options["mem"]}
    hang = options["hang_timeout"]
    config = VmConfig(
        kernel=kernel,
        initrd=tuple(options["initrd"]),
        cmdline=" ".join(options["params"]),
        cpus=options["cpus"],
        engine=options["engine"],
        name=options["name"] or "",
        kernel_log=options["kernel_log"] or "",
        timeout=options["timeout"] or 0,
        hang_timeout=0 if hang >= 999_999_999 else hang,
        reboot=not options["no_reboot"],
        disks=tuple(options["disk"]),
        nets=net_words(options["net"], options["publish"]),
        **more,
    )
    return config.check().to_toml()
