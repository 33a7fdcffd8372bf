"""Runs in virtual time: the same order of updates as in wall-clock time, and as a simulation of a few lines."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole

import shoal
from shoal import Federated
from shoal.actors.workers.paced import Paced
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Effect, Event
from shoal.coordinator.deciding.facts import Facts
from shoal.envs import datasets
from shoal.envs.devices import Device
from shoal.jobs.job import Job
from shoal.nets.models import mlp
from shoal.protocol.draws import draw
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

CLIENTS = 9
SPEEDS = [1.0, 1.7, 2.3, 3.1, 4.3, 5.9, 7.1, 8.3, 9.7]  # seconds of a task; no two sums of a few are equal
FREE: Mapping[str, Any] = {"clients": CLIENTS, "eval_every": 0}


def goals() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(CLIENTS, 4)).astype(np.float32)


class Pulling:
    """Clients that pull the weights half-way to a goal of their own: a delta depends on the weights that it was made from."""

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        return Work(Bundle.pack({"w": (goals()[client] - weights["w"]) / 2}), 1.0 + client)


def device(client: int) -> Device:
    return Device(seconds_per_example=SPEEDS[client] / (1.0 + client))  # times its examples, the weight of its work


def job(**settings: Any) -> Job:
    start = {"w": np.zeros(4, np.float32)}
    return Federated(worker=Pulling, weights=lambda: start, devices=device, local_epochs=1, **{**FREE, **settings})


def virtual(tmp_path: Path, **settings: Any) -> Any:
    return shoal.run(job(clock="virtual", **settings), folder=tmp_path / "virtual", show=False)


# FedBuff against a simulation of a few lines


def simulated(buffer: int, steps: int, at_once: int, exponent: float = 0.5) -> tuple[np.ndarray, list[float], list[list[int]]]:
    """FedBuff (Nguyen et al. 2022, algorithm 1) on a queue of events: the weights, the time and the lags of each step. An actor
    whose contribution fills the buffer goes on at once, from the weights before the step."""
    w, version, numbers, busy, queue, heap = np.zeros(4), 0, itertools.count(), set[int](), list[Any](), list[Any]()
    times, lags = list[float](), list[list[int]]()

    def begin(now: float) -> None:
        rng = draw(0, "client", number := next(numbers))
        client = next(one for one in iter(lambda: rng.randrange(CLIENTS), -1) if one not in busy)
        busy.add(client)
        heapq.heappush(heap, (now + SPEEDS[client], number, client, version, (goals()[client] - w) / 2))

    for _ in range(at_once):
        begin(0.0)
    while version < steps:
        now, _, client, made_from, delta = heapq.heappop(heap)
        busy.discard(client)
        queue.append((version - made_from, 1.0 + client, delta))
        begin(now)
        if len(queue) == buffer:
            s = [n * (1 + lag) ** -exponent for lag, n, _ in queue]
            w = w + sum(each * delta for each, (_, _, delta) in zip(s, queue, strict=True)) / sum(s)
            times, lags, version = [*times, now], [*lags, [lag for lag, _, _ in queue]], version + 1
            queue.clear()
    return w, times, lags


def test_fedbuff_in_virtual_time_is_the_simulation_of_its_events(tmp_path: Path) -> None:
    run = virtual(tmp_path, method="fedbuff", buffer=3, rounds=12, max_lag=99, concurrency=4)
    w, times, lags = simulated(3, 12, 4)
    np.testing.assert_allclose(run.weights["w"], w, atol=1e-5)
    assert [row["seconds"] for row in run.history] == pytest.approx(times)
    assert [row["lag"] for row in run.history] == [pytest.approx([min(one), sum(one) / 3, max(one)]) for one in lags]


def test_a_buffer_of_one_follows_every_contribution(tmp_path: Path) -> None:
    run = virtual(
        tmp_path, method="fedbuff", buffer=1, rounds=30, max_lag=99, concurrency=5, normalise=False, weighting="users"
    )
    assert len(run.history) == 30
    assert [row["seconds"] for row in run.history] == pytest.approx(simulated(1, 30, 5)[1])


# Against a run over sockets


@dataclass
class Conductor:
    """Time for workers that wait on threads of their own. If all `players` wait, and each has the weights of every step that
    the contributions so far make, the one that is due first goes on. Without the second condition a slow machine would let it
    begin its next task with older weights. buffer: contributions of a step."""

    players: int
    buffer: int
    now: float = 0.0
    done: int = 0
    told: tuple[int, ...] = ()  # the version, and the versions that the actors hold
    free: bool = False
    waiting: list[tuple[float, int, threading.Event]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Any = field(default_factory=itertools.count)

    def wait(self, seconds: float) -> None:
        mine = threading.Event()
        with self.lock:
            heapq.heappush(self.waiting, (self.now + seconds, next(self.numbers), mine))
            self._go_on()
        mine.wait()

    def look(self, facts: Facts) -> None:
        with self.lock:
            self.told = (facts.version, *(actor.held for actor in facts.roster.actors.values()))
            self._go_on()

    def _go_on(self) -> None:
        level = set(self.told) == {self.done // self.buffer}
        if self.waiting and (self.free or (level and len(self.waiting) == self.players)):
            self.now, _, first = heapq.heappop(self.waiting)
            self.done += 1
            first.set()

    def over(self) -> None:
        with self.lock:
            self.free = True
            while self.waiting:
                heapq.heappop(self.waiting)[2].set()


class OneEach(Job):
    """A job whose actors hold one task at a time, as the seats of a virtual run do."""

    def bounds(self) -> Bounds:
        return replace(super().bounds(), ahead=1, most=1)


def one_task_each(job: Job) -> Job:
    return OneEach(**{each.name: getattr(job, each.name) for each in fields(job)})


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fedbuff", "buffer": 3, "rounds": 8, "max_lag": 99},
        {"method": "fedasync", "rounds": 20, "max_lag": 99},
    ],
    ids=lambda settings: settings["method"],
)
def test_a_virtual_run_has_the_order_of_updates_of_a_wall_clock_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Four actors over sockets, whose workers wait for a conductor. Nothing here depends on how fast the machine is."""
    conductor = Conductor(4, settings.get("buffer", 1))

    class Looked(Core):
        def handle(self, event: Event, now: float) -> list[Effect]:
            effects = super().handle(event, now)
            conductor.look(self.facts)
            return effects

    def waiting() -> Paced:
        return Paced(Pulling(), device, float, wait=conductor.wait, clock=lambda: 0.0)

    start = {"w": np.zeros(4, np.float32)}
    playing = Federated(worker=waiting, weights=lambda: start, local_epochs=1, **{**FREE, **settings})
    real = whole.run(one_task_each(job(**settings)), 4, jobs=[playing] * 4, core_of=Looked)
    conductor.over()
    run = virtual(tmp_path, **settings, concurrency=4)
    assert real.finish.reason == run.reason == "done"
    assert real.sha256 == run.snapshot().weights.sha256()
    assert conductor.now >= run.history[-1]["seconds"]


