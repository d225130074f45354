"""MSI-X: masking, pending bits, table accesses, as 6.8.2 and 6.8.3 say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.msix import Msix

ENABLE, FUNCTION_MASK = 0x8000, 0x4000
ADDRESS, DATA = 0xFEE0_2000, 0x4099


class Vectors:
    """Some vectors and what comes out of them."""

    def __init__(self, vectors: int = 4) -> None:
        self.messages: list[tuple[int, int]] = []
        self.changes: list[tuple[int, int, int, bool]] = []
        self.msix = Msix(vectors, self._msi, self._changed)

    def _msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def _changed(self, vector: int, address: int, data: int, masked: bool) -> None:
        self.changes.append((vector, address, data, masked))

    def set_up(self, vector: int, control: int = 0) -> None:
        at = 16 * vector
        self.msix.write(at, 8, ADDRESS)
        self.msix.write(at + 8, 4, DATA + vector)
        self.msix.write(at + 12, 4, control)

    def pba(self) -> int:
        return self.msix.read(self.msix.pba, 8)


@pytest.mark.parametrize(
    ("vectors", "size", "pba"), [(1, 4096, 2048), (128, 4096, 2048), (129, 8192, 4096)]
)
def test_layout(vectors: int, size: int, pba: int) -> None:
    """The region is a power of two with the table below and the PBA in its second half."""
    msix = Msix(vectors, lambda address, data: None)
    assert (msix.size, msix.pba) == (size, pba)
    assert msix.size >= msix.pba + (vectors + 63) // 64 * 8
    assert msix.pba >= 16 * vectors


@pytest.mark.parametrize("vectors", [0, 2049])
def test_vector_count_is_checked(vectors: int) -> None:
    """The table holds 1 to 2048 vectors."""
    with pytest.raises(ValueError, match="expected 1 to 2048"):
        Msix(vectors, lambda address, data: None)


def test_capability_bytes() -> None:
    """Size less one, table at offset 0 and PBA in the BAR named."""
    body, writable = Msix(4, lambda address, data: None).capability(3)
    assert body == bytes((3, 0, 3, 0, 0, 0, 3, 8, 0, 0))
    assert writable == b"\x00\xc0"


def test_every_vector_is_masked_after_reset() -> None:
    """Vector control reads 1."""
    vectors = Vectors()
    assert [vectors.msix.read(16 * v + 12, 4) for v in range(4)] == [1] * 4


def test_disabled_does_nothing() -> None:
    """Without the enable bit the device must use its pin."""
    vectors = Vectors()
    vectors.set_up(0)
    assert not vectors.msix.trigger(0)
    assert vectors.pba() == 0
    assert vectors.messages == []


def test_enabled_and_unmasked_goes_out() -> None:
    """The message is the table's address and data."""
    vectors = Vectors()
    vectors.set_up(1)
    vectors.msix.configure(ENABLE, True)
    assert vectors.msix.trigger(1)
    assert vectors.messages == [(ADDRESS, DATA + 1)]
    assert vectors.changes == [(1, ADDRESS, DATA + 1, False)]


def test_masked_vector_waits_in_the_pba() -> None:
    """It is pending while masked and goes out once when unmasked."""
    vectors = Vectors()
    vectors.msix.configure(ENABLE, True)
    vectors.set_up(2, control=1)
    assert vectors.msix.trigger(2)
    assert vectors.msix.trigger(2)
    assert vectors.pba() == 1 << 2
    vectors.msix.write(16 * 2 + 12, 4, 0)
    assert vectors.messages == [(ADDRESS, DATA + 2)]
    assert vectors.pba() == 0


def test_function_mask_holds_all_vectors() -> None:
    """The function mask works as if every vector were masked."""
    vectors = Vectors()
    vectors.set_up(0)
    vectors.set_up(3)
    vectors.msix.configure(ENABLE | FUNCTION_MASK, True)
    vectors.msix.trigger(0)
    vectors.msix.trigger(3)
    assert vectors.messages == []
    assert vectors.pba() == 0b1001
    vectors.msix.configure(ENABLE, True)
    assert vectors.messages == [(ADDRESS, DATA), (ADDRESS, DATA + 3)]


