"""The reinforcement-learning worker: acts in environments and returns trajectories.

The one idea: environments go on where the last rollout left them, and every draw is keyed by (seed, client, rollout). So a
trajectory is a function of the weights and of the client's own past, and of nothing else that its actor does. That past can
travel with the trajectory (actors/workers/lives.py), so that another actor goes on with it. The global
generators, from which an environment may draw, are set likewise, and afterwards are as they were.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.actors.workers import lives
from shoal.envs.spaces import LIFE, MASK, MOMENTS, OBSERVATION, STATE, Spaces, final_name
from shoal.envs.states import NoStateError
from shoal.envs.vector import Envs, Step, Worlds
from shoal.nets.acting import Policy, State
from shoal.nets.moments import Moments
from shoal.nets.normal import PAID, SEEN, kept_of
from shoal.protocol.draws import globally, key
from shoal.protocol.errors import UserError, within
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Task, Words, Work

MAX_SAMPLES = 1_000  # finished episodes reported per rollout, at most
SEEDS = 2**30  # an environment's seed is below this: some environments take 32 bits, and the i-th one adds i
GOLDEN = 0.6180339887498949  # clients' shares of an episode, multiples of it, lie evenly however many clients there are
MOST_LOST = 5  # episodes in a row that an environment may lose in an evaluation


@dataclass(slots=True)
class Episodes:
    """The returns and lengths so far of the running episodes of B environments."""

    returns: npt.NDArray[np.float64]  # [B]
    lengths: npt.NDArray[np.int64]  # [B]

    @classmethod
    def none(cls, num_envs: int) -> Episodes:
        return cls(np.zeros(num_envs), np.zeros(num_envs, np.int64))

    def finished(
        self,
        reward_TB: npt.NDArray[np.float64],
        lived_TB: npt.NDArray[np.bool_],
        over_TB: npt.NDArray[np.bool_],
        cut_TB: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Take T rows in. Gives returns and lengths of the episodes that ended in these rows, in the order of their ends.

        An episode is a stretch of one environment's rows up to a row with `over`. A row that is not `lived` only reset: it has
        no reward and adds nothing to the length. If an episode's last row is not `lived`, the episode was lost with its process
        and is left out. Sums are taken per stretch, so that a NaN stays in its own episode.
        """
        T, B = over_TB.shape
        begins = np.ones((B, T), dtype=bool)
        begins[:, 1:] = over_TB.T[:, :-1]
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], T * B) - 1
        returns = np.add.reduceat(reward_TB.T.ravel(), starts)
        lengths = np.add.reduceat(lived_TB.T.ravel().astype(np.int64), starts)
        first, last = starts % T == 0, ends % T == T - 1  # one stretch of each kind per environment
        returns[first] += self.returns
        lengths[first] += self.lengths
        over = over_TB.T.ravel()[ends]
        self.returns, self.lengths = np.where(over, 0, returns)[last], np.where(over, 0, lengths)[last]
        told = over & lived_TB.T.ravel()[ends]
        if cut_TB is not None:
            told &= ~cut_TB.T.ravel()[ends]
        order = np.argsort((ends % T)[told], kind="stable")
        return returns[told][order], lengths[told][order]


@dataclass(slots=True)
class Life:
    """The environments of one client: their last step, the policy's state before it acts on that step's observations, and the
    number of rollouts since the environments began at version `born`."""

    envs: Worlds
    step: Step
    state: State
    episodes: Episodes
    born: int
    owed: npt.NDArray[np.float64]  # [B] the running sum of discounted rewards of each environment's episode
    rollouts: int = 0


