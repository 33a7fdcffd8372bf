"""FedDyn, FedNova, MimeLite, q-FFL and adaptive FedProx: each against ten lines of numpy, and two rounds against numbers worked
by hand; each has the same bits on any number of actors."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import CLIENTS, data, gradient, linear, loss, rounds, single, start
from case_names import without_addresses
from whole import run

from shoal.protocol.errors import UserError

LR = 0.2


def shares(cohort):
    sizes = np.array([len(data(client)[1]) for client in cohort], float)
    return sizes / sizes.sum()


def feddyn(job, alpha=0.1):
    """Acar et al. 2021, algorithm 1."""
    theta = start(job)
    h, g = np.zeros_like(theta), [np.zeros_like(theta) for _ in range(CLIENTS)]
    for cohort in rounds(job):
        locals_ = []
        for k, batches in cohort.items():
            y = theta.copy()
            for batch in batches:
                y -= LR * (gradient(y, *batch) - g[k] + alpha * (y - theta))
            g[k] = g[k] - alpha * (y - theta)
            locals_.append(y)
        h = h - alpha / CLIENTS * sum(y - theta for y in locals_)
        theta = np.mean(locals_, axis=0) - h / alpha
    return theta


def fednova(job, rho=0.0, mu=0.0):
    """Wang et al. 2020, with the normalising vectors of section 4, written out."""
    x = start(job)
    for cohort in rounds(job):
        moves, norms = [], []
        for batches in cohort.values():
            y, v, K = x.copy(), 0.0, len(batches)
            for batch in batches:
                v = rho * v + gradient(y, *batch) + mu * (y - x)
                y = y - LR * v
            moves.append(y - x)
            norms.append(sum(abs(normalising(K, rho, mu))))
        p = shares(cohort)
        x = x + (p @ norms) * sum(p_i * move / a for p_i, move, a in zip(p, moves, norms, strict=True))
    return x


def normalising(K, rho, mu):
    """a_i of K steps: the coefficient of each gradient in the move, by steps whose gradients are unit vectors."""
    y, v = np.zeros(K), np.zeros(K)
    for unit in np.eye(K):
        v = rho * v + unit + LR * mu * y
        y = y - v
    return -y


def test_the_normalising_vectors_are_those_of_the_papers_closed_forms():
    K, alpha, rho = 7, LR * 0.7, 0.5
    np.testing.assert_allclose(normalising(K, 0, 0), np.ones(K))
    np.testing.assert_allclose(normalising(K, 0, 0.7), (1 - alpha) ** np.arange(K)[::-1])
    np.testing.assert_allclose(normalising(K, rho, 0), [(1 - rho ** (K - j)) / (1 - rho) for j in range(K)])
    assert min(normalising(K, 0, 1.5 / LR)) < 0  # a gradient may be taken back
    assert min(normalising(K, 0.9, 0.5 / LR)) < 0


def qffl(job, q=2.0):
    """Li et al. 2020, algorithm 2."""
    w = start(job)
    for cohort in rounds(job):
        above, below = 0.0, 0.0
        for p, (k, batches) in zip(shares(cohort), cohort.items(), strict=True):
            y, F, L = w.copy(), loss(w, *data(k)), 1 / LR
            for batch in batches:
                y -= LR * gradient(y, *batch)
            dw = L * (w - y)
            above = above + p * F**q * dw
            below += p * (q * F ** (q - 1) * (dw @ dw) + L * F**q)
        w = w - above / below
    return w


def mimelite(job, base="momentum", beta1=0.9, beta2=0.99, eps=1e-3):
    """Karimireddy et al. 2021, algorithm 1 without the correction, with U and V of table 2."""
    x = start(job)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, cohort in enumerate(rounds(job), 1):
        move, whole = 0.0, 0.0
        for p, (i, batches) in zip(shares(cohort), cohort.items(), strict=True):
            y = x.copy()
            for batch in batches:
                g = gradient(y, *batch)
                g = g if base == "rmsprop" else (1 - beta1) * g + beta1 * m
                y -= LR * (g if base == "momentum" else g / (np.sqrt(v) + eps))
            move, whole = move + p * (y - x), whole + p * gradient(x, *data(i))
        x = x + move
        down = (1 - beta1 ** (t - 1), 1 - beta1**t, 1 - beta2 ** (t - 1), 1 - beta2**t) if base == "adam" else (1, 1, 1, 1)
        m = ((1 - beta1) * whole + beta1 * m * down[0]) / down[1]
        v = ((1 - beta2) * whole**2 + beta2 * v * down[2]) / down[3]
    return x


def adaptive(job, mu=0.3):
    """FedProx (Li et al. 2020, algorithm 2) with the heuristic of section 5.3.2."""
    w, before, fell = start(job), np.inf, 0
    for cohort in rounds(job):
        p, moves = shares(cohort), []
        for batches in cohort.values():
            y = w.copy()
            for batch in batches:
                y -= LR * (gradient(y, *batch) + mu * (y - w))
            moves.append(y - w)
        now = p @ [loss(w, *data(k)) for k in cohort]
        w = w + p @ moves
        fell = fell + 1 if now < before else 0
        if now > before:
            mu += 0.1
        elif fell == 5:
            mu, fell = max(0, mu - 0.1), 0
        before = now
    return w


CASES = [
    ("feddyn", {"alpha_coef": 0.1}, feddyn, {}),
    ("fednova", {}, fednova, {}),
    ("fednova", {"momentum": 0.5}, fednova, {"rho": 0.5}),
    ("fednova", {"mu": 0.7}, fednova, {"mu": 0.7}),
    ("fednova", {"mu": 0.7, "momentum": 0.5}, fednova, {"mu": 0.7, "rho": 0.5}),
    ("fednova", {"mu": 8.0}, fednova, {"mu": 8.0}),  # lr mu = 1.6: every second gradient is taken back
    ("fednova", {"mu": 3.0, "momentum": 0.9}, fednova, {"mu": 3.0, "rho": 0.9}),
    ("qffl", {"q": 2.0}, qffl, {}),
    ("mimelite", {}, mimelite, {}),
    ("mimelite", {"base_optimizer": "adam", "lr": LR}, mimelite, {"base": "adam"}),
    ("fedprox", {"adaptive_mu": True, "mu": 0.3, "rounds": 12}, adaptive, {}),
]


@pytest.mark.parametrize(("method", "settings", "reference", "more"), CASES, ids=without_addresses)
def test_each_method_is_its_papers_algorithm(method, settings, reference, more):
    job = linear(method, **settings)
    found, expected = run(job, 0).weights.vector(), reference(job, **more)
    assert np.abs(expected - start(job)).max() > 0.1
    assert np.allclose(found, expected, rtol=2e-4, atol=2e-5), np.abs(found - expected).max()


@pytest.mark.parametrize(
    ("method", "settings", "first", "second"),
    [
        # Targets 1 and 3. Two steps take a client 0.36 of its way, so the mean delta is 0.36 (2 - w): 0.72, and 0.4608 at 0.72.
        ("fedavg", {}, 0.72, 0.72 + 0.4608),
        ("fedavg", {"server_lr": 0.5}, 0.36, 0.36 + 0.5 * 0.36 * 1.64),
        # A step is 0.1 (2 (t - y) - 0.5 (y - w)): y = 0.35 and 1.05, and half as far again from 0.7.
        ("fedprox", {"mu": 0.5}, 0.7, 0.7 + 0.35 * 1.3),
        # v = 0.72, then 0.9 * 0.72 + 0.4608.
        ("fedavgm", {}, 0.72, 0.72 + 1.1088),
        # v = 1e-6 + 0.72^2; 0.03 * 0.72 / (sqrt(v) + 1e-3).
        ("fedadagrad", {}, 0.0299584, None),
        # m = 0.1 * 0.72, v = 0.99e-6 + 0.01 * 0.72^2; 0.03 * m / (sqrt(v) + 1e-3).
        ("fedadam", {}, 0.0295863, None),
        # v = 1e-6 + 0.01 * 0.72^2, because v - delta^2 is negative.
        ("fedyogi", {}, 0.0295862, None),
    ],
    ids=without_addresses,
)
def test_rounds_of_the_mean_and_of_server_optimizers_are_those_worked_by_hand(method, settings, first, second):
    assert run(single(method, 1.0, 3.0, rounds=1, **settings), 0).weights.vector() == pytest.approx([first], abs=2e-7)
    if second is not None:
        assert run(single(method, 1.0, 3.0, **settings), 0).weights.vector() == pytest.approx([second])


def test_two_rounds_of_feddyn_are_those_worked_by_hand():
    # Targets 1 and 3, alpha 0.5. Round 1: y = 0.35 and 1.05; h = -0.35, theta = 0.7 + 0.7; g = -0.175 and -0.525.
    # Round 2: y = 1.229375 and 1.868125; h = -0.424375, theta = 1.54875 + 0.84875.
    assert run(single("feddyn", 1.0, 3.0, alpha_coef=0.5, rounds=1), 0).weights.vector() == pytest.approx([1.4])
    assert run(single("feddyn", 1.0, 3.0, alpha_coef=0.5), 0).weights.vector() == pytest.approx([2.3975])


def test_a_round_of_fednova_is_that_worked_by_hand():
    # Client 1 makes one step, y = 0.2; client 2, with two examples, makes two, y = 1.08. p = 1/3 and 2/3, tau_eff = 5/3.
    job = single("fednova", 1.0, 3.0, sizes=(1, 2), local_steps=0, local_epochs=1, batch_size=1, rounds=1)
    assert run(job, 0).weights.vector() == pytest.approx([5 / 3 * (0.2 / 3 + 2 / 3 * 1.08 / 2)])


def test_a_round_of_q_ffl_is_that_worked_by_hand():
    # F = 1 and 9, L = 10, L (y - w) = 3.6 and 10.8: h = 3.6^2 + 10 and 10.8^2 + 90, Delta = 3.6 and 97.2.
    assert run(single("qffl", 1.0, 3.0, q=1.0, rounds=1), 0).weights.vector() == pytest.approx([100.8 / 229.6])


def test_two_rounds_of_mimelite_are_those_worked_by_hand():
    # Round 1 with m = 0: y = 0.0396 and 0.1188; the mean gradient at 0 is -4, m = -0.4. Round 2: y = 0.18694368 and 0.26614368.
    assert run(single("mimelite", 1.0, 3.0, rounds=1), 0).weights.vector() == pytest.approx([0.0792])
    assert run(single("mimelite", 1.0, 3.0), 0).weights.vector() == pytest.approx([0.22654368])


@pytest.mark.parametrize(("method", "settings"), [case[:2] for case in CASES], ids=without_addresses)
def test_each_method_has_the_same_bits_for_any_number_of_actors(tmp_path, method, settings):
    job = linear(method, **settings)
    assert run(job, 3, f"ipc://{tmp_path}/hub").sha256 == run(job, 0).sha256


@pytest.mark.parametrize(
    ("method", "settings", "fix"),
    [
        ("feddyn", {"server_lr": 0.5}, "server_lr=0.5: allowed is from 1 to 1"),
        ("feddyn", {"weighting": "samples"}, "weighting=samples: allowed is one of users"),
        ("feddyn", {"compress": "int8"}, "compress=int8: .*; compress=none"),
        ("fednova", {"optimizer": "adam"}, "optimizer=adam: .*; optimizer=sgd"),
        ("qffl", {"momentum": 0.9}, "momentum=0.9: .*; momentum=0.0"),
        ("mimelite", {"optimizer": "adam"}, "optimizer=adam: .*; optimizer=sgd"),
        ("mimelite", {"beta2": 0.9}, "beta2=0.9: beta2 is a setting of base_optimizer=rmsprop or adam"),
        ("fedprox", {"adaptive_mu": True, "worker": lambda: None}, "worker=.*adaptive_mu=true"),
        ("fedprox", {"adaptive_mu": True, "compress": "int8"}, "compress=int8: adaptive_mu=true"),
    ],
    ids=without_addresses,
)
def test_what_a_method_cannot_work_with_is_refused_when_the_job_is_read(method, settings, fix):
    with pytest.raises(UserError, match=fix):
        linear(method, **settings)
