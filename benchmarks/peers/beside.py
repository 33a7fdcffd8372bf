"""Peers measured by turns with Shoal: `interleaved(5, ours, floor, beside.turn)`, then `best` and `details`.

The one idea: a peer that is missing or fails becomes a line in the details, and the case goes on without it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.benchmarks.peers import venvs
from shoal.benchmarks.peers.asking import Answer, AnswerError, Question, ask
from shoal.benchmarks.peers.venvs import AbsentError

POLICY = "SHOAL_BENCH_PEERS"  # environment variable of `--peers`: install, installed or off

Best = Callable[[list[float]], float]


class Beside:
    """Questions by name; a finding's details have the answers under the same names. best: max for rates, min for times.

    A full run installs peers that are missing, a quick run uses those that are installed; `--peers` overrides this.
    """

    def __init__(
        self,
        questions: Mapping[str, Question],
        quick: bool,
        best: Best = max,
        *,
        python: Callable[[str, bool], Path] = venvs.python,
        ask: Callable[[Path, Question], Answer] = ask,
    ) -> None:
        self.questions = {name: one for name, one in questions.items() if one.quick or not quick}
        self.left = {name: 1 if quick else one.turns for name, one in self.questions.items()}
        self.pick, self.ask = best, ask
        self.found: dict[str, list[float]] = {name: [] for name in self.questions}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.versions: dict[str, Mapping[str, str]] = {}
        self.pythons: dict[str, Path] = {}
        policy = os.environ.get(POLICY) or ("installed" if quick else "install")
        for peer in dict.fromkeys(one.peer for one in self.questions.values()):
            try:
                if policy == "off":
                    raise AbsentError("--peers off")
                self.pythons[peer] = python(peer, policy == "install")
            except AbsentError as absent:
                self.skipped[peer] = f"skipped: {absent}"
                print(f"{peer} {self.skipped[peer]}", file=sys.stderr, flush=True)

    def turn(self) -> float:
        """Asks every question that has turns left and has not failed, once. Returns the seconds it took."""
        began = time.perf_counter()
        for name, question in self.questions.items():
            if question.peer in self.pythons and self.left[name] and name not in self.failed:
                self.left[name] -= 1
                self._put(name, question)
        return time.perf_counter() - began

    def _put(self, name: str, question: Question) -> None:
        try:
            answer = self.ask(self.pythons[question.peer], question)
        except AnswerError as error:
            self.failed[name] = f"failed: {error}"
            print(f"{name} {self.failed[name]}", file=sys.stderr, flush=True)
        else:
            self.found[name].append(answer.figure)
            self.versions[question.peer] = answer.versions

    def best(self, peer: str) -> float | None:
        """Returns the best median of a peer, among questions that are `alike`; None if none was measured."""
        medians = [
            statistics.median(self.found[name])
            for name, question in self.questions.items()
            if question.peer == peer and question.alike and self.found[name]
        ]
        return self.pick(medians) if medians else None

    def of(self, name: str) -> float | None:
        """Returns the median of one question; None if it was not answered."""
        return statistics.median(self.found[name]) if self.found.get(name) else None

    def details(self) -> dict[str, Any]:
        """Returns each peer's best or the reason why there is none, each question's median by its name, and the versions."""
        told: dict[str, Any] = {}
        for peer in dict.fromkeys(one.peer for one in self.questions.values()):
            names = [name for name, one in self.questions.items() if one.peer == peer]
            failures = [self.failed[name] for name in names if name in self.failed]
            told[peer] = next(found for found in (self.best(peer), self.skipped.get(peer), *failures, "not asked") if found)
        for name in self.questions:
            if self.found[name]:
                told[name] = statistics.median(self.found[name])
            if name in self.failed:
                told[name] = self.failed[name]
        return {**told, "peers_versions": self.versions}
