"""What a user types and what they read, in this process: quicker than one of its own, which would import torch each time."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

from shoal.commands.cli import main


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line's JSON object."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def shoal(*words: object) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    return Said(code, out.getvalue(), err.getvalue())


def ran(*words: object) -> Said:
    """The same, of a command that must end well."""
    said = shoal(*words)
    assert said.code == 0, said.err
    return said


def mistake(*words: object) -> str:
    """The one line that a mistake of the user's gets."""
    said = shoal(*words)
    assert said.code == 2, said
    assert "Traceback" not in said.err
    [line] = said.err.splitlines()
    assert line.startswith("shoal: ")
    return line.removeprefix("shoal: ")
