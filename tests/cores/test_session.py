"""Facts about an actor's session, each a story told in the order it happens. No sockets, and a clock wound by hand.

The one idea: everything said is safe to say again, so every story is about what is said, and when again.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from shoal.actors.effects import Adopt, Effect, Flag, Forget, Give, Leave, Note, Reset, Run, Say, Stow
from shoal.actors.events import Decoded, Done, Event, Heard, Opened, Quit, Tick
from shoal.actors.session import AT_HAND, BACKLOG, HELLO_AGAIN, RIDES, SAY_AGAIN, UNREACHED, Session, hello
from shoal.protocol.fetching import LEAST, PROBE
from shoal.protocol.messages import (
    WHOLE,
    Assign,
    Beat,
    Bye,
    Cancel,
    Chunk,
    Contribute,
    Envelope,
    Failed,
    GiveUp,
    Have,
    Hello,
    Message,
    Ready,
    Refused,
    Stop,
    TaskName,
    Verdict,
    Want,
    Weights,
    Welcome,
)

E = TypeVar("E")
M = TypeVar("M")
ME = b"session-"


class Story:
    """A session, a clock, and the effects of what happened last."""

    def __init__(self) -> None:
        self.session = Session(ME, hello("actor", "host", 1, ()), "tcp://there", now=100.0)
        self.now = 100.0
        self.epoch = 1
        self.effects: list[Effect] = []

    def event(self, event: Event, after: float = 0.0) -> Story:
        self.now += after
        self.effects = self.session.handle(event, self.now)
        return self

    def tick(self, after: float = 0.0) -> Story:
        return self.event(Tick(), after)

    def hear(self, *messages: Message, after: float = 0.0, epoch: int | None = None, session: bytes = ME) -> Story:
        """From the coordinator; `effects` are those of all these messages."""
        self.now += after
        told = [Envelope(session, self.epoch if epoch is None else epoch, message) for message in messages]
        self.effects = [effect for envelope in told for effect in self.session.handle(Heard(envelope), self.now)]
        return self

    def welcomed(self, patience: float = 10.0, resumed: bool = False) -> Story:
        return self.tick().hear(Welcome("run", 3, 0.25, patience, "host", (), self.session.greeting, resumed))

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def coming(self) -> list[tuple[tuple[int, ...], int]]:
        """Names and sizes of the arrays that are fetched, in their order."""
        return [(one.what, one.nbytes) for one in self.session.fetching.queue]

    def said(self, kind: type[M]) -> list[M]:
        return [say.envelope.message for say in self.all(Say) if isinstance(say.envelope.message, kind)]

    def done(self, task: TaskName, attempt: int = 1, after: float = 0.0) -> Story:
        return self.event(Done(work(task, attempt)), after)


def work(task: TaskName, attempt: int = 1) -> Contribute:
    return Contribute(task, attempt, task[0], 1.0, "layout", False, {}, {}, 0.0, 0.0)


def assign(task: TaskName, attempt: int = 1) -> Assign:
    return Assign(task, attempt, (7,), "train", False)


def runs(story: Story) -> list[tuple[TaskName, int, int]]:
    return [((run.task.version, run.task.index), run.attempt, run.made_from) for run in story.all(Run)]


def test_hello_is_said_until_welcome_ever_more_seldom() -> None:
    story = Story()
    said = []
    for _ in range(400):
        story.tick(after=0.05)
        said += [story.now - 100.0] * len(story.said(Hello))
    waits = [later - earlier for earlier, later in itertools.pairwise(said)]
    assert waits == sorted(waits)
    assert abs(waits[0] - HELLO_AGAIN[0]) < 0.01
    assert abs(waits[-1] - HELLO_AGAIN[1]) < 0.1
    assert story.welcomed().tick(after=2.0).said(Hello) == []


def test_a_second_welcome_changes_nothing() -> None:
    story = Story().welcomed()
    assert story.all(Reset) == [Reset()]
    story.hear(Weights(0), assign((0, 0)))
    assert story.hear(Welcome("run", 3, 0.25, 10.0, "host", ())).effects == []
    assert story.session.held == 0


def test_weights_are_adopted_and_confirmed() -> None:
    story = Story().welcomed().hear(Weights(4))
    assert (story.all(Adopt), story.said(Have)) == ([Adopt(4)], [])
    assert story.tick(after=RIDES / 2).said(Have) == []
    assert story.tick(after=RIDES).said(Have) == [Have(4, 4)]
    assert story.tick(after=RIDES).said(Have) == []


def test_a_confirmation_that_no_task_waits_for_goes_with_the_next_result() -> None:
    story = Story().welcomed().hear(Weights(4), assign((4, 0)))
    assert story.said(Have) == [Have(4, 4)]  # the time of the task begins with it
    assert story.hear(Weights(5)).said(Have) == []
    story.done((4, 0), after=RIDES / 2)
    assert [type(say.envelope.message) for say in story.all(Say)] == [Have, Contribute]
    assert story.said(Have) == [Have(5, 5)]
    assert story.hear(Weights(6)).said(Have) == []
    assert story.hear(assign((6, 0))).said(Have) == [Have(6, 6)]
    assert story.hear(Weights(7), assign((5, 1))).said(Have) == []  # which version 6 was good for, too


def test_a_confirmation_that_waits_is_not_said_to_who_does_not_know_this_actor() -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Refused("say Hello", False))
    assert [hello.held for hello in story.tick(after=RIDES).said(Hello)] == [4]
    assert story.said(Have) == []
    assert story.welcomed(resumed=True).tick(after=RIDES).said(Have) == []
    assert story.hear(Weights(5)).hear(Weights(4)).said(Have) == [Have(4, 5)]  # a late word; the newest still waits
    assert story.tick(after=RIDES).said(Have) == [Have(5, 5)]


def test_older_weights_are_confirmed_and_not_adopted() -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Weights(3))
    assert story.all(Adopt) == []
    assert [have.version for have in story.said(Have)] == [3]


def test_have_tells_which_weights_are_still_in_use() -> None:
    story = Story().welcomed().hear(Weights(4), assign((4, 0))).hear(Weights(5)).tick(after=RIDES)
    assert story.said(Have) == [Have(5, using=4)]


def test_a_task_begins_when_its_weights_are_here() -> None:
    story = Story().welcomed().hear(assign((1, 0)), Weights(0))
    assert runs(story) == []
    assert runs(story.hear(Weights(1))) == [((1, 0), 1, 1)]


def test_a_task_may_begin_with_newer_weights_than_it_asks_for() -> None:
    assert runs(Story().welcomed().hear(Weights(5), assign((3, 0)))) == [((3, 0), 1, 5)]


def test_tasks_of_the_newest_weights_queue_at_the_worker() -> None:
    story = Story().welcomed().hear(Weights(2), *(assign((2, index)) for index in range(AT_HAND + 3)))
    assert [name for name, _, _ in runs(story)] == [(2, index) for index in range(AT_HAND)]
    assert runs(story.done((2, 0))) == [((2, AT_HAND), 1, 2)]


def test_a_task_that_newer_weights_may_reach_in_time_waits_for_its_turn() -> None:
    story = Story().welcomed().hear(Weights(5), assign((3, 0)), assign((3, 1)))
    assert runs(story) == [((3, 0), 1, 5)]
    story.hear(Weights(6))
    assert runs(story.done((3, 0))) == [((3, 1), 1, 6)]


def test_a_cancelled_task_is_not_begun() -> None:
    story = Story().welcomed().hear(assign((1, 0)), assign((1, 1)), Cancel((1, 0)), Weights(1))
    assert runs(story) == [((1, 1), 1, 1)]


def test_calls_that_are_given_up_are_told_to_the_worker_and_their_task_goes_on() -> None:
    story = Story().welcomed().hear(Weights(1), assign((1, 0)), GiveUp((1, 0), (5, 7)))
    assert story.all(Flag) == [Flag((5, 7))]
    assert runs(story) == [((1, 0), 1, 1)]


def test_what_the_worker_says_of_itself_goes_with_each_sign_of_life() -> None:
    story = Story().welcomed()
    story.session.told = {"free": [1, 2]}
    assert [beat.told for beat in story.tick(after=1.0).said(Beat)] == [{"free": [1, 2]}]
    story.hear(Weights(0))
    said = []
    for at in range(8):  # results keep it from being silent, and what is new is said all the same
        story.session.told = {"free": [at // 4, 2]} if at % 4 == 0 else story.session.told
        story.hear(assign((0, at))).done((0, at), after=0.1)
        said += [beat.told for beat in story.tick(after=0.05).said(Beat)]
    assert said == [{"free": [0, 2]}, {"free": [1, 2]}]


def test_a_result_is_said_until_its_verdict() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 0))).done((0, 0))
    assert story.said(Contribute) == [work((0, 0))]
    assert story.hear(Beat(0)).tick(after=SAY_AGAIN).said(Contribute) == []
    assert story.tick(after=0.1).said(Contribute) == [work((0, 0))]
    assert story.hear(Verdict((0, 0), 1, "accepted", "")).all(Forget) == [Forget((0, 0))]
    assert story.tick(after=SAY_AGAIN + 1).said(Contribute) == []


def test_a_failure_is_said_until_its_verdict() -> None:
    failure = Failed((0, 0), 1, 7, "training", "ValueError: no", "")
    story = Story().welcomed().hear(Weights(0), assign((0, 0))).event(Done(failure))
    assert story.said(Failed) == [failure]
    assert story.tick(after=SAY_AGAIN + 0.1).said(Failed) == [failure]
    story.hear(Verdict((0, 0), 1, "refused", "failed"))
    assert story.tick(after=SAY_AGAIN + 0.1).said(Failed) == []


def test_a_verdict_on_another_attempt_is_not_this_ones() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 0), attempt=2)).done((0, 0), attempt=2)
    assert story.hear(Verdict((0, 0), 1, "stale", "this attempt is over")).all(Forget) == []
    assert story.hear(Verdict((0, 0), 2, "accepted", "")).all(Forget) == [Forget((0, 0))]


def test_what_is_done_and_not_judged_is_not_done_again() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 0))).done((0, 0))
    assert runs(story.hear(assign((0, 0)))) == []


def test_another_attempt_at_what_is_done_is_done_again() -> None:
    # the coordinator has given the first attempt up: its result is stale, and nobody else works on this one
    story = Story().welcomed().hear(Weights(0), assign((0, 0))).done((0, 0))
    assert runs(story.hear(assign((0, 0), attempt=2))) == [((0, 0), 2, 0)]


def test_refused_means_hello_again_and_then_what_is_not_judged() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 0))).done((0, 0)).hear(Refused("say Hello", False))
    assert len(story.tick().said(Hello)) == 1
    assert story.welcomed().said(Contribute) == [work((0, 0))]


def test_a_task_that_is_running_goes_on_when_the_coordinator_has_forgotten_us() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 0))).hear(Refused("say Hello", False)).done((0, 0))
    assert story.all(Say) == []  # nobody would listen
    assert story.welcomed().said(Contribute) == [work((0, 0))]


def test_refused_for_good_ends_this_life() -> None:
    story = Story().tick().hear(Refused("install the same shoal", True))
    assert story.all(Leave) == [Leave("install the same shoal", failed=True)]
    assert story.tick(after=60.0).effects == []


def test_another_life_of_the_coordinator_voids_weights_and_tasks() -> None:
    story = Story().welcomed().hear(Weights(9), assign((9, 0)), assign((10, 0)))
    story.epoch = 2
    assert story.hear(Welcome("run", 0, 0.25, 10.0, "host", ())).all(Reset) == [Reset()]
    assert story.hear(Weights(3)).all(Adopt) == [Adopt(3)]
    assert runs(story.done((9, 0))) == []  # (10, 0) was of the other life


def test_messages_of_another_life_of_the_coordinator_are_not_obeyed() -> None:
    story = Story().welcomed().hear(Weights(0), epoch=7)
    assert story.effects == []


def test_messages_for_another_session_are_not_ours() -> None:
    story = Story().welcomed().hear(Stop("done"), Weights(0), session=b"another-")
    assert story.effects == []


def test_silence_beyond_patience_means_hello_and_nothing_else() -> None:
    story = Story().welcomed(patience=3.0).hear(Weights(0), assign((0, 0))).done((0, 0))
    story.tick(after=3.1)
    assert story.all(Say) == []
    assert len(story.tick(after=0.1).said(Hello)) == 1
    assert story.tick(after=0.01).said(Contribute) == []


def test_a_welcome_that_answers_an_earlier_hello_is_not_the_answer_to_the_next() -> None:
    # the coordinator does not know that we have forgotten what it sent us: only another Hello tells it
    story = Story().welcomed(patience=3.0).hear(Weights(0)).tick(after=3.1)
    assert [hello.greeting for hello in story.tick().said(Hello)] == [1]
    assert story.hear(Welcome("run", 3, 0.25, 3.0, "host", (), greeting=0)).all(Reset) == []
    assert story.hear(Welcome("run", 3, 0.25, 3.0, "host", (), greeting=1)).all(Reset) == [Reset()]


def test_hello_says_what_is_remembered_of_a_place_that_may_be_lost() -> None:
    story = Story().welcomed().hear(Weights(4), assign((4, 0))).hear(Refused("say Hello", False))
    [again] = story.tick().said(Hello)
    assert (again.greeting, again.epoch, again.held, again.busy) == (1, 1, 4, True)


def test_one_that_has_its_place_again_keeps_weights_and_work_and_is_told_the_rest() -> None:
    story = Story().welcomed().hear(Weights(4), assign((4, 0)), assign((5, 1))).done((4, 0))
    story.hear(assign((4, 2)))
    story.hear(Refused("say Hello", False)).welcomed(resumed=True)
    assert story.all(Reset) == []
    assert story.said(Contribute) == [work((4, 0))]
    assert runs(story.hear(assign((4, 2)), assign((4, 0)), assign((5, 1)))) == []  # with the worker, done, and not here yet
    assert runs(story.done((4, 2)).hear(Weights(5))) == [((5, 1), 1, 5)]


def test_what_was_not_told_again_is_not_ours_any_more() -> None:
    story = Story().welcomed().hear(assign((4, 0))).hear(Refused("say Hello", False)).welcomed(resumed=True)
    assert runs(story.hear(Weights(4))) == []


def test_a_new_connection_means_hello_before_anybody_asks_for_it() -> None:
    story = Story().welcomed().hear(Weights(4))
    assert story.event(Opened(arrays=False)).tick().said(Hello)[0].held == 4


def test_a_result_of_an_earlier_attempt_does_not_end_the_one_that_runs() -> None:
    story = Story().welcomed().hear(Weights(4), assign((4, 0), 1))
    story.hear(Cancel((4, 0)), assign((4, 0), 2))
    assert runs(story) == [((4, 0), 2, 4)]
    assert runs(story.done((4, 0), 1).hear(assign((4, 0), 2))) == []  # told again, as after a new connection


def test_who_was_here_before_many_others_says_as_seldom_as_they_that_it_lives() -> None:
    story = Story().welcomed(patience=10.0).hear(Beat(0, beat=5.0))
    assert story.tick(after=4.9).said(Beat) == []
    assert story.tick(after=0.2).said(Beat) == [Beat(0)]
    assert story.tick(after=14.0).said(Hello) == []  # 4 beats are borne by now
    assert story.tick(after=1.0).tick(after=0.1).said(Hello)


# Arrays in pieces


def gathering(nbytes: int = 2 * LEAST) -> Story:
    """Weights 4 are told of, and the way is tried."""
    story = Story().welcomed().hear(Weights(4, (), nbytes))
    assert story.coming() == [((4,), nbytes)]
    assert story.said(Want) == [Want((4,), *PROBE)]
    return story.hear(Chunk((4,), *PROBE), after=0.001)


def test_weights_that_are_told_of_are_fetched_and_then_adopted() -> None:
    story, places = gathering(), []
    while not story.all(Adopt):
        [want] = story.said(Want)
        assert story.said(Have) == []
        story.hear(Chunk((4,), want.first, want.last), after=0.001)
        places += [stow.first for stow in story.all(Stow)]
    assert places == [0, LEAST]
    assert story.all(Adopt) == [Adopt(4)]
    assert story.said(Have) == [Have(4, 4)]


def test_weights_told_of_again_are_not_begun_again() -> None:
    story = gathering()
    story.hear(Chunk((4,), 0, LEAST), after=0.001).hear(Weights(4, (), 2 * LEAST))
    assert (story.coming(), story.said(Want)) == ([((4,), 2 * LEAST)], [])
    assert story.session.fetching.queue[0].fetch.left == LEAST
    assert story.hear(Chunk((4,), LEAST, 2 * LEAST)).all(Adopt) == [Adopt(4)]
    assert story.hear(Weights(4, (), 2 * LEAST)).said(Have) == [Have(4, 4)]  # here already


def test_newer_weights_take_the_place_of_those_that_are_coming() -> None:
    story = gathering().hear(Weights(5, (), 10))
    assert story.coming() == [((5,), 10)]
    assert story.hear(Chunk((4,), 0, LEAST)).effects == []
    assert story.hear(Chunk((5,), 0, 10)).all(Adopt) == [Adopt(5)]


def test_after_a_cut_the_rest_is_asked_for_again_and_the_coordinator_is_told() -> None:
    story = gathering()
    story.hear(Chunk((4,), 0, LEAST), after=0.001).event(Opened(arrays=True))
    assert story.said(Ready) == [Ready()]
    assert story.tick().said(Want) == [Want((4,), LEAST, 2 * LEAST)]


def test_a_line_that_opens_between_two_places_is_told_of_in_the_next() -> None:
    story = Story().welcomed().event(Opened(arrays=False)).event(Opened(arrays=True))
    assert story.said(Ready) == []
    assert story.welcomed().said(Ready) == [Ready()]
    assert story.event(Opened(arrays=False)).welcomed().said(Ready) == []


def test_what_was_gathered_is_good_for_as_long_as_the_coordinator_lives() -> None:
    story = gathering()
    story.hear(Chunk((4,), 0, LEAST), after=0.001).hear(Refused("say Hello", False)).welcomed()
    assert story.all(Reset) == [Reset()]
    assert story.hear(Weights(4, (), 2 * LEAST)).coming() == [((4,), 2 * LEAST)]
    assert story.said(Want) == [Want((4,), LEAST, 2 * LEAST)]  # the last one may have come when nobody knew us
    story = gathering()
    story.hear(Refused("say Hello", False)).tick()
    story.epoch = 2
    story.hear(Welcome("run", 0, 0.25, 10.0, "host", (), 1))
    assert story.hear(Weights(4, (), 2 * LEAST)).coming() == [((4,), 2 * LEAST)]
    assert story.session.fetching.queue[0].fetch.left == 2 * LEAST  # another coordinator's


def test_what_changed_is_added_to_the_weights_that_are_held() -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Weights(6, base=4))
    assert story.all(Adopt) == [Adopt(6, 4)]
    assert story.said(Have) == [Have(6, 4)]
    assert story.hear(Weights(6, base=4)).said(Have) == [Have(6, 4)]  # said again
    assert story.event(Decoded()).effects == []
    assert story.hear(Weights(6, base=4)).said(Have) == [Have(6, 6)]


def test_weights_that_changes_are_still_to_be_added_to_are_in_use() -> None:
    story = Story().welcomed().hear(Weights(4), assign((4, 0))).hear(Weights(5, base=4), assign((5, 0)))
    assert (runs(story), story.said(Have)) == ([((5, 0), 1, 5)], [Have(5, 4)])
    story.done((4, 0))
    story.hear(Weights(6)).tick(after=RIDES)
    assert story.said(Have) == [Have(6, 4)]  # the worker adds to 4 before the task that it begins now
    assert story.done((5, 0)).hear(Weights(7)).tick(after=RIDES).said(Have) == [Have(7, 7)]


def test_while_the_worker_has_many_changes_to_add_no_more_are_asked_for() -> None:
    story = Story().welcomed().hear(Weights(0))
    for version in range(1, BACKLOG // LEAST + 1):
        assert story.hear(Weights(version, base=version - 1)).said(Have) == [Have(version, 0)]
    version += 1
    assert (story.hear(Weights(version, base=version - 1)).said(Have), len(story.all(Adopt))) == ([], 1)
    assert story.event(Decoded()).said(Have) == [Have(version, version)]
    assert story.event(Decoded()).said(Have) == []
    assert story.hear(Weights(version + 1, base=version)).said(Have) == [Have(version + 1, version)]


def test_one_change_is_taken_however_large_and_whole_weights_need_no_adding() -> None:
    story = Story().welcomed().hear(Weights(0)).hear(Weights(1, (), 2 * BACKLOG, 0))
    while not story.all(Adopt):
        story.event(Tick(), after=0.03)
        for want in story.said(Want) or [Want((1, 0), 0, 0)]:
            story.hear(Chunk(want.what, want.first, want.last))
            if story.all(Adopt):
                break
    assert (story.all(Adopt), story.said(Have)) == ([Adopt(1, 0)], [])
    assert story.hear(Weights(2)).tick(after=RIDES).said(Have) == [Have(2, 2)]


def test_weights_that_rest_have_a_new_number_and_who_holds_others_asks_for_all() -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Weights(6, base=4))
    assert (story.all(Adopt), story.coming()) == ([Adopt(6, 4)], [])
    story.hear(Weights(9, base=7)).tick()
    assert story.all(Adopt) == []
    assert [hello.held for hello in story.said(Hello)] == [WHOLE]


def test_weights_that_came_another_way_end_the_fetching_of_older_ones() -> None:
    story = Story().welcomed().hear(Weights(0, (), 10))
    brief = replace(assign((4, 0)), brief="layout", nbytes=20)
    assert story.hear(Weights(4)).hear(brief).coming() == [((4, 0, 1), 20)]
    assert story.hear(Chunk((0,), 0, 10)).effects == []
    story = Story().welcomed().hear(Weights(7, (), 10))
    assert story.hear(Weights(4)).coming() == [((7,), 10)]  # a late word of an older version


def test_what_changed_is_fetched_by_its_own_name() -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Weights(6, (), 10, 4))
    assert (story.coming(), story.said(Want)) == ([((6, 4), 10)], [Want((6, 4), *PROBE)])
    story.hear(Chunk((6, 4), *PROBE), after=0.001)
    assert story.said(Want) == [Want((6, 4), 0, 10)]
    assert story.hear(Chunk((6,), 0, 10)).effects == []  # of the whole
    assert story.hear(Chunk((6, 4), 0, 10)).all(Adopt) == [Adopt(6, 4)]


@pytest.mark.parametrize("nbytes", [0, 10])
def test_who_is_told_what_changed_in_weights_that_are_not_here_asks_for_all(nbytes: int) -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Weights(7, (), nbytes, 6))
    assert (story.all(Adopt), story.coming(), story.said(Have)) == ([], [], [])
    [again] = story.tick().said(Hello)
    assert (again.held, again.epoch, again.greeting) == (-1, 1, 1)
    story.welcomed(resumed=True)
    assert story.hear(Weights(8)).all(Adopt) == [Adopt(8)]
    assert story.hear(Refused("say Hello", False)).tick().said(Hello)[0].held == 8


def test_what_changed_is_not_added_where_other_weights_came_meanwhile() -> None:
    story = Story().welcomed().hear(Weights(4)).hear(Weights(6, (), 10, 4))
    story.hear(Chunk((6, 4), *PROBE), after=0.001).hear(Weights(5))
    assert story.hear(Chunk((6, 4), 0, 10)).all(Adopt) == []
    assert story.tick().said(Hello)[0].held == -1


def test_what_is_wanted_of_a_task_is_given() -> None:
    assert Story().welcomed().hear(Want((4, 2, 65537), 10, 20)).all(Give) == [Give((4, 2), 65537, 10, 20)]
    for what in ((), (4,), (4, 2)):
        assert Story().welcomed().hear(Want(what, 10, 20)).effects == []


def test_an_older_attempt_is_not_begun_after_a_newer_one() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 0), attempt=2)).done((0, 0), attempt=2)
    assert runs(story.hear(assign((0, 0), attempt=1))) == []


def test_a_beat_is_said_when_nothing_else_was() -> None:
    story = Story().welcomed().hear(Weights(0)).tick(after=RIDES)
    assert story.tick(after=0.2).said(Beat) == []
    assert story.tick(after=0.06).said(Beat) == [Beat(0)]
    story.hear(assign((0, 0))).done((0, 0), after=0.2)
    assert story.tick(after=0.2).said(Beat) == []
    assert story.tick(after=0.06).said(Beat) == [Beat(1)]


def test_a_beat_names_the_task_that_the_worker_is_at() -> None:
    story = Story().welcomed().hear(Weights(0), assign((0, 1), attempt=3), assign((0, 0), attempt=2))
    assert story.tick(after=0.3).said(Beat) == [Beat(0, runs=(0, 1, 3))]
    assert story.done((0, 1), attempt=3).tick(after=0.3).said(Beat) == [Beat(1, runs=(0, 0, 2))]
    assert story.done((0, 0), attempt=2).tick(after=0.3).said(Beat) == [Beat(2)]


def test_a_person_is_told_that_nobody_answers() -> None:
    story = Story()
    assert story.tick(after=UNREACHED).all(Note) == []
    [note] = story.tick(after=0.1).all(Note)
    assert "tcp://there" in note.text
    assert story.tick(after=1.0).all(Note) == []
    assert len(story.tick(after=UNREACHED).all(Note)) == 1


def test_a_person_is_told_of_weights_that_stall_and_how_much_of_them_is_still_to_come() -> None:
    story = gathering(1_000_000)
    story.hear(Chunk((4,), 0, LEAST), after=1.0)
    for _ in range(10):
        story.hear(Beat(4), after=0.5)  # its other line goes on
        assert story.tick().all(Note) == []
    [note] = story.hear(Beat(4), after=0.1).tick().all(Note)
    assert note.text == "no piece came from tcp://there for 5 s; weights 4: 0.7 of 1.0 MB still to come"
    [note] = story.tick(after=UNREACHED + 0.1).all(Note)
    assert note.text.startswith("no answer from tcp://there")
    assert note.text.endswith("weights 4: 0.7 of 1.0 MB still to come")
    assert story.hear(Beat(4)).tick(after=1.0).all(Note) == []


def test_stop_ends_this_life() -> None:
    story = Story().welcomed().hear(Stop("done"))
    assert story.all(Leave) == [Leave("done")]
    assert len(story.said(Bye)) == 1  # or the coordinator would wait for a word
    assert story.hear(Weights(0)).effects == []


def test_one_without_a_place_that_is_told_to_stop_says_that_it_heard() -> None:
    story = Story().welcomed().event(Opened(False))
    assert len(story.tick().said(Hello)) == 1
    assert story.hear(Stop("done")).all(Leave) == [Leave("done")]
    assert len(story.said(Bye)) == 1


def test_who_leaves_says_so() -> None:
    story = Story().welcomed().event(Quit("told to stop"))
    assert story.said(Bye) == [Bye("told to stop")]
    assert story.all(Leave) == [Leave("told to stop")]
    unheard: Any = Story().event(Quit("told to stop"))
    assert unheard.all(Say) == []
