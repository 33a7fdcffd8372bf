"""The engine of a federated run: how the clients of a task are trained. Decided once, before the run has a folder.

The one idea: two engines give the same weights up to rounding, and not the same bits. So a choice that hangs on a clock is made
once for all actors, is written into config.toml, and is never made where `deterministic=true` promises bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.jobs.job import Job
from shoal.jobs.methods.local import LocalTraining
from shoal.protocol import draws
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task, Work

if TYPE_CHECKING:
    from torch import nn

    from shoal.actors.workers.batched import Batched
    from shoal.actors.workers.local_sgd import LocalSGD
    from shoal.protocol.layout import Bundle

NEAR = 1e-5  # largest difference of an entry of a client's delta between two engines
TURNS = 3  # times that each engine is timed
GAIN = 0.9  # share of the loop's time that training together may take to be worth other bits


@dataclass(frozen=True)
class Decided:
    """A job whose engine is decided. told: lines about how, for `--verbose` and log.txt."""

    job: Job
    told: tuple[str, ...] = ()


def decided(job: Job, actors: int, *, tell: bool = False, clock: Callable[[], float] = time.thread_time) -> Decided:
    """The job with its engine. actors: of this machine, among which a cohort is divided. tell: time the engines also where the
    choice does not hang on it. Raises UserError, one line, for an engine that cannot train this job's clients."""
    method = job.method
    if not isinstance(method, LocalTraining) or method.engine in ("loop", "graph"):
        return Decided(job)
    if method.engine == "auto" and method.deterministic and not tell:
        return Decided(job)  # an actor takes the loop
    why = _apart(job)
    if method.engine == "batched":
        if why:
            raise UserError(f"engine=batched: {why}; engine=loop")
        made = _probed(job, actors, clock)
        if made.refused:
            raise UserError(f"engine=batched: {made.refused}; engine=loop")
        if method.deterministic and not made.alike:
            how = "here the bits of this model's clients depend on which of them are trained together"
            raise UserError(f"engine=batched: {how}, against deterministic=true; deterministic=false, or engine=loop")
        return Decided(job, (made.line(),))
    if why:
        return _loop(job, why)
    made = _probed(job, actors, clock)
    if made.refused:
        return _loop(job, made.refused)
    if method.deterministic:
        kept = "engine=loop, whose bits deterministic=true keeps"
        return Decided(job, (f"{made.line()}; {kept}: engine=batched or deterministic=false chooses otherwise",))
    if made.ratio > GAIN:
        return _loop(job, f"{made.line()}, which does not pay")
    return Decided(job.configured({"engine": "batched"}), (f"{made.line()}; engine=batched",))


def _loop(job: Job, why: str) -> Decided:
    """The job with the loop in place of `auto`."""
    return Decided(job.configured({"engine": "loop"}), (f"{why}; engine=loop",))


def _apart(job: Job) -> str:
    """Return why no task of this job has several clients that this machine's code trains; "" if tasks have."""
    if not job.ours:
        return "a worker of your own trains the clients"
    if not job.sums:
        return f"with method={job.method.name} and these settings a task is one client, whose contribution travels by itself"
    if getattr(job.method, "cohort", 1) < 2:
        return "a round has one client"
    from shoal.nets.gpu import has_gpu

    if has_gpu():
        return "this machine has a GPU, and torch cannot be tried before processes are forked"
    return ""


@dataclass(frozen=True)
class Probe:
    """A trial of some clients. refused: why they cannot be trained together, "" if they can. clients: number that were trained
    together. loop, together: seconds of CPU. apart: largest difference of an entry of one client's delta between the two.
    alike: True if the bits of a client are the same alone and beside others."""

    refused: str = ""
    clients: int = 0
    loop: float = 0.0
    together: float = 0.0
    apart: float = 0.0
    alike: bool = False

    @property
    def ratio(self) -> float:
        return self.together / self.loop

    def line(self) -> str:
        bits = "the same bits" if self.alike else "other bits"
        return (
            f"a task of {self.clients} clients takes {1e3 * self.loop:.1f} ms by the loop and {1e3 * self.together:.1f} ms "
            f"together ({self.ratio:.2f}); one client's delta is {self.apart:.1e} apart; alone a client has {bits}"
        )


