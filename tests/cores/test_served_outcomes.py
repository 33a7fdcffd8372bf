"""Facts about outcomes of a server's models: who counts, once, and what is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.commands.cli import main
from shoal.protocol.errors import UserError
from shoal.serving.outcomes import compare_served, judged


def diary(rng: np.random.Generator, users: int, lift: float, requests: int = 1) -> Iterator[dict[str, Any]]:
    """Answers and outcomes: every tenth user is answered by b, whose outcomes are better by `lift`."""
    for user in range(users):
        model = "b" if user % 10 == 0 else "a"
        value = float(rng.random() < 0.3 + (lift if model == "b" else 0.0))
        for number in range(requests):
            yield {"request": f"n-{user}-{number}", "key": str(user), "model": model, "version": 1}
        yield {"key": str(user), "outcome": "clicked", "value": value}


def test_a_better_model_is_found() -> None:
    found = judged(diary(np.random.default_rng(0), 10_000, 0.1))
    a, b = found.arms
    assert (a.name, a.units, b.name, b.units, found.by) == ("a", 9_000, "b", 1_000, "users")
    assert b.verdict == "better"
    assert b.low is not None
    assert b.high is not None
    assert 0 < b.low < 0.1 < b.high
    assert "verdict: B is better (Welch p = " in str(found)


def test_equal_models_are_told_apart_in_few_of_many_tests() -> None:
    rng = np.random.default_rng(1)
    found = [judged(diary(rng, 400, 0.0)).arms[1].verdict for _ in range(200)]
    assert sum(verdict != "same within the noise" for verdict in found) <= 20  # 10 of 200 expected


def test_a_user_counts_once_however_many_requests_he_makes() -> None:
    lines = list(diary(np.random.default_rng(2), 1_000, 0.1))
    many = [*lines, *(line for line in lines if "outcome" in line)]
    assert judged(many).arms == judged(lines).arms


def test_an_outcome_of_a_request_is_its_user_s() -> None:
    lines = [
        {**{name: value for name, value in line.items() if name != "key"}, "request": f"n-{line['key']}-0"}
        if "outcome" in line
        else line
        for line in diary(np.random.default_rng(3), 1_000, 0.1)
    ]
    assert judged(lines).arms == judged(diary(np.random.default_rng(3), 1_000, 0.1)).arms


def test_users_of_both_models_and_strangers_are_left_out_and_named() -> None:
    lines = [
        *diary(np.random.default_rng(4), 1_000, 0.1),
        {"request": "n-x", "key": "1", "model": "b", "version": 1},
        {"key": "nobody", "outcome": "clicked", "value": 1.0},
    ]
    found = judged(lines)
    assert sum(arm.units for arm in found.arms) == 999
    assert [why.split()[0] for why in found.left_out] == ["1", "1"]


def test_smaller_may_be_better() -> None:
    lines = list(diary(np.random.default_rng(5), 5_000, 0.2))
    assert judged(lines, "min:clicked").arms[1].verdict == "worse"


@pytest.mark.parametrize(
    ("lines", "goal", "fault"),
    [
        ([], "", "no outcome was posted: POST /outcome"),
        ([{"key": "1", "outcome": "a", "value": 1}, {"key": "1", "outcome": "b", "value": 1}], "", "several outcomes: a, b"),
        ([{"key": "1", "outcome": "clicked", "value": 1}], "clickd", "no outcome 'clickd': did you mean clicked?"),
        ([{"key": "1", "outcome": "clicked", "value": 1}], "most:clicked", "expected max:NAME or min:NAME"),
        ([{"key": "1", "outcome": "clicked", "value": 1}], "", "no model alone has outcomes"),
    ],
)
def test_what_cannot_be_compared_is_one_line(lines: list[dict[str, Any]], goal: str, fault: str) -> None:
    with pytest.raises(UserError) as raised:
        judged(lines, goal)
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_few_users_are_no_comparison() -> None:
    with pytest.raises(UserError, match=r"too few users with outcomes \(b 1\): at least 6"):
        judged(diary(np.random.default_rng(6), 10, 0.1))


def test_the_command_reads_the_folder_of_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in diary(np.random.default_rng(7), 2_000, 0.2))
    (tmp_path / "serve.jsonl").write_text(text + '{"key": "cut sho')
    assert main(["compare", "--served", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"][1]["verdict"] == "better"
    with pytest.raises(UserError, match=r"has no serve.jsonl"):
        compare_served(tmp_path / "no")


@pytest.mark.parametrize(
    "odd",
    [
        b'{"model": "a"}', b'{"outcome": "clicks", "key": "1"}', b'{"outcome": "clicks", "value": 1}', b"[1]", b'"model"',
        b'{"outcome": "clicks", "key": "1", "value": "a"}', b'{"outcome": "clicks", "key": "1", "value": NaN}', b"\xff\xfe",
        b'{"model": ' + b"9" * 5_000 + b"}", b"[" * 5_000,
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_left_out(odd: bytes, tmp_path: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in diary(np.random.default_rng(7), 200, 0.2)).encode()
    found = []
    for content in (text, odd + b"\n" + text + odd + b"\n"):
        (tmp_path / "serve.jsonl").write_bytes(content)
        found.append(compare_served(tmp_path).plain())
    assert found[0] == found[1]
