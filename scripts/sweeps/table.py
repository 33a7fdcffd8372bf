"""The table of a sweep's arms, and the closing words.

The one idea: an arm is told with its interval, and with what the interval cannot tell apart from the best.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.jobs.catalog import INLINE
from shoal.runs.choosing import brief
from shoal.runs.progress import escaped
from shoal.sweeps.arms import Arm, Goal, as_good, best, lineage, ranked, tree
from shoal.sweeps.space import said, short

if TYPE_CHECKING:
    from shoal.sweeps.found import Sweep

FAILED = 5  # failed trials that are told one by one


def table(arms: Sequence[Arm], goal: Goal, most: int = 20) -> str:
    """The arms as aligned columns, best first; at most `most` of them."""
    order, first = ranked(arms, goal), best(arms, goal)
    names = list(dict.fromkeys(name for arm in order for name in arm.params))
    lineage = any(arm.origin is not None for arm in arms)
    rows = [["arm", *(["from"] if lineage else []), *names, goal.metric, "95 % interval", "seeds", "steps", ""]]
    for arm in order[:most]:
        seen = arm.interval
        cells = ["-" if arm.origin is None else str(arm.origin)] if lineage else []
        cells += [short(arm.params[name]) if name in arm.params else "-" for name in names]
        value = f"{arm.mean:.5g}" if arm.state == "complete" else "-"
        between = f"[{seen[0]:.5g}, {seen[1]:.5g}]" if seen and arm.state == "complete" else "-"
        rows.append([str(arm.number), *cells, value, between, str(len(arm.values)), f"{arm.steps:,}", _word(arm, first)])
    if not any(arm.steps for arm in arms):  # of an objective that reports nothing
        rows = [[cell for at, cell in enumerate(row) if at != len(row) - 2] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = len(order) - most
    return "\n".join([*lines, *([f"... and {left} more arms, in arms.jsonl"] if left > 0 else [])])


def drawn(arms: Sequence[Arm], goal: Goal) -> str:
    """The arms of a population as a tree: below each arm the arms that began from its snapshot."""
    first = best(arms, goal)
    lines = []
    for depth, arm in tree(arms):
        value = f"{arm.mean:.5g}" if arm.state == "complete" else arm.state
        lines.append(f"{'  ' * depth}{arm.number}  {said(arm.params)}  {value}{'  best' if arm is first else ''}")
    return "\n".join(lines)


def descent(arms: Sequence[Arm], arm: Arm) -> str:
    """An arm's way, from its first ancestor on, with the settings of each part of the run: "0 (lr=0.1) -> 5 (lr=0.08)"."""
    return " -> ".join(f"{each.number} ({said(each.params)})" for each in lineage(arms, arm))


def which(row: Mapping[str, Any]) -> str:
    """A trial as a person finds it again: "trial 3 (lr=0.1 seed=2)", from its row of trials.jsonl."""
    return f"trial {row['trial']} ({said({**row['params'], 'seed': row['seed']})})"


def _word(arm: Arm, first: Arm | None) -> str:
    """Return the words that stand beside an arm's numbers."""
    if arm is first:
        return "best"
    if arm.state == "failed":
        return escaped(f"failed: {arm.why}")[:100]
    if arm.state != "complete":
        return arm.state
    return "cannot be told from the best" if first is not None and as_good(arm, first) else ""


def closing(found: Sweep) -> str:
    """The closing words for a person: the table, the best arm, the folder, and commands to try next, which can be pasted."""
    arms, goal, asked = found.arms, found.goal, found.asked
    folder = _near(found)
    states = [row["state"] for row in found.trials]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed", "running") if state in states
    )
    lines = [table(arms, goal), "", f"{brief(asked.name)}: {len(states)} trials ({counts or 'none'})."]
    failed = [row for row in found.trials if row["state"] == "failed"]
    lines += [escaped(f"Failed: {which(row)}: {row['why']}") for row in failed[:FAILED]]
    lines += [f"... and {len(failed) - FAILED} more failed trials, in trials.jsonl"] if len(failed) > FAILED else []
    if (arm := best(arms, goal)) is not None:
        seen = (
            f", 95 % interval [{arm.interval[0]:.4g}, {arm.interval[1]:.4g}] over {len(arm.values)} seeds"
            if arm.interval
            else ""
        )
        lines.append(f"Best: {said(arm.params) or 'its only arm'}: {goal.metric} {arm.mean:.4g}{seen}.")
        if arm.origin is not None:
            lines.append(f"Its way through the population: {descent(arms, arm)}.")
    lines.append(f"The sweep lies in {folder}: trials.jsonl, arms.jsonl, sweep.png, best/ and more.")
    tries = []
    if found.reason != "done":
        tries.append((f"shoal resume {shlex.quote(folder)}", "from where it stopped"))
    if arm is not None and asked.sampler.startswith("pbt"):
        first = min(row["trial"] for row in found.trials if row["arm"] == arm.number)
        where = shlex.quote(f"{folder}/trials/{first:04d}")
        tries.append((f"shoal export {where} --to best.safetensors", "the best arm's weights"))
    elif arm is not None and asked.job and not asked.job.startswith(INLINE):
        tries.append(
            (f"shoal simulate {shlex.quote(f'{folder}/best/config.toml')}", "the best arm's first run again, bit for bit")
        )
    if asked.job:
        tries.append((f"shoal plot {shlex.quote(folder)}/trials/*", "the learning curves of all trials"))
    widest = max((len(command) for command, _ in tries), default=0)
    return "\n".join(
        [*lines, *([""] if tries else []), *(["Next:"] if tries else []), *(f"  {c:<{widest}}  {why}" for c, why in tries)]
    )


def _near(found: Sweep) -> str:
    """The sweep's folder as it is typed from here."""
    from pathlib import Path

    here = Path.cwd()
    return str(found.folder.relative_to(here) if found.folder.is_relative_to(here) else found.folder)
