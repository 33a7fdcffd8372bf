"""Actors that join a pool from elsewhere: real processes, keys and sockets on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pool_calls import begins, dies, double, fails, gives_up, odd, own_pid, shares, total, unfit, uses

import shoal
from shoal.actors import Worker
from shoal.actors.loop import Actor
from shoal.coordinator.deciding.resources import Need
from shoal.faults.patient import ended
from shoal.protocol import plaincalls, trusted, values
from shoal.protocol.calls import Answer
from shoal.protocol.calls import pack_answers as pickled
from shoal.protocol.door import client_keys
from shoal.protocol.errors import NeedError, UserError, WorkerLost
from shoal.protocol.keys import KeyFolder
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.plaincalls import pack_answers, read_brief
from shoal.protocol.trusted import opened
from shoal.protocol.work import Has, Task, Work
from shoal.tasks.backend import Backend
from shoal.tasks.pool import Pool
from shoal.tasks.pools import Pools
from shoal.tasks.weighing import Weigher

HERE = Path(__file__).parent
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFolder:
    """A folder with the keys of a pool and of an actor whom the pool lets in."""
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "keys"))
    folder = KeyFolder()
    folder.new("pool")
    folder.allow(folder.new("far").public, "far")
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `shoal actor ...` as a process, by the words that a pool's join_line says."""
    begun: list[subprocess.Popen[str]] = []

    def make(line: str, *words: str, key: str = "far") -> subprocess.Popen[str]:
        typed = line.replace("--key NAME", f"--key {key}").replace("--allow MODULE", "--allow pool_calls").split()
        assert typed[0] == "shoal"
        program = [sys.executable, "-m", *typed, *words]
        with (tmp_path / f"actor-{len(begun)}.log").open("w") as log:
            begun.append(subprocess.Popen(program, cwd=HERE, stdout=log, stderr=subprocess.STDOUT, text=True))
        return begun[-1]

    yield make
    for one in begun:
        one.terminate()
        one.wait(20)


def lines(path: Path, times: int = 1) -> list[int]:
    for _ in range(1_000):
        if path.exists() and len(found := path.read_text().split()) >= times:
            return [int(one) for one in found]
        threading.Event().wait(0.02)
    raise AssertionError(f"{path} was not begun {times} times")


def test_an_actor_with_a_key_joins_and_calls_named_functions_with_plain_values(keys: KeyFolder, start: Start) -> None:
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        assert "no actor has joined from elsewhere; on another machine type: shoal actor tcp://127.0.0.1:" in pool.status()
        line = pool.join_line()
        assert line.endswith(f"--key NAME --server {keys.pair('pool').public} --allow MODULE")
        actor = start(line)
        assert pool.submit(double, 4).result(60) == 8
        assert pool.submit(own_pid).result() in {one.pid for one in psutil.Process(actor.pid).children(recursive=True)}
        assert list(pool.map(double, range(300))) == [2 * x for x in range(300)]
        array = np.arange(200_000.0).reshape(2, -1)
        assert pool.submit(total, array).result() == array.sum()
        assert pool.submit(total, pool.put(array)).result() == array.sum()
        assert np.array_equal(pool.submit(double, [array]).result()[1], array)
        assert pool.submit(double, pool.submit(double, {"a": 1}.get("a"))).result() == 4
        assert pool.submit(own_pid, need=Need(cores=1)).result() > 0
        with pytest.raises(NeedError, match="this call needs 1000 cores"):
            pool.submit(double, 1, need=Need(cores=1_000))
        with pytest.raises(KeyError, match="7") as caught:
            pool.submit(fails, 7).result()
        assert "raise KeyError(x)" in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match=r"pool_calls.odd.<locals>.OddError: 3"):
            pool.submit(odd, 3).result()
        with pytest.raises(UserError, match="the result of pool_calls:unfit is of type set, which cannot travel"):
            pool.submit(unfit).result()
        with pytest.raises(RuntimeError, match=r"shutil:which is not allowed here: this actor imports pool_calls alone"):
            pool.submit(shutil.which, "ls").result()


