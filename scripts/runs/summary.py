"""The summary of a run that has ended: numbers for programs, and a few lines for a person.

The one idea: `--json`, summary.json and the closing lines are made from one dict, so that they cannot disagree.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.coordinator.reports import Progress
from shoal.envs.population import listed
from shoal.runs.metrics import FIRST, own
from shoal.runs.progress import clock, escaped
from shoal.runs.rundir import Config, finite


def summary(
    progress: Progress,
    config: Config,
    threads: int,
    weights_sha256: str,
    run_dir: Path | str,
    conditions: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of `--json` and summary.json. Rates are means over the whole run; None means that a number is not known.
    threads: the number of threads that each process, learner or actor, computes with. conditions: what is told beside each
    result (`Problem.conditions`)."""
    seconds = progress.seconds
    return {
        "job": config.job,
        "seed": config.seed,
        "actors": config.actors,
        "version": progress.version,
        "contributions": progress.contributions,
        "seconds": round(seconds, 6),
        "rounds_per_second": progress.version / seconds if seconds > 0 else None,
        "steps": progress.steps,
        "steps_per_second": progress.steps / seconds if seconds > 0 else None,
        "metrics": finite(progress.metrics),
        "weights_sha256": weights_sha256,
        "run_dir": str(run_dir),
        "threads": threads,
        "left_out": sorted(progress.left_out),
        "left_out_why": next(iter(progress.left_out.values()), ""),
        **({"conditions": list(conditions)} if conditions else {}),
        **({"virtual": True} if progress.virtual else {}),
        **({"fallen": progress.fallen} if progress.fallen else {}),
    }


def json_line(summary: Mapping[str, Any]) -> str:
    """The summary as one line of strict JSON: NaN and infinities become null."""
    return json.dumps(finite(summary), allow_nan=False)


def closing(summary: Mapping[str, Any], whole: bool = True) -> str:
    """The closing lines for a person: the result, the run's folder, and commands to try next, which can be pasted. whole: the
    run has reached its goal; if not, the first command goes on with it."""
    kept = "learning.png, metrics.jsonl, checkpoints/ and more" if summary["version"] else "log.txt and more"
    go_on = (f"shoal resume {shlex.quote(summary['run_dir'])}", "from where it stopped")
    tries = [go_on] * (not whole) + _next(summary) * (summary["version"] > 0)
    widest = max((len(command) for command, _ in tries), default=0)
    lines = [
        _result(summary),
        *map(escaped, summary.get("conditions", ())),
        *_clients(summary["metrics"]),
        *_left_out(summary),
        *_inference(summary["metrics"]),
        *([f"Fell back: {summary['fallen']}."] if summary.get("fallen") else []),
        f"The run lies in {summary['run_dir']}: {kept}.",
    ]
    lines += ["", "Next:"] * bool(tries) + [f"  {command:<{widest}}  {why}" for command, why in tries]
    return "\n".join(lines)


def _result(summary: Mapping[str, Any]) -> str:
    metrics: Mapping[str, Any] = summary["metrics"]
    names = [name for name in (FRESH, *FIRST, *own(metrics)) if metrics.get(name) is not None]
    found = ", ".join(f"{_WORDS.get(name, escaped(name))} {metrics[name]:.4g}{_age(name, metrics)}" for name in names)
    found = found or "no metrics"
    work = f"{summary['steps']:,} environment steps" if summary["steps"] else f"{summary['version']:,} rounds"
    key = "steps_per_second" if summary["steps"] else "rounds_per_second"
    pace = "" if summary[key] is None else f" ({summary[key]:,.1f} {key.split('_')[0]}/s)"
    time = clock(summary["seconds"]) + " of virtual time" * summary.get("virtual", False)
    return f"{escaped(summary['job'])}: {found} after {work} in {time}{pace}."


def _age(name: str, metrics: Mapping[str, Any]) -> str:
    """The age of the episodes of a mean return, in words; "" for another metric."""
    age = metrics.get("return_age") if name == "return_mean" else None
    return "" if age is None else f" (which ended {age:,.0f} steps before, on average)"


def _clients(metrics: Mapping[str, Any]) -> list[str]:
    """A line about the distribution of accuracy over clients, else of loss; none if too few clients were evaluated."""
    for name in ("accuracy", "loss"):
        found = {where: metrics.get(f"eval/{name}/{where}") for where in ("worst_tenth", "p10", "p50", "p90")}
        if all(value is not None for value in found.values()):
            low, half, high = (f"{found[where]:.4g}" for where in ("p10", "p50", "p90"))
            return [
                f"On clients: {name} {half} at the median, {low} to {high} for the middle eight tenths, "
                f"{found['worst_tenth']:.4g} for the worst tenth."
            ]
    return []


def _left_out(summary: Mapping[str, Any]) -> list[str]:
    """The line about clients whose tasks were set aside and that have contributed nothing since; none if there are none."""
    if not (clients := summary.get("left_out")):
        return []
    why = escaped(str(summary["left_out_why"])).split("\n")[0]
    remedy = "; drop_last=true leaves a batch of one out" if "more than 1 value per channel" in why else ""
    return [f"Left out: {len(clients)} clients ({listed(clients)}), whose last tasks all failed: {why}{remedy}."]


def _inference(metrics: Mapping[str, Any]) -> list[str]:
    """The line on where the network was computed, if it was not in the actors alone."""
    if (share := metrics.get("inference_central")) is None:
        return []
    return [f"Inference: {share:.0%} of the last observations in the inference process, the others in the actors."]


FRESH = "eval/return_mean"
_WORDS = {
    FRESH: "mean return of fresh greedy episodes",
    "accuracy": "held-out accuracy",
    "held_out_loss": "held-out loss",
    "return_mean": "mean return of the last 100 episodes",
    "loss": "training loss",
}


def _next(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    run, config = shlex.quote(summary["run_dir"]), shlex.quote(f"{summary['run_dir']}/config.toml")
    fresh = "fresh episodes" if summary["steps"] else "held-out data"
    return [
        (f"shoal evaluate {run}", f"the trained weights on {fresh}"),
        (f"shoal simulate {config} --seed {summary['seed'] + 1}", f"again with other luck; then: shoal plot {run} runs/latest"),
        (f"shoal export {run} --to model.safetensors", "the weights, for use elsewhere"),
    ]
