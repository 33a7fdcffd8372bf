"""The way from a fresh clone to a run: `python3 scripts/up.py demo`, `... test [arguments for pytest]`, `... check`.

The one idea: everything is installed in .venv, and a stamp file in .venv says what was installed, so that a second call starts
at once. This script uses only the standard library. Pythons that are too old for Shoal must still read it, to print which
version is needed: hence quoted annotations. Every error is one line with a remedy.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = ROOT / "build" / "up.log"
ASKED = ("pyproject.toml", "constraints.txt")
COVERED_BY = {"all": ("all", "test"), "test": ("test",)}  # extra -> the extras whose installation contains it
CLOSING = re.compile(r"(?m)^=*\s*(\d+ [a-z]+(?:, \d+ [a-z]+)*) in ([0-9.]+)s.*$")  # pytest's last line
CHECKS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy", "-p", "shoal"))
REMEDIES = (  # pattern in the output of pip or uv -> remedy; the first pattern that matches counts
    (r"No space left|Errno 28", "free some disk space: 2 GB, or 8 GB where torch comes with CUDA"),
    (
        r"(?i)retrying|connection (refused|reset)|connect error|resolve host|timed out|certificate",
        "look at the network, or at the index and proxy that pip uses",
    ),
    (r"Permission denied|Errno 13", "make the folder yours, or remove .venv"),
    (
        r"(?i)no matching distribution|conflicting dependencies|no solution",
        "use Python 3.11 to 3.13 on Linux or macOS (arm64), and an index that has all of constraints.txt",
    ),
)
NEXT = "\n`source .venv/bin/activate` puts shoal on your path. Then also: shoal simulate cartpole"


class UserError(Exception):
    """A mistake that the user can put right, told in one line."""


def main(arguments: "list[str]") -> int:
    parser = argparse.ArgumentParser(prog="up.py", description="Makes .venv, then runs the demo, the tests or the checks.")
    parser.add_argument("what", choices=("demo", "test", "check"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="handed on to `shoal simulate digits` or to pytest")
    asked = parser.parse_args(arguments)
    try:
        accept_python(sys.version_info[:3], os.name)
        return {"demo": demo, "test": test, "check": check}[asked.what](asked.rest)
    except UserError as mistake:
        print(f"up.py: {mistake}", file=sys.stderr)
    except OSError as error:
        print(f"up.py: {error}. Remedy: check the free disk space, and who owns {ROOT}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nup.py: stopped; type the same command again to go on from here.", file=sys.stderr)
    return 1


def demo(rest: "list[str]") -> int:
    install("all")
    code = follow(VENV / "bin" / "shoal", "simulate", "digits", *rest)
    if code == 0:
        print(NEXT)
    return code


def test(rest: "list[str]") -> int:
    return check([]) or (follow(PYTHON, "-m", "pytest", *rest) if rest else together())


def together() -> int:
    """Run all tests in two processes, whole runs in one and the others in the other: one after the other they take twice as
    long. What the other says comes when both are done, and then a line that counts the tests of both."""
    folder = ROOT / "tests"
    others = [folder / "cores", folder / "formulas", *sorted(folder.glob("test_*.py"))]
    log = ROOT / "build" / "tests.log"
    log.parent.mkdir(exist_ok=True)
    said = []
    with log.open("w") as file:
        beside = subprocess.Popen((PYTHON, "-m", "pytest", *others), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        with subprocess.Popen((PYTHON, "-m", "pytest", folder / "runs"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as runs:
            before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: ended(beside, runs))
            for line in runs.stdout or ():
                print(line, end="", flush=True)
                said.append(line)
            codes = runs.wait(), beside.wait()
            signal.signal(signal.SIGINT, before[0])
            signal.signal(signal.SIGTERM, before[1])
    text = log.read_text()
    print(text, end="")
    print(closing("".join(said), text), flush=True)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def ended(*children: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    for child in children:
        child.terminate()


def closing(*texts: str) -> str:
    """One line in the form of pytest's last one, with the counts of all and the longest time; "" if one has no such line."""
    found = [CLOSING.findall(text) for text in texts]
    if not all(found):
        return ""
    counts: dict[str, int] = {}
    for lines in found:
        for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1][0]):
            counts[word] = counts.get(word, 0) + int(number)
    told = ", ".join(f"{number} {word}" for word, number in sorted(counts.items(), key=lambda each: each[0] != "failed"))
    return f"==== {told} in {max(float(lines[-1][1]) for lines in found):.2f}s ===="


