"""The readers of fuzz.py under a fuzzer that sees which code a frame reaches: `python -m shoal.faults.fuzz_atheris [CORPUS]`.

The one idea: the corpus is honest frames and every known bomb, one file each, and grows by frames that reach new code. A
file's first byte chooses the reader. The fuzzer must be told to watch a module before the module is imported.

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
    """Fuzzes until it is ended or reaches -max_total_time. A crash leaves a file beside it and has its own exit status."""
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
    """Writes the first files of the corpus."""
    fuzz: Any = importlib.import_module("shoal.faults.fuzz")
    bombs: Any = importlib.import_module("shoal.faults.bombs")
    folder.mkdir(parents=True, exist_ok=True)
    honest = {**fuzz.seeds(), "header": [], "layout": []}  # their bytes are those of "frames" and "welcome"
    for at, reader in enumerate(fuzz.targets()):
        for number, seed in enumerate(honest[reader][:13]):
            (folder / f"{reader}-{number}").write_bytes(bytes([at]) + seed)
    for name, bomb in bombs.HEADERS.items():
        short = "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())
        (folder / f"bomb-{short}").write_bytes(bytes([0]) + bomb()[:1_024])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
