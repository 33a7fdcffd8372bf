"""Robust methods and attacks as whole runs: one word on the command line, the same bits on every way, refusals with numbers."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typed import mistake, ran
from whole import Outcome, run

import shoal
from shoal import Federated
from shoal.envs import datasets
from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.jobs.wraps import ATTACKS
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

METHODS = ("median", "trimmed_mean", "krum", "multikrum", "bulyan", "rfa", "centered_clipping", "fltrust")
SMALL = {"rounds": 2, "local_epochs": 1, "clients": 20, "cohort": 10, "eval_every": 0, "partition": "iid"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def normed() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Linear(12, 10))


def job(method: str, **more: Any) -> Job:
    return Federated(normed, datasets.digits(), method=method, **{**SMALL, "drop_last": True, **more})


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_one_word_and_has_the_same_bits_over_sockets(method: str, place: Path) -> None:
    """Batch normalisation brings running statistics and a counter along."""
    more = {} if method in ("bulyan", "fltrust") else {"pre_aggregation": "nnm" if method == "krum" else "bucketing"}
    made = job(method, **more)
    assert not made.sums
    alone, outcome = run(made, 0), run(made, 2, f"ipc://{place}/hub", together=True)
    assert outcome.sha256 == alone.sha256
    assert alone.weights["1.num_batches_tracked"] > 0


@pytest.mark.parametrize("method", ["centered_clipping", "fltrust"])
def test_a_method_that_remembers_goes_on_after_a_resumption_with_the_same_bits(method: str, place: Path) -> None:
    made = job(method)
    first = shoal.run(made.configured({"rounds": 1}), actors=0, folder=place / "run", show=False)
    assert first.resume(settings={"rounds": 2}, show=False).summary["weights_sha256"] == run(made, 0).sha256


def test_the_median_of_the_command_line_learns_digits() -> None:
    said = ran("simulate", "digits", "method=median", "rounds=5", "lr=0.2", "partition=iid", "--actors", 0, "--json")
    assert said.result["metrics"]["accuracy"] > 0.5  # 0.74 here


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("method=krum malicious=4", "malicious=4: krum needs 2 x 4 + 3 = 11 deltas a round; cohort=10; malicious=3, say"),
        ("method=multikrum malicious=4", "multikrum needs 2 x 4 + 3 = 11 deltas a round; cohort=10; malicious=3, say"),
        ("method=bulyan malicious=2", "bulyan needs 4 x 2 + 3 = 11 deltas a round; cohort=10; malicious=1, say"),
        ("method=median malicious=5", "median needs 2 x 5 + 1 = 11 deltas a round; cohort=10; malicious=4, say"),
        ("method=krum cohort=2", "krum needs 2 x 1 + 3 = 5 deltas a round; cohort=2; cohort=5, say"),
        (
            "method=trimmed_mean malicious=3 pre_aggregation=bucketing bucket_size=3",
            "trimmed_mean needs 2 x 3 + 1 = 7 deltas a round; cohort=10 in groups of 3 gives 4; malicious=1, say",
        ),
        (
            "method=krum malicious=2 quorum=6 deadline=9",
            "malicious=2: krum needs 2 x 2 + 3 = 7 deltas a round; quorum=6; malicious=1",
        ),
        ("method=multikrum keep=11", "keep=11: allowed is from 0 to the 10 deltas of a round"),
        ("method=median weighting=samples", "weighting=samples: allowed is one of users"),
        (
            "method=median bucket_size=3",
            "bucket_size is a setting of pre_aggregation=bucketing; this job has pre_aggregation=none",
        ),
        ("method=fltrust malicious=2", "malicious is a setting of median, trimmed_mean, krum"),
        ("malicious=2", "malicious is a setting of median, trimmed_mean, krum"),
        ("attack=nan", "attack=nan: attackers=0 means that no client attacks; attackers=2, say"),
        ("attackers=2", "attackers=2: attackers is a setting of attack=sign_flip or gaussian"),
        ("attack=alie attackers=101", "attackers=101: allowed is from 1 to clients=100"),
        ("attack=mimic attackers=3 attack_strength=2", "attack_strength is a setting of attack=sign_flip or gaussian"),
        ("method=scaffold norm_quantile=0.5", "norm_quantile=0.5: method=scaffold sends more than a delta"),
        ("method=fedasync norm_quantile=0.5", "norm_quantile=0.5: a client of fedasync sends its weights and no delta"),
        ("method=fedasync attack=ipm attackers=1", "attack=ipm: a client of fedasync sends its weights and no delta"),
        ("method=dp_fedavg attack=ipm attackers=1", "nothing may look at or change clients' deltas beside the clip"),
        ("norm_rate=1", "norm_rate=1: without norm_quantile it has no effect; norm_quantile=0.5, say"),
    ],
)
def test_what_cannot_work_is_refused_with_its_numbers_before_there_is_a_run(words: str, line: str, place: Path) -> None:
    assert line in mistake("simulate", "digits", *words.split())
    assert list(place.iterdir()) == []


class Named:
    """Clients that move by their number."""

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        return Work(Bundle.pack({"w": np.full(3, float(client))}, weights.layout))


def numbered(**more: Any) -> Job:
    given = {"clients": 9, "cohort": 9, "rounds": 1, "eval_every": 0, "strikes": 0, **more}
    return Federated(worker=Named, weights=lambda: {"w": np.zeros(3, np.float32)}, **given)


def ended(made: Job) -> tuple[list[float], Outcome]:
    outcome = run(made, 0)
    assert outcome.finish.reason == "done"
    return outcome.weights["w"].tolist(), outcome


HONEST = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]  # of nine clients, of which 0 and 1 are malicious


@pytest.mark.parametrize(
    ("attack", "more", "malicious"),
    [
        ("sign_flip", {"attack_strength": 4}, [0.0, -4.0]),
        ("ipm", {}, [-10.0, -10.0]),
        ("ipm", {"attack_strength": 0.5}, [-2.5, -2.5]),
        ("alie", {"attack_strength": 1.5}, [5.0 - 1.5 * np.std(HONEST, ddof=1)] * 2),
        ("alie", {}, [5.0 - 0.1800124 * np.std(HONEST, ddof=1)] * 2),  # s = 5 - 2 = 3; (9 - 2 - 3) / 7 = 0.571
        ("mimic", {}, [2.0, 2.0]),
    ],
)
def test_an_attack_replaces_what_malicious_clients_send_and_nothing_else(
    attack: str, more: dict[str, Any], malicious: list[float], place: Path
) -> None:
    made = numbered(attack=attack, attackers=2, **more)
    assert not made.sums
    found, _ = ended(made)
    assert found == pytest.approx([np.mean([*malicious, *HONEST])] * 3, rel=1e-5)
    assert run(made, 2, f"ipc://{place}/hub", together=True).weights["w"].tolist() == found


@pytest.mark.parametrize("attack", ["nan", "huge"])
def test_numbers_that_are_none_or_too_large_are_refused_and_the_round_goes_on(attack: str) -> None:
    found, outcome = ended(numbered(attack=attack, attackers=2))
    assert found == [5.0] * 3
    refused = [report.text for report in outcome.seen.reports if report.kind == "refused"]
    assert len(refused) == 2 * 3  # attempts
    assert all(("not finite" if attack == "nan" else "too large") in text for text in refused)


def test_a_round_that_loses_too_many_clients_changes_no_weights_and_says_so() -> None:
    found, outcome = ended(numbered(attack="nan", attackers=4, method="krum", malicious=2))
    assert found == [0.0] * 3
    [(version, metrics)] = outcome.seen.steps
    assert (version, metrics["examples"], metrics["too_few"]) == (1, 5.0, 1.0)


def test_gaussian_numbers_depend_on_client_and_version_alone() -> None:
    made = numbered(attack="gaussian", attackers=9, rounds=3, cohort=5, attack_strength=2)
    assert ended(made)[0] == ended(made)[0]
    assert len(set(ended(made)[0])) == 3


def test_flipped_labels_are_those_of_malicious_clients_in_training_alone() -> None:
    made = job("fedavg", attack="label_flip", attackers=2)
    worker: Any = made.worker()
    honest = made.problem.population(made.method, made.seed)  # type: ignore[attr-defined]
    poisoned = worker.poisoned.population
    assert (poisoned.examples(1).y == 9 - honest.examples(1).y).all()
    assert (poisoned.examples(2).y == honest.examples(2).y).all()
    weights = made.problem.first(0)[0]
    clean: Any = job("fedavg").worker()
    for client, counts in ((1, True), (1, False), (2, True)):
        task = Task(0, client, (client,), "train", counts)
        same = (clean.run(weights, client, task).bundle.data == worker.run(weights, client, task).bundle.data).all()
        assert same == (not counts or client == 2)


def test_flipped_labels_want_a_worker_of_ours() -> None:
    with pytest.raises(UserError, match="attack=label_flip: a worker of your own has its own data"):
        numbered(attack="label_flip", attackers=1)


def test_a_bound_that_follows_a_quantile_scales_what_is_longer_down(place: Path) -> None:
    """Deltas of length sqrt(3) c. The bound is 1.5, below which client 0 alone is: 1/9 of the clients, and 1/2 are wanted."""
    made = numbered(norm_quantile=0.5, norm_start=1.5, rounds=2)
    assert not made.sums
    _, outcome = ended(made)
    each = [0.0, *[1.5 / np.sqrt(3)] * 8]
    first, second = (metrics for _, metrics in outcome.seen.steps)
    assert first["norm_limit"] == 1.5
    assert first["above_limit"] == pytest.approx(8 / 9)
    assert second["norm_limit"] == pytest.approx(1.5 * np.exp(0.2 * (1 / 2 - 1 / 9)))
    assert first["update_norm"] == pytest.approx(np.sqrt(3) * np.mean(each), rel=1e-5)
    assert run(made, 2, f"ipc://{place}/hub", together=True).sha256 == outcome.sha256


def test_the_servers_own_data_may_be_a_function_or_drawn_from_all_clients(place: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32), np.arange(400) % 10
    one = Federated(mlp, (x, y), method="fltrust", root=lambda: (x[:50], y[:50]), **SMALL)
    other = Federated(mlp, [(x[i::20], y[i::20]) for i in range(20)], method="fltrust", root_examples=30, **SMALL)
    for made in (one, other):
        assert run(made, 2, f"ipc://{place}/hub", together=True).sha256 == run(made, 0).sha256
    with pytest.raises(UserError, match="method=fltrust: its server trains on its own data"):
        Federated(mlp, (x, y), worker=Named, method="fltrust")
    with pytest.raises(UserError, match="allowed is one of"):
        Federated(worker=Named, weights=lambda: {"w": np.zeros(3, np.float32)}, method="fltrust")
    with pytest.raises(UserError, match="root_examples=5: has no effect beside root="):
        Federated(mlp, (x, y), method="fltrust", root=lambda: (x, y), root_examples=5)


KILLED = """
import os, signal
from pathlib import Path
import numpy as np
from shoal import Bundle, Federated, Work

