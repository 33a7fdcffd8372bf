"""Reinforcement learning from pictures: ALE/Pong-v5 with the Nature CNN, and on a GPU with IMPALA's ResNet.

The one idea: the floor is what the parts leave, each timed alone: rollouts (the simulator's threads and acting) and learning.
What a run reaches of it, the machinery has not lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from shoal.benchmarks.acting import Turns
from shoal.benchmarks.case import Finding
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.timing import interleaved
from shoal.envs.spaces import Spaces
from shoal.jobs.job import Job
from shoal.jobs.methods.method import Start
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.work import Contribution, Task

PONG = "ale_py:ALE/Pong-v5"
ENVS, ROWS = 32, 20
SHARE, RESNET, SECONDS = 0.8, 18_500.0, 180.0
ASKED = "at least 80 % of the ceiling that simulation, acting and learning leave on these cores, and twice Sample Factory's"
ASKED_GPU = "Pong at 18 in at most 3 minutes; IMPALA's ResNet at least 18,500 steps/s and 80 % of the simulation's bound"


class Pictures(nn.Module):
    """An actor-critic over pictures [N, C, H, W] of bytes. body: bytes scaled to [0, 1] -> features [N, size]."""

    def __init__(self, body: nn.Module, size: int, actions: int) -> None:
        super().__init__()
        self.body, self.actor, self.critic = body, nn.Linear(size, actions), nn.Linear(size, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        for bias in (self.actor.bias, self.critic.bias):
            nn.init.zeros_(bias)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(seen.float() / 255)
        return self.actor(features), self.critic(features).squeeze(-1)


def nature(spaces: Spaces) -> nn.Module:
    """The network of Mnih et al. 2015, shared by actor and critic."""
    body = nn.Sequential(
        *(nn.Conv2d(spaces.single("this network").shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU()),
    )
    return Pictures(body, 512, spaces.action.parameters)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.two(torch.relu(self.one(torch.relu(x))))
        return out


def resnet(spaces: Spaces) -> nn.Module:
    """The large network of Espeholt et al. 2018 (figure 3, right), without its LSTM."""
    parts: list[nn.Module] = []
    before = spaces.single("this network").shape[0]
    for channels in (16, 32, 32):
        parts += [nn.Conv2d(before, channels, 3, padding=1), nn.MaxPool2d(3, 2, 1), Residual(channels), Residual(channels)]
        before = channels
    parts += [nn.ReLU(), nn.Flatten(), nn.Linear(32 * 11 * 11, 256), nn.ReLU()]
    return Pictures(nn.Sequential(*parts), 256, spaces.action.parameters)


def _job(policy: Callable[[Spaces], nn.Module], name: str) -> Job:
    shape: Mapping[str, Any] = {"vector": "native", "num_envs": ENVS, "rollout_length": ROWS}
    return Reinforcement(PONG, policy, method="impala", name=name, lr=6e-4, max_grad_norm=40.0, **shape)


def pong_nature() -> Job:
    return _job(nature, "pong-nature")


def pong_resnet() -> Job:
    return _job(resnet, "pong-resnet")


def pong(quick: bool) -> Finding:
    """Measures steps a second of IMPALA on ALE/Pong-v5 with the Nature CNN, on CPUs only."""
    if find_spec("ale_py") is None:
        return Finding(None, "steps/s", asked=ASKED, details={"skipped": "ale_py is not installed: pip install ale-py"})
    steps = 5_000 if quick else 60_000
    ours, parts = Turns("shoal.benchmarks.pictures:pong_nature", steps), list[Mapping[str, float]]()
    beside = Beside(questions.pong(steps), quick)

    def ceiling() -> float:
        parts.append(parts_of(pong_nature(), 2 if quick else 6))
        return bound(parts[-1])

    _, floor, _ = interleaved(1 if quick else 3, ours, ceiling, beside.turn)
    rate, factory = ours.median.rate, beside.best("samplefactory")
    return Finding(
        figure=rate,
        unit="steps/s of ALE/Pong-v5 (4 frames a step), Nature CNN, collected and learned from, 2 actors, CPUs only",
        goal=SHARE * floor,
        floor=floor,
        peer=factory,
        ratio=rate / floor,
        holds=rate >= SHARE * floor and (factory is None or rate >= 2 * factory),
        asked=ASKED + (" (not measured)" if factory is None else ""),
        details={"ours": ours.plain(), "microseconds_a_step": parts[-1], **beside.details()},
    )


def parts_of(job: Job, repeats: int) -> Mapping[str, float]:
    """Returns microseconds of CPU a step of this process, of rollouts (the simulator's threads and acting) and of learning."""
    torch.set_num_threads(1)
    worker, learner = job.worker(), job.method.aggregator(Start(job.problem, job.seed), "cpu")
    rolled = learned = steps = 0.0
    for turn in range(repeats + 1):
        began = time.process_time()
        work = worker.run(learner.weights(), 0, Task(0, turn, (0,)))
        between = time.process_time()
        learner.fold(Contribution(Task(0, turn, (0,)), 0, 0, work))
        learner.step()
        if turn:  # the first one warms up
            rolled, learned = rolled + between - began, learned + time.process_time() - between
            steps += work.steps
    if hasattr(worker, "close"):
        worker.close()
    return {"rollouts": 1e6 * rolled / steps, "learning": 1e6 * learned / steps}


def bound(parts: Mapping[str, float]) -> float:
    """Returns steps a second if all cores did nothing but the parts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores * 1e6 / sum(parts.values())


def rl_gpu(quick: bool) -> Finding:
    """Measures IMPALA on ALE/Pong-v5 with the learner on a GPU: steps a second with its ResNet, seconds to a return of 18."""
    unit = "steps/s of ALE/Pong-v5 with IMPALA's ResNet, the learner on the GPU"
    needs = {"a CUDA device": torch.cuda.is_available(), "ale_py": find_spec("ale_py") is not None}
    missing = [name for name, there in needs.items() if not there]
    if missing:
        return Finding(None, unit, asked=ASKED_GPU, details={"skipped": f"needs {' and '.join(missing)}, not found here"})
    actors = max(2, (os.cpu_count() or 2) - 2)
    words = ("--device", "cuda", "batch=8")
    turns = Turns("shoal.benchmarks.pictures:pong_resnet", 60_000 if quick else 1_000_000, *words, actors=actors)
    solved = Turns("shoal.benchmarks.pictures:pong_nature", 60_000 if quick else 8_000_000, *words, actors=actors)
    interleaved(1, turns, solved)
    rate, seconds = turns.median.rate, solved.median.seconds_to(18.0)
    return Finding(
        figure=rate,
        unit=unit,
        goal=RESNET,
        ratio=rate / RESNET,
        holds=None if quick else rate >= RESNET and seconds is not None and seconds <= SECONDS,
        asked=ASKED_GPU,
        details={
            "resnet": turns.plain(),
            "nature": solved.plain(),
            "seconds_to_18": seconds,
            "device": torch.cuda.get_device_name(),
        },
    )
