"""A worker around another, which does the work.

The one idea: a wrap says only what it changes; the rest is the other worker's.
"""

from __future__ import annotations

from shoal.actors import Worker, close


class Around:
    """A worker around another one, but for its `run`."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @property
    def thin(self) -> bool:
        """True if frozen parameters are left out of deltas, as LocalSGD's `thin` says."""
        return bool(getattr(self.worker, "thin", False))

    @thin.setter
    def thin(self, thin: bool) -> None:
        setattr(self.worker, "thin", thin)  # noqa: B010  a LocalSGD, whose module needs torch

    def close(self) -> None:
        close(self.worker)