def test_what_cannot_reach_another_machine_is_refused_in_one_line(keys: KeyFolder) -> None:
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        said = r"^`.*<lambda>` has no name another process can import: define it in a file, or use a local Pool$"
        with pytest.raises(UserError, match=said):
            pool.submit(lambda: 1)
        with pytest.raises(UserError, match=r"^args\[1\]\['x'\] is of type set, which cannot travel"):
            pool.submit(double, 1, {"x": {1}})
        with pytest.raises(UserError, match=r"^y is of type object, which cannot travel"):
            pool.submit(double, y=object())
    for wrong, match in (
        ({"actors": 0}, "actors=0: must be a whole number from 1"),
        ({"keys": "pool"}, "keys without an address"),
        ({"trusted": True}, "trusted=True without an address"),
        ({"actors": 1, "address": "tcp://127.0.0.1:0"}, "without keys: a stranger could pass for one of the pool's own"),
        ({"actors": 0, "address": "tcp://127.0.0.1:0", "trusted": True}, "trusted=True without keys"),
        ({"actors": 0, "address": "tcp://0.0.0.0:0"}, "other machines can reach tcp://0.0.0.0"),
        ({"actors": 0, "address": "tcp://127.0.0.1:0", "keys": "nobody"}, "key nobody is not in"),
    ):
        with pytest.raises(UserError, match=match) as caught:
            Pool(**wrong)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with Pool(1) as pool, pytest.raises(UserError, match="join_line: this pool has no address"):
        pool.join_line()


def test_actors_here_and_elsewhere_share_the_calls_and_one_that_is_killed_costs_no_result(
    keys: KeyFolder, start: Start, tmp_path: Path
) -> None:
    with Pool(1, address="tcp://127.0.0.1:0", keys="pool") as pool:
        start(pool.join_line())
        both = {pool.submit(own_pid).result()}
        for _ in range(400):
            both |= {one.result() for one in [pool.submit(begins, str(tmp_path / "any"), 0.02) for _ in range(4)]}
            if len(both) == 2:
                break
        [far] = both - {child.pid for child in psutil.Process().children(recursive=True) if "actor" not in child.cmdline()}
        futures = [pool.submit(begins, str(tmp_path / "calls"), 0.05) for _ in range(40)]
        lines(tmp_path / "calls", 6)
        os.kill(far, signal.SIGKILL)
        assert len([future.result() for future in futures]) == 40
        assert 40 <= len(lines(tmp_path / "calls")) <= 41
        assert pool.submit(dies, str(tmp_path / "dies")).result() > 0
        assert len(lines(tmp_path / "dies")) == 2


def test_a_call_elsewhere_that_takes_too_long_or_is_killed_has_its_process_replaced(
    keys: KeyFolder, start: Start, tmp_path: Path
) -> None:
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        start(pool.join_line())
        slow = pool.submit(begins, str(tmp_path / "slow"), 3_600.0, timeout=0.5)
        [first] = lines(tmp_path / "slow")
        with pytest.raises(TimeoutError):
            slow.result(60)
        hangs = pool.submit(begins, str(tmp_path / "hangs"), 3_600.0)
        [second] = lines(tmp_path / "hangs")
        assert hangs.kill()
        with pytest.raises(CancelledError):
            hangs.result()
        assert pool.submit(own_pid).result(60) not in (first, second)
        assert not psutil.pid_exists(first)


class Harm:
    """A pickle of this makes a folder where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class Liar:
    """A worker whose answers are these bytes."""

    def __init__(self, made: Callable[[Bundle], bytes]) -> None:
        self.made = made

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        assert brief is not None
        data = np.frombuffer(self.made(brief), np.uint8)
        return Work(Bundle(Layout.run(data.nbytes), data))


def joined(pool: Pool, keys: KeyFolder, worker: Worker, stop: threading.Event, trusts: bool = False) -> threading.Thread:
    """An actor of this process with a worker of the test's own."""

    def live() -> None:
        Actor(
            pool._running.address,
            lambda workload: worker,
            name="liar",
            session=os.urandom(8),
            clock=time.monotonic,
            say=lambda text: None,
            interrupted=lambda: "stop" if stop.is_set() else "",
            keys=client_keys(keys, "far", keys.pair("pool").public),
            has=Has(4, 1 << 30),
            trusts=trusts,
        ).live()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("form", ["a pickle", "a pickled answer", "a pickle within", "noise", "a parcel"])
def test_a_hostile_result_arrives_as_a_refusal_and_touches_no_file(keys: KeyFolder, tmp_path: Path, form: str) -> None:
    harm, stop = trusted.pack(Harm(tmp_path / "touched")).data, threading.Event()

    def made(brief: Bundle) -> bytes:
        number = read_brief(brief)[0].ticket
        within = pack_answers([(number, form == "a parcel", harm, 0.1)]).data.tobytes()
        return {
            "a pickle": harm[1:],
            "a pickled answer": pickled([Answer(number, False, harm, 0.1, 5)]).data.tobytes(),
            "a pickle within": within,
            "a parcel": within,
            "noise": values.MAGIC + b"\x92\xc4\xff" * 9,
        }[form]

    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool", retries=0) as pool:
        thread = joined(pool, keys, Liar(made), stop)
        with pytest.raises(WorkerLost, match=r"^double gave no result: an actor's answer cannot be taken: .*"):
            pool.submit(double, 1).result(60)
        stop.set()
        thread.join()
    assert not (tmp_path / "touched").exists()


