"""`shoal compare`: what it pairs, what it says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed import mistake, ran, shoal

import shoal as public
from shoal.coordinator.reports import Progress
from shoal.protocol.errors import UserError
from shoal.runs.comparison import Comparison
from shoal.runs.observers import Record
from shoal.runs.rundir import Config, RunDir

DIGITS = ("simulate", "digits", "rounds=3", "eval_every=3", "local_epochs=1", "--actors", 0, "--quiet")
GAINS = (0.5, 0.2, 0.4, 0.3, 0.1, 0.6, 0.25, 0.35)  # all above 0: the p of sign flips is 2 / 2^8


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(
    folder: str, seed: int, metrics: Mapping[str, float], job: str = "digits", state: str = "done", **settings: Any
) -> None:
    """A run of two versions, whose last has the metrics."""
    Path(folder).mkdir(parents=True)
    run = RunDir(folder)
    run.write_config(Config(job, seed=seed, settings=settings))
    with Record(run, started=0.0) as record:
        for version, found in ((1, dict.fromkeys(metrics, 0.0)), (2, metrics)):
            record.stepped(version, found, Progress(version, "2 rounds", 0.5, 1.0, 9, 1.0, 0, 0.0, 1))
    run.status_file.write_text(json.dumps({"state": state, "version": 2, "written": 0.0, "stepped": 0.0}))


def arms(folder: str, gains: tuple[float, ...] = GAINS, **more: Any) -> None:
    """Runs of lr=0.1 and lr=0.2, a seed for each gain that the second has in score. Seeds differ more than the arms do."""
    for seed, gain in enumerate(gains):
        made(f"{folder}/a{seed}", seed, {"score": 10.0 * seed, "cost": 10.0 * seed}, lr=0.1, **more)
        made(f"{folder}/b{seed}", seed, {"score": 10.0 * seed + gain, "cost": 10.0 * seed + gain}, lr=0.2, **more)


# Over training seeds


def test_arms_are_paired_by_their_training_seeds() -> None:
    arms("sweep")
    found = public.compare("sweep", "lr=0.1", "lr=0.2", goal="score")
    row = found["B"]
    assert (found.by, found.pairs, found.seeds) == ("seeds", 8, tuple(range(8)))
    assert row.difference == pytest.approx(np.mean(GAINS))
    assert (row.p, row.verdict) == (2 / 2**8, "better")
    assert row.low < np.mean(GAINS) < row.high
    assert row.spread == pytest.approx(np.std(GAINS, ddof=1))
    assert row.unpaired is not None
    assert row.unpaired > 1000  # the seeds are far apart, and their pairs are not


def test_the_lines_are_those_of_the_contract() -> None:
    arms("sweep")
    lines = ran("compare", "sweep", "lr=0.1", "lr=0.2", "--goal", "score").out.splitlines()
    assert lines[:2] == ["A  lr=0.1", "B  lr=0.2"]
    table = "score   A 35.00   B 35.34   B - A = +0.34   95 % interval [+0."
    assert lines[2].startswith(table)
    assert lines[2].endswith("]   paired over 8 seeds")
    assert lines[3].startswith("verdict: B is better (sign-flip p = 0.0078). With this spread 8 seeds find 0.")
    assert lines[3].endswith(" or more, 80 times in 100.")
    assert len(lines) == 4


def test_a_smaller_loss_is_better_and_a_goal_says_so_of_other_names() -> None:
    arms("sweep")
    assert public.compare("sweep", goal="score")["B"].verdict == "better"
    assert public.compare("sweep", goal="min:cost")["B"].verdict == "worse"
    for at in range(8):
        made(f"losses/a{at}", at, {"held_out_loss": 1.0}, lr=0.1)
        made(f"losses/b{at}", at, {"held_out_loss": 0.9 - 0.01 * at}, lr=0.2)
    assert public.compare("losses")["B"].verdict == "better"


def test_a_difference_that_may_be_luck_says_how_many_seeds_would_tell() -> None:
    arms("sweep", (0.5, -0.4, 0.3, -0.6, 0.1, 0.2))
    said = ran("compare", "sweep", "--goal", "score", "--find", 0.2).out
    needed = public.compare("sweep", goal="score", find=0.2)["B"].needed
    assert needed is not None
    assert needed > 6
    assert "verdict: B and A are the same within the noise (sign-flip p = " in said
    assert f"to find 0.2 you need {needed} seeds (shoal sweep ... seed=0..{needed - 1})." in said


def test_runs_that_differ_in_their_seed_alone_are_one_candidate() -> None:
    arms("sweep")
    found = public.compare(*sorted(Path("sweep").iterdir()), goal="score")
    assert (found.name, found["B"].name, found.pairs) == ("lr=0.1", "lr=0.2", 8)
    lists = [[public.load(f"sweep/{arm}{seed}") for seed in range(8)] for arm in "ab"]
    assert public.compare(*lists, goal="score") == found


def test_several_candidates_are_corrected_for_their_number() -> None:
    arms("sweep")
    for seed, gain in enumerate(GAINS):
        made(f"sweep/c{seed}", seed, {"score": 10.0 * seed + gain * (-1) ** seed}, lr=0.4)
    found = public.compare("sweep", "lr=0.1", "lr=0.2", "lr=0.4", goal="score")
    assert [row.letter for row in found.rows] == ["B", "C"]
    assert (found["B"].p_holm, found["C"].p_holm) == (2 * found["B"].p, found["C"].p)
    assert "after Holm for 2 comparisons" in str(found)


def test_an_arm_may_be_of_several_settings_and_numbers_are_compared_as_numbers() -> None:
    arms("one", mu=0.0)
    arms("two", mu=0.5)
    assert "say which: lr=0.1,mu=0.0" in mistake("compare", "one", "two", "lr=0.1", "lr=0.2", "--goal", "score")
    found = public.compare("one", "two", "lr=0.10,mu=0", "lr=2e-1,mu=0", goal="score")
    assert found["B"].verdict == "better"


def test_seeds_without_a_partner_are_left_out_and_named() -> None:
    arms("sweep")
    made("sweep/b9", 9, {"score": 1000.0}, lr=0.2)
    said = ran("compare", "sweep", "--goal", "score").out
    assert "paired over 8 seeds" in said
    assert "left out: lr=0.2: seed 9, which not all candidates have" in said


def test_the_newest_of_two_runs_of_one_seed_counts() -> None:
    arms("sweep")
    made("sweep/again", 0, {"score": 7.0}, lr=0.1)
    found = public.compare("sweep", goal="score")
    assert found.mean == pytest.approx((7.0 + sum(10.0 * seed for seed in range(1, 8))) / 8)
    assert found.left_out == ("sweep/a0: a newer run has its seed",)


# Equality


def test_equality_is_shown_or_not_and_the_exit_code_says_which() -> None:
    arms("sweep", (0.1, -0.1, 0.05, -0.05, 0.02, 0.0, -0.02, 0.03))
    words = ("compare", "sweep", "--goal", "score", "--equal")
    near, far = shoal(*words, 1), shoal(*words, 0.02)
    assert (near.code, far.code) == (0, 1)
    assert "verdict: B and A are equal within 1 (" in near.out
    assert "verdict: B and A are not shown to be equal within 0.02 (" in far.out
    assert "to show equality within 0.02 you need " in far.out


# Looking meanwhile


def test_a_look_in_between_is_refused_unless_it_is_sequential() -> None:
    arms("sweep")
    made("sweep/a8", 8, {"score": 80.0}, lr=0.1)
    made("sweep/b8", 8, {"score": 3.0}, lr=0.2, state="running")
    words = ("compare", "sweep", "--goal", "score")
    refused = mistake(*words)
    assert refused.startswith("sweep/b8 has not ended (running at version 2): wait, or go on with it: shoal resume sweep/b8; ")
    assert "--sequential" in refused
    found = ran(*words, "--sequential").out
    assert "valid at every look" in found
    assert "left out: lr=0.2: not ended: sweep/b8 (running at version 2)" in found


def test_bounds_for_every_look_are_wider() -> None:
    arms("sweep")
    once, always = (public.compare("sweep", goal="score", sequential=each)["B"] for each in (False, True))
    assert always.low < once.low < once.high < always.high
    assert always.p > once.p


def test_a_run_that_its_user_stopped_by_a_rule_has_ended() -> None:
    arms("sweep", GAINS[:-1])
    made("sweep/a7", 7, {"score": 70.0}, lr=0.1, state="stopped by stop_when at version 2")
    made("sweep/b7", 7, {"score": 70.5}, lr=0.2)
    assert public.compare("sweep", goal="score").pairs == 8


def test_an_arm_that_a_pruner_ended_is_left_out_unless_it_is_named() -> None:
    arms("sweep")
    for seed in range(8):
        made(f"sweep/c{seed}", seed, {"score": 0.0}, lr=0.4, state="pruned at version 1")
    found = public.compare("sweep", goal="score")
    assert [row.name for row in found.rows] == ["lr=0.2"]
    assert found.left_out == ("lr=0.4: none of its runs has ended (pruned at version 1)",)
    said = mistake("compare", "sweep", "lr=0.1", "lr=0.4", "--goal", "score")
    assert said.startswith("lr=0.4: none of its runs has ended (pruned at version 1), so there is nothing to compare")


# Two runs, by example


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("two")
    for name, lr in (("a", 0.05), ("b", 0.4)):
        ran(*DIGITS, f"lr={lr}", "--run-dir", place / name)
    return place / "a", place / "b"


def test_two_runs_are_compared_on_the_same_held_out_examples(two: tuple[Path, Path]) -> None:
    found = ran("compare", *two, "--json").result
    [row] = found["rows"]
    assert (found["metric"], found["by"], found["pairs"], row["verdict"]) == ("accuracy", "examples", 359, "better")
    a, b = (public.evaluate(path) for path in two)
    assert (found["mean"], row["mean"]) == pytest.approx((a["accuracy"], b["accuracy"]))
    loss = public.compare(*two, goal="held_out_loss")
    assert (loss.mean, loss["B"].mean) == pytest.approx((a["held_out_loss"], b["held_out_loss"]), rel=1e-5)
    assert (loss.goal, loss["B"].verdict) == ("min", "better")


def test_a_run_against_itself_never_differs(two: tuple[Path, Path]) -> None:
    found = ran("compare", two[0], two[0])
    assert "verdict: B and A are the same within the noise (sign-flip p = 1). The two never differ." in found.out


def test_the_same_comparison_gives_the_same_numbers(two: tuple[Path, Path]) -> None:
    assert public.compare(*two) == public.compare(*two)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("played")
    for name, steps in (("a", 1), ("b", 20_000)):
        words = ("simulate", "cartpole-ppo", f"total_timesteps={steps}", "--actors", 0, "--quiet")
        ran(*words, "--run-dir", place / name)
    return place / "a", place / "b"


def test_two_policies_meet_the_same_episodes(played: tuple[Path, Path]) -> None:
    found = public.compare(*played, episodes=40)
    assert (found.metric, found.by, found.pairs, found["B"].verdict) == ("return_mean", "episodes", 40, "better")
    assert public.compare(played[1], played[1], episodes=40)["B"].spread == 0


def test_more_episodes_are_the_same_and_more(played: tuple[Path, Path]) -> None:
    from shoal.runs.judging import judged

    run = public.load(played[1])
    few, many = (judged(run, episodes, 0)[1]["return_mean"] for episodes in (10, 70))
    np.testing.assert_array_equal(few, many[:10])
    assert len(set(many.tolist())) > 10
    assert judged(run, 10, 1)[1]["return_mean"].tolist() != few.tolist()


def test_runs_that_are_judged_side_by_side_have_the_numbers_of_one_after_the_other(
    played: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.runs import judging

    pools: list[int] = []

    class Counted(public.Pool):
        def __init__(self, actors: int) -> None:
            super().__init__(actors)
            pools.append(actors)

    monkeypatch.setattr(judging, "Pool", Counted)
    monkeypatch.setattr(judging, "cores", lambda: 2)
    asked = [(public.load(path), 3) for path in played]
    together = judging.judged_each(asked, 250)
    assert pools == [2]
    for (unit, values), (run, seed) in zip(together, asked, strict=True):
        alone = judging.judged(run, 250, seed)
        assert unit == alone[0] == "episodes"
        np.testing.assert_array_equal(values["return_mean"], alone[1]["return_mean"])


BROKEN = """
import gymnasium, os
from shoal import Reinforcement
class Sold(gymnasium.Wrapper):
    def step(self, action):
        if os.path.exists("sold"):
            raise KeyError("sold")
        return self.env.step(action)
