"""Personalisation: each method against ten lines of torch, Ditto by hand, the same bits on any actors, and how clients fare."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from by_hand import CLASSES, CLIENTS, COHORT, FEATURES, SEED, linear, people, single
from case_names import without_addresses
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from whole import run

import shoal
from shoal.coordinator.deciding.plans.selection import uniform
from shoal.coordinator.tally import spread
from shoal.envs.population import Population
from shoal.jobs.federated import Federated
from shoal.protocol import draws
from shoal.protocol.errors import UserError
from shoal.runs.metrics import own as metrics_of_a_users_own
from shoal.runs.plot import figure, groups, read
from shoal.runs.rundir import RunDir
from shoal.runs.summary import closing

LR, SIZE, LAST = 0.2, 4, 4  # LAST: the version of the last evaluation


def network():
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))


def job(method, **settings):
    own = {"clients": CLIENTS, "cohort": COHORT, "rounds": 5, "local_epochs": 2, "batch_size": SIZE, "lr": LR, "eval_every": 2}
    own |= {"drop_last": True, "own_held_out": 0.3}
    return Federated(network, people(), method=method, seed=SEED, **{**own, **settings})


def parts(client):
    """A client's examples to train on, and those that only its evaluations use."""
    examples = people().examples(client)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    order = np.random.Generator(np.random.Philox(draws.key(SEED, "own_held_out", client))).permutation(len(y))
    out = max(1, round(0.3 * len(y)))
    return (x[np.sort(order[out:])], y[np.sort(order[out:])]), (x[np.sort(order[:out])], y[np.sort(order[:out])])


def train(net, client, version, epochs=2, still=(), anchor=None, lam=0.0):
    """Local SGD, with the parameters named in `still` held, and lam / 2 ||w - anchor||^2 in the loss."""
    (x, y), _ = parts(client)
    net.train()
    shuffle = np.random.Generator(np.random.Philox(draws.key(SEED, "shuffle", client, version)))
    for _ in range(epochs):
        order = shuffle.permutation(len(y))
        for first in range(0, len(y) - len(y) % SIZE if len(y) > SIZE else len(y), SIZE):
            batch = order[first : first + SIZE]
            loss = cross_entropy(net(x[batch]), y[batch])
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for (name, w), g in zip(net.named_parameters(), grads, strict=True):
                    if name not in still:
                        w.sub_(LR * (g + (lam * (w - anchor[name]) if lam else 0)))
    return net


def judged(net, client):
    _, (x, y) = parts(client)
    net.eval()
    with torch.no_grad():
        return float(cross_entropy(net(x), y)), len(y)


def reference(task, method):
    """The shared weights after five rounds, and the clients' mean loss with what is theirs, at version LAST."""
    net = task.problem.module(SEED)
    names = dict(net.named_parameters()) | dict(net.named_buffers())
    keeps = {"fedper": "3.", "fedrep": "3.", "fedbn": "1."}.get(method, "nothing")
    keeps = {name for name in names if name.startswith(keeps) and names[name].is_floating_point()}
    rows, found = {}, 0.0
    for version in range(5):
        if version == LAST:
            scores = []
            for k in range(CLIENTS):
                mine = deepcopy(net)
                mine.load_state_dict({**net.state_dict(), **rows.get(k, {})})
                if method == "finetune":
                    train(mine, k, version, epochs=1)
                scores.append(judged(mine, k))
            found = sum(loss * n for loss, n in scores) / sum(n for _, n in scores)
        locals_, sizes = [], []
        for k in sorted(uniform(CLIENTS, SEED)(version, COHORT, ())):
            mine = deepcopy(net)
            if method != "ditto":
                mine.load_state_dict({**net.state_dict(), **rows.get(k, {})})
            if method == "fedrep":
                train(mine, k, version, epochs=3, still={name for name in names if name not in keeps})
            train(mine, k, version, still=keeps if method == "fedrep" else ())
            rows[k] = {name: value.clone() for name, value in mine.state_dict().items() if name in keeps}
            if method == "ditto":
                own = deepcopy(net)
                own.load_state_dict({**net.state_dict(), **rows.get(("own", k), {})})
                train(own, k, version, anchor=dict(net.named_parameters()), lam=0.5)
                rows[k] = rows["own", k] = {name: v for name, v in own.state_dict().items() if v.is_floating_point()}
            locals_.append(mine.state_dict())
            sizes.append(len(parts(k)[0][1]))
        p = torch.tensor(sizes) / sum(sizes)
        mean = {n: sum(p_k * mine[n] for p_k, mine in zip(p, locals_, strict=True)) for n in names if n not in keeps}
        net.load_state_dict({**net.state_dict(), **{n: v.round() if n.endswith("tracked") else v for n, v in mean.items()}})
        if method == "finetune":
            rows = {}
    return net.state_dict(), found


CASES = [
    ("fedper", {"personal": "3"}),
    ("fedrep", {"personal": "3", "head_epochs": 3}),
    ("fedbn", {}),
    ("ditto", {"lam": 0.5}),
    ("finetune", {}),
]