class Device:
    def run(self, weights, client, task):
        if (task.version, client) == (1, 5) and Path("armed").exists():
            Path("armed").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = np.random.default_rng([client, task.version]).normal(size=4)
        return Work(Bundle.pack({"w": drawn - weights["w"]}, weights.layout))

given = {"clients": 9, "cohort": 9, "rounds": 3, "journal": "payload", "snapshot_every": 0, "attack": "alie", "attackers": 2}
more = {"method": "centered_clipping", "pre_aggregation": "bucketing", "malicious": 2, "clip_radius": 0.5, "norm_quantile": 0.6}
job = Federated(worker=Device, weights=lambda: {"w": np.zeros(4, np.float32)}, **given, **more)
"""


def test_a_run_that_is_killed_in_the_middle_of_a_round_goes_on_with_the_same_bits(place: Path) -> None:
    """The journal has the first contributions of the round; the rule, its centre and the bound have what the snapshot has."""
    (place / "mine.py").write_text(KILLED)
    whole = ran("simulate", "mine.py", "--actors", 0, "--json").result
    (place / "armed").touch()
    words = [sys.executable, "-m", "shoal", "simulate", "mine.py", "--actors", "0", "--run-dir", "killed", "--quiet"]
    assert subprocess.run(words, cwd=place, check=False).returncode == -signal.SIGKILL
    resumed = ran("resume", "killed", "--json").result
    assert (resumed["version"], resumed["weights_sha256"]) == (3, whole["weights_sha256"])
    assert 9 * 2 < resumed["contributions"] < 9 * 3  # this life counts what it asked for, and the journal had the others


def test_compressed_deltas_reach_a_rule_unpacked(place: Path) -> None:
    made = job("multikrum", compress="int8", attack="ipm", attackers=2, norm_factor=50.0)
    assert run(made, 2, f"ipc://{place}/hub", together=True).sha256 == run(made, 0).sha256


def test_the_example_takes_any_method_and_attack_and_its_rule_withstands_what_a_mean_does_not(place: Path) -> None:
    example = find(f"{Path(__file__).resolve().parents[2] / 'examples' / 'robust.py'}:job")
    for method in METHODS:
        for attack in ATTACKS:
            example.configured({"method": method, "attack": attack})
    short = example.configured({"rounds": 5, "attack_strength": 6})
    robust, mean = (
        shoal.run(short.configured({"method": method}), actors=0, folder=place / method, show=False).metrics["accuracy"]
        for method in ("multikrum", "fedavg")
    )
    assert robust > mean + 0.3


def test_every_attack_is_a_word_of_the_command_line() -> None:
    for attack in ATTACKS:
        made = find("digits").configured({"method": "median", "attack": attack, "attackers": "3"})
        assert made.plain()["attack"] == attack
