"""The command line: one function for each command, which turns flags into the arguments of constructors.

The one idea: a module is imported when a command needs it, so that `shoal --help` answers at once and an edge actor needs no
torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shoal.commands.arguments import COMMANDS, Act, parser
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.actors.pool import Pool
    from shoal.jobs.job import Job
    from shoal.runs.launch import Launch
    from shoal.runs.rundir import Config, RunDir
    from shoal.sweeps.found import Sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out one command and returns the exit code: 0 done, 1 the run failed, 2 the user's mistake, 75 paused, 130
    after Ctrl-C, 143 after SIGTERM."""
    top = parser(ACTS)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(top)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than cores, over all processes, slow each other down
    asked = argparse.Namespace()
    try:
        asked = _asked(top, arguments)
        code: int = asked.act(asked)
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as raised:
        from shoal.runs.theirs import told

        if (line := told(raised, getattr(asked, "job", None) or "")) is None:
            raise
        print(f"shoal: {line}", file=sys.stderr)
        return 2


def script(path: str) -> NoReturn:
    """Runs `shoal NAME`, for scripts/NAME.py run as a file. Python had put the folder scripts/ first in sys.path; this function
    removes it, because names in it would hide packages that a user's job may import (`evaluate`, say)."""
    folder = os.path.dirname(os.path.abspath(path))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    sys.exit(main([Path(path).stem, *sys.argv[1:]]))


