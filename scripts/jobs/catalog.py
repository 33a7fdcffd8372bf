"""The built-in jobs, and the lookup of a JOB that a user names.

The one idea: a built-in name is looked up in a literal table. A file or a module is imported only if the *user of this machine*
named it. A name that comes over the network can choose only from the table.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal import __version__
from shoal.envs import datasets, leaf
from shoal.envs.agents import PREFIX, parallel_of
from shoal.envs.poles import leaning
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.jobs.presets import found as preset_of
from shoal.jobs.reinforcement import Reinforcement
from shoal.jobs.settings import nearest
from shoal.protocol.errors import UserError


def digits() -> Job:
    """federated: scikit-learn's 1,797 handwritten digits, 100 clients, a small perceptron"""
    from shoal.nets import models

    return Federated(models.mlp, lambda settings: datasets.digits(), name="digits")


def mnist() -> Job:
    """federated: MNIST from the IDX files in data=DIR, FedAvg's convolutional network"""
    from shoal.nets import models

    return Federated(
        models.fedavg_cnn,
        lambda settings: datasets.mnist(settings.data or "data/mnist"),
        name="mnist",
        partition="shards",
        local_epochs=1,
    )


def femnist() -> Job:
    """federated: FEMNIST from LEAF's JSON files in data=DIR, a client is a writer, LEAF's convolutional network"""
    from shoal.nets import models

    return Federated(
        models.leaf_cnn,
        lambda settings: leaf.femnist(settings.data or "data/femnist"),
        name="femnist",
        local_epochs=1,
        batch_size=20,
        lr=0.03,  # tuned by Reddi et al. 2021 for FedAvg
    )


def cifar10() -> Job:
    """federated: CIFAR10 from the binary files in data=DIR, 1,000 clients of 50 pictures, pfl-research's network"""
    from shoal.nets import models

    return Federated(
        models.pfl_cnn,
        lambda settings: datasets.cifar10(settings.data or "data/cifar10"),
        name="cifar10",
        partition="iid",
        clients=1000,
        cohort=50,
        rounds=1500,
        local_epochs=1,
    )


def shakespeare() -> Job:
    """federated: plays from a text file, data=FILE, a client is a speaking role, LEAF's character LSTM"""
    from shoal.nets import models

    return Federated(
        lambda: models.CharLSTM(len(leaf.LETTERS) + 1),
        lambda settings: leaf.shakespeare(settings.data or "data/shakespeare.txt", settings.held_out),
        name="shakespeare",
        local_epochs=1,
        lr=0.8,  # LEAF's
    )


def lora() -> Job:
    """federated: scikit-learn's digits as sequences of 64 tokens, LoRA adapters of a frozen random transformer"""
    from shoal.nets.lora import adapted
    from shoal.nets.transformer import Transformer

    return Federated(
        lambda: adapted(Transformer(tokens=17, length=64, classes=10), rank=8, trained=("head",)),
        lambda settings: datasets.tokens(),
        name="lora",
        clients=20,
        cohort=10,
        rounds=60,
        local_epochs=2,
        batch_size=16,
        optimizer="adam",
        lr=0.01,
        lr_schedule="cosine",
        partition="iid",
    )


def fed_cartpole() -> Job:
    """federated reinforcement: CartPole-v1, 10 clients whose poles and gravity differ, FedAvg of PPO's clients"""
    return Federated(
        env=leaning,
        name="fed-cartpole",
        clients=10,
        cohort=10,
        rounds=40,
        local_epochs=4,
        batch_size=256,
        optimizer="adam",
        lr=2e-3,
        reward_scale=0.05,
    )


def cartpole() -> Job:
    """reinforcement: CartPole-v1 by IMPALA (V-trace over a stream of trajectories)"""
    return Reinforcement("CartPole-v1", name="cartpole")


def cartpole_ppo() -> Job:
    """reinforcement: CartPole-v1 by PPO in synchronous rounds"""
    return Reinforcement("CartPole-v1", name="cartpole-ppo", preset="none", **PPO)


def cartpole_dqn() -> Job:
    """reinforcement: CartPole-v1 by DQN"""
    return Reinforcement("CartPole-v1", name="cartpole-dqn", method="dqn")


def cartpole_es() -> Job:
    """reinforcement: CartPole-v1 by evolution strategies, of which only seeds and returns travel"""
    return Reinforcement("CartPole-v1", name="cartpole-es", method="es", hidden=(16,), lr=0.1)


def acrobot() -> Job:
    """reinforcement: Acrobot-v1 by PPO"""
    return Reinforcement("Acrobot-v1", name="acrobot", preset="none", **{**PPO, "ent_coef": 0.01})


def lunarlander() -> Job:
    """reinforcement: LunarLander-v3 by PPO"""
    return Reinforcement("LunarLander-v3", name="lunarlander", method="ppo")


# Each table was tuned on five to eight seeds (benchmarks/README.md). Rewards are scaled: otherwise the value loss alone would
# reach max_grad_norm, and the scaled gradient would leave nothing to the policy.
PPO: Mapping[str, Any] = {"method": "ppo", "lr": 2e-3, "ent_coef": 0.0, "reward_scale": 0.05}
LONG: Mapping[str, Any] = {"method": "ppo", "clients": 2, "rollout_length": 64, "num_minibatches": 16, "reward_scale": 0.05}
ANY: Mapping[str, Any] = {**LONG, "gamma": 0.95, "ent_coef": 0.0, "update_epochs": 10}

