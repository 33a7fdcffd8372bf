"""Large arrays over real sockets: through connections that are cut in the middle, into memory and into a file."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from whole import Outcome, run

from shoal.envs import datasets
from shoal.jobs.federated import Federated
from shoal.nets.models import mlp
from shoal.protocol.fetching import LEAST

LONGEST = 3 * LEAST  # bytes that a connection carries, at most, before it is cut


class Road:
    """Between actors and a coordinator on this machine: every connection ends after some bytes, in the middle of whatever is on
    it, as often as `cuts` says; after that they last."""

    def __init__(self, cuts: int, seed: int) -> None:
        self.cuts, self.rng, self.made = cuts, Random(seed), 0
        self.carried = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._port = 0

    def to(self, address: str) -> str:
        if not self._port:
            self._port = int(address.rpartition(":")[2])
            self._start(self._accept)
        return f"tcp://127.0.0.1:{self._server.getsockname()[1]}"

    def _start(self, target: object, *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))  # type: ignore[arg-type]
        self._threads[-1].start()

    def _accept(self) -> None:
        while not self._over.is_set():
            if select.select([self._server], [], [], 0.05)[0]:
                near, _ = self._server.accept()
                self._start(self._carry, near, self.rng.randrange(20_000, LONGEST) if self.made < self.cuts else 1 << 60)
                self.made += 1

    def _carry(self, near: socket.socket, most: int) -> None:
        with near, socket.create_connection(("127.0.0.1", self._port)) as far:
            over = {near: far, far: near}
            while most > 0 and not self._over.is_set():
                for ready in select.select(list(over), [], [], 0.05)[0]:
                    try:
                        said = ready.recv(min(65_536, most))
                        over[ready].sendall(said)
                    except OSError:
                        return
                    if not said:
                        return
                    most -= len(said)
                    self.carried += len(said)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)
        self._server.close()


@pytest.fixture
def road(request: pytest.FixtureRequest) -> Iterator[Road]:
    made = Road(*request.param)
    yield made
    made.close()


def large(**settings: object) -> Federated:
    """1.3 MB of weights; 2.6 MB of a sum."""
    job = Federated(
        lambda: mlp((64, 4200, 10)), lambda settings: datasets.digits(), rounds=3, local_epochs=1, eval_every=0, cohort=4
    )
    return job.configured(settings)


@pytest.fixture(scope="module")
def alone() -> str:
    return run(large(), 0).sha256


def again(outcome: Outcome) -> None:
    assert outcome.finish.reason == "done"
    assert outcome.core.facts.ledger.counts.clients == 12


@pytest.mark.parametrize("road", [(12, seed) for seed in range(3)], indirect=True)
def test_connections_that_are_cut_again_and_again_change_no_bit(road: Road, alone: str) -> None:
    outcome = run(large(), 2, through=road.to)
    again(outcome)
    assert road.made > 12
    assert outcome.sha256 == alone


def test_contributions_too_large_for_memory_wait_in_a_file_and_change_no_bit(alone: str) -> None:
    outcome = run(large(), 2, room=LEAST)
    again(outcome)
    assert outcome.sha256 == alone


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam"])
def test_each_client_by_itself_through_a_room_for_one(tmp_path: Path, aggregator: str) -> None:
    job = large(partial_sums=False, aggregator=aggregator)
    outcome = run(job, 3, f"ipc://{tmp_path}/hub", room=1_400_000)
    again(outcome)
    assert outcome.sha256 == run(job, 0).sha256


def test_a_stream_of_large_contributions_moves_on_with_room_for_one(tmp_path: Path) -> None:
    job = large(aggregator="fedbuff", buffer=2, rounds=10)
    outcome = run(job, 3, f"ipc://{tmp_path}/hub", room=1_400_000)
    assert outcome.finish.reason == "done"
    assert outcome.core.facts.version == 10
    assert np.isfinite(outcome.weights.vector()).all()


# What changed in weights


def told(outcome: Outcome, name: str) -> list[float]:
    return [metrics[name] for _, metrics in outcome.seen.steps if name in metrics]


@pytest.mark.parametrize("road", [(12, seed) for seed in range(2)], indirect=True)
def test_connections_that_are_cut_change_no_bit_of_what_changed(road: Road) -> None:
    job = large(compress_weights="float16", rounds=4)
    outcome = run(job, 2, through=road.to)
    assert outcome.finish.reason == "done"
    assert road.made > 12
    assert outcome.sha256 == run(job, 0).sha256
    assert told(outcome, "change_bytes")[0] > 2 * LEAST  # which is fetched in pieces


@pytest.mark.parametrize("road", [(0, 0)], indirect=True)
def test_the_bytes_that_are_told_are_those_that_a_wire_carries(road: Road) -> None:
    outcome = run(large(compress_weights="int8", rounds=5), 2, through=road.to)
    counted = sum(told(outcome, "down_bytes")) + sum(told(outcome, "up_bytes"))
    assert counted < road.carried < 1.02 * counted + 50_000