def _asked(top: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. Words key=value may stand anywhere, also behind options, where argparse by itself refuses them."""
    asked, rest = top.parse_known_args(arguments)
    if wrong := [word for word in rest if word.startswith("-") or "settings" not in asked]:
        asked.parser.unknown(wrong)
    if rest:
        asked.settings = [*asked.settings, *rest]
    return asked


def jobs(asked: argparse.Namespace) -> int:
    from shoal.jobs import families
    from shoal.jobs.catalog import BUILT_IN, find

    if asked.job:
        from shoal.jobs.settings import pairs
        from shoal.runs.choosing import absolute

        job = find(absolute(asked.job)).configured(pairs(asked.settings))
        rows = job.described()
        wide = [max(len(row[at]) for row in rows) for at in (0, 1)]
        print("\n".join(f"{word:<{wide[0]}}  {allowed:<{wide[1]}}  {what}" for word, allowed, what in rows))
        if job.preset is not None:
            from shoal.jobs.settings import shown

            chosen = " ".join(f"{name}={shown(job.plain()[name])}" for name in job.preset.settings)
            print(f"\nFrom the preset ({job.preset.source}), unless you set them: {chosen}")
        return 0
    for name, make in BUILT_IN.items():
        print(f"{name:<16}{make.__doc__}")
    print(f"{'gymnasium:ID':<16}reinforcement: any environment of gymnasium, by PPO; method=sac, say, by another method")
    print(f"{'pettingzoo:NAME':<16}reinforcement: any parallel game of PettingZoo, sisl.pursuit_v5 say, by PPO")
    print("\n".join(["", families.HEAD, *families.lines()]))
    return 0


def partition(asked: argparse.Namespace) -> int:
    from shoal.jobs.settings import pairs
    from shoal.runs.choosing import chosen
    from shoal.runs.division import division, draw
    from shoal.runs.summary import json_line

    job, _, _ = chosen(asked.job, pairs(asked.settings), seed=asked.seed)
    found = division(job)
    if asked.plot is not None:
        print(draw(found, asked.plot), file=sys.stderr if asked.json else sys.stdout)
    if asked.json or asked.plot is None:
        print(json_line(found.plain()) if asked.json else found)
    return 0


def simulate(asked: argparse.Namespace) -> int:
    return _start(asked, bind="", log_format=asked.log_format)


def coordinator(asked: argparse.Namespace) -> int:
    asked.actors = asked.actors or 0
    asked.transport = "shm"  # for actors of this machine; arrays of actors elsewhere go by the socket
    shown = _shown(asked)
    if not asked.restart:
        return _start(asked, bind=asked.bind, **shown)
    from shoal.runs.launch import Launch, new_run, preload
    from shoal.runs.supervise import settled
    from shoal.tracking.trackers import wanted

    shown["track"] = wanted(asked.track)
    job, config = _configured(asked)
    preload(job)
    options = Launch(job, config, new_run(config, asked.run_dir, asked.bind), settled(asked.bind), **shown)
    rows = options.run.metrics_file
    with _page(options.run, asked):
        return _supervised(options, asked, rows)


def _supervised(options: Launch, asked: argparse.Namespace, rows: Path) -> int:
    import threading

    from shoal.runs.supervise import supervised

    return supervised(
        lambda resume: _run(replace(options, resume=resume), asked, page=False),
        lambda text: print(f"shoal: {text}", file=sys.stderr),
        moved=lambda: rows.stat().st_size if rows.exists() else 0,
        wait=threading.Event().wait,
        gone=lambda: "" if options.run.config_file.exists() else f"{options.run.path} is gone, and the run's weights with it",
    )


def _shown(asked: argparse.Namespace) -> dict[str, Any]:
    """The keys and gateway arguments of Launch. Raises UserError, before the run has a folder, if other machines can reach the
    address and no --key is given."""
    from shoal.commands.access import of_coordinator
    from shoal.protocol.door import check_bind

    shown = of_coordinator(asked.key if asked.bind else None)
    if asked.bind:
        check_bind(asked.bind, shown)
    how = {"strict": asked.strict, "gateway": asked.gateway, "log_format": asked.log_format}
    return {"keys": shown, **how, "advertise": asked.advertise or ""}


def _preparing(asked: argparse.Namespace, name: str) -> None:
    """Tell a person at a terminal at once what is prepared: imports and data may take many seconds."""
    if sys.stderr.isatty() and not asked.quiet:
        print(f"shoal: preparing {name} ...", file=sys.stderr, flush=True)


def _start(asked: argparse.Namespace, bind: str, **shown: Any) -> int:
    from shoal.runs.launch import planned
    from shoal.tracking.trackers import wanted

    track = wanted(asked.track)
    told = getattr(asked, "verbose", False)
    return _run(planned(*_configured(asked), asked.run_dir, bind, track=track, verbose=told, **shown), asked)


def _configured(asked: argparse.Namespace) -> tuple[Job, Config]:
    """The job and config that JOB and key=value ask for. If JOB is a TOML file, key=value and flags override its settings."""
    _page_can_be(asked)
    _preparing(asked, asked.job)
    from shoal.jobs.settings import pairs
    from shoal.runs.choosing import chosen

    given = {name: getattr(asked, name) for name in ("actors", "evaluators", "transport", "device", "seed")}
    job, config, _ = chosen(asked.job, pairs(asked.settings), **given)
    return job, config


def _page_can_be(asked: argparse.Namespace) -> None:
    """Raises UserError, before there is a run, if --watch is given and the extra `watch` is not installed."""
    if getattr(asked, "watch", False):
        from shoal.watching.app import needed

        needed()


@contextmanager
def _page(run: RunDir, asked: argparse.Namespace) -> Iterator[None]:
    """A page about the run, in a process of its own, if --watch asks for one. Its address is printed."""
    if not getattr(asked, "watch", False):
        yield
        return
    from shoal.watching.page import beside

    with beside(run.path) as address:
        print(f"shoal: watch this run at {address}", file=sys.stderr, flush=True)
        yield


def _run(options: Launch, asked: argparse.Namespace, page: bool = True) -> int:
    import signal

    from shoal.runs.choosing import brief
    from shoal.runs.launch import launch, ready
    from shoal.runs.plot import plot
    from shoal.runs.progress import display
    from shoal.runs.stopping import Stopper
    from shoal.runs.summary import closing, json_line
    from shoal.runs.supervise import LATER

    run, both = options.run, (signal.SIGINT, signal.SIGTERM)
    with (
        _page(run, asked) if page else nullcontext(),
        ready(options) as begun,
        Stopper(signal.SIG_DFL, pausing=both if getattr(asked, "pause", False) else (signal.SIGTERM,)) as stopper,
        display(sys.stderr, f"{brief(options.config.job)} in {run.path}", asked.quiet, form=asked.log_format) as shown,
    ):
        end = launch(begun, shown, lambda: stopper.reason, stopper.pauses)
    try:
        if run.rows():
            plot([run])
    except OSError as full:  # the run itself is whole
        print(f"shoal: no picture: {full}", file=sys.stderr)
    if end.failed:
        print(f"shoal: the run failed: {end.reason}; {run.log_file} says more", file=sys.stderr)
    print(json_line(end.summary) if asked.json else closing(end.summary, whole=end.reason == "done"))
    if options.bind and stopper.pauses() and not end.failed and end.reason != "done":
        print(f"shoal: actors from elsewhere wait: go on with shoal resume {run.path} --bind ADDRESS", file=sys.stderr)
        return LATER
    return 1 if end.failed else 0 if end.reason == "done" else 128 + (stopper.number or signal.SIGINT)


def actor(asked: argparse.Namespace) -> int:
    import socket
    import threading

    from shoal.actors.pool import Pool
    from shoal.commands.access import of_actor
    from shoal.envs.shelf import Shelf
    from shoal.jobs.catalog import digest_of, find
    from shoal.runs.living import called_on, life_of_any

    called = called_on(asked.address, of_actor(asked.key, asked.server)) | {"evaluates": asked.evaluate}
    if (asked.members or asked.least) and not (asked.members and called["keys"]):
        raise UserError("--members, --least: an actor of secure aggregation needs --members FILE, --key and --server")
    if asked.allow or asked.trust_code:
        return _calls(asked, called)
    own, name = None, ""
    if asked.job:
        from shoal.runs.choosing import absolute

        own = find(name := absolute(asked.job))
    shelf = Shelf() if asked.count > 1 else None  # one copy of the job's examples for all these actors
    host = socket.gethostname()
    called_by = f"{asked.name}@{host}" if asked.name else host
    life = life_of_any(called_by, own, digest_of(name), shelf, asked.members, asked.least)
    if asked.count == 1:
        code = life(called)
        workers = [thread for thread in threading.enumerate() if thread.name == "worker"]
        for thread in workers:
            thread.join(1.0)  # an idle one ends at once
        if any(thread.is_alive() for thread in workers):  # in a task still: torch would abort this process
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code
    return _crowd(Pool.forked(life), asked.count, called)


def _calls(asked: argparse.Namespace, called: dict[str, Any]) -> int:
    """Actors that do the calls of a pool."""
    import socket

    from shoal.actors.pool import Pool
    from shoal.tasks.joining import life_of_calls

    if asked.evaluate:
        raise UserError("--evaluate and --allow: a pool has no evaluations; leave one of the two out")
    if asked.job:
        raise UserError("--job and --allow: an actor does the tasks of a job or the calls of a pool; give one of the two")
    if asked.members:
        raise UserError("--members and --allow: an actor does the tasks of a job or the calls of a pool; give one of the two")
    if asked.trust_code and not called["keys"]:
        raise UserError("--trust-code without --key and --server: pickles are opened only from a pool that proves its key")
    host = socket.gethostname()
    life = life_of_calls(f"{asked.name}@{host}" if asked.name else host, asked.allow, asked.trust_code)
    return _crowd(Pool.forked(life), asked.count, called)


def keys(asked: argparse.Namespace) -> int:
    from shoal.commands.access import keys as carry_out

    carry_out(asked.words)
    return 0


def _crowd(pool: Pool, many: int, called: dict[str, Any]) -> int:
    """Keeps `many` actors, replacing those that die, until all have left or a signal comes. Returns the largest exit code."""
    import select
    import signal
    import time

    from shoal.runs.crew import Crew
    from shoal.runs.stopping import Stopper

    crew = Crew(pool, many, lambda report: print(f"shoal: {report.text}", file=sys.stderr), time.monotonic, final=(0, 1, 2))
    with Stopper(signal.SIG_DFL, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as stopper:
        try:
            crew.hire(called)
            while crew.left > 0 and not (pool.fault or stopper.number):
                select.select([pool], [], [], 0.2)
                crew.gone()
        finally:
            pool.close()
    if stopper.number:
        return 130 if stopper.number == signal.SIGINT else 0
    return 1 if pool.fault else max(code if code >= 0 else 1 for code in crew.codes)


def sweep(asked: argparse.Namespace) -> int:
    _preparing(asked, asked.job)
    from shoal.jobs.settings import pairs
    from shoal.runs.threads import cores
    from shoal.sweeps.planning import plan
    from shoal.sweeps.study import needed
    from shoal.sweeps.sweep import carried_out

    needed()
    planned = plan(
        asked.job,
        pairs(asked.settings),
        asked.run_dir,
        trials=asked.trials or 0,
        timeout=asked.timeout or 0.0,
        sampler=asked.sampler,
        pruner=asked.pruner,
        goal=asked.goal,
        actors=asked.actors or cores(),
        seed=asked.seed,
        device=asked.device,
    )
    return _swept(carried_out(planned, planned.telling(None if asked.quiet else sys.stderr)), asked)


def _swept(found: Sweep, asked: argparse.Namespace) -> int:
    from shoal.runs.summary import json_line
    from shoal.sweeps.table import closing

    try:
        found.plot()
    except (OSError, UserError) as none:  # the sweep itself is whole
        print(f"shoal: no picture: {none}", file=sys.stderr)
    print(json_line(found.summary()) if asked.json else closing(found))
    if found.reason.startswith("stopped by"):
        return 143 if found.reason == "stopped by SIGTERM" else 130
    states = [row["state"] for row in found.trials]
    return 1 if "failed" in states or (states and found.best is None) else 0


def _resume_sweep(asked: argparse.Namespace) -> int:
    from shoal.jobs.settings import pairs
    from shoal.runs.rundir import RunDir
    from shoal.runs.signing import unsigned
    from shoal.sweeps.folder import SweepDir
    from shoal.sweeps.planning import again
    from shoal.sweeps.study import needed
    from shoal.sweeps.sweep import carried_out

    needed()
    folder = SweepDir(asked.run_dir)
    name = folder.asked().name
    if not asked.trust and (why := unsigned(RunDir(folder.path), name)):
        raise UserError(f"{folder.asked_file} names {name}, whose code would be run, and {why}: give --trust if you know it")
    planned = again(asked.run_dir, pairs(asked.settings), asked.actors)
    return _swept(carried_out(planned, planned.telling(None if asked.quiet else sys.stderr)), asked)


def resume(asked: argparse.Namespace) -> int:
    _page_can_be(asked)
    _preparing(asked, asked.run_dir)
    if os.path.isfile(os.path.join(asked.run_dir, "sweep.toml")):
        return _resume_sweep(asked)
    from shoal.jobs.settings import pairs
    from shoal.protocol.errors import UserError
    from shoal.runs.launch import Launch
    from shoal.runs.resuming import is_done, resumed, what_next
    from shoal.runs.run import trusted
    from shoal.runs.summary import json_line
    from shoal.tracking.trackers import wanted

    if asked.pause and not asked.bind:
        raise UserError("--pause without --bind: no actors from elsewhere can wait; give --bind ADDRESS, or leave --pause out")
    run = trusted(asked.run_dir, asked.trust)
    config, job = resumed(run.dir, run.job, pairs(asked.settings), actors=asked.actors, evaluators=asked.evaluators)
    if is_done(run.dir, job):
        print(json_line(run.summary) if asked.json and run.summary else what_next(run.dir, job))
        return 0
    track = wanted(asked.track)
    before = {file.stem.rpartition("-")[0] for file in run.dir.path.glob("tracking/*.json")} - {one.name for one in track}
    if before:
        words = " ".join(f"--track {name}" for name in sorted(before))
        print(f"shoal: the run was told to {', '.join(sorted(before))} before, and now is not: give {words}", file=sys.stderr)
    return _run(Launch(job, config, run.dir, asked.bind or "", resume=True, track=track, **_shown(asked)), asked)


def status(asked: argparse.Namespace) -> int:
    import time

    from shoal.commands.access import of_actor
    from shoal.runs.status import asked as answered
    from shoal.runs.status import status as looked
    from shoal.runs.status import told
    from shoal.runs.summary import json_line

    if "://" in asked.place:
        well, found = answered(asked.place, of_actor(asked.key, asked.server), asked.within, time.time())
    else:
        well, found = looked(asked.place, asked.within, time.time())
    print(json_line(found) if asked.json else told(found))
    return 0 if well else 1


def track(asked: argparse.Namespace) -> int:
    from shoal.tracking.track import tracked

    word = f"{asked.tracker}={asked.to}" if asked.to else asked.tracker
    many, whole = tracked(asked.run_dir, word, lambda text: print(f"shoal: {asked.tracker}: {text}", file=sys.stderr))
    if not asked.quiet:
        print(f"{asked.tracker}: {many} rows told")
    return 0 if whole else 1


def serve(asked: argparse.Namespace) -> int:
    from dataclasses import fields

    from shoal.serving.plan import Plan
    from shoal.serving.serve import serve as served

    found: dict[str, Any] = {one.name: getattr(asked, one.name) for one in fields(Plan)}
    told = {name: "" if value is None else value for name, value in found.items()}
    return served(Plan(**told | {"sources": tuple(asked.sources)}))


def watch(asked: argparse.Namespace) -> int:
    import socket

    from shoal.commands.access import of_actor
    from shoal.watching.app import needed
    from shoal.watching.page import LOCAL, address_of, bound, orphaned, show, token_of
    from shoal.watching.sources import sources_of

    needed()
    host = asked.host or LOCAL
    token = token_of(host, asked.token or "")
    keys = of_actor(asked.key, asked.server) if any("://" in place for place in asked.places) else None
    sources = sources_of(asked.places, keys)
    if asked.socket is not None:
        show(sources, socket.socket(fileno=asked.socket), over=orphaned(asked.beside))
        return 0
    with bound(host, asked.port) as listening, suppress(KeyboardInterrupt):
        names = ", ".join(str(source.about()["name"]) for source in sources)
        line = f"shoal: {names} at {address_of(listening, token)} (Ctrl-C ends the page, not a run)"
        show(sources, listening, token, begun=lambda: print(line, flush=True))
    return 0


def evaluate(asked: argparse.Namespace) -> int:
    from shoal.runs.evaluate import evaluate as evaluated
    from shoal.runs.run import trusted
    from shoal.runs.summary import json_line

    run = trusted(asked.run_dir, asked.trust)
    if asked.video:
        from shoal.runs.playing import new_file

        new_file(Path(asked.video))  # before episodes are played
    metrics = evaluated(run, asked.episodes, asked.best)
    shown = {} if asked.video is None else {"video": str(run.video(asked.video, asked.best))}
    rows = {name: f"{value:.6g}" for name, value in metrics.items()} | shown
    print(json_line({**metrics, **shown}) if asked.json else "\n".join(f"{name:<18}{value}" for name, value in rows.items()))
    return 0


def compare(asked: argparse.Namespace) -> int:
    from shoal.runs.compare import compare as compared
    from shoal.runs.summary import json_line

    if asked.served:
        from shoal.serving.outcomes import compare_served

        if len(asked.candidates) != 1:
            raise UserError(f"compare --served: {len(asked.candidates)} folders: name the folder of one server")
        outcomes = compare_served(asked.candidates[0], asked.goal)
        print(json_line(outcomes.plain()) if asked.json else outcomes)
        return 0
    how = {name: getattr(asked, name) for name in ("goal", "by", "episodes", "equal", "find", "sequential", "trust")}
    found = compared(*asked.candidates, **how)
    print(json_line(found.plain()) if asked.json else found)
    return 0 if found.shown else 1


def plot(asked: argparse.Namespace) -> int:
    from shoal.runs.run import plot as drawn

    if len(asked.run_dirs) == 1 and os.path.isfile(os.path.join(asked.run_dirs[0], "sweep.toml")):
        from shoal.sweeps.found import Sweep

        print(Sweep(asked.run_dirs[0]).plot(asked.out))
        return 0

    print(drawn(*asked.run_dirs, out=asked.out))
    return 0


def tune(asked: argparse.Namespace) -> int:
    from shoal.jobs.settings import pairs
    from shoal.runs.choosing import chosen
    from shoal.runs.summary import json_line
    from shoal.runs.tuning import tune as tuned

    job, _, _ = chosen(asked.job, pairs(asked.settings), seed=asked.seed)
    said = [*asked.settings, *([] if asked.seed is None else ["--seed", str(asked.seed)])]
    found = tuned(
        job, asked.job, asked.actors, asked.seconds, lambda line: None if asked.json else print(line, file=sys.stderr), said
    )
    print(json_line(found.plain()) if asked.json else found)
    return 0


def export(asked: argparse.Namespace) -> int:
    from shoal.runs.evaluate import export as exported
    from shoal.runs.run import trusted

    print(exported(trusted(asked.run_dir, asked.trust), asked.to, asked.best))
    return 0


def bench(asked: argparse.Namespace) -> int:
    from shoal.benchmarks.run import main as run

    if asked.minutes:
        os.environ["SHOAL_BENCH_MINUTES"] = str(asked.minutes)  # each case is a process of its own
    if asked.peers:
        os.environ["SHOAL_BENCH_PEERS"] = asked.peers
    return run(asked.cases, quick=asked.quick, as_json=asked.json)


ACTS: Mapping[str, Act] = {name: globals()[name] for name in COMMANDS}
"""Name of a command -> the function of this module that carries it out."""


if __name__ == "__main__":
    sys.exit(main())
