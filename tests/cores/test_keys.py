"""Keys on disk, the list of those let in, budgets, and what counts as this machine. No sockets."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Admit, Heard, Send
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.reports import Report
from shoal.protocol.budget import Buckets, Budget
from shoal.protocol.callers import Callers
from shoal.protocol.door import check_bind, check_connect, client_keys, is_local, server_keys
from shoal.protocol.errors import UserError, printable
from shoal.protocol.keys import Allowed, KeyFolder, Pair, parse, public_of
from shoal.protocol.messages import PROTOCOL, Beat, Bye, Contribute, Envelope, Failed, Have, Hello, Refused

ALICE, BOB = "a" * 64, "b" * 64


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Pairs


def test_a_pair_is_curves(folder: KeyFolder) -> None:
    pair = folder.new("laptop")
    assert zmq.curve_public(z85.encode(bytes.fromhex(pair.secret))) == z85.encode(bytes.fromhex(pair.public))
    assert folder.pair("laptop") == pair
    assert folder.public("laptop") == pair.public
    assert pair.secret not in repr(pair)


def test_nobody_else_can_read_what_is_written(folder: KeyFolder) -> None:
    old = os.umask(0)
    try:
        pair = folder.new("laptop")
        folder.allow(pair.public)
    finally:
        os.umask(old)
    assert mode(folder.path) == 0o700
    assert {path.name: mode(path) for path in folder.path.iterdir()} == {
        "laptop.key": 0o600,
        "laptop.pub": 0o600,
        "allowed": 0o600,
    }


def test_a_pair_is_never_written_over(folder: KeyFolder) -> None:
    pair = folder.new("laptop")
    with pytest.raises(UserError, match="exists already"):
        folder.new("laptop")
    assert folder.pair("laptop") == pair


def test_a_secret_that_others_can_read_is_not_used(folder: KeyFolder) -> None:
    folder.new("laptop")
    (folder.path / "laptop.key").chmod(0o640)
    with pytest.raises(UserError, match=r"can be read by others \(mode 640\): chmod 600 "):
        folder.pair("laptop")


def test_a_folder_that_others_can_enter_is_not_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(UserError, match=r"open to others \(mode 755\): chmod 700"):
        KeyFolder(tmp_path).new("laptop")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_secret_is_told(folder: KeyFolder) -> None:
    folder.new("laptop")
    (folder.path / "laptop.key").write_text("00")
    with pytest.raises(UserError, match=r"laptop\.key holds no key"):
        folder.pair("laptop")


@pytest.mark.parametrize("ruin", [lambda path: path.write_bytes(b"\xff\xfe\x00"), lambda path: (path.unlink(), path.mkdir())])
def test_a_public_key_that_cannot_be_read_is_told_in_one_line(folder: KeyFolder, ruin: Callable[[Path], Any]) -> None:
    folder.new("laptop")
    ruin(folder.path / "laptop.pub")
    for reader in (lambda: folder.public("laptop"), lambda: folder.allow(BOB)):
        with pytest.raises(UserError, match=r"laptop\.pub (is not text|cannot be read \(Is a directory\)).* remove it") as told:
            reader()
        assert "\n" not in str(told.value)


def test_an_unknown_name_is_answered_with_the_nearest(folder: KeyFolder) -> None:
    folder.new("laptop")
    with pytest.raises(UserError, match=r"key labtop is not in .* \(is it laptop\?\): make it with `shoal keys new labtop`"):
        folder.pair("labtop")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\n", "-x", "x" * 33, "é", "a b", "a\0"])
def test_a_name_that_is_no_name_makes_no_file(folder: KeyFolder, name: str) -> None:
    for refused in (folder.new, folder.pair):
        with pytest.raises(UserError, match="a key's name is"):
            refused(name)
    with pytest.raises(UserError, match="a key's name is"):
        folder.allow(ALICE, name or " ")
    assert not folder.path.exists()


def test_a_public_key_is_read_in_both_forms() -> None:
    raw, _ = zmq.curve_keypair()
    digits = z85.decode(raw).hex()
    assert public_of(raw.decode()) == public_of(digits) == public_of(digits.upper()) == digits


@pytest.mark.parametrize(
    "text", ["", "x", "a" * 63, "a" * 65, "g" * 64, " " * 40, "é" * 40, '"' * 40, "#" * 40, "a" * 64 + "\n"]
)
def test_what_is_no_public_key_is_refused_in_one_line(folder: KeyFolder, text: str) -> None:
    with pytest.raises(UserError, match="is not a public key") as refused:
        folder.allow(text)
    assert "\n" not in str(refused.value)


@given(st.text(max_size=80))
def test_no_text_at_all_makes_public_of_fail_otherwise(text: str) -> None:
    try:
        assert len(public_of(text)) == 64
    except UserError as refused:
        assert str(refused).isprintable()  # noqa: PT017


# The list


def test_a_key_is_let_in_and_shut_out(folder: KeyFolder) -> None:
    assert folder.allow(ALICE, "alice") == "alice"
    assert folder.allow(BOB) == "key-bbbbbbbb"
    assert folder.allowed() == {ALICE: "alice", BOB: "key-bbbbbbbb"}
    assert folder.revoke("alice") == ALICE
    assert folder.revoke(BOB) == BOB
    assert folder.allowed() == {}


def test_a_key_is_on_the_list_once(folder: KeyFolder) -> None:
    folder.allow(ALICE, "alice")
    assert folder.allow(ALICE) == "alice"
    assert folder.allow(ALICE.upper(), "eve") == "eve"
    assert folder.allowed() == {ALICE: "eve"}


def test_a_name_stands_for_one_key(folder: KeyFolder) -> None:
    folder.allow(ALICE, "alice")
    with pytest.raises(UserError, match="name alice is another key's"):
        folder.allow(BOB, "alice")


def test_ones_own_key_has_its_own_name_on_the_list(folder: KeyFolder) -> None:
    assert folder.allow(folder.new("laptop").public) == "laptop"


@pytest.mark.parametrize(
    ("who", "says"), [("alize", r"\(is it alice\?\)"), (BOB, "is not on the list"), ("?" * 50, "is not a public key")]
)
def test_who_is_not_on_the_list_cannot_be_shut_out(folder: KeyFolder, who: str, says: str) -> None:
    folder.allow(ALICE, "alice")
    with pytest.raises(UserError, match=says):
        folder.revoke(who)
    assert folder.allowed() == {ALICE: "alice"}


def test_a_list_that_others_can_change_is_not_used(folder: KeyFolder) -> None:
    folder.allow(ALICE, "alice")
    folder.allowed_path.chmod(0o620)
    with pytest.raises(UserError, match="can be changed by others"):
        folder.allowed()


def test_a_line_that_is_neither_is_told_with_its_number(folder: KeyFolder) -> None:
    folder.allow(ALICE, "alice")
    with folder.allowed_path.open("a") as file:
        file.write(f"\n# bob comes later\n{BOB} bob junior\n")
    assert parse(folder.allowed_path.read_text()) == ({ALICE: "alice"}, [4])
    with pytest.raises(UserError, match="line 4"):
        folder.allowed()


def test_the_list_is_read_again_when_it_changes_but_not_at_every_look(folder: KeyFolder) -> None:
    folder.allow(ALICE, "alice")
    allowed = Allowed(folder.allowed_path, {BOB: "own"})
    assert ALICE not in allowed  # nobody is let in before the first look
    assert allowed.refresh(100.0) == set()
    assert {ALICE, BOB} == {key for key in (ALICE, BOB, "c" * 64) if key in allowed}
    folder.revoke("alice")
    assert allowed.refresh(100.4) == set()
    assert ALICE in allowed
    assert allowed.refresh(100.6) == {ALICE}
    assert ALICE not in allowed
    assert BOB in allowed
    assert allowed.name(ALICE) == "alice"  # for a report of what it still tries


@pytest.mark.parametrize("harm", ["unlink", "write_garbage", "chmod"])
def test_a_list_that_cannot_be_trusted_lets_nobody_in(folder: KeyFolder, harm: str) -> None:
    folder.allow(ALICE, "alice")
    allowed = Allowed(folder.allowed_path)
    allowed.refresh(0.0)
    match harm:
        case "unlink":
            folder.allowed_path.unlink()
        case "write_garbage":
            folder.allowed_path.write_bytes(b"\xff\xfe" + folder.allowed_path.read_bytes())
        case "chmod":
            folder.allowed_path.chmod(0o602)
    assert allowed.refresh(1.0) == {ALICE}
    assert ALICE not in allowed


def test_the_folder_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "mine"))
    assert KeyFolder().path == tmp_path / "mine"
    monkeypatch.delenv("SHOAL_KEYS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert KeyFolder().path == tmp_path / ".config" / "shoal"


def test_a_coordinators_own_actors_are_let_in_without_being_on_the_list(folder: KeyFolder) -> None:
    folder.new("hub")
    keys, again = server_keys(folder, "hub"), server_keys(folder, "hub")
    assert keys.own.public in keys.allowed
    assert keys.own != again.own  # drawn anew each time
    assert client_keys(folder, "hub", "hub").server == keys.pair.public


# Budgets


def test_what_was_saved_up_can_be_spent_at_once_and_no_more() -> None:
    buckets = Buckets(Budget(bytes=1e9, messages=10, seconds=2))
    assert [buckets.take("a", 1, 0.0) for _ in range(25)] == [True] * 20 + [False] * 5
    assert [buckets.take("a", 1, 0.5) for _ in range(6)] == [True] * 5 + [False]
    assert sum(buckets.take("a", 1, 100.0) for _ in range(50)) == 20


def test_bytes_are_counted_as_well() -> None:
    buckets = Buckets(Budget(bytes=100, messages=1e9, seconds=1))
    assert [buckets.take("a", 60, 0.0), buckets.take("a", 60, 0.0), buckets.take("a", 60, 0.2)] == [True, False, True]


def test_a_message_larger_than_all_that_can_be_saved_passes_and_leaves_a_debt() -> None:
    buckets = Buckets(Budget(bytes=100, messages=1e9, seconds=1))
    assert buckets.take("a", 1_000, 0.0)
    assert not buckets.take("a", 1, 8.9)
    assert buckets.take("a", 1, 9.1)


def test_a_second_is_a_second_however_late_it_is() -> None:
    for budget, size in ((Budget(bytes=100, messages=1e9, seconds=4), 100), (Budget(bytes=1e9, messages=1, seconds=4), 1)):
        buckets = Buckets(budget)
        assert sum(buckets.take("a", size, 1_000.0) for _ in range(9)) == 4
        assert sum(buckets.take("a", size, 1_002.0) for _ in range(9)) == 2


def test_only_the_keys_heard_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.protocol.budget.KEYS", 2)
    buckets = Buckets(Budget(bytes=1e9, messages=1, seconds=1))
    assert [buckets.take(key, 1, 0.0) for key in "abba"] == [True, True, False, False]
    assert buckets.take("c", 1, 0.0)  # b, heard longest ago, is forgotten
    assert [buckets.take(key, 1, 0.0) for key in "ca"] == [False, False]


def test_nobody_pays_for_another() -> None:
    buckets = Buckets(Budget(bytes=1e9, messages=1, seconds=1))
    assert buckets.take("a", 1, 0.0)
    assert not buckets.take("a", 1, 0.0)
    assert buckets.take("b", 1, 0.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 50)), max_size=60))
def test_no_schedule_passes_more_than_the_budget(schedule: list[tuple[float, int]]) -> None:
    budget = Budget(bytes=100, messages=5, seconds=2)
    buckets = Buckets(budget)
    times = list(itertools.accumulate(wait for wait, _ in schedule))
    passed = [size for now, (_, size) in zip(times, schedule, strict=True) if buckets.take("a", size, now)]
    seconds = budget.seconds + (times[-1] - times[0] if times else 0)
    assert len(passed) <= budget.messages * seconds + 1e-6
    assert sum(passed) <= budget.bytes * seconds + 1e-6


# What counts as this machine


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5555", "tcp://127.8.8.8:*", "tcp://localhost:1", "tcp://[::1]:5555", "ipc:///tmp/hub"]
)
def test_this_machine_needs_no_key(address: str) -> None:
    assert is_local(address)
    check_bind(address, None)
    check_connect(address, None)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5555",
        "tcp://*:5555",
        "tcp://10.0.0.1:5555",
        "tcp://[::]:5555",
        "tcp://eth0:5555",
        "tcp://127.0.0.1.example.org:5555",
        "tcp://128.0.0.1:5555",
        "tcp://localhost.example.org:5555",
        "tcp://127.0.0.1;10.0.0.1:5555",
        "tcp://:5555",
        "tcp://5555",
    ],
)
def test_what_others_can_reach_needs_one(address: str, folder: KeyFolder) -> None:
    assert not is_local(address)
    with pytest.raises(UserError, match=r"`shoal keys new NAME` and give --key NAME, or bind tcp://127\.0\.0\.1:PORT"):
        check_bind(address, None)
    with pytest.raises(UserError, match="give --key NAME --server PUBLIC"):
        check_connect(address, None)
    folder.new("hub")
    check_bind(address, server_keys(folder, "hub"))
    check_connect(address, client_keys(folder, "hub", "hub"))


@pytest.mark.parametrize("address", ["udp://127.0.0.1:1", "ws://127.0.0.1:1", "inproc://x", "pgm://eth0;239.0.0.1:1", ""])
def test_other_ways_are_not_taken_even_with_a_key(address: str, folder: KeyFolder) -> None:
    folder.new("hub")
    for check in (lambda: check_bind(address, server_keys(folder, "hub")), lambda: check_connect(address, None)):
        with pytest.raises(UserError, match=r"give tcp://HOST:PORT or ipc://PATH"):
            check()


# A session is its key's


class Talk:
    """A core that hears messages under keys."""

    def __init__(self) -> None:
        self.core = Core(Stream(1, 9), Goal(versions=9), Bounds())
        self.effects: list[object] = []

    def hear(self, peer: bytes, session: bytes, message: object, user: str) -> list[object]:
        envelope = Envelope(session, self.core.facts.epoch, message)  # type: ignore[arg-type]
        self.effects = list(self.core.handle(Heard(peer, envelope, user=user), 1.0))
        return self.effects

    def join(self, peer: bytes, session: bytes, user: str) -> Talk:
        self.hear(peer, session, Hello(PROTOCOL, session.decode(), "", 1, ()), user)
        return self


@pytest.mark.parametrize(
    "message",
    [
        Hello(PROTOCOL, "thief", "", 1, ()),
        Beat(7),
        Have(0),
        Bye("gone"),
        Failed((0, 0), 1, 0, "run", "no", ""),
        Contribute((0, 0), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0),
    ],
    ids=lambda message: type(message).__name__,
)
@pytest.mark.parametrize("peer", [b"alice's", b"another"])
@pytest.mark.parametrize("user", [BOB, ""])
def test_nobody_speaks_for_anothers_session(message: object, peer: bytes, user: str) -> None:
    talk = Talk().join(b"alice's", b"alice", ALICE)
    before = dict(talk.core.facts.ledger.leases), talk.core.facts.roster.actors[b"alice"].progress
    assert before[0]
    effects = talk.hear(peer, b"alice", message, user)
    assert (dict(talk.core.facts.ledger.leases), talk.core.facts.roster.actors[b"alice"].progress) == before
    assert talk.core.facts.roster.actors[b"alice"].peer == b"alice's"
    assert talk.core.facts.ledger.counts.heard == 0
    assert [type(effect) for effect in effects] == [Send, Report]
    assert isinstance(effects[0], Send)
    assert isinstance(effects[0].envelope.message, Refused)
    assert effects[0].peer == peer


def test_a_session_goes_on_over_another_connection_of_the_same_key() -> None:
    talk = Talk().join(b"first", b"alice", ALICE).join(b"second", b"alice", ALICE)
    assert talk.core.facts.roster.actors[b"alice"].peer == b"second"
    assert any(isinstance(effect, Admit) for effect in talk.effects)


def test_a_session_is_free_again_when_its_actor_has_left() -> None:
    talk = Talk().join(b"first", b"alice", ALICE)
    talk.hear(b"first", b"alice", Bye("done"), ALICE)
    talk.join(b"second", b"alice", BOB)
    assert talk.core.facts.roster.actors[b"alice"].user == BOB


# A peer's words


def test_a_peers_words_cannot_move_the_cursor_or_forge_a_line() -> None:
    assert printable("plain é", 64) == "plain é"
    assert printable("a\x1b[2Jb\r\nINFO fine\x00\u202e", 64) == "a\\x1b[2Jb\\r\\nINFO fine\\x00\\u202e"
    assert printable("x" * 100, 5) == "xxxxx..."


def test_a_name_is_told_without_its_control_characters() -> None:
    talk = Talk()
    talk.hear(b"p", b"s", Hello(PROTOCOL, "evil\n\x1b[31mroot joined", "", 1, ()), "")
    told = [effect.text for effect in talk.effects if isinstance(effect, Report)]
    assert told == ["evil\\n\\x1b[31mroot joined joined as actor 0"]


@given(st.text(max_size=300), st.integers(0, 200))
def test_whatever_a_peer_says_is_one_printable_line(text: str, most: int) -> None:
    assert printable(text, most).isprintable()


def test_a_pair_of_its_own_is_new_each_time() -> None:
    assert len({Pair.new().secret for _ in range(5)}) == 5


def test_connections_of_a_key_are_counted_from_its_handshake_to_its_end() -> None:
    callers = Callers()
    for descriptor in (5, 6, 7):
        callers.began(descriptor)
        callers.let_in("a")
    assert callers.many("a") == 3
    callers.spoke("a", 5)
    callers.spoke("a", 5)
    assert (callers.many("a"), callers.many("b")) == (3, 0)
    callers.ended(6)  # it said nothing
    assert callers.many("a") == 2
    callers.ended(5)
    assert callers.many("a") == 1
    callers.ended(7)
    assert callers.many("a") == 0


def test_connections_that_come_and_go_without_a_word_are_counted_once_they_are_here() -> None:
    callers = Callers()
    for _ in range(1_000):
        callers.began(5)
        callers.let_in("a")
        callers.ended(5)
    assert callers.many("a") == 0
    for descriptor in range(4):  # of strangers, or of keys that have said nothing so far
        callers.began(descriptor)
    assert callers.many("a") == 0
    callers.let_in("a")
    assert callers.many("a") == 1


def test_a_descriptor_that_is_used_again_is_its_new_owners() -> None:
    callers = Callers()
    callers.began(5)
    callers.let_in("a")
    callers.ended(5)
    callers.began(5)
    callers.let_in("b")
    callers.spoke("a", 5)  # read late: this message came before the end
    callers.spoke("b", 5)
    assert (callers.many("a"), callers.many("b")) == (0, 1)
    callers.ended(5)
    assert (callers.many("a"), callers.many("b")) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.booleans()), max_size=80))
def test_no_key_has_fewer_connections_than_are_counted_when_all_have_spoken(schedule: list[tuple[str, int, bool]]) -> None:
    callers, here = Callers(), dict[int, str]()
    for key, descriptor, speaks in schedule:
        if descriptor in here:
            del here[descriptor]
            callers.ended(descriptor)
        elif speaks:
            here[descriptor] = key
            callers.began(descriptor)
            callers.let_in(key)
            callers.spoke(key, descriptor)
        else:  # it ended before its first message was read
            callers.began(descriptor)
            callers.let_in(key)
            callers.ended(descriptor)
            callers.spoke(key, descriptor)
    assert {key: callers.many(key) for key in "ab"} == {key: list(here.values()).count(key) for key in "ab"}
