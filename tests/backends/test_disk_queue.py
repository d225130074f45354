"""The threads that do a disk's work."""

from __future__ import annotations

import threading

import pytest

from kvmkit.backends.disk_queue import DiskQueue


@pytest.fixture
def queue():
    queue = DiskQueue("test", 3)
    yield queue
    queue.close()


def test_everything_is_done_once(queue):
    """Works run on its threads, each ``done`` after its ``work``."""
    log = []
    threads = set()
    for number in range(200):

        def work(number=number):
            threads.add(threading.current_thread().name)
            log.append(("work", number))

        queue.submit(work, lambda error, number=number: log.append(("done", number, error)))
    queue.drain()
    assert not queue.busy
    assert len(log) == 400
    for number in range(200):
        assert log.index(("work", number)) < log.index(("done", number, None))
    assert threads <= {"test-0", "test-1", "test-2"}


def test_errors_are_told(queue):
    """An OSError as it is, anything else as EIO; the thread lives on."""
    errors = []
    for trouble in (OSError(28, "full"), ValueError("bug"), None):

        def work(trouble=trouble):
            if trouble is not None:
                raise trouble

        queue.submit(work, errors.append)
        queue.drain()
    assert [error and error.errno for error in errors] == [28, 5, None]
    assert "ValueError" in str(errors[1])


def test_several_at_a_time(queue):
    """Three threads do three works at once; a fourth waits."""
    barrier = threading.Barrier(4, timeout=5)
    for _ in range(3):
        queue.submit(barrier.wait, lambda error: None)
    barrier.wait()
    queue.drain()
    assert not barrier.broken


def test_settle_waits_for_works_only(queue):
    """A ``done`` that waits for whoever settles is no deadlock."""
    lock = threading.Lock()
    told = []

    def done(error):
        with lock:
            told.append(error)

    with lock:
        for _ in range(20):
            queue.submit(lambda: None, done)
        queue.settle()
        assert not told
    queue.drain()
    assert len(told) == 20


def test_drain_waits_for_done(queue):
    """Nothing is under way after it."""
    told = []
    event = threading.Event()
    queue.submit(lambda: event.wait(5) and None, told.append)
    assert queue.busy
    threading.Timer(0.05, event.set).start()
    queue.drain()
    assert told == [None] and not queue.busy


def test_close_finishes_what_was_submitted():
    """And nothing can be submitted then; closing twice, or unused, is harmless."""
    queue = DiskQueue("test")
    told = []
    for _ in range(50):
        queue.submit(lambda: None, told.append)
    queue.close()
    queue.close()
    assert len(told) == 50
    with pytest.raises(RuntimeError):
        queue.submit(lambda: None, told.append)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]
    DiskQueue("unused").close()
