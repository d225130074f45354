"""Which directories of the host are where in the guest."""

from __future__ import annotations

import pytest

from kvmkit.errors import UsageError
from kvmkit.guest.root import plan_root


def targets(*arguments: object, **options: bool) -> list[str]:
    """Where a plan mounts what, in order."""
    return [mount.target for mount in plan_root(*arguments, **options).mounts]  # type: ignore[arg-type]


def test_a_root_is_below_an_overlay() -> None:
    """Read-only below, a tmpfs above, and nothing of it is kept."""
    plan = plan_root("/", [])

    assert [(share.path, share.read_only) for share in plan.shares] == [("/", True)]
    assert [mount.type for mount in plan.mounts] == ["virtiofs", "tmpfs", "overlay", "none"]
    assert plan.mounts[0].options == "ro"
    assert plan.root == plan.mounts[2].target
    assert not plan.keeps


def test_shares_come_after_the_directories_around_them() -> None:
    """Whatever their order was; the last word on one counts."""
    plan = plan_root(None, [("/a/b", False), ("/a", False), ("/a", True)])

    assert [(mount.target, mount.options) for mount in plan.mounts] == [
        ("/a", "ro"),
        ("/a/b", "rw"),
    ]
    assert plan.keeps
    assert plan.root is None


def test_shares_lie_in_the_root_but_for_what_moves_there() -> None:
    """/run, /tmp and what is in them come along from the first root."""
    found = targets("/", [("/work", True), ("/run/x", True), ("/tmp/x", True), ("/tmpx", True)])

    assert found[4:] == ["/run/x", "/tmp/x", "/kvmkit/root/tmpx", "/kvmkit/root/work"]


def test_a_root_without_tmp_gets_an_empty_one() -> None:
    """There is nothing of its to bind."""
    assert "/tmp" not in targets("/srv/root", temporary=False)


@pytest.mark.parametrize("path", ["/", "/proc", "/dev", "/sys", "/run"])
def test_what_the_guest_has_of_its_own_is_not_shared(path: str) -> None:
    """A guest without its /proc or /dev would not get far."""
    with pytest.raises(UsageError, match="cannot be shared"):
        plan_root(None, [(path, True)])


def test_tags_are_different_and_fit() -> None:
    """A virtio-fs tag has at most 36 bytes."""
    plan = plan_root("/", [(f"/{'x' * 50}{number}", True) for number in range(20)])

    tags = {share.tag for share in plan.shares}
    assert len(tags) == 21
    assert max(map(len, tags)) <= 36
