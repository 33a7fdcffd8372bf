"""Facts about servers of predictions at a coordinator: they get each version of the weights, and do not count as actors."""

from __future__ import annotations

import pytest
from test_core import Run, names, rounds

from shoal.actors import effects, events
from shoal.actors.session import Session, hello
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.events import Heard, Interrupt, Lost, Send, SendWeights, Step
from shoal.coordinator.deciding.patience import waiting_for
from shoal.coordinator.deciding.roll import roll
from shoal.protocol.messages import PROTOCOL, Assign, Chunk, Envelope, Have, Hello, Message, Stop, Weights, Welcome


def follow(run: Run, name: str = "server") -> Run:
    run.peers[name], run.sessions[name], run.tasks[name] = name.encode(), f"session of {name}".encode(), {}
    said = Hello(PROTOCOL, name, "host", 1, (), follows=True)
    return run.event(Heard(run.peers[name], Envelope(run.sessions[name], 0, said)))


def test_a_server_gets_weights_and_no_task() -> None:
    run = follow(Run(rounds()))
    assert [one.peer for one in run.all(SendWeights)] == [b"server"]
    assert run.said("server", Assign) == []
    assert run.told("joined") == ["server follows the weights"]


def test_a_server_gets_the_next_version_too() -> None:
    run = follow(Run(rounds(1)).join("a"))
    run.hear("server", Have(0)).contribute("a").step()
    assert (b"server", 1) in [(one.peer, one.version) for one in run.all(SendWeights)]


def test_a_run_with_servers_alone_waits_for_an_actor() -> None:
    run = follow(Run(rounds()))
    assert waiting_for(run.core.facts) == ["an actor to join, for 0 s"]
    assert len(run.core.facts.roster) == 0
    assert roll(run.core.facts, run.now)["rows"] == []


def test_actors_have_the_numbers_that_they_have_without_servers() -> None:
    run = follow(Run(rounds()).join("a"), "one")
    run.join("b").hear("one", Have(0))
    follow(run, "two").event(Lost(b"one", "ended")).join("c")
    actors = run.core.facts.roster.actors
    assert [actors[run.sessions[name]].number for name in ("a", "b", "c", "two")] == [0, 1, 2, -1]


def test_the_first_tasks_do_not_count_a_server_among_the_actors_that_they_wait_for() -> None:
    run = follow(Run(rounds(4), Bounds(ahead=2, sticky=True, gather=2)).join("a"))
    assert run.tick(0.1).said("a", Assign) == []
    assert names(run.join("b").said("a", Assign)) != []


@pytest.mark.parametrize("lost", [False, True])
def test_a_client_that_stays_with_its_actor_never_stays_with_a_server(lost: bool) -> None:
    run = Run(rounds(4), Bounds(ahead=4, sticky=True)).join("a")
    follow(run)
    if lost:
        run.event(Lost(b"a", "ended")).join("b")
    run.contribute(*"b" * 4 if lost else "a" * 4)
    assert run.all(Step)
    assert set(run.core.facts.roster.contributors.homes.values()) == {run.sessions["b" if lost else "a"]}


def test_a_server_that_comes_back_over_another_connection_still_gets_no_task() -> None:
    run = follow(Run(rounds()))
    session, epoch = run.sessions["server"], run.core.facts.epoch
    again = Hello(PROTOCOL, "server", "host", 1, (), greeting=1, epoch=epoch, held=0, follows=True)
    run.peers["server"] = b"other"
    run.event(Heard(b"other", Envelope(session, 0, again)))
    assert (run.core.facts.roster.contributors.room, run.said("server", Assign)) == (0, [])


def test_the_end_of_a_run_is_told_to_a_server() -> None:
    run = follow(Run(rounds(1)).join("a"))
    run.event(Interrupt("told to stop"))
    assert run.said("server", Stop)


def test_the_session_of_a_server_says_so_and_holds_what_it_is_told() -> None:
    session = Session(b"12345678", hello("server", "host", 1, ("shm",), follows=True), "tcp://here:1", 0.0)
    [said] = session.handle(events.Tick(), 1.0)
    assert isinstance(said, effects.Say)
    assert said.envelope.message == Hello(PROTOCOL, "server", "host", 1, ("shm",), follows=True)
    welcomed = session.handle(events.Heard(Envelope(b"12345678", 7, Welcome("run", -1, 0.25, 10.0, "host", ()))), 1.0)
    assert effects.Note("joined tcp://here:1 to follow the weights") in welcomed
    held = session.handle(events.Heard(Envelope(b"12345678", 7, Weights(3))), 1.0)
    assert effects.Adopt(3) in held


def test_a_server_gets_the_last_version_before_the_end() -> None:
    run = follow(Run(rounds(1), goal=Goal(versions=1)).join("a"))
    run.hear("server", Have(0)).contribute("a").step()
    assert [(one.peer, one.version) for one in run.all(SendWeights)] == [(b"server", 1)]
    told = [type(effect) for effect in run.effects]
    assert told.index(SendWeights) < min(at for at, effect in enumerate(run.effects) if _stops(effect))


def _stops(effect: object) -> bool:
    return isinstance(effect, Send) and isinstance(effect.envelope.message, Stop)


@pytest.mark.parametrize("comes", [True, False])
def test_a_session_that_follows_stays_for_the_last_weights_and_not_for_ever(comes: bool) -> None:
    session = Session(b"12345678", hello("server", "host", 1, (), follows=True), "tcp://here:1", 0.0)

    def hears(message: Message, now: float) -> list[effects.Effect]:
        return session.handle(events.Heard(Envelope(b"12345678", 7, message)), now)

    hears(Welcome("run", -1, 0.25, 10.0, "host", ()), 1.0)
    hears(Weights(3, nbytes=100), 1.0)
    hears(Chunk((3,), 0, 0), 1.0)
    assert effects.Leave("done") not in hears(Stop("done"), 1.1)
    last = hears(Chunk((3,), 0, 100), 1.2) if comes else session.handle(events.Tick(), 1.0 + 3.0)
    assert last[-1] == effects.Leave("done")
    assert (effects.Adopt(3) in last) == comes
