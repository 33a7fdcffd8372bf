"""What a shell is offered for a word that has begun: `eval "$(register-python-argcomplete shoal)"` switches it on.

The one idea: the same tables that answer a wrong name complete a right one.
"""

from __future__ import annotations

import argparse
from typing import Any


def jobs(**_: Any) -> list[str]:
    """Names of jobs. (Files are the shell's own business.)"""
    from shoal.jobs.catalog import BUILT_IN

    return list(BUILT_IN)


def settings(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """`key=` of the job that is named already, and its values where they are few."""
    from shoal.jobs.catalog import built_in

    job = built_in(parsed_args.job)
    if job is None:
        return []
    choices = {"method": tuple(job.fitting()), **{name: allowed.choices for name, allowed in job.options().items()}}
    name, sign, _value = prefix.partition("=")
    if sign and name in choices:
        return [f"{name}={choice}" for choice in choices[name]]
    return [f"{name}=" for name in choices]
