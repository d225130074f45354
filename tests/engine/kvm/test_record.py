"""C structures over buffers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.engine.kvm import structs


def test_numbers_are_little_endian_at_their_offset() -> None:
    """What is written is in the bytes, and read from there."""
    regs = structs.kvm_regs()
    regs.rip = 0x1122334455667788
    assert bytes(regs.memory[128:136]) == b"\x88\x77\x66\x55\x44\x33\x22\x11"
    regs.memory[136] = 2
    assert regs.rflags == 2


def test_signed_numbers() -> None:
    """An eventfd number of -1."""
    record = structs.kvm_ioeventfd()
    record.fd = -1
    assert record.fd == -1
    assert bytes(record.memory[20:24]) == b"\xff" * 4


def test_record_over_a_buffer_is_the_buffer() -> None:
    """No copy is made."""
    buffer = bytearray(200)
    regs = structs.kvm_regs(buffer, 8)
    regs.rax = 7
    assert buffer[8] == 7


def test_too_small_a_buffer_is_refused() -> None:
    """With what was expected and found."""
    with pytest.raises(ValueError, match="kvm_regs needs 144 bytes, found 100"):
        structs.kvm_regs(bytearray(100))


def test_nested_records_and_assignment() -> None:
    """A nested record is a view; assigning one copies it."""
    sregs = structs.kvm_sregs()
    sregs.ds.base = 0x1234
    sregs.es = sregs.ds
    assert sregs.es.base == 0x1234
    sregs.ds.base = 0
    assert sregs.es.base == 0x1234


def test_union_arms_share_their_bytes() -> None:
    """``bits`` and ``fields`` of an I/O APIC entry are one."""
    ioapic = structs.kvm_ioapic_state()
    entry = ioapic.redirtbl[3]
    entry.bits = 0x0100000000018050
    fields = ioapic.redirtbl[3].fields
    assert (fields.vector, fields.trig_mode, fields.mask, fields.dest_id) == (0x50, 1, 1, 1)


def test_bit_fields_keep_their_neighbours() -> None:
    """Writing one leaves the others; too large a value is cut."""
    fields = structs.kvm_ioapic_state_redirtbl_fields()
    fields.delivery_mode = 7
    fields.polarity = 1
    fields.delivery_mode = 8 + 2
    assert (fields.delivery_mode, fields.polarity, fields.dest_mode) == (2, 1, 0)


def test_arrays_of_numbers() -> None:
    """Index, slice, iterate, assign."""
    debug = structs.kvm_debugregs()
    debug.db = (1, 2, 3, 4)
    debug.db[2] = 30
    assert list(debug.db) == [1, 2, 30, 4]
    with pytest.raises(ValueError, match="at most 4 numbers, found 5"):
        debug.db = (1, 2, 3, 4, 5)


def test_two_dimensional_arrays() -> None:
    """Rows of bytes, as FPU registers are."""
    fpu = structs.kvm_fpu()
    fpu.xmm[15][0] = 9
    assert fpu.memory[152 + 15 * 16] == 9
    assert len(fpu.fpr) == 8


def test_open_arrays_have_the_room_they_were_given() -> None:
    """``sized`` for records and for numbers."""
    msrs = structs.kvm_msrs.sized(3)
    msrs.entries[2].index = 0x10
    assert len(msrs.entries) == 3
    assert len(msrs.memory) == 8 + 3 * 16
    mask = structs.kvm_signal_mask.sized(8)
    mask.sigset = b"\x01" * 8
    assert len(mask.memory) == 12
    with pytest.raises(TypeError, match="array without a length"):
        structs.kvm_regs.sized(1)


def test_offsets_by_path() -> None:
    """As C's offsetof; a wrong name is an error."""
    assert structs.kvm_run.offset_of("exit_reason") == 8
    assert structs.kvm_run.offset_of("s.regs.sregs.cr0") == 304 + 144 + 224
    with pytest.raises(KeyError):
        structs.kvm_run.offset_of("nonsense")


def test_printing_and_comparing() -> None:
    """repr names the members; equality is of type and bytes."""
    one, two = structs.kvm_irqfd(), structs.kvm_irqfd()
    two.gsi = 5
    assert "gsi=5" in repr(two)
    assert one != two
    one.gsi = 5
    assert one == two
    assert one != structs.kvm_one_reg()
    assert structs.kvm_sregs().as_dict()["cs"]["base"] == 0
    assert structs.kvm_fpu().as_dict()["xmm"][0] == [0] * 16


@settings(deadline=None)
@given(st.binary(min_size=312, max_size=312))
def test_any_bytes_survive_reading_and_writing(data: bytes) -> None:
    """Every member of kvm_sregs read and written back gives the same bytes."""
    source = structs.kvm_sregs(bytearray(data))
    target = structs.kvm_sregs()
    for name, field in vars(structs.kvm_sregs).items():
        if hasattr(field, "offset"):
            setattr(target, name, getattr(source, name))
    assert bytes(target) == data
