"""The escape key of a console: what of the typed bytes is for the guest and what for us.

The keys are those of QEMU's ``-nographic`` (QEMU manual, "Keys in the character
backend multiplexer"): Ctrl-a, then one key. Everything else goes to the guest
unchanged, also when bytes arrive in pieces.
"""

from __future__ import annotations

__all__ = ["ESCAPE", "HELP", "EscapeKeys"]

ESCAPE = 0x01  # Ctrl-a

HELP = """\
Ctrl-a h    this help
Ctrl-a x    end the VM and quit
Ctrl-a c    kvmkit's prompt, and back to the guest
Ctrl-a a    send Ctrl-a to the guest (also Ctrl-a Ctrl-a)
"""

_KEYS = {ord("h"): "help", ord("?"): "help", ord("x"): "quit", ord("c"): "monitor"}
_LITERAL = (ord("a"), ESCAPE)


class EscapeKeys:
    """Splits what is typed; ``pending`` is true between Ctrl-a and the key after it.

    ``keys`` gives the actions by the byte that stands for each.
    """

    __slots__ = ("_actions", "pending")

    def __init__(self, keys: dict[int, str] = _KEYS) -> None:
        self.pending = False
        self._actions = keys

    def feed(self, data: bytes) -> list[bytes | str]:
        """The runs of bytes for the guest and the actions, in order.

        An unknown key after Ctrl-a is dropped with it, as in QEMU.
        """
        found: list[bytes | str] = []
        plain = bytearray()
        for byte in data:
            if not self.pending:
                if byte == ESCAPE:
                    self.pending = True
                else:
                    plain.append(byte)
                continue
            self.pending = False
            if byte in _LITERAL:
                plain.append(ESCAPE)
            elif byte in self._actions:
                if plain:
                    found.append(bytes(plain))
                    plain.clear()
                found.append(self._actions[byte])
        if plain:
            found.append(bytes(plain))
        return found
