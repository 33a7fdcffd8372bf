"""A notebook runs jobs: by name, made in a cell, in the background; an interrupt ends a run and the notebook goes on."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from typed import ran

BY_NAME = """
import signal
import numpy as np
from torch import nn
import shoal

named = shoal.run("digits", settings={"rounds": 3, "local_epochs": 1})
print(named.summary["weights_sha256"])
"""
MADE_HERE = """
rng = np.random.default_rng(0)
x = rng.normal(size=(600, 5))
y = x.sum(1) > 0
job = shoal.Federated(lambda: nn.Linear(5, 2), (x.astype("f4"), y.astype("i8")), clients=10, cohort=5, rounds=3)
mine = shoal.run(job, show=False)
print(mine.summary["weights_sha256"] == shoal.run(job, actors=0, show=False).summary["weights_sha256"], mine.reason)
mine
"""
WATCHED = """
versions = []
with shoal.start(job, settings={"rounds": 100_000}, show=False) as watched:
    for row in watched:
        versions.append(row["version"])
        if row["version"] == 3:
            watched.stop()
print(versions[:3], watched.reason)
"""
INTERRUPTED = """
class Interrupt:
    def stepped(self, version, metrics, progress): "loss" in metrics and signal.raise_signal(signal.SIGINT)  # not twice
    def moved(self, progress): pass
    def report(self, report): pass

print(shoal.run(job, observers=[Interrupt()], show=False).reason)
"""


def said(cell: nbformat.NotebookNode) -> str:
    return "".join(output["text"] for output in cell.outputs if output.output_type == "stream")


@pytest.mark.filterwarnings("default")  # what Jupyter's own packages warn of
def test_a_notebook_runs_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [nbformat.v4.new_code_cell(code) for code in (BY_NAME, MADE_HERE, WATCHED, INTERRUPTED)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    by_name, made_here, watched, interrupted = notebook.cells
    monkeypatch.chdir(tmp_path)
    alike = ran("simulate", "digits", "rounds=3", "local_epochs=1", "--json").result
    assert alike["weights_sha256"] in said(by_name)
    assert "version 3 of 3 | accuracy" in said(by_name)  # a notebook shows progress, in plain lines
    assert said(made_here) == "True done\n"
    assert "<th>accuracy</th>" in made_here.outputs[-1].data["text/html"]
    assert said(watched) == "[1, 2, 3] stopped by stop()\n"
    assert said(interrupted) == "stopped by SIGINT\n"
