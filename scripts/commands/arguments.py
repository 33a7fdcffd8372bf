"""The words of the command line: their forms, and the one-line error for a wrong word.

The one idea: the error for an unknown name gives the nearest known name. This module needs only the standard library, so that
`shoal --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from shoal import __version__
from shoal.commands import completion
from shoal.commands.readers import above_zero, address, duration, given, place, port, seconds, whole
from shoal.jobs.settings import nearest

Act: TypeAlias = Callable[[argparse.Namespace], int]

EPILOG = """\
JOB is a built-in name (see `shoal jobs`), gymnasium:ENV_ID, pettingzoo:NAME, a TOML file (a run's config.toml repeats the run),
or your own job as FILE.py:attribute or MODULE:attribute. Completion: eval "$(register-python-argcomplete shoal)"."""
TRACKERS = ("mlflow", "tensorboard", "wandb", "trackio", "prometheus")


class Parser(argparse.ArgumentParser):
    """An argparse parser that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"shoal: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is not known: {nearest(value, action.choices)}")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Ends the program with an error for words that are no options of this command."""
        options = [word for action in self._actions for word in action.option_strings if word.startswith("--")]
        first = words[0].partition("=")[0]
        self.error(f"{first!r} is not known: {nearest(first, options) if first.startswith('-') else 'it is one word too many'}")


BEST = "the best weights, which a run with keep_best=true has kept, and not the newest ones"
EVALUATORS = (
    "actors of this machine that do evaluations alone, every eval_every versions (default: 0, and training actors do them)"
)
TRUST = "run the job's own code also if the run's folder is not signed as yours"


def _or(variable: str) -> dict[str, Any]:
    """A default from the environment, which is read like a typed word."""
    return {"default": os.environ.get(variable) or None}


def parser(acts: Mapping[str, Act]) -> argparse.ArgumentParser:
    """The parser of the whole command line. acts: name of a command -> the function that carries it out."""
    top = Parser("shoal", description="Federated and reinforcement learning over long-lived actors.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"shoal {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (about, add_words) in COMMANDS.items():
        made: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about, epilog=EPILOG)
        made.set_defaults(act=acts[name], parser=made)
        add_words(made)
    return top


def _jobs(one: argparse.ArgumentParser) -> None:
    _named(one.add_argument("job", nargs="?", metavar="JOB"))
    _settings(one, "settings of the job, from which others may follow: method=sac, say")


def _partition(one: argparse.ArgumentParser) -> None:
    _job(one)
    picture = "draw the clients' classes and sizes into FILE (.png, .svg or .pdf; default: partition.png)"
    one.add_argument("--plot", nargs="?", const="partition.png", metavar="FILE", help=picture)
    one.add_argument("--seed", type=whole(0), metavar="S", help="seed of the run, from which a drawn partition follows")
    one.add_argument("--json", action="store_true", help="print one JSON object, with all clients")


def _simulate(one: argparse.ArgumentParser) -> None:
    _job(one)
    _running(one)
    one.add_argument("--transport", choices=("shm", "ipc", "tcp"), help="how arrays travel on this machine")
    _watched(one)


def _coordinator(one: argparse.ArgumentParser) -> None:
    _job(one)
    _running(one)
    one.add_argument("--restart", action="store_true", help="start the coordinator again from its journal whenever it dies")
    _watched(one)
    _facing(one, required=True)


def _actor(one: argparse.ArgumentParser) -> None:
    where = _or("SHOAL_ADDRESS")
    one.add_argument(
        "address",
        type=given(address),
        nargs="?" if where["default"] else None,
        metavar="tcp://HOST:PORT",
        help="the coordinator's address (default: $SHOAL_ADDRESS); an address, --key and --server may be @FILE: its first line",
        **where,
    )
    one.add_argument("--count", type=whole(1), default=1, metavar="N", help="number of actors (default: 1)")
    only = "take evaluations alone: of weights that others train, in a run with eval_every above 0; those then get none"
    one.add_argument("--evaluate", action="store_true", help=only)
    name = "name of the actors in the coordinator's reports (default: $SHOAL_NAME, or this machine's name)"
    one.add_argument("--name", help=name, **_or("SHOAL_NAME"))
    one.add_argument(
        "--job", metavar="FILE.py:attribute", help="this machine's copy of the job, if the coordinator runs a user's own job"
    )
    one.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE",
        help="for a shoal.Pool: functions of this module, and of modules below it, may be called here; may be given again",
    )
    one.add_argument(
        "--trust-code", action="store_true", help="for a shoal.Pool: open pickles of its program, which run its code"
    )
    _keyed(one)
    members = "for method=secagg: your own copy of the CSV file that names the key that plays each client and its signer"
    one.add_argument("--members", default="", metavar="FILE", help=members)
    least = "for method=secagg: take part only in sums of at least N clients (default: what the coordinator asks for)"
    one.add_argument("--least", type=whole(0), default=0, metavar="N", help=least)


def _keys(one: argparse.ArgumentParser) -> None:
    one.add_argument("words", nargs="*", metavar="new|allow|revoke|signer")


def _resume(one: argparse.ArgumentParser) -> None:
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("--trust", action="store_true", help=TRUST)
    one.add_argument("settings", nargs="*", default=[], metavar="key=value", help="a later end of the run: rounds=200, say")
    _facing(one, required=False)
    _watched(one)
    one.add_argument("--actors", type=whole(0), metavar="N")
    one.add_argument("--evaluators", type=whole(0), metavar="N", help=EVALUATORS)
    _tracking(one)
    one.add_argument("--quiet", action="store_true")
    _logging(one)
    one.add_argument("--json", action="store_true")


def _sweep(one: argparse.ArgumentParser) -> None:
    _job(
        one,
        "one value, a list lr=0.01,0.1, a range lr=1e-4..1e-1~log or rounds=1..9; seed=0..9 tries each with ten seeds",
    )
    one.add_argument("--trials", type=whole(1), metavar="N", help="trials in all; a grid needs no number")
    one.add_argument("--timeout", type=duration, metavar="T", help="time after which no trial begins: 90s, 30m, 2h")
    one.add_argument(
        "--sampler",
        default="",
        metavar="NAME",
        help="Optuna's tpe, random, cmaes, gp or qmc, or grid (default: grid if all is listed and no --trials, else tpe)",
    )
    one.add_argument(
        "--pruner",
        default="",
        metavar="NAME",
        help="Optuna's asha, median, hyperband, percentile, wilcoxon or none (default); asha:reduction_factor=3 sets arguments",
    )
    one.add_argument(
        "--goal",
        default="",
        metavar="max:METRIC|min:METRIC",
        help="what to look for (default: accuracy, held_out_loss or return_mean, whichever the job has; min for an objective)",
    )
    one.add_argument("--actors", type=whole(1), metavar="N", help="trials at a time, each in a process (default: the cores)")
    one.add_argument("--run-dir", metavar="DIR", help="a new folder for the sweep (default: sweeps/JOB-DATE-TIME)")
    one.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that the learners compute on")
    one.add_argument(
        "--seed", type=whole(0), metavar="S", help="seed of the sampler, and of trials if no seed=... names theirs"
    )
    one.add_argument("--quiet", action="store_true", help="print only errors and the result")
    one.add_argument("--json", action="store_true", help="print the result as one JSON object, in the last line")


def _status(one: argparse.ArgumentParser) -> None:
    where_to = "folder of a run of this machine, or the address of a coordinator, which is asked"
    one.add_argument("place", type=place, metavar="RUN_DIR|tcp://HOST:PORT", help=where_to)
    _keyed(one)
    one.add_argument(
        "--within", type=whole(1), default=60, metavar="S", help="seconds without a step that are no fault (default: 60)"
    )
    one.add_argument("--json", action="store_true")


def _track(one: argparse.ArgumentParser) -> None:
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("tracker", choices=TRACKERS, metavar="|".join(TRACKERS))
    place = "a server's URI, a folder, a project, a port or a FILE.prom; the default depends on the tracker"
    one.add_argument("--to", default="", metavar="PLACE", help=place)
    one.add_argument("--quiet", action="store_true", help="print only errors")


def _watch(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "places",
        nargs="*",
        type=place,
        metavar="RUN_DIR|SWEEP_DIR|tcp://HOST:PORT",
        help="what to show side by side, finished or going (default: the newest run or sweep)",
    )
    one.add_argument(
        "--port", type=port, metavar="P", help="port of the page; 0: any (default: 8265, or the next that is free)"
    )
    one.add_argument("--host", default="", metavar="HOST", help="address that the page is bound to (default: 127.0.0.1)")
    shown = "token without which nothing is shown (default: $SHOAL_WATCH_TOKEN; none on 127.0.0.1, else a new one)"
    one.add_argument("--token", type=given(), metavar="TOKEN", help=shown, **_or("SHOAL_WATCH_TOKEN"))
    _keyed(one)
    one.add_argument("--socket", type=whole(0), help=argparse.SUPPRESS)  # of a page that `--watch` started
    one.add_argument("--beside", type=whole(0), help=argparse.SUPPRESS)


def _evaluate(one: argparse.ArgumentParser) -> None:
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("--trust", action="store_true", help=TRUST)
    one.add_argument(
        "--episodes",
        type=whole(1),
        default=100,
        metavar="N",
        help="number of episodes for a reinforcement-learning job (default: 100)",
    )
    one.add_argument(
        "--video",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write a video of one greedy episode, a new .mp4 or .gif file (default: in the run's folder)",
    )
    one.add_argument("--best", action="store_true", help=BEST)
    one.add_argument("--json", action="store_true")


def _compare(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "candidates",
        nargs="+",
        metavar="RUN_DIR|FOLDER|ARM",
        help="two runs; more, where those of one setting and several seeds are one candidate; a folder and arms lr=0.1 lr=0.2",
    )
    one.add_argument(
        "--by", choices=("seed", "example"), default="", help="pairs: training seeds, or held-out examples or episodes"
    )
    goal = "metric to compare, its direction in front if the name does not say it: accuracy, min:cost"
    one.add_argument("--goal", default="", metavar="[max:|min:]METRIC", help=goal)
    fresh = "greedy episodes for each run of a reinforcement-learning job, the same for all (default: 100)"
    one.add_argument("--episodes", type=whole(1), default=0, metavar="N", help=fresh)
    equal = "ask whether the difference is smaller than D: exit code 0 if that is shown, else 1"
    one.add_argument("--equal", type=above_zero, metavar="D", help=equal)
    one.add_argument("--find", type=above_zero, metavar="D", help="tell how many pairs it takes to find a difference of D")
    looks = (
        "give bounds that hold however often you look while seeds or episodes are added; leaves out runs that have not ended"
    )
    one.add_argument("--sequential", action="store_true", help=looks)
    served = "compare the models of a server by the outcomes that were posted to it; the folder is that of its serve.jsonl"
    one.add_argument("--served", action="store_true", help=served)
    one.add_argument("--trust", action="store_true", help=TRUST)
    one.add_argument("--json", action="store_true")


def _plot(one: argparse.ArgumentParser) -> None:
    one.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    one.add_argument("--out", metavar="FILE.png")


def _tune(one: argparse.ArgumentParser) -> None:
    _job(one)
    one.add_argument("--actors", type=whole(1), metavar="N", help="actors of every run (default: several numbers are tried)")
    one.add_argument("--seconds", type=above_zero, default=3.0, metavar="S", help="seconds of each run (default: 3)")
    one.add_argument("--seed", type=whole(0), metavar="S")
    one.add_argument("--json", action="store_true", help="print one JSON object")


def _export(one: argparse.ArgumentParser) -> None:
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("--trust", action="store_true", help=TRUST)
    one.add_argument("--to", required=True, metavar="FILE.safetensors|FILE.pt2|FILE.onnx")
    one.add_argument("--best", action="store_true", help=BEST)


def _bench(one: argparse.ArgumentParser) -> None:
    one.add_argument("cases", nargs="*", metavar="CASE")
    one.add_argument("--quick", action="store_true", help="take at most 50 s for each case")
    one.add_argument("--minutes", type=whole(1), metavar="M", help="minutes that the case soak takes (default: 1)")
    one.add_argument(
        "--peers",
        choices=("install", "installed", "off"),
        help="frameworks to compare with, each in its own virtual environment: install missing ones (default), use only those "
        "that are installed (default with --quick), or leave all out",
    )
    one.add_argument("--json", action="store_true", help="print only the JSON lines")


def _serve(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "sources",
        nargs="+",
        type=place,
        metavar="RUN_DIR|tcp://HOST:PORT",
        help="runs whose newest weights answer, and each newer snapshot; or a coordinator, whose versions are followed",
    )
    one.add_argument(
        "--split", default="", metavar="90,10", help="percentage of requests for each model (default: equal shares)"
    )
    sticky = "header with the user's key: a user is always answered by the same model (over ZeroMQ: key=)"
    one.add_argument("--sticky", default="", metavar="HEADER", help=sticky)
    one.add_argument("--test", default="", metavar="NAME", help="name of the test, by which users are shared out anew")
    one.add_argument("--max-batch", type=whole(1), default=64, metavar="ROWS", help="rows of a batch and of a request, at most")
    company = "time that a request, which came while the model was busy, waits for others, at most (default: 2ms)"
    one.add_argument("--max-wait", type=seconds, default=0.002, metavar="T", help=company)
    one.add_argument(
        "--deadline", type=seconds, default=0.0, metavar="T", help="time after which a request is declined (default: none)"
    )
    one.add_argument("--queue", type=whole(1), default=4_096, metavar="ROWS", help="rows that may wait (default: 4096)")
    one.add_argument("--replicas", type=whole(1), default=1, metavar="N", help="processes that answer (default: 1)")
    one.add_argument("--host", default="127.0.0.1", help="address of HTTP (default: 127.0.0.1); another one needs --token")
    one.add_argument("--port", type=whole(0), default=8080, help="port of HTTP (default: 8080; 0: any free one)")
    zmq = "address of ZeroMQ (default: tcp://127.0.0.1:5557); one that other machines reach needs --key"
    one.add_argument("--zmq", type=given(address), default="tcp://127.0.0.1:5557", metavar="tcp://HOST:PORT", help=zmq)
    one.add_argument("--only", choices=("http", "zmq"), default="", help="leave the other one out")
    token = "asked of each HTTP request, as Authorization: Bearer TOKEN; @FILE is its first line (default: $SHOAL_TOKEN)"
    one.add_argument("--token", type=given(), metavar="TOKEN", help=token, **_or("SHOAL_TOKEN"))
    _keyed(one)
    own = "this machine's copy of the job, if the coordinator that is followed runs a user's own job"
    one.add_argument("--job", metavar="FILE.py:attribute", default="", help=own)
    one.add_argument("--trust", action="store_true", help=TRUST)
    check = "your own check of each version before it answers: (version, predict) -> a reason to refuse it, or None"
    one.add_argument("--check", metavar="FILE.py:attribute", default="", help=check)
    one.add_argument("--compile", action="store_true", help="compile the model by torch.compile")
    one.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="numbers that the model computes with")
    one.add_argument("--quantize", choices=("int8",), default="", help="quantize linear layers by torch's dynamic quantization")
    most = "what --compile, --dtype or --quantize may cost of accuracy (or of held-out loss, as a share) (default: 0.01)"
    one.add_argument("--max-loss", type=above_zero, default=0.01, metavar="D", help=most)
    one.add_argument(
        "--folder", default="", metavar="DIR", help="folder of serve.json and serve.jsonl (default: the run's own)"
    )


def _keyed(one: argparse.ArgumentParser) -> None:
    """The keys of a command that talks to a coordinator."""
    own = "this machine's own key, see `shoal keys`; needed if other machines take part (default: $SHOAL_KEY)"
    one.add_argument("--key", type=given(), metavar="NAME", help=own, **_or("SHOAL_KEY"))
    server = "the coordinator's public key; needed with --key (default: $SHOAL_SERVER)"
    one.add_argument("--server", type=given(), metavar="PUBLIC", help=server, **_or("SHOAL_SERVER"))


def _job(one: argparse.ArgumentParser, what: str = "settings of the job; `shoal jobs JOB` lists them all") -> None:
    _named(one.add_argument("job", metavar="JOB"))
    _settings(one, what)


def _settings(one: argparse.ArgumentParser, what: str) -> None:
    named = one.add_argument("settings", nargs="*", default=[], metavar="key=value", help=what)
    named.completer = completion.settings  # type: ignore[attr-defined]


def _named(job: argparse.Action) -> None:
    job.completer = completion.jobs  # type: ignore[attr-defined]


def _running(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--actors", type=whole(0), metavar="N", help="actor processes on this machine; 0: no actors, the plain loop"
    )
    one.add_argument("--evaluators", type=whole(0), metavar="N", help=EVALUATORS)
    one.add_argument("--run-dir", metavar="DIR", help="a new folder for the run (default: runs/JOB-DATE-TIME)")
    one.add_argument("--device", choices=("auto", "cpu", "cuda"), help="device that the learner computes on")
    one.add_argument("--seed", type=whole(0), metavar="S")
    _tracking(one)
    one.add_argument("--quiet", action="store_true", help="print only errors and the result")
    one.add_argument("--verbose", action="store_true", help="tell also how the clients are trained: the engines' trial")
    _logging(one)
    one.add_argument("--json", action="store_true", help="print the result as one JSON object, in the last line")


def _tracking(one: argparse.ArgumentParser) -> None:
    what = f"tell the run to {', '.join(TRACKERS[:-1])} or {TRACKERS[-1]}, by a process of its own; may be given several times"
    one.add_argument("--track", action="append", default=[], metavar="TRACKER[=PLACE]", help=what)


def _watched(one: argparse.ArgumentParser) -> None:
    one.add_argument("--watch", action="store_true", help="show the run on a live page meanwhile, and print its address")


def _logging(one: argparse.ArgumentParser) -> None:
    form = "lines on a pipe and in log.txt: text, or one JSON object a line (time, level, kind, text)"
    one.add_argument("--log-format", choices=("text", "json"), default="text", help=form)


def _facing(one: argparse.ArgumentParser, required: bool) -> None:
    one.add_argument("--pause", action="store_true", help="Ctrl-C too leaves actors waiting for a resume, as SIGTERM does")
    one.add_argument("--strict", action="store_true", help="refuse actors whose job file or version of Shoal is another")
    place = "address at which actors reach the coordinator; port * means any free port"
    bound = _or("SHOAL_BIND") if required else {}
    one.add_argument(
        "--bind",
        type=given(address),
        required=required and not bound["default"],
        metavar="tcp://HOST:PORT",
        help=f"{place} (default: $SHOAL_BIND)" if required else place,
        **bound,
    )
    one.add_argument(
        "--key",
        type=given(),
        metavar="NAME",
        help="ask actors for keys, and show them this key; needed if other machines take part (default: $SHOAL_KEY)",
        **_or("SHOAL_KEY"),
    )
    named = "address that the printed invitation names, if actors reach the coordinator by another than it binds"
    one.add_argument("--advertise", type=given(address), metavar="tcp://HOST:PORT", help=named, **_or("SHOAL_ADVERTISE"))
    one.add_argument(
        "--gateway", action="store_true", help="a process of its own talks to actors; always so beyond this machine"
    )


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "jobs": (
        "list the built-in jobs, one line for each, and the families with presets; or all settings of JOB, with those you give",
        _jobs,
    ),
    "partition": ("tell how the training data of JOB is divided among its clients, as a table or a picture", _partition),
    "simulate": ("run JOB to its end on this machine, with a coordinator and N actor processes", _simulate),
    "coordinator": ("start a coordinator for JOB, which actors join from this machine or others", _coordinator),
    "actor": ("start actors that join a coordinator; they may join at any time, from any machine", _actor),
    "keys": (
        "manage the keys that a coordinator lets in: new NAME, allow PUBLIC [NAME], revoke PUBLIC|NAME; signer NAME prints "
        "the key that signs for NAME's clients; no word lists them",
        _keys,
    ),
    "resume": ("go on with a run from its newest snapshot, or with a sweep", _resume),
    "sweep": ("try many settings of JOB, or call your own FILE.py:objective with many trials, and judge them", _sweep),
    "serve": ("answer with a run's model, also while it trains: HTTP and ZeroMQ, batched, split among models", _serve),
    "status": ("tell whether a run is alive and moves: exit code 0, else 1", _status),
    "track": ("tell a run to a tracker, from where its last follower stopped, until the run has ended", _track),
    "watch": ("show runs, sweeps and servers on a live page in a browser: curves, actors, what a run waits for", _watch),
    "evaluate": ("evaluate a run's newest weights on held-out data or fresh episodes", _evaluate),
    "compare": ("tell whether runs differ by more than luck, by how much, and how many more seeds it takes", _compare),
    "plot": ("draw the learning curves of one run, or of several runs in one picture; or a sweep", _plot),
    "tune": ("tell which numbers of actors, environments and steps make most environment steps a second, by short runs", _tune),
    "export": ("write a run's weights, or its model as a torch.export program, for use elsewhere", _export),
    "bench": ("run benchmarks: print a table, and one JSON line for each case", _bench),
}
"""Name -> (one line about the command, the function that adds its words to a parser)."""
