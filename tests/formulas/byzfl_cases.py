"""Cases of ByzFL's rules, an independent public implementation (MIT licence), and a comparison with it on many more.

ByzFL asks for torchvision, seaborn and matplotlib, which Shoal does not, so the tests have its results and not itself:

    pip download byzfl==0.0.11 --no-deps && unzip byzfl-0.0.11-py3-none-any.whl -d byzfl
    python tests/formulas/byzfl_cases.py byzfl              # writes byzfl_cases.json
    python tests/formulas/byzfl_cases.py byzfl --check 1000 # compares 1,000 random cases of each rule with Shoal's

Only its modules of rules are imported, which need numpy, scipy and torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RULES = ("Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "CenteredClipping", "NNM")


def rules(folder: str) -> ModuleType:
    """ByzFL's rules, without the imports of its other parts."""
    package = ModuleType("byzfl")
    package.__path__ = [str(Path(folder) / "byzfl")]
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def case(byzfl: Any, rule: str, rng: np.random.Generator, most: int, entries: int) -> dict[str, Any]:
    """A random case: inputs with three decimals, of which f rows may be far away; settings; and ByzFL's results."""
    f = int(rng.integers(1, 1 + max(1, (most - 3) // 4)))
    n = int(rng.integers(2 * f + 3, most + 1))
    x = rng.normal(rng.normal(), 1, (n, int(rng.integers(1, entries + 1))))
    x[:f] *= float(rng.choice([1, 10, -3]))
    x = np.round(rng.permutation(x), 3)
    found: dict[str, Any] = {"rule": rule, "f": f, "x": x.tolist()}
    if rule == "GeometricMedian":
        found |= {"nu": 0.1, "T": int(rng.integers(1, 9))}
        made = [byzfl.GeometricMedian(nu=0.1, T=found["T"])(x)]
    elif rule == "CenteredClipping":
        found |= {"tau": float(np.round(rng.uniform(0.5, 5), 2)), "L": int(rng.integers(1, 4))}
        remembering = byzfl.CenteredClipping(tau=found["tau"], L=found["L"])
        made = [remembering(x).copy() for _ in range(2)]
    elif rule == "NNM":
        made = [byzfl.Median()(byzfl.NNM(f=f)(x))]
    elif rule == "Median":
        made = [byzfl.Median()(x)]
    else:
        made = [getattr(byzfl, rule)(f=f)(x)]
    return {**found, "expected": [each.tolist() for each in made]}


def check(byzfl: Any, count: int) -> None:
    """The largest differences over `count` cases of each rule, printed."""
    import test_robust

    for rule in RULES:
        rng = np.random.default_rng(1)
        for _ in range(count):
            test_robust.test_a_step_is_what_byzfl_makes(case(byzfl, rule, rng, 25, 30))
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
    rng = np.random.default_rng(0)
    cases = [case(byzfl, rule, rng, 15, 5) for rule in RULES for _ in range(5)]
    lines = ",\n".join(json.dumps(each) for each in cases)
    (Path(__file__).parent / "byzfl_cases.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
