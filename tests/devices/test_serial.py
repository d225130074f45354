"""16550A: registers, FIFOs, interrupts, loopback, as a driver meets them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.serial import Serial
from tests.devices.fakes import RecordingLine

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7
DLAB = 0x80
NO_INTERRUPT = 0x01


class Port:
    """A serial port with its surroundings, and a driver's inb and outb."""

    def __init__(self) -> None:
        self.line = RecordingLine()
        self.sent = bytearray()
        self.room_calls = 0
        self.serial = Serial(self.line, self.sent.extend, self._on_room)
        self.feed = b""

    def _on_room(self) -> None:
        self.room_calls += 1
        taken = self.serial.receive(self.feed)
        self.feed = self.feed[taken:]

    def high(self) -> bool:
        return self.line.level

    def inb(self, offset: int) -> int:
        return self.serial.read(offset, 1)

    def outb(self, offset: int, value: int) -> None:
        self.serial.write(offset, 1, value)


def test_reset_values() -> None:
    """After a master reset the registers read as table III says."""
    port = Port()
    assert [port.inb(r) for r in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, 1, 0, 0, 0x60, 0xB0]


def test_transmits_what_is_written() -> None:
    """Characters written to THR go out in order, at once."""
    port = Port()
    for character in b"kvm":
        port.outb(DATA, character)
    assert port.sent == b"kvm"
    assert port.inb(LSR) == 0x60


def test_dlab_reaches_the_divisor_and_not_the_wire() -> None:
    """With DLAB set, offsets 0 and 1 are the divisor latch."""
    port = Port()
    port.outb(LCR, DLAB | 3)
    port.outb(DATA, 0x34)
    port.outb(IER, 0x12)
    assert (port.inb(DATA), port.inb(IER)) == (0x34, 0x12)
    port.outb(LCR, 3)
    assert port.sent == b""
    assert port.inb(IER) == 0


def test_unused_bits_read_zero() -> None:
    """IER has 4 bits and MCR 5; scratch keeps all 8."""
    port = Port()
    for register in (IER, MCR, SCR):
        port.outb(register, 0xFF)
    assert [port.inb(r) for r in (IER, MCR, SCR)] == [0x0F, 0x1F, 0xFF]


def test_fifo_enable_shows_in_iir() -> None:
    """IIR bits 7-6 tell a 16550A whose FIFOs are on."""
    port = Port()
    port.outb(FCR, 1)
    assert port.inb(IIR) == 0xC0 | NO_INTERRUPT
    port.outb(FCR, 0)
    assert port.inb(IIR) == NO_INTERRUPT


def test_receive_takes_one_without_fifo_and_sixteen_with() -> None:
    """The backend's data is taken as far as the receiver has room."""
    port = Port()
    assert port.serial.receive(b"abc") == 1
    port.outb(FCR, 1)
    assert port.serial.room() == 16
    assert port.serial.receive(bytes(20)) == 16
    assert port.serial.room() == 0


def test_fifo_switch_and_clear_lose_what_was_received() -> None:
    """Changing FCR bit 0 and setting bit 1 empty the receiver."""
    port = Port()
    port.outb(FCR, 1)
    port.serial.receive(b"abc")
    port.outb(FCR, 3)
    assert port.inb(LSR) == 0x60
    port.serial.receive(b"abc")
    port.outb(FCR, 0)
    assert port.inb(LSR) == 0x60


def test_room_is_told_when_drained() -> None:
    """on_room comes with the last read, and the line makes a new edge for more."""
    port = Port()
    port.outb(FCR, 1)
    port.outb(IER, 1)
    port.room_calls = 0
    port.serial.receive(b"ab")
    port.feed = b"c"
    assert port.inb(DATA) == ord("a")
    assert port.room_calls == 0
    assert port.inb(DATA) == ord("b")
    assert port.room_calls == 1
    assert port.line.changes == [True, False, True]
    assert port.inb(DATA) == ord("c")


def test_room_is_told_when_the_guest_starts_to_listen() -> None:
    """Enabling the receive interrupt asks the backend for input."""
    port = Port()
    port.feed = b"x"
    before = port.serial.listening
    port.outb(IER, 1)
    assert (before, port.serial.listening) == (False, True)
    assert port.inb(IIR) == 0x04
    assert port.inb(DATA) == ord("x")


def test_trigger_level_and_timeout() -> None:
    """Below the trigger level the cause is the timeout, from it on received data."""
    port = Port()
    port.outb(FCR, 0x81)  # trigger at 8
    port.outb(IER, 1)
    port.serial.receive(bytes(7))
    assert port.inb(IIR) == 0xCC
    port.serial.receive(bytes(1))
    assert port.inb(IIR) == 0xC4
    port.inb(DATA)
    assert port.inb(IIR) == 0xCC


def test_thre_interrupt_on_enable_and_iir_clears_it() -> None:
    """Enabling THRE with an empty register interrupts; reading IIR withdraws it."""
    port = Port()
    port.outb(IER, 2)
    assert port.high()
    assert port.inb(IIR) == 0x02
    assert not port.high()
    assert port.inb(IIR) == NO_INTERRUPT


def test_thre_interrupt_after_each_burst() -> None:
    """A burst of writes raises the line once; the next one raises it again."""
    port = Port()
    port.outb(IER, 2)
    port.inb(IIR)
    rises = port.line.rises
    for character in b"0123456789abcdef":
        port.outb(DATA, character)
    assert port.line.rises == rises + 1
    assert port.inb(IIR) == 0x02
    port.outb(DATA, 0)
    assert port.line.rises == rises + 2


