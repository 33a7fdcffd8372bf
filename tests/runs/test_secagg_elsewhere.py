"""Secure aggregation among actors that join from elsewhere: their users' list of keys decides who plays and who signs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typed import mistake, ran

from shoal.faults.patient import ran as finished
from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.jobs.members import Identity, signing_seed
from shoal.protocol.errors import UserError
from shoal.protocol.keys import KeyFolder
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task

pytest.importorskip("cryptography", reason="the extra shoal[secagg] is not installed")

from shoal.protocol.sealing import signer_of
from shoal.protocol.secagg import PHASES, Aborted

WORDS = ["method=secagg", "clients=6", "cohort=6", "rounds=2", "local_epochs=1", "eval_every=0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "keys"))
    return tmp_path


def identity(name: str, path: str = "members.csv", least: int = 0) -> Identity:
    pair = KeyFolder().pair(name)
    return Identity(pair.public, pair.secret, path, least)


def listed(path: str, names: Sequence[str], forged: int = -1) -> None:
    """Write a list in which clients take turns among the names. forged: client whose signer is another."""
    rows = ["signer,client,key"]
    for client, name in enumerate(names):
        its = identity(name)
        seed = bytes(32) if client == forged else signing_seed(its.secret)
        rows.append(f"{signer_of(seed).hex()},{client},{its.public}")
    Path(path).write_text("\n".join(rows) + "\n")


@pytest.fixture
def members() -> None:
    for name in ("hub", "north", "south"):
        KeyFolder().new(name)
    listed("members.csv", ["north", "south"] * 3)


def test_actors_with_keys_of_their_own_make_the_bits_of_fedavg(folder: Path, members: None) -> None:
    shoal = [sys.executable, "-m", "shoal"]
    for name in ("north", "south"):
        ran("keys", "allow", KeyFolder().public(name), name)
        assert ran("keys", "signer", name).out.strip() == signer_of(signing_seed(identity(name).secret)).hex()
    how = ["--bind", "tcp://127.0.0.1:*", "--key", "hub", "--json", "--run-dir", "run"]
    words = [*shoal, "coordinator", "digits", *WORDS, "members=members.csv", *how]
    coordinator = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert coordinator.stderr is not None
        address = next(m[1] for line in coordinator.stderr if (m := re.search(r"listening on (\S+);", line)))
        to = [*shoal, "actor", address, "--server", KeyFolder().public("hub")]
        south = subprocess.Popen([*to, "--key", "south", "--members", "members.csv"], cwd=folder, stdout=subprocess.DEVNULL)
        north = finished([*to, "--key", "north", "--members", "members.csv"], folder)
        out, _ = coordinator.communicate()
        assert (north.returncode, south.wait(60)) == (0, 0), north.stderr
    finally:
        coordinator.kill()
        coordinator.wait()
    found = json.loads(out.splitlines()[-1])
    rows = [json.loads(line)["metrics"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["secagg_clients"] for row in rows if "secagg_clients" in row] == [6.0, 6.0]
    plain = ran("simulate", "digits", "method=fedavg", *WORDS[1:], "--actors", 0, "--json").result
    assert found["weights_sha256"] == plain["weights_sha256"]


def played(job: Job, parts: dict[str, Job]) -> list[Exception]:
    """Play one round by hand; return what clients raised. parts: name -> the job at that actor."""
    aggregator, raised = job.aggregator("cpu"), list[Exception]()
    workers = {name: part.worker() for name, part in parts.items()}
    weights, live = aggregator.weights(), list(range(6))
    for at, phase in enumerate(PHASES):
        for client in list(live):
            task = Task(0, 6 * at + client, (client,), words={"phase": phase})
            brief: Bundle | None = aggregator.brief(task)  # type: ignore[attr-defined]
            try:
                worker = workers[("north", "south")[client % 2]]
                work = worker.run(weights, client, task, brief)  # type: ignore[call-arg]
            except (Aborted, ValueError) as refused:
                raised.append(refused)
                live.remove(client)
            else:
                aggregator.fold(Contribution(task, 0, 0, work))
    raised.append(RuntimeError(str(dict(aggregator.step().metrics)["secagg_clients"])))
    return raised


def asked(**settings: object) -> Job:
    job = find("digits").configured({"method": "secagg", "clients": 6, "cohort": 6, "local_epochs": 1, **settings})
    job.prepare()
    return job


def test_a_key_in_place_of_a_client_s_is_believed_by_no_actor_whose_list_has_another(members: None) -> None:
    listed("other.csv", ["north", "south"] * 3, forged=1)  # as if the coordinator had put its own key in place of client 1's
    job = asked(members="members.csv")
    north, south = job.elsewhere(identity("north", "other.csv")), job.elsewhere(identity("south"))
    *refused, sum_of = played(job, {"north": north, "south": south})
    assert str(sum_of) == "0.0"  # the three clients of the north stop, so too few are left
    assert [str(each) for each in refused[:3]] == [
        f"client {client} got keys of client 1 that client 1 did not sign" for client in (0, 2, 4)
    ]


def test_an_actor_signs_for_its_own_clients_alone(members: None) -> None:
    job = asked(members="members.csv")
    north = job.elsewhere(identity("north"))
    *refused, sum_of = played(job, {"north": north, "south": north})
    assert {str(each) for each in refused} >= {
        f"client {client} is another owner's: this actor has no key that signs for it" for client in (1, 3, 5)
    }
    assert str(sum_of) == "0.0"


def test_what_cannot_take_part_is_refused_in_one_line(members: None) -> None:
    job, without = asked(members="members.csv"), asked()
    for make, said in (
        (lambda: without.elsewhere(identity("north")), "has no members=FILE.csv, so only its own actors"),
        (lambda: job.elsewhere(None), "this actor needs --members FILE"),
        (lambda: job.elsewhere(identity("hub")), "no client has this actor's key"),
        (lambda: job.elsewhere(identity("north", least=5)), "makes sums of 4 clients.* started with least=5 or more"),
    ):
        with pytest.raises(UserError, match=said):
            make()
    listed("other.csv", ["north", "south"] * 3, forged=0)
    with pytest.raises(UserError, match="client 0 has another signer than this actor's"):
        job.elsewhere(identity("north", "other.csv"))
    simulate = ("simulate", "digits", *WORDS, "members=members.csv", "--actors")
    for many in (0, 2):
        assert "its clients are played by actors from elsewhere" in mistake(*simulate, many)
    alone = ("coordinator", "digits", *WORDS, "--bind", "tcp://127.0.0.1:*")
    assert "no actor from elsewhere can take part without a list" in mistake(*alone)
    missing = (
        "coordinator",
        "digits",
        *WORDS,
        "clients=8",
        "members=members.csv",
        "--bind",
        "tcp://127.0.0.1:*",
        "--key",
        "hub",
    )
    assert "2 of clients=8 have no row (6, 7)" in mistake(*missing)
    assert "needs --members FILE, --key and --server" in mistake("actor", "tcp://127.0.0.1:9", "--members", "members.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client,key\n0,x\n", "the first line lacks signer"),
        ("client,key,signer\n0,x,y\n", "line 2 has key='x': expected 64 hexadecimal digits; `shoal keys new NAME`"),
        (f"client,key,signer\n0,{'a' * 64},y\n", "line 2 has signer='y': .*`shoal keys signer NAME`"),
        (f"client,key,signer\n{(row := '0,' + 'a' * 64 + ',' + 'b' * 64)}\n{row}\n", "line 3 is a second row for client 0"),
        ("", "the first line lacks client, key, signer"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(text: str, said: str) -> None:
    Path("members.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        asked(members="members.csv").check_parts()
