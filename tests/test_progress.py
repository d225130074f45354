"""Progress on stderr."""

from __future__ import annotations

import io

from kvmkit.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_quick_work_is_silent() -> None:
    """Within the first second nothing is written, and nothing has to be wiped out."""
    out = Terminal()
    with Progress(out) as progress:
        progress("fetching")
    assert out.getvalue() == ""


def test_terminal_shows_one_line_and_wipes_it_out() -> None:
    """Each text takes the place of the one before; the same one is not written twice."""
    out = Terminal()
    with Progress(out, patience=0) as progress:
        progress("fetching: 1 of 2")
        progress("fetching: 2 of 2")
        progress("fetching: 2 of 2")
    assert out.getvalue() == "\r\x1b[Kfetching: 1 of 2\r\x1b[Kfetching: 2 of 2\r\x1b[K"


def test_long_text_is_cut_to_the_terminal() -> None:
    """A line that wraps could not be written over."""
    out = Terminal()
    Progress(out, patience=0)("x" * 500)
    assert len(out.getvalue()) <= 4 + 79


def test_log_file_gets_each_step_once() -> None:
    """Without a terminal there is a line for each step, without the running figures."""
    out = io.StringIO()
    with Progress(out, patience=0) as progress:
        for done in range(3):
            progress(f"fetching x: {done} of 2")
        progress("unpacking x")
    assert out.getvalue() == "fetching x\nunpacking x\n"