BUILT_IN: Mapping[str, Callable[[], Job]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        digits,
        mnist,
        femnist,
        cifar10,
        shakespeare,
        lora,
        fed_cartpole,
        cartpole,
        cartpole_ppo,
        cartpole_dqn,
        cartpole_es,
        acrobot,
        lunarlander,
    )
}
GYMNASIUM = "gymnasium:"
ENV_ID = re.compile(r"(\w+/)?[\w.-]+-v\d+")  # an id of gymnasium, without the word that a JOB has in front of it
INLINE = "inline:"  # prefix, in config.toml, of the name of a job that was made in Python and stands in no file


def built_in(name: str) -> Job | None:
    """The job of this name in the table, or PPO on any gymnasium or PettingZoo environment; None if the name is none."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name.startswith(GYMNASIUM):
        env = name.removeprefix(GYMNASIUM)
        return Reinforcement(env, name=name, method="ppo") if preset_of(env, "ppo") else _on_any(env, name)
    if name.startswith(PREFIX):
        return _on_any(parallel_of(name), name)
    return None


def _on_any(env: Any, name: str) -> Job:
    """PPO by the settings ANY, none of which another method takes over."""
    return replace(Reinforcement(env, name=name, **ANY), given=frozenset())


def names_code(name: str) -> bool:
    """True if finding the job of this name imports a file or a module, which anybody may have written."""
    if name in BUILT_IN or name.startswith((INLINE, PREFIX)):
        return False
    return not name.startswith(GYMNASIUM) or name.count(":") > 1  # gymnasium:MODULE:ENV_ID imports a module


def find(name: str) -> Job:
    """The job that `name` means: a built-in name, `module:attribute` or `file.py:attribute`. Raises UserError."""
    if (job := built_in(name)) is not None:
        return job
    if name.startswith(INLINE):
        called = name.removeprefix(INLINE)
        raise UserError(
            f"job {called} was made in Python and stands in no file: in Python, give it as shoal.load(RUN_DIR, job=...); "
            "or put the job into a file, which is found again as FILE.py:job"
        )
    found = named(name)
    if not isinstance(found, Job):
        raise UserError(
            f"{name} is of type {type(found).__name__}, not a job: make it with Federated(...) or Reinforcement(...)"
        )
    return found


def named(name: str) -> Any:
    """The object that a file or a module has under a name, `module:attribute` or `file.py:attribute`. Raises UserError."""
    place, sign, attribute = name.rpartition(":")
    if not sign:
        if ENV_ID.fullmatch(name):
            raise UserError(f"unknown job {name!r}: did you mean {GYMNASIUM}{name}?")
        more = "; a job of your own is FILE.py:job or MODULE:job; to repeat a run, give its config.toml"
        raise UserError(f"unknown job {name!r}: {nearest(name, BUILT_IN)}{more}")
    found = getattr(_file(Path(place)) if place.endswith(".py") else _module(place), attribute, None)
    if found is None:
        raise UserError(f"{place} has no {attribute!r}: end it with `{attribute} = Federated(...)` or `Reinforcement(...)`")
    return found


def digest_of(name: str) -> str:
    """The digest of a job's file, which was imported, and of Shoal's version: actors with another one may learn something else.
    Of a built-in job, or "", that of the version; of a job that stands in no file "". The job's settings are not in it: each
    actor makes its worker from the coordinator's settings and seed, of Welcome (or is forked with them), so no actor can have
    others."""
    if name.startswith(INLINE):
        return ""
    place = name.rpartition(":")[0] if name not in BUILT_IN and not name.startswith((GYMNASIUM, PREFIX)) else ""
    path = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    text = Path(path).read_bytes() if path and Path(path).is_file() else b""
    return hashlib.sha256(f"shoal {__version__}\n".encode() + text).hexdigest()


def recalled(name: str, settings: Mapping[str, Any], seed: int) -> Job:
    """The job that a config.toml describes, written by this version or an earlier one. Raises UserError."""
    from shoal.jobs.older import translated

    job = find(name)
    return job.configured(translated(job, settings), seed)


def _file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no file {path}: give the path of the file that holds the job")
    path = path.resolve()
    own = f"{path.stem}_{hashlib.blake2b(bytes(path), digest_size=4).hexdigest()}"  # `random.py` is not the module `random`
    spec = importlib.util.spec_from_file_location(own, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    before = sys.modules.get(own)
    sys.modules[own] = module  # where dataclasses look their module up
    there = sys.modules.setdefault(path.stem, module)  # for other files that import this one, if no other module has the name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for name, stands in ((own, before), (path.stem, None if there is module else there)):
            if stands is None:
                del sys.modules[name]
            else:
                sys.modules[name] = stands
        raise
    return module


def _module(name: str) -> Any:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name and not name.startswith(missing.name):
            raise
        raise UserError(f"no module {name!r}: give FILE.py:attribute, or a module that Python finds from here") from None
