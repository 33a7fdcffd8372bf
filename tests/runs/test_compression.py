"""Whole runs whose contributions are compressed: the same bits over sockets as in the plain loop, and they learn."""

from __future__ import annotations

from typing import Any

import pytest
from whole import Outcome, run

from shoal.jobs.catalog import find
from shoal.jobs.federated import Federated
from shoal.jobs.wraps import Compress
from shoal.protocol.compress import CODECS, Packed
from shoal.protocol.errors import UserError


def digits(actors: int = 0, address: str = "tcp://127.0.0.1:*", share: bool = False, **settings: Any) -> Outcome:
    return run(
        find("digits").configured({"rounds": 4, "local_epochs": 2, "eval_every": 0, **settings}), actors, address, share=share
    )


def last(outcome: Outcome, name: str) -> float:
    return [metrics[name] for _, metrics in outcome.seen.steps if name in metrics][-1]


@pytest.fixture(scope="module")
def alone() -> str:
    return digits(compress="int8").sha256


@pytest.mark.parametrize("actors", [1, 3])
def test_stochastic_rounding_gives_the_same_bits_over_sockets(alone, tmp_path, actors):
    outcome = digits(actors, f"ipc://{tmp_path}/hub", compress="int8")
    assert outcome.finish.reason == "done"
    assert outcome.sha256 == alone
    assert alone != digits().sha256


def test_random_entries_give_the_same_bits_over_sockets():
    assert digits(3, compress="randk").sha256 == digits(0, compress="randk").sha256


def test_a_compressed_contribution_that_fills_shared_memory_gives_the_same_bits(tmp_path):
    from shoal.envs import datasets
    from shoal.nets.models import mlp

    wide = Federated(lambda: mlp((64, 2000, 10)), datasets.digits, rounds=2, local_epochs=1, eval_every=0, compress="int8")
    assert run(wide, 2, f"ipc://{tmp_path}/hub", share=True).sha256 == run(wide, 0).sha256


def test_a_stream_takes_compressed_contributions(tmp_path):
    outcome = digits(2, f"ipc://{tmp_path}/hub", compress="bfloat16", aggregator="fedbuff", buffer=5)
    assert outcome.finish.reason == "done"
    assert outcome.core.facts.version == 4


@pytest.mark.parametrize("name", CODECS)
def test_the_bytes_that_were_sent_are_told(name):
    job = find("digits").configured({"compress": name, "rounds": 1, "eval_every": 0})
    outcome, layout = run(job, 0), job.aggregator("cpu").weights().layout
    [codec] = [wrap.codec() for wrap in job.around if isinstance(wrap, Compress)]
    assert codec is not None
    assert last(outcome, "sent_bytes") == Packed(codec, layout).layout.nbytes < last(outcome, "dense_bytes") == layout.nbytes


@pytest.mark.parametrize(
    ("settings", "accuracy"),
    [
        ({"compress": "int8"}, 0.90),
        ({"compress": "int4"}, 0.90),
        ({"compress": "randk"}, 0.88),
        ({"compress": "topk", "compress_feedback": True, "deterministic": False}, 0.85),
    ],
)
def test_digits_learn_from_compressed_deltas(settings, accuracy):
    outcome = digits(**{"rounds": 30, "local_epochs": 5, **settings})
    assert last(outcome, "accuracy") > accuracy


def test_the_bound_on_a_norm_holds_for_what_is_unpacked():
    """float16 holds no float32 entry, so that a look at what was sent sees a norm of 0."""
    outcome = digits(compress="float16", norm_bound=1e-3, rounds=1, on_failure="stop")
    assert outcome.finish.reason != "done"
    assert any("above the bound of 0.001" in report.text for report in outcome.seen.reports)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compress": "int9"}, "did you mean int8"),
        ({"compress_ratio": 0}, "above 0 to 1"),
        ({"compress_block": 0}, "from 1"),
        ({"compress_feedback": True}, "compress=topk, say"),
        ({"compress": "topk", "compress_feedback": True}, "deterministic=false"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_allowed(settings, said):
    with pytest.raises(UserError, match=said):
        find("digits").configured(settings)
