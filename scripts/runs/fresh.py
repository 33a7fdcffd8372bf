"""A nursery in a fresh interpreter (actors/pool.py), which finds the job by its name, as the user's own process did.

The one idea: a name, plain settings and a seed come over the line, and nothing is unpickled. The parent is the same user, so
the name may be a file's.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from typing import Any

from shoal.actors.pool import Life, Nursery
from shoal.jobs.catalog import recalled
from shoal.protocol.parent import die_with_parent, lived
from shoal.runs.living import life_of
from shoal.runs.theirs import told
from shoal.runs.threads import few


def main(descriptor: int, parent: int) -> None:
    """Read the job's name, settings and seed from the line, import the job, and fork actors until the parent is gone."""

    def made(word: Any) -> tuple[str, Callable[[], Life]]:
        name, settings, seed = word

        def life() -> Life:
            job = recalled(name, settings, seed)
            job.prepare()
            job.check_parts()  # and so import what they need
            return life_of(job)

        return name, life

    serve(descriptor, parent, made)


def serve(descriptor: int, parent: int, made: Callable[[Any], tuple[str, Callable[[], Life]]]) -> None:
    """Read one word of JSON from the line, and fork processes until the parent is gone. made: from the word, the name of what
    is imported and a function that imports it and gives the life of the processes."""
    die_with_parent(parent)
    line, heard = socket.socket(fileno=descriptor), b""
    while b"\n" not in heard:
        if not (chunk := line.recv(65_536)):
            return
        heard += chunk
    name, make = made(json.loads(heard.partition(b"\n")[0]))
    try:
        life = make()
    except Exception as raised:
        why = told(raised, name)
        line.sendall(json.dumps(why or f"{name} cannot be prepared in a fresh interpreter: {raised!r}").encode() + b"\n")
        if why is None:
            raise
        return
    few()
    Nursery(line, life, parent).serve()


if __name__ == "__main__":
    lived(lambda: main(int(sys.argv[1]), int(sys.argv[2])))
