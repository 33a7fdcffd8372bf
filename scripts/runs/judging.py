"""Numbers of a run's newest weights one by one: for each held-out example, each greedy episode, or each client.

The one idea: the same example, episode or client has the same place in every run's list, so that two lists are pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.actors import close
from shoal.actors.workers.episodes import Episodes
from shoal.actors.workers.rollout import Rollout
from shoal.envs.vector import Array, Step, Worlds
from shoal.protocol.draws import kept_globals
from shoal.protocol.errors import UserError
from shoal.protocol.exact import unfinite
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task
from shoal.runs.export import of_this_model
from shoal.runs.run import Run
from shoal.runs.threads import cores, few, few_threads, lone
from shoal.tasks.pool import Pool

Values = Mapping[str, npt.NDArray[np.float64]]

ABREAST = 32  # environments side by side, whatever the run's own number: the beginnings of episodes may depend on it


WORTH = 500  # episodes of all runs together from which on processes of their own are quicker

Judged = tuple[str, Values]


def judged_each(asked: Sequence[tuple[Run, int]], episodes: int) -> list[Judged]:
    """`judged` of each (run, seed). Runs that play many episodes are judged side by side, in the processes of a pool, with the
    same numbers. A run is judged in this process if its job or its environments live here alone, and if it fails in the pool:
    then its error is the one that a user of this process can read."""
    found: dict[int, Judged] = {}
    many = min(cores(), len(asked))
    if many > 1 and episodes * len(asked) >= WORTH and lone() and all(_travels(run) for run, _ in asked):
        with Pool(many) as pool:
            futures = [pool.submit(_judged_in, str(run.folder.absolute()), episodes, seed) for run, seed in asked]
            found = {at: future.result() for at, future in enumerate(futures) if future.exception() is None}
    return [found.get(at) or judged(run, episodes, seed) for at, (run, seed) in enumerate(asked)]


def _judged_in(folder: str, episodes: int, seed: int) -> Judged:
    return judged(Run(Path(folder)), episodes, seed)


def _travels(run: Run) -> bool:
    """True if a run plays episodes, and another process finds its job by name and can make its environments."""
    return run.named and run.job.problem.kind == "environment" and not getattr(run.job.problem, "apart", False)


@few_threads()
def judged(run: Run, episodes: int, seed: int) -> tuple[str, Values]:
    """("examples" | "episodes" | "clients", name of a metric -> its number for each of them, [n]).

    episodes: number of episodes of a reinforcement-learning job. seed: of the episodes' beginnings: two runs that are judged
    with one seed meet the same. Raises UserError.
    """
    job, snapshot = run.job, run.snapshot()
    if name := unfinite(snapshot.weights):
        raise UserError(f"{run.folder}: version {snapshot.version} is not finite: {name!r} holds NaN or an infinity")
    if (apiece := job.problem.apiece(job.method, job.seed)) is not None:
        few()
        run.dir.check_held_out(job.problem.held_out_digest(job.method, job.seed))
        with of_this_model(run.folder):
            return "examples", apiece(snapshot.weights)
    job.prepare()
    worker = job.method.worker(job.problem, job.seed)
    few()
    job.problem.close()  # the worker holds what it needs
    try:
        with of_this_model(run.folder):
            player = getattr(worker, "judge", worker)  # evolution strategies keep a worker for evaluations
            if isinstance(player, Rollout):
                return "episodes", _of_episodes(player, snapshot.weights, seed, episodes)
            return "clients", _of_clients(worker, snapshot, job.plain().get("clients", 1))
    finally:
        close(worker)


class Noted:
    """Environments that note of each the first whole episode since the last reset. returns, lengths: [B]; an episode that was
    lost with its process is none."""

    def __init__(self, envs: Worlds) -> None:
        self.envs, self.num_envs, self.spaces = envs, envs.num_envs, envs.spaces
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs)

    def reset(self, seed: int, shares: Array | None = None) -> Step:
        self.running, self.noted = Episodes.none(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        return self.envs.reset(seed, shares)

    def step(self, action: Array) -> Step:
        step = self.envs.step(action)
        self.running.returns += step.reward
        self.running.lengths += step.lived
        first = step.over & step.lived & ~self.noted
        self.returns[first], self.lengths[first] = self.running.returns[first], self.running.lengths[first]
        self.noted |= first
        self.running.returns[step.over], self.running.lengths[step.over] = 0, 0
        return step

    def close(self) -> None:
        self.envs.close()


def _of_episodes(worker: Rollout, weights: Bundle, seed: int, episodes: int) -> Values:
    """Greedy episodes, ABREAST at a time in environments that are seeded anew each time: so an episode begins alike for any
    weights, and for any number of episodes."""
    made: list[Noted] = []

    def noted(num_envs: int) -> Noted:
        made.append(Noted(worker.make_envs(num_envs)))
        return made[-1]

    player = replace(worker, make_envs=noted, num_envs=ABREAST, episodes=ABREAST, seed=seed)
    returns, lengths = [], []
    try:
        for number in range(-(-episodes // ABREAST)):
            player.run(weights, 0, Task(0, number, (0,), "evaluate", counts=False))
            returns.append(made[-1].returns.copy())
            lengths.append(made[-1].lengths.copy())
    finally:
        close(player)
    found = {"return_mean": returns, "length_mean": lengths}
    return {name: np.concatenate(parts)[:episodes] for name, parts in found.items()}


def _of_clients(worker: Any, snapshot: Any, clients: int) -> Values:
    """The mean of each total and each sample over what a client evaluates."""
    rows: list[dict[str, float]] = []
    for client in range(clients):
        with kept_globals():
            work = worker.run(snapshot.weights, client, Task(snapshot.version, client, (client,), "evaluate", counts=False))
        means = {name: total / count for name, (total, count) in work.totals.items() if count}
        rows.append(means | {f"{name}_mean": float(np.mean(values)) for name, values in work.samples.items() if len(values)})
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: np.array([row[name] for row in rows]) for name in names}