# Rounds, traces and drop-outs


def test_a_round_lasts_as_long_as_the_slowest_of_its_cohort_and_with_over_selection_as_the_last_that_counts(
    tmp_path: Path,
) -> None:
    whole_round = virtual(tmp_path, cohort=CLIENTS, rounds=2)
    assert [row["seconds"] for row in whole_round.history] == pytest.approx([9.7, 19.4])
    part = shoal.run(job(clock="virtual", cohort=6, over_selection=1.5, rounds=2), folder=tmp_path / "part", show=False)
    assert [row["seconds"] for row in part.history] == pytest.approx([5.9, 11.8])  # the sixth fastest of all nine
    assert [row["contributions"] for row in part.history] == [6, 12]
    assert "is made without 3 clients that came too late: " in part.dir.log_file.read_text()
    assert part.summary["virtual"] is True


def test_a_deadline_cuts_a_round_at_its_second(tmp_path: Path) -> None:
    run = virtual(tmp_path, cohort=CLIENTS, rounds=2, deadline=5.0, quorum=2)
    assert [row["seconds"] for row in run.history] == pytest.approx([5.0, 10.0])
    assert [row["contributions"] for row in run.history] == [5, 10]


def test_fedfix_steps_at_fixed_times_of_what_has_come(tmp_path: Path) -> None:
    run = virtual(tmp_path, method="fedfix", deadline=4.0, rounds=5, concurrency=CLIENTS)
    assert [row["seconds"] for row in run.history] == pytest.approx([4.0, 8.0, 12.0, 16.0, 20.0])
    assert run.history[0]["contributions"] == 3 + 2 + 1 + 1  # what comes at the very second 4 is for the next step


