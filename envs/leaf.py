"""LEAF's federated data sets: handwriting by writer, and Shakespeare's plays by speaking role (Caldas et al. 2018).

The one idea: a client is a person, so the partition is in the files and is not drawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.protocol.errors import UserError

FEMNIST_FROM = "https://github.com/TalwalkarLab/leaf (data/femnist/preprocess.sh -s niid -t sample)"
SHAKESPEARE_FROM = "https://www.gutenberg.org/ebooks/100 (plain text)"
LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The characters that LEAF's network knows, by number; every other character has the number len(LETTERS)."""
LENGTH = 80  # characters of an example
IGNORED = -100  # label of the characters by which a role's last example is filled up; torch's cross entropy leaves it out
ROLES = (  # how a text marks who speaks: one form for each edition
    re.compile(r"^([A-Z][A-Za-z' .&-]{0,40}):[ \t]*$", re.MULTILINE),  # "First Citizen:"
    re.compile(r"^([A-Z][A-Z' &-]{1,40})\.[ \t]*$", re.MULTILINE),  # "HAMLET."
    re.compile(r"^  ([A-Z][A-Za-z' &-]{1,40})\. (?=\S)", re.MULTILINE),  # "  HAMLET. To be", as LEAF's edition
)


def femnist(folder: str | Path) -> Population:
    """FEMNIST's writers from LEAF's JSON files, `train/*.json` and `test/*.json` in the folder: a client is a writer. x uint8
    [n, 1, 28, 28] of scale 255, which a model gets as float32 in [0, 1] (float32 where LEAF's numbers are no bytes), y int64
    [n] from 0 to 61. All writers' test examples together are held out."""
    train, test = (_writers(Path(folder) / part) for part in ("train", "test"))
    if not train or not test:
        raise UserError(
            f"data={folder}: no FEMNIST there; put the folders train and test with LEAF's JSON files into that folder, from "
            f"{FEMNIST_FROM}"
        )
    sizes = np.array([len(y) for _, y in train.values()], np.int64)
    return Population.in_order(_drawn(train), sizes, _drawn(test))


Drawn = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


def _writers(folder: Path) -> Drawn:
    """Writer -> (pictures, classes), in the order of the files. Raises UserError naming a file that is not LEAF's."""
    found: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_bytes())["user_data"]
            for writer, its in data.items():
                x, y = np.asarray(its["x"], np.float32), np.asarray(its["y"], np.int64)
                if len(y):
                    found[str(writer)] = (x.reshape(len(y), 1, 28, 28), y)
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            say = f'expected LEAF\'s {{"user_data": {{writer: {{"x": [784 numbers, ...], "y": [class, ...]}}}}}} ({wrong})'
            raise UserError(f"{path}: {say}; fetch it again") from None
    return found


def _drawn(writers: Drawn) -> Examples:
    """The examples of all writers, one writer after the other, as bytes if their numbers are bytes / 255."""
    x = np.concatenate([x for x, _ in writers.values()])
    y = np.concatenate([y for _, y in writers.values()])
    whole = np.rint(x * 255)
    if ((whole >= 0) & (whole <= 255)).all() and np.abs(x * 255 - whole).max() < 1e-3:
        return Examples(whole.astype(np.uint8), y, scale=255)
    return Examples(x, y)


def shakespeare(path: str | Path, held_out: float = 0.2, length: int = LENGTH) -> Population:
    """The speaking roles of a text file of plays: a client is a role. x: `length` characters of all that the role says, int64
    [n, length]; y: the character that follows each of these, IGNORED behind the end (Reddi et al. 2021; LEAF predicts the last
    one alone, from overlapping examples).

    held_out: the last share of each role's examples, rounded to whole examples; a role with one example keeps it. Roles with
    less than `length` characters are left out. A role that several plays have (MESSENGER) is one client.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as wrong:
        asked = "give a text file of plays, data=FILE"
        raise UserError(f"data={path}: no readable text ({wrong}); {asked}, from {SHAKESPEARE_FROM}, say") from None
    spoken = {role: said for role, said in _roles(text).items() if len(said) > length}
    if not spoken:
        form = "a line `NAME.` or `NAME:` and below it what the role says"
        raise UserError(f"data={path}: no role that speaks more than {length} characters; expected plays with {form}")
    known = {letter: number for number, letter in enumerate(LETTERS)}
    pairs = [_characters(said, known, length) for said in spoken.values()]
    late = [min(len(x) - 1, round(len(x) * held_out)) for x, _ in pairs]
    kept = [(x[: len(x) - few], y[: len(y) - few]) for (x, y), few in zip(pairs, late, strict=True)]
    held = [(x[len(x) - few :], y[len(y) - few :]) for (x, y), few in zip(pairs, late, strict=True)]
    sizes = np.array([len(x) for x, _ in kept], np.int64)
    together = [Examples(*(np.concatenate([pair[part] for pair in each]) for part in (0, 1))) for each in (kept, held)]
    return Population.in_order(together[0], sizes, together[1] if len(together[1]) else None)


def _roles(text: str) -> dict[str, str]:
    """Role -> all that it says, in the order in which roles first speak."""
    text = text.replace("\r\n", "\n")
    marks = max(([*form.finditer(text)] for form in ROLES), key=len)
    found: dict[str, list[str]] = {}
    for name, said in _speeches(text, marks):
        found.setdefault(name.upper(), []).append(said)
    return {name: "\n".join(said) for name, said in found.items()}


def _speeches(text: str, marks: list[re.Match[str]]) -> Iterator[tuple[str, str]]:
    """(role, speech) for each mark: the lines up to the next mark or a blank line, without the spaces around each. A mark with
    a blank line below it is a heading (ACT I.) and says nothing."""
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        below = text[mark.end() : end]
        lines = below.removeprefix("\n").partition("\n\n")[0].splitlines()
        said = "\n".join(line.strip() for line in lines).strip()
        if said and not below.startswith("\n\n"):
            yield mark[1], said


def _characters(said: str, known: Mapping[str, int], length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(x, y) of one role: int64 [n, length] both."""
    numbers = np.array([known.get(letter, len(LETTERS)) for letter in said], np.int64)
    many = -(-(len(numbers) - 1) // length)
    x, y = np.zeros(many * length, np.int64), np.full(many * length, IGNORED, np.int64)
    x[: len(numbers) - 1], y[: len(numbers) - 1] = numbers[:-1], numbers[1:]
    return x.reshape(many, length), y.reshape(many, length)
