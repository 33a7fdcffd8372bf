"""The trackers that a run can be told to, what each needs, and what a tracker is told.

The one idea: a tracker has three methods, and says with `Down` that it may be asked again. All else (where the follower stands,
when it tries again, when it ends) is the follower's.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from shoal.jobs.settings import nearest
from shoal.protocol.errors import UserError, signed


class Down(Exception):  # noqa: N818  not a fault of the program: the follower tries again
    """A tracker cannot be reached at present."""


@dataclass(frozen=True, slots=True)
class About:
    """A run as trackers know it. name: of its folder. token: 16 hex digits, the same for all lives of the run with this
    tracker. started: Unix time in seconds when the run's `seconds` were 0. params: settings of config.toml by name."""

    name: str
    token: str
    started: float
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """A row of metrics.jsonl. step: environment steps if the run counts any, else the version. at: Unix time in seconds.
    values: name -> finite number: the metrics, and version, seconds, contributions, actors, lag/mean, and steps if there are
    any."""

    version: int
    step: int
    seconds: float
    at: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """A tracker, which is told rows. All methods raise Down if they may be called again, and UserError if that is of no use.

    unsure: number of the newest rows told that a kill of the follower may lose; after a restart they are told again.
    """

    unsure: int

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        """Begin, or go on with a run that an earlier follower told. memory: plain data of this tracker's own, which is kept
        after each call and handed to the next follower."""

    def tell(self, points: Sequence[Point]) -> None:
        """Tell these rows, in their order. The same rows may be told again."""

    def end(self, state: str) -> None:
        """Say that the run is over. state: "finished", "stopped" or "failed"."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A tracker that is known. place: the class, as module:name. needs: a module that must be installed, "" if none. to: the
    words for its place. default: of the place, if none is named; $NAME is a variable of the environment."""

    place: str
    needs: str
    to: str
    default: tuple[str, ...] = ()


TRACKERS: Mapping[str, Kind] = {
    "mlflow": Kind("to_mlflow:MLflow", "", "the URI of a server or a store", ("$MLFLOW_TRACKING_URI",)),
    "tensorboard": Kind("to_tensorboard:TensorBoard", "tensorboard", "a folder", ("tensorboard",)),
    "wandb": Kind("to_wandb:Wandb", "wandb", "PROJECT or ENTITY/PROJECT", ("$WANDB_PROJECT", "shoal")),
    "trackio": Kind("to_wandb:Trackio", "trackio", "PROJECT", ("$TRACKIO_PROJECT", "shoal")),
    "prometheus": Kind("to_prometheus:Prometheus", "", "PORT or FILE.prom", ("9464",)),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tracker that was asked for. to: its place, "" for the tracker's own choice."""

    name: str
    to: str

    def __str__(self) -> str:
        return self.name

    @property
    def held(self) -> bool:
        """True if the end of a run waits a few seconds for this tracker. Prometheus comes by itself, and seldom."""
        return self.name != "prometheus" or self.to.endswith(".prom")

    @property
    def file(self) -> str:
        """The name of what a follower keeps of this tracker in the run's folder. The place itself, which may hold a password,
        is not written down."""
        return f"{self.name}-{blake2b(self.to.encode(), digest_size=4).hexdigest()}"

    def made(self) -> Tracker:
        module, _, attribute = TRACKERS[self.name].place.partition(":")
        found: Tracker = getattr(importlib.import_module(f"shoal.tracking.{module}"), attribute)(self.to)
        return found


def wanted(words: str | Sequence[str] | None) -> tuple[Wanted, ...]:
    """The trackers that words like "mlflow" or "mlflow=http://127.0.0.1:5000" ask for.

    Raises UserError for a tracker that is not known or not installed, for a place that it cannot have, and for a tracker that
    is asked for twice at one place.
    """
    listed = [words] if isinstance(words, str) else list(words or ())
    found = tuple(_wanted(word) for word in listed)
    for at, one in enumerate(found):
        if one in found[:at]:
            raise UserError(f"track={listed[at]}: {one} is asked for twice at the same place; give each tracker once")
    return found


def _wanted(word: Any) -> Wanted:
    if not isinstance(word, str):
        raise UserError(
            f"track: {signed(word)} is no tracker's name: track='mlflow', or track=['mlflow', 'prometheus=9464'], say"
        )
    name, sign, to = word.partition("=")
    if name not in TRACKERS:
        raise UserError(f"track={word}: {name!r} is not known: {nearest(name, TRACKERS)}")
    kind = TRACKERS[name]
    if sign and not to.strip():
        raise UserError(f"track={word}: the place is empty; {name}={kind.to}, or {name} alone")
    chosen = _without_slash(to.strip()) if sign else _default(kind)
    if kind.needs and importlib.util.find_spec(kind.needs) is None:
        raise UserError(f"track={name} needs {kind.needs}, which is not installed: pip install {kind.needs}")
    module = importlib.import_module(f"shoal.tracking.{kind.place.partition(':')[0]}")
    if (check := getattr(module, "check", None)) is not None:
        check(word, chosen)
    return Wanted(name, str(Path(chosen).absolute()) if name == "tensorboard" or chosen.endswith(".prom") else chosen)


def _default(kind: Kind) -> str:
    for word in kind.default:
        if found := _without_slash(os.environ.get(word[1:], "")) if word.startswith("$") else word:
            return found
    return ""


def _without_slash(place: str) -> str:
    """A place without slashes at its end, so that two ways to write one place are one."""
    short = place.rstrip("/")
    return place if not short or short.endswith(":") else short
