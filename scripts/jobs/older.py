"""Settings from a config.toml of version 0.1, which holds the settings of all methods, used by the run's method or not.

The one idea: a file of version 0.1 has the setting `aggregator` or `algorithm`. A setting that had no effect in version 0.1 is
left out, so that the others keep their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.jobs.job import OTHER_WORDS, Job
from shoal.jobs.methods import owners
from shoal.jobs.settings import Range

NEEDS = {"quorum": "deadline", "deadline": "quorum", "eval_cohort": "eval_every"}  # setting -> no effect if this setting is 0
CODECS = {"compress_ratio": {"topk", "randk"}, "compress_block": {"int8", "int4"}}


def translated(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have an effect, for `job.configured`. Settings of a later version are returned unchanged."""
    word = next((word for word in OTHER_WORDS if word in settings), None)
    if word is None or "method" in settings:
        return dict(settings)
    options = job.configured({word: settings[word]}).options()
    return {
        "method": settings[word],
        **{name: value for name, value in settings.items() if name != word and _counts(name, value, settings, options)},
    }


def _counts(name: str, value: Any, settings: Mapping[str, Any], options: Mapping[str, Range]) -> bool:
    if name not in options:
        return not (owners(name) or name in CODECS)  # an unknown name is kept: `configured` raises an error for it
    if name == "server_lr":
        return bool(value)  # in version 0.1, 0 meant the default of the aggregation method
    if name in NEEDS:
        return bool(settings.get(NEEDS[name], 0))
    if name in CODECS:
        return bool(CODECS[name] & {settings.get("compress", "none"), settings.get("compress_weights", "none")})
    of = options[name].of
    return of is None or settings.get(of[0], of[1][0]) in of[1]
