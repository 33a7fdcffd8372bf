"""The worker of federated reinforcement learning: a client's data are what it sees when it acts in environments of its own.

The one idea: once a client has acted with the weights of its task, the rows of its trajectory are a data set like any other. So
the worker that trains on it is the one of federated learning, and every federated method takes part unchanged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from shoal.actors import Worker, close, work_of
from shoal.actors.workers.rollout import Rollout
from shoal.envs.datasets import Examples
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

Floats = npt.NDArray[np.float32]
Judge = Callable[[Bundle, Bundle], tuple[Floats, Floats]]
"""(weights, trajectory) -> (advantage, target of the value), each [T, B]."""
KEPT = 32  # clients whose environments an actor keeps


@dataclass(eq=False, repr=False)
class Experience:
    """The trajectories of the clients, as data sets.

    rollout: client -> its worker that acts. judge: see Judge. A row of a data set is an observation x, float32 [N, *obs], and
    y, float32 [N, A + 3]: the action (A numbers; the index of a Discrete action is one), its log probability, its advantage and
    the target of the value. Advantages have mean 0 and standard deviation 1 over a client's rows.
    """

    rollout: Callable[[int], Rollout]
    judge: Judge
    seen: dict[int, Examples] = field(default_factory=dict)
    acting: OrderedDict[int, Rollout] = field(default_factory=OrderedDict)

    def act(self, weights: Bundle, client: int, task: Task) -> Work:
        """Act with the weights in fresh episodes and keep what was seen. The work holds no bundle."""
        acts = self._acts(client)
        acts.anew(client, task)
        work = acts.run(weights, client, replace(task, kind="train"))
        assert work.bundle is not None
        self.seen = {client: _examples(work.bundle, *self.judge(weights, work.bundle))}
        return replace(work, bundle=None)

    def evaluate(self, weights: Bundle, client: int, task: Task) -> Work:
        """Greedy episodes in the client's environments."""
        return self._acts(client).run(weights, client, task)

    def examples(self, client: int) -> Examples:
        """The rows of the client's last trajectory."""
        return self.seen[client]

    def _acts(self, client: int) -> Rollout:
        if client not in self.acting:
            self.acting[client] = self.rollout(client)
            if len(self.acting) > KEPT:
                close(self.acting.popitem(last=False)[1])
        self.acting.move_to_end(client)
        return self.acting[client]

    def close(self) -> None:
        with ExitStack() as stack:
            for acts in self.acting.values():
                stack.callback(acts.close)
            self.acting.clear()


@dataclass(eq=False, repr=False)
class Playing:
    """A worker that lets `inner` train on what the client has just seen. The work is the inner worker's, with the steps made in
    the environments and with the returns and lengths of the episodes that ended."""

    inner: Worker
    experience: Experience

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if task.kind == "evaluate":
            return self.experience.evaluate(weights, client, task)
        acted = self.experience.act(weights, client, task)
        work = work_of(self.inner, weights, client, task, brief)
        totals = {**work.totals, **acted.totals}
        return replace(work, totals=totals, samples=acted.samples, steps=acted.steps)

    def close(self) -> None:
        self.experience.close()
        close(self.inner)


def _examples(bundle: Bundle, advantage_TB: Floats, target_TB: Floats) -> Examples:
    rows = np.flatnonzero(bundle["mask"])
    T, B = bundle["mask"].shape
    x = bundle["observation"][:T].reshape(T * B, *bundle["observation"].shape[2:])[rows]
    action = bundle["action"].reshape(T * B, -1)[rows]
    advantage = advantage_TB.ravel()[rows]
    if len(rows) > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    columns = (action, *(each.ravel()[rows, None] for each in (bundle["log_prob"],)), advantage[:, None])
    return Examples(x, np.concatenate([*columns, target_TB.ravel()[rows, None]], axis=1, dtype=np.float32))
