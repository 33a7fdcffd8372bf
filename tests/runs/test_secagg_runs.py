"""Whole runs by secure aggregation: the bits of FedAvg, with drop-outs too, and no round below the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn
from whole import run

from shoal import Federated
from shoal.actors.workers.local_sgd import LocalSGD
from shoal.coordinator.deciding.plans import Outcome, Seat, Seats
from shoal.coordinator.deciding.plans.phases import Phases
from shoal.envs import datasets
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

pytest.importorskip("cryptography", reason="the extra shoal[secagg] is not installed")


def job(method: str = "secagg", **settings: object) -> Job:
    own = {"clients": 20, "cohort": 6, "rounds": 3, "local_epochs": 1, "eval_every": 0, **settings}
    made = Federated(lambda: nn.Linear(64, 10), datasets.digits, method=method, **own)
    made.prepare()
    return made


@pytest.mark.parametrize("actors", [0, 2])
def test_masks_change_no_bit_of_fedavg(actors: int):
    its = run(job(), actors)
    assert its.finish.reason == "done"
    assert its.sha256 == run(job("fedavg"), 0).sha256
    assert [metrics["secagg_clients"] for _, metrics in its.seen.steps if "secagg_clients" in metrics] == [6.0] * 3


def test_a_client_that_fails_drops_out_and_the_others_sum_is_exact(monkeypatch: pytest.MonkeyPatch):
    trained, broken = LocalSGD._run, 3  # what `run` and a sum of deltas both take

    def fails(self, weights, client, *how):  # type: ignore[no-untyped-def]
        if client == broken:
            raise RuntimeError("no battery")
        return trained(self, weights, client, *how)

    monkeypatch.setattr(LocalSGD, "_run", fails)
    its = run(job(clients=6, rounds=2), 2)
    assert its.finish.reason == "done"
    assert [metrics["secagg_clients"] for _, metrics in its.seen.steps if "secagg_clients" in metrics] == [5.0] * 2
    assert its.sha256 == run(job("fedavg", clients=6, rounds=2), 0).sha256


def test_a_round_of_too_few_moves_nothing(monkeypatch: pytest.MonkeyPatch):
    trained = LocalSGD._run

    def fails(self, weights, client, *how):  # type: ignore[no-untyped-def]
        if client < 3:
            raise RuntimeError("no battery")
        return trained(self, weights, client, *how)

    monkeypatch.setattr(LocalSGD, "_run", fails)
    made = job(clients=6, rounds=2)
    its = run(made, 0)
    assert [metrics["secagg_aborted"] for _, metrics in its.seen.steps if "secagg_aborted" in metrics] == [1.0] * 2
    assert np.array_equal(its.weights.vector(), made.problem.first(0)[0].vector())


def test_a_phase_begins_with_those_whose_tasks_were_accepted_and_at_their_own_actors():
    plan = Phases(4, 4, ("one", "two"), 2)
    seats = Seats(4, lambda: [Seat(7, 2), Seat(9, 2)])
    tasks = plan.assign(seats, (), 0, 0.0)
    assert {task.where: sorted(one.clients[0] for one in tasks if one.where == task.where) for task in tasks} == {
        7: [0, 1],
        9: [2, 3],
    }
    heard = [Outcome(task, "aside" if task.clients == (2,) else "accepted", 0.0, {}) for task in tasks]
    assert not plan.assign(seats, heard[:3], 0, 0.0)  # one is still out
    assert not plan.enough(2, 1, 0, 0.0)
    later = plan.assign(seats, heard[3:], 0, 0.0)
    assert [(task.clients, task.words, task.where) for task in later] == [
        ((client,), {"phase": "two"}, where) for client, where in ((0, 7), (1, 7), (3, 9))
    ]
    assert len({task.index for task in [*tasks, *later]}) == 7
    assert plan.enough(6, 0, 0, 0.0)


def test_a_client_whose_actor_is_gone_is_asked_at_another_which_fails_it():
    plan = Phases(2, 2, ("one", "two"), 1)
    tasks = plan.assign(Seats(4, lambda: [Seat(7, 1), Seat(9, 1)]), (), 0, 0.0)
    heard = [Outcome(task, "accepted", 0.0, {}) for task in tasks]
    assert [task.where for task in plan.assign(Seats(1, lambda: [Seat(9, 1)]), heard, 0, 0.0)] == [9]
    done = [Outcome(Task(0, 3, (1,)), "accepted", 0.0, {})]
    assert [(task.clients, task.where) for task in plan.assign(Seats(1, lambda: [Seat(9, 1)]), done, 0, 0.0)] == [((0,), -1)]


def test_a_round_of_too_few_is_stepped_without_another_phase():
    plan = Phases(2, 2, ("one", "two"), 2)
    tasks = plan.assign(Seats(2, lambda: [Seat(7, 2)]), (), 0, 0.0)
    assert plan.enough(1, 0, 0, 0.0)
    assert not plan.assign(Seats(2, lambda: [Seat(7, 2)]), [Outcome(tasks[0], "accepted", 0.0, {})], 0, 0.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm_bound": 1.0}, "no client's own delta is seen"),
        ({"norm_factor": 3.0}, "norm_factor=3.0: this looks at each client's own delta"),
        ({"attack": "alie", "attackers": 2}, "attack=alie, attackers=2: this looks at each client's own delta"),
        ({"compress": "int8"}, "sums are seen"),
        ({"journal": "payload"}, "journal=payload: a masked vector"),
        ({"quorum": 3, "deadline": 9.0}, "a round of secagg has five phases"),
        ({"eval_cohort": 3, "eval_every": 1}, "eval_cohort=3: a round of secagg"),
        ({"threshold": 2}, "threshold=2: of 5 neighbours more than half are needed"),
        ({"cohort": 1}, "cohort=1: 1 clients"),
        ({"least": 7}, "at least 7 of them needs from 2 to 6"),
        ({"deterministic": False}, "masks cancel in exact sums only"),
        ({"on_failure": "stop"}, "drops out"),
        ({"method": "median", "threshold": 3}, "threshold is a setting of secagg"),
    ],
)
def test_what_cannot_be_summed_blindly_is_refused(settings: dict[str, object], said: str):
    with pytest.raises(UserError, match=said):
        job(**settings)
