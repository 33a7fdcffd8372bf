"""Settings shared by reinforcement-learning methods whose actors send trajectories to one learner.

The one idea: a method says which kind of network it learns, and the network's policy says what its trajectories hold. So a
method with another network brings a network and a learner, and needs no worker of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.actors import Worker
from shoal.actors.workers.lives import layout as life_layout
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import Aggregator
from shoal.aggregators.around.lives import Lives
from shoal.coordinator.deciding.bounds import Goal
from shoal.coordinator.deciding.plans import AFRESH
from shoal.jobs.methods.method import Method
from shoal.jobs.problems import Environment, Problem
from shoal.jobs.settings import option
from shoal.nets.acting import Network
from shoal.nets.networks import ACTOR_CRITIC, REMEMBERING
from shoal.nets.normal import PAID, SEEN
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout
from shoal.protocol.memory import room
from shoal.protocol.work import Task, Words

if TYPE_CHECKING:
    from torch import nn

FIRST = 3_600.0
"""Seconds that a rollout or evaluation may take before three are in, if nobody set a lease: a first one may hang too."""


@dataclass(frozen=True)
class Playing(Method):
    """A method whose actors play environments: settings of every such method."""

    problems: ClassVar[tuple[str, ...]] = ("environment",)
    end: ClassVar[str] = "total_timesteps"

    total_timesteps: int = option(
        500_000,
        "most environment steps of the run: it ends when one more version may be too many (one is always made)",
        least=1,
    )
    eval_every: int = option(0, "versions between evaluations by greedy episodes (0: no evaluation)", least=0)
    eval_episodes: int = option(
        20, "episodes of one greedy evaluation, and of the one at the end of the run (0: none at the end)", least=0
    )
    target_return: float = option(
        0.0,
        "mean return at which the run ends, of the last 100 training episodes, or with eval_every of greedy ones (0: none; for "
        "a target of 0 say 1e-9)",
    )
    keep_best: bool = option(
        False, "the weights of the version with the best mean return are kept too, in the folder best of the run"
    )

    def check(self, problem: Problem) -> None:
        if self.eval_every and not self.eval_episodes:
            raise UserError(f"eval_every={self.eval_every}: an evaluation needs episodes; eval_episodes=20, or eval_every=0")


@dataclass(frozen=True)
class Acting(Playing):
    """A method that learns from trajectories: settings of the actors' environments and of every learner.

    network: the kind of network that the method learns. It makes and checks the policy, and says how actors play it.
    """

    network: ClassVar[Network] = ACTOR_CRITIC
    continues: ClassVar[bool] = False
    """True if the method learns in rounds, so that a resumed run can have the bits of one that never stopped: each trajectory
    tells the life of its environments. In a stream a trajectory a second does."""

    num_envs: int = option(32, "number of environments that one trajectory comes from", least=1)
    rollout_length: int = option(32, "steps of each environment in one trajectory", least=1)
    gamma: float = option(0.99, "discount of rewards, for each environment step that they lie ahead", least=0, most=1)
    lr: float = option(1e-3, "learning rate of the learner's optimizer", above=0)
    reward_scale: float = option(
        1.0, "factor that the learner multiplies rewards by; metrics of returns are of unscaled rewards", above=0
    )
    max_reward: float = option(
        0.0,
        "largest absolute value of a reward as the learner learns from it, before any scaling (0: no bound); metrics of "
        "returns are of rewards as they came",
        least=0,
    )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if isinstance(problem, Environment) and problem.double_buffer and self.num_envs < 2 * problem.group:
            least = 2 * problem.group
            raise UserError(f"double_buffer=true: num_envs={self.num_envs} has no two halves; num_envs={least} or more")

    @property
    def trajectories(self) -> int:
        """Trajectories that make a version (0: not known)."""
        return 0

    @property
    def repeats(self) -> bool:
        """True if a run's bits do not depend on when actors are done: the plan admits no trajectory of older weights."""
        return not self.plan(AFRESH, 0, False).admits(0, 1)

    @property
    def moments(self) -> tuple[str, ...]:
        """The statistics that a trajectory brings, by which the learner normalises (nets/normal.py)."""
        return ()

    def life(self, problem: Problem) -> int:
        """Bytes of a trajectory that tell what the client's next rollout goes on from; 0 if no trajectory tells it."""
        return problem.life(self.num_envs) if isinstance(problem, Environment) else 0

    def going_on(self, problem: Problem, version: int) -> Sequence[str]:
        every = getattr(self, "renew_every", 0)
        if not isinstance(problem, Environment) or self.life(problem) or (every and version % every == 0):
            return ()
        anew, why = "environments begin new episodes", f"their state cannot be kept ({problem.told_whole.why})"
        if not self.continues:
            return [f"{anew}: {why}"]
        anew = f"{anew}, so this run differs from one that never stopped"
        if every:
            return [f"{anew}: renew_every={every} keeps that from happening only where a run was killed, not where it ended"]
        return [f"{anew}: {why}; renew_every=N begins them anew every N versions in either run"]

    def surrounded(self, made: Aggregator, problem: Problem) -> Aggregator:
        size = self.life(problem)
        return Lives(made, size, None if self.continues else self._plain(problem)) if size else made

    def briefs(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        size = self.life(problem)
        return [life_layout(size)] if size else ()

    @property
    def briefs_once(self) -> bool:
        return not self.continues

    def words(self, task: Task) -> Words:
        """The words of a training task: how the policy explores, if that changes by version or environment."""
        return {}

    def goal(self) -> Goal:
        return Goal(steps=self.total_timesteps, each=self.trajectories * self.rollout_length * self.num_envs)

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        assert isinstance(problem, Environment)
        size = self.life(problem)
        told = problem.trajectory(self.rollout_length, self.num_envs, self.moments, size)
        return [told] if self.continues or not size else [told, self._plain(problem)]

    def _plain(self, problem: Problem) -> Layout:
        """The layout of a trajectory that tells no life."""
        assert isinstance(problem, Environment)
        return problem.trajectory(self.rollout_length, self.num_envs, self.moments)

    def worker(self, problem: Problem, seed: int) -> Worker:
        """Raises UserError if trajectories take more than the memory that is left: one that both an actor and the coordinator
        hold, or those of a version, which the coordinator holds together."""
        assert isinstance(problem, Environment)
        have, its = room(), problem.trajectory(self.rollout_length, self.num_envs, self.moments, self.life(problem)).nbytes
        left = f"this {have.bound} has {have.nbytes / 1e9:,.1f} GB left"
        if 2 * its > have.nbytes:
            asked = f"num_envs={self.num_envs} rollout_length={self.rollout_length}"
            fix = "give a smaller num_envs or rollout_length"
            raise UserError(f"{asked}: a trajectory takes {its / 1e9:,.1f} GB of memory, and {left} for two; {fix}")
        if (many := self.trajectories) * its > have.nbytes:
            asked = next(f"{name}={many}" for name in ("clients", "batch", "num_envs") if hasattr(self, name))
            whole = f"the trajectories that make a version take {many * its / 1e9:,.1f} GB of memory"
            raise UserError(f"{asked}: {whole}, and {left}; give a smaller {asked.split('=')[0]}, num_envs or rollout_length")
        return Rollout(
            problem.worlds(),
            problem.played(seed, self.num_envs, self.repeats),
            self.rollout_length,
            self.num_envs,
            seed,
            max(1, self.eval_episodes),
            stagger=problem.stagger,
            halves=problem.double_buffer,
            group=problem.group,
            moments=self.moments,
            gamma=self.gamma,
            life=self.life(problem),
            way=problem.told_whole.way,
            keeps=not self.continues,
            renew=getattr(self, "renew_every", 0),
        )


@dataclass(frozen=True)
class OnPolicy(Acting):
    """A method whose learner descends a policy loss, a value loss and an entropy bonus on fresh trajectories.

    undivided: a minibatch has whole environments, also of a policy without memory.
    """

    undivided: ClassVar[bool] = False

    network: ClassVar[Network] = REMEMBERING

    anneal_lr: bool = option(True, "the learner's learning rate falls linearly, and would be 0 after total_timesteps steps")
    ent_coef: float = option(0.01, "weight of the entropy bonus in the loss", least=0)
    vf_coef: float = option(0.5, "weight of the value loss in the loss", least=0)
    max_grad_norm: float = option(0.5, "largest L2 norm of the learner's gradient; a longer one is scaled down to it", above=0)
    optimizer: str = option("adam", "optimizer of the learner", choices=("adam", "rmsprop"))
    rms_prop_eps: float = option(
        0.01, "number that RMSprop adds to the root of its mean square", above=0, of={"optimizer": ("rmsprop",)}
    )
    norm_obs: bool = option(
        False, "observations are scaled to mean 0 and standard deviation 1 by running statistics, which are part of the weights"
    )
    norm_reward: bool = option(
        False, "rewards are divided by the running standard deviation of discounted returns; metrics of returns are of rewards"
    )
    clip_obs: float = option(
        10.0, "largest absolute value of an observation that norm_obs has scaled", above=0, of={"norm_obs": ("true",)}
    )
    clip_reward: float = option(
        10.0, "largest absolute value of a reward that norm_reward has scaled", above=0, of={"norm_reward": ("true",)}
    )

    def fitted(self, problem: Problem) -> Mapping[str, Any]:
        most = self._most_minibatches(isinstance(problem, Environment) and problem.memory != "none")
        return {"num_minibatches": most} if 0 < most < getattr(self, "num_minibatches", 0) else {}

    def _most_minibatches(self, remembers: bool) -> int:
        """The most parts that a pass can be divided into. remembers: the policy has memory, so parts are whole environments."""
        envs = self.trajectories * self.num_envs
        pairs = envs * self.rollout_length // 2
        return envs if self.undivided else min(envs, pairs) if remembers else pairs

    def check_minibatches(self, module: nn.Module) -> None:
        """Raises UserError if a pass over the trajectories cannot be divided into num_minibatches. module: the policy."""
        remembers, parts = bool(getattr(module, "memory", ())), getattr(self, "num_minibatches", 0)
        if parts > (most := self._most_minibatches(remembers)):
            rows = f"{self.trajectories} x num_envs={self.num_envs} x rollout_length={self.rollout_length} rows"
            of_envs = "whole environments" + ", as the policy has memory" * (not self.undivided)
            two = "" if self.undivided or self.rollout_length > 1 else " and at least 2 rows"
            least = f"{of_envs}{two}" if self.undivided or remembers else "at least 2 rows"
            fix = f"num_minibatches={most} or less" if most else "give a larger rollout_length"
            raise UserError(f"num_minibatches={parts}: a step learns from {rows}, and a minibatch has {least}; {fix}")

    @property
    def moments(self) -> tuple[str, ...]:
        return (SEEN,) * self.norm_obs + (PAID,) * self.norm_reward
