"""The clients' devices and the times at which they can be asked, from a federated method's settings.

The one idea: the settings name files or functions, and what they say is checked against the number of clients before a run.
"""

from __future__ import annotations

import math
import threading
import time
from functools import cache
from typing import Any

from shoal.actors import Worker
from shoal.actors.workers.paced import Paced
from shoal.coordinator.deciding.plans.attendance import Attendance, Intervals, merged
from shoal.envs.devices import Device, Devices, read_devices, read_traces
from shoal.jobs.settings import shown
from shoal.protocol.errors import UserError, signed, takes


def check_attending(settings: Any) -> None:
    """Raises UserError for settings of devices, traces and clocks that contradict each other. Reads no file."""
    if settings.clock == "virtual" and not settings.devices:
        raise UserError("clock=virtual: nothing says how long a task takes; devices=FILE.csv, or a function client -> Device")
    if callable(settings.devices):
        takes("devices", settings.devices, "a function client -> Device", 0)
    if callable(settings.traces):
        takes("traces", settings.traces, "a function client -> (start, end) pairs", 0)
    if settings.trace_period and not settings.traces:
        raise UserError(f"trace_period={settings.trace_period:g}: without traces it has no effect; traces=FILE.csv, say")
    if settings.task_memory and not settings.devices:
        raise UserError(f"task_memory={settings.task_memory:g}: without devices it has no effect; devices=FILE.csv, say")
    if settings.concurrency > settings.clients:
        raise UserError(f"concurrency={settings.concurrency}: allowed is from 0 to clients={settings.clients}")


def devices_of(settings: Any) -> Devices:
    """The devices: client -> Device. Raises UserError."""
    if not settings.devices:
        return lambda client: Device()
    if not callable(settings.devices):
        return read_devices(settings.devices, settings.clients)
    function = settings.devices

    @cache
    def device(client: int) -> Device:
        found = function(client)
        if not isinstance(found, Device):
            raise UserError(f"devices: client {client}: {signed(found)}: expected a Device; Device(0.01, upload_mbps=5), say")
        return found

    return device


def paced(settings: Any, worker: Worker, seed: int) -> Worker:
    """The worker, which in wall-clock time takes as long as the clients' devices would; `worker` itself without devices."""
    if not getattr(settings, "devices", ""):
        return worker
    return Paced(worker, devices_of(settings), settings.passes, wait=threading.Event().wait, clock=time.monotonic, seed=seed)


def attendance_of(settings: Any, seconds: float) -> Attendance:
    """The clients that can be asked, and when. seconds: time that earlier lives of the run took. Raises UserError."""
    clients, traces, unfit = settings.clients, None, frozenset[int]()
    if settings.task_memory:
        device = devices_of(settings)
        unfit = frozenset(client for client in range(clients) if 0 < device(client).memory_mb < settings.task_memory)
    if settings.traces:
        traces = _intervals(settings)
    origin = 0.0 if settings.clock == "virtual" else None
    return Attendance(clients, traces, period=settings.trace_period, unfit=unfit, seconds=seconds, origin=origin)


def check_enough(settings: Any, attendance: Attendance, needs: int) -> None:
    """Raises UserError if there is no time at which `needs` clients can be asked."""
    if (fit := len(attendance.fit)) < needs:
        memory = f"task_memory={settings.task_memory:g}: {fit} of clients={settings.clients} have a device with as much"
        raise UserError(f"{memory}, and {needs} are asked at once; task_memory=0, or fewer at once")
    if (most := attendance.most()) < needs:
        never = f"traces={shown(settings.traces)}: at most {most} of clients={settings.clients} can be asked at one time"
        raise UserError(f"{never}, and a round needs {needs}; cohort={max(1, most)}, or other traces")


def _intervals(settings: Any) -> list[Intervals]:
    clients, period, traces = settings.clients, settings.trace_period, settings.traces
    if callable(traces):
        rows = {client: _pairs(traces(client), client) for client in range(clients)}
    else:
        rows = dict(read_traces(traces, clients))
    found = merged(rows, clients)
    last = max((pairs[-1][1] for pairs in found if pairs), default=0.0)
    if period and last > period:
        raise UserError(f"trace_period={period:g}: the traces last to {last:g} s; trace_period={math.ceil(last)}, say")
    return found


def _pairs(given: Any, client: int) -> list[tuple[float, float]]:
    try:
        pairs = [(float(start), float(end)) for start, end in given]
    except (TypeError, ValueError):
        raise UserError(f"traces: client {client}: {signed(given)}: expected pairs of seconds, [(0, 3600)], say") from None
    for start, end in pairs:
        if not 0 <= start < end < math.inf:
            raise UserError(f"traces: client {client}: start={start:g} and end={end:g}: expected 0 <= start < end")
    return pairs
