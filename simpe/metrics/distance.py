"""Comparisons of two sets of vectors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ROWS = 512  # whose distances to all others are held at a time


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet distance between the Gaussians fitted to two sets of vectors (Dowson and Landau, 1982).

    ``x`` (n, d) and ``y`` (m, d) are real and finite; n and m are at least 2 and may be smaller than d. With means
    a, b and (unbiased) covariances A, B it is |a - b|^2 + tr A + tr B - 2 tr (A B)^(1/2), computed in float64. On
    features of an Inception network it is the FID of Heusel et al. (2017).

    Raises ValueError when shapes do not fit.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"two sets (n, d) and (m, d) of at least 2 rows are needed, got {x.shape} and {y.shape}")
    mean_x, root_x = _mean_and_root(x)
    mean_y, root_y = _mean_and_root(y)
    # With A = P'P and B = Q'Q, the eigenvalues of A B are the squared singular values of P Q'. Taking these leaves
    # no square root of a rounding error, so that singular covariances need no care.
    overlap = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    squared = np.square(mean_x - mean_y).sum() + np.square(root_x).sum() + np.square(root_y).sum() - 2 * overlap
    return max(0.0, float(squared))


def _mean_and_root(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (d,) and a matrix P (min(n, d), d) with P'P the covariance, without forming that."""
    x = x.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    return mean, np.linalg.qr(x, mode="r") / np.sqrt(len(x) - 1)


def precision_and_recall(x: np.ndarray, y: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Share of x that lies within the support of y, and of y within that of x (Kynkäänniemi et al., NeurIPS 2019, 3).

    The support of a set is estimated by balls around its vectors, each reaching to the k-th nearest of the others.
    With x (n, d) released and y (m, d) real, all finite, precision is high where samples are realistic, recall where
    they are varied. Figures of sets of other sizes do not compare: give as many of each. Computed in float64, in
    blocks: n m distances take time, not memory. A vector on the rim of a ball, to rounding, lies within.

    Raises ValueError when shapes do not fit or k is not below n and m.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"two sets (n, d) and (m, d) of more than k = {k} rows are needed, got {x.shape} and {y.shape}"
        )
    centre = y.mean(axis=0, dtype=np.float64)
    x, y = x - centre, y - centre
    slack = 1e-12 * max(float(np.square(x).sum(axis=1).max()), float(np.square(y).sum(axis=1).max()))
    return _share_within(x, y, k, slack), _share_within(y, x, k, slack)


def _share_within(x: np.ndarray, y: np.ndarray, k: int, slack: float) -> float:
    """Share of x within the balls around y."""
    # The nearest of its own set is the vector itself.
    reach = np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _squared_distances(y, y)])
    within = [(block <= reach + slack).any(axis=1) for block in _squared_distances(x, y)]
    return float(np.concatenate(within).mean())


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """(n, m) in blocks of rows."""
    norm = np.square(y).sum(axis=1)
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        yield np.square(part).sum(axis=1)[:, None] + norm - 2 * part @ y.T
