"""Shares under Linux's own virtiofs. Needs kernels with their modules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.backends.fuse.share import Share
from kvmkit.board.power import EndKind
from tests.virtio.linux_guest import module_initrd

pytestmark = [pytest.mark.slow, pytest.mark.soft]

MOUNT = "mount -t virtiofs shared /mnt || echo no mount\n"


def run(kernel, busybox, tmp_path, script, *, timeout=100, cpus=1, **options):
    """Run ``script`` with the directory ``share`` on /mnt; the console's lines."""
    initrd = module_initrd(tmp_path, kernel, busybox, ("virtio_pci", "virtiofs"), MOUNT + script)
    vm = VM(kernel, initrd=initrd, cmdline="quiet", cpus=cpus, engine="soft", timeout=timeout)
    vm.add_virtio(Share(tmp_path / "share", tag="shared", **options))
    ending = vm.run()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    return vm.console_log.decode().splitlines()


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """An empty directory to share."""
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compile a C file beside this one to a static program; skips without gcc."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc (apt install gcc libc6-dev)")

    def compile(name: str) -> Path:
        program = tmp_path_factory.mktemp("programs") / name.removesuffix(".c")
        source = Path(__file__).with_name(name)
        subprocess.run(["gcc", "-static", "-O1", "-o", program, source], check=True)
        return program

    return compile


@pytest.mark.parametrize("cache", ["auto", "always", "never"])
def test_a_read_only_share_is_read_and_not_written(kernel, busybox, tmp_path, share, cache):
    """Everything there is found; every change is refused and the host's directory stays."""
    (share / "folder/deep").mkdir(parents=True)
    (share / "folder/file").write_bytes(bytes(range(256)) * 8192)
    (share / "link").symlink_to("folder/file")
    os.link(share / "folder/file", share / "second")
    before = sorted(path.stat().st_mtime_ns for path in share.rglob("*"))
    log = run(
        kernel, busybox, tmp_path,
        "cat /mnt/link | sha256sum; sha256sum < /mnt/second; find /mnt | sort\n"
        "touch /mnt/new; rm /mnt/second; echo x >> /mnt/folder/file; mkdir /mnt/d\n"
        "mv /mnt/link /mnt/other; chmod 0 /mnt/link; rmdir /mnt/folder/deep\n"
        "df /mnt | grep -c shared; umount /mnt && mount -t virtiofs shared /mnt && ls /mnt | cat\n",
        read_only=True, cache=cache,
    )  # fmt: skip
    digest = subprocess.run(
        ["sha256sum", share / "second"], capture_output=True, text=True, check=True
    )
    assert [line[:64] for line in log if line.endswith("  -")] == [digest.stdout[:64]] * 2
    found = [line for line in log if line.startswith("/mnt")]
    names = ["folder", "folder/deep", "folder/file", "link", "second"]
    assert found == ["/mnt", *[f"/mnt/{name}" for name in names]]
    assert sum("Read-only file system" in line for line in log) == 7
    assert log.count("second") == 1
    assert sorted(path.stat().st_mtime_ns for path in share.rglob("*")) == before


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_posix_semantics_hold(kernels, busybox, tmp_path, share, compiled, cache):
    """Links, renames, xattrs, O_TMPFILE, mappings, 10000 names, holes, owners and more."""
    release = sorted(kernels, key=lambda name: ("cloud" in name, name))[
        -1 if cache == "auto" else 0
    ]
    shutil.copy(compiled("test_fs_posix.c"), share / "posix")
    (share / "work").mkdir()
    log = run(kernels[release], busybox, tmp_path, "/mnt/posix /mnt/work\n", cache=cache)
    results = [line for line in log if line.startswith(("ok ", "FAILED ", "skipped "))]
    assert not [line for line in results if line.startswith("FAILED")], results
    assert len([line for line in results if line.startswith("ok ")]) == 16


