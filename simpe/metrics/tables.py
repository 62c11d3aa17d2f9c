"""How like two tables are, column by column and in combination; 0 is alike in every figure.

A table is numbers (n, columns), or a mapping of names to codes (n,) that stand for categories or bins. Nothing here is
differentially private.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = Mapping[str, NDArray[Any]]

_CELLS = 1_000_000  # of a marginal that are counted whether they occur or not


def kolmogorov_smirnov(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Largest difference of the distribution functions of two columns of numbers (n,), (m,), in [0, 1].

    Raises ValueError for a column without rows.
    """
    _need_rows(x, y)
    steps = np.concatenate([x, y])
    ours, theirs = (np.searchsorted(np.sort(one), steps, side="right") / len(one) for one in (x, y))
    return float(np.abs(ours - theirs).max())


def chi_square(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Pearson's chi-square of two columns of codes (n,), (m,), as Cramer's V: the root of chi-square over n + m.

    In [0, 1]; so figures of tables of other sizes compare, which chi-square itself does not. Values that neither
    column has do not count.

    Raises ValueError for a column without rows.
    """
    _need_rows(x, y)
    ours, theirs, size = shared_codes(x, y)
    p, q = _shares(ours, size), _shares(theirs, size)
    n, m = len(x), len(y)
    shared = (n * p + m * q) / (n + m)
    return float(np.sqrt((n * np.square(p - shared) / shared + m * np.square(q - shared) / shared).sum() / (n + m)))


def correlation_difference(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean absolute difference of the correlations (Pearson) of all pairs of columns; (n, d), (m, d); in [0, 2].

    A column that does not vary correlates with nothing.

    Raises ValueError unless both have the same two or more columns and at least two rows.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] < 2 or min(len(x), len(y)) < 2:
        raise ValueError(f"two tables of the same columns and at least 2 rows are needed, got {x.shape} and {y.shape}")
    pairs = np.triu_indices(x.shape[1], 1)
    return float(np.abs(_correlations(x)[pairs] - _correlations(y)[pairs]).mean())


def marginal_total_variation(x: Codes, y: Codes, k: int) -> float:
    """Mean total variation distance, in [0, 1], of all marginals of k columns that both tables have.

    Raises ValueError where they share fewer than k columns, or one has no rows.
    """
    names = sorted(x.keys() & y.keys())
    if not 1 <= k <= len(names) or not len(x[names[0]]) or not len(y[names[0]]):
        raise ValueError(f"two tables with rows and at least {k} columns in common are needed")
    codes = [shared_codes(x[name], y[name]) for name in names]
    distances = []
    for chosen in combinations(codes, k):
        ours, theirs, size = chosen[0]
        for a, b, more in chosen[1:]:
            ours, theirs, size = ours * more + a, theirs * more + b, size * more
            if size > _CELLS:  # number the cells that occur
                ours, theirs, size = shared_codes(ours, theirs)
        distances.append(np.abs(_shares(ours, size) - _shares(theirs, size)).sum() / 2)
    return float(np.mean(distances))


def _need_rows(x: NDArray[Any], y: NDArray[Any]) -> None:
    if not len(x) or not len(y):
        raise ValueError("both columns need at least one row")


def shared_codes(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Both columns as numbers below the third returned: every value that occurs has one."""
    values, index = np.unique(np.concatenate([x, y]), return_inverse=True)
    return index[: len(x)], index[len(x) :], len(values)


def _shares(codes: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.bincount(codes, minlength=size) / len(codes)
    return shares


def _correlations(x: NDArray[Any]) -> NDArray[np.float64]:
    centred = x - x.mean(axis=0, dtype=np.float64)
    length = np.sqrt(np.square(centred).sum(axis=0))
    still = length <= 1e-12 * np.abs(x).max(axis=0, initial=0) * np.sqrt(len(x))
    unit = np.where(still, 0.0, centred / np.where(still, 1.0, length))
    found: NDArray[np.float64] = unit.T @ unit
    return found
