"""The page in real processes: its address, its stream, its end, and in a Chromium what a person sees."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import Browser, chromium
from typed import mistake

from shoal.faults.patient import ended
from shoal.runs.rundir import Config, RunDir, replaced
from shoal.watching.app import needed
from shoal.watching.page import LOCAL, address_of, bound, show
from shoal.watching.sources import sources_of

NAMES = ("<img src=x onerror=window.bad=1>", "<script>window.bad=1</script>", "</td></table><b>bold", "x" * 90)
PICTURE = Path(__file__).with_name("watch_page.json")
GRID = (30, 20)  # columns and rows of a picture's coarse copy
ROLL = ("number", "name", "host", "pid", "state", "lag", "tasks", "pace", "restarts", "silence")
STATES = ("working", "working", "working", "receiving", "idle")


@contextmanager
def process(*words: object, **how: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "shoal", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def asked(address: str, path: str = "/", **headers: str) -> Iterator[http.client.HTTPResponse]:
    place = urlsplit(address)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            yield answer


def events(stream: http.client.HTTPResponse) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The events of a stream: (name, id, data)."""
    fields: dict[str, str] = {}
    while line := stream.readline().decode():
        name, colon, value = line.rstrip("\n").partition(": ")
        if colon:
            fields[name] = value
        elif fields:
            if "event" in fields:
                yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}


def run_in(folder: Path, actors: int = 3) -> RunDir:
    folder.mkdir(parents=True)
    run = RunDir(folder)
    run.write_config(Config("digits", settings={"lr": 0.1, "rounds": 40}))
    told(run, 1, 40, actors)
    return run


