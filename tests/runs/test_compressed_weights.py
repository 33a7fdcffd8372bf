"""Whole runs whose weights are told as what changed: the same bits on every way there is, few bytes, and they learn."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from test_pieces import large
from whole import Outcome, run

from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.protocol.changes import Changes
from shoal.protocol.compress import CODECS, Coding, Packed
from shoal.protocol.errors import UserError


def digits(**settings: Any) -> Job:
    return find("digits").configured({"rounds": 4, "local_epochs": 2, "eval_every": 0, **settings})


def metric(outcome: Outcome, name: str) -> list[float]:
    return [metrics[name] for _, metrics in outcome.seen.steps if name in metrics]


@pytest.mark.parametrize("codec", CODECS)
def test_what_changed_makes_the_same_bits_as_the_whole(codec):
    """The plain loop hands weights on whole; over a socket whoever holds the last version gets what changed and adds it."""
    job = digits(compress_weights=codec)
    plain, over = run(job, 0), run(job, 2)
    assert over.finish.reason == "done"
    assert over.sha256 == plain.sha256 != run(digits(), 0).sha256
    whole, change = over.weights.layout.nbytes, int(metric(over, "change_bytes")[0])
    assert change == Packed(Coding(codec).codec(feedback=True), over.weights.layout).layout.nbytes
    changes, rest = divmod(sum(metric(over, "down_bytes")) - 2 * whole, change)  # an actor that joins late has missed some
    assert 3 <= changes <= 6
    assert (rest, metric(over, "down_bytes")[-1]) == (0, 2 * change)
    assert metric(plain, "down_bytes") == [0.0] * 4
    assert metric(plain, "untold") == metric(over, "untold")


@pytest.mark.parametrize("codec", ["int8", "randk"])
@pytest.mark.parametrize("way", ["ipc", "shm", "gateway"])
def test_the_weights_are_the_same_bits_on_every_way(tmp_path, codec, way):
    job = large(compress_weights=codec, compress="int4")
    address = "tcp://127.0.0.1:*" if way == "gateway" else f"ipc://{tmp_path}/hub"
    outcome = run(job, 2, address, share=way == "shm", gateway=way == "gateway")
    assert outcome.finish.reason == "done"
    assert outcome.sha256 == run(job, 0).sha256
    whole, change = metric(outcome, "weights_bytes")[0], metric(outcome, "change_bytes")[0]
    down, up = metric(outcome, "down_bytes"), metric(outcome, "up_bytes")
    if way == "shm":
        assert (sum(down), sum(up)) == (0, 0)
    else:
        assert sum(down[1:]) == 2 * 2 * change < 2 * 2 * 0.26 * whole
        assert sum(up) == 3 * 4 * metric(outcome, "sent_bytes")[0]


def test_a_thread_that_speaks_adds_no_changes(monkeypatch):
    names, follow = set(), Changes.follow

    def noted(*arguments):
        names.add(threading.current_thread().name)
        follow(*arguments)

    monkeypatch.setattr(Changes, "follow", noted)
    assert run(digits(compress_weights="int8"), 2).finish.reason == "done"
    assert names == {"worker", "learner"}


def test_a_stream_whose_actors_skip_versions_gets_what_changed_in_all_of_them():
    job = digits(compress_weights="int4", aggregator="fedbuff", buffer=1, rounds=60)
    outcome = run(job, 3)
    assert outcome.finish.reason == "done"
    assert sum(metric(outcome, "down_bytes")) < 0.5 * 60 * 3 * outcome.weights.layout.nbytes


@pytest.mark.parametrize("codec", ["float16", "topk"])
def test_reinforcement_learning_in_rounds_has_the_same_bits(codec):
    job = find("cartpole-ppo").configured({"total_timesteps": 3_000, "num_envs": 4, "compress_weights": codec})
    plain, over = run(job, 0), run(job, 2)
    assert over.finish.reason == "done"
    assert over.sha256 == plain.sha256
    assert metric(over, "first_ratio_error") == metric(plain, "first_ratio_error")


# randk sends a tenth of the entries, drawn at random, so its accuracy depends on the seed: seeds 0 to 12 give 0.77 to 0.87,
# mean 0.81, standard deviation 0.03. (Before the partition's rounding was mended they gave 0.78 to 0.86, mean 0.82: no loss,
# but other clients.) Its bound is the mean less two deviations.
@pytest.mark.parametrize(
    ("codec", "least"),
    [("float16", 0.91), ("bfloat16", 0.91), ("int8", 0.91), ("int4", 0.91), ("topk", 0.89), ("randk", 0.75)],
)
def test_digits_learn_from_weights_that_are_told_in_few_bytes(codec, least):
    accuracy = metric(run(digits(rounds=30, local_epochs=5, compress_weights=codec), 0), "accuracy")[-1]
    assert accuracy > least


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compress_weights": "int9"}, "did you mean int8"),
        ({"compress_weights": True}, "compress_weights"),
        ({"compress_weights": "topk", "compress_ratio": 2}, "above 0 to 1"),
    ],
)
@pytest.mark.parametrize("job", ["digits", "cartpole"])
def test_a_wrong_setting_is_told_with_what_is_allowed(job, settings, said):
    with pytest.raises(UserError, match=said):
        find(job).configured(settings)
