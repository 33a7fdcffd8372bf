"""Warnings of MuJoCo as lines of ours.

The one idea: MuJoCo without a listener writes its warnings into a file in the folder where the user happens to be, one more
with each model that it compiles and each unstable step. So a process that makes environments listens from MuJoCo's import on,
and says each kind once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from shoal.protocol.imports import when_imported

NUMBERS = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
MOST = 20  # kinds that a process says


def hear_physics() -> None:
    """Have MuJoCo's warnings told as lines on standard error, from its import on. A listener of the user's own stays."""
    when_imported("mujoco", listen)


def listen(mujoco: Any) -> None:
    """Listen to the warnings of a module mujoco, if nobody does."""
    if not hasattr(mujoco, "set_mju_user_warning") or mujoco.get_mju_user_warning() is not None:
        return
    mujoco.set_mju_user_warning(teller(lambda line: print(line, file=sys.stderr, flush=True)))


def teller(tell: Callable[[str], object]) -> Callable[[str], None]:
    """A listener that tells each kind of warning once. Warnings that differ in their numbers alone are of one kind. What is
    deprecated in a model is left to the model's authors."""
    said: set[str] = set()

    def hear(text: str) -> None:
        line = " ".join(str(text).split())
        kind = NUMBERS.sub("", line)
        if kind not in said and len(said) < MOST and "deprecated" not in kind:
            said.add(kind)
            tell(f"shoal: MuJoCo warns (told once): {line}")

    return hear
