"""Writes the table in README.md from results/*.json: `python -m shoal.benchmarks.ledger`.

The one idea: nobody types a figure. The table shows the last measurements, and the machine that they were made on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.benchmarks.run import cases, number, results

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
HEAD = ("command", "figure", "goal", "floor", "peer", "ratio", "holds", "load before")


def rows(folder: Path) -> list[str]:
    """Returns lines of Markdown: a row for each case that was measured, in the order of `shoal bench`."""
    found = [json.loads(path.read_text()) for name in cases() if (path := folder / f"{name}.json").exists()]
    lines = [_row(HEAD), _row(["---"] * len(HEAD)), *(_row(_cells(one)) for one in found)]
    return [*lines, "", *(f"Measured on: {text}." for text in dict.fromkeys(_machine(one) for one in found))]


def _machine(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['cores']} cores ({machine['cpu']}), {machine['memory'] / 2**30:.0f} GiB, {libraries}"


def _cells(found: Mapping[str, Any]) -> list[str]:
    quick = " --quick" if found["quick"] else ""
    holds = {None: "not measured", True: "yes", False: "no"}[found["holds"]]
    return [
        f"`shoal bench {found['case']}{quick}`",
        f"{_number(found['figure'])} {found['unit']}",
        found["asked"],
        _number(found["floor"]),
        _number(found["peer"]),
        _number(found["ratio"]),
        holds,
        f"{found['machine']['load'][0]:.1f}",
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def written(readme: str, lines: Sequence[str]) -> str:
    """Returns the text of the readme with `lines` between the two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"


def main() -> int:
    readme = results().parent / "README.md"
    readme.write_text(written(readme.read_text(), rows(results())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
