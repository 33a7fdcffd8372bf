"""The life of an actor process, from its start to its exit code.

The one idea: a forked actor has its job already and trusts its parent. An actor elsewhere gets the name of a job over the
network; it accepts only a built-in job or the job that its own user named.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shoal.actors import Worker
from shoal.actors.hand import Workshop
from shoal.actors.loop import Actor, on_signals
from shoal.actors.pool import LEFT as LEFT
from shoal.actors.pool import UNFIT as UNFIT
from shoal.actors.pool import Life
from shoal.envs.shelf import Shelf
from shoal.jobs.catalog import built_in
from shoal.jobs.job import Job
from shoal.jobs.members import Identity
from shoal.jobs.problems.environment import ASKS, Environment
from shoal.protocol import heap
from shoal.protocol.door import ClientKeys
from shoal.protocol.errors import UserError, printable
from shoal.protocol.keys import Pair
from shoal.protocol.memory import claim
from shoal.runs import theirs
from shoal.runs.closing import played_in
from shoal.runs.threads import few_for_good

LEAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # signals at which an actor elsewhere says Bye
ENVIRONMENT, ROW = 65_536, 16  # bytes of an environment, and of a row of its trajectory, that are counted: rather few


def life_of(job: Job) -> Life:
    """The life of an actor that is forked on the coordinator's machine; or, if it is to play the run's last episodes or to
    compute the network for the actors, that."""

    def live(arguments: Mapping[str, Any]) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the coordinator answers a Ctrl-C
        if "plays" in arguments:
            heap.keep()
            few_for_good()
            return played_in(job, Path(arguments["plays"]))
        if "infers" in arguments:
            heap.keep()
            few_for_good()
            return infers(job, str(arguments["infers"]), str(arguments.get("device", "cpu")))
        if "asks" in arguments:
            job.problem.made[ASKS] = str(arguments["asks"])
        flag = threading.Event()
        on_signals(flag, [signal.SIGTERM])
        code = _live(arguments, lambda workload: job.worker(), f"actor-{os.getpid()}", lambda text: None, flag)
        return {0: LEFT, 2: UNFIT}.get(code, code)

    return live


def infers(job: Job, address: str, device: str) -> int:
    """The life of the inference process, which listens at `address` until it is ended. device: where it computes."""
    from shoal.actors.inferring import Inferring, listening

    problem = job.problem
    assert isinstance(problem, Environment)
    made = Inferring(problem.inferred(job.seed, device), problem.spaces().record(), problem.batching, time.monotonic)
    made.serve(listening(address))
    return 0


def named_job(workload: Mapping[str, Any], own: Job | None) -> Job:
    """The job that a coordinator names: the job that this machine's user named, or a built-in one. Raises UserError."""
    asked = str(workload.get("job"))
    by_module = asked.count(":") > 1  # gymnasium:MODULE:ENV_ID imports a module, which no peer may choose
    if (job := own or (None if by_module else built_in(asked))) is None:
        raise UserError(f"the coordinator runs a job of its user's own ({asked!a}): start this actor with --job FILE.py:job")
    return job


def configured(job: Job, workload: Mapping[str, Any]) -> Job:
    """The job with the coordinator's settings, seed and findings: all settings, also those that the file of the user's own job
    or a default would give. So they are in no digest."""
    made = job.configured(dict(workload.get("settings", {})), int(workload.get("seed", 0)))
    findings = workload.get("findings")
    made.problem.adopt(findings if isinstance(findings, Mapping) else {})
    return made


def job_asked(workload: Mapping[str, Any], own: Job | None) -> Job:
    """The job of a coordinator's run, as its Welcome tells it. Raises UserError."""
    return configured(named_job(workload, own), workload)


def life_of_any(
    name: str, own: Job | None, digest: str = "", shelf: Shelf | None = None, members: str = "", least: int = 0
) -> Life:
    """The life of an actor that joins a coordinator from elsewhere. name: the actor's name, with its
    host's; its process id follows in reports. own: the job that this machine's
    user named with --job; None if there is no --job. digest: of that job, or of Shoal alone (jobs/catalog.py).
    shelf: the place for a job's examples that all actors forked with it share; None: each has its own. members, least: of
    Identity (jobs/members.py), for secure aggregation."""

    def workshop(workload: Mapping[str, Any], keys: Sequence[str]) -> Worker:
        job = named_job(workload, own)
        if digest and (other := workload.get("digest")) and other != digest:
            its = f"its digest is {digest[:8]}, and the coordinator's is {printable(str(other), 8)}"
            print(f"{name}: this machine's job file or version of Shoal differs from the coordinator's: {its}", flush=True)
        job = configured(job, workload)
        job = job.elsewhere(Identity(keys[0], keys[1], members, least) if keys and members else None)
        if shelf is not None:
            job.problem.made["shelf"] = shelf
        settings = job.plain()
        if settings.get("inference") == "central":
            print(f"{name}: inference=central is for actors that the coordinator starts; this one computes itself", flush=True)
        envs, rows = settings.get("num_envs", 0), settings.get("rollout_length", 0)
        claim(f"the coordinator's job, of num_envs={envs} and rollout_length={rows},", envs * (ENVIRONMENT + ROW * rows))
        return job.worker()

    def live(arguments: Mapping[str, Any]) -> int:
        if own is not None:
            own.problem.hatch()  # before this process has threads: the coordinator's settings may have a step_timeout
        called = f"{name}:{os.getpid()}"
        flag = threading.Event()
        on_signals(flag, LEAVING)
        made = partial(workshop, keys=arguments.get("keys") or ())
        return _live(arguments, made, called, lambda text: print(f"{called}: {text}", flush=True), flag, digest)

    return live


def called_on(address: str, keys: ClientKeys | None) -> dict[str, Any]:
    """The coordinator's address and the actor's keys as plain data, which a forked actor lives with."""
    return {"address": address, "keys": [keys.pair.public, keys.pair.secret, keys.server] if keys else []}


def _live(
    arguments: Mapping[str, Any],
    workshop: Workshop,
    name: str,
    say: Callable[[str], None],
    told: threading.Event,
    job: str = "",
) -> int:
    """Works until the run is over or this process is told to stop, and returns the exit code: 0 in good order, 1 refused by the
    coordinator, 2 the user's mistake."""
    heap.keep()
    threads = few_for_good()

    def made(workload: Mapping[str, Any]) -> Worker:
        try:
            return workshop(workload)
        except Exception as raised:
            if isinstance(raised, MemoryError) or "allocate" in str(raised):  # torch raises no MemoryError
                said = printable(str(raised), 200)
                raise UserError(f"the coordinator's job needs more memory than this machine has left: {said}") from raised
            if line := theirs.told(raised):
                raise UserError(line) from raised
            raise

    try:
        keys = arguments.get("keys")
        actor = Actor(
            str(arguments["address"]),
            made,
            name=name,
            session=os.urandom(8),
            clock=time.monotonic,
            say=say,
            interrupted=lambda: "told to stop" if told.is_set() else "",
            keys=ClientKeys(Pair(keys[0], keys[1]), keys[2]) if keys else None,
            job=job,
            threads=threads,
            evaluates=bool(arguments.get("evaluates")),
        )
        left = actor.live()
    except UserError as wrong:
        print(f"shoal: {wrong}", file=sys.stderr)
        return 2
    say(f"left: {left.reason}")
    return 1 if left.failed else 0
