"""Nearest-neighbour votes: which candidates each row is closest to, exactly.

``nearest`` finds them with a blocked float32 matrix product, then settles every comparison that rounding could
have decided, by a float64 distance summed in a fixed order; the lowest index wins ties. So the answer for a row is,
bit for bit, a function of that row and the candidates alone: no other row, block or batch shape can move it. That is
what bounds the sensitivity of the votes to one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from simpe.scheduling import Metric

Progress = Callable[[int, int], None]

_ROWS = 512  # rows by
_CANDIDATES = 2048  # candidates: a block of scores, which fits into a core's cache
_GROUP = 32  # candidates that share a minimum; only promising groups are looked into
_FAR = 2.0**60  # norm of a row, in units of the largest candidate, past which float32 is of no use
_PAIRS = 2**22  # float64 values held at a time while near-ties are settled


def nearest(rows: Tensor, candidates: Tensor, k: int = 1, metric: Metric = "l2") -> Tensor:
    """Indices (n, k) int64 of the k candidates nearest to each row, nearest first; ties go to the lowest index.

    ``rows`` (n, d) and ``candidates`` (m, d) are float32 on one device, all finite; memory is O(block), not O(n m).
    Distance is the float64 Euclidean one, or, for ``cosine``, that between the rows scaled to unit length (a zero
    row stays zero). k is at most m.

    Raises ValueError when shapes do not fit or a value is not finite.
    """
    if rows.ndim != 2 or candidates.ndim != 2 or rows.shape[1] != candidates.shape[1]:
        raise ValueError(f"rows {tuple(rows.shape)} and candidates {tuple(candidates.shape)} do not fit")
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k must lie between 1 and the number of candidates {len(candidates)}, got {k}")
    if not (rows.isfinite().all() and candidates.isfinite().all()):
        raise ValueError("rows and candidates must be finite")
    prepared = _Candidates(candidates, metric)
    found = [prepared.nearest(rows[i : i + _ROWS], k) for i in range(0, len(rows), _ROWS)]
    return torch.cat(found) if found else torch.empty((0, k), dtype=torch.int64, device=rows.device)


def nearest_within_labels(
    rows: Tensor,
    row_labels: Tensor,
    candidates: Tensor,
    candidate_labels: Tensor,
    k: int = 1,
    metric: Metric = "l2",
    progress: Progress | None = None,
) -> Tensor:
    """Like :func:`nearest`, each row among the candidates of its own label; -1 where there are none to vote for.

    Rows and candidates of a negative label take no part. Indices refer to all candidates.
    """
    found = torch.full((len(rows), k), -1, dtype=torch.int64, device=rows.device)
    labels = torch.unique(candidate_labels[candidate_labels >= 0]).tolist()
    for done, label in enumerate(labels):
        mine = (row_labels == label).nonzero().squeeze(1)
        theirs = (candidate_labels == label).nonzero().squeeze(1)
        most = min(k, len(theirs))
        found[mine, :most] = theirs[nearest(rows[mine], candidates[theirs], most, metric)]
        if progress is not None:
            progress(done + 1, len(labels))
    return found


class _Candidates:
    """Candidates prepared for the score |c|^2 / 2 - x.c, which orders them as the distance to x does.

    They are centred and scaled to length 1 at most, rows alike: that changes no order, shrinks the rounding errors, and
    keeps float32 from running over or under whatever the scale of the embedding.
    """

    def __init__(self, candidates: Tensor, metric: Metric):
        self.metric = metric
        self.original = candidates
        exact = _prepare(candidates, metric)
        self.centre = exact.mean(dim=0)
        exact = exact - self.centre
        largest = exact.square().sum(dim=1).max().sqrt()
        self.length = torch.where(largest > 0, largest, 1.0)
        exact = exact / self.length
        # |c|^2 / 2 is one more column, against a 1 in the rows; what fills up the last group can never win.
        half_norms = exact.square().sum(dim=1, keepdim=True) / 2
        fill = exact.new_zeros((-len(candidates) % _GROUP, exact.shape[1] + 1))
        fill[:, -1] = torch.inf
        self.values = torch.cat([torch.cat([-exact, half_norms], dim=1), fill]).float()

    def nearest(self, rows: Tensor, k: int) -> Tensor:
        exact = (_prepare(rows, self.metric) - self.centre) / self.length
        norm = exact.square().sum(dim=1, keepdim=True).sqrt()
        # So far out that rounding decides between all candidates: compare them all.
        far = norm > _FAR
        x = torch.nn.functional.pad(exact.where(~far, 0.0).float(), (0, 1), value=1.0)
        tolerance = torch.where(far, torch.inf, 2 * _error(norm, rows.shape[1], rows.device)).float()
        # 1. The k smallest group minima bound the k-th smallest score from above; keep the groups within
        #    twice the error of that bound, and of these the scores that are.
        bound = torch.full((len(rows), k), torch.inf, device=rows.device)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        memory = x.new_empty(len(rows) * min(_CANDIDATES, len(self.values)))  # the same for every block: stays in cache
        for start in range(0, len(self.values), _CANDIDATES):
            block = self.values[start : start + _CANDIDATES]
            scores = torch.mm(x, block.T, out=memory[: len(rows) * len(block)].view(len(rows), -1))
            # A group is every (count)-th candidate of the block, so that its minimum runs along the memory.
            groups = scores.view(len(rows), _GROUP, -1)
            count = groups.shape[2]
            minima = groups.amin(dim=1)
            if k == 1:
                bound = torch.minimum(bound, minima.amin(dim=1, keepdim=True))
            else:
                bound = torch.cat([bound, minima], dim=1).topk(k, dim=1, largest=False).values
            row, group = (minima <= bound[:, -1:] + tolerance).nonzero(as_tuple=True)
            scores = groups[row, :, group]
            member, place = (scores <= (bound[row, -1:] + tolerance[row])).nonzero(as_tuple=True)
            kept.append((row[member], start + place * count + group[member], scores[member, place]))
        row, index, score = (torch.cat(parts) for parts in zip(*kept, strict=True))
        near = (score <= bound[row, -1] + tolerance[row, 0]) & (index < len(self.original))
        row, index = row[near], index[near]
        # 2. Order what is left by exact distance, then index; a single contender needs no comparison.
        contested = torch.bincount(row, minlength=len(rows))[row] > 1
        distance = torch.zeros(len(row), dtype=torch.float64, device=rows.device)
        chosen = contested.nonzero().squeeze(1)
        for part in torch.split(chosen, max(1, _PAIRS // rows.shape[1])):
            distance[part] = _distances(rows[row[part]], self.original[index[part]], self.metric)
        order = index.argsort(stable=True)
        order = order[distance[order].argsort(stable=True)]
        order = order[row[order].argsort(stable=True)]
        row, index = row[order], index[order]
        first = torch.searchsorted(row, torch.arange(len(rows), device=rows.device))
        return index[first[:, None] + torch.arange(k, device=rows.device)]


def _error(norm: Tensor, dims: int, device: torch.device) -> Tensor:
    """Bound (n, 1) on the error of a score of rows of this norm, whatever the order in which the product is summed.

    A float32 dot product of d terms errs by at most d u |x| |c| / (1 - d u) (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1), with u the unit roundoff; rounding the inputs, the norm and the final subtraction
    adds a few u of the same terms, and the tenth covers the second order. The last term is the error of the float64
    distance itself, so that whatever could win by that is compared too.
    """
    u, inputs = 2.0**-24, 0.0
    if not _full_precision(device):
        # Inputs are cut to as few as 8 bits; sums stay float32, though they may be truncated.
        u, inputs = 2.0**-23, 2.0**-6
    relative = 1.1 * ((dims + 8) * u / (1 - dims * u) + inputs)
    return relative * (norm + 0.5) + (math.log2(dims) + 8) * 2.0**-53 * (norm + 1).square()


def _prepare(x: Tensor, metric: Metric) -> Tensor:
    """float64 vectors whose Euclidean distance is the metric's."""
    x = x.double()
    if metric == "l2":
        return x
    norm = _sum_in_order(x.square()).sqrt()[:, None]
    return x / torch.where(norm > 0, norm, 1.0)


def _distances(x: Tensor, c: Tensor, metric: Metric) -> Tensor:
    """Squared distance (n,) of paired rows in float64, the same bits whatever the number of rows."""
    return _sum_in_order((_prepare(x, metric) - _prepare(c, metric)).square())


def _sum_in_order(x: Tensor) -> Tensor:
    """Sum over the last dimension by folding it in half: elementwise additions only, so the order is fixed."""
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        x = torch.nn.functional.pad(x, (0, 2 * half - x.shape[1]))
        x = x[:, :half] + x[:, half:]
    return x[:, 0]


def _full_precision(device: torch.device) -> bool:
    """Whether torch's current settings keep float32 matrix products in float32."""
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return False
        return device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch refuses to say once its newer per-backend settings were used
        return False
