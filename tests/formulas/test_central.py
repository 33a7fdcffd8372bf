"""Central inference: another process computes the network, and the actor has the same numbers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch import nn

from shoal.actors.asking import Asking
from shoal.actors.inferring import KEPT, Batching, Inferring, listening
from shoal.actors.whereabouts import Frame, stack_of, word
from shoal.actors.workers.rollout import Rollout
from shoal.envs.spaces import Discrete, Observations, Spaces
from shoal.jobs.job import Job
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.acting import Parted
from shoal.nets.flat import FlatModule
from shoal.nets.framed import Framed, stacked_spaces
from shoal.nets.numpy_policy import NumpyPolicy, RecurrentNumpyPolicy
from shoal.nets.policies import ActorCritic, DeepActorCritic, TorchPolicy
from shoal.nets.recurrent import RecurrentActorCritic
from shoal.protocol.errors import UserError
from shoal.protocol.questions import QUESTION, Packet
from shoal.protocol.work import Task

TWO = Discrete(2)
VECTOR = Spaces(Observations((4,)), TWO)
PICTURES = Spaces(Observations((36, 36, 2), "u1"), Discrete(6))
FRAME = Observations((36, 36), "u1")
FILM, STACKS = Spaces(FRAME, Discrete(6)), stacked_spaces(Spaces(FRAME, Discrete(6)), 3)
MAKERS: dict[str, tuple[Spaces, Callable[[], nn.Module], Callable[[], Any]]] = {
    "numpy": (VECTOR, lambda: ActorCritic(VECTOR, (16,)), lambda: NumpyPolicy(TWO)),
    "pictures": (
        PICTURES,
        lambda: DeepActorCritic(PICTURES),
        lambda: TorchPolicy(DeepActorCritic(PICTURES), PICTURES.action),
    ),
    "lstm": (
        VECTOR,
        lambda: RecurrentActorCritic(VECTOR, (16,), "tanh", "lstm", 8),
        lambda: RecurrentNumpyPolicy(TWO, "tanh", "lstm", 8),
    ),
    "frames": (
        FILM,
        lambda: DeepActorCritic(STACKS),
        lambda: Framed(TorchPolicy(DeepActorCritic(STACKS), STACKS.action), 3, FRAME),
    ),
}


@contextmanager
def inferring(
    make: Callable[[], Any],
    spaces: Spaces,
    path: Path,
    **batches: Any,
) -> Iterator[Inferring]:
    """The inference process's loop, on a thread of this process."""
    made = Inferring(make, spaces.record(), Batching(**batches), time.monotonic)
    over, listener = threading.Event(), listening(str(path))
    thread = threading.Thread(target=made.serve, args=(listener, over.is_set))
    thread.start()
    try:
        yield made
    finally:
        over.set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waker:
            waker.connect(str(path))
            thread.join()
        listener.close()


def asking(make: Callable[[], Any], spaces: Spaces, path: Path, told: list[str], alone: bool = True, **more: Any) -> Asking:
    return Asking(make(), spaces.record(), str(path), 8, alone, told=told.append, **more)


def observations(spaces: Spaces, rows: int, seed: int = 0) -> Any:
    dtype, shape = spaces.record()
    drawn = np.random.default_rng(seed).normal(size=(rows, *shape)) * (1 if dtype.kind == "f" else 60)
    return np.abs(drawn).astype(dtype) if dtype.kind == "u" else drawn.astype(dtype)


