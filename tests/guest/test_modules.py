"""Which modules a guest needs, in which order, from every kind of tree."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.errors import FileTrouble
from kvmkit.guest.modinfo import module_info, module_name, read_module
from kvmkit.guest.modules import MissingDriver, ModuleTree, find_module_tree
from tests.guest.modules_made import RELEASE, module_file, module_tree

NET = "kernel/drivers/net/virtio_net.ko"
FAILOVER = "kernel/net/core/failover.ko"
RNG = "kernel/drivers/char/hw_random/virtio-rng.ko"

MODULES = {
    NET: module_file("depends=net-failover,virtio"),
    "kernel/net/net_failover.ko": module_file("depends=failover"),
    FAILOVER: module_file("depends="),
    "kernel/drivers/virtio/virtio.ko": module_file("depends="),
    RNG: module_file("depends=virtio"),
}


def names(tree: ModuleTree, *wanted: str, optional: tuple[str, ...] = ()) -> list[str]:
    """The names of what is to be loaded."""
    return [module.name for module in tree.resolve(wanted, optional)]


def test_dependencies_come_first_without_depmod(tmp_path: Path) -> None:
    """Packages bring no modules.dep: the modules themselves are asked."""
    tree = ModuleTree(module_tree(tmp_path, MODULES))
    assert names(tree, "virtio_net") == ["failover", "net_failover", "virtio", "virtio_net"]
    assert tree.release == RELEASE


def test_dependencies_come_first_from_modules_dep(tmp_path: Path) -> None:
    """With modules.dep no module is opened to find them."""
    lines = [
        f"{NET}: kernel/net/net_failover.ko {FAILOVER} kernel/drivers/virtio/virtio.ko",
        f"kernel/net/net_failover.ko: {FAILOVER}",
        f"{FAILOVER}:",
        "kernel/drivers/virtio/virtio.ko:",
    ]
    empty = dict.fromkeys(MODULES, module_file())
    tree = ModuleTree(module_tree(tmp_path, empty, dep="\n".join(lines) + "\n"))
    order = names(tree, "virtio-net")
    assert set(order) == {"failover", "net_failover", "virtio", "virtio_net"}
    assert order.index("failover") < order.index("net_failover") < order.index("virtio_net")
    assert order[-1] == "virtio_net"


@pytest.mark.parametrize("name", ["virtio-rng", "virtio_rng"])
def test_hyphen_and_underscore_are_the_same(tmp_path: Path, name: str) -> None:
    """In the name asked for, the file's name and the dependencies."""
    assert names(ModuleTree(module_tree(tmp_path, MODULES)), name) == ["virtio", "virtio_rng"]


def test_what_is_built_in_needs_no_module(tmp_path: Path) -> None:
    """Neither itself nor as a dependency."""
    some = {path: data for path, data in MODULES.items() if "virtio.ko" not in path}
    lists = {"builtin": "kernel/drivers/virtio/virtio.ko\nkernel/fs/fuse/virtiofs.ko\n"}
    tree = ModuleTree(module_tree(tmp_path, some, **lists))
    assert names(tree, "virtiofs", "virtio-rng") == ["virtio_rng"]


@pytest.mark.parametrize("end", [".o", ".ko"])
@pytest.mark.parametrize("suffix", ["", ".xz", ".zst", ".gz"])
def test_modules_order_finds_compressed_modules(tmp_path: Path, end: str, suffix: str) -> None:
    """It names objects in new build trees, and not how a package compressed the modules."""
    pack = {
        "": bytes,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
        ".gz": gzip.compress,
    }[suffix]
    packed = {path + suffix: pack(data) for path, data in MODULES.items()}
    lines = [path.removesuffix(".ko") + end for path in MODULES]
    order = "\n".join(["kernel/not/here" + end, *lines])
    tree = ModuleTree(module_tree(tmp_path, packed, order=order))
    modules = tree.resolve(["virtio_net"])
    assert [module.name for module in modules][-1] == "virtio_net"
    assert modules[-1].place == NET
    assert read_module(modules[-1].path) == MODULES[NET]
    with pytest.raises(MissingDriver):
        tree.resolve(["here"])


def test_soft_dependencies_are_taken_along_if_they_exist(tmp_path: Path) -> None:
    """Before and behind, by an algorithm's name too; one that leads back is no circle."""
    modules = {
        "kernel/a.ko": module_file("depends=", "softdep=pre: crypto-crc32c none post: b"),
        "kernel/b.ko": module_file("depends=", "softdep=pre: a"),
        "kernel/crc32c_generic.ko": module_file("depends="),
    }
    tree = ModuleTree(module_tree(tmp_path, modules))
    assert names(tree, "a") == ["crc32c_generic", "a", "b"]


def test_soft_dependencies_and_aliases_of_depmod(tmp_path: Path) -> None:
    """modules.softdep and modules.alias, with patterns."""
    lists = {
        "dep": "kernel/a.ko:\nkernel/b.ko:\n",
        "softdep": "# made by depmod\nsoftdep a pre: some-alias\n",
        "alias": "alias some_alias b\nalias virtio:d00000001v* a\nalias fs-thing a\n",
    }
    modules = {"kernel/a.ko": module_file(), "kernel/b.ko": module_file()}
    tree = ModuleTree(module_tree(tmp_path, modules, **lists))
    assert names(tree, "a") == ["b", "a"]
    assert names(tree, "fs-thing") == ["b", "a"]
    assert names(tree, "virtio:d00000001v00001AF4") == ["b", "a"]


