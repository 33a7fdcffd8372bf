"""Differential privacy: clip, noise, fixed denominator and accountant against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shoal.actors.workers.private import Clipped
from shoal.aggregators.around.private import Briefed, Noise, Noised
from shoal.aggregators.fedavg import FedAvgServer
from shoal.coordinator.deciding.plans import Seats
from shoal.coordinator.deciding.plans.sampled import Sampled, fixed_size, poisson
from shoal.nets.updates import SGD
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.grid import GRID
from shoal.protocol.layout import Bundle
from shoal.protocol.private import CLIP_NORM, UNCLIPPED, clipped, gaussian, key_of, noised, norm_of
from shoal.protocol.work import Contribution, Task, Work

SECRET = bytes(range(32))


def bundle(*values: float) -> Bundle:
    return Bundle.pack({"w": np.array(values, np.float32)})


def contribution(version: int, client: int, *values: float) -> Contribution:
    return Contribution(Task(version, client, (client,)), version, 0, Work(bundle(*values), 1.0))


class Charged:
    """A book of charges in memory."""

    def __init__(self) -> None:
        self.tags: list[tuple[int, str]] = []

    def charge(self, version: int, tag: str) -> dict[str, float]:
        if (version, tag) not in self.tags:
            self.tags.append((version, tag))
        return {"epsilon": float(len(self.tags))}


def server(noise: Noise, width: int = 3, book: Charged | None = None, kind: type[Noised] = Noised, **how: Any) -> Noised:
    book = book or Charged()
    inner = FedAvgServer(bundle(*[0.0] * width), update=SGD(1.0))
    return kind(inner, noise, secret=SECRET, charge=book.charge, charged=lambda: len(book.tags), clients=100, **how)


def test_a_long_delta_is_scaled_to_the_clip_and_a_short_one_stays_as_it_is():
    longer, scaled = clipped(bundle(3, 4, 0), 1.0)
    assert scaled
    np.testing.assert_allclose(longer["w"], [0.6, 0.8, 0], rtol=1e-6)
    short = bundle(0.3, 0.4, 0)
    assert clipped(short, 1.0) == (short, False)


def test_a_clipped_delta_is_never_longer_than_the_clip_not_even_on_the_grid():
    rng = np.random.default_rng(0)
    for width in (1, 7, 1000, 100_000):
        for most in (1e-3, 0.1, 1.0, 50.0):
            x = rng.normal(size=width).astype(np.float32) * np.float32(most)
            whole = np.rint(clipped(Bundle.pack({"w": x}), most)[0]["w"].astype(np.float64) / GRID) * GRID
            assert np.linalg.norm(whole) <= most


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_delta_that_is_not_finite_is_refused_and_counts_nowhere(odd: float):
    its = server(Noise(0.0, 1.0, 2))
    with pytest.raises(ProtocolError, match="NaN, an infinity"):
        its.fold(contribution(0, 0, odd, 0, 0))
    assert its.members == 0


def test_a_round_by_hand_divides_the_clipped_sum_by_the_expected_cohort():
    its = server(Noise(0.0, 1.0, 4))
    its.fold(contribution(0, 1, 3, 4, 0))  # clipped to (0.6, 0.8, 0)
    its.fold(contribution(0, 2, 0, 0, 0.5))
    moved = its.step()
    np.testing.assert_allclose(its.weights()["w"], [0.15, 0.2, 0.125], rtol=1e-6)  # over 4, though only 2 came
    assert moved.metrics["clip_norm"] == 1.0
    assert moved.metrics["epsilon"] == 1.0


def test_a_round_without_clients_is_a_step_of_noise_alone():
    its = server(Noise(2.0, 0.5, 4), width=50_000)
    its.step()
    values = its.weights()["w"].astype(np.float64)
    assert values.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert abs(values.mean()) < 4 * 0.25 / math.sqrt(values.size)


def test_noise_is_gaussian_and_its_pieces_do_not_depend_on_how_many_are_drawn():
    from scipy import stats

    draws = np.concatenate([piece for _, piece in gaussian(b"k" * 32, 100_001, 3.0)]) * GRID
    assert stats.kstest(draws, stats.norm(scale=3.0).cdf).pvalue > 1e-3
    assert np.array_equal(draws, np.concatenate([piece for _, piece in gaussian(b"k" * 32, 100_001, 3.0)]) * GRID)
    other = np.concatenate([piece for _, piece in gaussian(b"l" * 32, 100_001, 3.0)]) * GRID
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02


def test_the_same_sum_of_a_version_has_the_same_noise_and_one_charge_and_another_sum_has_its_own():
    book, after = Charged(), []
    for value in (0.25, 0.25, 0.5):  # made, made again after a crash, and made of something else
        its = server(Noise(1.0, 1.0, 1), book=book)
        its.fold(contribution(0, 1, value, 0, 0))
        its.step()
        after.append(its.weights()["w"].copy())
    assert np.array_equal(after[0], after[1])
    assert len(book.tags) == 2
    noise = [after[0] - [0.25, 0, 0], after[2] - [0.5, 0, 0]]
    assert (np.abs(noise[0] - noise[1]) > 1e-3).all()  # or the difference of the versions would be that of the sums


def test_nothing_moves_when_the_charge_fails():
    def refuse(version: int, tag: str) -> dict[str, float]:
        raise UserError("the privacy budget is spent")

    its = Noised(FedAvgServer(bundle(0, 0, 0)), Noise(1.0, 1.0, 1), secret=SECRET, charge=refuse, charged=int)
    its.fold(contribution(0, 1, 1, 0, 0))
    with pytest.raises(UserError, match="spent"):
        its.step()
    assert not its.weights()["w"].any()
    assert its.steps == 0


def test_the_clip_adapts_by_the_noised_share_of_unclipped_clients():
    noise = Noise(0.0, 1.0, 4, quantile=0.5, rate=0.2)
    its = server(noise)
    for client, length in enumerate((0.1, 0.2, 0.3, 9.0)):
        its.fold(contribution(0, client, length, 0, 0))
    its.step()
    assert its.clip_norm == pytest.approx(math.exp(-0.2 * (3 / 4 - 0.5)))  # Andrew et al. 2021, section 2.2
    again = server(noise, book=Charged())
    again.charged = lambda: 1
    again.load(its.weights(), its.state())
    assert again.clip_norm == its.clip_norm


def test_noise_on_sum_and_count_together_cost_what_the_multiplier_says():
    noise = Noise(1.5, 2.0, 100, quantile=0.5, count_stddev=5.0)
    together = (noise.on_sum**-2 + (2 * noise.count_stddev) ** -2) ** -0.5  # theorem 1: the count's sensitivity is 1/2
    assert together == pytest.approx(1.5)
    assert noise.on_sum > 1.5


def test_sums_of_clipped_deltas_give_what_single_deltas_give():
    deltas = [(0.25, 0.5, 0.0), (0.125, 0.0, -0.5)]
    one, two = server(Noise(0.0, 1.0, 2)), server(Noise(0.0, 1.0, 2), each=False)
    sums = PartialSum(bundle(0, 0, 0).layout)
    for client, delta in enumerate(deltas):
        one.fold(contribution(0, client, *delta))
        sums.add(bundle(*delta), 1.0)
    two.fold(Contribution(Task(0, 0, (0, 1)), 0, 0, Work(sums.bundle(), 2.0), summed=True))
    one.step(), two.step()
    assert np.array_equal(one.weights()["w"], two.weights()["w"])
    with pytest.raises(ProtocolError, match="each client weighs 1"):
        two.fold(Contribution(Task(1, 0, (0, 1)), 1, 0, Work(sums.bundle(), 7.0), summed=True))


def test_a_clip_that_adapts_counts_the_clients_that_say_they_are_unclipped() -> None:
    class Fixed:
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return Work(bundle(float(client), 0, 0), 7.0, {"loss": (2.0, 1.0)})

    its = server(Noise(0.0, 1.5, 4, quantile=0.5, rate=0.2), kind=Briefed, each=False)
    told = its.brief(Task(0, 0, (1, 2)))
    assert told is not None
    assert told[CLIP_NORM].tolist() == [1.5]
    assert its.brief(Task(0, 9, (1,), "evaluate", counts=False)) is None
    task, worker, total = Task(0, 0, (1, 2, 3)), Clipped(Fixed(), 99.0), PartialSum(bundle(0, 0, 0).layout)
    works = [worker.run(its.weights(), client, task, told) for client in task.clients]
    assert [work.totals for work in works] == [{"loss": (2.0, 1.0), UNCLIPPED: (flag, 1.0)} for flag in (1.0, 0.0, 0.0)]
    assert [work.bundle["w"][0] for work in works if work.bundle] == pytest.approx([1.0, 1.5, 1.5])
    for work in works:
        assert work.bundle is not None
        total.add(work.bundle, work.weight)
    for totals in ({}, {UNCLIPPED: (1.0, 2.0)}, {UNCLIPPED: (4.0, 3.0)}, {UNCLIPPED: (0.5, 3.0)}, {UNCLIPPED: (-1.0, 3.0)}):
        with pytest.raises(ProtocolError, match="unclipped, in a sum of 3"):
            its.fold(Contribution(task, 0, 0, Work(total.bundle(), 3.0, totals), summed=True))
    assert its.members == its.unclipped == 0
    its.fold(Contribution(task, 0, 0, Work(total.bundle(), 3.0, {UNCLIPPED: (1.0, 3.0)}), summed=True))
    its.step()
    assert its.clip_norm == pytest.approx(1.5 * math.exp(-0.2 * ((1 - 3 / 2) / 4)))


def test_buffers_that_no_noise_covers_do_not_move():
    start = Bundle.pack({"w": np.zeros(2, np.float32), "running": np.ones(2, np.float32), "mask": np.array([True, False])})
    its = Noised(FedAvgServer(start, 2), Noise(1.0, 1.0, 1), secret=SECRET, charge=Charged().charge, charged=int, trainable=2)
    delta = Bundle.pack({"w": np.ones(2, np.float32), "running": np.ones(2, np.float32), "mask": np.array([False, True])})
    its.fold(Contribution(Task(0, 0, (0,)), 0, 0, Work(delta, 1.0)))
    its.step()
    assert its.weights()["w"].all()
    assert its.weights()["running"].tolist() == [1, 1]
    assert its.weights()["mask"].tolist() == [True, False]


def test_local_noise_has_its_deviation_and_repeats_for_the_same_delta():
    x, y = np.zeros(50_000, np.float32), np.zeros(50_000, np.float32)
    noised(x, b"k" * 32, 0.7)
    noised(y, b"k" * 32, 0.7)
    assert x.std() == pytest.approx(0.7, rel=0.02)
    assert np.array_equal(x, y)


def test_poisson_draws_each_client_with_its_rate_and_by_itself():
    select = poisson(200, 0.1, lambda version: key_of(SECRET, "cohort", version))
    cohorts = [set(select(version, 20, ())) for version in range(2000)]
    often = np.array([sum(client in cohort for cohort in cohorts) for client in range(200)]) / 2000
    assert abs(often - 0.1).max() < 5 * math.sqrt(0.09 / 2000)
    sizes = np.array([len(cohort) for cohort in cohorts])
    assert sizes.mean() == pytest.approx(20, abs=0.5)
    assert sizes.var() == pytest.approx(18, rel=0.15)  # n p (1 - p): the draws are independent
    assert select(7, 20, ()) == select(7, 20, ())
    assert poisson(200, 0.1, lambda version: key_of(b"x" * 32, "cohort", version))(7, 20, ()) != select(7, 20, ())
    assert len(set(fixed_size(200, lambda version: key_of(SECRET, "cohort", version))(3, 20, ()))) == 20


def test_a_round_that_draws_nobody_is_stepped():
    plan = Sampled(10, 1, select=lambda version, how_many, news: [] if version == 0 else [4])
    assert not plan.enough(0, 0, 0, 0.0)  # not begun
    assert plan.assign(Seats(3), (), 0, 0.0) == []
    assert plan.enough(0, 0, 0, 0.0)
    assert [task.clients for task in plan.assign(Seats(3), (), 1, 0.0)] == [(4,)]
    assert not plan.enough(0, 0, 1, 0.0)  # a round that lost all its clients is no empty draw
    assert plan.enough(1, 0, 1, 0.0)


def test_norms_are_summed_in_float64():
    x = np.full(1_000_003, 0.1, np.float32)
    assert norm_of(Bundle.pack({"w": x})) == pytest.approx(float(np.linalg.norm(x.astype(np.float64))), rel=1e-12)


# The accountant


def test_epsilon_is_dp_accountings_own():
    dp = pytest.importorskip("dp_accounting", reason="the extra shoal[privacy] is not installed")
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    from shoal.jobs.accounting import INTERVAL, Mechanism, _quiet

    near = dp.NeighboringRelation
    for multiplier, cohort, clients, versions in ((1.0, 10, 100, 30), (0.8, 50, 1000, 200), (2.0, 5, 5, 12)):
        event = dp.PoissonSampledDpEvent(cohort / clients, dp.GaussianDpEvent(multiplier))
        its = PLDAccountant(value_discretization_interval=INTERVAL).compose(event, versions).get_epsilon(1e-5)
        ours = Mechanism(multiplier, "poisson", cohort, clients, 1e-5, "pld")
        assert ours.epsilon(versions) == pytest.approx(its, rel=1e-9)
        with _quiet():
            its = RdpAccountant().compose(event, versions).get_epsilon(1e-5)
        assert Mechanism(multiplier, "poisson", cohort, clients, 1e-5, "rdp").epsilon(versions) == pytest.approx(its, rel=1e-9)
    fixed = dp.SampledWithoutReplacementDpEvent(1000, 50, dp.GaussianDpEvent(2.0))  # a replaced client moves a sum by 2 clips
    its = RdpAccountant(neighboring_relation=near.REPLACE_ONE).compose(fixed, 40).get_epsilon(1e-5)
    assert Mechanism(4.0, "fixed", 50, 1000, 1e-5, "rdp").epsilon(40) == pytest.approx(its, rel=1e-9)
    its = PLDAccountant(value_discretization_interval=INTERVAL).compose(dp.GaussianDpEvent(5.0), 9).get_epsilon(1e-5)
    assert Mechanism(10.0, "none", 1, 1, 1e-5, "pld").epsilon(9) == pytest.approx(its, rel=1e-3)


def test_the_least_noise_keeps_the_budget_and_hardly_less_breaks_it():
    pytest.importorskip("dp_accounting", reason="the extra shoal[privacy] is not installed")
    from shoal.jobs.accounting import Mechanism, least_noise

    def made(multiplier: float) -> Mechanism:
        return Mechanism(multiplier, "poisson", 100, 1000, 1e-4, "pld")

    least = least_noise(3.0, 50, made)
    assert made(least).epsilon(50) <= 3.0 < made(0.99 * least).epsilon(50)
    assert 50 <= made(least).most(3.0) < 52
    with pytest.raises(UserError, match="no noise_multiplier up to 1000"):
        least_noise(1e-6, 50, made)
