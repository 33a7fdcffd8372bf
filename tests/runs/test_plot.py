"""Learning curves."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.coordinator.reports import Progress
from shoal.protocol.errors import UserError
from shoal.runs.observers import Record
from shoal.runs.plot import figure, groups, mean_of, panels, plot, read
from shoal.runs.rundir import Config, RunDir


def made(folder: Path, config: Config, rows: list[dict[str, float]], steps: int = 0) -> RunDir:
    """A run of one step a row; `steps` environment steps each."""
    folder.mkdir()
    run = RunDir(folder)
    run.write_config(config)
    with Record(run, started=0.0) as record:
        for version, metrics in enumerate(rows, start=1):
            record.stepped(version, metrics, Progress(version, "9 rounds", 0.5, 1.0, 9, 1.0, version * steps, 0.0, 1))
    return run


def learning(tmp_path: Path, name: str, config: Config, rounds: int = 4, **more: Any) -> RunDir:
    return made(tmp_path / name, config, [{"loss": 1 / v, "accuracy": 1 - 1 / v} for v in range(1, rounds + 1)], **more)


def size(png: Path) -> tuple[int, int]:
    raw = png.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert raw[12:16] == b"IHDR"
    assert raw[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", raw[16:24])
    return width, height


def test_one_run_goes_to_its_learning_png(tmp_path: Path) -> None:
    run = learning(tmp_path, "digits-1", Config("digits"))
    assert plot([run]) == run.picture
    assert size(run.picture) == (2 * 6 * 120, round((3.9 + 0.22) * 120))  # two panels: accuracy and loss


def drawn(svg: Path) -> str:
    return svg.read_text()


def test_axes_have_units_and_the_legend_the_runs_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    runs = [learning(tmp_path, f"digits-{lr}", Config("digits", settings={"lr": lr})) for lr in (1, 2)]
    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text
        text = drawn(plot(runs, tmp_path / "both.svg"))
    for said in ("digits lr=1", "digits lr=2", "held-out accuracy (share of examples)", "training loss"):
        assert said in text
    assert text.count("round (version of the weights)") == 2


def test_reinforcement_is_drawn_over_environment_steps(tmp_path: Path) -> None:
    import matplotlib as mpl

    run = made(tmp_path / "cartpole-1", Config("cartpole"), [{"return_mean": 20.0}, {"return_mean": 90.0}], steps=50_000)
    curves = read(run)
    assert curves.x.tolist() == [50_000, 100_000]
    with mpl.rc_context({"svg.fonttype": "none"}):
        text = drawn(plot([run], tmp_path / "one.svg"))
    for said in ("environment steps", "return (mean of the last 100 episodes)", "100k"):
        assert said in text


def test_a_picture_is_replaced_by_a_newer_one(tmp_path: Path) -> None:
    run = learning(tmp_path, "digits-1", Config("digits"))
    run.picture.write_text("older")
    size(plot([run]))


def test_a_picture_of_several_runs_replaces_none_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [learning(tmp_path, f"digits-{seed}", Config("digits", seed=seed)) for seed in (1, 2)]
    assert [plot(runs), plot(runs), plot(runs)] == [Path("learning.png"), Path("learning-2.png"), Path("learning-3.png")]


def test_a_run_that_has_only_numbers_of_bytes_and_losses_is_drawn_by_its_losses(tmp_path: Path) -> None:
    run = made(
        tmp_path / "a", Config("mine"), [{"down_bytes": 9.0, "policy_loss": 1.0, "change_bytes": 2.0, "value_loss": 3.0}]
    )
    assert panels([read(run)]) == ["policy_loss", "value_loss"]


def test_missing_and_nan_metrics_are_gaps(tmp_path: Path) -> None:
    curves = read(made(tmp_path / "a", Config("digits"), [{"loss": 1.0}, {"loss": math.nan, "accuracy": 0.5}]))
    np.testing.assert_array_equal(curves.metrics["loss"], [1.0, math.nan])
    np.testing.assert_array_equal(curves.metrics["accuracy"], [math.nan, 0.5])


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    runs = [learning(tmp_path, f"r{s}", Config("digits", seed=s, actors=s, settings={"lr": 0.1, "mu": 0.0})) for s in (0, 1)]
    other = learning(tmp_path, "other", Config("digits", seed=5, settings={"lr": 0.2, "mu": 0.0}))
    found = groups(map(read, [*runs, other]))
    assert [(label, [each.name for each in group]) for label, group in found] == [
        ("digits lr=0.1 (mean of seeds 0, 1)", ["r0", "r1"]),
        ("digits lr=0.2", ["other"]),
    ]


def test_two_runs_of_one_name_are_both_drawn(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    runs = [learning(tmp_path, "a", Config("digits")), learning(tmp_path / "x", "a", Config("cartpole"))]
    assert [label for label, _ in groups(map(read, runs))] == ["a", "a"]


def test_the_mean_is_taken_where_all_runs_are_and_between_their_points(tmp_path: Path) -> None:
    short = read(made(tmp_path / "s", Config("cartpole"), [{"return_mean": 0.0}, {"return_mean": 10.0}], steps=10))
    long = read(made(tmp_path / "l", Config("cartpole"), [{"return_mean": 0.0}, {"return_mean": 15.0}], steps=15))
    x, y = mean_of([short, long], "return_mean")  # at 10 and 20; at 15 and 30
    assert x.tolist() == [15, 20]
    assert y.tolist() == [(5.0 + 0.0) / 2, (10.0 + 5.0) / 2]


def test_what_people_look_for_comes_before_other_metrics(tmp_path: Path) -> None:
    known = read(made(tmp_path / "a", Config("digits"), [{"norm": 1.0, "loss": 1.0, "accuracy": 0.5}]))
    odd = read(made(tmp_path / "b", Config("mine"), [{"zeal": 1.0, "norm": 1.0, "fun": 2.0}]))
    assert panels([known]) == ["accuracy", "loss", "norm"]  # norm is the user's own
    assert panels([odd]) == ["fun", "norm", "zeal"]


@pytest.mark.parametrize("rows", [[{"loss": 1.0}], [{"loss": math.nan}], [{"loss": math.nan, "accuracy": 0.5}]])
def test_a_run_of_one_step_or_of_nan_alone_is_drawn_all_the_same(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    size(
        plot(
            [made(tmp_path / "a", Config("digits"), rows), made(tmp_path / "b", Config("digits", seed=1), rows)],
            tmp_path / "o.png",
        )
    )


def test_a_run_without_metrics_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^.*digits-1 has no metrics yet[^\n]*$"):
        plot([made(tmp_path / "digits-1", Config("digits"), [])])


@pytest.mark.parametrize(
    ("out", "said"), [("curve.txt", "cannot draw .txt"), ("curve", "without a suffix"), ("no/c.png", "no folder")]
)
def test_a_file_that_cannot_be_drawn_is_one_line(tmp_path: Path, out: str, said: str) -> None:
    run = learning(tmp_path, "digits-1", Config("digits"))
    with pytest.raises(UserError, match=said):
        plot([run], tmp_path / out)


def test_runs_in_virtual_time_are_drawn_by_it_and_beside_another_run_by_rounds(tmp_path: Path) -> None:
    import matplotlib as mpl

    virtual = [learning(tmp_path, f"v{lr}", Config("digits", settings={"lr": lr, "clock": "virtual"})) for lr in (1, 2)]
    other = learning(tmp_path, "w", Config("digits", settings={"lr": 1, "clock": "wall"}))
    with mpl.rc_context({"svg.fonttype": "none"}):
        timed = drawn(plot(virtual, tmp_path / "timed.svg"))
        mixed = drawn(plot([*virtual, other], tmp_path / "mixed.svg"))
    assert ("virtual seconds" in timed, "round (version" in timed) == (True, False)
    assert ("virtual seconds" in mixed, "round (version" in mixed) == (False, True)


def test_a_label_longer_than_the_picture_goes_on_in_the_next_line(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    many = {f"setting_{i}": 0.123456789 for i in range(9)}
    long = [read(learning(tmp_path, f"l{s}", Config("digits", seed=s, settings=many))) for s in (0, 1, 2)]
    short = [read(learning(tmp_path, "s", Config("digits", seed=5, settings=dict.fromkeys(many, 1.0))))]
    assert groups([*long, *short])[0][0].endswith("(mean of seeds 0 to 2)")
    picture = figure([*long, *short])
    FigureCanvasAgg(picture).draw()
    legend = picture.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= picture.bbox.x1
    assert max(text.get_text().count("\n") for text in picture.legends[0].get_texts()) > 0
