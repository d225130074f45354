"""Names of VMs: what one may look like, and readable ones for VMs that were given none.

A name is a directory's name, a word in a shell and part of a thread's name, so
it is made of letters, digits and ``._-`` and does not begin with a dot or dash.
"""

from __future__ import annotations

import os

from kvmkit.errors import UsageError

__all__ = ["LONGEST", "check_name", "generate_name", "is_name"]

LONGEST = 64

_FIRST = (
    "amber bold brave brisk calm clear clever cosy crisp eager early fair fast fine fresh "
    "gentle glad golden green happy honest jolly keen kind late lively loyal lucky mellow merry "
    "mild misty neat nimble noble patient plain proud quick quiet rapid rosy round shy silent "
    "silver sleek smart smooth snowy soft solid spry steady still sunny swift tidy tiny vivid "
    "warm wise witty young"
)
_SECOND = (
    "ant badger bat bear beaver bee bison boar camel cat cod crab crane crow deer dingo dove "
    "duck eagle egret elk emu falcon ferret finch fox frog gecko goat goose gull hare hawk "
    "heron horse ibex jackal jay kite koala lark lemur lion lynx magpie marten mink mole moose "
    "moth mouse newt otter owl panda pike pony puma quail rabbit raven robin salmon seal shrew "
    "sloth snail sparrow stork swan swift tapir tiger toad trout turtle viper vole walrus wasp "
    "weasel whale wolf wren yak zebra"
)


def is_name(name: str) -> bool:
    """Whether a VM may have this name."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return len(name) <= LONGEST and plain.isalnum() and name.isascii() and name[0] not in ".-"


def check_name(name: str) -> str:
    """``name`` itself; raises UsageError if no VM may have it."""
    if not is_name(name):
        raise UsageError(
            f"a VM's name has 1 to {LONGEST} letters, digits and ._-, "
            f"and begins with none of .-; not {name!r}"
        )
    return name


def generate_name(tries: int = 0) -> str:
    """A readable name such as ``quiet-otter``; with a number once ``tries`` were taken."""
    first, second = _FIRST.split(), _SECOND.split()
    number = int.from_bytes(os.urandom(4), "little")
    name = f"{first[number % len(first)]}-{second[(number >> 10) % len(second)]}"
    return f"{name}-{number >> 20}" if tries > 3 else name
