"""The user's eyes on a run: observers, `stop_when`, and iteration over rows.

The one idea: the user's code may raise, and the run still ends in good order. The user gets the exception afterwards, with a
line that names the observer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shoal.coordinator.reports import Observer, Progress, Report
from shoal.protocol.errors import UserError, signed
from shoal.protocol.work import Metrics

SEES = ("stepped", "moved", "report")  # the methods of an observer
StopWhen = Callable[[Mapping[str, Any]], object]


class NotYetError(KeyError):
    """A metric that no row has so far."""


class Row(dict[str, Any]):
    """The state of a run after a step: version, seconds, steps, contributions, actors, and the last value of every metric by
    name."""

    def __missing__(self, name: str) -> Any:
        raise NotYetError(name)


class Watch:
    """The observers of the user, and `stop_when`, as one observer that never raises.

    reason: why the run is to end here; "" as long as it is to go on. told: a function that is handed each row.
    Raises UserError for an observer that lacks a method.
    """

    def __init__(
        self, observers: Iterable[Observer] = (), stop_when: StopWhen | None = None, told: Callable[[Row], None] | None = None
    ) -> None:
        if not isinstance(observers, Iterable):
            raise UserError(f"observers is {signed(observers)}: expected a list; observers=[...], say")
        self.observers = list(observers)
        self.stop_when, self.told = stop_when, told
        self.reason = ""
        self.raised: tuple[str, Exception] | None = None  # the first failure: a line that says where, and the exception
        self._lacked, self._seen = "", 0  # a metric that stop_when missed, and the number of rows in which it missed none
        for one in self.observers:
            if lacking := [name for name in SEES if not callable(getattr(one, name, None))]:
                raise UserError(
                    f"observer {_called(one)} has no {', '.join(lacking)}: an observer has "
                    "stepped(version, metrics, progress), moved(progress) and report(report)"
                )
        if stop_when is not None and not callable(stop_when):
            raise UserError(
                f"stop_when={stop_when!r}: must be a function of a row; stop_when=lambda row: row['loss'] < 0.1, say"
            )

    def stop(self, reason: str) -> None:
        """Ask for the end of the run, in good order. The first reason counts."""
        self.reason = self.reason or reason

    # As an observer

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        self._show("stepped", version, metrics, progress)
        if self.stop_when is None and self.told is None:
            return
        state = {"seconds": progress.seconds, "steps": progress.steps, "contributions": progress.contributions}
        row = Row({**progress.metrics, "version": version, **state, "actors": progress.actors})
        if self.told is not None:
            self.told(row)
        if self.stop_when is not None and not self.raised:
            self._consider(self.stop_when, row)

    def moved(self, progress: Progress) -> None:
        self._show("moved", progress)

    def report(self, report: Report) -> None:
        self._show("report", report)

    def _show(self, method: str, *what: Any) -> None:
        for one in list(self.observers):
            try:
                getattr(one, method)(*what)
            except Exception as error:  # noqa: BLE001  raised to the user when the run has ended
                self.observers.remove(one)
                self._fail(f"observer {_called(one)} failed in {method}", error)

    def _consider(self, stop_when: StopWhen, row: Row) -> None:
        try:
            if stop_when(row):
                self.stop(f"stopped by stop_when at version {row['version']}")
            self._seen += 1
        except NotYetError as missing:
            self._lacked = str(missing.args[0])
        except Exception as error:  # noqa: BLE001
            self._fail("stop_when failed", error)

    def _fail(self, where: str, error: Exception) -> None:
        self.raised = self.raised or (f"{where}: {type(error).__name__}: {error}", error)
        self.stop(where)

    # Afterwards

    def complaint(self) -> str:
        """A line if `stop_when` asked for a metric that no row had; "" otherwise."""
        if self._seen or not self._lacked:
            return ""
        return f"stop_when never applied: no row of this run had {self._lacked!r}"


def _called(observer: object) -> str:
    return type(observer).__name__
