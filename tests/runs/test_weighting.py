"""A weight of the user's own: a function of the client, or a list with a number for each."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import linear, people, single
from case_names import without_addresses
from whole import run

from shoal.protocol.errors import UserError


@pytest.mark.parametrize(
    "weighting", [lambda client, examples: 3.0 - 2 * client, [3.0, 1.0], np.array([3, 1])], ids=without_addresses
)
def test_a_weight_of_the_users_own_counts_in_the_mean(weighting):
    # Targets 1 and 3: y = 0.36 and 1.08, so w = (3 * 0.36 + 1.08) / 4.
    assert run(single("fedavg", 1.0, 3.0, rounds=1, weighting=weighting), 0).weights.vector() == pytest.approx([0.54])


def test_weights_that_are_the_numbers_of_examples_are_the_default(tmp_path):
    own = linear("fedavg", weighting=lambda client, examples: len(examples))
    assert run(own, 2, f"ipc://{tmp_path}/hub").sha256 == run(linear("fedavg"), 0).sha256
    assert run(linear("fedavg", weighting=[len(people().examples(k)) for k in range(6)]), 0).sha256 == run(own, 0).sha256


@pytest.mark.parametrize(
    ("weighting", "fix"),
    [
        ([1.0, 2.0], "weighting: has 2 weights for clients=6"),
        ([1.0, 0.0, 1, 1, 1, 1], "weighting: the weight of client 1 is 0; expected a function"),
        (7, "weighting=.*7.*: expected a function"),
        ("sizes", "weighting=sizes: allowed is one of samples, users"),
        (lambda: 1.0, "weighting"),
    ],
    ids=without_addresses,
)
def test_weights_that_are_none_are_refused_when_the_job_is_read(weighting, fix):
    with pytest.raises(UserError, match=fix):
        linear("fedavg", weighting=weighting)


def test_a_function_that_gives_no_weight_fails_its_client_and_says_so():
    seen = run(linear("fedavg", weighting=lambda client, examples: 0.0 if client == 2 else 1.0), 0).seen
    assert any("weighting gave 0.0 for client 2" in report.text for report in seen.reports)
