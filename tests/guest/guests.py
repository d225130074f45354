"""A guest on the software CPU, with what its console and its reports said."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kvmkit import VM, images
from kvmkit.board.power import Ending
from kvmkit.guest import initramfs

PATIENCE = 60.0  # seconds


def init_program(kind: str) -> str:
    """The file of the agent, or of the shell script that stands in for it."""
    if kind == "shell":
        return str(Path(initramfs.__file__).with_name("init"))
    agent = initramfs.agent_program()
    if agent is None:
        pytest.skip("the guest's agent is not built: needs a C compiler")
    return agent


class Guest:
    """A VM with the console on COM1, the kernel's log on COM2 and the reports on COM4."""

    def __init__(
        self, kernel: Path, directory: Path, initrd: bytes, parameters: str = "", **options: object
    ) -> None:
        path = directory / "initrd"
        path.write_bytes(initrd)
        self.reports: list[str] = []
        self.output = b""
        self._changed = threading.Condition()
        self.log: list[bytes] = []
        self.vm = VM(
            kernel,
            initrd=path,
            cmdline=f"panic=-1 console=ttyS1 KVMKIT_CONSOLE=ttyS0 {parameters}",
            bare_cmdline=True,
            engine="soft",
            console=self._on_output,
            kernel_log=self.log.append,
            timeout=PATIENCE,
            **options,  # type: ignore[arg-type]
        )
        self.vm.on_report(self._on_report)

    def __enter__(self) -> Guest:
        self.vm.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.close()

    def _on_output(self, data: bytes) -> None:
        with self._changed:
            self.output += data
            self._changed.notify_all()

    def _on_report(self, word: str, rest: str) -> None:
        with self._changed:
            self.reports.append(f"{word} {rest}".rstrip())
            self._changed.notify_all()

    def wait_for(self, *, output: bytes = b"", report: str = "") -> None:
        """Until the console showed that and the guest reported that."""

        def there() -> bool:
            reported = not report or report in self.reports
            return (output in self.output and reported) or self.vm.ending is not None

        with self._changed:
            self._changed.wait_for(there, PATIENCE)

    def finish(self) -> tuple[bytes, list[str], Ending]:
        """All output, all reports and the machine's end."""
        ending = self.vm.wait()
        self.vm.close()  # puts out what is left
        assert ending is not None
        return self.output, self.reports, ending


def default_busybox() -> str:
    """Skips where there is none."""
    busybox = images.default_busybox()
    if busybox is None:
        pytest.skip("needs busybox: kvmkit image pull busybox-static")
    return busybox
