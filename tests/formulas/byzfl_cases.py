"""Cases of ByzFL's rules, an independent public implementation (MIT licence): 1,000 of each rule.

ByzFL asks for torchvision, seaborn and matplotlib, which Shoal does not, so the tests have its results and not itself:

    pip download byzfl==0.0.11 --no-deps && unzip byzfl-0.0.11-py3-none-any.whl -d byzfl
    python tests/formulas/byzfl_cases.py byzfl              # writes byzfl_cases.npz
    python tests/formulas/byzfl_cases.py byzfl --check 1000 # compares as many other, larger cases with Shoal's

Only its modules of rules are imported, which need numpy, scipy and torch. What goes in is drawn anew by numpy's RandomState,
whose numbers no release changes; the file holds what comes out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RULES = ("Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "CenteredClipping", "NNM")
COUNT = 1_000
RESULTS = Path(__file__).with_name("byzfl_cases.npz")


def rules(folder: str) -> ModuleType:
    """ByzFL's rules, without the imports of its other parts."""
    package = ModuleType("byzfl")
    package.__path__ = [str(Path(folder) / "byzfl")]
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def drawn(rule: str, number: int, most: int = 15, entries: int = 5) -> dict[str, Any]:
    """The input of a random case: rows with three decimals, of which f may be far away, and settings."""
    rng = np.random.RandomState(number)
    f = int(rng.randint(1, 1 + max(1, (most - 3) // 4)))
    n = int(rng.randint(2 * f + 3, most + 1))
    x = rng.normal(rng.normal(), 1, (n, int(rng.randint(1, entries + 1))))
    x[:f] *= float(rng.choice([1, 10, -3]))
    found: dict[str, Any] = {"rule": rule, "f": f, "x": np.round(rng.permutation(x), 3)}
    if rule == "GeometricMedian":
        found |= {"nu": 0.1, "T": int(rng.randint(1, 9))}
    if rule == "CenteredClipping":
        found |= {"tau": float(np.round(rng.uniform(0.5, 5), 2)), "L": int(rng.randint(1, 4))}
    return found


def results(byzfl: Any, case: dict[str, Any]) -> list[Any]:
    """What ByzFL makes of a case; of centered clipping, which remembers, twice."""
    x, f = case["x"], case["f"]
    match case["rule"]:
        case "GeometricMedian":
            return [byzfl.GeometricMedian(nu=case["nu"], T=case["T"])(x)]
        case "CenteredClipping":
            remembering = byzfl.CenteredClipping(tau=case["tau"], L=case["L"])
            return [remembering(x).copy() for _ in range(2)]
        case "NNM":
            return [byzfl.Median()(byzfl.NNM(f=f)(x))]
        case "Median":
            return [byzfl.Median()(x)]
        case rule:
            return [getattr(byzfl, rule)(f=f)(x)]


def cases(rule: str) -> list[dict[str, Any]]:
    """The cases of a rule, each with "expected", ByzFL's results, a row for each step."""
    kept, found, at = np.load(RESULTS)[rule], [], 0
    for number in range(COUNT):
        case = drawn(rule, number)
        rows, width = 2 if rule == "CenteredClipping" else 1, case["x"].shape[1]
        found.append({**case, "expected": kept[at : at + rows * width].reshape(rows, width)})
        at += rows * width
    assert at == len(kept)
    return found


def check(byzfl: Any, count: int) -> None:
    """Compare `count` larger cases of each rule."""
    import test_robust

    for rule in RULES:
        for number in range(count):
            case = drawn(rule, number, most=25, entries=30)
            test_robust.agrees({**case, "expected": results(byzfl, case)})
        print(f"{rule}: {count} cases agree")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--check", type=int, default=0)
    asked = parser.parse_args()
    byzfl = rules(asked.folder)
    if asked.check:
        check(byzfl, asked.check)
        return
    made = {
        rule: np.concatenate([row for number in range(COUNT) for row in results(byzfl, drawn(rule, number))]) for rule in RULES
    }
    np.savez_compressed(RESULTS, **{rule: flat.astype(np.float32) for rule, flat in made.items()})


if __name__ == "__main__":
    main()
