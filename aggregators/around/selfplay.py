"""Self-play: each task is played against a past version of the learner, and games say how strong the versions are.

The one idea: the opponent of a task is arrays for one task alone, which is a brief. So opponents are kept, drawn and rated
where the weights are, any actor may play any task, and learners know nothing of it (Bansal et al. 2018; ratings: Elo 1978).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol import draws
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved, Task

FIRST = 1000.0  # rating of version 0
K = 16.0  # most points of one game
SCALE = 400.0  # difference of ratings at which the stronger one is expected to win 10 of 11
REMEMBERED = 10_000  # tasks whose opponent is remembered until they are folded


class SelfPlay(Around):
    """An aggregator of trajectories of games of two, whose tasks are briefed with the weights of the opponent.

    opponents: past versions that are kept; the oldest but version 0 makes room. every: versions between two that are kept.
    An opponent is drawn uniformly from those kept, keyed by (seed, task). A game counts as won if its return is above 0, as
    drawn if it is 0. Ratings change with each step. A version that is kept takes the learner's rating.

    Metrics: elo, the learner's rating; win_rate, of the games that ended in the trajectories of this step (a draw is half a
    win); opponents, the number of versions kept.
    """

    def __init__(self, aggregator: Aggregator, opponents: int, every: int, seed: int = 0) -> None:
        super().__init__(aggregator)
        self.opponents, self.every, self.seed = opponents, every, seed
        self.version, self.rating = 0, FIRST
        self.pool: dict[int, Bundle] = {0: aggregator.weights()}
        self.ratings: dict[int, float] = {0: FIRST}
        self.faced: dict[tuple[int, int], int] = {}
        self.came: list[tuple[int, float, int]] = []  # (opponent's version, points, games) since the last step

    def brief(self, task: Task) -> Bundle:
        """The weights of the task's opponent; beside them the life of the task's client, if it has one (around/lives.py)."""
        version = self._opponent(task)
        if task.counts:
            self.faced[task.name] = version
            while len(self.faced) > REMEMBERED:
                self.faced.pop(next(iter(self.faced)))
        weights, inner = self.pool[version], getattr(self.aggregator, "brief", None)
        life = inner(task) if inner is not None else None
        return weights if life is None else _joined(weights, life)

    def _opponent(self, task: Task) -> int:
        """The version that is drawn as the task's opponent from those that are kept now."""
        return int(draws.draw(self.seed, "opponent", *task.name).choice(sorted(self.pool)))

    def fold(self, contribution: Contribution) -> None:
        self.aggregator.fold(contribution)
        task = contribution.task
        against = self.faced.pop(task.name, None)
        if against is None and task.counts and task.version == self.version:
            against = self._opponent(task)  # of a task that an earlier life of the run gave out: the same are kept still
        games = np.array(contribution.work.samples.get("return", ()))
        if against is not None and len(games):
            self.came.append((against, float((games > 0).sum() + 0.5 * (games == 0).sum()), len(games)))

    def step(self) -> Moved:
        moved = self.aggregator.step()
        came, self.came = sorted(self.came), []
        for against, points, games in came:
            self._rate(against, points, games)
        self.version += 1
        if self.version % self.every == 0:
            self._keep()
        told = {"elo": self.rating, "opponents": float(len(self.pool))}
        if played := sum(games for _, _, games in came):
            told["win_rate"] = sum(points for _, points, _ in came) / played
        return Moved({**moved.metrics, **told}, moved.weights)

    def _rate(self, against: int, points: float, games: int) -> None:
        """Elo's update, by the mean of the games, so that many games of one trajectory do not outrun the formula."""
        if against not in self.ratings:
            return
        expected = 1 / (1 + 10 ** ((self.ratings[against] - self.rating) / SCALE))
        gain = K * (points / games - expected)
        self.rating += gain
        if against:  # version 0 stays where it is: the others are measured from it
            self.ratings[against] -= gain

    def _keep(self) -> None:
        self.pool[self.version], self.ratings[self.version] = self.aggregator.weights(), self.rating
        while len(self.pool) > self.opponents:
            oldest = min(version for version in self.pool if version)
            del self.pool[oldest], self.ratings[oldest]

    def state(self) -> State:
        versions = sorted(self.pool)
        table = np.array([[version, self.ratings[version]] for version in versions])
        kept = np.stack([self.pool[version].data for version in versions])
        own = {"selfplay/table": table, "selfplay/weights": kept, "selfplay/now": np.array([self.version, self.rating])}
        return {**self.aggregator.state(), **own}

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, {name: array for name, array in state.items() if not name.startswith("selfplay/")})
        now, table = state["selfplay/now"], state["selfplay/table"]
        self.version, self.rating = int(now[0]), float(now[1])
        self.ratings = {int(version): float(rating) for version, rating in table}
        self.pool = {
            version: Bundle(weights.layout, data.copy())
            for version, data in zip(self.ratings, state["selfplay/weights"], strict=True)
        }
        self.faced, self.came = {}, []


def with_life(weights: Layout, life: Layout) -> Layout:
    """The layout of an opponent's weights with a life beside them."""
    return Layout.of({place.name: (place.dtype, place.shape) for layout in (weights, life) for place in layout.places})


def _joined(weights: Bundle, life: Bundle) -> Bundle:
    both = Bundle.zeros(with_life(weights.layout, life.layout))
    for part in (weights, life):
        for name, array in part.items():
            both[name][...] = array
    return both


def elo(state: State) -> Sequence[tuple[int, float]]:
    """The table of a run with self-play: (version, rating) of the versions kept, the strongest first."""
    rows = [(int(version), float(rating)) for version, rating in state.get("selfplay/table", ())]
    return sorted(rows, key=lambda row: -row[1])