def test_what_the_host_changes_is_seen(kernel, busybox, tmp_path, share):
    """A file rewritten in place, replaced or made by the host has its new content in the guest."""
    for name in ("rewritten", "replaced"):
        (share / name).write_text("before")
    wait = "while [ ! -e /mnt/go ]; do sleep 0.1; done; sleep 1.1\n"
    initrd = module_initrd(
        tmp_path, kernel, busybox, ("virtio_pci", "virtiofs"),
        MOUNT + "cat /mnt/r*; echo; echo ready\n" + wait + "cat /mnt/r*; echo; rm /mnt/go\n",
    )  # fmt: skip
    vm = VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=60)
    vm.add_virtio(Share(share, tag="shared"))
    with vm:
        vm.start()
        while b"ready" not in vm.console_log and vm.wait(0.05) is None:
            pass
        (share / "rewritten").write_text("AFTER")
        (share / "new").write_text("NEW")
        os.rename(share / "new", share / "replaced")
        (share / "go").touch()
        vm.wait()
        log = vm.console_log.decode()
    assert "beforebefore" in log and "NEWAFTER" in log
    assert not (share / "go").exists()


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_random_changes_of_a_file(kernel, busybox, tmp_path, share, compiled, cache):
    """Writes, mappings, truncations, holes and copies, each step compared with memory."""
    shutil.copy(compiled("test_fs_ranges.c"), share / "ranges")
    script = "for seed in 1 2 3; do /mnt/ranges /mnt/file$seed $seed 400; done\n"
    log = run(kernel, busybox, tmp_path, script, cache=cache)
    assert log.count("ok") == 3, log


STRESSORS = (
    "access chmod dentry dir dirdeep fallocate fcntl filename fpunch fstat getdent hdd iomix "
    "link mknod open rename symlink touch utime xattr"
)


def test_stress_ng_in_a_guest_with_the_hosts_root(kernel, busybox, tmp_path, share):
    """All at once: a program of the host's read-only root on a second, writable share."""
    if not shutil.which("stress-ng"):
        pytest.skip("no stress-ng (apt install stress-ng)")
    options = " ".join(f"--{name} 1" for name in STRESSORS.split())
    script = f"""
mount -t virtiofs -o ro root /mnt && mount -t virtiofs shared /mnt{share}
mount -t proc proc /mnt/proc
chroot /mnt stress-ng {options} --timeout 4s --temp-path {share} --verify 2>&1
echo status $?
"""
    initrd = module_initrd(tmp_path, kernel, busybox, ("virtio_pci", "virtiofs"), script)
    vm = VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=200)
    vm.add_virtio(Share("/", tag="root", read_only=True))
    vm.add_virtio(Share(share, tag="shared"))
    ending = vm.run()
    log = vm.console_log.decode()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    assert "status 0" in log and "successful run completed" in log, log
    assert not list(share.iterdir())


def test_a_snapshot_goes_on_with_its_share(kernel, busybox, tmp_path, share):
    """A file that was open and a directory that was entered are there after a restore."""
    (share / "d").mkdir()
    (share / "d/file").write_text("first\nsecond\n")
    script = MOUNT + (
        "cd /mnt/d; exec 3< file; read line <&3; echo $line; echo ready\n"
        "while [ ! -e go ]; do sleep 0.1; done; cat <&3; cat file; rm go; cd /\n"
    )
    initrd = module_initrd(tmp_path, kernel, busybox, ("virtio_pci", "virtiofs"), script)
    with VM(kernel, initrd=initrd, cmdline="quiet", engine="soft", timeout=60) as vm:
        vm.add_virtio(Share(share, tag="shared"))
        vm.start()
        while b"ready" not in vm.console_log and vm.wait(0.05) is None:
            pass
        vm.snapshot(tmp_path / "saved")
    (share / "d/go").touch()
    with VM.restore(tmp_path / "saved", engine="soft", timeout=60) as vm:
        vm.add_virtio(Share(share, tag="shared"))
        vm.start()
        ending = vm.wait()
        log = vm.console_log.decode().split()
    assert ending.kind is EndKind.POWERED_OFF, ending.detail
    assert log.count("second") == 2 and not (share / "d/go").exists()
