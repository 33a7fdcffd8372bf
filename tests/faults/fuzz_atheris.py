"""The same readers under a fuzzer that sees which code a frame reaches: `python -m shoal.faults.fuzz_atheris [CORPUS]`.

The one idea: the corpus is honest frames and every known bomb, one file each, and grows by whatever reaches new code. A
file's first byte chooses the reader. Nothing to be watched may be imported before the fuzzer is told to watch it.

Words that begin with a dash are libFuzzer's: -runs=1000000, -max_len=70000, -max_total_time=60.
Needs `pip install atheris`, which is not among the dependencies.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CORPUS = "tests/corpus"


def main(arguments: Sequence[str]) -> int:
    """Runs until it is told to stop. A crash is a file beside, and an exit status of its own."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ModuleNotFoundError:
        print("shoal: the guided fuzzer is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["shoal.protocol", "shoal.coordinator"]):
        fuzz = importlib.import_module("shoal.faults.fuzz")
    readers = list(fuzz.targets().values())

    def one_input(data: bytes) -> None:
        if data:
            readers[data[0] % len(readers)](data[1:])

    folders = [word for word in arguments if not word.startswith("-")]
    if not folders:
        write(Path(CORPUS))
    atheris.Setup([sys.argv[0], *arguments, *([] if folders else [CORPUS])], one_input)
    atheris.Fuzz()
    return 0


def write(folder: Path) -> None:
    """The corpus, as far as it is not there."""
    fuzz: Any = importlib.import_module("shoal.faults.fuzz")
    bombs: Any = importlib.import_module("shoal.faults.bombs")
    folder.mkdir(parents=True, exist_ok=True)
    honest = {**fuzz.seeds(), "header": [], "layout": []}  # the same bytes as for "frames" and "welcome"
    for at, reader in enumerate(fuzz.targets()):
        for number, seed in enumerate(honest[reader][:13]):
            (folder / f"{reader}-{number}").write_bytes(bytes([at]) + seed)
    for name, bomb in bombs.HEADERS.items():
        short = "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())
        (folder / f"bomb-{short}").write_bytes(bytes([0]) + bomb()[:1_024])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
