"""A VM's configuration in files: what is written is read again, and mistakes name their field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit import VM, VmConfig
from kvmkit.errors import FileTrouble, UsageError
from tests.cli.command import kvmkit

TEXT = st.text(st.characters(exclude_characters="\0\n", exclude_categories=("Cs",)), max_size=20)
CONFIGS = st.builds(
    VmConfig,
    kernel=TEXT,
    initrd=st.lists(TEXT, max_size=3).map(tuple),
    cmdline=TEXT,
    cpus=st.integers(1, 64),
    memory=st.integers(512, 1 << 20).map(lambda pages: pages * 4096),
    engine=st.sampled_from(("auto", "kvm", "soft")),
    name=st.sampled_from(("", "box", "quiet-otter.2")),
    kernel_log=TEXT,
    timeout=st.floats(0, 1e6) | st.integers(0, 100),
    hang_timeout=st.floats(0, 1e6),
    reboot=st.booleans(),
    bare_cmdline=st.booleans(),
    huge_pages=st.sampled_from(("", "thp")),
)


@given(CONFIGS)
@settings(deadline=None)
def test_round_trip(config: VmConfig) -> None:
    """Through TOML and JSON, every value."""
    assert VmConfig.from_toml(config.to_toml()) == config
    assert VmConfig.from_json(config.to_json()) == config


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
@settings(deadline=None)
def test_any_text(text: str) -> None:
    """A configuration, or a UsageError."""
    for read in (VmConfig.from_toml, VmConfig.from_json):
        try:
            read(text).check()
        except UsageError:
            pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memroy = '1G'", "memroy: unknown field"),
        ("memory = 'lots'", "memory: expected a size such as '512M', or bytes, found 'lots'"),
        ("memory = true", "memory: expected a size"),
        ("memory = 4096", "memory: "),
        ("cpus = 'two'", "cpus: expected a whole number, found 'two'"),
        ("cpus = 0", "cpus: expected 1 to 64, found 0"),
        ("cpus = 1.5", "cpus: expected a whole number"),
        ("kernel = 3", "kernel: expected text, found 3"),
        ("initrd = [1]", "initrd: expected a path or an array of paths"),
        ("engine = 'qemu'", "engine: expected one of auto, kvm, soft, found 'qemu'"),
        ("name = 'a/b'", "name: a VM's name has"),
        ("timeout = -1", "timeout: expected seconds"),
        ("hang_timeout = 'x'", "hang_timeout: expected seconds"),
        ("reboot = 1", "reboot: expected true or false, found 1"),
        ("cmdline = 'a\\nb'\ncmdline", "not TOML"),
        ('cmdline = "a\\nb"', "cmdline: expected one line"),
        ('kernel = "a\\u0000"', "kernel: expected text without zero bytes"),
        ("huge_pages = 'big'", "huge_pages: expected thp or hugetlb"),
    ],
)
def test_mistakes_name_their_field(text: str, words: str) -> None:
    """What was expected and what was found."""
    with pytest.raises(UsageError) as error:
        VmConfig.from_toml(text)
    assert words in str(error.value)


def test_a_near_miss_gets_a_hint() -> None:
    """The field that was meant."""
    with pytest.raises(UsageError) as error:
        VmConfig.from_json('{"memroy": 1}')
    assert error.value.hint == "did you mean 'memory'?"


def test_files(tmp_path: Path) -> None:
    """Paths are relative to the file; errors name it."""
    path = tmp_path / "vm.toml"
    path.write_text('kernel = "bzImage"\ninitrd = ["a", "/b"]\nhang-timeout = 0\n')

    config = VmConfig.load(path)

    assert config.kernel == f"{tmp_path}/bzImage" and config.initrd == (f"{tmp_path}/a", "/b")
    assert config.arguments()["hang_timeout"] is None
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"vm\.toml: expected UTF-8"):
        VmConfig.load(path)
    with pytest.raises(FileTrouble, match=r"none\.toml: the configuration: No such file"):
        VmConfig.load(tmp_path / "none.toml")


def test_a_vm_and_its_configuration(polite: Path) -> None:
    """From one to the other and back."""
    config = VmConfig(
        kernel=str(polite), cpus=2, memory=64 << 20, name="box", timeout=5, cmdline="quiet"
    )

    assert VM.from_config(config).config == config
    assert VM(polite, hang_timeout=None).config.hang_timeout == 0
    with pytest.raises(UsageError, match="kernel: expected a path"):
        VM.from_config(VmConfig())


def test_run_config(tmp_path: Path, polite: Path, engine: str) -> None:
    """A file for kvmkit run; the command line wins; --dump-config gives it back."""
    path = tmp_path / "vm.toml"
    path.write_text(f'kernel = "{polite}"\nmemory = "32M"\ntimeout = 30\nname = "from-file"\n')

    dumped = kvmkit("run", "--config", path, "--cpus", "2", "--dump-config")
    config = VmConfig.from_toml(dumped.stdout)
    ended = kvmkit("run", "--config", path, "--engine", engine, "--timeout", "0.2")
    path.write_text("cpus = 'x'")
    wrong = kvmkit("run", "--config", path)

    assert (config.name, config.cpus, config.memory) == ("from-file", 2, 32 << 20)
    assert config.kernel == str(polite)
    assert ended.returncode == 124, ended.stderr
    assert wrong.returncode == 2 and "vm.toml: cpus: expected a whole number" in wrong.stderr