@pytest.mark.parametrize("kind", MAKERS)
def test_numbers_of_another_process_are_those_of_the_actor_bit_for_bit(tmp_path: Path, kind: str) -> None:
    spaces, module, make = MAKERS[kind]
    told: list[str] = []
    own, policy = make(), asking(make, spaces, tmp_path / "at", told)
    with inferring(make, spaces, tmp_path / "at"):
        for version in range(KEPT + 2):
            weights = FlatModule(module()).bundle().copy()
            weights.vector()[:] += version / 64
            own.load(weights)
            policy.named(version)
            policy.load(weights)
            ours = theirs = own.begin(5)
            noise = own.noise(np.random.default_rng(version), 3, 5)
            for t in range(3):
                seen, first = observations(spaces, 5, 9 * version + t), np.arange(5) == t
                one, other = own.act(seen, first, ours, noise[t], {}), policy.act(seen, first, theirs, noise[t], {})
                np.testing.assert_array_equal(one.action, other.action)
                np.testing.assert_array_equal(one.extras["numbers"], other.extras["numbers"])
                ours, theirs = one.state, other.state
                for name in ours:
                    np.testing.assert_array_equal(ours[name], theirs[name])
        assert policy.totals() == {"inference_central": (15.0 * (KEPT + 2), 15.0 * (KEPT + 2))}
        assert policy.totals() == {}
        policy.close()
    assert told == []


