"""The reinforcement-learning worker: acts in environments and returns trajectories.

The one idea: environments go on where the last rollout left them, and every draw is keyed by (seed, client, rollout). So a
trajectory is a function of the weights and of the client's own past, and of nothing else that its actor does. That past can
travel with the trajectory (actors/workers/lives.py), so that another actor goes on with it. The global
generators, from which an environment may draw, are set likewise, and afterwards are as they were.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from shoal.actors.asking import Asking
from shoal.actors.workers import lives
from shoal.actors.workers.episodes import Episodes, samples
from shoal.actors.workers.rows import Portion, Rows
from shoal.envs.logged import ATTRIBUTES
from shoal.envs.spaces import LIFE, MOMENTS, OBSERVATION, Spaces
from shoal.envs.states import NoStateError
from shoal.envs.vector import Lasting, Worlds
from shoal.nets.acting import Policy
from shoal.nets.moments import Moments
from shoal.nets.normal import PAID, SEEN, kept_of
from shoal.protocol.draws import globally, key
from shoal.protocol.errors import UserError, within
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Task, Words, Work

MAX_SAMPLES = 1_000  # finished episodes reported per rollout, at most
SEEDS = 2**30  # an environment's seed is below this: some environments take 32 bits, and the i-th one adds i
GOLDEN = 0.6180339887498949  # clients' shares of an episode, multiples of it, lie evenly however many clients there are
TOLD = 1.0  # seconds from one trajectory that tells a life to the next, where tellings are for a later life of the run alone
MOST_LOST = 5  # episodes in a row that an environment may lose in an evaluation


@dataclass(slots=True)
class Life:
    """The environments of one client, and the number of rollouts since they began at version `born`."""

    parts: list[Portion]
    episodes: Episodes
    born: int
    owed: npt.NDArray[np.float64]  # [B] the running sum of discounted rewards of each environment's episode
    rollouts: int = 0
    told_at: float = -math.inf  # time when a trajectory told it last

    @property
    def spaces(self) -> Spaces:
        return self.parts[0].envs.spaces

    @property
    def worlds(self) -> list[Worlds]:
        return [part.envs for part in self.parts]


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
    halves: the environments are stepped in two halves, of which one is stepped while the numbers of the other's network are on
    their way (double-buffered sampling, Petrenko et al. 2020, section 3.1), or while the other's environments step by
    themselves.
    stagger: the first episode of each training environment is truncated, after a share of its time limit that differs, so that
    episodes of one length do not all end together. It is learned from like any other, and is in no statistics of episodes.
    group: environments that belong together, as the agents of one game; evaluation plays whole groups.
    moments: what a trajectory brings statistics of (nets/normal.py): SEEN, the observations of the rows that are learned from;
    PAID, the running sums of an environment's rewards, discounted by gamma, of all its steps.
    life: bytes of a trajectory for what the client's next rollout goes on from; 0: there are none. The brief of a task then
    tells the life to go on from; without a brief the client's environments begin anew.
    way: how the environments' state is told (envs/logged.py), if there is a life.
    keeps: environments that this actor has of a client go on, whatever a brief tells, unless it tells a later life of them. A
    life is then told by a trajectory a second at most, and the others have no array for it.
    renew: versions after which environments begin anew; 0: never. The rows before bootstrap, as at the end of any trajectory.

    Work of training: bundle as Spaces.trajectory says; weight, the number of rows to learn from (1 if there are none); steps,
    the number of transitions made; total "env_replaced", the number of environment processes replaced, if any; samples
    "return" and "length" of the episodes that ended. Work of evaluation: these samples and "env_replaced". If another process
    computes the network (actors/asking.py), total "inference_central" besides, the share of observations that it computed.
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
    halves: bool = False
    group: int = 1
    moments: tuple[str, ...] = ()
    gamma: float = 0.99
    life: int = 0
    way: str = ATTRIBUTES
    keeps: bool = False
    renew: int = 0
    clock: Callable[[], float] = time.monotonic
    _told: bool = field(init=False, default=False)
    _untold: bool = field(init=False, default=False)
    _lives: dict[int, Life] = field(init=False, default_factory=dict)
    _stage: Worlds | None = field(init=False, default=None)  # environments of evaluation, apart from those of training
    _layouts: dict[int, Layout] = field(init=False, default_factory=dict)  # by the bytes of a life

    def __post_init__(self) -> None:
        for name in ("rollout_length", "num_envs", "episodes"):
            within(name, getattr(self, name), first=1)

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if isinstance(self.policy, Asking):
            self.policy.named(task.version)
        self.policy.load(weights)
        try:
            return self._evaluate(client, task) if task.kind == "evaluate" else self._trained(client, task, brief)
        finally:
            self.policy.forget()

    def _trained(self, client: int, task: Task, brief: Bundle | None) -> Work:
        anew = self.renew > 0 and task.version % self.renew == 0
        told = lives.heard(brief) if self.life and brief is not None and not anew else None
        life = self._lives.pop(client, None)
        if told is not None and self.keeps and (not told.packed or (life and not told.later(life.born, life.rollouts))):
            told = None
        if (self.life and not self.keeps) or anew or told or life is None:
            life = self._of(client, life, told, task.version)
        with _closed_on_failure(*life.worlds), globally(self.seed, "env steps", client, life.born, life.rollouts):
            work = self._rollout(client, life, task.words)
        self._lives[client] = life  # not before: after a failure half-way the client begins anew
        return work

    def anew(self, client: int, task: Task) -> None:
        """Begin new episodes in the client's environments. What they will be follows from seed, client and task alone."""
        life = self._lives.pop(client, None)
        born = key(self.seed, "anew", *task.draws(client)) % 2**62
        self._lives[client] = self._begun(client, born, life.worlds if life else None)

    def close(self) -> None:
        """Close every environment."""
        with ExitStack() as stack:  # all of them, whatever one of them raises
            for life in self._lives.values():
                for envs in life.worlds:
                    stack.callback(envs.close)
            if self._stage:
                stack.callback(self._stage.close)
            self._lives, self._stage = {}, None
            if isinstance(self.policy, Asking):
                self.policy.close()

    def _begun(self, client: int, version: int, worlds: Sequence[Worlds] | None = None) -> Life:
        sizes, B = self._sizes(), self.num_envs
        with globally(self.seed, "env made", client, version), ExitStack() as stack:
            if worlds is None:
                worlds = []
                for size in sizes:
                    worlds.append(made := self.make_envs(size))
                    stack.callback(made.close)
            else:
                for envs in worlds:
                    stack.callback(envs.close)
            shares = (np.arange(B) + 1 - client * GOLDEN % 1) / B if self.stagger else None
            seed, parts, at = key(self.seed, "env", client, version) % SEEDS, list[Portion](), 0
            for envs, size in zip(worlds, sizes, strict=True):
                columns = slice(at, at + size)
                step = envs.reset(seed + at, None if shares is None else shares[columns])
                if self.life:
                    self._watch(cast(Lasting, envs))
                parts.append(Portion(envs, step, self.policy.begin(size), columns))
                at += size
            stack.pop_all()
        return Life(parts, Episodes.none(B), born=version, owed=np.zeros(B))

    def _sizes(self) -> tuple[int, ...]:
        """The numbers of environments of the parts. A half has whole games."""
        half = self.num_envs // 2 // self.group * self.group if self.halves else 0
        return (self.num_envs - half, half) if half else (self.num_envs,)

    def _of(self, client: int, life: Life | None, told: lives.Told | None, version: int) -> Life:
        """The life that a brief tells, or one that begins in this version. life: the one that this actor has of the client."""
        born = version if told is None else told.born
        if life is not None and told is not None and (life.born, life.rollouts) == (told.born, told.rollouts):
            return life
        if life is not None:
            _close(life.worlds)  # a reset need not forget all that an environment was
        begun = self._begun(client, born)
        if told is None or not told.packed:
            return begun
        with _closed_on_failure(*begun.worlds):
            try:
                with globally(self.seed, "env again", client, born):
                    self._restore(begun, told.state())
            except NoStateError as odd:
                self._say_untold(str(odd))
                _close(begun.worlds)
                return self._begun(client, born)
        begun.rollouts = told.rollouts
        return begun

    def _restore(self, life: Life, state: Any) -> None:
        """Give a life, which has just begun, the state of another."""
        saved = state.get("parts", [state])
        if len(saved) != len(life.parts):
            raise NoStateError("they were stepped in halves then or now, and not both times")
        for part, its in zip(life.parts, saved, strict=True):
            cast(Lasting, part.envs).restore(its["envs"])
            memory: dict[str, Any] = {}
            seen = np.empty_like(part.step.observation)
            for name, array in _arrays(seen):
                _fill_in(array, its["seen"][name])
            for name, array in part.state.items():
                _fill_in(memory.setdefault(name, np.empty_like(np.asarray(array))), its["memory"][name])
            flags = np.frombuffer(its["flags"], bool).reshape(2, -1)
            part.step = part.step._replace(observation=seen, mask=flags[0], first=flags[1], replaced=0)
            part.state = memory
        _fill_in(life.episodes.returns, state["returns"])
        _fill_in(life.episodes.lengths, state["lengths"])
        _fill_in(life.owed, state["owed"])

    def _state(self, life: Life) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        for part in life.parts:
            seen = {name: array.tobytes() for name, array in _arrays(part.step.observation)}
            memory = {name: np.asarray(array).tobytes() for name, array in part.state.items()}
            flags = part.step.mask.tobytes() + part.step.first.tobytes()
            parts.append({"envs": cast(Lasting, part.envs).state(), "seen": seen, "flags": flags, "memory": memory})
        beside = {
            "returns": life.episodes.returns.tobytes(),
            "lengths": life.episodes.lengths.tobytes(),
            "owed": life.owed.tobytes(),
        }
        return {**(parts[0] if len(parts) == 1 else {"parts": parts}), **beside}

    def _watch(self, envs: Lasting) -> None:
        """Watch environments. Those that cannot be told in this way here, where another process could, have no state."""
        try:
            envs.watch(self.way)
        except NoStateError as odd:
            self._say_untold(str(odd))

    def _say_untold(self, why: str) -> None:
        if not self._untold:
            line = f"shoal: environments begin anew where another actor or a resumed run goes on with them: {why}"
            print(line, file=sys.stderr, flush=True)
        self._untold = True

    def _rollout(self, client: int, life: Life, words: Words) -> Work:
        rng = np.random.Generator(np.random.Philox(key=key(self.seed, "act", client, life.born, life.rollouts)))
        life.rollouts += 1
        tells = self.life > 0 and (not self.keeps or self.clock() >= life.told_at + TOLD)
        bundle = self._bundle(life.spaces, self.life if tells else 0)
        rows = Rows(bundle, life.spaces, life.parts, self.policy, self.policy.noise(rng, *bundle["mask"].shape), words)
        began, seconds = self.clock(), self.seconds
        played = rows.fill((lambda: self.clock() - began > seconds) if seconds > 0 else None)
        if played < self.rollout_length:
            self._cut(played)
        over = bundle["terminated"] | bundle["truncated"]
        returns, lengths = life.episodes.finished(rows.reward, rows.lived, over, rows.cut)
        if self.moments:
            self._tell_moments(bundle, life, rows.reward, rows.lived, over)
        if tells:
            life.told_at = self.clock()
            if why := lives.tell(bundle[LIFE], life.born, life.rollouts, lambda: self._state(life)):
                self._say_untold(why)
        return Work(
            bundle,
            weight=max(1.0, float(np.count_nonzero(bundle["mask"]))),
            totals=self._totals(rows.replaced),
            samples=samples(returns[-MAX_SAMPLES:], lengths[-MAX_SAMPLES:]),
            steps=int(np.count_nonzero(rows.lived)),
        )

    def _tell_moments(self, bundle: Bundle, life: Life, reward_TB: Any, lived_TB: Any, over_TB: Any) -> None:
        """Write the statistics of the trajectory into the bundle."""
        if SEEN in self.moments:
            shape = life.spaces.record()[1]
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

    def _bundle(self, spaces: Spaces, life: int) -> Bundle:
        if life not in self._layouts:
            rows, memory = self.policy.rows, self.policy.memory
            moments = kept_of(self.moments, spaces)
            self._layouts[life] = spaces.trajectory(self.rollout_length, self.num_envs, rows, memory, moments, life)
        return Bundle.zeros(self._layouts[life])

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
        return Work(None, totals=self._totals(replaced), samples=samples(returns, lengths))

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

    def _totals(self, replaced: int) -> dict[str, tuple[float, float]]:
        totals = {"env_replaced": (float(replaced), 1.0)} if replaced else {}
        return {**totals, **self.policy.totals()} if isinstance(self.policy, Asking) else totals

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


def _close(worlds: Sequence[Worlds]) -> None:
    with ExitStack() as stack:  # all of them, whatever one of them raises
        for envs in worlds:
            stack.callback(envs.close)


@contextmanager
def _closed_on_failure(*worlds: Worlds) -> Iterator[None]:
    with ExitStack() as stack:
        for envs in worlds:
            stack.callback(envs.close)
        yield
        stack.pop_all()


def _arrays(observation: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of observations, by name: one, or the fields of a structured array."""
    names = observation.dtype.names
    return iter(((OBSERVATION, observation),)) if names is None else ((name, observation[name]) for name in names)


def _fill_in(array: Any, raw: bytes) -> None:
    """Fill an array with the values whose bytes `tobytes` gave. Raises NoStateError if these are of another array."""
    if len(raw) != array.nbytes:
        raise NoStateError(f"an array of {array.nbytes:,} bytes was told with {len(raw):,}")
    array[...] = np.frombuffer(raw, array.dtype).reshape(array.shape)