def _probed(job: Job, actors: int, clock: Callable[[], float]) -> Probe:
    """Train the clients of one task by the loop and together."""
    from shoal.actors.workers.batched import TRACED, Batched, unfit
    from shoal.actors.workers.local_sgd import LocalSGD
    from shoal.nets.tracing import UnfitError

    worker = job.configured({"engine": "loop"}).method.worker(job.problem, job.seed)
    if not isinstance(worker, LocalSGD):
        return Probe("a worker of its own trains the clients")
    if why := unfit(worker):
        return Probe(why)
    weights = job.problem.first(job.seed)[0]
    many = min(TRACED, -(-getattr(job.method, "cohort", 1) // max(1, actors)), getattr(job.method, "clients", 1))
    with draws.kept_globals():
        clients = _with_data(worker, many, getattr(job.method, "clients", 1))
        if not clients:
            return Probe("no client has an example")
        if why := _strange(worker, clients):
            return Probe(why)
        task = Task(0, 0, clients)
        try:
            return _compared(worker, Batched(worker), weights, task, clock)
        except UnfitError as why_not:
            return Probe(str(why_not))


def _strange(worker: LocalSGD, clients: tuple[int, ...]) -> str:
    """Return why the model is no function of an example and its weights alone, which a traced step must be; "" if it is."""
    import torch

    module, data = worker.flat.module, worker.data.of(clients[0])
    x = data.inputs[: max(2, worker.batch_size)]
    x = torch.cat([x, x])[: max(2, len(x))]
    before, drawn, held = _plain_parts(module), draws.states(), worker.flat.raw.clone()
    with torch.no_grad():
        whole = module(x)
        if not torch.equal(held, worker.flat.raw):
            worker.flat.raw.copy_(held)
            return "the model changes its buffers"
        other = module(torch.cat([x[:-1], 0.5 * x[:1] if x.is_floating_point() else x[:1]]))
    if not isinstance(whole, torch.Tensor):
        return "the model gives more than one tensor"
    if not draws.same(drawn, draws.states()):
        return "the model draws random numbers"
    for name, value in _plain_parts(module).items():
        if before.get(name) != value:
            return f"the model keeps count in its attribute {name}"
    if whole.shape != other.shape or not torch.allclose(whole[:-1], other[:-1], rtol=1e-4, atol=1e-5):
        return "an example's output depends on the other examples of its batch"
    return ""


def _plain_parts(module: nn.Module) -> dict[str, object]:
    """The numbers, texts and truth values among the attributes of a module's parts, by name."""
    return {
        f"{prefix}.{name}".removeprefix("."): value
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, int | float | str)
    }


def _with_data(worker: LocalSGD, many: int, clients: int) -> tuple[int, ...]:
    """The first clients that can be trained."""
    found: list[int] = []
    for client in range(clients):
        try:
            worker.data.of(client)
        except Exception:  # noqa: BLE001  a user's population; what a client lacks is told when the client is due
            continue
        found.append(client)
        if len(found) == many:
            break
    return tuple(found)


def _delta(work: Work) -> npt.NDArray[np.float32]:
    assert work.bundle is not None  # of a training task
    return work.bundle.vector()


def _deltas(batched: Batched, weights: Bundle, task: Task, clients: Sequence[int] = ()) -> dict[int, npt.NDArray[np.float32]]:
    some = clients or task.clients
    return {client: _delta(work) for client, work in zip(some, batched.run_all(weights, some, task), strict=True)}


def _compared(worker: LocalSGD, batched: Batched, weights: Bundle, task: Task, clock: Callable[[], float]) -> Probe:
    theirs = {client: _delta(worker.run(weights, client, task)) for client in task.clients}
    ours = _deltas(batched, weights, task)
    alike = True
    for size in (1, 2, 3, 5, 8):  # each with clients in other slots than before
        turned = (*task.clients[1:], task.clients[0])
        for first in range(0, len(turned), size):
            some = turned[first : first + size]
            alike &= all(np.array_equal(delta, ours[client]) for client, delta in _deltas(batched, weights, task, some).items())
    apart = max(float(np.abs(ours[client] - theirs[client]).max()) for client in task.clients)
    largest = max(float(np.abs(delta).max()) for delta in theirs.values())
    if not apart <= NEAR * max(1.0, largest):
        return Probe(f"one client's delta is {apart:.1e} from that of the loop, and at most {NEAR:g} is allowed")
    loop, together = [], []
    for _ in range(TURNS):
        began = clock()
        for client in task.clients:
            worker.run(weights, client, task)
        between = clock()
        _deltas(batched, weights, task)
        loop.append(between - began)
        together.append(clock() - between)
    return Probe("", len(task.clients), max(1e-9, min(loop)), min(together), apart, alike)