def test_pickles_travel_only_if_both_ends_said_so(keys: KeyFolder, start: Start, tmp_path: Path) -> None:
    three = 3
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool", trusted=True) as pool:
        assert pool.join_line().endswith(" --trust-code")
        start(pool.join_line().replace("--trust-code", "--allow pool_calls"))
        waits = pool.submit(lambda x: {x, three}, 1)
        for _ in range(1_000):
            if "left: this pool sends pickles" in (tmp_path / "actor-0.log").read_text():
                break
            assert pool._running.is_alive()
            threading.Event().wait(0.02)
        else:
            raise AssertionError((tmp_path / "actor-0.log").read_text())
        assert not waits.done()
        start(pool.join_line())
        assert waits.result(60) == {1, 3}
        assert pool.submit(np.arange(100_000).reshape, 2, -1).result().sum() == sum(range(100_000))
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result()
    code, stop = trusted.pack(Harm(tmp_path / "touched")).data, threading.Event()
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool", retries=0) as pool:  # the actor trusts, the pool does not
        thread = joined(pool, keys, Liar(lambda brief: code), stop, trusts=True)
        with pytest.raises(WorkerLost, match="an actor's answer cannot be taken"):
            pool.submit(double, 1).result(60)
        stop.set()
        thread.join()
    assert not (tmp_path / "touched").exists()


