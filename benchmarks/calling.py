"""Shoal's pool, asked the questions of peers/pools.py in a process of its own. Words: QUESTION NUMBER.

The one idea: this module imports what a user's program would, because one question is of the CPU from its start.
"""

from __future__ import annotations

import json
import sys

import shoal
from shoal.benchmarks.peers import pools


def main(question: str, number: str) -> None:
    if question in ("array", "memory"):
        import numpy  # noqa: F401  as a program with arrays does at its top

    with shoal.Pool(pools.PROCESSES) as pool:
        engine = pools.Asked(lambda *call: pool.submit(*call).result, pool.map, pool.put)
        print(json.dumps({"figure": pools.answer(engine, question, int(number))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
