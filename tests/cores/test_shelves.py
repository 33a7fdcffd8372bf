"""Values that were put, on other machines: each machine is sent them once."""

from __future__ import annotations

import os

import numpy as np
import pytest

from shoal.actors.workers.store import Store, name_of
from shoal.protocol import values
from shoal.protocol.errors import ProtocolError
from shoal.protocol.plaincalls import Told, pack_answers, pack_brief, pack_call, read_answers, read_brief, read_lacks, read_told
from shoal.tasks.inputs import ONCE, Put, Seen, apart
from shoal.tasks.shelves import SOON, WAIT, Part, Shelves

HERE, THERE = ("host", "key"), ("other", "key")
HANDLE = [4_711, 5, 100, 6]


def parts(shelves: Shelves, session: bytes, names: list[str], now: float = 0.0, alive: str = "v w") -> list[Part]:
    return list(shelves.parts(session, HERE, names, alive.split(), now))


def test_a_machine_is_sent_a_value_once_and_its_other_actors_are_told_where_it_lies() -> None:
    shelves = Shelves()
    assert shelves.ready(b"a", HERE, ["v"], 0.0)
    assert not shelves.ready(b"b", HERE, ["v"], 0.0)
    assert shelves.ready(b"c", THERE, ["v"], 0.0)
    assert parts(shelves, b"a", ["v"]) == [Part("bytes", "v")]
    assert parts(shelves, b"a", ["v"]) == []
    assert not shelves.ready(b"b", HERE, ["v"], SOON + 0.1)
    shelves.told(b"a", HERE, [["v", *HANDLE]])
    assert shelves.ready(b"b", HERE, ["v"], SOON + 0.1)
    assert parts(shelves, b"b", ["v"]) == [Part("there", "v", tuple(HANDLE))]


def test_an_actor_that_ends_or_is_silent_for_long_holds_nobody_up() -> None:
    shelves = Shelves()
    assert shelves.ready(b"a", HERE, ["v"], 0.0)
    assert shelves.ready(b"b", HERE, ["v"], SOON)  # a was not given the call after all
    parts(shelves, b"b", ["v"], SOON)
    assert not shelves.ready(b"c", HERE, ["v"], WAIT)
    assert shelves.ready(b"c", HERE, ["v"], SOON + WAIT)
    shelves.told(b"b", HERE, [["v", *HANDLE]])
    shelves.keep({b"c"})
    assert parts(shelves, b"c", ["v"]) == [Part("bytes", "v")]


def test_a_value_that_nobody_holds_is_dropped_and_one_that_was_not_found_is_sent() -> None:
    shelves = Shelves()
    parts(shelves, b"a", ["v"])
    shelves.told(b"a", HERE, [["v", *HANDLE]])
    parts(shelves, b"b", ["v"])
    assert shelves.lacks(b"b", HERE, "v")
    assert parts(shelves, b"b", ["v"]) == [Part("bytes", "v")]
    assert not shelves.lacks(b"b", HERE, "v")  # it lies, or is of no use
    assert parts(shelves, b"a", ["w"], alive="w") == [Part("drop", "v"), Part("bytes", "w")]


@pytest.mark.parametrize("said", [None, 3, "v", [["v", 1]], [["v", 1, 2, 3, "4"]], [["w", *HANDLE]], [[]]])
def test_what_an_actor_says_in_another_form_or_of_what_it_was_not_sent_counts_for_nothing(said: object) -> None:
    shelves = Shelves()
    parts(shelves, b"a", ["v"])
    shelves.told(b"a", HERE, said)
    assert not shelves.ready(b"b", HERE, ["v"], 0.0)


def test_only_large_values_go_beside_their_call_and_stand_at_their_places_there() -> None:
    large, small = Put(np.arange(ONCE // 8), Seen()), Put([1, 2], Seen())
    its = apart((1, large, [small, large]), {"x": large, "y": (small,)})
    assert its.args == (1, None, [[1, 2], None])
    assert its.puts == (large,)
    data = pack_call("m:f", its.args, its.kwargs, its.places)
    assert len(data) < 1_000
    brief = pack_brief([(7, data)], [Told("bytes", large.name, large.plain), Told("drop", "old")])
    store = Store()
    assert store.take(read_told(brief)) == []
    [call] = [store.filled(one) for one in read_brief(brief)]
    assert call.args[0] == 1
    for found in (call.args[1], call.args[2][1], call.kwargs["x"]):
        np.testing.assert_array_equal(found, large.value)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 1
    assert (call.args[2][0], call.kwargs["y"]) == ([1, 2], ([1, 2],))
    again = Store()
    [row] = store.handles()
    assert row[:2] == [large.name, os.getpid()]
    assert again.take([Told("there", row[0], None, tuple(row[1:]))]) == []
    np.testing.assert_array_equal(again.filled(read_brief(brief)[0]).args[1], large.value)


def test_bytes_of_another_value_are_refused_wherever_they_come_from() -> None:
    store, data = Store(), np.frombuffer(values.pack([1, 2]), np.uint8)
    with pytest.raises(ProtocolError, match="under another value's name"):
        store.take([Told("bytes", "f" * 32, data)])
    assert store.take([Told("bytes", name_of(data), data)]) == []
    [row] = store.handles()
    assert Store().take([Told("there", "f" * 32, None, tuple(row[1:]))]) == ["f" * 32]
    assert Store().take([Told("there", row[0], None, (1, 2, 3, 4))]) == [row[0]]
    assert store.take([Told("drop", row[0])]) == []
    assert store.handles() == []


def test_what_is_lacked_is_said_and_a_call_that_names_no_place_is_refused() -> None:
    bundle = pack_answers((), ["v"])
    assert (read_answers(bundle), read_lacks(bundle)) == ([], ["v"])
    for places in ([["v", 3, -1]], [["v", 0, 0]], [["v", "x", -1]], [["v", -1, -1]], [["v", 0]]):
        with pytest.raises(ProtocolError, match="no place in its call"):
            read_brief(pack_brief([(1, pack_call("m:f", (1,), {}, places))]))  # type: ignore[arg-type]
    [call] = read_brief(pack_brief([(1, pack_call("m:f", (None,), {}, [("v", 0, -1)]))]))
    with pytest.raises(ProtocolError, match="has not sent"):
        Store().filled(call)
