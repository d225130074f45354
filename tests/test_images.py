"""Pulling, listing and removing images, with apt played by small scripts."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit import images
from kvmkit.deb import members, unpack_deb
from kvmkit.errors import FileTrouble, KvmkitError
from kvmkit.packages import PackageTrouble, check_name

KERNEL = "linux-image-6.1.0-9-cloud-amd64"
RELEASE = "6.1.0-9-cloud-amd64"
META = "linux-image-cloud-amd64"

# Both look in $FAKE, or in $FAKE/private when they are given lists of our own. Each call is noted.
APT_CACHE = """#!/bin/sh
echo "apt-cache $*" >> "$FAKE/calls"
case "$*" in *Dir::State=*) from="$FAKE/private" ;; *) from="$FAKE" ;; esac
for name; do :; done
case "$*" in
    *pkgnames*) ls "$from/show" ;;
    *) cat "$from/show/$name" 2> /dev/null || { echo "E: No packages found" >&2; exit 100; } ;;
esac
"""
APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$FAKE/calls"
for last; do :; done
case "$*" in
    *update*)
        [ -f "$FAKE/update-error" ] && { cat "$FAKE/update-error" >&2; exit 100; }
        mv "$FAKE/new" "$FAKE/private" 2> /dev/null; exit 0 ;;
esac
error="$FAKE/download-error"
case "$*" in *Dir::State=*) ;; *) [ -f "$FAKE/stale" ] && error="$FAKE/stale" ;; esac
[ -f "$error" ] && { cat "$error" >&2; exit 100; }
[ -f "$FAKE/slow" ] && sleep 0.4
cp "$FAKE/debs/${last%%=*}.deb" "./${last%%=*}_${last#*=}_amd64.deb"
"""


def deb(files: dict[str, bytes], suffix: str = ".xz", links: dict[str, str] | None = None) -> bytes:
    """A Debian package with ``files`` in it."""
    data = io.BytesIO()
    mode = {".xz": "w:xz", ".gz": "w:gz", "": "w"}[suffix]
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            member.mode = 0o755
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    whole = b"!<arch>\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"c",
        f"data.tar{suffix}": data.getvalue(),
    }
    for name, content in parts.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        whole += header.encode() + content + b"\n" * (len(content) % 2)
    return whole


