"""Wraps: parts of a job that stand around its aggregator, and around its workers if both ends must agree.

The one idea: wraps form a chain, innermost first. Each wrap says whether it looks at contributions, and whether contributions
reach it packed. So an order that cannot work is refused when the job is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shoal.actors import Worker
from shoal.actors.workers.compressed import Compressed
from shoal.actors.workers.duelling import Duelling
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import Aggregator
from shoal.aggregators.around.bounded import Bounded
from shoal.aggregators.around.compressed import Decompressed
from shoal.aggregators.around.quantile import Clipped
from shoal.envs.agents import Parallel
from shoal.jobs.methods.acting import Acting
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Environment
from shoal.jobs.settings import option, ranges
from shoal.protocol.compress import CODECS, Codec, Coding, Packed, codec_of
from shoal.protocol.errors import UserError, signed, takes
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from shoal.jobs.methods.method import Method
    from shoal.jobs.problems import Problem


@dataclass(frozen=True)
class Wrap:
    """A link of the chain. A subclass overrides what it changes; this class changes nothing."""

    @property
    def looks(self) -> bool:
        """True if the wrap looks at the arrays of contributions, so that no wrap inside it may need them packed."""
        return True

    @property
    def packs(self) -> bool:
        """True if contributions reach the wrap packed, in fewer bytes, and the wrap unpacks them for the inner aggregator."""
        return False

    def check(self, exact: bool) -> None:
        """Raises UserError, one line, for settings that contradict each other. exact: `Method.exact` of the job's method."""

    def suits(self, method: Method, problem: Problem) -> None:
        """Raises UserError, one line, if the wrap cannot work with the job's method or problem."""

    def posed(self, problem: Problem) -> Problem:
        """The job's problem as the wrap poses it. It is asked again of the result, also after the wrap's settings change."""
        return problem

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        return inner

    def worker(self, inner: Worker, seed: int) -> Worker:
        return inner

    def played(self, inner: Worker, problem: Problem, seed: int) -> Worker:
        """The worker that `worker` returned, with what the wrap needs of the job's problem."""
        return inner

    def layouts(self, inner: Sequence[Layout]) -> Sequence[Layout]:
        """The layouts of contributions as they arrive. inner: the layouts that the inner aggregator folds."""
        return inner

    def briefs(self, inner: Sequence[Layout], weights: Layout) -> Sequence[Layout]:
        """The layouts of briefs. inner: those of the inner aggregator."""
        return inner


@dataclass(frozen=True)
class Calling(Wrap):
    """A user's own function, aggregator -> aggregator, as a link of the chain."""

    function: Callable[[Aggregator], Aggregator] = lambda inner: inner

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        return self.function(inner)


@dataclass(frozen=True)
class Bound(Wrap):
    """Refuses a delta whose L2 norm is far above the median of recent deltas (aggregators/around/bounded.py)."""

    norm_factor: float = option(
        0.0, "largest L2 norm of a delta that is accepted, as a multiple of the median of recent deltas (0: any)", least=0
    )

    @property
    def looks(self) -> bool:
        return self.norm_factor > 0

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        return Bounded(inner, self.norm_factor) if self.norm_factor else inner


@dataclass(frozen=True)
class Clip(Wrap):
    """Scales long deltas down to a bound that follows a quantile of their norms (aggregators/around/quantile.py)."""

    norm_quantile: float = option(
        0.0,
        "share of the clients whose deltas are to be shorter than a bound, which adapts to that; longer deltas are scaled down "
        "to it (0: no bound)",
        least=0,
        below=1,
    )
    norm_start: float = option(0.1, "the bound of norm_quantile in the first round, an L2 norm", above=0)
    norm_rate: float = option(0.2, "exponent by which the bound of norm_quantile changes in a round, at most", above=0)

    @property
    def looks(self) -> bool:
        return self.norm_quantile > 0

    def check(self, exact: bool) -> None:
        for name in ("norm_start", "norm_rate"):
            if not self.norm_quantile and (value := getattr(self, name)) != ranges(self)[name].default:
                raise UserError(f"{name}={value:g}: without norm_quantile it has no effect; norm_quantile=0.5, say")

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if not self.norm_quantile:
            return inner
        return Clipped(inner, self.norm_quantile, start=self.norm_start, rate=self.norm_rate)


SIDES = 2  # agents of a game with opponents
ATTACKS = ("sign_flip", "gaussian", "label_flip", "alie", "ipm", "mimic", "nan", "huge")
STRENGTHS = ("sign_flip", "gaussian", "alie", "ipm")


