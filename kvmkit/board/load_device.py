"""Devices of the user's own, by name: ``module:Class`` with arguments."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from kvmkit.devices.pci_device import PciDevice
from kvmkit.errors import UsageError
from kvmkit.virtio.device import VirtioDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["load_device"]


def load_device(name: str, arguments: Mapping[str, str]) -> VirtioDevice | PciDevice:
    """A device from ``module:Class``, made with ``arguments`` by name.

    The module is looked for in the current directory too. Raises UsageError when
    there is none, it cannot be loaded, or it does not take these arguments.
    """
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        raise UsageError(f"a device is module:Class, not {name!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except Exception as error:  # a module of the user's may raise anything
        raise UsageError(
            f"device module {module_name!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    kind: Any = getattr(module, class_name, None)
    if not isinstance(kind, type) or not issubclass(kind, VirtioDevice | PciDevice):
        raise UsageError(
            f"{name}: expected a class derived from PciDevice or VirtioDevice",
            "see docs/devices.md",
        )
    try:
        device: VirtioDevice | PciDevice = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from error
    return device
