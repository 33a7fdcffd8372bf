"""SCAFFOLD: its paper's formulas in ten lines of numpy, a round by hand, the same bits on any actors, and after any crash."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import CLASSES, CLIENTS, FEATURES, gradient, linear, people, rounds, single, start
from case_names import without_addresses
from torch import nn
from whole import run

import shoal
from shoal.jobs.federated import Federated
from shoal.protocol.errors import UserError


def reference(job, lr=0.2):
    """Karimireddy et al. 2020, algorithm 1, option II, line by line."""
    x = start(job)
    c, c_i = np.zeros_like(x), [np.zeros_like(x) for _ in range(CLIENTS)]
    for cohort in rounds(job):
        moves, changes = [], []
        for i, batches in cohort.items():
            y = x.copy()
            for batch in batches:
                y -= lr * (gradient(y, *batch) - c_i[i] + c)
            after = c_i[i] - c + (x - y) / (len(batches) * lr)
            moves.append(y - x)
            changes.append(after - c_i[i])
            c_i[i] = after
        x = x + np.mean(moves, axis=0)
        c = c + len(cohort) / CLIENTS * np.mean(changes, axis=0)
    return x


def test_scaffold_is_its_papers_algorithm():
    job = linear("scaffold")
    assert np.allclose(run(job, 0).weights.vector(), reference(job), rtol=1e-4, atol=1e-5)


def test_two_rounds_of_scaffold_are_those_worked_by_hand():
    # Targets 1 and 3. Round 1 without corrections: y = 0.36 and 1.08; c_1 = -1.8, c_2 = -5.4; x = 0.72, c = -3.6.
    # Round 2: y_1 = 0.956 and 1.1448, y_2 = 0.996 and 1.2168; x = 1.1808.
    assert run(single("scaffold", 1.0, 3.0, rounds=1), 0).weights.vector() == pytest.approx([0.72])
    assert run(single("scaffold", 1.0, 3.0), 0).weights.vector() == pytest.approx([1.1808])


@pytest.mark.parametrize("more", [{}, {"state_memory": 0}, {"compress_weights": "float16"}], ids=without_addresses)
def test_scaffold_has_the_same_bits_for_any_number_of_actors(tmp_path, more):
    job = linear("scaffold", **more)
    assert run(job, 3, f"ipc://{tmp_path}/hub").sha256 == run(job, 0).sha256


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"optimizer": "adam"}, "optimizer=adam: .*; optimizer=sgd"),
        ({"momentum": 0.9}, "momentum=0.9: .*; momentum=0.0"),
        ({"mu": 0.1}, "mu=0.1: .*; mu=0.0"),
        ({"weighting": "samples"}, "weighting=samples: allowed is one of users"),
        ({"compress": "topk"}, "compress=topk: .*; compress=none"),
        ({"compress": "topk", "compress_feedback": True, "deterministic": False}, "compress=topk: .*; compress=none"),
        ({"norm_bound": 3.0}, "norm_bound=3: .*; norm_bound=0"),
        ({"norm_factor": 3.0}, "norm_factor=3: .*; norm_factor=0"),
        ({"norm_quantile": 0.5}, "norm_quantile=0.5: .*; norm_quantile=0"),
        ({"worker": lambda: None}, "worker=.*: .*; leave worker= out"),
    ],
    ids=without_addresses,
)
def test_what_scaffold_cannot_work_with_is_refused_when_the_job_is_read(settings, fix):
    with pytest.raises(UserError, match=fix):
        linear("scaffold", **settings)


def test_a_schedule_that_stands_still_is_refused_before_the_run_has_a_folder():
    job = linear("scaffold", lr_schedule=lambda version: float(version != 2))
    with pytest.raises(UserError, match="gave 0 for version 2; SCAFFOLD divides"):
        job.try_out()


class Mixed(nn.Module):
    """A trained layer, batch norm with its counter, and a frozen layer that is larger than both."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(FEATURES, 40).requires_grad_(False)
        self.norm = nn.BatchNorm1d(40)
        self.head = nn.Linear(40, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.frozen(x)))


@pytest.mark.parametrize("method", ["scaffold", "feddyn", "mimelite", "fednova", "qffl", "fedbn", "ditto"])
def test_frozen_layers_stay_and_batch_norms_statistics_and_counters_move_by_the_mean(tmp_path, method):
    own = {"clients": CLIENTS, "cohort": CLIENTS, "rounds": 2, "local_epochs": 1, "batch_size": 50, "lr": 0.1, "eval_every": 0}
    job = Federated(Mixed, people(), method=method, seed=1, **own)
    outcome = run(job, 2, f"ipc://{tmp_path}/hub")
    assert outcome.sha256 == run(job, 0).sha256
    before, after = job.problem.first(1)[0], outcome.weights
    assert np.array_equal(after["frozen.weight"], before["frozen.weight"])
    assert int(after["norm.num_batches_tracked"]) == 2  # a step of each client a round
    assert np.any(after["norm.running_mean"] != before["norm.running_mean"]) == (method != "fedbn")
    assert np.any(after["head.weight"] != before["head.weight"])


def test_a_journal_with_payloads_replays_what_clients_sent_beside_their_deltas(tmp_path):
    job = linear("scaffold", rounds=6, journal="payload", snapshot_every=3600.0)
    whole = shoal.run(job, actors=0, folder=tmp_path / "whole", show=False).summary["weights_sha256"]

    def stop(row):
        return row["version"] == 3

    halted = shoal.run(job, actors=0, folder=tmp_path / "halted", show=False, stop_when=stop)
    for snapshot in (tmp_path / "halted" / "checkpoints").iterdir():  # only the journal is left
        snapshot.unlink()
    assert halted.resume(actors=0, show=False).summary["weights_sha256"] == whole
