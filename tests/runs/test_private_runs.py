"""Whole runs with differential privacy: what is refused when the job is read, the budget, and a killed coordinator."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from torch import nn
from typed import mistake, ran, shoal

from shoal import Federated
from shoal.coordinator.keeping.charges import FILE, KEY, Charges
from shoal.envs import datasets
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.runs.rundir import RunDir

pytest.importorskip("dp_accounting", reason="the extra shoal[privacy] is not installed")

SMALL = ("method=dp_fedavg", "clients=40", "cohort=10", "local_epochs=1", "eval_every=0")


def job(**settings: object) -> Job:
    return Federated(lambda: nn.Linear(64, 10), datasets.digits, **{"method": "dp_fedavg", "clients": 40, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilon": 0}, "epsilon=0 and noise_multiplier=0"),
        ({"weighting": "samples"}, "weighting=samples"),
        ({"deterministic": False}, "deterministic=false"),
        ({"delta": 0.1}, "delta=0.1: must be below 1 / clients = 0.025"),
        ({"select": "power_of_choice"}, "select=power_of_choice: dp_fedavg draws"),
        ({"quorum": 5, "deadline": 60.0}, "=.*: dp_fedavg draws each round's clients"),
        ({"over_selection": 1.5}, "over_selection=1.5: dp_fedavg draws"),
        ({"clock": "virtual"}, "clock=virtual: dp_fedavg draws"),
        ({"sampling": "fixed"}, "accountant=rdp"),
        ({"norm_factor": 3.0}, "norm_factor=3.0: with method=dp_fedavg nothing may look at or change"),
        ({"compress": "int8", "clipping": "client"}, "clipping=server clips what the codec gives"),
        ({"clip_lr": 0.5}, "clip_lr=0.5: without clip_quantile"),
        ({"clip_quantile": 0.5, "noise_multiplier": 3.0, "clip_count_stddev": 1.0}, "must be above noise_multiplier / 2 = 1.5"),
        ({"around": [lambda inner: inner]}, "around: <lambda>: with method=dp_fedavg"),
        ({"method": "local_dp", "eval_cohort": 4}, "eval_cohort=4: with method=local_dp"),
        ({"method": "local_dp", "compress": "int8"}, "compress=int8: with method=local_dp"),
    ],
)
def test_what_would_break_the_guarantee_is_refused_when_the_job_is_read(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        job(**settings)


def test_compression_is_allowed_where_the_coordinator_clips() -> None:
    assert not job(compress="int8").sums
    assert job(clipping="client").sums


@pytest.mark.parametrize("method", ["dp_fedavg", "local_dp"])
def test_a_batch_norm_is_refused_by_name(method: str) -> None:
    made = Federated(lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)), datasets.digits, method=method, clients=40)
    with pytest.raises(UserError, match="1 is a batch norm"):
        made.aggregator("cpu")


def test_an_epsilon_that_the_plan_cannot_keep_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    said = mistake("simulate", "digits", *SMALL, "epsilon=1", "noise_multiplier=1", "--run-dir", tmp_path / "run")
    assert "epsilon=1: 100 rounds with noise_multiplier=1 cost epsilon" in said
    assert "keeps it, or rounds=" in said
    assert not (tmp_path / "run").exists()
    enough = said.split("noise_multiplier=")[2].split(" ")[0]
    few = said.split("rounds=")[1]
    for fix in (f"noise_multiplier={enough}", f"rounds={few}"):
        given = dict(pair.split("=") for pair in ("noise_multiplier=1", fix))
        job(cohort=10, epsilon=1.0, **given).method.try_out(0)


def test_a_run_spends_its_budget_and_does_not_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ran("simulate", "digits", *SMALL, "rounds=4", "epsilon=5", "accountant=rdp", "--actors", 0, "--run-dir", folder)
    charges = Charges(folder)
    assert len(charges.tags) == 4
    rows = RunDir(folder).rows()
    assert [row["metrics"]["epsilon"] for row in rows] == sorted(row["metrics"]["epsilon"] for row in rows)
    assert 4.9 < rows[-1]["metrics"]["epsilon"] <= 5.0
    assert "rounds=8: epsilon=5 with noise_multiplier=" in mistake("resume", folder, "rounds=8")


def test_a_lost_charge_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("noise_multiplier=1", "epsilon=0", "--actors", 0)
    ran("simulate", "digits", *SMALL, "rounds=3", *words, "--run-dir", folder)
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    (folder / FILE).write_text("".join(lines[:-1]))
    assert "has made 3 noised versions and its privacy.jsonl holds 2 charges" in mistake("resume", folder, "rounds=5")
    (folder / FILE).write_text("".join(lines))
    ran("resume", folder, "rounds=5")
    assert len(Charges(folder).tags) == 5


def test_the_same_seed_repeats_a_run_only_if_the_noise_follows_from_it(tmp_path: Path) -> None:
    def weights(name: str, *words: str) -> str:
        its = ("rounds=2", "noise_multiplier=1", "epsilon=0", "--actors", "0", "--json", "--run-dir", str(tmp_path / name))
        return str(ran("simulate", "digits", *SMALL, *words, *its).result["weights_sha256"])

    assert weights("a", "noise_from=seed") == weights("b", "noise_from=seed")
    assert not (tmp_path / "a" / KEY).exists()
    assert weights("c") != weights("d")


def test_a_clip_that_adapts_has_the_same_bits_whoever_clips(tmp_path: Path) -> None:
    def told(name: str, *words: str) -> tuple[object, list[float]]:
        its = ("rounds=5", "noise_multiplier=1", "epsilon=0", "noise_from=seed", "clip_quantile=0.3", "clip_norm=0.4", *words)
        end = ran("simulate", "digits", *SMALL, *its, "--json", "--run-dir", tmp_path / name).result
        return end["weights_sha256"], [row["metrics"]["clip_norm"] for row in RunDir(tmp_path / name).rows()]

    weights, norms = told("server", "clipping=server", "--actors", "0")
    assert len(set(norms)) == len(norms) >= 3
    assert (
        (weights, norms)
        == told("client", "clipping=client", "--actors", "0")
        == told("two", "clipping=client", "--actors", "2")
    )


@pytest.mark.parametrize("durable", [False, True])
def test_a_coordinator_killed_at_a_charge_goes_on_with_the_same_bits_and_pays_no_version_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    words = ["digits", *SMALL, "rounds=6", "noise_from=seed", "noise_multiplier=1", "epsilon=0", "snapshot_every=0"]
    whole = ran("simulate", *words, "--actors", 0, "--json", "--run-dir", tmp_path / "whole").result
    folder, charge = tmp_path / "killed", Charges.charge

    def killed(self: Charges, version: int, tag: str, **told: object) -> None:
        if version < 4 or durable:
            charge(self, version, tag, **told)
        if version == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(Charges, "charge", killed)
        shoal("simulate", *words, "--actors", 0, "--run-dir", folder)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen = [row["version"] for row in RunDir(folder).rows()]
    assert len(Charges(folder).tags) == (4 if durable else 3) >= len(seen) >= 2
    again = ran("resume", folder, "--json").result
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert len(Charges(folder).tags) == 6


def test_local_noise_reaches_the_coordinator_and_nothing_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ran("simulate", "digits", *SMALL, "method=local_dp", "rounds=2", "noise_multiplier=9", "--actors", 0, "--run-dir", folder)
    rows = RunDir(folder).rows()
    assert "loss" not in rows[-1]["metrics"]
    assert Charges(folder).terms["multiplier"] == 9
