"""Settings as version 0.1 wrote them into config.toml: of all methods at once, whether the run's own used them or not.

The one idea: such a file is known by the word `aggregator` or `algorithm`. What had no effect in version 0.1 is left out, so
that the rest means what it meant then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.jobs.job import OTHER_WORDS, Job
from shoal.jobs.methods import owners
from shoal.jobs.settings import Range

NEEDS = {"quorum": "deadline", "deadline": "quorum", "eval_cohort": "eval_every"}  # without effect where the other one is 0
CODECS = {"compress_ratio": {"topk", "randk"}, "compress_block": {"int8", "int4"}}


def translated(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that count, for `job.configured`. Others than those of version 0.1 are handed on as they are."""
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
        return not (owners(name) or name in CODECS)  # a name that nobody knows is an error, then as now
    if name == "server_lr":
        return bool(value)  # 0 was the rule's own
    if name in NEEDS:
        return bool(settings.get(NEEDS[name], 0))
    if name in CODECS:
        return bool(CODECS[name] & {settings.get("compress", "none"), settings.get("compress_weights", "none")})
    of = options[name].of
    return of is None or settings.get(of[0], of[1][0]) in of[1]