@dataclass(eq=False, repr=False)
class Rollout:
    """A worker that plays environments. A "train" task makes a trajectory of rollout_length rows by num_envs environments, an
    "evaluate" task plays greedy episodes.

    make_envs: num_envs -> Envs, e.g. functools.partial(make_vector, "CartPole-v1"); or -> Isolated.
    policy: the policy that is played (nets/acting.py): NumpyPolicy(action) for ActorCritic weights, without torch;
    TorchPolicy(module, action) for any other actor-critic.
    episodes: number of episodes in one evaluation, at most num_envs side by side. The first episodes of each environment
    count, a number that is fixed ahead, so that short episodes are not favoured.
    longest: number of steps at which an episode of an evaluation is a UserError.
    seconds: time after which a rollout ends early, after a whole step: its other rows are masked, the last row
    bootstraps, and the next rollout goes on from there. 0: never.
    stagger: the first episode of each training environment is truncated, after a share of its time limit that differs, so that
    episodes of one length do not all end together. It is learned from like any other, and is in no statistics of episodes.
    group: environments that belong together, as the agents of one game; evaluation plays whole groups.
    moments: what a trajectory brings statistics of (nets/normal.py): SEEN, the observations of the rows that are learned from;
    PAID, the running sums of an environment's rewards, discounted by gamma, of all its steps.
    life: bytes of a trajectory for what the client's next rollout goes on from; 0: there are none. The brief of a task then
    tells the life to go on from; without a brief the client's environments begin anew.
    renew: versions after which environments begin anew; 0: never. The rows before bootstrap, as at the end of any trajectory.

    Work of training: bundle as Spaces.trajectory says; weight, the number of rows to learn from (1 if there are none); steps,
    the number of transitions made; total "env_replaced", the number of environment processes replaced, if any; samples
    "return" and "length" of the episodes that ended. Work of evaluation: these samples and "env_replaced".
    """

    make_envs: Callable[[int], Worlds]
    policy: Policy
    rollout_length: int
    num_envs: int
    seed: int
    episodes: int = 20
    longest: int = 100_000
    seconds: float = 0.0
    stagger: bool = True
    group: int = 1
    moments: tuple[str, ...] = ()
    gamma: float = 0.99
    life: int = 0
    renew: int = 0
    clock: Callable[[], float] = time.monotonic
    _told: bool = field(init=False, default=False)
    _untold: bool = field(init=False, default=False)
    _lives: dict[int, Life] = field(init=False, default_factory=dict)
    _stage: Worlds | None = field(init=False, default=None)  # environments of evaluation, apart from those of training
    _layout: Layout | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for name in ("rollout_length", "num_envs", "episodes"):
            within(name, getattr(self, name), first=1)

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.policy.load(weights)
        try:
            return self._evaluate(client, task) if task.kind == "evaluate" else self._trained(client, task, brief)
        finally:
            self.policy.forget()

    def _trained(self, client: int, task: Task, brief: Bundle | None) -> Work:
        anew = self.renew > 0 and task.version % self.renew == 0
        told = lives.heard(brief) if self.life and brief is not None and not anew else None
        life = self._lives.pop(client, None)
        if self.life or anew or life is None:
            life = self._of(client, life, told, task.version)
        with _closed_on_failure(life.envs), globally(self.seed, "env steps", client, life.born, life.rollouts):
            work = self._rollout(client, life, task.words)
        self._lives[client] = life  # not before: after a failure half-way the client begins anew
        return work

    def anew(self, client: int, task: Task) -> None:
        """Begin new episodes in the client's environments. What they will be follows from seed, client and task alone."""
        life = self._lives.pop(client, None)
        born = key(self.seed, "anew", *task.draws(client)) % 2**62
        self._lives[client] = self._begun(client, born, life.envs if life else None)

    def close(self) -> None:
        """Close every environment."""
        with ExitStack() as stack:  # all of them, whatever one of them raises
            for envs in (*(life.envs for life in self._lives.values()), *([self._stage] if self._stage else [])):
                stack.callback(envs.close)
            self._lives, self._stage = {}, None

    def _begun(self, client: int, version: int, envs: Worlds | None = None) -> Life:
        with globally(self.seed, "env made", client, version):
            envs = envs or self.make_envs(self.num_envs)
            with _closed_on_failure(envs):
                shares = (np.arange(self.num_envs) + 1 - client * GOLDEN % 1) / self.num_envs if self.stagger else None
                step = envs.reset(key(self.seed, "env", client, version) % SEEDS, shares)
                if self.life and isinstance(envs, Envs):
                    envs.watch()
        state, episodes = self.policy.begin(self.num_envs), Episodes.none(self.num_envs)
        return Life(envs, step, state, episodes, born=version, owed=np.zeros(self.num_envs))

    def _of(self, client: int, life: Life | None, told: lives.Told | None, version: int) -> Life:
        """The life that a brief tells, or one that begins in this version. life: the one that this actor has of the client."""
        born = version if told is None else told.born
        if life is not None and told is not None and (life.born, life.rollouts) == (told.born, told.rollouts):
            return life
        if life is not None:
            life.envs.close()  # a reset need not forget all that an environment was
        begun = self._begun(client, born)
        if told is None or not told.packed:
            return begun
        with _closed_on_failure(begun.envs):
            try:
                self._restore(begun, told.state())
            except NoStateError as odd:
                self._say_untold(str(odd))
                begun.envs.close()
                return self._begun(client, born)
        begun.rollouts = told.rollouts
        return begun

    def _restore(self, life: Life, state: Any) -> None:
        """Give a life, which has just begun, the state of another."""
        assert isinstance(life.envs, Envs)
        life.envs.restore(state["envs"])
        memory: dict[str, Any] = {}
        seen = np.empty_like(life.step.observation)
        for name, array in _parts(seen):
            _fill_in(array, state["seen"][name])
        for name, array in life.state.items():
            _fill_in(memory.setdefault(name, np.empty_like(np.asarray(array))), state["memory"][name])
        flags = np.frombuffer(state["flags"], bool).reshape(2, -1)
        life.step = life.step._replace(observation=seen, mask=flags[0], first=flags[1], replaced=0)
        life.state = memory
        _fill_in(life.episodes.returns, state["returns"])
        _fill_in(life.episodes.lengths, state["lengths"])
        _fill_in(life.owed, state["owed"])

    def _state(self, life: Life) -> dict[str, Any]:
        if not isinstance(life.envs, Envs):
            raise NoStateError("the environments have processes of their own")
        return {
            "envs": life.envs.state(),
            "seen": {name: array.tobytes() for name, array in _parts(life.step.observation)},
            "flags": life.step.mask.tobytes() + life.step.first.tobytes(),
            "memory": {name: np.asarray(array).tobytes() for name, array in life.state.items()},
            "returns": life.episodes.returns.tobytes(),
            "lengths": life.episodes.lengths.tobytes(),
            "owed": life.owed.tobytes(),
        }

    def _say_untold(self, why: str) -> None:
        if not self._untold:
            line = f"shoal: environments begin anew where another actor or a resumed run goes on with them: {why}"
            print(line, file=sys.stderr, flush=True)
        self._untold = True

    def _rollout(self, client: int, life: Life, words: Words) -> Work:
        rng = np.random.Generator(np.random.Philox(key=key(self.seed, "act", client, life.born, life.rollouts)))
        life.rollouts += 1
        bundle = self._bundle(life.envs)
        reward, lived, cut, replaced = self._fill(bundle, life, rng, words)
        over = bundle["terminated"] | bundle["truncated"]
        returns, lengths = life.episodes.finished(reward, lived, over, cut)
        if self.moments:
            self._tell_moments(bundle, life, reward, lived, over)
        if self.life and (why := lives.tell(bundle[LIFE], life.born, life.rollouts, lambda: self._state(life))):
            self._say_untold(why)
        return Work(
            bundle,
            weight=max(1.0, float(np.count_nonzero(bundle["mask"]))),
            totals=_totals(replaced),
            samples=_samples(returns[-MAX_SAMPLES:], lengths[-MAX_SAMPLES:]),
            steps=int(np.count_nonzero(lived)),
        )

    def _fill(self, bundle: Bundle, life: Life, rng: np.random.Generator, words: Words) -> tuple[Any, Any, Any, int]:
        """Play T rows and write them into the bundle. Returns reward (float64), lived and, where first episodes were cut short,
        cut (else None), all [T, B], for the statistics of episodes, and the number of processes replaced."""
        T, B, policy = self.rollout_length, self.num_envs, self.policy
        spaces = life.envs.spaces
        observation, final = _whole(bundle, spaces, T, B)
        action, mask, terminated, truncated = (bundle[name] for name in ("action", "mask", "terminated", "truncated"))
        first = bundle["first"] if policy.memory else None
        reward, lived = np.empty((T, B)), np.empty((T, B), dtype=bool)
        noise = policy.noise(rng, T, B)
        extras: dict[str, Any] = {}
        for name, array in life.state.items():
            bundle[f"{STATE}{name}"][...] = array
        step, state, replaced, began = life.step, life.state, life.step.replaced, self.clock()
        cut: npt.NDArray[np.bool_] | None = None
        for t in range(T):
            if first is not None:
                first[t] = step.first
            if t and 0 < self.seconds < self.clock() - began:
                self._cut(t)
                observation[t:T], mask[t:], lived[t:] = step.observation, False, False
                if spaces.masks:
                    observation[MASK][t:T] = True  # these rows have the action 0, whose probability must be a number
                for array in (reward, action, *extras.values()):
                    array[t:] = 0
                break
            observation[t], mask[t] = step.observation, step.mask
            acted = policy.act(step.observation, step.first, state, noise[t], words)
            action[t], state = acted.action, acted.state
            for name, array in acted.extras.items():
                if not t:
                    extras[name] = np.empty((T, *array.shape), array.dtype)
                extras[name][t] = array
            step = life.envs.step(action[t])
            reward[t], terminated[t], truncated[t], lived[t] = step.reward, step.terminated, step.truncated, step.lived
            replaced += step.replaced
            if step.cut is not None:
                cut = np.zeros((T, B), dtype=bool) if cut is None else cut
                cut[t] = step.cut
            if step.final is not None and step.truncated.any():
                final[t, step.truncated] = step.final[step.truncated]
        mask &= lived  # a row that only resets is masked already; a row that never happened shows only after its step
        observation[T], bundle["reward"][...] = step.observation, reward
        if not spaces.plain:
            for name in spaces.arrays:
                bundle[name][...] = observation[name]
                if spaces.finals:
                    bundle[final_name(name)][...] = final[name]
        if first is not None:
            first[T] = step.first
        for name, rows in policy.finish(extras, action).items():
            bundle[name][...] = rows
        life.step, life.state = step._replace(replaced=0), state  # the replaced processes are counted by now
        return reward, lived, cut, replaced

    def _tell_moments(self, bundle: Bundle, life: Life, reward_TB: Any, lived_TB: Any, over_TB: Any) -> None:
        """Write the statistics of the trajectory into the bundle."""
        if SEEN in self.moments:
            shape = life.envs.spaces.record()[1]
            seen = Moments.of(bundle["observation"][:-1][bundle["mask"]], shape)
            for name, array in seen.arrays(f"{MOMENTS}{SEEN}").items():
                bundle[name][...] = array
        if PAID in self.moments:
            owed_TB = np.empty_like(reward_TB)
            for t, (reward_B, over_B) in enumerate(zip(reward_TB, over_TB, strict=True)):
                owed_TB[t] = life.owed * self.gamma + reward_B
                life.owed = np.where(over_B, 0.0, owed_TB[t])
            for name, array in Moments.of(owed_TB[lived_TB], ()).arrays(f"{MOMENTS}{PAID}").items():
                bundle[name][...] = array

    def _cut(self, rows: int) -> None:
        if not self._told:
            print(
                f"shoal: environments are slow: a rollout ends after {rows} of rollout_length={self.rollout_length} steps: "
                f"it took {self.seconds:g} s, half of its lease; give a larger lease, a smaller num_envs, or vector=async",
                file=sys.stderr,
                flush=True,
            )
        self._told = True

    def _bundle(self, envs: Worlds) -> Bundle:
        if self._layout is None:
            rows, memory = self.policy.rows, self.policy.memory
            moments = kept_of(self.moments, envs.spaces)
            self._layout = envs.spaces.trajectory(self.rollout_length, self.num_envs, rows, memory, moments, self.life)
        return Bundle.zeros(self._layout)

    def _evaluate(self, client: int, task: Task) -> Work:
        abreast = -(-min(self.episodes, self.num_envs) // self.group) * self.group
        wanted = np.full(abreast, self.episodes // abreast)
        wanted[: self.episodes % abreast] += 1
        seed = key(self.seed, "evaluate", client, task.version, task.index) % SEEDS
        with globally(self.seed, "stage made", client):
            stage, self._stage = self._stage or self.make_envs(abreast), None
        with _closed_on_failure(stage), globally(self.seed, "env evaluated", client, task.version, task.index):
            returns, lengths, replaced = self._played(stage, wanted, seed, task.words)
        self._stage = stage  # not before: after a failure half-way it is made anew
        return Work(None, totals=_totals(replaced), samples=_samples(returns, lengths))

    def _played(
        self, envs: Worlds, wanted: npt.NDArray[np.int64], seed: int, words: Words
    ) -> tuple[list[float], list[float], int]:
        """The returns and lengths of the first wanted[b] greedy episodes of each environment b, in the order of their ends; and
        the number of processes replaced."""
        step, state, running = envs.reset(seed), self.policy.begin(envs.num_envs), Episodes.none(envs.num_envs)
        returns: list[float] = []
        lengths: list[float] = []
        lost, replaced = np.zeros(envs.num_envs, np.int64), step.replaced
        while (wanted > 0).any():
            acted = self.policy.act(step.observation, step.first, state, None, words)
            step, state = envs.step(acted.action), acted.state
            running.returns += step.reward
            running.lengths += step.lived
            whole = step.over & step.lived
            counts = whole & (wanted > 0)
            returns += running.returns[counts].tolist()
            lengths += running.lengths[counts].tolist()
            wanted = wanted - counts
            running.returns[step.over], running.lengths[step.over] = 0, 0
            self._check_end(running.lengths[wanted > 0])
            replaced += step.replaced
            lost = np.where(whole, 0, lost + (step.over & ~step.lived))
            self._check_lost(lost[wanted > 0])
        return returns, lengths, replaced

    def _check_end(self, lengths: npt.NDArray[np.int64]) -> None:
        if (lengths >= self.longest).any():
            raise UserError(
                f"an evaluation episode goes on after {self.longest:,} steps: "
                "give the environment a time limit (gymnasium.wrappers.TimeLimit)"
            )

    def _check_lost(self, lost: npt.NDArray[np.int64]) -> None:
        if (lost > MOST_LOST).any():
            raise UserError(
                f"an environment lost {MOST_LOST + 1} evaluation episodes in a row with its process, and finished none: "
                "if the environment is not broken, a larger step_timeout may help"
            )


@contextmanager
def _closed_on_failure(envs: Worlds) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(envs.close)
        yield
        stack.pop_all()


def _whole(bundle: Bundle, spaces: Spaces, T: int, B: int) -> tuple[Any, Any]:
    """Arrays for observations [T + 1, B, ...] and for last observations of truncated episodes [T, B, ...], as `Spaces.record`
    says: the bundle's own, or structured ones, which are copied to the bundle at the end."""
    if spaces.plain:
        return bundle[OBSERVATION], bundle["final"] if spaces.finals else None
    dtype = spaces.record()[0]
    return np.zeros((T + 1, B), dtype), np.zeros((T, B), dtype) if spaces.finals else None


def _parts(observation: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of observations, by name: one, or the fields of a structured array."""
    names = observation.dtype.names
    return iter(((OBSERVATION, observation),)) if names is None else ((name, observation[name]) for name in names)


def _fill_in(array: Any, raw: bytes) -> None:
    """Fill an array with the values whose bytes `tobytes` gave. Raises NoStateError if these are of another array."""
    if len(raw) != array.nbytes:
        raise NoStateError(f"an array of {array.nbytes:,} bytes was told with {len(raw):,}")
    array[...] = np.frombuffer(raw, array.dtype).reshape(array.shape)


def _totals(replaced: int) -> dict[str, tuple[float, float]]:
    return {"env_replaced": (float(replaced), 1.0)} if replaced else {}


def _samples(returns: Any, lengths: Any) -> dict[str, tuple[float, ...]]:
    return {name: tuple(np.asarray(each, float).tolist()) for name, each in (("return", returns), ("length", lengths))}
