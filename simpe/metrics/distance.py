"""Distances between two sets of vectors."""

from __future__ import annotations

import numpy as np


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
