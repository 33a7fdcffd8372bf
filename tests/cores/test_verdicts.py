"""Facts about the memory of verdicts: how long each is remembered, whether its actor is here or gone."""

from __future__ import annotations

from shoal.coordinator.deciding.verdicts import JUDGED, Verdicts
from shoal.protocol.messages import Failed, Verdict

A = b"session of a"


def said(verdicts: Verdicts, index: int, attempt: int = 1) -> str:
    """Of this attempt at task (0, index)."""
    found = verdicts.on(A, Failed((0, index), attempt, 0, "", "", ""))
    return found.verdict if found else ""


def judged(index: int, word: str = "accepted", attempt: int = 1, onto: int = -1) -> Verdict:
    return Verdict((0, index), attempt, word, "", onto)


def here(*remembered: Verdict, most: int = 0) -> Verdicts:
    verdicts = Verdicts(most)
    verdicts.join(A)
    for verdict in remembered:
        verdicts.remember(A, verdict)
    return verdicts


def test_each_attempt_has_a_verdict_of_its_own() -> None:
    verdicts = here(judged(0, attempt=2, onto=0), judged(0, "stale", attempt=3))
    assert [said(verdicts, 0, attempt) for attempt in (1, 2, 3)] == ["", "accepted", "stale"]


def test_of_what_an_actor_does_not_keep_the_last_few_are_remembered() -> None:
    verdicts = here(*(judged(index) for index in range(50)), most=2)
    assert [index for index in range(50) if said(verdicts, index)] == list(range(40, 50))
    assert JUDGED + 2 == 10


def test_all_that_is_in_no_snapshot_is_remembered_and_holds_up_the_forgetting_of_nothing_else() -> None:
    kept = [judged(index, onto=1) for index in range(50)]
    verdicts = here(*kept, *(judged(index, "stale") for index in range(50, 100)))
    assert [index for index in range(100) if said(verdicts, index)] == [*range(50), *range(100 - JUDGED, 100)]
    verdicts.forget(2)
    verdicts.remember(A, judged(50, onto=2))
    assert [index for index in range(51) if said(verdicts, index)] == list(range(51 - JUDGED, 51))


def test_who_is_gone_and_comes_back_is_told_of_what_it_keeps() -> None:
    verdicts = here(judged(0, onto=0), judged(1, onto=1), judged(2, "stale"))
    verdicts.part(A)
    verdicts.remember(A, judged(3, onto=1))  # it was with the learner
    verdicts.remember(A, judged(4))
    verdicts.forget(1)
    verdicts.join(A)
    assert [index for index in range(5) if said(verdicts, index)] == [1, 3]


def test_of_who_is_gone_nothing_is_left_once_a_snapshot_holds_it_all() -> None:
    verdicts = here(judged(0, onto=0))
    verdicts.part(A)
    verdicts.forget(1)
    assert (verdicts.last, verdicts.accepted) == ({}, {})
