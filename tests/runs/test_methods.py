"""A method is one class: it takes settings from the command line, refuses sums by itself, trains, and resumes."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typed import mistake, ran, shoal

import shoal as package
from shoal import Federated, Reinforcement
from shoal.actors.workers.local_sgd import LocalSGD
from shoal.aggregators.a2c import A2CLearner
from shoal.aggregators.appo import APPOLearner
from shoal.aggregators.es import ESLearner
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.jobs.catalog import find, recalled
from shoal.jobs.job import Job
from shoal.jobs.methods import METHODS, owners
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.wraps import Bound, Compress, CompressWeights
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError
from shoal.runs.rundir import Config

KRUM = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal import Bundle, FedAvg, Federated, Moved
from shoal.envs import datasets
from shoal.nets import models


class Chosen:
    """Krum (Blanchard et al. 2017): of all deltas the one whose nearest neighbours are nearest becomes the step."""

    linear = False

    def __init__(self, weights, faulty):
        self.now, self.faulty, self.deltas, self.steps = weights.copy(), faulty, [], 0

    def weights(self):
        return self.now

    def fold(self, contribution):
        self.deltas.append((contribution.task.clients, contribution.work.bundle.copy()))

    def step(self):
        self.deltas.sort(key=lambda pair: pair[0])
        x = np.stack([delta.vector() for _, delta in self.deltas])
        apart = ((x[:, None] - x[None]) ** 2).sum(-1)
        near = np.sort(apart, axis=1)[:, 1 : max(2, len(x) - self.faulty - 1)].sum(1)
        moved = self.now.copy()
        moved.vector()[:] += x[int(near.argmin())]
        self.now, self.deltas, self.steps = moved, [], self.steps + 1
        return Moved({"nearest": float(near.min())})

    def state(self):
        return {"steps": np.array(self.steps)}

    def load(self, weights, state):
        self.now, self.deltas, self.steps = weights.copy(), [], int(state["steps"])


@dataclass(frozen=True)
class Krum(FedAvg):
    """A federated rule of one's own."""

    name: ClassVar[str] = "nearest"
    faulty: int = 1

    def aggregator(self, start, device):
        return Chosen(start.weights, self.faulty)


