"""Comparisons of two sets of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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


class Support(NamedTuple):
    """How two sets of vectors lie within each other; see :func:`support`."""

    precision: float
    recall: float
    density: float
    coverage: float


def support(x: np.ndarray, y: np.ndarray, k: int = 3, wide: int = 5) -> Support:
    """Precision and recall (Kynkäänniemi et al., NeurIPS 2019, 3), density and coverage (Naeem et al., ICML 2020, 3).

    The support of a set is estimated by balls around its vectors, each reaching to the k-th nearest of the others.
    With x (n, d) released and y (m, d) real, all finite, precision is the share of x that lies within the balls of y,
    recall that of y within those of x. Density and coverage use balls around y to the ``wide``-th nearest: density is
    how many hold a vector of x, on average, over ``wide`` (1 where the sets are alike; it may be more), coverage the
    share of balls that hold one. So an outlier in y widens precision, but hardly density.

    Figures of sets of other sizes do not compare: give as many of each. Computed in float64, in blocks: n m distances
    take time, not memory. A vector on the rim of a ball, to rounding, lies within.

    Raises ValueError when shapes do not fit, or k or ``wide`` is not below n and m.
    """
    few = min(len(x), len(y)) if x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1] else 0
    if not 1 <= k < few or not 1 <= wide < few:
        raise ValueError(
            f"two sets (n, d) and (m, d) of more than k = {max(k, wide)} rows are needed, got {x.shape} and {y.shape}"
        )
    centre = y.mean(axis=0, dtype=np.float64)
    x, y = x - centre, y - centre
    slack = 1e-12 * max(float(np.square(x).sum(axis=1).max()), float(np.square(y).sum(axis=1).max()))
    near, far = _reach(y, (k, wide)) + slack
    ours = _reach(x, (k,))[0] + slack
    precise, held, start = 0, 0, 0
    recalled, nearest = np.zeros(len(y), bool), np.full(len(y), np.inf)
    for block in _squared_distances(x, y):
        precise += int((block <= near).any(axis=1).sum())
        held += int((block <= far).sum())
        recalled |= (block <= ours[start : start + len(block), None]).any(axis=0)
        nearest = np.minimum(nearest, block.min(axis=0))
        start += len(block)
    return Support(
        precision=precise / len(x),
        recall=float(recalled.mean()),
        density=held / (wide * len(x)),
        coverage=float((nearest <= far).mean()),
    )


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, unbiased (Bińkowski et al., ICLR 2018, 4).

    ``x`` (n, d) and ``y`` (m, d) are real and finite, n and m at least 2. On average 0 where both come from the same
    distribution, whatever n and m, so it may be a little negative. On features of an Inception network it is the KID.
    Computed in float64, in blocks.

    Raises ValueError when shapes do not fit.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"two sets (n, d) and (m, d) of at least 2 rows are needed, got {x.shape} and {y.shape}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    d = x.shape[1]
    squared = -2 * _kernel_sum(x, y) / (len(x) * len(y))
    for z in x, y:
        itself = float(((np.square(z).sum(axis=1) / d + 1) ** 3).sum())
        squared += (_kernel_sum(z, z) - itself) / (len(z) * (len(z) - 1))
    return squared


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the kernel over all pairs."""
    return sum(float(((x[i : i + _ROWS] @ y.T / x.shape[1] + 1) ** 3).sum()) for i in range(0, len(x), _ROWS))


def _reach(x: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
    """Squared distance of each vector to its nearest others of these ranks, (len(ranks), n)."""
    # The nearest of its own set is the vector itself.
    blocks = [np.partition(block, ranks, axis=1)[:, ranks] for block in _squared_distances(x, x)]
    found: np.ndarray = np.concatenate(blocks).T
    return found


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """(n, m) in blocks of rows."""
    norm = np.square(y).sum(axis=1)
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        yield np.square(part).sum(axis=1)[:, None] + norm - 2 * part @ y.T
