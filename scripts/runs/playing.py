"""A trained policy that plays: one observation in, one action out; and a video of an episode.

The one idea: a player is the policy of the run's actors with the environment's own observations and actions at its ends, so it
plays as an evaluation does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from shoal.coordinator.keeping.store import Snapshot
from shoal.envs.agents import Parallel
from shoal.envs.filmed import filmed_games
from shoal.envs.making import make_shown, make_vector
from shoal.envs.spaces import IN_INFO, MASK, Spaces, flat_mask
from shoal.envs.vector import Envs, alone
from shoal.jobs.methods.acting import Acting
from shoal.jobs.problems import Environment
from shoal.nets.acting import Policy
from shoal.protocol.draws import globally, key
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Words
from shoal.runs.best import best_of
from shoal.runs.export import of_this_model
from shoal.runs.run import Place, Run
from shoal.runs.targets import writable

SEEDS = 2**30  # an environment's seed is below this
MOST_FRAMES = 20_000  # of a video; a longer episode is cut off there
FPS = 30  # frames a second of a video, if the environment's metadata name no other number


class Player:
    """A policy that plays one environment; its memory, if it has one, is kept from step to step.

    `act` takes an observation as the environment's reset and step return it, and returns an action for the environment's step.
    `reset` is called when an episode begins, and need not be called before the first one.
    """

    def __init__(
        self, policy: Policy, spaces: Spaces, weights: Bundle, greedy: bool = True, seed: int = 0, words: Words | None = None
    ) -> None:
        """words: those of a training task, which say how the policy explores; a greedy policy does not hear them."""
        policy.load(weights)
        self._policy, self._spaces, self._weights = policy, spaces, weights
        self._words = {} if greedy or words is None else words
        self._rng = None if greedy else np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Begin an episode: forget what was seen."""
        self._state, self._first = self._policy.begin(1), np.ones(1, dtype=bool)

    def act(self, observation: Any, info: Mapping[str, Any] | None = None) -> Any:
        """The action for this observation: an int for Discrete actions, an array of the space's shape for others.

        info: the environment's, if action masks are in it. Raises UserError for an observation of another shape than the
        environment's that was learned from, and for a mask that is missing or forbids everything.
        """
        seen = self._seen(observation, info or {})
        noise = None if self._rng is None else self._policy.noise(self._rng, 1, 1)[0]
        acted = self._policy.act(seen, self._first, self._state, noise, self._words)
        self._state, self._first = {name: array.copy() for name, array in acted.state.items()}, np.zeros(1, dtype=bool)
        action = self._spaces.action.decoded(acted.action)[0]
        return action.copy() if action.ndim else action.item()

    def _seen(self, observation: Any, info: Mapping[str, Any]) -> Any:
        spaces = self._spaces
        if spaces.masks == IN_INFO and MASK not in info:
            raise UserError("act: the job's environment gives action masks in its info: call act(observation, info)")
        try:
            seen = spaces.encoded(alone(observation), {MASK: flat_mask(info[MASK], 1)} if MASK in info else {}, 1)
            wrong = "" if seen.dtype.names or seen.shape[1:] == spaces.record()[1] else f"the shape {list(seen.shape[1:])}"
        except (KeyError, IndexError, TypeError, ValueError) as raised:
            wrong = f"another form ({type(raised).__name__}: {raised})"
        if wrong:
            wanted = ", ".join(str(list(shape)) for _, shape in spaces.arrays.values())
            raise UserError(f"act: the observation has {wrong}: expected {wanted}, one observation of the job's environment")
        if spaces.masks and not spaces.action.possible(seen[MASK]).all():
            raise UserError("act: the action_mask allows nothing: expected at least one choice")
        return seen


def player(run: Run, greedy: bool = True, seed: int = 0, best: bool = False) -> Player:
    """The policy of a run's newest weights, or (best=True) of those that keep_best has kept.

    Raises UserError if the run's job has no environment, or if no best weights were kept.
    """
    problem = run.job.problem
    if not isinstance(problem, Environment):
        raise UserError(f"{run.job_name} has no environment and so no policy: run.model() is its model")
    with of_this_model(run.folder):
        snapshot = _snapshot(run, best)
        method = run.job.method
        words = method.words(Task(snapshot.version, 0, (0,))) if isinstance(method, Acting) else None
        return Player(problem.acts(run.job.seed), problem.spaces(), snapshot.weights, greedy, seed, words)


def _snapshot(run: Run, best: bool) -> Snapshot:
    return best_of(run.folder) if best else run.snapshot()


