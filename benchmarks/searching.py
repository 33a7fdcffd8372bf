"""A grid search of scikit-learn: the serial loop, and two processes by joblib's backends "shoal" and "loky", and by threads.

The one idea: each search is a program of its own, by turns in one run; two bare processes that share the fits out say what the
machine allows at this time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

from shoal.benchmarks.case import Finding

WALL, CPU = 0.6, 1.1  # most wall time and CPU, to those of the serial loop
WAYS = ("serial", "shoal", "loky", "threading", "bare")
PROGRAM = """
import json, os, sys, time
import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier
from shoal.benchmarks.peers.pools import cpu

import shoal
shoal.Pool  # imported, as joblib has imported loky
way, depths = sys.argv[1], int(sys.argv[2])
X, y = load_digits(return_X_y=True)
X, y = X[:200], y[:200]

def search(depths):
    grid = {"max_depth": depths, "min_samples_leaf": [1, 2, 3, 4, 5], "criterion": ["gini", "entropy"]}
    model = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=5, refit=False)
    return model.fit(X, y).cv_results_["mean_test_score"]

every = list(range(1, depths + 1))
measured = []
for turn in range(2):
    began, spent = time.perf_counter(), cpu()
    if way == "bare":
        if (child := os.fork()) == 0:
            search(every[::2])
            os._exit(0)
        search(every[1::2])
        os.waitpid(child, 0)
        scores = []
    elif way == "serial":
        scores = search(every)
    else:
        with joblib.parallel_config(backend=way, n_jobs=2):
            scores = search(every)
    measured.append((time.perf_counter() - began, cpu() - spent))
print(json.dumps({"measured": measured, "scores": list(scores)}))
"""


def tasks_grid(quick: bool) -> Finding:
    """Measures a search of 1,000 fits of decision trees on 200 digits, in two processes. quick: 150 fits, one turn."""
    depths = 3 if quick else 20
    found = {way: list[tuple[tuple[float, float], tuple[float, float]]]() for way in WAYS}
    scores: dict[str, list[float]] = {}
    for _ in range(1 if quick else 3):
        for way in WAYS:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, way, str(depths)], stdout=subprocess.PIPE, text=True, check=True
            )
            told = json.loads(done.stdout.splitlines()[-1])
            found[way].append(told["measured"])
            scores[way] = told["scores"]
    same = all(scores[way] == scores["serial"] for way in WAYS if way != "bare")

    def ratio(way: str, turn: int, at: int) -> float:
        return median(each[turn][at] for each in found[way]) / median(each[turn][at] for each in found["serial"])

    wall, cpu = ratio("shoal", 0, 0), ratio("shoal", 0, 1)
    details: dict[str, object] = {
        "same_scores": same,
        "fits": 50 * depths,
        "serial_cpu_s": median(e[0][1] for e in found["serial"]),
    }
    for way in WAYS[1:]:
        details[way] = {
            "wall": ratio(way, 0, 0),
            "cpu": ratio(way, 0, 1),
            "wall_second_search": ratio(way, 1, 0),
            "cpu_second_search": ratio(way, 1, 1),
        }
    return Finding(
        figure=wall,
        unit="of the serial loop's wall time, for a first search with the start of its processes",
        goal=WALL,
        floor=ratio("bare", 0, 0),
        peer=ratio("loky", 0, 0),
        ratio=wall / ratio("bare", 0, 0),
        holds=same and wall <= WALL and cpu <= CPU,
        asked=f"wall time at most {WALL:g} and CPU at most {CPU:g} of the serial loop's, and its scores",
        details=details,
    )
