"""The place of an actor's worker, by the actor's last Beat.

The one idea: the words of a Beat are a peer's, so a line for a person takes nothing from them but a short word, a number and
printable text.
"""

from __future__ import annotations

import re

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.ledger import Lease
from shoal.protocol.errors import printable

WORD = re.compile(r"[a-z_]{1,16}(\.[a-z_]{1,16})?")
LINES, WIDTH = 40, 300  # lines of a stack that are shown, and characters of a line


def doing(actor: Actor, lease: Lease) -> str:
    """Return "in env.step for 12 s" if the actor said where the worker at this task is; else ""."""
    word, seconds = actor.told.get("doing"), actor.told.get("for")
    here = actor.runs == (*lease.name, lease.attempt)
    if not (here and isinstance(word, str) and WORD.fullmatch(word) and isinstance(seconds, int | float)):
        return ""
    return f"in {word} for {seconds:.0f} s"


def stack(actor: Actor, lease: Lease) -> str:
    """Return the stack of the worker at this task, of at most LINES lines, if the actor said it; else ""."""
    text = actor.told.get("stack") if doing(actor, lease) else None
    return "\n".join(printable(line, WIDTH) for line in text.split("\n")[-LINES:]).rstrip() if isinstance(text, str) else ""