def test_thre_edge_for_a_driver_that_reads_only_lsr() -> None:
    """A write that clears a pending THRE interrupt makes a fresh edge."""
    port = Port()
    port.outb(IER, 2)
    rises = port.line.rises
    port.inb(LSR)
    port.outb(DATA, 0x41)
    assert port.line.rises == rises + 1


def test_iir_of_a_higher_cause_keeps_thre_pending() -> None:
    """Only the IIR read that reports THRE withdraws it."""
    port = Port()
    port.serial.receive(b"x")
    port.outb(IER, 3)
    assert port.inb(IIR) == 0x04
    port.inb(DATA)
    assert port.inb(IIR) == 0x02


def test_interrupt_priority() -> None:
    """Line status, data, THRE, modem status, each found once the one above is served."""
    port = Port()
    port.serial.receive_break()
    port.serial.set_modem_inputs(0)
    port.outb(IER, 0x0F)
    assert port.inb(IIR) == 0x06
    assert port.inb(LSR) & 0x10
    assert port.inb(IIR) == 0x04
    port.inb(DATA)
    assert port.inb(IIR) == 0x02
    assert port.inb(IIR) == 0x00
    assert port.inb(MSR) == 0x0B
    assert port.inb(IIR) == NO_INTERRUPT
    assert not port.high()


def test_break_is_told_with_its_character() -> None:
    """In the FIFO a break shows in LSR when its character is at the top; bit 7 at once."""
    port = Port()
    port.outb(FCR, 1)
    port.serial.receive(b"a")
    port.serial.receive_break()
    assert port.inb(LSR) == 0xE1
    assert port.inb(LSR) == 0xE1
    assert port.inb(DATA) == ord("a")
    assert port.inb(LSR) == 0xF1
    assert port.inb(LSR) == 0x61
    assert port.inb(DATA) == 0


def test_loopback_returns_data_and_modem_lines() -> None:
    """In loopback nothing leaves; DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD."""
    port = Port()
    port.outb(MCR, 0x1A)
    assert port.inb(MSR) & 0xF0 == 0x90
    port.outb(DATA, 0x5A)
    assert port.sent == b""
    assert port.inb(LSR) == 0x61
    assert port.inb(DATA) == 0x5A
    assert port.serial.room() == 0


def test_loopback_fifo_size() -> None:
    """A driver that measures the FIFO by filling it finds 16 and the overrun bit."""
    port = Port()
    port.outb(FCR, 7)
    port.outb(MCR, 0x10)
    for value in range(32):
        port.outb(DATA, value)
    assert port.inb(LSR) & 0x02
    assert not port.inb(LSR) & 0x02
    received = []
    while port.inb(LSR) & 1:
        received.append(port.inb(DATA))
    assert received == list(range(16))


def test_overrun_without_fifo_keeps_the_new_character() -> None:
    """RBR is overwritten when the FIFO is off."""
    port = Port()
    port.outb(MCR, 0x10)
    port.outb(DATA, 1)
    port.outb(DATA, 2)
    assert port.inb(LSR) & 0x03 == 0x03
    assert port.inb(DATA) == 2


def test_ring_sets_teri_on_its_trailing_edge() -> None:
    """MSR bit 2 is set when RI goes away, not when it comes."""
    port = Port()
    port.serial.set_modem_inputs(0xF0)
    assert port.inb(MSR) == 0xF0
    port.serial.set_modem_inputs(0xB0)
    assert port.inb(MSR) == 0xB4
    assert port.inb(MSR) == 0xB0


def test_linux_autoconfig_finds_a_16550a() -> None:
    """The steps of Linux's 8250 autoconfig that tell the variants apart."""
    port = Port()
    port.outb(IER, 0)
    assert port.inb(IER) & 0x0F == 0
    port.outb(IER, 0x0F)
    assert port.inb(IER) & 0x0F == 0x0F
    port.outb(IER, 0)
    port.outb(LCR, 0xBF)
    port.outb(2, 0)
    port.outb(LCR, 0)
    port.outb(FCR, 1)
    assert port.inb(IIR) >> 6 == 3


def test_wide_access_reaches_consecutive_ports() -> None:
    """A word at 3 is LCR and MCR; past the last port there is nothing."""
    port = Port()
    port.serial.write(3, 2, 0x0B03)
    assert (port.inb(LCR), port.inb(MCR)) == (0x03, 0x0B)
    assert port.serial.read(7, 2) == 0xFF00


def test_restore_drives_the_line() -> None:
    """A restored port interrupts as the saved one did."""
    port, other = Port(), Port()
    port.outb(IER, 1)
    port.serial.receive(b"x")
    other.serial.restore(port.serial.state())
    assert other.high()
    assert other.inb(DATA) == ord("x")


actions = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 9), st.sampled_from([1, 2, 4, 8])),
        st.tuples(st.just("write"), st.integers(0, 9), st.integers(0, 255)),
        st.tuples(st.just("receive"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("modem"), st.integers(0, 255), st.just(0)),
        st.tuples(st.just("break"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(actions)
def test_any_accesses_and_state_round_trip(steps: list[tuple[str, int, int]]) -> None:
    """No access raises; the state's copy has the same state, line and registers."""
    port, copy = Port(), Port()
    for what, first, second in steps:
        if what == "read":
            assert 0 <= port.serial.read(first, second) < 1 << 8 * second
        elif what == "write":
            port.serial.write(first, 1, second)
        elif what == "receive":
            port.serial.receive(bytes(first))
        elif what == "modem":
            port.serial.set_modem_inputs(first)
        else:
            port.serial.receive_break()
    copy.serial.restore(port.serial.state())
    assert copy.serial.state() == port.serial.state()
    assert copy.high() == port.high()
    assert [copy.inb(r) for r in range(8)] == [port.inb(r) for r in range(8)]