job = Reinforcement(lambda: Sold(gymnasium.make("CartPole-v1")), method="ppo", total_timesteps=1, num_envs=2, rollout_length=2)
"""


def test_a_mistake_in_an_environment_is_named_also_if_runs_are_judged_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.runs import judging

    monkeypatch.setattr(judging, "cores", lambda: 2)
    Path("mine.py").write_text(BROKEN)
    for name in "ab":
        ran("simulate", "mine.py", "--actors", 0, "--quiet", "--run-dir", name)
    Path("sold").touch()
    assert mistake("compare", "a", "b", "--episodes", 300).startswith("mine.py, line 7, in step: KeyError: 'sold'")


def test_a_policy_s_episodes_pair_whatever_their_lengths(played: tuple[Path, Path]) -> None:
    from shoal.runs.judging import judged

    values = judged(public.load(played[1]), 64, 0)[1]
    np.testing.assert_array_equal(values["return_mean"], values["length_mean"])  # CartPole pays 1 for each step


def test_jobs_with_the_same_held_out_data_may_be_compared_and_others_not(two: tuple[Path, Path]) -> None:
    Path("mine.py").write_text("from shoal.jobs.catalog import digits\njob = digits()\n")
    ran(*(word if word != "digits" else "mine.py" for word in DIGITS), "--run-dir", "mine")
    assert public.compare(two[0], "mine").pairs == 359
    ran(*DIGITS, "held_out=0.3", "--run-dir", "other")
    assert "have other held-out data" in mistake("compare", two[0], "other")


def test_a_stranger_s_code_is_not_run(two: tuple[Path, Path]) -> None:
    Path("mine.py").write_text("from shoal.jobs.catalog import digits\njob = digits()\n")
    ran(*(word if word != "digits" else "mine.py" for word in DIGITS), "--run-dir", "mine")
    ran("compare", two[0], "mine")
    RunDir("mine").signature_file.unlink()
    assert "give --trust" in mistake("compare", two[0], "mine")
    ran("compare", two[0], "mine", "--trust")


OWN = """
import numpy as np
from shoal import Bundle, Federated, Work