def told(run: RunDir, first: int, last: int, actors: int, state: str = "running") -> None:
    """Write the rows of versions from `first` to `last`, and the status after them."""
    with run.metrics_file.open("a") as file:
        for version in range(first, last + 1):
            metrics = {"accuracy": 1 - 0.9**version, "loss": 2 * 0.95**version, "lag_mean": 1.0, "<b>own</b>": version % 7}
            row = {"version": version, "seconds": version / 2, "steps": 0, "contributions": 10 * version, "metrics": metrics}
            file.write(json.dumps(row) + "\n")
    names = [*NAMES, *(f"box-{at // 8}-{4000 + at}" for at in range(len(NAMES), actors))][:actors]
    rows = [[at, name, "", 4000 + at, STATES[at % 5], at % 3, 1, 0.25, at // 60, 0.1] for at, name in enumerate(names)]
    tasks = {"out": 9, "waiting": 0, "accepted": 10 * last, "stale": 0, "refused": 0, "duplicate": 0, "failed": 0, "aside": 0}
    status = {
        "state": state, "pid": 1, "written": time.time(), "stepped": time.time(), "version": last, "goal": "100 rounds",
        "done": 0.4, "steps": 0, "actors": actors, "waiting_for": [NAMES[0] + ", on task (3, 1), for 12 s"],
        "seconds": last / 2, "contributions": 10 * last, "contributions_per_second": 20.0, "steps_per_second": 0.0,
        "shares": {"training": 0.7, "waiting": 0.2, "moving": 0.1, "stepping": 0.3},
        "roll": {"columns": ROLL, "rows": rows, "tasks": tasks, "lags": [[0, 60], [1, 30], [2, 10]]},
    }  # fmt: skip
    replaced(run.status_file, json.dumps(status) + "\n")


# Processes


def test_the_command_shows_a_run_refuses_other_hosts_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with process("watch", run.path, "--port", 0) as page:
        assert page.stdout is not None
        line = page.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert line.startswith("shoal: run at http://127.0.0.1:")
        with asked(address) as answer:
            assert b"<title>Shoal" in answer.read()
        with asked(address, Host="evil.example") as refused:
            assert (refused.status, refused.getheader("content-security-policy", "")[:18]) == (421, "default-src 'self'")
        with asked(address, "/events") as answer:
            stream = events(answer)
            rows = next(data for name, _, data in stream if name == "rows")
            assert [row[0] for row in rows["rows"]] == [*range(1, 41)]
            page.send_signal(signal.SIGINT)
            assert [name for name, _, _ in stream][-1] == "bye"
        assert ended(page) == 0
        assert page.stderr is not None
        assert page.stderr.read() == ""


def test_a_page_beside_a_run_tells_its_end_and_ends_with_it(tmp_path: Path) -> None:
    words = ["simulate", "digits", "rounds=100000", "eval_every=0", "--actors", 1, "--run-dir", tmp_path / "run", "--quiet"]
    with process(*words, "--watch") as run:
        assert run.stderr is not None
        line = run.stderr.readline()
        assert line.startswith("shoal: watch this run at http://127.0.0.1:")
        address, found = line.split()[-1], []
        with asked(address, "/events") as answer:
            for event in events(answer):
                if event[0] == "rows" and not any(name == "rows" for name, _, _ in found):
                    run.send_signal(signal.SIGINT)
                found.append(event)
        assert ended(run) == 130
    kept = [json.loads(line)["version"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    curve: list[int] = []
    for data in (data for name, _, data in found if name == "rows"):  # the last row is written again, with its evaluation
        curve = [*([] if data["fresh"] else curve), *(row[0] for row in data["rows"])]
    assert curve == kept
    status = [data["status"] for name, _, data in found if name == "status"][-1]
    assert (found[-1][0], status["version"], len(status["roll"]["rows"])) == ("bye", kept[-1], 1)
    assert status["state"] not in ("running", "done")
    with pytest.raises(ConnectionRefusedError), asked(address):
        pass


def test_a_page_whose_run_was_killed_ends_too(tmp_path: Path) -> None:
    words = ["simulate", "digits", "rounds=100000", "--actors", 0, "--run-dir", tmp_path / "run", "--quiet", "--watch"]
    with process(*words) as run:
        assert run.stderr is not None
        with asked(run.stderr.readline().split()[-1], "/events") as answer:
            stream = events(answer)
            assert next(stream)[0] == "hello"
            run.kill()
            assert [name for name, _, _ in stream][-1] == "bye"


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path / "run")
    with bound(LOCAL, 0) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} at 127.0.0.1 cannot be had" in mistake("watch", run.path, "--port", port)
    assert "is no run" in mistake("watch", tmp_path / "none")
    assert "a port is a number" in mistake("watch", run.path, "--port", 70_000)
    assert "--host no.such.host.invalid" in mistake("watch", run.path, "--host", "no.such.host.invalid")
    monkeypatch.chdir(tmp_path)
    assert "start one (shoal simulate digits)" in mistake("watch")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for words in (["watch", run.path], ["simulate", "digits", "rounds=1", "--watch", "--quiet"]):
        assert "pip install 'shoal[watch]'" in mistake(*words)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(Exception, match="watch"):
        needed()


# In a browser


@contextmanager
def served(*folders: Path, port: int | None = 0) -> Iterator[str]:
    """The address of a page about these folders, by a thread."""
    over, listening = threading.Event(), bound(LOCAL, port)
    address = address_of(listening)
    page = threading.Thread(target=show, args=(sources_of([str(folder) for folder in folders]), listening, "", over.is_set))
    page.start()
    try:
        yield address
    finally:
        over.set()
        page.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not chromium():
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def opened(browser: Browser, address: str, width: int = 1280, dark: bool = False) -> None:
    browser.said.clear()
    browser.asked.clear()
    browser.open(address, width, 900, dark)
    browser.until("Number(document.body.dataset.painted || 0) > 1 && document.querySelectorAll('canvas').length > 0")


OVERLAPS = """
(() => {
const shown = [...document.querySelectorAll('.run, .panel')].filter(one => one.offsetParent);
const boxes = shown.map(one => one.getBoundingClientRect());
const hit = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => hit(a, b))).length; })()
"""
CUT = """
[...document.querySelectorAll('.run b, .facts dd, h2, .keys b, .segments span')]
  .filter(one => one.offsetParent && one.clientWidth && one.scrollWidth > one.clientWidth + 1).length
"""


def test_a_hundred_actors_at_two_hertz_are_shown_live_and_html_in_names_is_text(browser: Browser, tmp_path: Path) -> None:
    run, over = run_in(tmp_path / "<i>run", 100), threading.Event()

    def live() -> None:
        version = 40
        while not over.wait(0.5):
            version += 1
            told(run, version, version, 100)

    with served(run.path) as address:
        opened(browser, address)
        writer = threading.Thread(target=live)
        writer.start()
        try:
            browser.until("document.querySelectorAll('#actors tbody tr').length === 100")
            browser.until("Number(document.querySelector('.run b').textContent) >= 43")
            names = browser.value("[...document.querySelectorAll('#actors td.name')].slice(0, 4).map(one => one.textContent)")
            assert names == list(NAMES)
            assert browser.value("document.querySelector('.run .name').textContent") == "<i>run"
            charts = browser.value("[...document.querySelectorAll('.chart .what')].map(one => one.textContent)")
            assert charts == ["accuracy", "loss", "<b>own</b>"]
            assert browser.value("document.querySelector('#waiting li').textContent").startswith(NAMES[0])
            assert browser.value("document.querySelectorAll('img[src=x], main script, main b b').length") == 0
            assert browser.value("window.bad") is None
            for width in (1280, 360):
                browser.look(width, 900)
                browser.until(f"innerWidth === {width}")
                browser.until("document.documentElement.scrollWidth <= innerWidth")
                assert browser.value(OVERLAPS) == 0
                assert browser.value(CUT) == 0
        finally:
            over.set()
            writer.join()
    assert browser.said == []
    assert browser.asked
    assert all(one.startswith(address) for one in browser.asked)


def test_a_page_goes_on_after_a_new_start_and_shows_a_resumed_run_as_one_curve(browser: Browser, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    with served(run.path) as address:
        opened(browser, address)
        assert browser.value("document.querySelector('.chart:nth-child(2)').dataset.points") == "40"
    browser.until("document.getElementById('link').className === 'lost'")
    told(run, 41, 50, 3)
    with served(run.path, port=urlsplit(address).port):
        browser.until("document.querySelector('.chart:nth-child(2)').dataset.points === '50'")
        browser.until("document.getElementById('link').className === 'live'")
        run.rewind(45)
        told(run, 46, 60, 3)
        browser.until("document.querySelector('.chart:nth-child(2)').dataset.points === '60'")


def test_a_coordinator_that_is_silent_and_a_folder_that_is_deleted_are_said_to_be_gone(
    browser: Browser, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "run")
    status = json.loads(run.status_file.read_text())
    replaced(run.status_file, json.dumps({**status, "written": time.time() - 60, "stepped": time.time() - 61}) + "\n")
    with served(run.path) as address:
        opened(browser, address)
        assert browser.value("document.querySelector('.badge').textContent").startswith("gone: silent for ")
        assert "has written nothing" in browser.value("document.getElementById('waiting').textContent")
        run.path.rename(tmp_path / "moved")
        browser.until("document.querySelector('.badge').textContent === 'folder is gone'")
        browser.until("document.querySelectorAll('canvas').length === 0")
        (tmp_path / "moved").rename(run.path)
        browser.until("document.querySelectorAll('canvas').length === 3")
    assert browser.said == []


def test_keys_move_along_a_curve_and_every_panel_has_a_name(browser: Browser, tmp_path: Path) -> None:
    with served(run_in(tmp_path / "a").path, run_in(tmp_path / "b").path) as address:
        opened(browser, address)
        assert "Arrow keys" in browser.value("document.querySelector('.plot').getAttribute('aria-label')")
        browser.value("document.querySelector('.plot').focus()")
        for _ in range(2):
            browser.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
        browser.until("document.querySelector('.values').innerText.startsWith('at ')")
        browser.value("document.querySelectorAll('.run')[1].focus()")
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        browser.until("document.querySelectorAll('.run')[1].getAttribute('aria-pressed') === 'true'")
        label = "one => document.getElementById(one.getAttribute('aria-labelledby'))"
        named = f"[...document.querySelectorAll('section')].map({label})"
        assert browser.value(f"{named}.filter(one => !one || !one.textContent).length") == 0
        colours = "[...document.querySelectorAll('.run .swatch')].map(one => one.style.backgroundColor)"
        assert len(set(browser.value(colours))) == 2
    assert browser.said == []


def coarse(picture: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The mean brightness, 0 to 255, of each field of GRID."""
    from matplotlib.image import imread

    grey = 255 * imread(io.BytesIO(picture), format="png")[..., :3].mean(axis=2)
    wide, high = GRID
    rows = np.array_split(grey, high, axis=0)
    return np.array([[field.mean() for field in np.array_split(row, wide, axis=1)] for row in rows])


def test_the_page_looks_as_its_pictures_do(browser: Browser, tmp_path: Path) -> None:
    """SHOAL_PICTURES=new keeps new pictures: look at the page before."""
    found = {}
    with served(run_in(tmp_path / "run", 40).path) as address:
        for name, width, dark in (("light", 1280, False), ("dark", 1280, True), ("phone", 360, False)):
            opened(browser, address, width, dark)
            browser.until("document.querySelectorAll('#actors tbody tr').length === 40")
            found[name] = coarse(browser.picture(whole=False))
        browser.look(1280, 900)
        browser.value("document.styleSheets[1].disabled = true")
        bare = coarse(browser.picture(whole=False))
    if os.environ.get("SHOAL_PICTURES") == "new":
        PICTURE.write_text(json.dumps({name: one.round().astype(int).tolist() for name, one in found.items()}) + "\n")
    kept = {name: np.array(one) for name, one in json.loads(PICTURE.read_text()).items()}
    away = {name: float(np.abs(one - kept[name]).mean()) for name, one in found.items()}
    assert all(one < 2.5 for one in away.values()), away  # 0.3 from run to run; other fonts move letters by some pixels
    assert float(np.abs(bare - kept["light"]).mean()) > 5.0
    assert float(np.abs(found["light"] - found["dark"]).mean()) > 100.0
