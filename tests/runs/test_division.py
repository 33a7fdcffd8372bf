"""`shoal partition JOB`: how the data is divided, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed import ran

from shoal import Federated
from shoal.jobs.catalog import find
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError
from shoal.runs.division import Division, division, draw

X, Y = np.zeros((90, 4), np.float32), np.arange(90) % 3


def made(**more: Any) -> Division:
    return division(Federated(mlp, ((X, Y), (X[:9], Y[:9])), **{"clients": 3, "cohort": 1, "partition": "iid", **more}))


def test_a_division_counts_each_clients_examples_of_each_class() -> None:
    found = made(partition="pathological", classes=1)
    assert found.classes == (0, 1, 2)
    assert found.sizes.tolist() == [30, 30, 30]
    assert found.counts is not None
    assert sorted(found.counts.tolist()) == [[0, 0, 30], [0, 30, 0], [30, 0, 0]]
    plain = found.plain()
    assert (plain["clients"], plain["examples"], plain["held_out"], plain["classes"]) == (3, 90, 9, [0, 1, 2])
    assert [sum(each["classes"].values()) for each in plain["by_client"]] == [30, 30, 30]


def test_the_seed_of_the_run_divides_as_the_run_does() -> None:
    job = find("digits").configured({"clients": 20}, 5)
    found = division(job)
    population = job.problem.population(job.method, 5)  # type: ignore[attr-defined]
    assert found.sizes.tolist() == population.sizes.tolist()
    assert division(find("digits").configured({"clients": 20}, 6)).sizes.tolist() != found.sizes.tolist()


def test_labels_that_are_no_classes_are_counted_alone() -> None:
    found = division(Federated(mlp, (X, np.linspace(0.1, 0.9, 90)), clients=4, cohort=1, partition="iid"))
    assert found.counts is None
    assert found.plain()["classes"] is None
    assert found.plain()["by_client"][0] == {"client": 0, "examples": 18}
    assert str(found).splitlines()[-1].split() == ["3", "18", "-"]


def test_the_table_names_the_largest_classes_and_fifty_clients() -> None:
    lines = str(made(clients=60)).splitlines()
    assert lines[0] == "federated  partition=iid  seed 0"
    assert lines[1] == "90 examples of 60 clients, 9 held out; a client has 1 to 2, the median is 2"
    assert lines[2].split() == ["client", "examples", "classes"]
    assert len(lines) == 3 + 50 + 1
    assert lines[-1] == "... and 10 more clients: --json lists them all"


@pytest.mark.parametrize("more", [{}, {"clients": 80, "partition": "iid"}])
@pytest.mark.parametrize("y", [Y, np.linspace(0.1, 0.9, 90)])
def test_a_picture_is_drawn_for_few_and_for_many_clients(tmp_path: Path, more: Any, y: Any) -> None:
    found = division(Federated(mlp, ((X, y), (X[:9], y[:9])), **{"clients": 3, "cohort": 1, "partition": "iid", **more}))
    assert draw(found, tmp_path / "it.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_prints_a_table_json_or_the_pictures_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("partition", "digits", "clients=12", "partition=shards", "--seed", 3)
    assert ran(*words).out.splitlines()[0] == "digits  partition=shards  seed 3"
    found = json.loads(ran(*words, "--json").out)
    assert (found["clients"], found["examples"], found["held_out"]) == (12, 1438, 359)
    assert ran(*words, "--plot").out == "partition.png\n"
    assert Path("partition.png").read_bytes()[:4] == b"\x89PNG"
    assert ran(*words, "--plot", "other.svg").out == "other.svg\n"
    assert "<svg" in Path("other.svg").read_text()


def test_a_job_or_a_file_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="job cartpole has no data that is divided"):
        division(find("cartpole"))
    for path, says in ((tmp_path / "it.doc", "cannot draw .doc; use .png"), (tmp_path / "no" / "it.png", "no folder")):
        with pytest.raises(UserError, match=says):
            draw(made(), path)
