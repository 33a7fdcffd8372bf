"""The words of a command line: their forms, and the one line that a wrong one gets.

The one idea: whatever has names answers a wrong one with the nearest right one. Only the standard library, so that
`shoal --help` answers at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from shoal import __version__
from shoal.commands import completion

Act: TypeAlias = Callable[[argparse.Namespace], int]

EPILOG = """\
JOB is a built-in name (see `shoal jobs`), gymnasium:ENV_ID, a TOML file (a run's config.toml repeats it),
or your own as FILE.py:attribute or MODULE:attribute. Completion: eval "$(register-python-argcomplete shoal)"."""
ADDRESS = re.compile(r"(tcp://.+:)(\*|\d+)|ipc://.+")


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"shoal: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is not known: {nearest(value, action.choices)}")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """For words that are no options of this command."""
        options = [word for action in self._actions for word in action.option_strings if word.startswith("--")]
        first = words[0].partition("=")[0]
        self.error(f"{first!r} is not known: {nearest(first, options) if first.startswith('-') else 'it is one word too many'}")


def nearest(name: Any, known: Any) -> str:
    from shoal.jobs.settings import nearest as found

    return found(str(name), map(str, known))


def whole(least: int) -> Callable[[str], int]:
    """A whole number from `least`."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers from {least}")
        return int(text)

    return number


def address(text: str) -> str:
    """tcp://HOST:PORT or ipc://PATH. ZeroMQ would take port 99999 for 34463, and wait there for ever."""
    match = ADDRESS.fullmatch(text)
    if match is None:
        meant = f"; did you mean tcp://{text}?" if re.fullmatch(r"[^:/]+:(\*|\d+)", text) else ""
        raise argparse.ArgumentTypeError(f"{text}: it has the form tcp://HOST:PORT{meant}")
    if match[2] not in (None, "*") and not 0 < int(match[2]) < 65_536:
        raise argparse.ArgumentTypeError(f"{text}: a port is a number from 1 to 65535")
    return text


def parser(acts: Mapping[str, Act]) -> argparse.ArgumentParser:
    """acts: what each command does, by its name."""
    top = Parser("shoal", description="Federated and reinforcement learning over long-lived actors.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"shoal {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about, epilog=EPILOG)
        made.set_defaults(act=acts[name], parser=made)
        return made

    one = command("jobs", "the built-in jobs, a line each; or all settings of one")
    _named(one.add_argument("job", nargs="?", metavar="JOB"))
    one = command("simulate", "one box: a coordinator and N actor processes, to the end")
    _job(one)
    _running(one)
    one.add_argument("--transport", choices=("shm", "ipc", "tcp"), help="how arrays travel on this machine")
    one = command("coordinator", "a coordinator that actors join, from this machine or others")
    _job(one)
    _running(one)
    one.add_argument(
        "--bind", type=address, required=True, metavar="tcp://HOST:PORT", help="where actors reach it; port * is any free one"
    )
    one.add_argument("--restart", action="store_true", help="go on from the journal whenever the coordinator dies")
    _facing(one)
    one = command("actor", "actors that join a coordinator, at any time, from any machine")
    one.add_argument("address", type=address, metavar="tcp://HOST:PORT")
    one.add_argument("--count", type=whole(1), default=1, metavar="N", help="so many of them (default: 1)")
    one.add_argument("--name", help="what the coordinator calls them (default: this machine's name)")
    one.add_argument("--job", metavar="FILE.py:attribute", help="the user's own job that the coordinator runs, on this machine")
    one.add_argument("--key", metavar="NAME", help="this machine's own key, see `shoal keys`; needed beyond this machine")
    one.add_argument("--server", metavar="PUBLIC", help="the coordinator's public key; needed with --key")
    one = command("keys", "whom a coordinator lets in: new NAME, allow PUBLIC [NAME], revoke PUBLIC|NAME; or a list")
    one.add_argument("words", nargs="*", metavar="new|allow|revoke")
    one = command("resume", "go on from a run's newest snapshot")
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("settings", nargs="*", default=[], metavar="key=value", help="a later end: rounds=200, say")
    one.add_argument("--bind", type=address, metavar="tcp://HOST:PORT", help="where actors of elsewhere reach it")
    _facing(one)
    one.add_argument("--actors", type=whole(0), metavar="N")
    one.add_argument("--quiet", action="store_true")
    one.add_argument("--json", action="store_true")
    one = command("evaluate", "the trained weights on held-out data or fresh episodes")
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("--episodes", type=whole(1), default=100, metavar="N", help="of a reinforcement-learning job (100)")
    one.add_argument("--json", action="store_true")
    one = command("plot", "learning curves of one run, or of several laid over each other")
    one.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    one.add_argument("--out", metavar="FILE.png")
    one = command("export", "weights, or a torch.export program, for use elsewhere")
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("--to", required=True, metavar="FILE.safetensors|FILE.pt2")
    one = command("bench", "figures: a table, and a JSON line a case")
    one.add_argument("cases", nargs="*", metavar="CASE")
    one.add_argument("--quick", action="store_true", help="at most 50 s a case")
    one.add_argument("--minutes", type=whole(1), metavar="M", help="how long soak takes (1)")
    one.add_argument(
        "--peers",
        choices=("install", "installed", "off"),
        help="frameworks to compare with, in environments of their own: install what is missing (else a full run does), "
        "take what is there (else --quick does), or leave them out",
    )
    one.add_argument("--json", action="store_true", help="only the JSON lines")
    return top


def _job(one: argparse.ArgumentParser) -> None:
    _named(one.add_argument("job", metavar="JOB"))
    named = one.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="settings of the job; `shoal jobs JOB` lists them all"
    )
    named.completer = completion.settings  # type: ignore[attr-defined]


def _named(job: argparse.Action) -> None:
    job.completer = completion.jobs  # type: ignore[attr-defined]


def _running(one: argparse.ArgumentParser) -> None:
    one.add_argument("--actors", type=whole(0), metavar="N", help="actor processes on this machine; 0 is the plain loop")
    one.add_argument("--run-dir", metavar="DIR", help="a new folder (default: runs/JOB-DATE-TIME)")
    one.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where the learner works")
    one.add_argument("--seed", type=whole(0), metavar="S")
    one.add_argument("--quiet", action="store_true", help="say nothing but errors and the result")
    one.add_argument("--json", action="store_true", help="one JSON object as the last line")


def _facing(one: argparse.ArgumentParser) -> None:
    one.add_argument("--key", metavar="NAME", help="ask actors for keys, and show this one; needed beyond this machine")
    one.add_argument("--gateway", action="store_true", help="a process of its own faces actors; beyond this machine always so")