def check(_: "list[str]") -> int:
    install("test")
    for step in CHECKS:
        if follow(PYTHON, "-m", *step):
            raise UserError(
                f"{' '.join(step)} found faults, see above. Remedy: `ruff format .` and `ruff check --fix .` mend some of them."
            )
    return 0


def accept_python(version: "tuple[int, ...]", system: str) -> None:
    if system == "nt":
        raise UserError("Shoal runs on Linux and macOS. Remedy: on Windows, `wsl --install`, and this command inside WSL.")
    if version < (3, 11):
        has = ".".join(map(str, version))
        raise UserError(
            f"Shoal needs Python 3.11 or newer, this is {has}. Remedy: install one (apt, brew or python.org), "
            "then `python3.12 scripts/up.py demo` or `make demo PYTHON=python3.12`."
        )


def install(extra: str) -> None:
    """Install in .venv what pyproject.toml and constraints.txt ask for, unless a stamp says that it is installed."""
    digest = wanted()
    if PYTHON.exists() and digest in (stamped(other) for other in COVERED_BY[extra]):
        return
    for other in COVERED_BY:
        stamp(other).unlink(missing_ok=True)
    started = time.monotonic()
    print(f"Installing shoal[{extra}] into .venv: once, and a few minutes, because torch is large.", flush=True)
    if not (shutil.which("uv") and with_uv(extra)):
        with_pip(extra)
    stamp(extra).write_text(digest)
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)


def wanted() -> str:
    """The digest of the files ASKED and of this folder's path: an editable install stops working when its folder moves."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ASKED:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp(extra: str) -> Path:
    return VENV / f"shoal-{extra}.stamp"


def stamped(extra: str) -> str:
    return stamp(extra).read_text() if stamp(extra).exists() else ""


def with_uv(extra: str) -> bool:
    said: list[str] = []
    if quietly(said, "uv", "venv", "--allow-existing", "--seed", "--python", sys.executable, VENV) and quietly(
        said, "uv", "pip", "install", "--python", PYTHON, *asked_for(extra)
    ):
        return True
    print(f"uv could not: {reason(said)}; going on with pip.", flush=True)
    return False


def with_pip(extra: str) -> None:
    said: list[str] = []
    if not quietly(said, PYTHON, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"):
        make_venv(said)
    if not quietly(said, PYTHON, "-m", "pip", "install", "--no-input", *asked_for(extra)):
        raise give_up(said)


def make_venv(said: "list[str]") -> None:
    for module in ("venv", "ensurepip"):  # Debian packs them apart from Python
        if importlib.util.find_spec(module) is None:
            minor = f"python3.{sys.version_info[1]}"
            raise UserError(f"this Python has no {module} module. Remedy: `apt install {minor}-venv`, or install uv.")
    if not quietly(said, sys.executable, "-m", "venv", "--clear", VENV):
        raise give_up(said)


def asked_for(extra: str) -> "tuple[str, ...]":
    return ("--constraint", "constraints.txt", "--editable", f".[{extra}]")


def give_up(said: "list[str]") -> UserError:
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("".join(said))
    story = "".join(said)
    remedy = next((remedy for pattern, remedy in REMEDIES if re.search(pattern, story)), "remove .venv and try again")
    return UserError(f"installing failed: {reason(said)}. Remedy: {remedy}. All of it is in {LOG.relative_to(ROOT)}.")


def reason(said: "list[str]") -> str:
    """The first line of the output that begins with "error"; if there is none, the last line."""
    lines = [line.strip() for line in "".join(said).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)error", line)]
    return [*errors, *lines[-1:], "no reason given"][0].rstrip(".")


def quietly(said: "list[str]", *command: "str | Path") -> bool:
    """Run a command, add its output to `said`, and show the newest line on a terminal. False if it failed or does not exist."""
    live = sys.stdout.isatty()
    try:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except FileNotFoundError as error:
        said.append(f"{error}\n")
        return False
    with child:
        for line in child.stdout or ():
            said.append(line)
            if live:
                print(f"\r\033[K{line.strip()[:100]}", end="", flush=True)
    if live:
        print("\r\033[K", end="", flush=True)
    return child.returncode == 0


def follow(*command: "str | Path") -> int:
    """Run a command in the foreground and return its exit code. The child answers a Ctrl-C, and this process passes a SIGTERM
    on to the child, so that neither signal leaves an orphan."""
    child = subprocess.Popen(command, cwd=ROOT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
