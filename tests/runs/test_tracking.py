"""Followers of metrics.jsonl: what a tracker hears of a run, also if the follower, the tracker or the run is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import shoal
from shoal.commands.cli import main
from shoal.protocol.errors import UserError
from shoal.runs.rundir import Config, RunDir
from shoal.tracking.follower import BATCH, PATIENCE, Follower, Note, is_over
from shoal.tracking.following import Followers
from shoal.tracking.to_mlflow import METRICS, MLflow
from shoal.tracking.to_prometheus import Prometheus
from shoal.tracking.trackers import TRACKERS, About, Down, Point, Wanted, wanted


def line(version: int, **metrics: Any) -> str:
    counts = {"steps": 0, "contributions": 10 * version, "actors": 2, "lag": [0, 0.5, 1]}
    return json.dumps({"version": version, "seconds": version / 2, **counts, "metrics": metrics}) + "\n"


def run_of(folder: Path, many: int, **settings: Any) -> RunDir:
    """The folder of a run that has ended, with `many` rows."""
    run = RunDir(folder)
    folder.mkdir(exist_ok=True)
    run.write_config(Config("digits", settings={"rounds": many, "lr": 0.1, **settings}))
    run.metrics_file.write_text("".join(line(each, loss=1 / each) for each in range(1, many + 1)))
    run.write_summary({"version": many})
    return run


class Heard:
    """A tracker that keeps what it hears. wrong: raised by the next calls, one each."""

    def __init__(self, wrong: Sequence[Exception] = (), unsure: int = 0) -> None:
        self.wrong, self.unsure = list(wrong), unsure
        self.steps: list[int] = []
        self.abouts: list[About] = []
        self.ended: list[str] = []
        self.points: list[Point] = []

    def _maybe(self) -> None:
        if self.wrong:
            raise self.wrong.pop(0)

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        self._maybe()
        self.abouts.append(about)

    def tell(self, points: Sequence[Point]) -> None:
        self._maybe()
        self.points += points
        self.steps += [point.step for point in points]

    def end(self, state: str) -> None:
        self._maybe()
        self.ended.append(state)


class Hand:
    """A clock wound by what a follower waits; it calls `then` at each wait."""

    def __init__(self, then: Callable[[int], object] = lambda at: None) -> None:
        self.now, self.waits, self.then = 0.0, list[float](), then

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.then(len(self.waits))


def follower(run: RunDir, tracker: Any, hand: Hand, over: Callable[[], bool] = lambda: True) -> tuple[Follower, list[str]]:
    said: list[str] = []
    note = Note(run.path / "note.json", 1000.0, "ab" * 8)
    return Follower(run, Wanted("mlflow", ""), tracker, note, said.append, over, hand.wait, lambda: hand.now), said


def test_a_finished_run_is_told_whole_and_once(tmp_path: Path) -> None:
    run, heard = run_of(tmp_path / "run", 2 * BATCH + 3), Heard()
    one, said = follower(run, heard, Hand())
    assert one.live()
    assert (heard.steps, heard.ended, said) == (list(range(1, 2 * BATCH + 4)), ["finished"], [])
    assert heard.abouts[0].params | {"rounds": 2 * BATCH + 3, "seed": 0, "job": "digits"} == heard.abouts[0].params
    again = Heard()
    assert follower(run, again, Hand())[0].live()
    assert again.steps == []


def test_a_row_is_told_at_its_own_time_with_its_counts_and_without_what_is_no_number(tmp_path: Path) -> None:
    run, heard = run_of(tmp_path / "run", 0), Heard()
    run.metrics_file.write_text(line(4, loss=None, accuracy=0.5).replace('"steps": 0', '"steps": 640'))
    follower(run, heard, Hand())[0].live()
    counts = {"version": 4, "seconds": 2, "contributions": 40, "actors": 2, "lag/mean": 0.5, "steps": 640}
    assert heard.points == [Point(4, 640, 2.0, 1002.0, {"accuracy": 0.5, **counts})]


def test_rows_are_told_as_they_come_until_the_run_has_ended(tmp_path: Path) -> None:
    run, heard = run_of(tmp_path / "run", 2), Heard()
    seen: list[int] = []

    def grow(at: int) -> None:
        seen.append(len(heard.steps))
        with run.metrics_file.open("a") as file:
            file.write(line(at + 2)[: 20 if at == 3 else None] if at < 4 else line(5)[20:])

    hand = Hand(grow)
    assert follower(run, heard, hand, lambda: len(hand.waits) > 4)[0].live()
    assert heard.steps == [1, 2, 3, 4, 5]
    assert seen == [2, 3, 4, 4, 5]  # half a line is no row


def test_a_tracker_that_is_down_is_asked_ever_more_seldom_and_told_of_once(tmp_path: Path) -> None:
    run, heard, hand = run_of(tmp_path / "run", 3), Heard([Down("db:5000 does not answer")] * 7), Hand()
    one, said = follower(run, heard, hand, lambda: len(hand.waits) >= 7)
    assert one.live()
    assert hand.waits == [1, 2, 4, 8, 16, 30, 30]
    assert said == ["db:5000 does not answer: trying again until it answers", "answers again"]
    assert heard.steps == [1, 2, 3]


def test_a_minute_after_the_run_a_tracker_that_is_down_is_given_up_and_the_next_follower_goes_on(tmp_path: Path) -> None:
    run, hand = run_of(tmp_path / "run", 3), Hand()
    one, said = follower(run, Heard([Down("no answer")] * 99), hand)
    assert not one.live()
    assert hand.now == PATIENCE
    assert said[-1] == f"given up: no answer; go on later with: shoal track {run.path} mlflow"
    heard = Heard()
    assert follower(run, heard, Hand())[0].live()
    assert heard.steps == [1, 2, 3]


@pytest.mark.parametrize("unsure", [0, 1])
def test_a_follower_that_is_killed_after_any_call_loses_no_row(tmp_path: Path, unsure: int) -> None:
    for kill in range(1, 6):
        run = run_of(tmp_path / f"{unsure}-{kill}", 3 * BATCH)

        class Killed(Heard):
            calls = 0

            def tell(self, points: Sequence[Point]) -> None:
                super().tell(points)
                type(self).calls += 1
                if self.calls == kill:  # noqa: B023
                    raise KeyboardInterrupt  # told, and not noted

        first = Killed(unsure=unsure)
        if kill <= 3:
            with pytest.raises(KeyboardInterrupt):
                follower(run, first, Hand())[0].live()
        else:
            follower(run, first, Hand())[0].live()
        second = Heard(unsure=unsure)
        follower(run, second, Hand())[0].live()
        assert sorted({*first.steps, *second.steps}) == list(range(1, 3 * BATCH + 1))
        assert second.steps == list(range(second.steps[0] if second.steps else 1, second.steps[-1] + 1 if second.steps else 1))
        if kill <= 3:
            assert second.steps[0] == max(1, (kill - 1) * BATCH + 1 - unsure)  # and no earlier one is told again


def test_a_resumed_run_is_told_from_where_it_went_on(tmp_path: Path) -> None:
    run, first, second = run_of(tmp_path / "run", 5), Heard(), Heard()
    follower(run, first, Hand())[0].live()
    run.rewind(3)
    with run.metrics_file.open("a") as file:
        file.write(line(4, loss=9.0) + line(5, loss=9.0) + line(6, loss=9.0))
    one, said = follower(run, second, Hand())
    one.live()
    assert second.steps == [4, 5, 6]
    assert said == ["rows after version 3 were written anew, and are told again"]
    assert [about.token for about in first.abouts] == [about.token for about in second.abouts]


def test_a_history_that_is_gone_is_told_of_once_and_the_next_is_told(tmp_path: Path) -> None:
    run, heard = run_of(tmp_path / "run", 2), Heard()

    def turn(at: int) -> None:
        if at == 1:
            run.metrics_file.unlink()
        if at == 4:
            run.metrics_file.write_text(line(1, loss=5.0))

    hand = Hand(turn)
    one, said = follower(run, heard, hand, lambda: len(hand.waits) > 4)
    assert one.live()
    assert said == [
        "metrics.jsonl is gone from the run's folder: waiting for another",
        "metrics.jsonl was replaced, and is told from its beginning",
    ]
    assert heard.steps == [1, 2, 1]


def test_a_run_that_is_gone_ends_its_follower_with_a_line(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 2)
    hand = Hand(lambda at: [file.unlink() for file in (run.metrics_file, run.config_file)])
    with pytest.raises(UserError, match="is gone, and with it"):
        follower(run, Heard(), hand, lambda: False)[0].live()


def test_a_note_that_no_follower_wrote_is_told_in_a_line(tmp_path: Path) -> None:
    at = '{"token": "a", "started": 2, "memory": {}, "position": {"begin": %d, "end": %d, "told": [[1, "ab"]]}}'
    texts = ("", "[]", '{"token": "a"}', '{"token": 1, "started": 2, "position": {}, "memory": {}}', at % (-5, 3), at % (9, 3))
    for text in texts:
        (tmp_path / "note.json").write_text(text)
        with pytest.raises(UserError, match=r"note.json is not as a follower wrote it .*remove it"):
            Note(tmp_path / "note.json", 0.0, "")


@pytest.mark.parametrize(
    ("state", "told"),
    [("done", "finished"), ("stopped by SIGINT", "stopped"), ("running", "stopped"), ("no actor could be started", "failed")],
)
def test_the_end_of_a_run_is_told_as_its_folder_has_it(tmp_path: Path, state: str, told: str) -> None:
    run, heard = run_of(tmp_path / "run", 1), Heard()
    run.status_file.write_text(json.dumps({"state": state}))
    follower(run, heard, Hand())[0].live()
    assert heard.ended == [told]


def test_a_run_is_over_unless_a_coordinator_is_at_work_on_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 1)
    assert is_over(run)
    (run.path / "lock").write_text(f"{os.getpid()}\n")  # it has just begun
    assert not is_over(run)
    for state, written, over in (("running", 0.0, False), ("running", 60.0, True), ("done", 0.0, True)):
        now = time.time() - written
        run.status_file.write_text(json.dumps({"state": state, "written": now, "stepped": now - 1e6, "pid": 1}))
        assert is_over(run) is over


# MLflow


class Recorded:
    """The part of MLflow's REST interface that a follower uses. ill: answers with 503 for so many requests. now: called with
    the name of each request before it is answered."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str | None]] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.ill = 0
        self.now: Callable[[str], object] = lambda what: None
        self.lock = threading.Lock()

    def answer(self, what: str, body: Any, key: str | None) -> tuple[int, Any]:
        with self.lock:
            self.asked.append((what, body, key))
            if self.ill:
                self.ill -= 1
                return 503, {}
            found = self._found(what, body)
        self.now(what)
        return found

    def _found(self, what: str, body: Any) -> tuple[int, Any]:
        match what:
            case "experiments/get-by-name":
                if body["experiment_name"] not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}
                return 200, {"experiment": {"experiment_id": self.experiments[body["experiment_name"]]}}
            case "experiments/create":
                self.experiments[body["name"]] = str(len(self.experiments))
                return 200, {"experiment_id": self.experiments[body["name"]]}
            case "runs/search":
                runs = [{"info": {"run_id": name}} for name, run in self.runs.items() if f"'{run['token']}'" in body["filter"]]
                return 200, {"runs": runs} if runs else {}
            case "runs/create":
                [token] = [tag["value"] for tag in body["tags"] if tag["key"] == "shoal.follower"]
                name = f"r{len(self.runs)}"
                self.runs[name] = {"token": token, "name": body["run_name"], "metrics": [], "params": {}, "tags": {}}
                return 200, {"run": {"info": {"run_id": name}}}
            case "runs/log-batch":
                its = self.runs[body["run_id"]]
                assert len(body["metrics"]) + len(body["params"]) + len(body["tags"]) <= 1000
                assert len(body["params"]) <= 100
                for param in body["params"]:
                    if its["params"].setdefault(param["key"], param["value"]) != param["value"]:
                        return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Changing param values is not allowed"}
                its["metrics"] += [(each["key"], each["step"], each["timestamp"], each["value"]) for each in body["metrics"]]
                its["tags"] |= {tag["key"]: tag["value"] for tag in body["tags"]}
                return 200, {}
            case "runs/update":
                self.runs[body["run_id"]] |= body
                return 200, {}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": what}