@pytest.mark.parametrize(("method", "settings"), CASES, ids=without_addresses)
def test_each_method_is_its_papers_algorithm(method, settings):
    task = job(method, **settings)
    outcome = run(task, 0)
    weights, score = reference(task, method)
    for name, value in weights.items():
        assert np.allclose(outcome.weights[name], value.numpy(), rtol=2e-4, atol=2e-5), name
    assert outcome.seen.last.metrics["eval/loss"] == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize(("method", "settings"), CASES, ids=without_addresses)
def test_each_method_has_the_same_bits_and_scores_for_any_number_of_actors(tmp_path, method, settings):
    alone, apart = run(job(method, **settings), 0), run(job(method, **settings), 3, f"ipc://{tmp_path}/hub")
    assert apart.sha256 == alone.sha256
    assert apart.seen.last.metrics["eval/loss"] == pytest.approx(alone.seen.last.metrics["eval/loss"], rel=1e-12)


def test_weights_that_lack_the_clients_layers_are_not_judged_by_themselves():
    assert job("fedper", personal="3").central() is None
    assert "accuracy" not in run(job("fedper", personal="3"), 0).seen.last.metrics


def test_two_rounds_of_ditto_are_those_worked_by_hand():
    # Targets 1 and 3, lam 0.5. Round 1: y = 0.36 and 1.08, w = 0.72; v = 0.35 and 1.05. Judged in round 2: of v
    # (0.65^2 + 1.95^2) / 2, of w (0.28^2 + 2.28^2) / 2. The global weights are FedAvg's.
    own = {"sizes": (2, 2), "own_held_out": 0.5, "eval_every": 1}
    outcome = run(single("ditto", 1.0, 3.0, lam=0.5, **own), 0)
    assert outcome.seen.last.metrics["eval/loss"] == pytest.approx(2.1125)
    assert outcome.seen.last.metrics["eval/global_loss"] == pytest.approx(2.6384)
    assert outcome.weights.vector() == pytest.approx(run(single("fedavg", 1.0, 3.0), 0).weights.vector())


def by_hand(model, method, **settings):
    """Two clients with targets 1 and 3, x = 1, one step with a learning rate of 0.1 in each of two rounds."""
    clients = [(np.ones((3, 1), np.float32), np.full((3, 1), target, np.float32)) for target in (1.0, 3.0)]
    own = {"clients": 2, "cohort": 2, "rounds": 2, "local_steps": 1, "lr": 0.1, "own_held_out": 0.3, **settings}
    return run(Federated(model, clients, mse_loss, method=method, **own), 0).weights


def line():
    made = nn.Linear(1, 1)  # w + b, of which b is personal
    for each in made.parameters():
        nn.init.zeros_(each)
    return made


def normed():
    made = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))  # of equal inputs, batch norm gives its shift s alone: w s + c
    nn.init.ones_(made[1].weight)
    nn.init.zeros_(made[1].bias)
    return made


def test_two_rounds_of_each_method_with_personal_layers_are_those_worked_by_hand():
    # Round 1: w = b = 0.2 and 0.6, so w = 0.4. Round 2: w + b = 0.6 and 1, so w = 0.4 + 0.2 * 0.4 and 0.4 + 0.2 * 2.
    found = by_hand(line, "fedper", personal="bias")
    assert (found["weight"].item(), found["bias"].item()) == (pytest.approx(0.64), 0.0)
    # Round 1: b = 0.2 and 0.6 first; then w = 0.2 * 0.8 and 0.2 * 2.4, so w = 0.32. Round 2: b moves by 0.2 (t - 0.32 - b), to
    # 0.296 and 1.016, and w by 0.2 (t - 0.32 - b), to 0.3968 and 0.6528.
    found = by_hand(line, "fedrep", personal="bias", head_epochs=1)
    assert (found["weight"].item(), found["bias"].item()) == (pytest.approx((0.3968 + 0.6528) / 2), 0.0)
    # Round 1: c = s = 0.2 and 0.6, w = 1; so c = 0.4. Round 2: w s + c = 0.6 and 1; c = 0.48 and 0.8, w = 1.016 and 1.24.
    found = by_hand(normed, "fedbn")
    assert (found["1.weight"].item(), found["1.bias"].item()) == (pytest.approx(1.128, abs=1e-5), pytest.approx(0.64, abs=1e-5))
    assert (found["0.bias"].item(), found["0.running_mean"].item()) == (0.0, 0.0)


def test_fine_tuning_leaves_the_weights_as_fedavg_makes_them():
    runs = [run(job("finetune", finetune_epochs=epochs), 0) for epochs in (0, 3)]
    assert runs[0].sha256 == runs[1].sha256
    plain, tuned = (one.seen.last.metrics for one in runs)
    assert plain["eval/loss"] == plain["eval/global_loss"] == tuned["eval/global_loss"] != tuned["eval/loss"]


