"""Readers of words of the command line: numbers, times, addresses, and words from a file.

The one idea: a reader returns the value or raises one line that says what is allowed. This module needs only the standard
library.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

ADDRESS = re.compile(r"(tcp://.+:)(\*|\d+)|ipc://.+")
UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def whole(least: int) -> Callable[[str], int]:
    """A function that reads a whole number from `least`."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers from {least}")
        return int(text)

    return number


def port(text: str) -> int:
    """A port, or 0."""
    number = whole(0)(text)
    if number > 65_535:
        raise argparse.ArgumentTypeError(f"{text}: a port is a number from 0 to 65535")
    return number


def above_zero(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0")
    return number


def address(text: str) -> str:
    """The text, if it has the form tcp://HOST:PORT or ipc://PATH; else an error. ZeroMQ would take port 99999 for 34463, and
    wait there for ever."""
    match = ADDRESS.fullmatch(text)
    if match is None:
        meant = f"; did you mean tcp://{text}?" if re.fullmatch(r"[^:/]+:(\*|\d+)", text) else ""
        raise argparse.ArgumentTypeError(f"{text}: an address has the form tcp://HOST:PORT{meant}")
    if match[2] not in (None, "*") and not 0 < int(match[2]) < 65_536:
        raise argparse.ArgumentTypeError(f"{text}: a port is a number from 1 to 65535")
    return text


def given(read: Callable[[str], str] = str) -> Callable[[str], str]:
    """A function that reads a word, or the first line of FILE for a word @FILE, with `read`."""

    def word(text: str) -> str:
        if not text.startswith("@"):
            return read(text)
        try:
            with open(text[1:], encoding="utf-8") as file:
                found = file.readline().strip()
        except (OSError, UnicodeDecodeError) as refused:
            raise argparse.ArgumentTypeError(f"{text}: cannot read the file ({refused})") from None
        if not found:
            raise argparse.ArgumentTypeError(f"{text}: the first line of the file is empty")
        return read(found)

    return word


def duration(text: str) -> float:
    """The seconds in a text like 90, 90s, 30m, 2h or 1d."""
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a time is a number above 0 with s, m, h or d: 90s, 30m, 2h")
    return seconds


def seconds(text: str) -> float:
    """The seconds in a text like 2ms, 100ms, 0.5 or 1s."""
    number, unit = (text[:-2], 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    try:
        found = float(number) * unit
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a time is a number from 0 with ms or s: 2ms, 100ms, 1s")
    return found


def place(text: str) -> str:
    """A folder as it is typed, or an address."""
    return address(text) if "://" in text else text
