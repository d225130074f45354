"""A pipe's bytes through a terminal's line discipline.

A command in a guest reads its input from a terminal, and a terminal without
lines ("raw") has no end of file. So ``init`` leaves the console in canonical
mode with two special characters, VEOF and VLNEXT (POSIX.1-2017, General
Terminal Interface, 11.1.6 and 11.1.9; VLNEXT: termios(3)), and the host sends
the bytes so that exactly they come out:

- VLNEXT before a byte makes it an ordinary one;
- VEOF behind some bytes hands them to the reader without ending the line, which
  must happen before Linux' limit of 4095 bytes per line;
- VEOF where no bytes wait is the end of file.

Send nothing before the guest reports that it is ready (``report``): until
then the console echoes.
"""

from __future__ import annotations

__all__ = ["END_OF_INPUT", "encode_input"]

_VEOF = b"\x04"
_VLNEXT = b"\x16"
_PIECE_MAX = 1024  # of the 4095 bytes that a terminal buffers in all

END_OF_INPUT = _VEOF
"""What to send for the end of the input, after :func:`encode_input` of all of it."""


def encode_input(data: bytes) -> bytes:
    """What to send for ``data``; all of it reaches the command without more to follow."""
    out = bytearray()
    *lines, rest = data.split(b"\n")
    for line in lines:
        # The newline is the last piece's own end.
        for start in range(0, max(len(line), 1), _PIECE_MAX):
            out += _literal(line[start : start + _PIECE_MAX])
            out += _VEOF if start + _PIECE_MAX < len(line) else b"\n"
    for start in range(0, len(rest), _PIECE_MAX):
        out += _literal(rest[start : start + _PIECE_MAX]) + _VEOF
    return bytes(out)


def _literal(piece: bytes) -> bytes:
    return piece.replace(_VLNEXT, _VLNEXT + _VLNEXT).replace(_VEOF, _VLNEXT + _VEOF)
