"""Stock kernels, opened and planned (KVMKIT_TEST_KERNELS or the pulled images)."""

from __future__ import annotations

from pathlib import Path

from kvmkit.boot.image import open_kernel
from kvmkit.boot.linux import plan_linux
from kvmkit.boot.plan import BootPlan
from tests.boot.kernel_images import ADDRESSES, MIB, RAM_256


def _content(plan: BootPlan) -> list[tuple[int, bytes]]:
    return [(load.address, bytes(load.data)) for load in plan.loads]


def test_stock_kernels_plan_alike_cold_and_warm(kernels: dict[str, Path], tmp_path: Path) -> None:
    """Each stock kernel unpacks; from the cache comes the same plan as from the file."""
    for release, path in kernels.items():
        image = open_kernel(path)
        cold = plan_linux(image, ram=RAM_256, addresses=ADDRESSES, cache=tmp_path)
        warm = plan_linux(image, ram=RAM_256, addresses=ADDRESSES, cache=tmp_path)

        assert image.kind == "bzImage"
        assert image.version.split(" ")[0] == release
        assert cold.entry == warm.entry
        assert cold.zero == warm.zero
        assert _content(cold) == _content(warm)


def test_stock_kernels_fit_into_64_mib(kernels: dict[str, Path], tmp_path: Path) -> None:
    """Unpacked on the host and moved down where needed, every one leaves room to start."""
    for path in kernels.values():
        plan = plan_linux(
            open_kernel(path), ram=[(0, 64 * MIB)], addresses=ADDRESSES, cache=tmp_path
        )

        assert max(start + size for start, size in plan.zero) <= 64 * MIB


def test_stock_kernels_have_a_pvh_entry(kernels: dict[str, Path], tmp_path: Path) -> None:
    """Debian sets CONFIG_PVH; the note survives in the payload."""
    for path in kernels.values():
        plan = plan_linux(
            open_kernel(path, pvh=True), ram=RAM_256, addresses=ADDRESSES, cache=tmp_path
        )

        assert plan.entry.rbx == ADDRESSES.start_info
        assert any(load.address <= plan.entry.rip for load in plan.loads)