def test_two_questions_of_one_actor_are_under_way_at_once(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    told: list[str] = []
    own, policy = make(), asking(make, spaces, tmp_path / "at", told)
    own.load(weights := FlatModule(module()).bundle())
    with inferring(make, spaces, tmp_path / "at"):
        policy.load(weights)
        halves = [observations(spaces, 3, 1), observations(spaces, 4, 2)]
        for place, seen in enumerate(halves):
            policy.ask(place, seen, np.zeros(len(seen), bool), {})
        for place in (1, 0):
            numbers = policy.answer(place, None, {}).extras["numbers"]
            np.testing.assert_array_equal(numbers, own.parameters(halves[place]))
        policy.close()
    assert told == []


def test_questions_of_several_actors_become_one_batch_of_their_version(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    weights = FlatModule(module()).bundle()
    told: list[str] = []
    with inferring(make, spaces, tmp_path / "at", min_batch=6, max_wait=60.0) as made:
        actors = [asking(make, spaces, tmp_path / "at", told, alone=False) for _ in range(3)]
        own = make()
        own.load(weights)
        made._learn(-1, weights)  # actors that take turns cannot bring them: each would wait for the others
        for actor in actors:
            actor.load(weights)
        for turn in range(4):
            asked = [observations(spaces, 2, 10 * turn + at) for at in range(3)]
            for actor, seen in zip(actors, asked, strict=True):
                actor.ask(0, seen, np.zeros(2, bool), {})
            for actor, seen in zip(actors, asked, strict=True):
                numbers = actor.answer(0, None, {}).extras["numbers"]
                np.testing.assert_allclose(numbers, own.parameters(seen), rtol=1e-5, atol=1e-6)
        assert [(actor.totals(), actor._untold) for actor in actors] == [({"inference_central": (8.0, 8.0)}, [])] * 3
        assert (made.batches, made.rows) == (4, 24)
        for actor in actors:
            actor.close()
    assert told == []


def test_an_actor_without_the_other_process_computes_itself_and_says_so_once(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["lstm"]
    told: list[str] = []
    own, policy = make(), asking(make, spaces, tmp_path / "nobody", told)
    own.load(weights := FlatModule(module()).bundle())
    seen, first = observations(spaces, 4), np.zeros(4, bool)
    for _ in range(2):
        policy.load(weights)
        expected, found = own.act(seen, first, own.begin(4), None, {}), policy.act(seen, first, own.begin(4), None, {})
        np.testing.assert_array_equal(expected.extras["numbers"], found.extras["numbers"])
        policy.forget()
    assert policy.totals() == {"inference_central": (0.0, 8.0)}
    [line] = told
    assert line.startswith("the inference process cannot be asked (No such file or directory): this actor computes its network")


def test_an_actor_computes_itself_what_a_process_that_ends_owed_it_and_asks_the_next_one(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    told: list[str] = []
    policy, own = asking(make, spaces, tmp_path / "at", told), make()
    own.load(weights := FlatModule(module()).bundle())
    policy.load(weights)  # nobody is there yet
    listener = listening(str(tmp_path / "at"))
    policy.load(weights)
    seen = observations(spaces, 4)
    policy.ask(0, seen, np.zeros(4, bool), {})
    line, _ = listener.accept()
    line.close()  # it ends with a question unanswered
    listener.close()
    np.testing.assert_array_equal(policy.answer(0, None, {}).extras["numbers"], own.parameters(seen))
    with inferring(make, spaces, tmp_path / "at"):
        policy.load(weights)
        policy.totals()
        np.testing.assert_array_equal(policy.act(seen, np.zeros(4, bool), {}, None, {}).extras["numbers"], own.parameters(seen))
        assert policy.totals() == {"inference_central": (4.0, 4.0)}
        policy.close()
    assert len(told) == 2


def test_a_process_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    told: list[str] = []
    policy, own = asking(make, spaces, tmp_path / "at", told, patience=0.01), make()
    own.load(weights := FlatModule(module()).bundle())
    seen = observations(spaces, 4)
    with listening(str(tmp_path / "at")):  # the kernel takes the connection, and nobody reads
        for _ in range(3):
            policy.load(weights)
            numbers = policy.act(seen, np.zeros(4, bool), {}, None, {}).extras["numbers"]
            np.testing.assert_array_equal(numbers, own.parameters(seen))
    assert told == ["the inference process gave no answer within 0.01 s: this actor computes its network itself from now on"]
    policy.close()


class Sulks(NumpyPolicy):
    """A policy whose network raises in the other process, and in the actor where the test says."""

    raises = True

    def numbers(self, seen: Any, state: Any) -> Any:
        if self.raises:
            raise ValueError("no numbers today")
        return super().numbers(seen, state)


def test_what_the_network_raises_is_raised_in_the_actor(tmp_path: Path) -> None:
    spaces, module, _ = MAKERS["numpy"]
    told: list[str] = []
    policy = asking(partial(Sulks, TWO), spaces, tmp_path / "at", told)
    with inferring(partial(Sulks, TWO), spaces, tmp_path / "at"):
        policy.load(FlatModule(module()).bundle())
        with pytest.raises(ValueError, match="no numbers today"):
            policy.act(observations(spaces, 2), np.zeros(2, bool), {}, None, {})
        cast(Sulks, policy.own).raises = False
        policy.act(observations(spaces, 2), np.zeros(2, bool), {}, None, {})
        policy.close()
    assert told == []


def test_the_answer_to_a_question_of_an_abandoned_rollout_is_left_aside(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    told: list[str] = []
    policy, own = asking(make, spaces, tmp_path / "at", told), make()
    own.load(weights := FlatModule(module()).bundle())
    with inferring(make, spaces, tmp_path / "at"):
        policy.load(weights)
        policy.ask(0, observations(spaces, 3, 1), np.zeros(3, bool), {})
        policy.forget()  # an environment raised
        policy.named(1)
        policy.load(weights)
        seen = observations(spaces, 3, 2)
        np.testing.assert_array_equal(policy.act(seen, np.zeros(3, bool), {}, None, {}).extras["numbers"], own.parameters(seen))
        policy.close()
    assert told == []


def test_more_observations_than_there_is_room_for_are_computed_here(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    told: list[str] = []
    policy, own = asking(make, spaces, tmp_path / "at", told), make()
    own.load(weights := FlatModule(module()).bundle())
    with inferring(make, spaces, tmp_path / "at"):
        policy.load(weights)
        seen = observations(spaces, 9)
        np.testing.assert_array_equal(policy.act(seen, np.zeros(9, bool), {}, None, {}).extras["numbers"], own.parameters(seen))
        assert policy.totals() == {"inference_central": (0.0, 9.0)}
        policy.close()


@pytest.mark.parametrize(
    "settings", [{}, {"memory": "gru"}, {"norm_obs": True}, {"method": "dqn"}, {"method": "r2d2", "memory": "lstm"}]
)
def test_a_trajectory_is_the_same_wherever_its_network_is_computed(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = {"method": "ppo", "num_envs": 4, "rollout_length": 12, **settings}
    same_wherever(Reinforcement("CartPole-v1", **made), tmp_path)


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_bounded_actions_are_the_same_wherever_their_network_is_computed(tmp_path: Path, method: str) -> None:
    same_wherever(Reinforcement("Pendulum-v1", method=method, num_envs=4, rollout_length=12), tmp_path)


def same_wherever(job: Job, folder: Path) -> None:
    problem: Any = job.problem
    weights, spaces, told = problem.first(0)[0], problem.spaces(), list[str]()
    own = cast(Rollout, job.worker())
    with inferring(lambda: cast(Parted, problem.acts(0)), spaces, folder / "at"):
        other = cast(Rollout, job.worker())
        other.policy = Asking(cast(Parted, other.policy), spaces.record(), str(folder / "at"), 4, True, told=told.append)
        for version in range(3):
            task = Task(version, 0, (0,), words={"epsilon": 0.3, "ladder": 7.0, "noise": 0.1})
            one, two = own.run(weights, 0, task), other.run(weights, 0, task)
            assert one.bundle is not None
            assert two.bundle is not None
            assert one.bundle.sha256() == two.bundle.sha256()
            assert (two.totals["inference_central"], one.samples) == ((48.0, 48.0), two.samples)
        other.close()
    own.close()
    assert told == []


def test_an_actor_that_waits_for_numbers_is_in_wait_inference(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    asked = threading.Event()
    policy = asking(make, spaces, tmp_path / "at", [])
    with listening(str(tmp_path / "at")) as listener:
        policy.load(FlatModule(module()).bundle())

        def acts() -> None:
            policy.ask(0, observations(spaces, 2), np.zeros(2, bool), {})
            asked.set()
            policy.answer(0, None, {})

        thread = threading.Thread(target=acts)
        thread.start()
        line, _ = listener.accept()
        asked.wait()
        found = ""
        while found != "wait_inference":  # the thread is in `answer` soon, and stays there
            found = word(stack_of(thread.ident)[0])
        line.close()
        thread.join()
    assert word([Frame("shoal.actors.asking", "_heard")]) == "wait_inference"
    policy.close()


def test_an_odd_packet_costs_its_sender_the_connection_and_nobody_else(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["numpy"]
    told: list[str] = []
    with inferring(make, spaces, tmp_path / "at"):
        for odd in (b"\x90", b"\xff" * 40, Packet(QUESTION, 0, 0, 2, 1, 0).packed()):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
                line.connect(str(tmp_path / "at"))
                line.send(odd)
                assert line.recv(100) == b""
        policy = asking(make, spaces, tmp_path / "at", told)
        policy.load(FlatModule(module()).bundle())
        policy.act(observations(spaces, 2), np.zeros(2, bool), {}, None, {})
        assert policy.totals() == {"inference_central": (2.0, 2.0)}
        policy.close()
    assert told == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"method": "es", "inference": "central"}, "inference=central: the policies of method=es have weights of their own"),
        ({"inference_wait": 0.1}, "inference_wait=0.1: inference_wait is a setting of inference=central"),
        (
            {"inference": "central", "inference_min_batch": 9, "inference_max_batch": 8},
            "inference_min_batch=9: must be at most inference_max_batch, 8",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_job_is_read(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        Reinforcement("CartPole-v1", **settings)
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(("method", "alone"), [("ppo", True), ("a2c", True), ("sac", True), ("impala", False), ("apex", False)])
def test_batches_are_shared_where_the_runs_bits_hang_on_the_clock_anyway(method: str, alone: bool) -> None:
    job = Reinforcement("Pendulum-v1" if method == "sac" else "CartPole-v1", method=method)
    assert cast(Any, job.method).repeats is alone
    assert not job.configured({"method": "ppo", "overlap": True}).method.repeats  # type: ignore[attr-defined]
