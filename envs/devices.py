"""Devices: how fast a client computes, how fast its link is, how much memory it has and how often it drops out; and traces of
the times at which clients can be asked.

The one idea: a device is four numbers and a chance, so that the time of a task is arithmetic, in virtual and in real time.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shoal.protocol.draws import draw
from shoal.protocol.errors import UserError
from shoal.protocol.work import Totals

Mbit = 125_000.0  # bytes a second of 1 Mbit/s


@dataclass(frozen=True, slots=True)
class Device:
    """The machine of a client.

    seconds_per_example: seconds of training for one example, passed over once (an example of three local epochs counts three
    times). download_mbps, upload_mbps: rates of its link in Mbit/s (0: arrays take no time). memory_mb: MB of memory (0: any
    amount). dropout: chance that a task is lost, from 0 to below 1. Raises UserError for a value out of range.
    """

    seconds_per_example: float = 0.0
    download_mbps: float = 0.0
    upload_mbps: float = 0.0
    memory_mb: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise UserError(f"Device({name}={value!r}): must be a number from 0")
        if not self.dropout < 1:
            raise UserError(f"Device(dropout={self.dropout:g}): must be a chance from 0 to below 1")

    def seconds(self, examples: float, down: int, up: int) -> float:
        """Return the seconds of a task. examples: examples trained on, each as often as it is passed over. down, up: bytes of
        the weights and of the contribution."""
        loads = (down, self.download_mbps), (up, self.upload_mbps)
        return self.seconds_per_example * examples + sum(nbytes / (rate * Mbit) for nbytes, rate in loads if rate)


Devices: TypeAlias = Callable[[int], Device]
"""A function client -> its device, the same at each call."""


def drops(device: Device, seed: int, *task: int) -> float:
    """Return the share of a task's time after which the client drops out of it, above 0 to 1; inf if it does not. task:
    version, index and attempt, so that another attempt has a chance of its own."""
    rng = draw(seed, "dropout", *task)
    return 1.0 - rng.random() if rng.random() < device.dropout else math.inf


def examples_of(totals: Totals, weight: float) -> float:
    """Return a client's number of examples from what it contributes: the total `examples`, the count of the total `loss`, or
    the weight of its contribution."""
    if "examples" in totals:
        return totals["examples"][0]
    return totals["loss"][1] if "loss" in totals else weight


def read_devices(path: str, clients: int) -> Devices:
    """Return the devices of a CSV file. Its head has `client` and any of `seconds_per_example`, `download_mbps`, `upload_mbps`,
    `memory_mb` and `dropout`, in any order; there is a row for each client from 0 to clients - 1, or for more clients.

    Raises UserError that names the file, the line and the fix.
    """
    found: dict[int, Device] = {}
    fields = tuple(Device.__slots__)
    for line, row in csv_rows("devices", path, ("client",), fields):
        client = client_of("devices", path, line, row["client"])
        if client in found:
            raise UserError(f"devices={path}: line {line} is a second row for client {client}; a client has one device")
        numbers = {name: _number("devices", path, line, name, row[name]) for name in fields if row.get(name)}
        try:
            found[client] = Device(**numbers)
        except UserError as wrong:
            raise UserError(f"devices={path}: line {line}: {wrong}") from None
    if lacking := [client for client in range(clients) if client not in found]:
        shown = ", ".join(map(str, lacking[:8])) + ", ..." * (len(lacking) > 8)
        raise UserError(
            f"devices={path}: {len(lacking)} of clients={clients} have no row ({shown}); "
            f"give each client a row, or clients={len(found)}"
        )
    return found.__getitem__


def read_traces(path: str, clients: int) -> Mapping[int, list[tuple[float, float]]]:
    """Return the times of a CSV file at which clients can be asked: a head `client,start,end`, and a row for each interval, in
    seconds since the run began, from `start` on and before `end`. Rows may stand in any order.

    Raises UserError that names the file, the line and the fix, also if one of the clients 0 to clients - 1 has no row.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for line, row in csv_rows("traces", path, ("client", "start", "end"), ()):
        start, end = (_number("traces", path, line, name, row[name]) for name in ("start", "end"))
        if not 0 <= start < end:
            raise UserError(f"traces={path}: line {line} has start={start:g} and end={end:g}: expected 0 <= start < end")
        found.setdefault(client_of("traces", path, line, row["client"]), []).append((start, end))
    if lacking := [client for client in range(clients) if client not in found]:
        shown = ", ".join(map(str, lacking[:8])) + ", ..." * (len(lacking) > 8)
        raise UserError(f"traces={path}: {len(lacking)} of clients={clients} have no row ({shown}); give each client a row")
    return found


def csv_rows(name: str, path: str, needed: tuple[str, ...], others: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a CSV file with a head, which has the columns `needed` and may have `others`. Empty lines are left
    out. name: of the setting that names the file, in errors. Raises UserError."""
    known = (*needed, *others)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            head = [word.strip() for word in next(reader, [])]
            if lacking := [word for word in needed if word not in head]:
                raise UserError(
                    f"{name}={path}: the first line lacks {', '.join(lacking)}; it names columns: {','.join(known)}"
                )
            if odd := [word for word in head if word not in known]:
                raise UserError(f"{name}={path}: unknown column {odd[0]!r}; known are {', '.join(known)}")
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(head):
                    raise UserError(
                        f"{name}={path}: line {reader.line_num} has {len(row)} values, and there are {len(head)} columns"
                    )
                yield reader.line_num, {word: cell.strip() for word, cell in zip(head, row, strict=True)}
    except OSError as wrong:
        raise UserError(f"{name}={path}: cannot be read ({wrong.strerror}); give the path of a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as wrong:
        raise UserError(f"{name}={path}: is no CSV file in UTF-8 ({wrong})") from None


def _number(name: str, path: str, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name}={path}: line {line} has {column}={cell!r}: must be a number")
    return value


def client_of(name: str, path: str, line: int, cell: str) -> int:
    """Return the client's number in a cell of a CSV file. Raises UserError."""
    if not (cell.isascii() and cell.isdigit()):
        raise UserError(f"{name}={path}: line {line} has client={cell!r}: must be a whole number from 0")
    return int(cell)
