"""Sparse logistic regression by SGD: Hogwild! (nobody waits), with a lock around each step, and in one process.

    python examples/hogwild.py [--quick]

prints the loss, the steps per second and the staleness of each, and draws hogwild.png if matplotlib is installed.
"""

import fcntl
import math
import os
import sys
import tempfile
import time

import numpy as np

import shoal

FEATURES, EACH, RATE = 20_000, 20, 0.2  # EACH: features of an example that are not zero
WORKERS, PARTS = 2, 16  # PARTS: of an epoch; a process that is done with one takes the next


def examples(many):
    """Columns and values [many, EACH] of the features that are not zero, and labels +1 and -1."""
    rng = np.random.default_rng(0)
    columns, values = rng.integers(FEATURES, size=(many, EACH)), rng.normal(size=(many, EACH))
    truth = rng.normal(size=FEATURES) * 2
    chances = 1 / (1 + np.exp(-(truth[columns] * values).sum(1)))
    return columns, values, np.where(rng.random(many) < chances, 1.0, -1.0)


def loss(w, data):
    columns, values, labels = data
    return float(np.log1p(np.exp(-labels * (w[columns] * values).sum(1))).mean())


def steps(shared, data, part, numbers, lock):
    """A step for each of these examples. Returns the CPU-seconds that they took, and how many
    steps others made in the middle of some of them."""
    w, made, (columns, values, labels) = shared.w, shared.made, data
    stale, began = [], time.process_time()
    with open(lock or os.devnull) as file:
        for at, number in enumerate(numbers.tolist()):
            index, x, label = columns[number], values[number], labels[number]
            if lock:
                fcntl.flock(file, fcntl.LOCK_EX)
            before = made.sum() if at % 100 == 0 else -1
            margin = label * float(w[index] @ x)
            w[index] += x * (RATE * label / (1 + math.exp(margin)))  # reads, adds and writes: others may write between
            if before >= 0:
                stale.append(int(made.sum() - before))
            made[part, 0] += 1
            if lock:
                fcntl.flock(file, fcntl.LOCK_UN)
    return time.process_time() - began, stale


def train(workers, data, epochs, lock=""):
    """Trains for an epoch a turn. Yields the loss, the seconds of the epoch by the clock and of CPU, and the staleness of
    some of its steps."""
    shared = shoal.Shared({"w": np.zeros(FEATURES), "made": np.zeros((PARTS, 8), np.int64)})
    with shoal.Pool(workers) as pool:
        put = pool.put(data)
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(len(data[2]))
            began = time.perf_counter()
            calls = [pool.submit(steps, shared, put, at, part, lock) for at, part in enumerate(np.array_split(order, PARTS))]
            found = [call.result() for call in calls]
            seconds = time.perf_counter() - began, sum(cpu for cpu, _ in found)
            yield loss(shared.w, data), seconds, [one for _, stale in found for one in stale]


def main(quick):
    many, epochs = (5_000, 4) if quick else (40_000, 10)
    data = examples(many)
    with tempfile.NamedTemporaryFile() as lock:
        ways = {"serial": (1, ""), "Hogwild!": (WORKERS, ""), "locked": (WORKERS, lock.name)}
        turns = zip(*(train(workers, data, epochs, path) for workers, path in ways.values()), strict=True)
        found = dict(zip(ways, zip(*turns, strict=True), strict=True))  # an epoch of each by turns: they have the same machine
    medians = {name: np.median([seconds for _, seconds, _ in its], axis=0) for name, its in found.items()}
    rates = {name: many / float(seconds) for name, (seconds, _) in medians.items()}
    for name, its in found.items():
        stale = [one for _, _, some in its for one in some]
        print(
            f"{name:9} loss {its[-1][0]:.4f}, {rates[name]:,.0f} steps/s ({rates[name] / rates['serial']:.2f} of serial), "
            f"{1e6 * medians[name][1] / many:.1f} us of CPU a step, staleness {np.mean(stale):.2f} steps, at most {max(stale)}"
        )
    draw(found, rates, loss(np.zeros(FEATURES), data))


def draw(found, rates, first):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, against in zip(figure.subplots(1, 2, sharey=True), ("seconds", "epochs"), strict=True):
        for name, its in found.items():
            seconds = np.cumsum([0.0, *(seconds for _, (seconds, _), _ in its)])
            at = seconds if against == "seconds" else range(len(seconds))
            axes.plot(at, [first, *(loss for loss, _, _ in its)], ".-", label=f"{name}, {rates[name]:,.0f} steps/s")
        axes.set_xlabel(against)
    axes.legend()
    figure.axes[0].set_ylabel("loss")
    figure.savefig("hogwild.png", dpi=100)


if __name__ == "__main__":
    main("--quick" in sys.argv)