def test_clients_are_asked_only_while_their_trace_says_that_they_are_here(tmp_path: Path) -> None:
    """Three clients are here from second 100 on, and drop out of what they have not done at second 200."""
    traces = {client: [(100.0, 200.0), (300.0, 1_000.0)] if client < 3 else [(300.0, 400.0)] for client in range(CLIENTS)}
    run = virtual(tmp_path, cohort=3, rounds=60, traces=lambda client: traces[client])
    seconds = [row["seconds"] for row in run.history]
    assert seconds[0] == pytest.approx(102.3)
    assert not any(200.0 < each < 300.0 for each in seconds)
    log = run.dir.log_file.read_text()
    assert "dropped out: it went away before its task was done" in log


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_client_that_drops_out_is_asked_again_and_then_left_out(tmp_path: Path, attempts: int) -> None:
    flaky = lambda client: Device(0.1, dropout=0.4)  # noqa: E731
    start = {"w": np.zeros(4, np.float32)}
    made = Federated(worker=Pulling, weights=lambda: start, devices=flaky, clock="virtual", cohort=9, rounds=20, **FREE)
    made = made.configured({"attempts": attempts})
    run = shoal.run(made, folder=tmp_path / "run", show=False)
    many = run.history[-1]["contributions"]
    assert abs(many / 180 - (1 - 0.4**attempts)) < 0.08
    again = shoal.run(made, folder=tmp_path / "again", show=False)
    assert again.snapshot().weights.sha256() == run.snapshot().weights.sha256()


def test_a_run_in_which_nothing_is_left_to_happen_ends_in_one_line(tmp_path: Path) -> None:
    traces = lambda client: [(0.0, SPEEDS[client] + 0.01)]  # noqa: E731
    with pytest.raises(UserError, match=r"nothing is left to happen at 10 virtual seconds"):
        virtual(tmp_path, cohort=CLIENTS, rounds=2, traces=traces)


def test_a_week_of_federation_passes_in_seconds_and_goes_on_after_a_resumption(tmp_path: Path) -> None:
    slow = lambda client: Device(seconds_per_example=SPEEDS[client] * 1_000)  # noqa: E731
    start = {"w": np.zeros(4, np.float32)}
    made = Federated(worker=Pulling, weights=lambda: start, devices=slow, clock="virtual", cohort=4, rounds=16, **FREE)
    run = shoal.run(made, folder=tmp_path / "whole", show=False)
    assert run.history[-1]["seconds"] > 7 * 86_400
    half = shoal.run(made, folder=tmp_path / "half", settings={"rounds": 7}, show=False)
    on = shoal.load(half.folder, made).resume(settings={"rounds": 16}, show=False)
    assert on.snapshot().weights.sha256() == run.snapshot().weights.sha256()
    assert [row["seconds"] for row in on.history] == pytest.approx([row["seconds"] for row in run.history])


def test_a_virtual_run_trains_a_model_and_has_the_bits_of_the_plain_loop(tmp_path: Path) -> None:
    usual = Federated(mlp, datasets.digits, clients=20, cohort=5, rounds=3, local_epochs=1, eval_every=0)
    plain = shoal.run(usual, actors=0, folder=tmp_path / "plain", show=False)
    devices = lambda client: Device(0.01 * (1 + client % 7), upload_mbps=1.0, download_mbps=1.0)  # noqa: E731
    changes = {"clock": "virtual", "devices": devices}
    run = shoal.run(usual.configured(changes), folder=tmp_path / "virtual", show=False)
    assert run.snapshot().weights.sha256() == plain.snapshot().weights.sha256()
    assert run.metrics["accuracy"] == plain.metrics["accuracy"]


def test_fewer_bytes_take_less_virtual_time(tmp_path: Path) -> None:
    link = lambda client: Device(upload_mbps=0.1)  # noqa: E731
    usual = Federated(mlp, datasets.digits, clients=20, cohort=5, rounds=1, local_epochs=1, clock="virtual", devices=link)
    whole_bytes = shoal.run(usual, folder=tmp_path / "whole", show=False).history[0]["seconds"]
    packed = shoal.run(usual.configured({"compress": "int8"}), folder=tmp_path / "packed", show=False).history[0]["seconds"]
    assert 0.2 < packed / whole_bytes < 0.35