def test_missing_driver_names_the_option(tmp_path: Path) -> None:
    """The hint says what to switch on, or that it is off if the configuration is there."""
    directory = module_tree(tmp_path / "m", MODULES)
    with pytest.raises(MissingDriver, match="no driver virtio-blk") as caught:
        ModuleTree(directory).resolve(["virtio_net", "virtio-blk"])
    assert caught.value.hint == "Build it with CONFIG_VIRTIO_BLK (=y or =m)."
    config = tmp_path / "config"
    config.write_text("CONFIG_VIRTIO=y\n# CONFIG_VIRTIO_BLK is not set\n")
    with pytest.raises(MissingDriver) as caught:
        ModuleTree(directory, config=config).resolve(["virtio_blk"])
    assert caught.value.hint == "It was built without CONFIG_VIRTIO_BLK."


def test_optional_ones_may_be_missing(tmp_path: Path) -> None:
    """And are loaded behind the others if they are there."""
    tree = ModuleTree(module_tree(tmp_path, MODULES))
    assert names(tree, "failover", optional=("9p", "virtio-rng")) == [
        "failover",
        "virtio",
        "virtio_rng",
    ]


def test_missing_dependency_is_an_error(tmp_path: Path) -> None:
    """A module that cannot be loaded is no driver; the message says for whom."""
    tree = ModuleTree(module_tree(tmp_path, {RNG: MODULES[RNG]}))
    with pytest.raises(MissingDriver, match="no driver virtio, which virtio_rng needs"):
        tree.resolve(["virtio_rng"])


def test_tree_is_found_next_to_the_kernel(tmp_path: Path) -> None:
    """A pulled image, an installed or unpacked package, and a build tree."""
    image = tmp_path / "image"
    image.mkdir()
    module_tree(image / "modules", MODULES)
    root = tmp_path / "root"
    (root / "boot").mkdir(parents=True)
    (root / "lib/modules").mkdir(parents=True)
    module_tree(root / "lib/modules" / RELEASE, MODULES)
    build = tmp_path / "linux"
    (build / "arch/x86/boot").mkdir(parents=True)
    (build / "include/config").mkdir(parents=True)
    (build / "include/config/kernel.release").write_text("6.9.0-dirty\n")
    module_tree(build, {"drivers/virtio/virtio.ko": module_file()}, order="drivers/virtio/virtio.o")
    for kernel, release, place in (
        (image / "vmlinuz", RELEASE, "kernel/drivers/virtio/virtio.ko"),
        (root / f"boot/vmlinuz-{RELEASE}", RELEASE, "kernel/drivers/virtio/virtio.ko"),
        (build / "arch/x86/boot/bzImage", "6.9.0-dirty", "kernel/drivers/virtio/virtio.ko"),
        (build / "vmlinux", "6.9.0-dirty", "kernel/drivers/virtio/virtio.ko"),
    ):
        kernel.write_bytes(b"")
        tree = find_module_tree(kernel)
        assert tree is not None
        assert tree.release == release
        assert tree.resolve(["virtio"])[0].place == place
    (tmp_path / "bzImage").write_bytes(b"")
    assert find_module_tree(tmp_path / "bzImage") is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a kernel module"),
        (b"\xfd7zXZ\x00rest", "cannot be unpacked"),
        (lzma.compress(module_file())[:-9], "cut off"),
        (gzip.compress(module_file())[:-9], "cut off"),
        (b"\x28\xb5\x2f\xfdrest", "cannot be unpacked"),
        (module_file()[:80], "no table of sections"),
        (module_file().replace(b".modinfo", b".modinfa"), "no section .modinfo"),
    ],
)
def test_damaged_module_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    """One line that says which file and what is wrong with it."""
    tree = ModuleTree(module_tree(tmp_path, {"kernel/a.ko": data}))
    with pytest.raises(FileTrouble, match=message) as caught:
        tree.resolve(["a"])
    assert "kernel/a.ko" in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_bytes_are_a_module_or_a_clear_error(data: st.DataObject) -> None:
    """No file makes the reader of ELF fail in another way."""
    good = bytearray(module_file("depends=a,b"))
    for _ in range(data.draw(st.integers(0, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        module_info("file", cut)
    except FileTrouble:
        pass


def test_names_of_files() -> None:
    """What modprobe calls them."""
    assert module_name("kernel/drivers/virtio-rng.ko.zst") == "virtio_rng"
    assert module_name("a-b.o") == "a_b"


def test_stock_kernels(kernels: dict[str, Path]) -> None:
    """The drivers of our devices, from real packages, each behind what it needs."""
    seen = 0
    for kernel in kernels.values():
        tree = find_module_tree(kernel)
        if tree is None:
            continue
        seen += 1
        wanted = ("virtio_pci", "virtio_net", "virtio_blk", "virtiofs", "overlay")
        order = names(tree, *wanted, optional=("virtio-rng", "9p"))
        assert order.index("net_failover") < order.index("virtio_net")
        assert set(wanted) <= {*order, *tree.builtin}
    if not seen:
        pytest.skip("no modules next to any kernel: kvmkit image pull linux-image-cloud-amd64")