class FakeApt:
    """A host with apt, in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("bin", "show", "debs", "new/show"):
            (path / name).mkdir(parents=True)
        for name, script in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
            (path / "bin" / name).write_text(script)
            (path / "bin" / name).chmod(0o755)

    def tell(self, name: str, version: str = "1", depends: str = "", where: str = "show") -> None:
        """Have a package in the lists."""
        (self.path / where / name).write_text(
            f"Package: {name}\nVersion: {version}\nDepends: kmod, {depends}\nSize: 7\n\n"
        )

    def kernel(self, content: bytes = b"bzImage") -> None:
        """Have a kernel's package, and the meta package for it."""
        self.tell(META, depends=f"{KERNEL} (= 1)")
        self.tell(KERNEL, depends="linux-base (>= 4.3~), a | b")
        package = deb(
            {
                f"boot/vmlinuz-{RELEASE}": content,
                f"boot/config-{RELEASE}": b"CONFIG_KVM_GUEST=y\n",
                f"boot/System.map-{RELEASE}": b"0 T _text\n",
                f"lib/modules/{RELEASE}/modules.order": b"",
                "usr/share/doc/x": b"",
            }
        )
        (self.path / "debs" / f"{KERNEL}.deb").write_bytes(package)

    def calls(self, what: str) -> int:
        """How often a tool was called."""
        notes = self.path / "calls"
        return notes.read_text().count(what) if notes.exists() else 0


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """A fake host, and a cache of its own."""
    fake = FakeApt(tmp_path / "fake")
    monkeypatch.setenv("FAKE", str(fake.path))
    monkeypatch.setenv("PATH", f"{fake.path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def aside() -> list[str]:
    """What lies in the images' directory besides images and locks."""
    return [
        name
        for name in os.listdir(images.images_directory())
        if name.startswith(".") and not name.startswith(".lock-")
    ]


def test_meta_package_leads_to_its_kernel(apt: FakeApt) -> None:
    """The real package is fetched, its parts are found, the meta package is a name for it."""
    apt.kernel()
    image = images.pull(META)
    assert (image.name, image.version, image.release) == (KERNEL, "1", RELEASE)
    assert image.aliases == (META,)
    assert Path(image.kernel or "").read_bytes() == b"bzImage"
    assert Path(image.config or "").name == "config"
    assert Path(image.system_map or "").name == "System.map"
    assert Path(image.modules or "", "modules.order").exists()
    assert image.busybox is None
    assert aside() == []


def test_busybox_is_an_image_too(apt: FakeApt) -> None:
    """``busybox-static`` gives an executable busybox and no kernel."""
    apt.tell("busybox-static")
    (apt.path / "debs/busybox-static.deb").write_bytes(deb({"bin/busybox": b"elf"}))
    image = images.pull("busybox-static")
    assert image.kernel is None
    assert os.access(image.busybox or "", os.X_OK)
    assert images.default_busybox() == image.busybox


def test_without_dpkg_deb_the_package_is_unpacked_all_the_same(
    apt: FakeApt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own reader of packages does what dpkg-deb does for us."""
    apt.kernel()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert Path(images.pull(KERNEL).kernel or "").read_bytes() == b"bzImage"


def test_second_pull_fetches_nothing(apt: FakeApt) -> None:
    """The version that is there is not fetched again."""
    apt.kernel()
    assert images.pull(META) == images.pull(META)
    assert apt.calls("download") == 1


def test_new_version_replaces_the_old_one(apt: FakeApt) -> None:
    """A pull brings the newest version."""
    apt.kernel()
    images.pull(META)
    apt.kernel(b"newer")
    apt.tell(KERNEL, version="2")
    image = images.pull(META)
    assert image.version == "2"
    assert Path(image.kernel or "").read_bytes() == b"newer"
    assert aside() == []


def test_pulls_at_once_do_the_work_once(apt: FakeApt) -> None:
    """Whoever comes second waits and takes what the first one brought."""
    apt.kernel()
    (apt.path / "slow").touch()
    said: list[str] = []
    found: list[images.Image] = []
    threads = [
        threading.Thread(target=lambda: found.append(images.pull(META, said.append)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 3
    assert apt.calls("download") == 1
    assert f"waiting for another process that fetches {KERNEL}" in said
    assert aside() == []


def test_progress_tells_what_takes_long(apt: FakeApt) -> None:
    """Looking up, fetching with sizes, unpacking."""
    apt.kernel()
    (apt.path / "slow").touch()
    said: list[str] = []
    images.pull(KERNEL, said.append)
    assert said[0] == f"looking up {KERNEL}"
    assert f"fetching {KERNEL}: 0 of 0 MiB" in said
    assert said[-1] == f"unpacking {KERNEL}"


def test_host_without_lists_gets_its_own(apt: FakeApt) -> None:
    """A package only fresh lists know is found in private ones, fetched once a day."""
    apt.tell("busybox-static", where="new/show")
    (apt.path / "debs/busybox-static.deb").write_bytes(deb({"usr/bin/busybox": b"elf"}, ".gz"))
    assert images.pull("busybox-static").busybox
    images.remove("busybox-static")
    assert images.pull("busybox-static").busybox
    assert apt.calls("apt-get -q -o Acquire::Languages=none") == 3
    assert apt.calls(" update") == 1


def test_stale_lists_are_replaced(apt: FakeApt) -> None:
    """A file that the mirror no longer has makes us fetch lists and try again."""
    apt.kernel()
    apt.tell(META, depends=f"{KERNEL} (= 2)", where="new/show")
    apt.tell(KERNEL, version="2", where="new/show")
    (apt.path / "stale").write_text("E: Failed to fetch http://x/y.deb  404  Not Found [IP: 1]\n")
    assert images.pull(META).version == "2"


@pytest.mark.parametrize(
    "name",
    ["", "x", "linux-image-.*", "linux image", "Linux-image", "../x", "-y", "bash+", "bash-"],
)
def test_patterns_and_options_are_no_names(apt: FakeApt, name: str) -> None:
    """apt would take them for something else; it is not even started."""
    with pytest.raises(PackageTrouble, match="not a package name"):
        images.pull(name)
    assert apt.calls("apt") == 0


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """Nothing with a slash, a blank or a wildcard gets through."""
    try:
        assert not set(check_name(text)) & set("/ \t\n*?[]^$|\\~=:")
    except PackageTrouble:
        pass


def test_unknown_package_has_near_matches(apt: FakeApt) -> None:
    """A slip of the pen is answered with what exists."""
    apt.kernel()
    with pytest.raises(PackageTrouble, match="no package linux-image-cluod-amd64") as caught:
        images.pull("linux-image-cluod-amd64")
    assert META in caught.value.hint


def test_name_that_apt_takes_for_a_pattern_is_unknown(apt: FakeApt) -> None:
    """What apt shows under another name is not what was asked for."""
    apt.kernel()
    shutil.copy(apt.path / "show" / KERNEL, apt.path / "show" / "linux-image-6.1")
    with pytest.raises(PackageTrouble, match=r"no package linux-image-6\.1 "):
        images.pull("linux-image-6.1")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("update-error", "W: Temporary failure resolving 'deb.x'\n", "no network .*deb.x"),
        ("update-error", "E: The repository is not signed.\n", "The repository is not signed"),
    ],
)
def test_lists_that_cannot_be_fetched(apt: FakeApt, file: str, text: str, message: str) -> None:
    """Without lists and without a network: the reason in one line."""
    (apt.path / file).write_text(text)
    with pytest.raises(PackageTrouble, match=f"cannot fetch busybox-static: {message}"):
        images.pull("busybox-static")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("E: Failed to fetch http://x  Could not connect to x:80 (1)\n", "no network", "network"),
        ("E: Write error - write (28: No space left on device)\n", "no space", "XDG_CACHE_HOME"),
        ("", "no reason given", "try again"),
    ],
)
def test_download_that_fails(apt: FakeApt, text: str, message: str, hint: str) -> None:
    """The reason and what to do; nothing is left behind."""
    apt.kernel()
    (apt.path / "download-error").write_text(text)
    with pytest.raises(PackageTrouble, match=message) as caught:
        images.pull(KERNEL)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    assert aside() == []
    assert images.list_images() == []


@pytest.mark.parametrize("content", [b"", b"not a package", deb({"x": b""})[:-60]])
def test_damaged_package(apt: FakeApt, content: bytes) -> None:
    """An error, and no half image."""
    apt.kernel()
    (apt.path / f"debs/{KERNEL}.deb").write_bytes(content)
    with pytest.raises(KvmkitError):
        images.pull(KERNEL)
    assert images.list_images() == []
    assert aside() == []


def test_package_without_a_kernel(apt: FakeApt) -> None:
    """What cannot be booted is not kept."""
    apt.tell("hello")
    (apt.path / "debs/hello.deb").write_bytes(deb({"usr/bin/hello": b""}))
    with pytest.raises(PackageTrouble, match="hello holds neither a kernel nor a busybox"):
        images.pull("hello")
    assert images.list_images() == []


def test_host_without_apt(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the tool, the hint the way around."""
    monkeypatch.setenv("PATH", str(apt.path / "nothing"))
    with pytest.raises(PackageTrouble, match="needs apt-cache") as caught:
        images.pull(KERNEL)
    assert "-k" in caught.value.hint


def test_cache_that_cannot_be_written(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the way of the directory is named."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FileTrouble, match="file"):
        images.pull(KERNEL)


def test_remains_of_a_killed_pull_are_cleared_away(apt: FakeApt) -> None:
    """The next pull of the same package removes what lies around."""
    apt.kernel()
    left = Path(images.images_directory(), f".aside-{KERNEL}@dead")
    (left / "deb").mkdir(parents=True)
    images.pull(KERNEL)
    assert aside() == []


def test_list_is_empty_at_first(apt: FakeApt) -> None:
    """No directory, no images, no default."""
    assert images.list_images() == []
    assert images.default_image() is None


def test_remove_by_alias_removes_image_and_alias(apt: FakeApt) -> None:
    """Nothing of it is left; removing it again is an error."""
    apt.kernel()
    images.pull(META)
    assert images.remove(META).name == KERNEL
    assert images.list_images() == []
    assert not os.path.lexists(f"{images.images_directory()}/{META}")
    with pytest.raises(images.NoSuchImage, match=META):
        images.remove(META)


def test_unknown_image_has_near_matches(apt: FakeApt) -> None:
    """A slip of the pen is answered with what was pulled."""
    apt.kernel()
    images.pull(META)
    with pytest.raises(images.NoSuchImage) as caught:
        images.get_image("linux-image-cloud-amd46")
    assert META in caught.value.hint


def test_default_is_the_cloud_kernel_else_the_newest(apt: FakeApt) -> None:
    """The meta package's kernel is taken although another came later."""
    apt.kernel()
    apt.tell("linux-image-7-amd64")
    package = deb({"boot/vmlinuz-7-amd64": b"seven"})
    (apt.path / "debs/linux-image-7-amd64.deb").write_bytes(package)
    images.pull(META)
    images.pull("linux-image-7-amd64")
    assert images.default_image() == images.get_image(META)
    images.remove(META)
    assert images.default_image() == images.get_image("linux-image-7-amd64")


def test_looking_for_the_default_imports_little() -> None:
    """``kvmkit run`` pays for no apt, no tar and no subprocess."""
    code = (
        "import sys, kvmkit.images as i; i.default_image();"
        "bad = {'subprocess', 'tarfile', 'pathlib', 'difflib', 'kvmkit.packages'};"
        "print(sorted(bad & set(sys.modules)))"
    )
    command = [sys.executable, "-S", "-E", "-c", code]
    import subprocess

    root = Path(images.__file__).parent.parent
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_own_reader_takes_files_only(tmp_path: Path, suffix: str) -> None:
    """Regular files with their modes; a link cannot lead a later file astray."""
    package = tmp_path / "p.deb"
    package.write_bytes(deb({"bin/x": b"1"}, suffix, links={"evil": "/"}))
    unpack_deb(str(package), str(tmp_path / "out"))
    assert (tmp_path / "out/bin/x").read_bytes() == b"1"
    assert not os.path.lexists(tmp_path / "out/evil")


def test_own_reader_refuses_to_leave_its_directory(tmp_path: Path) -> None:
    """A name with ".." is an error."""
    package = tmp_path / "p.deb"
    package.write_bytes(deb({"../../x": b"1"}))
    with pytest.raises(FileTrouble, match=r"\.\."):
        unpack_deb(str(package), str(tmp_path / "out"))


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_an_archive_or_an_error(data: bytes, magic: bool) -> None:
    """A damaged archive ends in ValueError or with its members, never in a loop."""
    try:
        list(members(io.BytesIO(b"!<arch>\n" * magic + data)))
    except ValueError:
        pass


@pytest.mark.slow
@pytest.mark.network
def test_busybox_comes_from_the_real_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``busybox-static`` can be pulled on this host, and makes an initramfs."""
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        image = images.pull("busybox-static")
    except PackageTrouble as trouble:
        if "no network" in str(trouble) or "no package" in str(trouble):
            pytest.skip(f"needs a Debian mirror: {trouble}")
        raise
    from kvmkit.guest.initramfs import busybox_initramfs

    assert b"bin/mount\0" in busybox_initramfs(image.busybox or "")