def test_hook_hears_of_unmasked_vectors_only() -> None:
    """Filling in a masked vector is silent; unmasking, moving and masking are told."""
    vectors = Vectors()
    vectors.msix.configure(ENABLE, True)
    vectors.set_up(0)
    vectors.msix.write(8, 4, 0x55)
    vectors.msix.write(12, 4, 1)
    vectors.msix.write(8, 4, 0x66)
    assert vectors.changes == [
        (0, ADDRESS, DATA, False),
        (0, ADDRESS, 0x55, False),
        (0, ADDRESS, 0x55, True),
    ]
    assert vectors.msix.route(0) is None


def test_pending_bits_are_read_only() -> None:
    """Writes to the PBA and between table and PBA do nothing."""
    vectors = Vectors()
    vectors.msix.write(vectors.msix.pba, 8, (1 << 64) - 1)
    vectors.msix.write(16 * 4, 8, (1 << 64) - 1)
    assert vectors.pba() == 0
    assert vectors.msix.read(16 * 4, 8) == 0


def test_reserved_bits_stay_zero() -> None:
    """The lowest two address bits and vector control's upper 31 cannot be set."""
    vectors = Vectors()
    vectors.msix.write(0, 8, (1 << 64) - 1)
    vectors.msix.write(8, 8, (1 << 64) - 1)
    assert vectors.msix.read(0, 8) == (1 << 64) - 4
    assert vectors.msix.read(8, 8) == 0x0000_0001_FFFF_FFFF


def test_unknown_vector_is_refused() -> None:
    """A device that names a vector it does not have sends nothing."""
    vectors = Vectors()
    vectors.msix.configure(ENABLE, True)
    assert not vectors.msix.trigger(4)
    assert not vectors.msix.trigger(-1)


def test_reset_masks_and_forgets() -> None:
    """After a reset no vector is routed or pending, and the hook knows."""
    vectors = Vectors()
    vectors.set_up(0)
    vectors.msix.configure(ENABLE, True)
    vectors.msix.reset()
    assert not vectors.msix.enabled
    assert vectors.changes[-1][0] == 0
    assert vectors.changes[-1][3]
    assert vectors.msix.state() == Vectors().msix.state()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("write"), st.integers(0, 4200), st.sampled_from([1, 2, 4, 8]),
                st.integers(0, (1 << 64) - 1),
            ),
            st.tuples(
                st.just("write"), st.integers(0, 70), st.sampled_from([4, 8]), st.integers(0, 3)
            ),
            st.tuples(st.just("control"), st.integers(0, 0xFFFF), st.just(0), st.integers(0, 1)),
            st.tuples(st.just("trigger"), st.integers(0, 5), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_any_accesses_and_state_round_trip(steps: list[tuple[str, int, int, int]]) -> None:
    """No access raises; no open vector stays pending; the copy equals the state."""
    vectors, copy = Vectors(), Vectors()
    control, master = 0, False
    for what, first, size, value in steps:
        if what == "write":
            vectors.msix.write(first, size, value & (1 << 8 * size) - 1)
            assert 0 <= vectors.msix.read(first, size) < 1 << 8 * size
        elif what == "control":
            control, master = first, bool(value)
            vectors.msix.configure(control, master)
        else:
            vectors.msix.trigger(first)
    assert not any(vectors.msix.pending(v) and vectors.msix.route(v) for v in range(4))
    copy.msix.restore(vectors.msix.state())
    copy.msix.configure(control, master)
    assert copy.msix.state() == vectors.msix.state()
    assert copy.messages == []
    assert [copy.msix.route(v) for v in range(4)] == [vectors.msix.route(v) for v in range(4)]
