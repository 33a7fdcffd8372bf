"""Nothing in and nothing out for strangers, over real sockets on loopback; and a gateway that dies costs a reconnect."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from shoal.actors.effects import Leave
from shoal.actors.loop import Actor
from shoal.coordinator.deciding import core
from shoal.faults import liars, strangers
from shoal.faults.patient import ended, wait_until
from shoal.faults.strangers import CASES, INTRUSION, LIMIT, PING, READ, Site, attempt, frame, greeting, ready
from shoal.jobs import catalog
from shoal.protocol import door, front, gate, keys
from shoal.protocol.budget import Budget
from shoal.protocol.codec import Terms, encode, pack_welcome
from shoal.protocol.door import client_keys
from shoal.protocol.errors import UserError
from shoal.protocol.front import PIECE
from shoal.protocol.gate import CONFIG
from shoal.protocol.gateway import Gateway
from shoal.protocol.layout import Layout
from shoal.protocol.link import Arrival, Hub, Line
from shoal.protocol.messages import Beat, Chunk, Envelope, Hello, Want, Weights, Welcome
from shoal.protocol.pipe import Pipe
from shoal.runs import living

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**options: Any) -> Site:
        folder = tmp_path / str(len(made))
        folder.mkdir(mode=0o700)
        made.append(Site(folder, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# The matrix


@pytest.mark.parametrize("gateway", [False, True], ids=["hub", "gateway"])
@pytest.mark.parametrize("name", CASES)
def test_strangers_get_nothing_in_and_nothing_out(name: str, gateway: bool, tmp_path: Path) -> None:
    found = attempt(name, tmp_path, gateway=gateway)
    assert (found.came_in, found.went_out, found.honest) == (0, 0, True), found.told


Plant = Callable[[pytest.MonkeyPatch], None]


def lets_all_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keys.Allowed, "__contains__", lambda self, public: True)


def looks_at_the_handshake_only(patch: pytest.MonkeyPatch) -> None:
    judge = door.Door.judge

    def mild(self: door.Door, peer: bytes, frames: list[Any]) -> Any:
        user, _ = judge(self, peer, frames)
        self._users[peer] = user
        return user, None

    patch.setattr(door.Door, "judge", mild)


def looks_at_what_comes_in_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(door.Door, "opens_to", lambda self, peer: True)


def trusts_any_list(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keys.Allowed, "_listed", lambda self: keys.parse(self.path.read_text())[0])


def keeps_a_lost_list(patch: pytest.MonkeyPatch) -> None:
    marked = keys.Allowed._marked
    patch.setattr(keys.Allowed, "_marked", lambda self: marked(self) or self._mark)


def open_when_nobody_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(zmq, "ZAP_ENFORCE_DOMAIN", zmq.TCP_KEEPALIVE)


def hands_over(patch: pytest.MonkeyPatch) -> None:
    opened, handover = front.opened, zmq.ROUTER_HANDOVER

    def generous(*arguments: Any) -> Any:
        made = opened(*arguments)
        made.setsockopt(handover, 1)
        return made

    patch.setattr(front, "opened", generous)
    patch.setattr(zmq, "ROUTER_HANDOVER", zmq.TCP_KEEPALIVE)


def asks_for_no_key(patch: pytest.MonkeyPatch) -> None:
    made = Site.__init__
    patch.setattr(Site, "__init__", lambda self, folder, **options: made(self, folder, **{**options, "keys": False}))


def shows_no_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(strangers, "ClientKeys", lambda *words: None)


def any_key_for_any_session(patch: pytest.MonkeyPatch) -> None:
    hear = core._hear

    def credulous(facts: Any, event: Any) -> Any:
        actor = facts.roster.actors.get(event.envelope.session)
        if actor:
            event = type(event)(actor.peer, event.envelope, event.fault, actor.user)
        return hear(facts, event)

    patch.setattr(core, "_hear", credulous)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (lets_all_in, "unknown_key"),
        (lets_all_in, "revoked_before"),
        (looks_at_the_handshake_only, "revoked_and_speaks"),
        (looks_at_what_comes_in_only, "revoked_and_listens"),
        (trusts_any_list, "list_forged"),
        (keeps_a_lost_list, "list_lost"),
        (open_when_nobody_answers, "nobody_answers"),
        (hands_over, "squatted_routing_id"),
        (asks_for_no_key, "no_key"),
        (asks_for_no_key, "null_handshake"),
        (shows_no_key, "plain_server"),
        (any_key_for_any_session, "anothers_session"),
    ],
)
def test_a_hole_in_the_door_is_found(plant: Plant, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for each in range(5):  # what comes in within a moment comes in later on a busy machine
        folder = tmp_path / str(each)
        folder.mkdir()
        try:
            found = attempt(name, folder, gateway=False)
        except AssertionError:
            return
        if (found.came_in, found.went_out, found.honest) != (0, 0, True):
            return
    pytest.fail(f"{name}: no hole was found")


def test_a_key_is_out_within_a_second(site: Callable[..., Site]) -> None:
    here = site(gateway=True)
    strangers.revoked_and_speaks(here)
    assert [float(text.split()[2]) < 1.0 for text in here.told if text.startswith("revoked within")] == [True]


# Saying what is wrong


def notes(line: Line, site: Site) -> list[str]:
    found: list[Arrival] = []
    site.pump(lambda: bool(found.extend(line.drain()) or any(not one.envelope for one in found)))
    return [one.fault for one in found if not one.envelope]


def test_a_refused_actor_is_told_what_to_type_and_comes_in_once_that_is_done(site: Callable[..., Site]) -> None:
    here = site(gateway=False)
    line = here.line("mallory")
    public = here.pairs["mallory"].public
    typed = f"shoal keys allow {public}"
    line.send(PING)
    [note] = notes(line, here)
    assert note.startswith(f"{here.wire.address} does not let this key in: on its machine, type `{typed}` (or the key has too")
    assert here.told == [
        f"access: refused '127.0.0.1': key {public} is not on the list; to let it in: shoal keys allow {public}"
    ]
    here.folder.allow(public, "mallory")
    assert here.exchange(line)


class Threaded:
    """A thread in the place of a gateway process."""

    pid = -1

    def __init__(self, live: Callable[[], None]) -> None:
        self.thread = threading.Thread(target=live)
        self.thread.start()

    def kill(self) -> None: ...

    def wait(self, seconds: float = LIMIT) -> int:
        self.thread.join(seconds)
        return 0


class Beside(Gateway):
    """A gateway whose process is a thread of this one, so that its bounds can be others."""

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self.front: list[front.Front] = []
        self._process: Any = Threaded(lambda: self._live(Pipe(theirs, sys.maxsize)))
        self._pipe = Pipe(ours, 2 * PIECE)
        config = self._config()
        config["listener"] = os.dup(config["listener"])  # ZeroMQ closes it
        self._pipe.put([CONFIG, json.dumps(config).encode()])
        self._waiting.poller.register(ours.fileno(), zmq.POLLIN)
        self._began, self._looked_at, self._again_at, self._silence = self._clock(), self._clock(), float("inf"), -LIMIT
        self._pipe.flush()

    def _live(self, pipe: Pipe) -> None:
        made = gate.configured(pipe)
        pipe.flush()
        assert made
        self.front.append(made.front)
        made.live()
        pipe.close()


@pytest.mark.parametrize("gateway", [False, True], ids=["hub", "gateway"])
def test_a_key_has_only_so_many_connections_and_gets_others_as_these_end(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, gateway: bool
) -> None:
    monkeypatch.setattr(door, "CONNECTIONS", 3)
    monkeypatch.setattr(gate, "limit_memory", lambda more: None)
    monkeypatch.setattr(strangers, "Gateway", Beside)
    here = site(gateway=gateway)
    first, second = here.line("bob"), here.line("bob")
    assert here.exchange(first)
    assert here.exchange(second)
    with strangers.intruder(here, lambda made: door.dress(made, client_keys(here.folder, "bob", "hub"))):
        held = here.wire.front[0] if isinstance(here.wire, Beside) else here.wire.front if isinstance(here.wire, Hub) else None
        assert held
        assert held.door
        callers, bob = held.door.callers, here.pairs["bob"].public
        assert here.pump(lambda: callers.many(bob) == 3)  # this one is let in, and says nothing
        third = here.line("bob")
        third.send(PING)
        assert "too many connections" in notes(third, here)[0]
        assert here.honest()
    assert any("3 connections here, and a key may have no more: end actors" in text for text in here.told)
    assert here.exchange(third)  # the silent one is gone


def test_a_connection_that_speaks_in_the_turn_that_lets_it_in_is_counted(site: Callable[..., Site]) -> None:
    here = site(gateway=False)
    held = front.Front("tcp://127.0.0.1:*", here.keys, time.monotonic)
    line = Line(held.address, client_keys(here.folder, "bob", "hub"))
    try:
        assert held.door
        line.send(PING)
        door_ = held.door

        def came() -> bool:
            door_.answer()  # as if the turn had looked at ZeroMQ's own events before the connection began
            return isinstance(held.take(), front.Came)

        wait_until(came)
        assert door_.callers.many(here.pairs["bob"].public) == 1
        list(held.knocks())
        assert door_.callers.many(here.pairs["bob"].public) == 1
    finally:
        line.close()
        held.close(0)


def test_an_actor_without_a_key_is_told_that_one_is_asked_for(site: Callable[..., Site]) -> None:
    here = site(gateway=False)
    line = Line(here.wire.address)
    here._lines.append(line)
    line.send(PING)
    assert notes(line, here)[0].endswith("give --key NAME --server PUBLIC; trying on")


def test_an_actor_that_expects_another_coordinator_is_told(site: Callable[..., Site]) -> None:
    here = site(gateway=False)
    line = Line(here.wire.address, client_keys(here.folder, "alice", "bob"))
    here._lines.append(line)
    assert "does not prove to be the coordinator that --server names" in notes(line, here)[0]


def test_a_refused_actor_knocks_less_and_less_often(site: Callable[..., Site]) -> None:
    here = site(gateway=False)
    now = [0.0]
    line = Line(here.wire.address, client_keys(here.folder, "mallory", "hub"), lambda: now[0])
    opened_at = []
    for _ in range(5):
        before = line._opened
        assert here.pump(lambda: not list(line.drain()) and line._again_at < float("inf"))
        wait = line._again_at - now[0]
        now[0] = line._again_at
        list(line.drain())
        assert line._opened == before + 1
        opened_at.append(wait)
    assert opened_at == [0.5, 1.0, 2.0, 4.0, 8.0]
    line.close()


@pytest.mark.parametrize("made", [Hub, Gateway])
def test_a_bind_that_others_can_reach_is_refused_without_keys(made: type[Hub] | type[Gateway]) -> None:
    with pytest.raises(UserError, match="give --key NAME"):
        made("tcp://0.0.0.0:*")


@pytest.mark.parametrize("made", [Hub, Gateway])
def test_an_address_in_use_is_told(made: type[Hub] | type[Gateway]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="is in use: stop what runs there"):
        made(f"tcp://127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("gateway", [False, True], ids=["hub", "gateway"])
def test_an_actor_whose_key_is_revoked_is_told_and_leaves(site: Callable[..., Site], gateway: bool) -> None:
    here = site(gateway=gateway)
    said: list[Any] = []
    here.hears = lambda arrival: said.append(arrival.envelope)
    where, theirs = here.wire.address, client_keys(here.folder, "bob", "hub")
    nobody: Any = None
    life = Actor(where, nobody, name="bob", session=b"bobs", clock=time.monotonic, say=said.append, keys=theirs)
    left: list[Leave] = []
    thread = threading.Thread(target=lambda: left.append(life.live()), daemon=True)
    thread.start()
    assert here.pump(lambda: bool(said))
    here.folder.revoke("bob")
    assert here.pump(lambda: bool(left))
    assert (left[0].failed, left[0].reason) == (True, "its key was revoked: the coordinator's user took it off the list")


@pytest.mark.parametrize("way", ["layout", "weights"])
def test_an_actor_takes_no_more_memory_than_its_machine_has_whatever_the_coordinator_says(
    site: Callable[..., Site], way: str
) -> None:
    here = site(gateway=False)
    layout = Layout.of({"w": ("f4", (1 << (38 if way == "layout" else 4),))})

    def answer(arrival: Arrival) -> None:
        said, peer = arrival.envelope, arrival.peer
        if said and isinstance(said.message, Hello):
            welcome = Welcome("run", 0, 0.25, 10.0, "", (), said.message.greeting)
            here.wire.send(peer, Envelope(said.session, 1, welcome), pack_welcome(Terms({"job": "digits"}, layout)))
            here.wire.send(peer, Envelope(said.session, 1, Weights(0, nbytes=1 << 42)))
        elif said and isinstance(said.message, Want):
            want = said.message
            chunk = Envelope(said.session, 1, Chunk(want.what, want.first, want.last))
            here.wire.send(peer, chunk, bytes(want.last - want.first))

    here.hears = answer
    nobody: Any = lambda workload: None  # noqa: E731
    keys = client_keys(here.folder, "bob", "hub")
    life = Actor(here.wire.address, nobody, name="bob", session=b"bobs", clock=time.monotonic, say=print, keys=keys)
    raised: list[UserError] = []

    def live() -> None:
        try:
            life.live()
        except UserError as wrong:
            raised.append(wrong)

    threading.Thread(target=live, daemon=True).start()
    assert here.pump(lambda: bool(raised))
    assert re.search(r"would take [\d,.]+ GB of memory, and this (machine|container) has [\d,.]+ GB left", str(raised[0]))


def test_an_actor_makes_no_more_environments_than_its_machine_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    lives: list[Any] = []
    monkeypatch.setattr(living, "_live", lambda arguments, workshop, *rest: lives.append(workshop) or 0)
    living.life_of_any("bob", None)({})
    for settings in ({"num_envs": 10**9}, {"num_envs": 10**6, "rollout_length": 10**6}):
        with pytest.raises(UserError, match=r"num_envs=\d+ and rollout_length=\d+, would take .* GB of memory"):
            lives[0]({"job": "cartpole", "settings": settings})


@pytest.mark.parametrize("liar", liars.LIARS)
def test_beside_a_liar_with_a_key_no_honest_work_is_refused_and_the_run_goes_on(liar: str, tmp_path: Path) -> None:
    found = liars.beside(liar, tmp_path, 0.5)
    assert (found["raised"], found["refused"]) == ("", 0)
    assert found["rate"] > 0
    assert found["names"] < 150
    told = {"flood": "budget", "claims": "refused", "range": "refused", "names": "figures", "samples": "figures"}
    assert told[liar] in found["told"]


# Budgets


@pytest.mark.parametrize("gateway", [False, True], ids=["hub", "gateway"])
def test_who_sends_more_than_its_budget_loses_that_and_nobody_else_does(site: Callable[..., Site], gateway: bool) -> None:
    here = site(gateway=gateway, budget=Budget(messages=20, seconds=2.0))
    alice, bob = here.line("alice"), here.line("bob")
    here.hears = lambda arrival: None
    for _ in range(500):
        bob.send(PING, INTRUSION)
    for _ in range(30):
        alice.send(PING, b"alice")
    assert here.pump(lambda: [payload for _, _, payload in here.arrived].count(b"alice") == 30)
    here.moment()
    assert 40 <= here.intruded() // len(INTRUSION) < 100
    assert "budget: dropped a message: bob sends more than its budget" in here.told or any(
        text.startswith("budget:") for text in here.told
    )


@pytest.mark.parametrize("gateway", [False, True], ids=["hub", "gateway"])
def test_messages_that_lie_in_one_frame_are_counted_each(site: Callable[..., Site], gateway: bool) -> None:
    here = site(gateway=gateway, budget=Budget(messages=20, seconds=2.0))
    alice, bob = here.line("alice"), here.line("bob")
    users: list[str] = []
    here.hears = lambda arrival: users.append(arrival.user)
    many = encode(PING) * 2_000
    for _ in range(5):
        bob._send(many, None)
    here.moment()
    for _ in range(30):
        alice.send(PING)
    assert here.pump(lambda: users.count(here.pairs["alice"].public) == 30)
    assert users.count(here.pairs["bob"].public) == 2_000  # the first frame, and the rest are dropped unread
    assert sum("bob sends more than its budget" in text for text in here.told) == 4


def test_a_revoked_key_is_out_before_what_it_has_waiting(site: Callable[..., Site]) -> None:
    here = site(gateway=True)
    bob = here.line("bob")
    assert here.exchange(bob)
    assert isinstance(here.wire, Gateway)
    assert here.wire._pipe
    for _ in range(40):
        bob.send(PING, INTRUSION)
    pipe, waiting = here.wire._pipe.fileno(), array("i", [0])
    while waiting[0] < 40 * len(INTRUSION):  # the gateway process hands them on, and nobody takes them
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    here.folder.revoke("bob")
    here.wire._clock = lambda: time.monotonic() + READ  # when the list is looked at again
    assert here.honest()  # what it says comes behind bob's
    assert here.intruded() == 0


# The gateway


def rss(process: int) -> int:
    return psutil.Process(process).memory_info().rss


def test_a_gateway_that_is_killed_is_replaced_at_the_same_address_and_actors_come_back(site: Callable[..., Site]) -> None:
    here = site(gateway=True)
    alice = here.line("alice")
    assert here.exchange(alice)
    peer, address = here.arrived[-1][0], here.wire.address
    os.kill(here.wire.pid, signal.SIGKILL)
    assert here.pump(lambda: any(text.startswith("gateway:") for text in here.told))
    assert "gateway: the gateway process ended by SIGKILL; another takes its place" in here.told
    assert "lost: lost its connection" in here.told
    assert here.wire.send(peer, PING) == "lost its connection"
    assert here.exchange(alice)
    assert here.wire.address == address


def test_a_gateway_that_hangs_is_replaced(site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.protocol.gateway.SILENT", 1.0)
    here = site(gateway=True)
    alice = here.line("alice")
    assert here.exchange(alice)
    os.kill(here.wire.pid, signal.SIGSTOP)
    assert here.pump(lambda: any("was silent for 1 s" in text for text in here.told))
    assert here.exchange(alice)


def test_a_gateway_ends_with_its_coordinator(tmp_path: Path) -> None:
    program = (
        "import time; from shoal.protocol.gateway import Gateway\n"
        "made = Gateway('tcp://127.0.0.1:*'); print(made.pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdin
    process = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    process.wait(LIMIT)
    for end in (parent.stdout, parent.stdin):
        end.close()


def test_a_peer_that_is_gone_is_told_as_a_hub_tells_it(site: Callable[..., Site]) -> None:
    here = site(gateway=True)
    assert here.exchange(here.line("bob"))
    peer = here.arrived[-1][0]
    here._lines.pop().close()

    def told() -> bool:
        here.wire.send(peer, PING)
        return "lost: lost its connection" in here.told

    assert here.pump(told)
    assert here.wire.send(peer, PING) == "lost its connection"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the seconds since data came over a connection")
@pytest.mark.parametrize("gateway", [False, True], ids=["hub", "gateway"])
def test_a_connection_over_which_nothing_comes_is_told_from_one_whose_actor_says_nothing(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, gateway: bool
) -> None:
    here = site(gateway=gateway)
    pinged = here.line("alice")
    assert here.exchange(pinged)
    monkeypatch.setattr("shoal.protocol.link.PING", 0)  # as if its process were stopped
    mute = here.line("bob")
    assert here.exchange(mute)
    peers = {user: peer for peer, user, _ in here.arrived}

    def silence(name: str) -> float:
        before = len(here.told)
        if (seconds := here.wire.silent(peers[here.pairs[name].public])) is not None:
            return seconds
        assert here.pump(lambda: any(text.startswith("silent: ") for text in here.told[before:]))
        return float(here.told[-1].removeprefix("silent: "))

    while (silent := silence("bob")) < 1.6:  # the coordinator's own pings come more rarely
        here.moment()
    assert silence("alice") < silent  # ZeroMQ's own thread pings
    assert here.wire.silent(b"nobody") is None


def test_weights_cross_to_the_gateway_once_a_version_however_many_get_them(site: Callable[..., Site]) -> None:
    here = site(gateway=True)
    assert isinstance(here.wire, Gateway)
    lines = [here.line(name) for name in ("alice", "bob", "alice", "bob")]
    for line in lines:
        assert here.exchange(line)
    peers = list(dict.fromkeys(peer for peer, _, _ in here.arrived))
    crossed: list[int] = []
    put = here.wire._pipe.put  # type: ignore[union-attr]

    def counting(frames: list[Any]) -> None:
        crossed.append(sum(map(len, frames)))
        put(frames)

    here.wire._pipe.put = counting  # type: ignore[union-attr,method-assign]
    here.hears = lambda arrival: None
    models = {version: np.full(MIB, version, np.uint8) for version in (1, 2, 3, 4, 5)}
    for version, model in models.items():
        for peer in peers:
            here.wire.send(peer, Envelope(b"honest..", 1, Weights(version)), model)
    got: list[list[tuple[int, int]]] = [[] for _ in lines]

    def arrived() -> bool:
        for line, mine in zip(lines, got, strict=True):
            for arrival in line.drain():
                if arrival.payload is not None and len(arrival.payload) == MIB and arrival.envelope:
                    mine.append((arrival.envelope.message.version, arrival.payload[-1]))  # type: ignore[union-attr]
        return all(len(mine) == 5 for mine in got)

    assert here.pump(arrived)
    assert got == [[(version, version) for version in models]] * 4
    assert sum(crossed) < 5 * MIB + 20 * 300


def test_what_the_coordinator_does_not_take_stays_with_those_who_sent_it(site: Callable[..., Site]) -> None:
    here = site(gateway=True)
    assert isinstance(here.wire, Gateway)
    lines = [here.line(name) for name in ("alice", "bob", "alice", "bob")]
    for line in lines:
        assert here.exchange(line)
    here.hears = lambda arrival: None
    before, already = rss(here.wire.pid), len(here.arrived)
    payload = bytes(100_000)
    sent = sum(line.send(Envelope(b"honest..", 1, Beat(at)), payload) for line in lines for at in range(900))
    assert sent == 3_600
    held = []
    for _ in range(15):  # nobody drains
        lines[0].wait(0.1)
        held.append(rss(here.wire.pid) - before)
    assert max(held) < 80 * MIB < sent * len(payload) / 4
    assert here.pump(lambda: len(here.arrived) == sent + already, 30.0)  # nothing is lost


@pytest.mark.parametrize("size", [1, 60_000])
def test_endless_frames_cost_the_gateway_not_the_coordinator(site: Callable[..., Site], size: int) -> None:
    """When its memory is used up libzmq ends the connection or, where it does not look, the process."""
    here = site(gateway=True, keys=False, memory=160 * MIB)
    assert isinstance(here.wire, Gateway)
    assert here.honest()
    before, first = rss(os.getpid()), here.wire.pid
    with socket.create_connection(here.place) as plain:
        plain.sendall(greeting(b"NULL") + ready())
        plain.settimeout(0.05)
        more = frame(bytes(size), more=True) * (1_200_000 // (size + 9))

        def died() -> bool:
            try:
                plain.sendall(more)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return False

        assert here.pump(lambda: died() or here.wire.pid != first, 40.0)
    assert here.honest()
    assert rss(os.getpid()) - before < 60 * MIB
    assert here.intruded() == 0


def test_a_gateway_holds_no_more_than_one_message_of_nonsense(site: Callable[..., Site]) -> None:
    """What is no frame of ours ends the gateway's life, not the coordinator's."""
    here = site(gateway=True)
    assert isinstance(here.wire, Gateway)
    pipe = here.wire._pipe
    assert pipe
    pipe._in = memoryview(bytearray(b"\xff" * 64))
    assert here.pump(lambda: any("talks nonsense" in text for text in here.told))
    assert here.honest()


# Descriptors


def test_connections_beyond_the_descriptors_are_turned_away_while_actors_go_on(site: Callable[..., Site]) -> None:
    """ZeroMQ by itself would leave them waiting and try again and again, a whole core's worth."""
    here = site(gateway=True)
    assert isinstance(here.wire, Gateway)
    alice = here.line("alice")
    assert here.exchange(alice)
    gate = psutil.Process(here.wire.pid)
    most = gate.num_fds() + 20
    resource.prlimit(gate.pid, resource.RLIMIT_NOFILE, (most, most))
    idle = [socket.create_connection(here.place) for _ in range(200)]

    def turned_away() -> int:
        return sum(bool(select.select([one], [], [], 0)[0]) and one.recv(100, socket.MSG_PEEK) == b"" for one in idle)

    assert here.pump(lambda: turned_away() >= 150, 2.0)  # well before a handshake is given up
    for _ in range(10):
        assert here.exchange(alice)
    used = sum(gate.cpu_times()[:2])
    here.pump(lambda: False, 0.5)
    assert sum(gate.cpu_times()[:2]) - used < 0.25
    assert any("turned connections away" in text for text in here.told)
    for one in idle:
        one.close()
    assert here.pump(lambda: gate.num_fds() < most - 10)
    assert here.honest()