@pytest.mark.parametrize(
    ("method", "settings", "fix"),
    [
        ("fedper", {}, "personal=: must name some layers, not none; the model has 0, 1, 3; personal=3, say"),
        ("fedper", {"personal": "head"}, "personal=head: no layer is called head; the model has 0, 1, 3"),
        ("fedrep", {"personal": "0,1,3"}, "personal=0,1,3: must name some layers, not all"),
    ],
    ids=without_addresses,
)
def test_layers_that_cannot_be_personal_are_told_before_the_run_has_a_folder(method, settings, fix):
    with pytest.raises(UserError, match=fix):
        job(method, **settings).check_parts()


def test_a_model_without_batch_norm_is_no_model_for_fedbn():
    with pytest.raises(UserError, match="method=fedbn: the model has no batch norm layer"):
        Federated(lambda: nn.Linear(FEATURES, CLASSES), people(), method="fedbn", clients=CLIENTS, cohort=2).check_parts()


@pytest.mark.parametrize(
    "settings", [{"compress": "int8"}, {"norm_bound": 3.0}, {"worker": lambda: None}], ids=without_addresses
)
def test_what_a_personal_method_cannot_work_with_is_refused(settings):
    [(name, _)] = settings.items()
    with pytest.raises(UserError, match=f"{name}=.*method=fedper"):
        job("fedper", personal="3", **settings)


def test_a_client_with_one_example_trains_on_it_and_is_not_judged():
    outcome = run(single("finetune", 1.0, 3.0, sizes=(1, 4), eval_every=1), 0)
    w = 2.5 * (1 - 0.8**2)  # after a round: client 2 trains on three of its four examples, so the mean target is 2.5
    assert outcome.seen.last.metrics["eval/global_loss"] == pytest.approx((w - 3.0) ** 2)


def test_how_clients_fare_is_told_by_deciles_and_by_the_worst_tenth():
    values = [float(value) for value in np.random.default_rng(1).normal(size=23)]
    for name, worst in {"accuracy": sorted(values)[:3], "global_loss": sorted(values)[-3:]}.items():
        found = spread(name, values)
        assert found.pop("worst_tenth") == pytest.approx(np.mean(worst))
        assert [*found] == [f"p{decile}0" for decile in range(1, 10)]
        assert [*found.values()] == pytest.approx(np.quantile(values, np.arange(1, 10) / 10))


def test_the_distribution_over_clients_is_in_the_rows_in_the_picture_and_in_the_closing_words(tmp_path):
    clients = Population(12, lambda client: (torch.full((2, 1), float(client)), torch.ones(2, 1)))
    own = {"clients": 12, "cohort": 2, "rounds": 2, "eval_every": 1, "method": "finetune", "finetune_epochs": 0, "lr": 1e-4}
    task = Federated(lambda: nn.Linear(1, 1), clients, mse_loss, seed=SEED, **own)
    done = shoal.run(task, actors=0, folder=tmp_path / "run", show=False)
    metrics = done.history[-1]["metrics"]
    assert metrics["eval/loss/p10"] <= metrics["eval/loss/p50"] <= metrics["eval/loss/p90"] <= metrics["eval/loss/worst_tenth"]
    assert metrics_of_a_users_own(metrics) == []
    words = closing(done.summary).splitlines()[1]
    assert words.startswith("On clients: loss ")
    assert f"{metrics['eval/loss/worst_tenth']:.4g} for the worst tenth" in words
    texts = [text.get_text() for text in figure([read(RunDir.open(tmp_path / "run"))]).legends[0].get_texts()]
    assert "clients, first to ninth decile" in texts


def test_a_run_is_evaluated_with_each_clients_own_layers(tmp_path):
    task = job("fedper", personal="3", rounds=12, eval_every=1, cohort=CLIENTS, state_memory=0)
    done = shoal.run(task, actors=0, folder=tmp_path / "run", show=False)
    found, last = shoal.evaluate(done), done.history[-1]["metrics"]["eval/loss"]
    assert found["loss"] == pytest.approx(last, rel=0.2)  # a round later
    (tmp_path / "run" / "clients").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="states of clients is not there"):
        shoal.evaluate(done)


def test_runs_of_several_methods_are_labelled_by_what_is_not_their_methods_default(tmp_path):
    runs = {"a": ("fedavg", {}), "b": ("fedprox", {"mu": 0.5}), "c": ("scaffold", {}), "d": ("scaffold", {"state_memory": 0})}
    for name, (method, settings) in runs.items():
        shoal.run(linear(method, rounds=1, **settings), actors=0, folder=tmp_path / name, show=False)
    labels = [label for label, _ in groups([read(RunDir.open(tmp_path / name)) for name in runs])]
    assert [label.partition(" ")[2] for label in labels] == [
        "method=fedavg",
        "method=fedprox, mu=0.5",
        "method=scaffold, state_memory=64",
        "method=scaffold, state_memory=0",
    ]
