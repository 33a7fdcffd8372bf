"""MLflow as a tracker: a server by its REST interface, and any other store by the package mlflow.

The one idea: a run has a tag with the follower's token, so a follower that was killed before it had noted the run finds it
again. A metric's time is a function of its row, so a row that is told again is the same metric, which MLflow's databases keep
once.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

from shoal.jobs.settings import shown
from shoal.protocol.errors import UserError, printable
from shoal.tracking.trackers import About, Down, Point

TOKEN = "shoal.follower"  # the tag
EXPERIMENT = "shoal"
METRICS, PARAMS = 900, 100  # of one request: MLflow takes 1000 things in all, and 100 params
LONGEST = 500  # characters of a param, as the oldest servers take
ANSWER = 10.0  # seconds
LEGAL = re.compile(r"[^\w\-. :/]", re.ASCII)
STATUS: Mapping[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
NEEDED = (
    "track=mlflow: no server is named, and a store of your own needs mlflow, which is not installed: pip install mlflow, "
    "or name a server: mlflow=http://127.0.0.1:5000"
)


def check(word: str, to: str) -> None:
    """Raises UserError for a place that MLflow cannot have, or that needs a package which is not installed."""
    if to.startswith(("http://", "https://")):
        if not urllib.parse.urlsplit(to).hostname:
            raise UserError(f"track={word}: the URI names no host; mlflow=http://127.0.0.1:5000, say")
    elif importlib.util.find_spec("mlflow") is None:
        store = f"track={word}: a store that is no server needs mlflow, which is not installed: pip install mlflow"
        raise UserError(store if to else NEEDED)


class Store(Protocol):
    """A tracking server or a store. Methods raise Down and UserError as a tracker's do."""

    def run(self, experiment: str, about: About) -> str:
        """The id of the run with the token in an experiment; both are made if they are not there."""

    def log(
        self, run: str, metrics: Sequence[tuple[str, float, int, int]], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """metrics: (name, value, Unix time in ms, step)."""

    def status(self, run: str, status: str, end: int | None) -> None:
        """end: Unix time in ms; None while the run is RUNNING."""


class MLflow:
    """An MLflow run. to: URI of a server (http, https), or of a store; "" is MLflow's own choice."""

    unsure = 0

    def __init__(self, to: str) -> None:
        self.store: Store = Server(to) if to.startswith(("http://", "https://")) else Package(to)
        self.id = ""
        self.memory: dict[str, Any] = {}

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        self.id = str(memory.get("run") or self.store.run(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT, about))
        self.memory = memory
        memory["run"] = self.id
        memory.setdefault("end", round(about.started * 1000))
        told: dict[str, str] = memory.setdefault("params", {})
        params = {legal: shown(value)[:LONGEST] for legal, value in _legal(about.params).items()}
        new = [name for name in params if name not in told]
        for at in range(0, len(new), PARAMS):
            part = {name: params[name] for name in new[at : at + PARAMS]}
            self.store.log(self.id, (), part, {})
            told |= part
        # MLflow refuses another value for a param, and a resumed run may have a later end.
        tags = {f"resumed.{name}": value for name, value in params.items() if told[name] != value}
        if tags:
            self.store.log(self.id, (), {}, tags)
        self.store.status(self.id, "RUNNING", None)

    def tell(self, points: Sequence[Point]) -> None:
        metrics = [
            (name, value, round(point.at * 1000), point.step)
            for point in points
            for name, value in _legal(point.values).items()
        ]
        for at in range(0, len(metrics), METRICS):
            self.store.log(self.id, metrics[at : at + METRICS], {}, {})
        self.memory["end"] = round(points[-1].at * 1000)

    def end(self, state: str) -> None:
        self.store.status(self.id, STATUS[state], self.memory["end"])


def _legal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by names that MLflow takes. Two names that would be one get a digest."""
    found = {name: value for name, value in values.items() if not LEGAL.search(name)}
    for name, value in values.items():
        if LEGAL.search(name):
            legal = LEGAL.sub("_", name)
            found[f"{legal}-{blake2b(name.encode(), digest_size=2).hexdigest()}" if legal in found else legal] = value
    return found


class Server:
    """An MLflow tracking server, by REST. MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, say
    who asks; so may the URI itself."""

    def __init__(self, uri: str) -> None:
        parts = urllib.parse.urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        self.uri = f"{parts.scheme}://{host}{parts.path}"
        name, word = (
            parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME"),
            os.environ.get("MLFLOW_TRACKING_PASSWORD", ""),
        )
        word = urllib.parse.unquote(parts.password) if parts.password else word
        self.headers = {"Content-Type": "application/json"}
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self.headers["Authorization"] = f"Bearer {token}"
        elif name:
            both = f"{urllib.parse.unquote(name)}:{word}".encode()
            self.headers["Authorization"] = f"Basic {b64encode(both).decode()}"

    def run(self, experiment: str, about: About) -> str:
        number = self._experiment(experiment)
        search = {"experiment_ids": [number], "filter": f"tags.`{TOKEN}` = '{about.token}'", "max_results": 1}
        if runs := self._asked("runs/search", search).get("runs"):
            return str(runs[0]["info"]["run_id"])
        tags = [{"key": TOKEN, "value": about.token}, {"key": "mlflow.runName", "value": about.name}]
        new = {"experiment_id": number, "start_time": round(about.started * 1000), "run_name": about.name, "tags": tags}
        return str(self._asked("runs/create", new)["run"]["info"]["run_id"])

    def log(
        self, run: str, metrics: Sequence[tuple[str, float, int, int]], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        told = [{"key": name, "value": value, "timestamp": at, "step": step} for name, value, at, step in metrics]
        pairs = [[{"key": name, "value": value} for name, value in some.items()] for some in (params, tags)]
        self._asked("runs/log-batch", {"run_id": run, "metrics": told, "params": pairs[0], "tags": pairs[1]})

    def status(self, run: str, status: str, end: int | None) -> None:
        self._asked("runs/update", {"run_id": run, "status": status, **({} if end is None else {"end_time": end})})

    def _experiment(self, name: str) -> str:
        by_name = f"experiments/get-by-name?{urllib.parse.urlencode({'experiment_name': name})}"
        found = self._asked(by_name, None, ("RESOURCE_DOES_NOT_EXIST",))
        if not found:
            found = self._asked("experiments/create", {"name": name}, ("RESOURCE_ALREADY_EXISTS",))
            found = {"experiment": found} if found else self._asked(by_name, None)  # another follower was first
        return str(found["experiment"]["experiment_id"])

    def _asked(self, what: str, body: Mapping[str, Any] | None, fine: Sequence[str] = ()) -> dict[str, Any]:
        """The server's answer; {} for an error code among `fine`."""
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/{what}", data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:
                found = json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refused:
            with refused:
                code, why = _why(refused)
            if code in fine:
                return {}
            if refused.code in (408, 425, 429) or refused.code >= 500:
                raise Down(f"{self.uri} answers with {refused.code}") from None
            raise UserError(f"{self.uri} refuses {what.partition('?')[0]} ({refused.code}): {why}") from None
        except (OSError, http.client.HTTPException) as none:  # URLError and timeouts are OSErrors
            raise Down(f"{self.uri} does not answer ({getattr(none, 'reason', None) or none})") from None
        except ValueError:
            raise UserError(f"{self.uri} is no MLflow server: its answer to {what.partition('?')[0]} is not JSON") from None
        if not isinstance(found, dict):
            raise UserError(f"{self.uri} is no MLflow server: its answer to {what.partition('?')[0]} is no object")
        return found


def _why(refused: urllib.error.HTTPError) -> tuple[str, str]:
    """The error code and the words of a refusal."""
    try:
        told = json.loads(refused.read(100_000))
        return str(told["error_code"]), printable(str(told.get("message", "")), 200)
    except (OSError, ValueError, TypeError, KeyError):
        return "", refused.reason or "no reason given"


class Package:
    """A store that the package mlflow reaches: a database or a folder."""

    def __init__(self, uri: str) -> None:
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient(uri or None)

    def run(self, experiment: str, about: About) -> str:
        with _told():
            found = self.client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self.client.create_experiment(experiment)
            runs = self.client.search_runs([number], filter_string=f"tags.`{TOKEN}` = '{about.token}'", max_results=1)
            made = (
                runs[0]
                if runs
                else self.client.create_run(
                    number, start_time=round(about.started * 1000), tags={TOKEN: about.token}, run_name=about.name
                )
            )
        return str(made.info.run_id)

    def log(
        self, run: str, metrics: Sequence[tuple[str, float, int, int]], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        told = [Metric(name, value, at, step) for name, value, at, step in metrics]
        with _told():
            self.client.log_batch(
                run, told, [Param(*pair) for pair in params.items()], [RunTag(*pair) for pair in tags.items()]
            )

    def status(self, run: str, status: str, end: int | None) -> None:
        with _told():
            if end is None:
                self.client.update_run(run, status=status)
            else:
                self.client.set_terminated(run, status=status, end_time=end)


class _told:  # noqa: N801  reads as a block
    """A block whose faults of MLflow become Down or UserError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: object) -> None:
        from mlflow.exceptions import MlflowException

        if isinstance(raised, MlflowException):
            why = printable(str(raised), 200)
            if raised.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
                raise Down(why) from None
            raise UserError(why) from None