def video(run: Run, to: Place = "", best: bool = False) -> Path:
    """Write a video of one greedy episode of the run's newest weights, or of its best ones, and return its path.

    to: a new .mp4 file, which needs imageio (`pip install 'shoal[video]'`), or a new .gif file, which needs pillow; "":
    episode-VERSION in the run's folder, .mp4 if imageio is there, else .gif.
    """
    version = _snapshot(run, best).version
    target = new_file(Path(to)) if str(to) else _own(run, version)
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    with globally(run.job.seed, "video"), _film(run, best, key(run.job.seed, "video", version) % SEEDS) as (frames, named):
        first = next(frames)  # an environment that cannot be shown leaves no file
        try:
            write = _mp4 if target.suffix == ".mp4" else _gif
            write(part, chain([first], frames), float(named.get("render_fps") or FPS))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _own(run: Run, version: int) -> Path:
    suffix = ".mp4" if find_spec("imageio") and find_spec("imageio_ffmpeg") else ".gif"
    return run.folder / f"episode-{version}{suffix}"


def new_file(path: Path) -> Path:
    """Returns the path. Raises UserError unless a video can be written there."""
    return writable(path, (".mp4", ".gif"), verb="write", flag="--video", new=True)


@contextmanager
def _film(run: Run, best: bool, seed: int) -> Iterator[tuple[Iterator[Any], Mapping[str, Any]]]:
    """The pictures of one greedy episode, and the metadata of the environment, while that is open."""
    played, problem = player(run, best=best), run.job.problem
    assert isinstance(problem, Environment)
    recipe = problem.recipe()
    if isinstance(problem.env, Parallel):
        with closing(make_vector(replace(recipe, env=filmed_games(problem.env)), problem.group)) as envs:
            frames = _game(problem.acts(run.job.seed), _snapshot(run, best).weights, envs, seed)
            yield frames, getattr(envs.vector.shoal_games[0], "metadata", {})
    else:
        with closing(make_shown(recipe, problem.stepping)) as env:
            yield _frames(played, env, seed), env.metadata


def _game(policy: Policy, weights: Bundle, envs: Envs, seed: int) -> Iterator[Any]:
    """The pictures of one game whose agents all play by this policy."""
    policy.load(weights)
    step, state = envs.reset(seed), policy.begin(envs.num_envs)
    [game] = envs.vector.shoal_games
    for _ in range(MOST_FRAMES - 1):
        yield _picture(game)
        if not step.mask.any():  # every agent is out
            return
        acted = policy.act(step.observation, step.first, state, None, {})
        step, state = envs.step(acted.action), acted.state
    _say_long()


def _frames(played: Player, env: Any, seed: int) -> Iterator[Any]:
    """The pictures of one episode, uint8 [height, width, 3]."""
    seen, info = env.reset(seed=seed)
    yield _picture(env)
    for _ in range(MOST_FRAMES - 1):
        seen, _, terminated, truncated, info = env.step(played.act(seen, info))
        yield _picture(env)
        if terminated or truncated:
            return
    _say_long()


def _say_long() -> None:
    print(f"shoal: the episode goes on; the video ends after {MOST_FRAMES:,} pictures", file=sys.stderr)


def _picture(env: Any) -> Any:
    import gymnasium

    try:
        picture = np.asarray(env.render())
    except (gymnasium.error.Error, ImportError) as raised:
        raise UserError(f"--video: the environment cannot be shown: {' '.join(str(raised).split())}") from None
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        found = f"{picture.dtype} of shape {list(picture.shape)}"
        raise UserError(f"--video: the environment's render gave {found}: expected uint8 of shape [height, width, 3]")
    return picture


def _mp4(path: Path, frames: Iterator[Any], fps: float) -> None:
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401  the writer of .mp4
    except ModuleNotFoundError:
        fix = "pip install 'shoal[video]', or name a .gif file"
        raise UserError(f"--video needs imageio for .mp4, with ffmpeg: {fix}") from None
    opened: Any = imageio.v2.get_writer(path, fps=fps, macro_block_size=2)  # its types know less than its plugins
    with opened as writer:
        for picture in frames:
            writer.append_data(picture)


def _gif(path: Path, frames: Iterator[Any], fps: float) -> None:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise UserError("--video needs pillow for .gif: pip install pillow") from None
    pictures = map(Image.fromarray, frames)
    next(pictures).save(path, save_all=True, append_images=pictures, duration=1000 / fps, loop=0)
