"""The choice of a job, from what a user says: a name or an object, and settings.

The one idea: the command line and `shoal.run` choose here, so the same words mean the same run. The choice says whether another
process would find the same job by its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.jobs import catalog
from shoal.jobs.catalog import INLINE, recalled
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError, signed
from shoal.runs.rundir import Config

PLAIN = (str, int, float, bool, list, tuple, type(None))


def chosen(job: Job | str | os.PathLike[str], settings: Mapping[str, Any], **given: Any) -> tuple[Job, Config, bool]:
    """The job that is meant, with its settings; the config that repeats the run; and True if config.job is the same job in any
    process. given: seed, actors, evaluators, transport, device; None is what a TOML file or the job says, else the default.

    Raises UserError.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"settings is {signed(settings)}: expected name -> value; settings={{'lr': 0.1}}, say")
    named = all(isinstance(value, PLAIN) for value in settings.values())  # a method of the user's own has a name only here
    if isinstance(job, Job):
        name, anywhere = place_of(job)
        config, named = Config(name, seed=job.seed), named and anywhere
    elif isinstance(job, str | os.PathLike):
        name = os.fspath(job)
        config = Config.load(Path(name)) if name.endswith(".toml") else Config(name)
        config = replace(config, job=absolute(config.job))
    else:
        kind = type(job).__name__
        raise UserError(f"{job!r} is of type {kind}, not a job: make one with Federated(...), or give a name, 'digits' say")
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    config.check("shoal.run")
    if isinstance(job, Job):
        found = job.configured(settings, config.seed)
    else:
        found = recalled(config.job, config.settings, config.seed).configured(settings)
    if found.virtual and given.get("actors") is None:
        config = replace(config, actors=0)
    return found, replace(config, settings=found.plain(), groups=found.groups()), named


def absolute(name: str) -> str:
    """A job's name that holds in any folder: a file's path is absolute. An attribute that is not named is `job`."""
    place, _, attribute = f"{name}:job".rpartition(":") if name.endswith(".py") else name.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if place.endswith(".py") else name


def brief(name: str) -> str:
    """A job's name for a person: a file's path as seen from the current folder, or its last part if it lies elsewhere."""
    place, _, attribute = name.removeprefix(INLINE).rpartition(":")
    if not place.endswith(".py"):
        return name.removeprefix(INLINE)
    path, here = Path(place), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path.name}:{attribute}"


def place_of(job: Any) -> tuple[str, bool]:
    """A name by which this job, or a sweep's objective, is found again, and whether another process may import it by that name.

    Another process may not import the script that is running, because it would run the script. A job that was made in a cell or
    a function stands nowhere, and its name begins with INLINE.
    """
    found = [
        (name, module, attribute)
        for name, module in list(sys.modules.items())
        if name == "__main__" or getattr(module, "__spec__", None) is not None
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is job
    ]
    for name, module, attribute in sorted(found, key=lambda place: place[0] == "__main__"):
        path = str(getattr(module, "__file__", None) or "")
        if path.endswith(".py") and "." not in name:
            return f"{Path(path).resolve()}:{attribute}", name != "__main__"
        if name != "__main__":
            return f"{name}:{attribute}", True
    return f"{INLINE}{getattr(job, 'name', None) or getattr(job, '__name__', 'objective')}", False


def refuse_within_find() -> None:
    """Raises UserError if a file starts a run while the file is read for its job."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code is catalog.named.__code__:
            raise UserError('a run is started while the file is read for its job: start it under `if __name__ == "__main__":`')
