"""Weights & Biases and Trackio as trackers: two packages with the same few words.

The one idea: a row is logged at its step. W&B drops a row whose step it has already, so a row that is told twice is kept once;
of the newest row it may not have written anything when the follower is killed, so that row counts as told when the next one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.protocol.errors import UserError, printable
from shoal.tracking.trackers import About, Down, Point


class Logged:
    """The part that both share: a run whose rows are logged at their steps."""

    unsure = 1
    run: Any = None

    def tell(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log(dict(point.values), step=point.step)


class Wandb(Logged):
    """A run of W&B. to: PROJECT or ENTITY/PROJECT. WANDB_API_KEY, WANDB_MODE and WANDB_DIR mean what they mean to W&B."""

    def __init__(self, to: str) -> None:
        entity, _, self.project = to.rpartition("/")
        self.entity = entity or None

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        import wandb

        names = {"project": self.project, "entity": self.entity, "id": about.token, "name": about.name}
        try:
            self.run = wandb.init(**names, resume="allow")
            self.run.config.update(dict(about.params), allow_val_change=True)
        except wandb.errors.CommError as none:
            raise Down(printable(str(none), 200)) from None
        except wandb.errors.Error as wrong:
            raise UserError(f"W&B: {printable(str(wrong), 200)}") from None

    def end(self, state: str) -> None:
        self.run.finish(exit_code=int(state == "failed"))


class Trackio(Logged):
    """A run of Trackio. to: PROJECT. TRACKIO_SPACE_ID, TRACKIO_SERVER_URL and TRACKIO_DIR mean what they mean to Trackio."""

    def __init__(self, to: str) -> None:
        self.project = to

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        import trackio

        name = f"{about.name}-{about.token[:4]}"  # by which it goes on with a run
        try:
            self.run = trackio.init(project=self.project, name=name, config=dict(about.params), resume="allow")
        except OSError as none:  # errors of connections are OSErrors
            raise Down(printable(str(none), 200)) from None

    def end(self, state: str) -> None:
        self.run.finish()
