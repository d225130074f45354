"""Guest time and timers."""

from __future__ import annotations

from threading import RLock

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board.clock import BoardClock


class Host:
    """A host clock that goes when told."""

    def __init__(self) -> None:
        self.ns = 1_000_000

    def __call__(self) -> int:
        return self.ns


def make() -> tuple[BoardClock, Host, list[str]]:
    host = Host()
    return BoardClock(RLock(), monotonic=host), host, []


def test_time_begins_at_zero_and_stands_while_paused():
    """Guest time is the host's less pauses."""
    clock, host, _ = make()
    host.ns += 500
    clock.pause()
    host.ns += 10_000
    paused = clock.now()
    clock.resume()
    host.ns += 7
    assert (paused, clock.now()) == (500, 507)


def test_time_may_be_set_when_it_resumes():
    """A restored snapshot goes on where it was."""
    clock, host, _ = make()
    clock.pause()
    clock.resume(at=5_000_000)
    host.ns += 1
    assert clock.now() == 5_000_001


def test_clock_made_standing_begins_with_resume():
    """Assembly of a board costs no guest time."""
    host = Host()
    clock = BoardClock(RLock(), monotonic=host, running=False)
    host.ns += 99
    before = clock.now()
    clock.resume()
    host.ns += 5
    assert (before, clock.now()) == (0, 5)


def test_wall_time_is_the_hosts():
    """It is handed in, so that a run can be replayed."""
    assert BoardClock(RLock(), wall=lambda: 42).wall() == 42


def test_timers_fire_in_order_of_deadline():
    """Not in the order they were armed, and only those that are due."""
    clock, host, fired = make()
    for name, deadline in (("b", 20), ("a", 10), ("c", 30)):
        clock.timer(lambda name=name: fired.append(name)).arm(deadline)
    host.ns += 25
    clock.run_due()
    assert fired == ["a", "b"]
    assert clock.next_deadline() == 30


def test_arming_again_replaces_and_cancel_forgets():
    """A timer has one deadline at most."""
    clock, host, fired = make()
    timer = clock.timer(lambda: fired.append("x"))
    timer.arm(10)
    timer.arm(50)
    assert (timer.deadline, clock.next_deadline()) == (50, 50)
    host.ns += 20
    clock.run_due()
    timer.cancel()
    timer.cancel()
    host.ns += 100
    clock.run_due()
    assert (fired, timer.deadline, clock.next_deadline()) == ([], None, None)


def test_fired_timer_is_not_armed():
    """One shot; the callback may arm it again."""
    clock, host, fired = make()

    def again() -> None:
        fired.append(str(timer.deadline))
        if len(fired) < 3:
            timer.arm(clock.now() + 10)

    timer = clock.timer(again)
    timer.arm(10)
    for _ in range(4):
        host.ns += 10
        clock.run_due()
    assert (fired, timer.deadline) == (["None"] * 3, None)


def test_timer_armed_in_the_past_by_a_callback_waits_for_the_next_call():
    """A guest that asks for a timer every 0 ns does not keep us in run_due."""
    clock, host, fired = make()

    def again() -> None:
        fired.append("x")
        timer.arm(0)

    timer = clock.timer(again)
    timer.arm(0)
    host.ns += 1
    clock.run_due()
    assert fired == ["x"]
    clock.run_due()
    assert fired == ["x", "x"]


def test_nothing_is_due_while_paused():
    """Time stands, and so do timers."""
    clock, host, fired = make()
    clock.timer(lambda: fired.append("x")).arm(5)
    clock.pause()
    host.ns += 10
    clock.run_due()
    assert (fired, clock.next_deadline()) == ([], None)
    clock.resume()
    assert clock.next_deadline() == 5


def test_changed_tells_of_earlier_deadlines_only():
    """Who sleeps until the next deadline is not woken for later ones."""
    clock, _, fired = make()
    clock.changed = lambda: fired.append("changed")
    clock.timer(lambda: None).arm(100)
    clock.timer(lambda: None).arm(200)
    clock.timer(lambda: None).arm(50)
    assert len(fired) == 2


def test_defect_in_a_callback_does_not_stop_the_others():
    """It is told, and the next timer fires."""
    clock, host, fired = make()
    errors: list[Exception] = []
    clock.failed = errors.append
    clock.timer(lambda: fired.append(str(1 // 0))).arm(1)
    clock.timer(lambda: fired.append("next")).arm(2)
    host.ns += 5
    clock.run_due()
    assert (fired, len(errors)) == (["next"], 1)


def test_timer_that_is_armed_often_does_not_fill_the_heap():
    """Void entries are cleared out."""
    clock, _, _ = make()
    timer = clock.timer(lambda: None)
    for deadline in range(10_000):
        timer.arm(1_000_000 - deadline)
    assert len(clock._heap) < 100


STEPS = st.lists(
    st.tuples(st.sampled_from(("arm", "cancel", "go")),
              st.integers(0, 4), st.integers(0, 100)),
    max_size=60,
)  # fmt: skip


@given(steps=STEPS)
@settings(deadline=None)
def test_clock_agrees_with_a_simple_model(steps):
    """Arm, cancel and the passage of time in any order fire what a plain dict says."""
    clock, host, fired = make()
    start = host.ns
    timers = [clock.timer(lambda index=index: fired.append(str(index))) for index in range(5)]
    model: dict[int, int] = {}
    expected: list[str] = []
    for what, index, amount in steps:
        now = host.ns - start
        if what == "arm":
            timers[index].arm(now + amount)
            model[index] = now + amount
        elif what == "cancel":
            timers[index].cancel()
            model.pop(index, None)
        else:
            host.ns += amount
            clock.run_due()
            due = [key for key, deadline in model.items() if deadline <= now + amount]
            expected += [str(key) for key in due]
            for key in due:
                del model[key]
        assert clock.next_deadline() == (min(model.values()) if model else None)
    assert sorted(fired) == sorted(expected)