def test_without_a_key_on_the_list_nobody_joins_and_loopback_needs_none(keys: KeyFolder, start: Start) -> None:
    keys.new("stranger")
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        start(pool.join_line(), key="stranger")
        future = pool.submit(double, 1)
        with pytest.raises(TimeoutError):
            future.result(2.0)
        assert future.cancel()
    with Pool(actors=0, address="tcp://127.0.0.1:0") as pool:
        assert "--key" not in pool.join_line()
        start(pool.join_line(), "--count", "2")
        assert pool.submit(double, 1).result(60) == 2
        assert shoal.Pool is Pool


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow", "no_such_module"], "shoal: --allow no_such_module: no such module here"),
        (["--trust-code"], "shoal: --trust-code without --key and --server"),
        (
            ["--allow", "os", "--job", "digits"],
            "shoal: --job and --allow: an actor does the tasks of a job or the",
        ),
    ],
)
def test_words_that_do_not_go_together_are_one_line(words: list[str], said: str) -> None:
    program = [sys.executable, "-m", "shoal", "actor", "tcp://127.0.0.1:1", *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(said)


def test_calls_of_joblib_are_made_by_actors_that_join(
    keys: KeyFolder, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    import joblib

    pools = Pools()
    backend = Backend(pools, address="tcp://127.0.0.1:0", key="pool", trusted=True, nesting_level=0)
    array = np.arange(200_000.0)
    try:
        with joblib.parallel_config(backend=backend, n_jobs=2), joblib.Parallel() as parallel:
            line = capsys.readouterr().err.partition("type: ")[2].strip()
            actor = start(line, "--count", "2")
            found = parallel(joblib.delayed(lambda x, at: (os.getpid(), x[at]))(array, at) for at in range(40))
            assert parallel(joblib.delayed(abs)(-at) for at in range(9)) == list(range(9))
        assert [number for _, number in found] == list(range(40))
        assert {pid for pid, _ in found} <= {one.pid for one in psutil.Process(actor.pid).children(recursive=True)}
    finally:
        pools.close()


def test_joblib_s_pickles_go_to_another_machine_only_if_its_user_says_so() -> None:
    with pytest.raises(UserError, match="calls of joblib are pickles: if you own both ends, say trusted=True here"):
        Backend(Pools(), address="tcp://127.0.0.1:0", key="pool")
    with pytest.raises(UserError, match="key, trusted and actors are for address="):
        Backend(Pools(), key="pool")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs OpenMPI: apt-get install openmpi-bin")
def test_the_ranks_of_mpirun_are_actors_of_a_pool(keys: KeyFolder, tmp_path: Path) -> None:
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        line = pool.join_line().replace("--key NAME", "--key far").replace("--allow MODULE", "--allow pool_calls").split()
        program = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "2", sys.executable, "-m", *line]
        with (tmp_path / "mpi.log").open("w") as log:
            ranks = subprocess.Popen(program, cwd=HERE, stdout=log, stderr=subprocess.STDOUT)
        found: set[int] = set()
        for _ in range(100):
            found |= {one.result(60) for one in [pool.submit(begins, str(tmp_path / "calls"), 0.05) for _ in range(4)]}
            if len(found) == 2:
                break
        assert len(found) == 2
    assert ended(ranks) == 0  # the pool is shut down, and the ranks leave


def test_a_pool_with_an_address_changes_the_number_of_its_own_processes(keys: KeyFolder) -> None:
    with Pool(1, address="tcp://127.0.0.1:0", keys="pool") as pool:

        def many(wanted: int) -> None:
            for _ in range(1_000):
                here = [line for line in pool.status().splitlines() if line.startswith("actor-")]
                if len(here) == wanted:
                    return
                threading.Event().wait(0.02)
            raise AssertionError(pool.status())

        many(1)
        pool.resize(3)
        many(3)
        assert sum(pool.map(double, range(50))) == 2_450
        pool.resize(1)
        many(1)
        assert sum(pool.map(double, range(50))) == 2_450
        pool.resize(0)
        many(0)
        late = pool.submit(double, 4)
        with pytest.raises(UserError, match=r"^resize\(-1\): must be a whole number from 0$"):
            pool.resize(-1)
        pool.resize(2)
        assert late.result() == 8
    with (
        Pool(0, address="tcp://127.0.0.1:0") as other,
        pytest.raises(UserError, match=r"^resize\(2\): this pool was made with"),
    ):
        other.resize(2)


def test_a_call_elsewhere_hears_that_its_caller_gave_it_up(keys: KeyFolder, start: Start, tmp_path: Path) -> None:
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        start(pool.join_line())
        future = pool.submit(gives_up, str(tmp_path / "call"))
        lines(tmp_path / "call")
        assert not future.cancel()
        assert future.result(60) == "gave up"
        assert pool.submit(double, 2).result() == 4


def test_memory_of_calls_elsewhere_is_looked_at_and_that_of_their_machine(
    keys: KeyFolder, start: Start, tmp_path: Path
) -> None:
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        start(pool.join_line())
        pool.submit(double, 1).result(60)
        future = pool.submit(uses, str(tmp_path / "gate"), 200 * 10**6, need=Need(memory="2M"))
        reports = pool._running.reports
        for _ in range(3_000):
            if said := [one.text for one in reports.last if one.kind == "memory"]:
                break
            threading.Event().wait(0.01)
        assert re.fullmatch(
            r"uses uses [0-9]+ MB of memory, and its need says 2 MB: write need=shoal.Need\(memory=.*\)", said[0]
        )
        (tmp_path / "gate").touch()
        assert future.result(60) == 200 * 10**6
        far = pool._running.far
        assert far is not None
        [actor] = far.actors()
        judged = Weigher()
        actor.told = {"free": [4, 100], "used": [10**9, 5]}
        assert far.weigh(judged) == []
        [(host, why)] = far.closed()
        assert host == actor.host
        assert why.startswith("no call begins, because")
        actor.told = {"free": "none", "used": [1]}
        assert far.weigh(judged) == []
        assert list(far.closed()) == []


def test_a_value_that_was_put_is_sent_to_a_machine_once_and_lies_in_memory_there_once(
    keys: KeyFolder, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, ...]] = []
    real = plaincalls.pack_brief

    def watched(calls: Any, told: Any = ()) -> Bundle:
        told = list(told)
        sent.extend((one.how, one.name) for one in told)
        return real(calls, told)

    monkeypatch.setattr(plaincalls, "pack_brief", watched)
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool") as pool:
        start(pool.join_line(), "--count", "3")
        array = np.arange(300_000.0)
        table = pool.put(array)
        rows: list[tuple[int, float, bool]] = []
        while len({pid for pid, _, _ in rows}) < 3 and len(rows) < 3_000:
            rows += [future.result(60) for future in [pool.submit(shares, table, 0.01) for _ in range(6)]]
        assert {row[1:] for row in rows} == {(array.sum(), False)}
        assert len({pid for pid, _, _ in rows}) == 3
        name = table.name
        assert Counter(sent) == {("bytes", name): 1, ("there", name): 2}
        victim = rows[0][0]
        os.kill(victim, signal.SIGKILL)
        assert {pool.submit(shares, table, 0.05).result(60)[1] for _ in range(20)} == {array.sum()}
        del table
        other = pool.put(array + 1.0)
        again = [pool.submit(shares, other, 0.05) for _ in range(20)]
        assert {future.result(60)[1] for future in again} == {array.sum() + len(array)}
        assert ("drop", name) in sent


def test_a_pickled_call_for_another_machine_needs_no_memory_of_this_one(keys: KeyFolder) -> None:
    array = np.arange(30_000.0)
    with Pool(actors=0, address="tcp://127.0.0.1:0", keys="pool", trusted=True) as pool:
        table = pool.put(array)
        future = pool.submit(total, [table], x=table)
        while not pool._running.entries:
            threading.Event().wait(0.01)
        [entry] = pool._running.entries.values()
        table._parcel.segment.close()  # type: ignore[union-attr]
        args, kwargs = opened(entry.plain)
        for found in (args[0][0], kwargs["x"]):
            np.testing.assert_array_equal(found, array)
        assert future.cancel()