@pytest.fixture
def server() -> Iterator[tuple[Recorded, str]]:
    recorded = Recorded()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._answer(parts.path, {name: found[0] for name, found in parse_qs(parts.query).items()})

        def do_POST(self) -> None:
            self._answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, path: str, body: Any) -> None:
            what = path.removeprefix("/api/2.0/mlflow/")
            code, found = recorded.answer(what, body, self.headers.get("Authorization"))
            data = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    door = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    door.daemon_threads = True
    thread = threading.Thread(target=door.serve_forever, args=(0.05,))
    thread.start()
    yield recorded, f"http://127.0.0.1:{door.server_port}"
    door.shutdown()
    thread.join()
    door.server_close()


def curve(run: dict[str, Any], name: str) -> list[tuple[int, float]]:
    return sorted({(step, value) for key, step, _, value in run["metrics"] if key == name})


def test_an_mlflow_server_gets_settings_metrics_and_the_end(
    tmp_path: Path, server: tuple[Recorded, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, uri = server
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    many = METRICS // 7 + 50
    run = run_of(tmp_path / "run", many, hidden=[64, 32], text="x" * 700)
    assert shoal.track(run.path, f"mlflow={uri}/") == many
    [its] = recorded.runs.values()
    assert curve(its, "loss") == [(each, 1 / each) for each in range(1, many + 1)]
    assert (its["name"], its["status"], list(recorded.experiments)) == ("run", "FINISHED", ["mine"])
    assert its["params"] | {"lr": "0.1", "hidden": "64,32", "job": "digits", "text": "x" * 500} == its["params"]
    assert {key for _, _, key in recorded.asked} == {"Bearer t0ken"}
    start = run.config_file.stat().st_mtime
    assert ("loss", 2, round((start + 1) * 1000), 0.5) in its["metrics"]
    assert its["end_time"] == round((start + many / 2) * 1000)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_and_a_later_end_is_a_tag(
    tmp_path: Path, server: tuple[Recorded, str]
) -> None:
    recorded, uri = server
    run = run_of(tmp_path / "run", 3)
    shoal.track(run.path, f"mlflow={uri}")
    run.extend(Config("digits", settings={"rounds": 5, "lr": 0.1}))
    with run.metrics_file.open("a") as file:
        file.write(line(4, loss=0.25) + line(5, loss=0.2))
    assert shoal.track(run.path, f"mlflow={uri}") == 2
    [its] = recorded.runs.values()
    assert (its["params"]["rounds"], its["tags"]) == ("3", {"resumed.rounds": "5"})
    assert curve(its, "loss") == [(each, 1 / each) for each in range(1, 6)]
    assert [body["status"] for what, body, _ in recorded.asked if what == "runs/update"] == ["RUNNING", "FINISHED"] * 2


@pytest.mark.parametrize("at", ["runs/create", "runs/log-batch"])
def test_a_follower_killed_before_it_notes_what_it_did_makes_no_second_run_and_no_second_point(
    tmp_path: Path, server: tuple[Recorded, str], at: str
) -> None:
    recorded, uri = server
    run = run_of(tmp_path / "run", 3 * BATCH)
    [one] = wanted(f"mlflow={uri}")
    lock, sessions = run.path / "tracking" / f"{one.file}.lock", list[int]()
    metrics = [0]

    def kill(what: str) -> None:
        metrics[0] += what == "runs/log-batch"
        if what == at and not sessions and (at == "runs/create" or metrics[0] == 4):
            sessions.append(os.getsid(int(lock.read_text())))
            os.kill(int(lock.read_text()), signal.SIGKILL)

    recorded.now = kill
    with Followers(run, [one], lambda text: None, held=120.0) as followers:
        followers.start()
    assert sessions, "it was killed"
    assert sessions[0] != os.getsid(0)  # the terminal's Ctrl-C does not reach it
    shoal.track(run.path, f"mlflow={uri}")
    [its] = recorded.runs.values()
    assert curve(its, "loss") == [(each, 1 / each) for each in range(1, 3 * BATCH + 1)]
    assert len({point[:3] for point in its["metrics"]}) == len(set(its["metrics"]))  # told twice is the same metric


def test_an_mlflow_server_that_is_ill_is_asked_again_and_one_that_refuses_is_not(
    tmp_path: Path, server: tuple[Recorded, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, uri = server
    about = About("run", "ab", 0.0, {"lr": 0.1})
    recorded.ill = 1
    tracker = MLflow(uri)
    with pytest.raises(Down, match="answers with 503"):
        tracker.begin(about, {})
    tracker.begin(about, {})
    tracker.id = "gone"
    monkeypatch.setattr(
        recorded, "_found", lambda what, body: (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run"})
    )
    with pytest.raises(UserError, match=r"refuses runs/log-batch \(404\): Run"):
        tracker.tell([Point(1, 1, 1.0, 1.0, {"loss": 1.0})])
    monkeypatch.setattr(recorded, "answer", lambda what, body, key: (200, [1]))
    with pytest.raises(UserError, match="is no MLflow server"):
        tracker.tell([Point(1, 1, 1.0, 1.0, {"loss": 1.0})])
    with pytest.raises(Down, match="does not answer"):
        MLflow("http://127.0.0.1:1").begin(about, {})


def test_names_that_mlflow_does_not_take_are_changed_and_stay_apart(tmp_path: Path, server: tuple[Recorded, str]) -> None:
    recorded, uri = server
    run = run_of(tmp_path / "run", 0)
    run.metrics_file.write_text(line(1, **{"a_b": 1.0, "a(b": 2.0, "a)b": 3.0, "eval/loss": 4.0}))
    shoal.track(run.path, f"mlflow={uri}")
    [its] = recorded.runs.values()
    told = {key: value for key, _, _, value in its["metrics"] if (key[:1] == "a" and key != "actors") or key == "eval/loss"}
    assert sorted(told.values()) == [1, 2, 3, 4]
    assert (told["a_b"], told["eval/loss"]) == (1, 4)


def test_a_tracker_that_is_slow_holds_up_no_run_and_hears_all_of_it_afterwards(
    tmp_path: Path, server: tuple[Recorded, str]
) -> None:
    recorded, uri = server
    run, slow, said = run_of(tmp_path / "run", 3), threading.Event(), list[str]()
    recorded.now = lambda what: slow.wait()
    with Followers(run, wanted(f"mlflow={uri}"), said.append, held=0.0) as followers:
        followers.start()
    assert said == ["mlflow does not know all rows yet: its follower goes on by itself"]
    slow.set()
    for _ in range(6000):
        if [its.get("status") for its in recorded.runs.values()] == ["FINISHED"]:
            break
        threading.Event().wait(0.1)
    [its] = recorded.runs.values()
    assert curve(its, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


# Other trackers


FAKE = """
import json, os
def put(**what):
    with open({path!r}, "a") as file:
        file.write(json.dumps(what) + "\\n")
class Config:
    def update(self, params, allow_val_change): put(config=dict(params))
class Run:
    config = Config()
    def log(self, values, step): put(step=step, values=values)
    def finish(self, exit_code=0): put(finish=exit_code)
def init(**words):
    put(init=words)
    return Run()
class errors:
    class Error(Exception): ...
    class CommError(Error): ...
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_gets_the_settings_each_row_at_its_step_and_the_same_run_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    heard = tmp_path / "heard.jsonl"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{name}.py").write_text(FAKE.format(path=str(heard)))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(sys.modules, name, None)  # so that the fake is taken out afterwards
    del sys.modules[name]
    run = run_of(tmp_path / "run", 3)
    assert shoal.track(run.path, f"{name}=team/project") == 3
    with run.metrics_file.open("a") as file:
        file.write(line(4, loss=0.25))
    assert shoal.track(run.path, f"{name}=team/project") == 1
    told = [json.loads(text) for text in heard.read_text().splitlines()]
    assert [each["step"] for each in told if "step" in each] == [1, 2, 3, 4]
    assert [each["values"]["loss"] for each in told if "step" in each] == [1.0, 0.5, 1 / 3, 0.25]
    first, second = [each["init"] for each in told if "init" in each]
    assert first == second
    assert first["resume"] == "allow"
    assert first["project"] == ("project" if name == "wandb" else "team/project")
    assert [each.get("config", {}).get("lr") for each in (told[1] if name == "wandb" else first,)] == [0.1]
    assert len([each for each in told if "finish" in each]) == 2


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):  # as TensorBoard itself does
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = value.tensor.float_val[0]
    return sorted(found.items())


def test_tensorboard_shows_each_row_once_though_the_last_follower_told_some_twice(tmp_path: Path) -> None:
    run, to = run_of(tmp_path / "run", 4), tmp_path / "boards"
    assert shoal.track(run.path, f"tensorboard={to}") == 4
    [note] = (run.path / "tracking").glob("*.json")
    kept = json.loads(note.read_text())
    text = run.metrics_file.read_text().splitlines(keepends=True)
    begin, end = len(text[0]), len(text[0]) + len(text[1])
    note.write_text(json.dumps({**kept, "position": {"begin": begin, "end": end, "told": kept["position"]["told"][:2]}}))
    assert shoal.track(run.path, f"tensorboard={to}") == 2
    [folder] = to.iterdir()
    assert scalars(folder, "loss") == [(each, pytest.approx(1 / each)) for each in range(1, 5)]


def test_prometheus_reads_the_newest_row_of_a_run_under_way(tmp_path: Path) -> None:
    tracker = Prometheus(str(tmp_path / "shoal.prom"))
    memory: dict[str, Any] = {}
    tracker.begin(About('a"b\n', "", 0.0, {}), memory)
    tracker.tell(
        [Point(1, 1, 0.5, 0.5, {"version": 1.0, "eval/acc": 0.5}), Point(2, 2, 1.0, 1.0, {"version": 2.0, "loss": 1.5})]
    )
    text = (tmp_path / "shoal.prom").read_text()
    assert 'shoal_version{run="a\\"b\\n"} 2.0' in text
    assert 'shoal_metric{run="a\\"b\\n",name="eval/acc"} 0.5' in text
    later = Prometheus(str(tmp_path / "shoal.prom"))
    later.begin(About("a", "", 0.0, {}), json.loads(json.dumps(memory)))
    later.end("finished")
    text = (tmp_path / "shoal.prom").read_text()
    assert 'state="finished"} 1' in text
    assert 'name="loss"} 1.5' in text
    assert all(part == "" or part.startswith(("# ", "shoal_")) for part in text.split("\n"))


def test_prometheus_scrapes_a_port_of_this_machine(tmp_path: Path) -> None:
    tracker = Prometheus("0")
    tracker.begin(About("run", "", 0.0, {}), {})
    tracker.tell([Point(1, 1, 0.5, 0.5, {"loss": 1.5})])
    port = tracker.door.server_port
    assert tracker.door.server_address[0] == "127.0.0.1"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert 'shoal_metric{run="run",name="loss"} 1.5' in answer.read().decode()
    with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port} .*prometheus=PORT names another"):
        Prometheus(str(port)).begin(About("run", "", 0.0, {}), {})
    ends = threading.Thread(target=tracker.end, args=("finished",))
    ends.start()
    while ends.is_alive():  # it stays until its last row was scraped
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            break
    ends.join()
    assert 'state="finished"' in text


def test_a_scrape_that_began_before_the_end_is_not_the_last(tmp_path: Path) -> None:
    tracker = Prometheus("0")
    tracker.begin(About("run", "", 0.0, {}), {})
    tracker.tell([Point(1, 1, 0.5, 0.5, {f"{number:0100}": 1.0 for number in range(100_000)})])  # more than sockets hold
    with socket.create_connection(("127.0.0.1", tracker.door.server_port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert slow.recv(1)
        ends = threading.Thread(target=tracker.end, args=("finished",))
        ends.start()
        while not tracker.over:
            pass
        while slow.recv(1 << 20):
            pass
    assert not tracker.scraped.is_set()
    with urllib.request.urlopen(f"http://127.0.0.1:{tracker.door.server_port}/metrics") as answer:
        assert 'state="finished"' in answer.read().decode()
    ends.join()


def test_a_scraper_that_goes_away_in_the_middle_of_an_answer_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Prometheus("0")
    tracker.begin(About("run", "", 0.0, {}), {})
    tracker.tell([Point(1, 1, 0.5, 0.5, {f"{number:0100}": 1.0 for number in range(100_000)})])
    before = set(threading.enumerate())
    with socket.create_connection(("127.0.0.1", tracker.door.server_port)) as rude:
        rude.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert rude.recv(1)
        answers = set(threading.enumerate()) - before
    for one in answers:
        one.join()
    assert answers
    tracker.door.shutdown()
    tracker.door.server_close()
    assert capfd.readouterr().err == ""


# What a user asks for


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("mlfow", "did you mean mlflow"),
        ("mlflow=", "the place is empty"),
        ("mlflow=http://", "names no host"),
        ("mlflow=sqlite:///x.db", "pip install mlflow"),
        ("wandb", "pip install wandb"),
        ("prometheus=0", "a port is a number from 1"),
        ("prometheus=x.txt", r"FILE\.prom"),
        (["tensorboard=a", "tensorboard=a/"], "asked for twice"),
        ([3], "no tracker's name"),
    ],
)
def test_a_tracker_that_cannot_be_is_told_in_one_line_before_the_run_has_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why) as raised:
        shoal.run("digits", track=words)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_the_missing_package_and_every_tracker_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "digits", "--track", "trackio"]) == 2
    assert capsys.readouterr().err == "shoal: track=trackio needs trackio, which is not installed: pip install trackio\n"
    with pytest.raises(SystemExit):
        main(["track", "--help"])
    assert "|".join(TRACKERS) in "".join(capsys.readouterr().out.split())


def test_two_followers_of_one_run_do_not_tell_one_tracker(tmp_path: Path, server: tuple[Recorded, str]) -> None:
    recorded, uri = server
    run = run_of(tmp_path / "run", 2)
    found: list[Any] = []

    def second(what: str) -> None:
        recorded.now = lambda what: None
        try:
            shoal.track(run.path, f"mlflow={uri}")
        except UserError as wrong:
            found.append(wrong)

    recorded.now = second
    shoal.track(run.path, f"mlflow={uri}")
    assert f"the follower with pid {os.getpid()} tells {run.path} to mlflow already" in str(found[0])


def test_a_run_is_told_to_its_trackers_by_processes_of_their_own(
    tmp_path: Path, server: tuple[Recorded, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded, uri = server
    monkeypatch.chdir(tmp_path)
    recorded.ill = 1
    job = {"rounds": 3, "clients": 4, "cohort": 4}
    tracks = [f"mlflow={uri}", "tensorboard", "prometheus=out/shoal.prom"]
    shoal.run("digits", actors=0, settings=job, folder="run", track=tracks, show=False)
    run = RunDir(tmp_path / "run")
    rows = [(row["version"], row["metrics"]["loss"]) for row in run.rows()]

    def until(is_so: Callable[[], bool]) -> None:
        for _ in range(6000):  # the end of a run waits for its followers 10 s, and a busy machine may need longer
            if is_so():
                return
            threading.Event().wait(0.1)
        raise AssertionError("the followers did not end")

    until(lambda: [its.get("status") for its in recorded.runs.values()] == ["FINISHED"])
    [its] = recorded.runs.values()
    assert curve(its, "loss") == rows
    until(lambda: 'state="finished"' in (tmp_path / "out" / "shoal.prom").read_text())
    [board] = (tmp_path / "tensorboard").iterdir()
    until(lambda: len(scalars(board, "loss")) == 3)
    assert "answers with 503: trying again" in capfd.readouterr().err

    assert main(["resume", "run", "rounds=5", "--quiet", "--track", f"mlflow={uri}"]) == 0
    assert "told to prometheus, tensorboard before, and now is not" in capfd.readouterr().err
    until(lambda: [its.get("status") for its in recorded.runs.values()] == ["FINISHED"] and len(curve(its, "loss")) == 5)


def test_the_page_on_trackers_begins_with_a_short_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"
    monkeypatch.chdir(tmp_path)
    program = page.read_text().partition("```python\n")[2].partition("```")[0]
    assert 0 < len(program.splitlines()) <= 10
    exec(program, {})
    assert capsys.readouterr().out == "5 rows\n"
    assert 'state="finished"' in (tmp_path / "shoal.prom").read_text()
