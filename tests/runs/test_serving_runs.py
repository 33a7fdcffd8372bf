"""Servers of real runs: followed in a folder and at a coordinator, made faster, in several processes, and started wrongly."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import shoal
from shoal.commands.cli import main
from shoal.faults.patient import ended
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.serving.following import Coordinator, RunFolder
from shoal.serving.models import Faster, Maker
from shoal.serving.places import Folder
from shoal.serving.plan import Plan, names_of
from shoal.serving.splitting import split_of

ROWS = np.full((3, 64), 0.5, np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> shoal.Run:
    return shoal.run("digits", settings={"rounds": 2}, actors=0, folder=tmp_path_factory.mktemp("runs") / "a", show=False)


def said(text: str) -> None:
    pass


def test_the_snapshots_of_a_run_that_goes_on_are_handed_on_once(tmp_path: Path) -> None:
    found: list[int] = []
    run = shoal.run("digits", settings={"rounds": 1}, actors=0, folder=tmp_path / "a", show=False)
    folder = RunFolder(run.folder)
    for rounds in (2, 3):
        for _ in range(2):
            folder.look(lambda version, weights: found.append(version), said)
        run = run.resume(settings={"rounds": rounds}, actors=0, show=False)
    assert found == [1, 2]


def test_a_server_follows_a_run_while_it_trains_and_changes_no_number(tmp_path: Path) -> None:
    taken: dict[int, Bundle] = {}
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    source = Coordinator(address, None, None, "server")

    def follows() -> None:
        job = source.join(said)
        assert job.name == "digits"
        source.start(lambda version, weights: taken.update({version: weights}), said)

    thread = threading.Thread(target=follows)
    thread.start()
    run = shoal.run(
        "digits",
        settings={"rounds": 10_000},
        actors=1,
        bind=address,
        folder=tmp_path / "a",
        stop_when=lambda row: len(taken) >= 3,
        show=False,
    )
    thread.join()
    source.end()
    assert len(taken) >= 3
    last = max(taken)
    assert last <= run.snapshot().version
    alone = shoal.run("digits", settings={"rounds": last}, actors=0, folder=tmp_path / "alone", show=False)
    assert {name: taken[last][name].tobytes() for name in alone.weights} == {
        name: array.tobytes() for name, array in alone.weights.items()
    }


@pytest.mark.parametrize("faster", [Faster(), Faster(dtype="bf16"), Faster(quantize="int8")])
def test_a_model_that_is_made_faster_is_measured_and_says_so(run: shoal.Run, faster: Faster) -> None:
    told: list[str] = []
    maker = Maker(run.job, faster, 8, told.append)
    assert (maker.inputs.shape, maker.inputs.dtype) == ((64,), "float32")
    outputs = maker(run.snapshot().weights)(ROWS)
    plain = Maker(run.job, Faster(), 8, told.append)(run.snapshot().weights)(ROWS)
    assert (outputs.shape, outputs.dtype) == ((3, 10), np.float32)
    assert np.allclose(outputs, plain, atol=0.05)
    assert [
        bool(re.match(r"--(dtype|quantize) \w+: accuracy 0\.\d+ in place of 0\.\d+ on held-out data$", one)) for one in told
    ] == ([True] if faster.asked else [])


def test_a_model_that_loses_more_than_is_allowed_is_refused(run: shoal.Run) -> None:
    maker = Maker(run.job, Faster(dtype="bf16", max_loss=-1.0), 8, said)  # no loss is small enough
    with pytest.raises(UserError, match=r"--dtype bf16: accuracy .*: a loss of .*, of at most -1 \(--max-loss\)"):
        maker(run.snapshot().weights)


def test_a_policy_answers_and_cannot_be_made_faster_without_held_out_data() -> None:
    from shoal.jobs.catalog import BUILT_IN

    job = BUILT_IN["cartpole"]()
    maker = Maker(job, Faster(), 8, said)
    weights, _ = job.problem.first(0)
    assert maker(weights)(np.zeros((5, 4), np.float32)).shape == (5, 2)
    with pytest.raises(UserError, match="cartpole has no held-out data to measure it on"):
        Maker(job, Faster(quantize="int8"), 8, said)


def test_a_run_folder_that_another_server_uses_is_left_to_it(
    run: shoal.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import datetime

    monkeypatch.chdir(tmp_path)
    plan, now = Plan((str(run.folder),)), datetime(2026, 11, 28)
    first, second = (Folder(plan, names_of(plan), now) for _ in range(2))
    assert (first.path, second.path) == (run.folder, Path("serving/a-20261128-000000"))
    with pytest.raises(UserError, match="another server uses it"):
        Folder(Plan(plan.sources, folder=str(run.folder)), names_of(plan), now)
    first.close()
    second.close()  # nothing was written there, as if its start had failed
    assert (run.folder.exists(), second.path.exists()) == (True, False)
    third, fourth = (Folder(plan, names_of(plan), now) for _ in range(2))
    (fourth.path / "serve.jsonl").write_text("{}")
    third.close()
    fourth.close()
    assert (fourth.path / "serve.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["no/run"], "no/run is no run: it does not exist"),
        (["{run}", "{run}"], "two models are called a"),
        (["{run}", "--split", "90,10"], "--split 90,10: 2 shares for 1 model (a)"),
        (["{run}", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it: give --token @FILE"),
        (["{run}", "--zmq", "tcp://0.0.0.0:5557"], "--zmq tcp://0.0.0.0:5557: other machines can reach it"),
        (["{run}", "--port", "{port}"], "--port: address tcp://127.0.0.1:{port} is in use"),
        (["{run}", "--only", "zmq", "--zmq", "tcp://127.0.0.1:{port}"], "--zmq: address tcp://127.0.0.1:{port} is in use"),
        (["{run}", "--queue", "9", "--max-batch", "10"], "--queue 9: a request may have --max-batch 10 rows, so give that"),
        (["{run}", "--sticky", "x user"], "--sticky x user: expected the name of a header"),
    ],
)
def test_a_server_that_cannot_be_is_one_line(
    run: shoal.Run, words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        own = {"run": str(run.folder), "port": taken.getsockname()[1]}
        assert main(["serve", *(word.format(**own) for word in words)]) == 2
        [line] = capsys.readouterr().err.splitlines()
    assert fault.format(**own) in line


@contextmanager
def served(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address over ZeroMQ, from the line that it prints when it answers."""
    command = [sys.executable, "-m", "shoal", "serve", *words, "--port", "0", "--zmq", "tcp://127.0.0.1:*"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, re.findall(r"tcp://[0-9.:]+", line)[-1]
        finally:
            process.kill()


def test_of_two_processes_one_answers_when_the_other_is_killed_and_another_takes_its_place(run: shoal.Run) -> None:
    with served(str(run.folder), "--replicas", "2") as (process, address), shoal.Client(address) as client:
        answer = client.predict(ROWS, deadline=60)
        wanted = run.model()(__import__("torch").from_numpy(ROWS)).detach().numpy()
        assert np.allclose(answer, wanted, atol=1e-5)
        pids: list[int] = []
        while len(pids) < 2:
            client.predict(ROWS, deadline=60)
            pids = client.stats(deadline=60)["pids"]
        here = client.stats(deadline=60)["pids"][0]  # the process of this connection comes first
        os.kill(here, signal.SIGKILL)
        assert client.predict(ROWS, deadline=60).shape == (3, 10)
        while not (len(pids := client.stats(deadline=60)["pids"]) == 2 and here not in pids):
            client.predict(ROWS, deadline=60)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == 0
    found = json.loads((run.folder / "serve.json").read_text())
    assert (found["state"], len(found["pids"])) == ("ended", 2)
    assert not (run.folder / "serve.parts").exists()
    assert split_of("", ["a"]).of("7") == "a"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_that_waits_for_a_coordinator_ends_at_a_signal(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ["serve", f"tcp://127.0.0.1:{silent.getsockname()[1]}", "--only", "zmq", "--zmq", "tcp://127.0.0.1:*"]
        process = subprocess.Popen([sys.executable, "-m", "shoal", *words], cwd=tmp_path)
        try:
            silent.accept()[0].close()  # it has begun to follow
            process.send_signal(number)
            assert ended(process) == code
        finally:
            process.kill()
            process.wait()
