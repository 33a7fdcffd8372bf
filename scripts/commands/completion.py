"""Completion of words in a shell: `eval "$(register-python-argcomplete shoal)"` switches it on.

The one idea: the tables of names that serve the error for a wrong name also complete a right name.
"""

from __future__ import annotations

import argparse
from typing import Any


def jobs(**_: Any) -> list[str]:
    """The names of the built-in jobs. (The shell completes names of files by itself.)"""
    from shoal.jobs.catalog import BUILT_IN

    return list(BUILT_IN)


def settings(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """`key=` for each setting of the job on the line; after `key=`, the setting's choices if it has a list of choices."""
    from shoal.jobs.catalog import built_in

    job = built_in(parsed_args.job)
    if job is None:
        return []
    choices = {"method": tuple(job.fitting()), **{name: allowed.choices for name, allowed in job.options().items()}}
    name, sign, _value = prefix.partition("=")
    if sign and name in choices:
        return [f"{name}={choice}" for choice in choices[name]]
    return [f"{name}=" for name in choices]