def test_the_descriptor_limit_is_raised_as_far_as_it_goes() -> None:
    program = (
        "import resource; from shoal.protocol.front import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "raise_descriptor_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert done.stdout.split() == [str(hard)] * 2


# The command line


class Place:
    """A folder with its own keys to type commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SHOAL_KEYS": str(folder / "keys")}
        self.children: list[subprocess.Popen[str]] = []

    def typed(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shoal", *words]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)

    def started(self, name: str, *words: str) -> subprocess.Popen[str]:
        with (self.folder / name).open("w") as out:
            command = [sys.executable, "-m", "shoal", *words]
            child = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=out, text=True)
        self.children.append(child)
        return child

    def said(self, name: str, pattern: str) -> re.Match[str]:
        def read() -> str:
            return (self.folder / name).read_text()

        wait_until(lambda: re.search(pattern, read()), read, self.folder)
        found = re.search(pattern, read())
        assert found is not None
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for child in made.children:
        child.kill()
        child.wait()


def test_keys_are_made_allowed_listed_and_revoked_by_typing(place: Place) -> None:
    public = place.typed("keys", "new", "laptop").stdout.strip()
    assert re.fullmatch("[0-9a-f]{64}", public)
    assert place.typed("keys", "allow", public, "my-laptop").stdout == "my-laptop\n"
    assert place.typed("keys").stdout == f"own      {public}  laptop\nallowed  {public}  my-laptop\n"
    assert place.typed("keys", "revoke", "my-laptop").stdout == f"{public}\n"
    assert place.typed("keys").stdout == f"own      {public}  laptop\n"
    wrong = place.typed("keys", "revoke", "my-laptop")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_what_would_be_open_to_others_does_not_start_and_leaves_nothing(place: Place) -> None:
    for words in (("--bind", "tcp://0.0.0.0:5555"), ("--bind", "tcp://*:5555", "--gateway")):
        done = place.typed("coordinator", "digits", *words)
        assert done.returncode == 2
        assert "shoal keys new NAME" in done.stderr
        assert done.stderr.count("\n") == 1
    done = place.typed("actor", "tcp://192.0.2.1:5555")
    assert done.returncode == 2
    assert "--key NAME --server PUBLIC" in done.stderr
    assert list(place.folder.iterdir()) == []


def test_a_run_whose_gateway_is_killed_twice_ends_on_the_same_weights(place: Place) -> None:
    settings = ["rounds=60", "eval_every=0", "--seed", "3", "--json"]
    whole = json.loads(place.typed("simulate", "digits", *settings, "--actors", "2").stdout.splitlines()[-1])
    for name in ("hub", "laptop"):
        place.typed("keys", "new", name)
    place.typed("keys", "allow", "laptop")
    words = [*settings, "--actors", "1", "--bind", "tcp://127.0.0.1:*", "--key", "hub", "--gateway"]
    coordinator = place.started("hub.log", "coordinator", "digits", *words)
    address, key = place.said("hub.log", r"shoal actor (\S+) --key NAME --server ([0-9a-f]{64})").groups()
    place.started("laptop.log", "actor", address, "--key", "laptop", "--server", key)
    place.said("hub.log", r"joined as actor")
    for kill in (1, 2):
        gate = next(child for child in psutil.Process(coordinator.pid).children() if "shoal.protocol.gate" in child.cmdline())
        gate.kill()
        place.said("hub.log", "(?s)" + kill * "another takes its place.*" + "joined as actor")
    assert ended(coordinator, place.folder) == 0
    result = json.loads((place.folder / "hub.log").read_text().splitlines()[-1])
    assert result["version"] == 60
    assert result["weights_sha256"] == whole["weights_sha256"]


def test_a_job_file_that_differs_has_another_digest_and_its_actor_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digests: list[str] = []
    for text in ("lr = 0.1", "lr = 0.2", "lr = 0.1"):
        (tmp_path / "job.py").write_text(text)
        digests.append(catalog.digest_of(f"{tmp_path / 'job.py'}:job"))
    assert digests[0] == digests[2] != digests[1]
    assert catalog.digest_of("digits") == catalog.digest_of("gymnasium:CartPole-v1") == catalog.digest_of("")
    assert catalog.digest_of("inline:mine") == ""
    lives: list[Any] = []
    monkeypatch.setattr(living, "_live", lambda arguments, workshop, *rest: lives.append(workshop) or 0)
    living.life_of_any("bob", catalog.digits(), digests[0])({})
    for its, said in ((digests[0], 0), (digests[1], 1)):
        lives[0]({"job": "job.py:job", "settings": {}, "digest": its})
        assert capsys.readouterr().out.count("bob: this machine's job file or version of Shoal differs") == said