@dataclass(frozen=True)
class Attack(Wrap):
    """Makes some clients malicious, for experiments: at the actors (actors/workers/attacking.py), or, if an attack needs all
    clients' deltas, at the coordinator (aggregators/around/attacked.py)."""

    attack: str = option(
        "none", "what malicious clients send, in an experiment (none: there are none)", choices=("none", *ATTACKS)
    )
    attackers: int = option(0, "number of malicious clients: clients 0 to attackers - 1", least=0, of={"attack": ATTACKS})
    attack_strength: float = option(
        0.0,
        "factor of sign_flip (0: 1) and ipm (0: 2), standard deviation of gaussian (0: 1), z of alie (0: the paper's)",
        least=0,
        of={"attack": STRENGTHS},
    )

    @property
    def looks(self) -> bool:
        return self.attack != "none"

    def check(self, exact: bool) -> None:
        if self.attack != "none" and not self.attackers:
            raise UserError(f"attack={self.attack}: attackers=0 means that no client attacks; attackers=2, say")

    def suits(self, method: Method, problem: Problem) -> None:
        if self.attackers > (clients := getattr(method, "clients", self.attackers)):
            raise UserError(f"attackers={self.attackers}: allowed is from 1 to clients={clients}")
        ours = type(method).worker.__module__.startswith("shoal.") and getattr(problem, "worker", None) is None
        if self.attack == "label_flip" and not ours:
            raise UserError("attack=label_flip: a worker of your own has its own data; attack=sign_flip, say")
        if self.attack == "label_flip" and problem.kind == "environments":
            raise UserError("attack=label_flip: clients that act in environments have no labels; attack=sign_flip, say")

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if self.attack == "none":
            return inner
        from shoal.aggregators.around.attacked import OMNISCIENT, Apart, Attacked

        if self.attack in OMNISCIENT:
            return Attacked(inner, self.attack, self.attackers, self.attack_strength)
        return Apart(inner)

    def worker(self, inner: Worker, seed: int) -> Worker:
        from shoal.actors.workers.attacking import DELTAS, Attacking, flipped

        if self.attack == "label_flip":
            if not hasattr(inner, "population"):
                raise UserError(f"attack=label_flip: around it the worker is {type(inner).__name__}, which has no population")
            its: Any = inner
            poisoned = replace(its, population=flipped(its.population, self.attackers))
            return Attacking(inner, "", self.attackers, poisoned=poisoned)
        if self.attack in DELTAS:
            return Attacking(inner, self.attack, self.attackers, self.attack_strength or 1.0, seed=seed)
        return inner


def codecs(*names: str) -> Mapping[str, tuple[str, ...]]:
    """The settings that may choose one of these codecs."""
    return dict.fromkeys(("compress_weights", "compress"), names)


@dataclass(frozen=True)
class Opponents(Wrap):
    """Plays games of two agents against past versions of the policy (aggregators/around/selfplay.py)."""

    opponents: int = option(
        0, "past versions of the policy that the learner plays against, in a game of two agents (0: no self-play)", least=0
    )
    opponent_every: int = option(20, "versions between two that are kept as opponents", least=1)

    @property
    def looks(self) -> bool:
        return self.opponents > 0

    def check(self, exact: bool) -> None:
        if not self.opponents and self.opponent_every != ranges(self)["opponent_every"].default:
            raise UserError(f"opponent_every={self.opponent_every}: without opponents it has no effect; opponents=8, say")

    def suits(self, method: Method, problem: Problem) -> None:
        env = getattr(problem, "env", None)
        ours = type(method).worker.__module__.startswith("shoal.")
        if self.opponents and not ours:
            raise UserError(f"opponents={self.opponents}: method={method.name} has a worker of its own; opponents=0")
        if self.opponents and not isinstance(method, Acting):
            fix = "method=ppo learns from games against them"
            raise UserError(f"opponents={self.opponents}: method={method.name} sends no trajectories of games; {fix}")
        if self.opponents and not isinstance(env, Parallel):
            raise UserError(f"opponents={self.opponents}: self-play needs a game of two agents; env=Parallel(make), say")
        if isinstance(env, Parallel) and self.opponents and env.policies == "separate":
            raise UserError(f"opponents={self.opponents}: both sides play by one policy; leave out policies='separate'")
        if isinstance(env, Parallel) and self.opponents and (agents := len(env.agents)) != SIDES:
            raise UserError(f"opponents={self.opponents}: {env.__name__} has {agents} agents; self-play is for games of two")

    def posed(self, problem: Problem) -> Problem:
        return replace(problem, sides=SIDES if self.opponents else None) if isinstance(problem, Environment) else problem

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if not self.opponents:
            return inner
        from shoal.aggregators.around.selfplay import SelfPlay

        return SelfPlay(inner, self.opponents, self.opponent_every, start.seed)

    def briefs(self, inner: Sequence[Layout], weights: Layout) -> Sequence[Layout]:
        if not self.opponents:
            return inner
        from shoal.aggregators.around.selfplay import with_life

        return [weights, *(with_life(weights, life) for life in inner)]

    def played(self, inner: Worker, problem: Problem, seed: int) -> Worker:
        if not self.opponents:
            return inner
        policy: Any = problem  # `suits` has seen that it is an environment
        assert isinstance(inner, Rollout)
        return Duelling(inner, policy.acts(seed))


