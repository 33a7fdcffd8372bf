"""A run over sockets has the numbers of the plain loop, and the plain loop those of a few lines of torch."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from whole import run

import shoal
from shoal.envs import datasets
from shoal.jobs.catalog import find
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.jobs.methods.fedbuff import FedBuff
from shoal.nets.models import mlp
from shoal.protocol import draws
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

SMALL = {"rounds": 6, "local_epochs": 2, "eval_every": 3}


@pytest.fixture(scope="module")
def alone() -> str:
    return run(find("digits").configured(SMALL), actors=0).sha256


@pytest.mark.parametrize("actors", [1, 2, 4])
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_digits_over_sockets_equal_the_plain_loop_bit_for_bit(alone, tmp_path, actors, transport):
    address = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/hub"
    outcome = run(find("digits").configured(SMALL), actors, address)
    assert outcome.finish.reason == "done"
    assert outcome.sha256 == alone
    assert outcome.core.facts.ledger.counts.clients == 6 * 10


def test_clients_trained_together_give_the_same_bits_for_any_number_of_actors(tmp_path):
    job = find("digits").configured({**SMALL, "engine": "batched"})
    outcome = run(job, 3, f"ipc://{tmp_path}/hub")
    assert outcome.sha256 == run(job, 0).sha256


def wide() -> Federated:
    """Large enough (550 KB) that its arrays travel by shared memory."""
    return Federated(lambda: mlp((64, 2000, 10)), lambda settings: datasets.digits(), rounds=3, local_epochs=1, eval_every=0)


@pytest.mark.parametrize("transport", ["shm", "ipc", "tcp"])
def test_a_model_that_fills_shared_memory_gives_the_same_bits_on_every_transport(tmp_path, transport):
    address = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/hub"
    outcome = run(wide(), 3, address, share=transport == "shm")
    assert outcome.finish.reason == "done"
    assert outcome.sha256 == run(wide(), 0).sha256


def test_a_stream_over_shared_memory_folds_each_client_as_often_as_it_was_drawn(tmp_path):
    job = wide().configured({"aggregator": "fedbuff", "buffer": 5, "rounds": 8})
    outcome = run(job, 3, f"ipc://{tmp_path}/hub", share=True)
    assert outcome.finish.reason == "done"
    assert outcome.core.facts.version == 8
    assert 8 * 5 <= outcome.core.facts.ledger.counts.clients < 8 * 5 + 3 * 2


@pytest.mark.parametrize("aggregator", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_server_optimizers_give_the_same_bits_over_sockets(tmp_path, aggregator):
    job = find("digits").configured({**SMALL, "rounds": 3, "aggregator": aggregator})
    assert run(job, 2, f"ipc://{tmp_path}/hub").sha256 == run(job, 0).sha256


class Louder:
    """Clients that move by about 1; from version 1 on client 3 by a hundred."""

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        size = 100.0 if client == 3 and task.version else 1.0 + client / 16
        return Work(Bundle.pack({"w": np.full(4, size / 2)}, weights.layout))


@pytest.mark.parametrize("more", [{}, {"compress": "float16"}, {"deterministic": False}])
def test_a_client_who_moves_far_more_than_is_usual_is_left_out_whatever_the_order_of_arrival(tmp_path, more):
    own = {"clients": 12, "cohort": 12, "rounds": 3, "norm_factor": 5, "eval_every": 0, **more}
    job = Federated(worker=Louder, weights=lambda: {"w": np.zeros(4, np.float32)}, **own)
    assert not job.sums
    alone, outcome = run(job, 0), run(job, 2, f"ipc://{tmp_path}/hub")
    others = np.mean([1.0 + client / 16 for client in range(12) if client != 3]) / 2
    expected = np.mean([1.0 + client / 16 for client in range(12)]) / 2 + 2 * others
    for one in (alone, outcome):
        assert one.finish.reason == "done"
        np.testing.assert_allclose(one.weights["w"], expected, rtol=1e-3 if "compress" in more else 1e-6)
        refused = [report.text for report in one.seen.reports if report.kind == "refused"]
        assert all("norm 100 is above the bound of" in text and "times the median" in text for text in refused)
        assert len(refused) == 2 * 3  # attempts
    assert more == {"deterministic": False} or outcome.sha256 == alone.sha256


class ActNorm(torch.nn.Module):
    """Shifts by the mean of the first batch that it ever sees (Kingma and Dhariwal 2018, section 3.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
        self.shift = torch.nn.Parameter(torch.zeros(10), requires_grad=False)
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("widest", torch.tensor([3, 200], dtype=torch.uint8))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if self.training:
            if not self.initialized:
                self.shift.copy_(-y.detach().mean(0))
                self.initialized.fill_(True)
            self.batches.add_(1)
            self.widest.copy_(torch.tensor([len(x), 255], dtype=torch.uint8))
        return y + self.shift


@pytest.mark.parametrize(
    "settings",
    [{}, {"partial_sums": False}, {"compress": "float16"}, {"compress_weights": "float16"}, {"deterministic": False}],
    ids=str,
)
def test_booleans_and_integers_move_alike_on_every_way_to_the_server(tmp_path, settings):
    job = Federated(ActNorm, datasets.digits(), **{**SMALL, "rounds": 3, "batch_size": 4}, **settings)
    alone, outcome = run(job, 0), run(job, 2, f"ipc://{tmp_path}/hub")
    for one in (alone, outcome):
        assert one.weights["initialized"]
        assert one.weights["widest"][1] == 255
        assert 1 <= one.weights["widest"][0] <= 4
        assert one.weights["batches"] > 3
    assert "deterministic" in settings or outcome.sha256 == alone.sha256


class Frozen(torch.nn.Module):
    """A backbone that stays in evaluation mode, and a head in training mode, each of which counts its calls in that mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.5)).eval()
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.backbone(x)
        assert torch.equal(seen, self.backbone(x))  # no dropout, in anybody's hands
        assert not any(part.training for part in self.backbone.modules())
        return self.head(seen)


def test_a_part_in_evaluation_mode_stays_in_it_for_any_number_of_actors(tmp_path):
    settings = {**SMALL, "eval_every": 1, "eval_cohort": 3, "rounds": 3, "drop_last": True, "partition": "iid", "clients": 20}
    job = Federated(Frozen, datasets.digits(), **settings)
    runs = [
        shoal.run(job, actors=actors, folder=tmp_path / str(actors)) for actors in (0, 1, 2)
    ]  # each has generators of its own
    assert len({one.summary["weights_sha256"] for one in runs}) == 1
    assert (runs[0].weights["backbone.1.running_mean"] == 0).all()
    assert not (runs[0].weights["head.1.running_mean"] == 0).any()
    assert "failed" not in (tmp_path / "0" / "log.txt").read_text()
    assert {"eval/loss", "held_out_loss", "loss"} <= runs[0].metrics.keys()


def test_a_factory_that_gives_the_same_module_again_changes_no_number():
    backbone = torch.nn.Linear(64, 32)
    parts = lambda: torch.nn.Sequential(backbone, torch.nn.ReLU(), torch.nn.Linear(32, 10))  # noqa: E731
    whole = parts()
    once, again, other = (
        run(Federated(model, datasets.digits(), **{**SMALL, "eval_cohort": 2}), 0)
        for model in (deepcopy(whole), lambda: whole, lambda: whole)
    )
    for one in (again, other):
        assert one.sha256 == once.sha256
        assert [metrics.get("held_out_loss") for _, metrics in one.seen.steps] == [
            metrics.get("held_out_loss") for _, metrics in once.seen.steps
        ]
    mixed = [run(Federated(parts, datasets.digits(), **SMALL), 0) for _ in range(2)]
    assert mixed[0].sha256 == mixed[1].sha256


def test_a_stream_sets_a_flag_for_good(tmp_path):
    job = Federated(ActNorm, datasets.digits(), method="fedbuff", buffer=2, rounds=9, local_epochs=1)
    assert run(job, 2, f"ipc://{tmp_path}/hub").weights["initialized"]


class Visited:
    """Notes the numbers that its draws are keyed by."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        assert float(weights["w"][0]) == task.version  # every contribution moves the weights by 1
        self.seen.append(task.draws(client))
        return Work(Bundle.pack({"w": np.ones(1)}, weights.layout))


@pytest.mark.parametrize("method", ["fedbuff", "fedavg"])
def test_no_two_tasks_draw_alike_and_each_knows_the_version_that_it_works_on(method):
    worker, more = Visited(), {"buffer": 2} if method == "fedbuff" else {"cohort": 2}
    job = Federated(
        worker=lambda: worker, weights=lambda: {"w": np.zeros(1, np.float32)}, method=method, clients=3, rounds=7, **more
    )
    assert run(job, 0).core.facts.version == 7
    assert len(set(worker.seen)) == len(worker.seen) >= 14
    assert {numbers[1] for numbers in worker.seen} >= set(range(7))


def test_the_normalisation_of_the_paper_can_be_chosen():
    for normalise, expected in ((True, 1.0), (False, (1 + 3) ** -0.5)):
        weights = Bundle.pack({"w": np.zeros(1, np.float32)})
        method = FedBuff(buffer=1, normalise=normalise, weighting="users")
        job = Federated(worker=Visited, weights=lambda: {"w": np.zeros(1, np.float32)}, method=method)
        aggregator = job.aggregator("cpu")
        aggregator.fold(Contribution(Task(0, 0, (0,)), 0, 3, Work(Bundle.pack({"w": np.ones(1)}, weights.layout))))
        aggregator.step()
        np.testing.assert_allclose(aggregator.weights()["w"], expected, atol=1e-6)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(alone):
    assert run(find("digits").configured(SMALL), actors=0).sha256 == alone
    assert run(find("digits").configured(SMALL, seed=1), actors=0).sha256 != alone


def test_digits_learn_what_a_few_lines_of_torch_learn():
    """An independent FedAvg: its own training loop and its own averaging. Only the data and the draws are shared."""
    job = find("digits").configured({**SMALL, "rounds": 3})
    outcome = run(job, actors=0)
    weights = {name: p.detach().clone() for name, p in job.module().named_parameters()}
    for version in range(3):
        cohort = draws.draw(0, "cohort", version).sample(range(100), 10)
        weights = _average(job, weights, cohort, version)
    for name, expected in weights.items():
        # float32 sums in another order: a few hundred steps apart by rounding alone
        np.testing.assert_allclose(outcome.weights[name], expected.numpy(), atol=2e-6, rtol=0)


def _average(job: Job, weights: dict[str, torch.Tensor], cohort: list[int], version: int) -> dict[str, torch.Tensor]:
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in weights.items()}
    total = 0
    for client in cohort:
        examples = job.problem.population(job.method, job.seed).examples(client)
        model = job.module()
        model.load_state_dict(weights)
        _train(model, torch.tensor(examples.x), torch.tensor(examples.y), client, version)
        for name, p in model.named_parameters():
            sums[name] += len(examples) * p.detach().double()
        total += len(examples)
    return {name: (p / total).float() for name, p in sums.items()}


def _train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, client: int, version: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rng = np.random.Generator(np.random.Philox(draws.key(0, "shuffle", client, version)))
    for _ in range(2):
        order = torch.from_numpy(rng.permutation(len(y)))
        for start in range(0, len(y), 10):
            batch = order[start : start + 10]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


@pytest.mark.parametrize(("actors", "memory"), [(1, "none"), (2, "none"), (2, "gru")])
def test_synchronous_reinforcement_has_the_same_bits_where_clients_stay_with_their_actors(tmp_path, actors, memory):
    settings = {"total_timesteps": 6_000, "rollout_length": 16, "num_envs": 8, "memory": memory}
    job = find("cartpole-ppo").configured(settings)
    assert run(job, actors, f"ipc://{tmp_path}/hub").sha256 == run(job, 0).sha256
