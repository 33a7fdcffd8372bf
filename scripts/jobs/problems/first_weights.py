"""Weights of version 0 from a file, or from another run.

The one idea: weights of another network are refused by the settings in which the two runs differ, and not by the name of an
array alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.jobs.settings import shown
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from torch import nn

BEST = "best"  # folder of a run's best weights in its own (runs/best.py)


def fill(module: nn.Module, name: str, place: str, wanted: Mapping[str, Any] | None = None) -> None:
    """Copy the weights of a .safetensors file, or the newest of a run, into a module. name: the setting's. place: the file, the
    run's folder, or its folder `best`. wanted: what the job says of its network, by the names of settings. Raises UserError,
    which compares the two networks if the run's config.toml is at hand."""
    from shoal.coordinator.keeping.store import FOLDER, snapshots
    from shoal.nets.saved import read_weights

    path = Path(place)
    had = _run_of(path)
    if not path.exists() and "job" in had:
        why = "the run keeps no best weights, as it does with keep_best=true" if path.name == BEST else "no such file or folder"
        raise UserError(f"{name}={place}: {why}; the folder of a run has its newest weights")
    if path.is_dir():
        found = snapshots(path / FOLDER) if (path / FOLDER).is_dir() else []
        if not found:
            raise UserError(f"{name}={place}: holds no weights of a run; give the folder of a run, runs/latest say")
        path = found[-1][1]
    differ = [each for each in wanted or {} if each in had and shown(had[each]) != shown((wanted or {})[each])]
    try:
        read_weights(module, path)
    except UserError as odd:
        if "job" not in had:
            raise UserError(f"{name}={odd}") from odd
        detail = str(odd).removeprefix(f"{path}: ")
        raise UserError(f"{name}={place}: {_unlike(had, wanted or {}, differ)} ({detail})") from odd
    if "activation" in differ:  # the arrays are alike, and what they compute is not
        raise UserError(f"{name}={place}: {_unlike(had, wanted or {}, ['activation'])}")


def _run_of(place: Path) -> dict[str, Any]:
    """The settings in the config.toml of the run that a file or a folder belongs to, by name; {} if there is none."""
    for folder in (place, *list(place.absolute().parents)[:2]):
        try:
            told = tomllib.loads((folder / "config.toml").read_text())
        except (OSError, ValueError):
            continue
        if "job" not in told:
            continue
        tables = {key: each for key, each in told.items() if isinstance(each, dict)}
        flat = {key: each for table in tables.values() for key, each in table.items()}
        method = tables.get("method", {}).get("name", told.get("method"))
        return {**flat, **{key: each for key, each in told.items() if key not in tables}, "method": method}
    return {}


def _unlike(had: Mapping[str, Any], wanted: Mapping[str, Any], differ: Sequence[str]) -> str:
    """The network that a run has and the one that a job wants, and what to type."""
    theirs, ours = (" ".join(f"{each}={shown(its[each])}" for each in differ) for its in (had, wanted))
    named = str(had["job"]).removeprefix("inline:")
    if not differ:
        return (
            f"the run (job {named}) has a network with other arrays than this job's: give a run with its model, data or spaces"
        )
    same = [each for each in differ if each != "method"]
    fix = f"{theirs} fits, if observations and actions are alike" if same else f"{theirs} learns such a network"
    return f"the run (job {named}) has a network of {theirs}, and this job's is of {ours}; {fix}"