@dataclass(frozen=True)
class CompressWeights(Wrap):
    """Sends actors the change of the weights in place of the weights, in fewer bytes (aggregators/around/told.py)."""

    compress_weights: str = option(
        "none",
        "codec by which the coordinator sends actors the change of the weights (none: it sends whole weights)",
        choices=("none", *CODECS),
    )
    compress_ratio: float = option(
        0.1, "share of the entries that the codecs topk and randk send", above=0, most=1, of=codecs("topk", "randk")
    )
    compress_block: int = option(
        256,
        "number of entries that share one scale in the codecs int8 and int4",
        least=1,
        most=10**9,
        of=codecs("int8", "int4"),
    )

    @property
    def looks(self) -> bool:
        return False

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if self.compress_weights == "none":
            return inner
        from shoal.aggregators.around.told import Told

        coding = Coding(self.compress_weights, self.compress_ratio, self.compress_block)
        return Told(inner, coding, seed=start.seed)


@dataclass(frozen=True)
class Compress(CompressWeights):
    """Sends clients' deltas in fewer bytes (aggregators/around/compressed.py), and weights as CompressWeights does."""

    compress: str = option("none", "codec by which actors send clients' deltas (none: as they are)", choices=("none", *CODECS))
    compress_feedback: bool = option(
        False, "what compression leaves out of a client's delta is added to the client's next delta (error feedback)"
    )

    @property
    def packs(self) -> bool:
        return self.compress != "none"

    @property
    def looks(self) -> bool:
        return self.packs

    def check(self, exact: bool) -> None:
        if self.compress_feedback and self.compress == "none":
            raise UserError("compress_feedback=true: compress=none compresses no delta; compress=topk, say")
        if self.compress_feedback and exact:
            raise UserError(
                "compress_feedback=true: the sums depend on which actor did which task; it needs deterministic=false"
            )

    def codec(self) -> Codec | None:
        """The codec of clients' deltas; None if actors send them as they are."""
        if self.compress == "none":
            return None
        return codec_of(self.compress, share=self.compress_ratio, block=self.compress_block, feedback=self.compress_feedback)

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if codec := self.codec():
            inner = Decompressed(inner, codec, norm=start.norm_bound)
        return super().aggregator(inner, start)

    def worker(self, inner: Worker, seed: int) -> Worker:
        codec = self.codec()
        return inner if codec is None else Compressed(inner, codec, self.compress_feedback, seed=seed)

    def layouts(self, inner: Sequence[Layout]) -> Sequence[Layout]:
        codec = self.codec()
        return inner if codec is None else [Packed(codec, layout).layout for layout in inner]


def check_listed(around: Any) -> None:
    """Raises UserError unless `around` is a list or a tuple."""
    if not isinstance(around, Sequence) or isinstance(around, str):
        raise UserError(f"around is {signed(around)}: expected a list; around=[{getattr(around, '__name__', '...')}], say")


def chain(around: Sequence[Any]) -> tuple[Wrap, ...]:
    """The wraps as links, users' functions included, in the same order. Raises UserError for an order that cannot work."""
    links: list[Wrap] = []
    for each in around:
        if not (isinstance(each, Wrap) or callable(each)):
            raise UserError(f"around: {each!r} is neither a Wrap nor a function from an aggregator to an aggregator")
        if not isinstance(each, Wrap):
            takes("around", each, "a function from an aggregator to an aggregator, or a class made with one", None)
        links.append(each if isinstance(each, Wrap) else Calling(function=each))
    packed: Wrap | None = None
    for link in links:
        if link.looks and packed is not None:
            raise UserError(
                f"around: {_named(link)} stands outside {_named(packed)}, where contributions are packed; "
                f"put {_named(link)} before {_named(packed)}"
            )
        packed = link if link.packs else packed
    return tuple(links)


def _named(link: Wrap) -> str:
    return getattr(link.function, "__name__", "a function") if isinstance(link, Calling) else type(link).__name__
