"""Settings from a config.toml of version 0.1, which holds the settings of all methods, used by the run's method or not.

The one idea: a file of version 0.1 has the setting `aggregator` or `algorithm`. A setting that had no effect in version 0.1 is
left out, so that the others keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.jobs.job import OTHER_WORDS, Job
from shoal.jobs.methods import owners

NEEDS = {"quorum": "deadline", "deadline": "quorum", "eval_cohort": "eval_every"}  # setting -> no effect if this setting is 0


def translated(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have an effect, for `job.configured`. Settings of a later version are returned unchanged."""
    word = next((word for word in OTHER_WORDS if word in settings), None)
    if word is None or "method" in settings:
        whole = "snapshot_every" in settings and "preset" in job.options()  # a file of a run, and not a few lines of a user's
        return {**({"preset": "none"} if whole else {}), **settings}
    job = job.configured({word: settings[word]})
    counted = {name: value for name, value in settings.items() if name != word and _counts(name, value, settings, job)}
    return {"method": settings[word], **counted}


def _counts(name: str, value: Any, settings: Mapping[str, Any], job: Job) -> bool:
    if (allowed := job.options().get(name)) is None:
        return not owners(name)  # an unknown name is kept: `configured` raises an error for it
    if name == "server_lr":
        return bool(value)  # in version 0.1, 0 meant the default of the aggregation method
    if name in NEEDS:
        return bool(settings.get(NEEDS[name], 0))
    stands = {**job.plain(), **settings}
    its = [stands[other] in values for other, values in (allowed.of or {}).items() if other in stands]
    return any(its) or not its
