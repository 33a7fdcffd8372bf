"""Robust rules in ten lines of numpy each, after the papers, in float64: what the aggregators are held against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]


def trimmed_mean(x: Rows, f: int) -> Rows:
    return np.array([np.mean(sorted(column)[f : len(x) - f]) for column in x.T])


def krum_scores(x: Rows, neighbours: int) -> Rows:
    """Blanchard et al. 2017, section 4: a delta's squared distances to its nearest `neighbours` others, summed."""
    apart = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    return np.array([np.sort(np.delete(row, i))[:neighbours].sum() for i, row in enumerate(apart)])


def multikrum(x: Rows, neighbours: int, keep: int) -> Rows:
    return x[np.argsort(krum_scores(x, neighbours), kind="stable")[:keep]].mean(0)


def bulyan(x: Rows, f: int) -> Rows:
    """El Mhamdi et al. 2018, section 4.2."""
    left, selected = list(x), []
    while len(selected) < len(x) - 2 * f:
        among = np.array(left)
        selected.append(left.pop(int(np.argmin(krum_scores(among, max(1, len(left) - f - 2))))))
    chosen = np.array(selected)
    nearest = [sorted(column, key=lambda v: (abs(v - np.median(column)), v))[: len(chosen) - 2 * f] for column in chosen.T]
    return np.array(nearest).mean(1)


def rfa(x: Rows, iterations: int, nu: float) -> Rows:
    """Pillutla et al. 2022, algorithm 2, from 0."""
    v = np.zeros(x.shape[1])
    for _ in range(iterations):
        beta = 1 / np.maximum(nu, np.linalg.norm(x - v, axis=1))
        v = (beta[:, None] * x).sum(0) / beta.sum()
    return v


def centered_clipping(x: Rows, center: Rows, radius: float, iterations: int) -> Rows:
    """Karimireddy et al. 2021, equation CClip."""
    v = center
    for _ in range(iterations):
        v = v + np.mean([(a - v) * min(1.0, radius / max(np.linalg.norm(a - v), 1e-300)) for a in x], axis=0)
    return v


def fltrust(x: Rows, own: Rows) -> Rows:
    """Cao et al. 2021, equations 2 to 4."""
    length, norms = np.linalg.norm(own), np.linalg.norm(x, axis=1)
    trust = np.maximum(0, x @ own / (norms * length))
    return (trust[:, None] * x * (length / norms)[:, None]).sum(0) / trust.sum()


def nearest_neighbour_mixing(x: Rows, f: int) -> Rows:
    """Allouah et al. 2023, algorithm 2."""
    near = [np.argsort([((a - b) ** 2).sum() for b in x], kind="stable")[: len(x) - f] for a in x]
    return np.array([x[rows].mean(0) for rows in near])


def bucketed(x: Rows, order: npt.NDArray[np.int64], size: int) -> Rows:
    """Karimireddy et al. 2022, algorithm 1."""
    return np.array([x[order[first : first + size]].mean(0) for first in range(0, len(x), size)])
