"""The figures that a server tells about itself: `/stats`, `Client.stats()`, `/metrics`, and `serve.json` in its folder.

The one idea: all four tell the same dict, so they cannot disagree. The histograms of several processes add up, so the dict of a
server with replicas has the fields of one process.

`serve.json` is replaced once a second, atomically, in the server's folder: the run's own folder for one run, else
`serving/NAME-DATE-TIME`. Its fields:

| field | what it is |
|---|---|
| `written`, `started` | Unix times in seconds. A server that lives has written within the last 3 s |
| `state` | "serving"; "ended" after a server that was told to end; "starting" before a version is loaded |
| `pids` | process ids, one for each replica |
| `http`, `zmq` | addresses that answer; "" for none |
| `test`, `split` | name of the test, and percentages of the models, in the order of `models` |
| `max_batch`, `max_wait`, `deadline`, `queue_limit` | rows, seconds, seconds (null: none), rows |
| `queue` | rows that wait now |
| `requests`, `rows` | answered requests, and their rows, since the start |
| `invalid`, `late`, `full`, `failed` | requests not answered: wrong; past their deadline; queue full; the model raised |
| `batches`, `batch` | batches computed since the start, and their mean number of rows (null: none) |
| `p50`, `p99` | seconds from a request's arrival to its answer, over the last 10 to 20 s; null: no request |
| `rate` | answered requests a second, over the last 10 to 20 s |
| `models` | a list, one dict for each model, see below |
| `notes` | lines for a person: the last of what the server said, newest last |

A model's dict: `model` (name), `source` (run folder or address), `version` (null: none loaded yet), `pinned` (version or null),
`swaps`, `held` (versions that a rollback can lead to), `refused` (list of `{"version", "why"}`, the last eight), `refusals`
(their number), `requests`, `rows`, `p50`, `p99`, `share` (percent).
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.serving.book import Book
from shoal.serving.histogram import Histogram, Latencies, added, histogram_of

COUNTED = ("requests", "rows", "invalid", "late", "full", "failed", "batches", "queue", "rate")
OF_A_MODEL = ("requests", "rows", "refusals")


@dataclass(slots=True)
class Of:
    """The counts of one model."""

    times: Latencies
    requests: int = 0
    rows: int = 0


@dataclass(slots=True)
class Stats:
    """The counts of one process. about: the fields of serve.json that do not change."""

    about: Mapping[str, Any]
    sources: Mapping[str, str]
    shares: Mapping[str, float]
    now: float
    invalid: int = 0
    late: int = 0
    full: int = 0
    failed: int = 0
    batches: int = 0
    batched: int = 0
    of: dict[str, Of] = field(default_factory=dict)
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def __post_init__(self) -> None:
        self.of = {name: Of(Latencies(self.now)) for name in self.sources}

    def answered(self, model: str, rows: int, seconds: float, now: float) -> None:
        """Count an answer. seconds: from the request's arrival on."""
        its = self.of[model]
        its.requests += 1
        its.rows += rows
        its.times.add(seconds, now)

    def computed(self, rows: int) -> None:
        """Count a batch."""
        self.batches += 1
        self.batched += rows

    def plain(self, books: Mapping[str, Book[Any]], queue: int, now: float, at: float, state: str) -> dict[str, Any]:
        """The dict of this process, with the histograms that `merged` adds up under "_times". now: of the process's clock, as
        before; at: Unix time."""
        recent = {name: its.times.recent(now) for name, its in self.of.items()}
        models = []
        for name, its in self.of.items():
            book = books[name]
            refused = [{"version": version, "why": why} for version, why in book.refused]
            versions = {
                "version": book.serving.version if book.serving else None,
                "pinned": book.pinned,
                "swaps": book.swaps,
                "held": list(book.held),
                "refused": refused,
                "refusals": book.refusals,
            }
            counts = {"requests": its.requests, "rows": its.rows, "share": self.shares[name]}
            times = {"_times": recent[name].plain(), **_quantiles(recent[name])}
            models.append({"model": name, "source": self.sources[name], **versions, **counts, **times})
        together = added(recent.values())
        return {
            **self.about,
            "written": at,
            "state": state,
            "queue": queue,
            "requests": sum(its.requests for its in self.of.values()),
            "rows": sum(its.rows for its in self.of.values()),
            "invalid": self.invalid,
            "late": self.late,
            "full": self.full,
            "failed": self.failed,
            "batches": self.batches,
            "batch": self.batched / self.batches if self.batches else None,
            **_quantiles(together),
            "rate": sum(recent[name].total / max(1.0, its.times.covered(now)) for name, its in self.of.items()),
            "models": models,
            "notes": list(self.notes),
        }


def _quantiles(times: Histogram) -> dict[str, float | None]:
    return {"p50": times.quantile(0.5), "p99": times.quantile(0.99)}


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The dict of a server of several processes, from theirs: counts are added, and quantiles are those of all answers
    together. All else is as the first has it. The private fields are left out."""
    first = dict(parts[0])
    models = []
    whole = []
    for at, model in enumerate(first["models"]):
        each = [part["models"][at] for part in parts]
        times = added(histogram_of(map(tuple, one["_times"])) for one in each)
        whole.append(times)
        counts = {name: sum(one[name] for one in each) for name in OF_A_MODEL}
        models.append({name: value for name, value in {**model, **counts, **_quantiles(times)}.items() if name[0] != "_"})
    batched = sum(part["batches"] * (part["batch"] or 0.0) for part in parts)
    first |= {name: sum(part[name] for part in parts) for name in COUNTED}
    first["batch"] = batched / first["batches"] if first["batches"] else None
    first["pids"] = [pid for part in parts for pid in part["pids"]]
    return {**first, **_quantiles(added(whole)), "models": models}


def prometheus(found: Mapping[str, Any]) -> str:
    """The dict of `merged` as Prometheus text, version 0.0.4."""
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, rows: Sequence[tuple[Mapping[str, str], Any]]) -> None:
        lines.extend((f"# HELP shoal_serve_{name} {about}", f"# TYPE shoal_serve_{name} {kind}"))
        for labels, value in rows:
            told = ",".join(f"{key}={_quoted(text)}" for key, text in labels.items())
            lines.append(f"shoal_serve_{name}{'{' + told + '}' if told else ''} {_number(value)}")

    models = found["models"]
    metric("requests_total", "counter", "Requests answered.", [({"model": m["model"]}, m["requests"]) for m in models])
    metric("rows_total", "counter", "Rows answered.", [({"model": m["model"]}, m["rows"]) for m in models])
    metric(
        "unanswered_total",
        "counter",
        "Requests not answered, by reason.",
        [({"reason": reason}, found[reason]) for reason in ("invalid", "late", "full", "failed")],
    )
    metric("batches_total", "counter", "Batches computed.", [({}, found["batches"])])
    metric("queue_rows", "gauge", "Rows that wait.", [({}, found["queue"])])
    metric("version", "gauge", "Version that answers.", [({"model": m["model"]}, m["version"]) for m in models])
    metric("refused_versions_total", "counter", "Versions refused.", [({"model": m["model"]}, m["refusals"]) for m in models])
    quantiles = [
        ({"model": m["model"], "quantile": share}, m[name]) for m in models for share, name in (("0.5", "p50"), ("0.99", "p99"))
    ]
    metric("latency_seconds", "gauge", "Time from a request to its answer, over the last seconds.", quantiles)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(value: float | None) -> str:
    return "NaN" if value is None or (isinstance(value, float) and math.isnan(value)) else repr(value)