class Mine:
    def run(self, weights, client, task):
        if task.kind == "evaluate":
            return Work(None, totals={"cost": ((client + 1) * (1 - float(weights["w"][0])), 1.0)})
        return Work(Bundle.pack({"w": np.full(3, 0.1, np.float32)}), 1.0)


job = Federated(worker=Mine, weights=lambda: {"w": np.zeros(3, np.float32)}, clients=8, cohort=4)
"""


def test_workers_of_one_s_own_are_compared_over_their_clients() -> None:
    Path("mine.py").write_text(OWN)
    for rounds in (2, 5):
        ran("simulate", "mine.py", f"rounds={rounds}", "--actors", 0, "--quiet", "--run-dir", f"r{rounds}")
    found = public.compare("r2", "r5", goal="min:cost")
    assert (found.by, found.pairs, found["B"].verdict) == ("clients", 8, "better")
    assert found["B"].difference == pytest.approx(-0.3 * np.mean(range(1, 9)), rel=1e-5)


# Mistakes


def test_a_mistake_is_one_line() -> None:
    arms("sweep")
    arms("few", GAINS[:5])
    made("rl", 0, {"return_mean": 1.0}, job="cartpole")
    made("fl", 0, {"accuracy": 1.0})
    for words, said in (
        (("rl", "fl"), "rl is a run of the job cartpole and fl of digits"),
        (("few",), "5 training seeds in common (A has 0..4; B has 0..4): at least 6 are needed"),
        (("sweep", "--goal", "scor"), "no metric 'scor' to compare: did you mean score?"),
        (("sweep", "--goal", "up:score"), "expected max:METRIC or min:METRIC"),
        (("sweep", "lr=0.1"), "one candidate is given"),
        (("sweep", "lr=0.1", "lr=0.3"), "lr=0.3: no run has lr=0.3; there are lr=0.1, lr=0.2"),
        (("sweep", "lr=0.1", "lrr=0.3"), "no run has a setting 'lrr': did you mean lr?"),
        (("sweep/a0",), "one run is given"),
        (("sweep/a0", "sweep/a1", "sweep/a2"), "these runs differ in their seed alone"),
        (("sweep/a0", "sweeep/b0"), "sweeep/b0 is no run: it does not exist"),
        (("sweep", "--equal", "0"), "allowed are numbers above 0"),
        (("sweep", "--by", "day"), "'day' is not known"),
    ):
        assert said in mistake("compare", *words), words


def test_a_metric_that_is_no_number_names_the_run() -> None:
    arms("sweep", GAINS[:-1])
    made("sweep/a7", 7, {"score": float("nan")}, lr=0.1)
    made("sweep/b7", 7, {"score": 1.0}, lr=0.2)
    assert "score of sweep/a7 is no number at its end" in mistake("compare", "sweep", "--goal", "score")


def test_a_metric_of_a_whole_set_is_sent_to_the_seeds(two: tuple[Path, Path]) -> None:
    said = mistake("compare", *two, "--goal", "train_accuracy")
    assert said.startswith("train_accuracy has no number for each of the examples")
    assert "--by seed" in said


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"by": "day"}, "by='day': allowed is one of seed, example"),
        ({"equal": -1.0}, "equal=-1: must be a number above 0"),
        ({"episodes": -1}, "episodes=-1: must be a whole number from 0"),
    ],
)
def test_a_mistake_in_python_is_one_line(how: dict[str, Any], said: str) -> None:
    arms("sweep")
    with pytest.raises(UserError, match=said):
        public.compare("sweep", goal="score", **how)
    with pytest.raises(UserError, match="a list of runs is empty"):
        public.compare(["sweep/a0"], [])
    with pytest.raises(UserError, match=r"expected a run, of shoal\.run or shoal\.load, or its folder"):
        public.compare(3, "sweep/a0")  # type: ignore[arg-type]


def test_without_scipy_one_line_names_the_extra() -> None:
    arms("sweep")
    code = "import sys; sys.modules['scipy'] = None\nfrom shoal.commands.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = ["compare", "sweep", "--goal", "score"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "shoal: comparing needs scipy, which is not installed: pip install 'shoal[compare]'\n"


def test_a_comparison_is_plain_data() -> None:
    arms("sweep")
    found = public.compare("sweep", goal="score")
    assert isinstance(found, Comparison)
    assert json.loads(json.dumps(found.plain()))["rows"][0]["verdict"] == "better"
