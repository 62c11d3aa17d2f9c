"""Nearest-neighbour votes: which candidates each row is closest to, exactly.

``nearest`` finds them with a blocked matrix product of values cut to 8 bits, then settles every comparison that
rounding could have decided, by a float64 distance summed in a fixed order; the lowest index wins ties. So the answer
for a row is, bit for bit, a function of that row and the candidates alone: no other row, block or batch shape can move
it. That is what bounds the sensitivity of the votes to one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from simpe.scheduling import Metric
from simpe.threads import spread

Progress = Callable[[int, int], None]

_PART = 2**16  # values prepared at a time
_TILE = 32  # columns that a processor's matrix unit takes at a time
_LARGE = 4096, 8192  # rows and candidates in a block on a GPU, where each step has a price of its own; not measured
_FAR = 2.0**60  # norm of a row, in units of the largest candidate, past which float32 is of no use
_NEVER = 2.0**100  # a score that no candidate reaches
_HELD = 2**18  # values held at a time while near-ties are settled


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
    prepared = _Candidates(candidates, metric)
    share = max(64, math.ceil(len(rows) / torch.get_num_threads()))
    blocks = torch.split(rows, min(prepared.rows, share))
    with _cut_products(rows.device):
        return torch.cat(spread(lambda block: prepared.nearest(block, k), blocks, rows.device))


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
        self.rows, self.side, self.group = _shape(candidates.shape[1])
        if candidates.device.type != "cpu":
            self.rows, self.side = _LARGE
        m, d = candidates.shape
        parts = _parts(candidates)
        self.centre = torch.stack([_prepare(part, metric).sum(dim=0) for part in parts]).sum(dim=0) / m
        norms = [torch.linalg.vector_norm(_prepare(part, metric).sub_(self.centre), dim=1) for part in parts]
        largest = torch.cat(norms).max()
        self.length = torch.where(largest > 0, largest, 1.0)
        # |c|^2 / 2 is three more columns of 8 bits each, against ones in the rows; zeros fill up the last tile of a
        # matrix unit. What fills up the last group can never win.
        self.values = candidates.new_zeros((m + -m % self.group, d + 3 + -(d + 3) % _TILE))
        norm, lost = self._scale(candidates, out=self.values[:m])
        rest = norm.square() / 2
        for column in range(d, d + 3):
            self.values[:m, column] = rest.bfloat16()
            rest -= self.values[:m, column]
        self.values[m:, d] = _NEVER
        self.lost = lost.max()

    def _scale(self, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Write x (n, d), centred, scaled and cut to 8 bits, into the first columns of ``out``, float32.

        Returns the norms (n,) before that, and of what was cut off, float64. Raises ValueError if x is not finite.
        """
        norms, losses = [], []
        for part, place in zip(_parts(x), _parts(out[:, : x.shape[1]]), strict=True):
            exact = _prepare(part, self.metric).sub_(self.centre).div_(self.length)
            norms.append(torch.linalg.vector_norm(exact, dim=1))
            place.copy_(exact.bfloat16())
            losses.append(torch.linalg.vector_norm(exact.sub_(place), dim=1))
        norm, lost = torch.cat(norms), torch.cat(losses)
        if not norm.isfinite().all():
            raise ValueError("rows and candidates must be finite")
        return norm, lost

    def nearest(self, rows: Tensor, k: int) -> Tensor:
        """Indices (n, k) of the nearest candidates of a block of rows."""
        n, d = rows.shape
        x = self.values.new_ones((n, self.values.shape[1]))
        norm, lost = self._scale(rows, out=x)
        x[:, :d].neg_()
        # So far out that rounding decides between all candidates: compare them all.
        far = norm > _FAR
        x[far, :d] = 0.0
        tolerance = torch.where(far, torch.inf, 2 * _error(norm, lost, self.lost, d)).float()
        minima, tiles = self._minima(x)
        # The k smallest minima bound the k-th smallest score from above. What lies above that bound by more than twice
        # the error cannot be among the nearest k.
        if k == 1:
            bound = tiles.amin(dim=0)
        elif k <= (groups := len(self.values) // self.group):
            bound = minima[:groups].topk(k, dim=0, largest=False).values[-1]
        else:
            bound = torch.full_like(tolerance, torch.inf)
        limit = bound + tolerance
        tile, row = (tiles <= limit).nonzero(as_tuple=True)
        minima = minima.view(len(tiles), self.side // self.group, n)
        pair, group = (minima[tile, :, row] <= limit[row, None]).nonzero(as_tuple=True)
        return self._settle(rows, x, limit, row[pair], tile[pair] * minima.shape[1] + group, k)

    def _minima(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest score of rows x in each group of consecutive candidates (groups, n), and in each tile (tiles, n)."""
        blocks = torch.split(self.values, self.side)
        groups, share = len(self.values) // self.group, self.side // self.group
        minima = x.new_full((len(blocks) * share, len(x)), torch.inf)
        memory = x.new_empty((self.side, len(x)))  # the same for every tile, so that it stays in the cache
        grouped, columns = memory.view(share, self.group, len(x)), x.T
        # Two calls a tile: at each, threads wait for one another to hand over the interpreter.
        for block, found in zip(blocks, torch.split(minima[:groups], share), strict=True):
            torch.mm(block, columns, out=memory[: len(block)] if len(block) < self.side else memory)
            torch.amin(grouped[: len(found)] if len(found) < share else grouped, dim=1, out=found)
        tiles = minima.view(len(blocks), share, len(x)).amin(dim=1)
        minima[groups:] = torch.nan  # below no limit, not even an infinite one
        return minima, tiles

    def _settle(self, rows: Tensor, x: Tensor, limit: Tensor, row: Tensor, group: Tensor, k: int) -> Tensor:
        """The k nearest (n, k) among the members of the listed groups: ``row[i]`` is to look into ``group[i]``."""
        if len(row) * self.group > _HELD and len(rows) > 1:  # nearly all tie: fewer rows at a time
            half = len(rows) // 2
            low, high = row < half, row >= half
            return torch.cat(
                [
                    self._settle(rows[:half], x[:half], limit[:half], row[low], group[low], k),
                    self._settle(rows[half:], x[half:], limit[half:], row[high] - half, group[high], k),
                ]
            )
        # Scores of the members again, now that the limit is known: most rows have one contender left.
        groups = self.values.view(len(self.values) // self.group, -1)
        near = []
        size = max(1, _HELD // groups.shape[1])
        for r, g in zip(torch.split(row, size), torch.split(group, size), strict=True):
            members = groups.index_select(0, g).view(len(g), self.group, x.shape[1])
            near.append(members.mul_(x[r, None]).sum(2) <= limit[r, None])
        pair, member = torch.cat(near).nonzero(as_tuple=True)
        row, index = row[pair], group[pair] * self.group + member
        real = index < len(self.original)
        row, index = row[real], index[real]
        # Order them by exact distance, then index; a single contender needs no comparison.
        contested = (torch.bincount(row, minlength=len(rows))[row] > 1).nonzero().squeeze(1)
        distance = torch.zeros(len(row), dtype=torch.float64, device=rows.device)
        for part in torch.split(contested, max(1, _HELD // rows.shape[1])):
            distance[part] = _distances(rows[row[part]], self.original[index[part]], self.metric)
        order = index.argsort(stable=True)
        order = order[distance[order].argsort(stable=True)]
        order = order[row[order].argsort(stable=True)]
        row, index = row[order], index[order]
        first = torch.searchsorted(row, torch.arange(len(rows), device=rows.device))
        return index[first[:, None] + torch.arange(k, device=rows.device)]


def _shape(dims: int) -> tuple[int, int, int]:
    """Rows and candidates in a block of scores, and candidates that share a minimum: what was found to be fast.

    A block has to stay in a core's cache between the product and the minima. In many dimensions the members of a group,
    to be scored again, are best few, and the reading of a block is best shared by many rows.
    """
    return (512, 512, 16) if dims < 128 else (1024, 1024, 8)


def _error(norm: Tensor, lost: Tensor, candidates_lost: Tensor, dims: int) -> Tensor:
    """Bound (n,) on the error of a score of rows of this norm, whatever the order in which the product is summed.

    Cutting rows and candidates moves a product by at most |x - x'| |c| + |x'| |c - c'|. The cut ones are multiplied
    exactly; their float32 sum of d terms errs by at most d u |x| |c| / (1 - d u) (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1), with u twice the unit roundoff, as sums may be truncated; the norm's columns add a few u
    of the same terms, and the tenth covers the second order. A GPU's matrix unit adds a few terms at a time, each cut
    where the largest of them ends, and cuts their sum (Fasi et al., PeerJ Computer Science 7:e330, 2021): for k terms
    and the sum so far that is k + 2 cuts of u of the largest, so 2 d u in all where k is 2 or more. The last term is
    the error of the float64 distance itself, so that whatever could win by that is compared too.
    """
    u = 2.0**-23 if norm.device.type == "cpu" else 2.0**-22
    cut = lost + (norm + lost) * candidates_lost
    summed = (dims + 8) * u / (1 - dims * u) * (norm + 0.5)
    return 1.1 * (cut + summed) + (math.log2(dims) + 8) * 2.0**-53 * (norm + 1).square()


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """x (n, d) in parts whose float64 copies fit into a cache."""
    return torch.split(x, max(1, _PART // x.shape[1]))


def _prepare(x: Tensor, metric: Metric) -> Tensor:
    """New float64 vectors whose Euclidean distance is the metric's."""
    x = x.double()
    if metric == "l2":
        return x
    norm = _sum_in_order(x.square()).sqrt()[:, None]
    return x / torch.where(norm > 0, norm, 1.0)


def _distances(x: Tensor, c: Tensor, metric: Metric) -> Tensor:
    """Squared distance (n,) of paired rows in float64, the same bits whatever the number of rows."""
    return _sum_in_order((_prepare(x, metric) - _prepare(c, metric)).square())


def _sum_in_order(x: Tensor) -> Tensor:
    """Sum over the last dimension by folding it in half: elementwise additions only, so the order is fixed.

    Overwrites x.
    """
    length = x.shape[1]
    while length > 1:
        half = (length + 1) // 2
        x[:, : length - half] += x[:, half:length]
        length = half
    return x[:, 0]


@contextmanager
def _cut_products(device: torch.device) -> Iterator[None]:
    """Let products read 8 bits of their inputs where that is faster (AMX), or 11 (TF32): our values have no more."""
    if device.type == "cpu" and not getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say once its newer per-backend settings were used
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
