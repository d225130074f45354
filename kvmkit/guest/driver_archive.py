"""The archives with the modules that a guest needs for the devices it is given."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["driver_archive"]

_WELCOME = {"block": ("ext4",), "network": ("af_packet",)}
"""What goes along with a kind of device where the kernel has it as a module."""


def driver_archive(kernel: str, kinds: Iterable[str], keep: Callable[[bytes], str]) -> list[str]:
    """Archives to put behind the initramfs: the drivers of ``kinds`` for this kernel.

    ``kinds`` are keys of :data:`kvmkit.guest.drivers.DEVICES`. ``keep`` makes a file of
    an archive where the cache cannot be used. Nothing for a kernel without modules of
    its own, which may have all built in. Raises MissingDriver, naming the option of the
    kernel's configuration, and FileTrouble.
    """
    from kvmkit.cache_home import own_cache
    from kvmkit.errors import FileTrouble
    from kvmkit.guest.drivers import DEVICES
    from kvmkit.guest.module_archive import cached_modules, modules_archive
    from kvmkit.guest.modules import find_module_tree

    tree = find_module_tree(kernel)
    if tree is None:
        return []
    wanted = list(dict.fromkeys(module for kind in kinds for module in DEVICES[kind]))
    optional = [module for kind in kinds for module in _WELCOME.get(kind, ())]
    cache = own_cache("initramfs")
    if cache is not None:
        try:
            path = cached_modules(tree, wanted, cache, optional=optional)
        except FileTrouble:
            pass  # the cache cannot be written, or a module cannot be read: told below
        else:
            return [] if path is None else [path]
    modules = tree.resolve(wanted, optional)
    return [keep(modules_archive(tree, modules))] if modules else []
