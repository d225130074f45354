"""Disks as users name them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit import VM
from kvmkit.backends.disk_options import DiskOptions, parse_disk
from kvmkit.config import VmConfig
from kvmkit.errors import UsageError


def test_words():
    """Every word of --disk."""
    assert parse_disk("a.img") == DiskOptions(path="a.img")
    assert parse_disk("a,,b.img,ro") == DiskOptions(path="a,b.img", read_only=True)
    assert parse_disk("a,snapshot,format=qcow2,serial=one,queues=4") == DiskOptions(
        path="a", snapshot=True, format="qcow2", serial="one", queues=4
    )
    assert parse_disk(Path("a,ro")) == DiskOptions(path="a,ro")


@pytest.mark.parametrize(
    "text",
    [
        "", ",ro", "a,rw", "a,ro=1", "a,format", "a,format=vmdk", "a,queues=0", "a,queues=17",
        "a,queues=x", "a,queues=-1", "a,queues=9999999", "a,serial=" + "x" * 21, "a,serial=\t",
        "a,serial=ä", "a,", "a\0b",
    ],
)  # fmt: skip
def test_what_cannot_be_meant(text):
    """Told with the word, and what there is."""
    with pytest.raises(UsageError):
        parse_disk(text)


@given(
    path=st.text(min_size=1).filter(lambda text: "\0" not in text),
    read_only=st.booleans(),
    snapshot=st.booleans(),
    format=st.sampled_from(["", "raw", "qcow2"]),
    serial=st.text("abc ,=", max_size=20),
    queues=st.integers(1, 16),
)
def test_as_text_and_back(**fields):
    """A VM's configuration keeps disks as words."""
    options = DiskOptions(**fields)
    assert parse_disk(str(options)) == options


def test_in_a_configuration():
    """Of a VM, from Python and from a file."""
    vm = VM("kernel", disks=["a.img,ro", Path("b.img"), DiskOptions(path="c", queues=2)])
    assert vm.config.disks == ("a.img,ro", "b.img", "c,queues=2")
    assert VmConfig.from_toml(vm.config.to_toml()) == vm.config
    config = VmConfig.from_toml('disks = ["a.img,ro", "/b"]', base="/base")
    assert config.disks == ("/base/a.img,ro", "/b")
    with pytest.raises(UsageError, match="unknown word 'rw'"):
        VmConfig.from_toml('disks = ["a.img,rw"]')
    with pytest.raises(UsageError, match="unknown word"):
        VM("kernel", disks=["a,rw"])