def test_traces_hold_in_wall_clock_time_too(tmp_path: Path) -> None:
    asked: set[int] = set()

    class Noting(Pulling):
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            asked.add(client)
            return super().run(weights, client, task)

    start = {"w": np.zeros(4, np.float32)}
    traces = lambda client: [(0.0, 1e9)] if client < 4 else [(1e8, 1e9)]  # noqa: E731
    for method in ({"method": "fedbuff", "buffer": 2}, {"cohort": 2}):
        made = Federated(worker=Noting, weights=lambda: start, traces=traces, rounds=12, **{**FREE, **method})
        shoal.run(made, actors=0, folder=tmp_path / str(len(method)), show=False)
        assert asked == {0, 1, 2, 3}
        asked.clear()


def test_in_wall_clock_time_a_run_takes_at_least_as_long_as_its_devices(tmp_path: Path) -> None:
    start = {"w": np.zeros(4, np.float32)}
    slow = lambda client: Device(seconds_per_example=0.02 / (1 + client))  # noqa: E731
    made = Federated(worker=Pulling, weights=lambda: start, devices=slow, local_epochs=1, cohort=5, rounds=2, **FREE)
    run = shoal.run(made, actors=0, folder=tmp_path / "run", show=False)
    assert run.history[-1]["seconds"] >= 10 * 0.02
    assert "virtual" not in run.summary


def test_a_lease_runs_out_at_its_virtual_second(tmp_path: Path) -> None:
    run = virtual(tmp_path, cohort=CLIENTS, rounds=1, lease=6.0, attempts=1)
    assert run.history[0]["seconds"] == pytest.approx(6.0)
    assert run.history[0]["contributions"] == sum(seconds < 6.0 for seconds in SPEEDS)


# Refused when the job is read

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"clock": "virtual", "devices": ""}, "clock=virtual: nothing says how long a task takes; devices=FILE.csv"),
    ({"devices": lambda: 3}, "devices is "),
    ({"devices": lambda client: 3}, "devices: client 0: "),
    ({"devices": "nowhere.csv"}, "devices=nowhere.csv: cannot be read"),
    ({"trace_period": 9.0}, "trace_period=9: without traces it has no effect"),
    ({"task_memory": 9.0, "devices": ""}, "task_memory=9: without devices it has no effect"),
    ({"task_memory": 9.0, "devices": lambda client: Device(memory_mb=8.0)}, "task_memory=9: 0 of clients=9 have a device"),
    ({"concurrency": 10, "clock": "virtual"}, "concurrency=10: allowed is from 0 to clients=9"),
    ({"concurrency": 3}, "concurrency=3: concurrency is a setting of clock=virtual"),
    (
        {"traces": lambda client: [(client, client + 2)], "cohort": 4},
        "at most 2 of clients=9 can be asked at one time, and a round needs 4",
    ),
    ({"traces": lambda client: [(5, 4)]}, "traces: client 0: start=5 and end=4"),
    ({"traces": lambda client: 3}, "traces: client 0: "),
    ({"traces": lambda client: [(0, 9)], "trace_period": 5.0}, "trace_period=5: the traces last to 9 s; trace_period=9, say"),
    ({"traces": lambda client: [(0, 9)], "select": lambda version, many, news: [0]}, "among"),
    ({"clock": "sundial"}, "clock=sundial: allowed is one of wall, virtual"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_what_cannot_work_is_refused_before_the_run_has_a_folder(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        shoal.run(job(cohort=2, rounds=1).configured(settings), actors=0, folder=tmp_path / "run", show=False)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_virtual_run_takes_no_actors_and_no_address(tmp_path: Path) -> None:
    for asked in ({"actors": 2}, {"bind": "tcp://127.0.0.1:5555"}):
        with pytest.raises(UserError, match="clock=virtual: a run in virtual time has no actors beside this process"):
            shoal.run(job(clock="virtual", cohort=2, rounds=1), folder=tmp_path / "run", show=False, **asked)
