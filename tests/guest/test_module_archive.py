"""The archive with modules: its contents, its cache, and a guest that loads it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvmkit.errors import FileTrouble
from kvmkit.guest.command import command_archive
from kvmkit.guest.initramfs import busybox_initramfs
from kvmkit.guest.module_archive import cached_modules, modules_archive
from kvmkit.guest.modules import ModuleTree, find_module_tree
from tests.guest.guests import Guest, init_program
from tests.guest.modules_made import RELEASE, module_file, module_tree
from tests.guest.test_command import member

MODULES = {
    "kernel/a/low.ko": module_file("depends="),
    "kernel/b/high.ko": module_file("depends=low"),
}


@pytest.fixture
def tree(tmp_path: Path) -> ModuleTree:
    """Two modules, one of which needs the other."""
    return ModuleTree(module_tree(tmp_path / "modules", MODULES))


def test_archive_holds_modules_and_their_order(tree: ModuleTree) -> None:
    """Where modprobe would look for them, and the list that the guest loads."""
    archive = modules_archive(tree, tree.resolve(["high"]))
    places = [f"lib/modules/{RELEASE}/kernel/{name}.ko" for name in ("a/low", "b/high")]
    assert member(archive, places[1]) == MODULES["kernel/b/high.ko"]
    assert member(archive, "kvmkit/modules").decode() == "".join(f"/{place}\n" for place in places)


def test_cache_is_filled_once(
    tree: ModuleTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time, in whatever order, no module and no list is read."""
    first = cached_modules(tree, ["high", "low"], tmp_path / "cache")
    monkeypatch.setattr(ModuleTree, "resolve", None)
    again = ModuleTree(tree.directory)
    assert cached_modules(again, ["low", "high"], tmp_path / "cache") == first
    assert first is not None
    assert Path(first).read_bytes().count(b"\x7fELF") == 2


def test_cache_follows_a_module_built_anew(tree: ModuleTree, tmp_path: Path) -> None:
    """As a developer does between two runs."""
    first = cached_modules(tree, ["high"], tmp_path / "cache")
    changed = module_file("depends=low", "author=me")
    Path(tree.directory, "kernel/b/high.ko").write_bytes(changed)
    second = cached_modules(ModuleTree(tree.directory), ["high"], tmp_path / "cache")
    assert second != first
    assert second is not None
    assert changed in Path(second).read_bytes()


def test_cache_makes_what_was_removed(tree: ModuleTree, tmp_path: Path) -> None:
    """An index without its archive does not count, nor one that is damaged."""
    for damage in (Path.unlink, lambda path: None):
        first = cached_modules(tree, ["high"], tmp_path / "cache")
        assert first is not None
        damage(Path(first))
        for index in (tmp_path / "cache").glob("*.index"):
            index.write_text(index.read_text() if damage is Path.unlink else "x")
        again = cached_modules(tree, ["high"], tmp_path / "cache")
        assert again == first
        assert Path(first).exists()


def test_nothing_is_needed_where_all_is_built_in(tmp_path: Path) -> None:
    """No archive, and the second time nobody asks."""
    directory = module_tree(tmp_path / "m", {}, builtin="kernel/drivers/virtio/virtio_pci.ko\n")
    for _ in range(2):
        tree = ModuleTree(directory, release="1")
        assert cached_modules(tree, ["virtio_pci"], tmp_path / "cache") is None


def test_cache_keeps_few(tree: ModuleTree, tmp_path: Path) -> None:
    """Old archives go."""
    for number in range(12):
        Path(tree.directory, "kernel/b/high.ko").write_bytes(module_file(f"n={number}"))
        newest = cached_modules(ModuleTree(tree.directory), ["high"], tmp_path / "cache")
    archives = list((tmp_path / "cache").glob("*.cpio"))
    assert len(archives) == 8
    assert Path(str(newest)) in archives
    assert not list((tmp_path / "cache").glob(".*"))


def test_cache_that_cannot_be_made_is_a_clear_error(tree: ModuleTree, tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FileTrouble, match="file"):
        cached_modules(tree, ["high"], tmp_path / "file/cache")


def test_a_found_archive_takes_about_a_millisecond(
    kernels: dict[str, Path], tmp_path: Path
) -> None:
    """Start-up is a feature; the best of some tries, as the machine may be busy."""
    tree = next(filter(None, map(find_module_tree, kernels.values())), None)
    if tree is None:
        pytest.skip("no modules next to any kernel")
    wanted = ("virtio_pci", "virtio_net", "virtio_blk", "virtiofs", "overlay")
    cached_modules(tree, wanted, tmp_path)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        cached_modules(ModuleTree(tree.directory, release=tree.stated_release), wanted, tmp_path)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.002


@pytest.mark.slow
@pytest.mark.soft
@pytest.mark.parametrize("init", ["agent", "shell"])
def test_guest_loads_them(init: str, kernel: Path, busybox: Path, tmp_path: Path) -> None:
    """A stock kernel's network and file system drivers, with what they need, unpacked by us."""
    tree = find_module_tree(kernel)
    if tree is None:
        pytest.skip("no modules next to the kernel")
    wanted = ["virtio_net", "overlay", "virtiofs"]
    modules = tree.resolve(wanted)
    initrd = busybox_initramfs(busybox, init=init_program(init)) + modules_archive(tree, modules)
    archive = command_archive(["sh", "-c", "cut -d' ' -f1 /proc/modules; uname -r"])
    with Guest(kernel, tmp_path, initrd + archive) as guest:
        output, reports, _ = guest.finish()
    *loaded, release = output.decode().split()
    assert set(loaded) == {module.name for module in modules}
    assert release == tree.release
    assert reports == ["ready", "exit 0"]


@pytest.mark.slow
@pytest.mark.soft
def test_agent_says_which_module_did_not_load(kernel: Path, busybox: Path, tmp_path: Path) -> None:
    """With its error number; the command runs nevertheless."""
    tree = ModuleTree(module_tree(tmp_path / "modules", MODULES))
    archive = modules_archive(tree, tree.resolve(["low"])) + command_archive(["echo", "on"])
    initrd = busybox_initramfs(busybox, init=init_program("agent")) + archive
    with Guest(kernel, tmp_path, initrd) as guest:
        output, reports, _ = guest.finish()
    place = f"/lib/modules/{RELEASE}/kernel/a/low.ko"
    assert reports[0].startswith(f"trouble module {place} ")
    assert (output, reports[1:]) == (b"on\n", ["ready", "exit 0"])
