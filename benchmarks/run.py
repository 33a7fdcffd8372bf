"""`shoal bench`: runs the named cases, prints a JSON line for each and a table, and writes the findings to disk.

The one idea: a goal that is missed is a finding like any other (exit code 0); only a case that crashes is an error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.benchmarks import (
    acting,
    adding,
    asynchronous,
    averaging,
    calls,
    cohorts,
    comparing,
    compression,
    connections,
    control,
    core,
    footprint,
    gpu,
    heartbeat,
    learning,
    loading,
    malicious,
    moving,
    overhead,
    pictures,
    searching,
    serving,
    solving,
    startup,
    sweeping,
    throughput,
    together,
    watching,
)
from shoal.benchmarks.alone import CrashedError, apart
from shoal.benchmarks.case import Case, Finding, line
from shoal.benchmarks.machine import facts, versions
from shoal.jobs.settings import nearest
from shoal.protocol.errors import UserError

FIGURES: Mapping[str, Case] = {
    "digits": learning.digits,
    "round-overhead": overhead.round_overhead,
    "cartpole": learning.cartpole,
    "cartpole-ppo": learning.cartpole_ppo,
    "cartpole-learn": acting.cartpole_learn,
    "cartpole-collect": acting.cartpole_collect,
    "cartpole-solve": solving.cartpole_solve,
    "lunarlander": solving.lunarlander,
    "cheetah": acting.cheetah,
    "pong": pictures.pong,
    "staleness": solving.staleness,
    "overhead": acting.overhead,
    "scaling": acting.scaling,
    "rl-gpu": pictures.rl_gpu,
    "cartpole-dqn": learning.cartpole_dqn,
    "startup": startup.startup,
    "noop": throughput.noop,
    "noop-sums": throughput.noop_sums,
    "contributions-5mb": throughput.contributions_5mb,
    "sums": adding.sums,
    "gpu": gpu.gpu,
    "registry": throughput.registry,
    "weights-local": moving.weights_local,
    "weights-tcp": moving.weights_tcp,
    "contributions-4mb": moving.contributions_4mb,
    "compression": compression.compression,
    "control": control.control,
    "heartbeat": heartbeat.heartbeat,
    "round-tcp": moving.round_tcp,
    "memory": footprint.memory,
    "connections": connections.connections,
    "core": core.core,
    "compare": comparing.compare,
    "sweep": sweeping.sweep,
    "watch": watching.watch,
    "loader": loading.loader,
    "serve": serving.serve,
    "tasks-single": calls.tasks_single,
    "tasks-map": calls.tasks_map,
    "tasks-start": calls.tasks_start,
    "tasks-array": calls.tasks_array,
    "tasks-kill": calls.tasks_kill,
    "tasks-grid": searching.tasks_grid,
    "fl-a": together.fl_a,
    "fl-b": cohorts.fl_b,
    "fl-c": cohorts.fl_c,
    "fl-d": together.fl_d,
    "fl-f": averaging.fl_f,
    "fl-g": malicious.fl_g,
    "fl-e": asynchronous.fl_e,
    "fl-h": together.fl_h,
}


def cases() -> Mapping[str, Case]:
    """Returns all cases by name: figures, and in a checkout the cases of tests/faults/, which the wheel does not have."""
    try:
        from shoal.faults.cases import FAULTS
    except ModuleNotFoundError:
        return FIGURES
    return {**FIGURES, **FAULTS}


Measure = Callable[[Case, bool], tuple[Finding, float]]
COLUMNS = ("case", "figure", "unit", "goal", "floor", "peer", "ratio", "holds", "seconds")


def main(
    names: Sequence[str],
    quick: bool,
    as_json: bool,
    *,
    registry: Mapping[str, Case] | None = None,
    measure: Measure = apart,
    folder: Path | None = None,
) -> int:
    """Runs the named cases, or all. Returns the exit code: 0, or 1 if a case crashed. Raises UserError for an unknown name."""
    known = cases() if registry is None else registry
    for name in names:
        if name not in known:
            raise UserError(f"unknown case {name!r}: {nearest(name, known)}")
    into = folder or results()
    lines, crashed = [], 0
    for name in names or known:
        machine = facts()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            finding, seconds = measure(known[name], quick)
        except CrashedError as crash:
            print(f"shoal: case {name} crashed ({crash})", file=sys.stderr)
            crashed = 1
            continue
        lines.append(line(name, finding, seconds, versions(), quick))
        print(json.dumps(lines[-1], allow_nan=False), flush=True)
        keep(into, lines[-1], machine)
    if not as_json:
        print("\n".join(table(lines)))
    return crashed


def results() -> Path:
    """Returns benchmarks/results in a checkout, else benchmarks-results in the current folder."""
    here = Path(__file__).resolve().parent
    checkout = (here.parent / "pyproject.toml").exists() and os.access(here, os.W_OK)
    return here / "results" if checkout else Path("benchmarks-results")


def keep(folder: Path, found: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Writes CASE.json, with the machine's facts from before the case, and CASE.png."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{found['case']}.tmp"
    part.write_text(json.dumps({**found, "machine": machine}, indent=2, allow_nan=False) + "\n")
    part.replace(folder / f"{found['case']}.json")
    picture(found, folder / f"{found['case']}.png")


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Draws a bar for each of figure, floor, peer and goal that was measured; nothing if none was, or without matplotlib."""
    bars = {name: found[name] for name in ("figure", "floor", "peer", "goal") if found[name] is not None}
    if not bars:
        return
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    drawn = Figure(figsize=(5, 0.6 + 0.4 * len(bars)), layout="constrained")
    axes = drawn.add_subplot()
    colours = {"figure": "#0072b2", "floor": "#999999", "peer": "#d55e00", "goal": "#009e73"}
    shown = axes.barh(list(bars), list(bars.values()), color=[colours[name] for name in bars])
    axes.bar_label(shown, [f" {number(value)}" for value in bars.values()])
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.set_title(found["case"])
    axes.set_xlabel(found["unit"])
    drawn.savefig(path, dpi=100)


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the findings as aligned columns, a line each under a head."""
    rows = [COLUMNS, *(tuple(_cell(found[column]) for column in COLUMNS) for found in lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
    return str(value)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
