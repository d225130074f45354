"""Which option of the kernel's configuration builds a driver, for hints.

From the Kconfig files of the drivers' directories. Also what the guest needs for
each kind of device.
"""

from __future__ import annotations

__all__ = ["DEVICES", "OPTIONS", "option_state"]

OPTIONS = {
    "9p": "CONFIG_9P_FS",
    "9pnet_virtio": "CONFIG_NET_9P_VIRTIO",
    "btrfs": "CONFIG_BTRFS_FS",
    "erofs": "CONFIG_EROFS_FS",
    "ext4": "CONFIG_EXT4_FS",
    "fuse": "CONFIG_FUSE_FS",
    "isofs": "CONFIG_ISO9660_FS",
    "nd_pmem": "CONFIG_BLK_DEV_PMEM",
    "overlay": "CONFIG_OVERLAY_FS",
    "squashfs": "CONFIG_SQUASHFS",
    "vfat": "CONFIG_VFAT_FS",
    "virtio_balloon": "CONFIG_VIRTIO_BALLOON",
    "virtio_blk": "CONFIG_VIRTIO_BLK",
    "virtio_console": "CONFIG_VIRTIO_CONSOLE",
    "virtio_crypto": "CONFIG_CRYPTO_DEV_VIRTIO",
    "virtio_gpu": "CONFIG_DRM_VIRTIO_GPU",
    "virtio_input": "CONFIG_VIRTIO_INPUT",
    "virtio_iommu": "CONFIG_VIRTIO_IOMMU",
    "virtio_mem": "CONFIG_VIRTIO_MEM",
    "virtio_mmio": "CONFIG_VIRTIO_MMIO",
    "virtio_net": "CONFIG_VIRTIO_NET",
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "virtio_pmem": "CONFIG_VIRTIO_PMEM",
    "virtio_rng": "CONFIG_HW_RANDOM_VIRTIO",
    "virtio_scsi": "CONFIG_SCSI_VIRTIO",
    "virtio_snd": "CONFIG_SND_VIRTIO",
    "virtiofs": "CONFIG_VIRTIO_FS",
    "vmw_vsock_virtio_transport": "CONFIG_VIRTIO_VSOCKETS",
    "xfs": "CONFIG_XFS_FS",
}
"""Module name (with ``_``) to option."""

DEVICES = {
    "9p": ("virtio_pci", "9pnet_virtio", "9p"),
    "balloon": ("virtio_pci", "virtio_balloon"),
    "block": ("virtio_pci", "virtio_blk"),
    "console": ("virtio_pci", "virtio_console"),
    "entropy": ("virtio_pci", "virtio_rng"),
    "fs": ("virtio_pci", "virtiofs"),
    "network": ("virtio_pci", "virtio_net"),
    "overlay": ("overlay",),
    "pmem": ("virtio_pci", "virtio_pmem", "nd_pmem"),
    "vsock": ("virtio_pci", "vmw_vsock_virtio_transport"),
}
"""What a guest must have to use a virtio device on PCI."""


def option_state(config: str, option: str) -> str:
    """``"y"``, ``"m"`` or ``"n"`` as the file ``config`` has it; empty if that cannot be read."""
    try:
        with open(config, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(option + "="):
                    return line.rstrip()[len(option) + 1 :]
    except OSError:
        return ""
    return "n"