job = Federated(models.mlp, lambda: datasets.digits(), method=Krum, rounds=3, local_epochs=1)
'''


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(KRUM)
    return tmp_path


@pytest.mark.parametrize("actors", [0, 2])
def test_a_rule_from_outside_trains_refuses_sums_by_itself_and_takes_its_settings_from_the_command_line(actors: int) -> None:
    said = ran("simulate", "mine.py", "faulty=2", "--actors", actors, "--json")
    assert said.result["version"] == 3
    assert said.result["contributions"] == 30
    assert said.result["metrics"]["nearest"] > 0
    config = (Path(said.result["run_dir"]) / "config.toml").read_text()
    assert '[method]\nname = "nearest"' in config
    assert "faulty = 2" in config
    assert not find("mine.py:job").sums


def test_it_has_the_same_bits_for_any_number_of_actors_and_after_a_resumption() -> None:
    whole = ran("simulate", "mine.py", "--actors", 0, "--json").result["weights_sha256"]
    assert ran("simulate", "mine.py", "--actors", 2, "--json").result["weights_sha256"] == whole
    ran("simulate", "mine.py", "rounds=1", "--actors", 0, "--run-dir", "run")
    assert ran("resume", "run", "rounds=3", "--json").result["weights_sha256"] == whole


def test_it_takes_over_what_a_command_line_s_other_method_would_have_had_and_the_other_way_round() -> None:
    assert find("mine.py:job").configured({"method": "fedadam"}).method.rounds == 3  # type: ignore[attr-defined]
    line = mistake("simulate", "mine.py", "method=fedadam", "faulty=2")
    assert "unknown setting 'faulty'" in line
    line = mistake("simulate", "mine.py", "beta1=0.1")
    assert "beta1 is a setting of fedadam, fedyogi" in line
    assert "; this job's method is nearest" in line


def test_a_setting_of_many_methods_is_named_with_the_first_of_them(place: Path) -> None:
    line = mistake("simulate", "mine.py", "gae_lambda=0.9")
    assert "gae_lambda is a setting of ppo, a2c; this job's method is nearest" in line
    line = mistake("simulate", "gymnasium:CartPole-v1", "local_epochs=2")
    assert re.search(r"a setting of (\w+, ){5}\w+ and \d+ other methods; this job's method is ppo", line), line


def test_a_rule_from_inside_is_one_file_and_one_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    krum = find("mine.py:job").method
    monkeypatch.setattr("shoal.jobs.job.METHODS", {**METHODS, "nearest": type(krum)})
    said = shoal("simulate", "digits", "method=nearest", "faulty=2", "rounds=1", "local_epochs=1", "--actors", 0, "--json")
    assert (said.code, said.result["version"]) == (0, 1), said.err


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    def state(self):", "    def stat(self):", "method nearest: its aggregator Chosen lacks state"),
        ("    def step(self):", "    def stop(self):", "method nearest: its aggregator Chosen lacks step"),
        ("    linear = False\n", "", "method nearest: its aggregator Chosen lacks linear"),
        (
            "    def load(self, weights, state):",
            "    def lood(self, w, s):",
            "method nearest: its aggregator Chosen lacks load",
        ),
        ('    name: ClassVar[str] = "nearest"\n', "", "method Krum: fedavg is the name of a built-in method"),
        ("@dataclass(frozen=True)\n", "", "settings faulty are not read; put @dataclass(frozen=True) above class Krum"),
        ("class Krum(FedAvg)", "class Krum", ".Krum'>: must be a name ("),
        ("method=Krum", "method=3", "method=3: "),
        ("faulty: int = 1", "lease: int = 1", "lease is a setting of two parts, method and bearing: rename one"),
    ],
)
def test_a_method_that_lacks_a_part_is_refused_before_there_is_a_run(place: Path, old: str, new: str, line: str) -> None:
    assert old in KRUM
    code = KRUM.replace(old, new).replace("self.faulty)", "1)") if "lease" in new else KRUM.replace(old, new)
    (place / "mine.py").write_text(code)
    assert line in mistake("simulate", "mine.py")
    assert [path.name for path in place.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("        return self.now\n", "        return [self.now]\n", "Chosen: weights() gave list; expected a Bundle"),
        (
            '        return {"steps": np.array(self.steps)}',
            "        return self.steps",
            "state() gave int; expected a dict",
        ),
        ('{"steps": np.array(self.steps)}', '{"steps": self.steps}', "Chosen: state()['steps'] is int; expected a numpy array"),
        (
            "    def state(self):",
            "    def brief(self, task): ...\n    def state(self):",
            "briefs(problem, weights): one of them is missing",
        ),
        ("        return Moved({", "        return ({", "aggregator Chosen: step() gave dict; expected Moved("),
        (
            "        x = np.stack(",
            "        x = np.stak(",
            "in step: AttributeError: module 'numpy'",
        ),
        (
            "self.deltas.append((contribution.task",
            "self.dltas.append((contribution.task",
            "in fold: AttributeError",
        ),
    ],
)
def test_what_an_aggregator_gives_that_is_of_no_use_is_one_line(place: Path, old: str, new: str, line: str) -> None:
    assert old in KRUM
    (place / "mine.py").write_text(KRUM.replace(old, new))
    said = shoal("simulate", "mine.py", "--actors", 0, "--quiet")
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert line in said.err


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("", "method mine lacks plan(asked, seed, sums) and aggregator(start, device) and worker(problem, seed)"),
        ("def plan(self, asked, seed, sums): ...", "method mine lacks aggregator(start, device) and worker(problem, seed)"),
    ],
)
def test_a_method_from_scratch_that_lacks_parts_names_them(place: Path, body: str, line: str) -> None:
    (place / "mine.py").write_text(f"""
from dataclasses import dataclass
from typing import ClassVar
from shoal import Federated, Method
@dataclass(frozen=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    {body}
job = Federated(lambda: None, 2, method=Mine)
""")
    assert line in mistake("simulate", "mine.py")


def test_a_plan_that_lacks_a_part_is_refused_in_a_line(place: Path) -> None:
    code = KRUM.replace(
        "    faulty: int = 1\n", "    faulty: int = 1\n    def plan(self, asked, seed, sums):\n        return Half()\n"
    )
    (place / "mine.py").write_text(code + "\nclass Half:\n    def assign(self, *_): return ()\n")
    assert "method nearest: its plan Half lacks admits, enough" in mistake("simulate", "mine.py")


# Settings


def test_every_part_of_a_job_comes_back_from_its_plain_settings() -> None:
    changes = {"method": "fedbuff", "buffer": 3, "lr": "0.25", "norm_bound": 4, "compress": "int8", "lease": 7, "alpha": 0.2}
    job = find("digits").configured(changes, seed=3)
    again = find("digits").configured(job.plain(), seed=3)
    assert again.plain() == job.plain()
    assert (again.method, again.keeping, again.bearing, again.checks, again.around) == (
        job.method,
        job.keeping,
        job.bearing,
        job.checks,
        job.around,
    )


def test_another_method_takes_over_what_was_said_and_not_what_was_not() -> None:
    job = find("digits").configured({"lr": 0.3, "server_lr": 0.5})
    adam = job.configured({"method": "fedadam"}).plain()
    assert (adam["lr"], adam["server_lr"], adam["tau"]) == (0.3, 0.5, 1e-3)
    assert find("digits").configured({"method": "fedadam"}).plain()["server_lr"] == 0.03
    assert find("digits").configured({"method": "fedprox"}).plain()["mu"] == 0.01


def test_a_tuple_of_numbers_is_of_whole_numbers() -> None:
    assert Reinforcement("x", hidden=[32, 16]).plain()["hidden"] == [32, 16]
    for wrong in ([64.7, 3], True, [True], 64.5, [None]):
        with pytest.raises(UserError, match=r"hidden=.*whole numbers like 64,64"):
            Reinforcement("x", hidden=wrong)


def test_the_two_other_words_for_the_method_are_accepted_everywhere() -> None:
    assert Federated(mlp, 2, aggregator="fedadam", beta1=0.5).plain() == Federated(mlp, 2, method="fedadam", beta1=0.5).plain()
    assert Reinforcement("x", algorithm="ppo", clip_coef=0.3).plain() == Reinforcement("x", method="ppo", clip_coef=0.3).plain()


def test_owners_of_a_setting_are_the_methods_that_have_it() -> None:
    assert {"fedadam", "fedyogi"} <= {*owners("beta2")}
    assert owners("overlap") == ["ppo"]
    assert owners("nothing") == []


OLDER = """job = "digits"
seed = 0
actors = 0
transport = "shm"
device = "auto"

[settings]
rounds = 2
clients = 100
cohort = 10
local_epochs = 1
lr = 0.1
mu = 0.0
aggregator = "fedavg"
server_lr = 0.0
server_momentum = 0.9
beta1 = 0.9
tau = 0.001
buffer = 10
max_lag = 20
partition = "iid"
alpha = 0.5
classes = 2
quorum = 3
deadline = 0.0
eval_every = 0
eval_cohort = 4
compress = "none"
compress_weights = "none"
compress_ratio = 0.4
"""


def test_a_file_of_version_0_1_still_loads_and_means_the_same(place: Path) -> None:
    (place / "older.toml").write_text(OLDER)
    said = ran("simulate", "older.toml", "--json")
    now = ran("simulate", "digits", "rounds=2", "local_epochs=1", "partition=iid", "eval_every=0", "--actors", 0, "--json")
    assert said.result["weights_sha256"] == now.result["weights_sha256"]
    (place / "adam.toml").write_text(OLDER.replace('"fedavg"', '"fedadam"'))
    config = (Path(ran("simulate", "adam.toml", "--json").result["run_dir"]) / "config.toml").read_text()
    assert "server_lr = 0.03" in config
    (place / "buff.toml").write_text(OLDER.replace('"fedavg"', '"fedbuff"'))
    assert ran("simulate", "buff.toml", "--json").result["version"] == 2
    (place / "wrong.toml").write_text(OLDER + "lrr = 3\n")
    assert "unknown setting 'lrr': did you mean lr?" in mistake("simulate", "wrong.toml")


def test_a_file_of_this_version_may_hold_settings_in_any_group(place: Path) -> None:
    (place / "one.toml").write_text(
        'job = "digits"\n[method]\nname = "fedadam"\nrounds = 2\nalpha = 0.3\n[settings]\nlease = 5\n'
    )
    config = Config.load("one.toml")
    job = recalled(config.job, config.settings, config.seed)
    assert (job.method.name, job.bearing.lease, job.plain()["alpha"]) == ("fedadam", 5.0, 0.3)


# What stands around


def test_wraps_compose_in_an_order_that_makes_sense_and_in_no_other() -> None:
    federated = {"worker": lambda: LocalSGD, "weights": dict}
    for around in ((), (Bound(2.0), Compress(compress="int8")), (Bound(2.0), CompressWeights("int8"), Bound(3.0))):
        Job(Federated(**federated).problem, FedAvg(), around=around[:2])
    with pytest.raises(UserError, match=r"around: Bound stands outside Compress.*put Bound before Compress"):
        Job(Federated(**federated).problem, FedAvg(), around=(Compress(compress="int8"), Bound(2.0)))
    with pytest.raises(UserError, match="norm_factor is a setting of two parts, around and around: rename one"):
        Job(Federated(**federated).problem, FedAvg(), around=(Bound(2.0), Bound(3.0)))
    with pytest.raises(UserError, match="around: 3 is neither a Wrap nor a function"):
        Federated(**federated, around=[3])


def test_a_function_from_an_aggregator_to_an_aggregator_is_a_wrap(place: Path) -> None:
    (place / "mine.py").write_text("""
from shoal import Federated
from shoal.aggregators.around import Around
from shoal.envs import datasets
from shoal.nets import models
class Counted(Around):
    linear = False
    many = 0
    def fold(self, contribution):
        super().fold(contribution)
        self.many += 1
    def step(self):
        moved = super().step()
        return type(moved)({**moved.metrics, "many": float(self.many)})
job = Federated(models.mlp, lambda: datasets.digits(), around=[Counted], rounds=2, local_epochs=1)
broken = Federated(models.mlp, lambda: datasets.digits(), around=[lambda inner: 3], rounds=2)
""")
    assert ran("simulate", "mine.py", "--actors", 0, "--json").result["metrics"]["many"] == 20.0
    assert "around: Calling's aggregator int lacks weights, fold, step, state, load, linear" in mistake(
        "simulate", "mine.py:broken"
    )


def test_public_names_are_what_they_say() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert json.dumps(Federated(mlp, 2).plain())
    assert np.isfinite(Federated(mlp, 2).plain()["lr"])


@pytest.mark.parametrize(
    ("method", "made", "others"),
    [
        ("impala", IMPALALearner, {"device"}),
        ("ppo", PPOLearner, {"device", "seed"}),
        ("appo", APPOLearner, {"device", "seed"}),
        ("a2c", A2CLearner, {"device"}),
        ("es", ESLearner, set()),
        ("fedavg", LocalSGD, {"device", "kept_bytes", "metrics", "seed", "squares", "thin"}),
        ("fedbuff", LocalSGD, {"device", "kept_bytes", "metrics", "seed", "squares", "thin"}),
    ],
)
def test_what_a_method_makes_gets_all_settings_by_their_names(method: str, made: type, others: set[str]) -> None:
    settings = METHODS[method]()
    keywords = [name for name, each in inspect.signature(made).parameters.items() if each.kind is each.KEYWORD_ONLY]
    handed = settings.arguments(made, seed=3)
    assert set(keywords) - set(handed) <= others
    assert handed == {name: getattr(settings, name) for name in keywords if name not in others} | {"seed": 3}


@pytest.mark.parametrize(
    ("method", "settings", "versions"),
    [("ppo", {"clients": 3}, 4), ("ppo", {"clients": 70}, 1), ("impala", {"batch": 2}, 7), ("impala", {"batch": 99}, 1)],
)
def test_a_run_makes_no_more_steps_than_it_was_given_and_its_last_version_has_a_rate(
    tmp_path, monkeypatch, method, settings, versions
):
    seen = []
    kind = PPOLearner if method == "ppo" else IMPALALearner

    def annealed(learner, before=kind.anneal):
        before(learner)
        seen.append(learner.descent.param_groups[0]["lr"])

    monkeypatch.setattr(kind, "anneal", annealed)
    job = Reinforcement("CartPole-v1", method=method, num_envs=2, rollout_length=8, total_timesteps=240, lr=0.01, **settings)
    made = package.run(job, actors=0, folder=tmp_path / "run")
    each = 16 * next(iter(settings.values()))
    assert made.history[-1]["steps"] <= max(240, each)
    assert made.history[-1]["steps"] > 240 - each
    assert len(seen) >= versions  # 240 // each, or more: an episode's end costs a row that is no step
    assert min(seen) >= 0.01 * min(1, each / 240)
