"""Facts about objects as bytes between a program and its forks, and about what is said of an object that cannot travel."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shoal.protocol import trusted
from shoal.protocol.calls import Answer, Call, pack_answers, pack_calls, read_answers, read_calls
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Layout, run_of
from shoal.protocol.marks import SLOTS, Marks
from shoal.protocol.parent import forked
from shoal.protocol.trusted import LARGE, GoneError, opened, pack, pack_arguments, whole
from shoal.tasks.far import Far


@pytest.mark.parametrize("value", [None, 3, "text", (1, [2.5], {"a": b"x"}), SimpleNamespace(x=1), ValueError("no")])
def test_an_object_comes_back_as_it_was(value: object) -> None:
    parcel = pack(value)
    assert parcel.segment is None
    assert repr(opened(parcel.data)) == repr(value)


def test_large_arrays_lie_in_shared_memory_and_may_be_written_by_who_opens_them() -> None:
    first, second = np.arange(LARGE, dtype="f8"), np.arange(LARGE, dtype="i4").reshape(2, -1)[:, ::-1]
    parcel = pack({"first": first, "second": second, "small": np.ones(3)})
    assert parcel.segment is not None
    assert len(parcel.data) < 1_000 + second.nbytes  # an array that is not contiguous is in the pickle
    for _ in range(2):
        came = opened(parcel.data)
        assert all(np.array_equal(came[name], its) for name, its in [("first", first), ("second", second)])
        came["first"][0] = -1.0
    assert (first[0], parcel.nbytes > first.nbytes) == (0.0, True)


def test_without_shared_memory_large_arrays_travel_beside_the_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(nbytes: int, parts: object) -> None:
        raise UserError("no memory without a name here")

    monkeypatch.setattr(trusted.Beside, "create", none)
    a, b = np.arange(LARGE, dtype="f8"), np.arange(LARGE + 1, dtype="u1")
    parcel = pack([a, b])
    assert parcel.segment is None
    came = opened(parcel.data)
    assert all(np.array_equal(one, two) for one, two in zip(came, [a, b], strict=True))
    came[0][0] = 7.0


def test_a_parcel_can_be_made_whole_for_a_file() -> None:
    array = np.arange(2 * LARGE, dtype="f8")
    parcel = pack([array, array[::-1].copy(), "small"])
    data = whole(parcel.data)
    del parcel
    came = opened(data)
    assert np.array_equal(came[0], array)
    assert np.array_equal(came[1], array[::-1])
    assert (whole(data), whole(pack(3).data)) == (data, pack(3).data)


def test_an_argument_that_cannot_travel_is_named_by_its_path() -> None:
    model = SimpleNamespace(lock=threading.Lock(), name="m")
    with pytest.raises(UserError, match=r"^args\[1\]\.model\.lock cannot travel to another process: .*lock"):
        pack_arguments((1, SimpleNamespace(model=model)), {})
    with pytest.raises(UserError, match=r"^data\['b'\]\[0\] cannot travel"):
        pack_arguments((), {"data": {"a": 1, "b": [threading.Lock()]}})


def test_a_function_without_a_name_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(trusted.by_value(lambda x: x + 1).data)(2) == 3
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(UserError, match=r"define it in a file, or install shoal\[tasks\]"):
        pack(lambda x: x + 1)
    with pytest.raises(UserError, match=r"define it in a file, or install shoal\[tasks\]"):
        trusted.by_value(lambda x: x + 1)


def test_calls_and_answers_come_back_and_a_function_travels_once() -> None:
    calls = [Call(number, b"function" * 100, bytes([number])) for number in range(50)]
    bundle = pack_calls(calls)
    assert read_calls(bundle) == calls
    assert bundle.data.nbytes < 1_500
    answers = [Answer(0, False, b"x", 0.5, 1), Answer(2**40, True, b"", 0.0, 0)]
    assert read_answers(pack_answers(answers)) == answers


def test_the_digest_of_a_run_of_bytes_says_its_length() -> None:
    assert [run_of(Layout.run(nbytes).digest) for nbytes in (0, 1, 10**9)] == [0, 1, 10**9]
    wrong: list[Any] = ["", "bytes:", "bytes:-1", "bytes:01", "bytes: 1", "bytes:1_0", "bytes:²", "bytes:" + "9" * 16, "0a1b"]
    assert [run_of(digest) for digest in wrong] == [None] * len(wrong)


def test_a_mark_outlives_its_process() -> None:
    marks = Marks()

    def idle() -> None:
        marks.begin(3)

    def works() -> None:
        marks.begin(SLOTS + 4)
        marks.note(0, 7, 70)
        marks.note(0, 8, 2**40)
        os.kill(os.getpid(), 9)

    lazy, busy = forked(idle), forked(works)
    for pid in (lazy, busy):
        os.waitpid(pid, 0)
    assert (marks.ran(busy), marks.ran(lazy), marks.ran(os.getpid())) == ((0, 8, 2**40), (), ())


def test_a_parcel_whose_memory_is_gone_says_so() -> None:
    parcel = pack(np.zeros(LARGE))
    assert parcel.segment is not None
    parcel.segment.close()
    for read_it in (opened, whole):
        with pytest.raises(GoneError, match="shared memory"):
            read_it(parcel.data)


def test_an_answer_of_an_actor_that_does_not_trust_code_is_not_read_even_in_a_trusted_pool() -> None:
    actors = {b"session": SimpleNamespace(offers=())}
    pool: Any = SimpleNamespace(
        _pool=SimpleNamespace(plan=SimpleNamespace(given={0: SimpleNamespace(far=True, session=b"session")})),
        _door=SimpleNamespace(trusted=True),
        core=SimpleNamespace(facts=SimpleNamespace(roster=SimpleNamespace(actors=actors))),
    )
    unread: Any = object()
    with pytest.raises(ProtocolError, match="it did not say --trust-code"):
        Far._took(pool, 0, unread)
