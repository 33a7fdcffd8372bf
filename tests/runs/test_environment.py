"""Addresses and keys from the environment and from files, as a scheduler hands them in."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from typed import mistake

from shoal.commands.arguments import parser
from shoal.commands.cli import ACTS
from shoal.runs.parts import invitation

AT = "tcp://10.0.0.7:5555"


def asked(*words: str) -> argparse.Namespace:
    return parser(ACTS).parse_args(words)


def test_an_actor_takes_address_name_and_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ADDRESS", AT), ("KEY", "worker"), ("SERVER", "ab" * 32), ("NAME", "w-1")):
        monkeypatch.setenv(f"SHOAL_{name}", value)
    found = asked("actor")
    assert (found.address, found.key, found.server, found.name) == (AT, "worker", "ab" * 32, "w-1")
    assert asked("actor", "tcp://127.0.0.1:1", "--key", "other").address == "tcp://127.0.0.1:1"


def test_a_word_may_be_a_file_whose_first_line_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "at").write_text(f"{AT}\nmore\n")
    (tmp_path / "public").write_text("ab" * 32 + "\n")
    monkeypatch.setenv("SHOAL_SERVER", f"@{tmp_path / 'public'}")
    found = asked("actor", f"@{tmp_path / 'at'}", "--key", "worker")
    assert (found.address, found.server) == (AT, "ab" * 32)


@pytest.mark.parametrize(("content", "why"), [(None, "cannot read the file"), ("", "is empty"), ("nowhere", "has the form")])
def test_a_file_without_an_address_is_a_mistake_in_one_line(tmp_path: Path, content: str | None, why: str) -> None:
    if content is not None:
        (tmp_path / "at").write_text(content)
    assert why in mistake("actor", f"@{tmp_path / 'at'}")


def test_an_address_in_the_environment_is_checked_like_a_typed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_ADDRESS", "tcp://host:99999")
    assert "a port is a number" in mistake("actor")


def test_without_any_address_the_mistake_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_ADDRESS", raising=False)
    assert "tcp://HOST:PORT" in mistake("actor")
    assert "--bind" in mistake("coordinator", "digits")


def test_a_coordinator_binds_and_advertises_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_BIND", "tcp://0.0.0.0:5555")
    monkeypatch.setenv("SHOAL_ADVERTISE", AT)
    found = asked("coordinator", "digits")
    assert (found.bind, found.advertise) == ("tcp://0.0.0.0:5555", AT)
    assert invitation(found.advertise, None) == f"shoal actor {AT}"
