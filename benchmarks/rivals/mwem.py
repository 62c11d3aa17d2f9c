"""MWEM+PGM on a table of codes: a loop of our own around the estimation of the package mbi, in its own environment.

    python mwem.py IN.npz OUT.npz '{"rho": 0.02, "k": 1, "seed": 0, "settings": {"rounds": 9, ...}}'

IN.npz and OUT.npz are those of ``synthesise.py``. MWEM (Hardt, Ligett and McSherry, NIPS 2012) chooses, round after
round, the query that its estimate answers worst, measures it with noise and estimates anew; with whole two-way
marginals as queries (their section 3.3) and a graphical model as the estimate it is MWEM+PGM (McKenna, Sheldon and
Miklau, ICML 2019; McKenna et al., VLDB 2022, section 3). Before the first round every column is measured by itself,
since the number of rows is private under add/remove; the model's total is its estimate.

**Guarantee.** rho-zCDP for adding or removing a unit of up to k rows. Adding a row moves one cell of a marginal by 1:
its L2 sensitivity is 1, and Gaussian noise of sigma costs 1 / (2 sigma^2) (Bun and Steinke 2016, proposition 1.6). A
score is the L1 distance of the marginal to an estimate that earlier releases fix, less the number of its cells, which
is public: by the triangle inequality it moves by at most 1, so drawing with probabilities in proportion to
exp(epsilon score / 2) is epsilon-DP and costs epsilon^2 / 8 (Cesar and Rogers, ALT 2021). Which pairs still fit into
the model depends on public sizes and earlier choices alone. The costs add up to rho / k^2 for a row, and by group
privacy (proposition 1.9) to rho for a unit. Noise is floating-point and from numpy's generator.
"""

import json
import sys
from itertools import combinations

import numpy as np

COLUMNS = 0.1  # the part of rho that the single columns cost
SELECTION = 0.5  # the part of a round's that its choice costs


def marginal(codes, sizes, clique):
    """Counts of the rows by the columns of ``clique``, flat."""
    shape = [sizes[column] for column in clique]
    return np.bincount(np.ravel_multi_index(codes[:, clique].T, shape), minlength=int(np.prod(shape))).astype(float)


def choose(scores, rho, rng):
    """Exponential mechanism for scores of sensitivity 1, at a cost of rho: the index it draws, by Gumbel noise."""
    return int(np.argmax(np.sqrt(8 * rho) * np.asarray(scores) / 2 + rng.gumbel(size=len(scores))))


def measure(counts, rho, rng):
    """Gaussian mechanism for counts of sensitivity 1, at a cost of rho: the noisy counts and their sigma."""
    sigma = np.sqrt(1 / (2 * rho))
    return counts + rng.normal(0, sigma, len(counts)), sigma


def fit(codes, sizes, rho, rounds, model, rng):
    """The model after all measurements, and what each release cost.

    codes: (n, columns) int; ``model`` estimates: ``fits(cliques)``, ``estimate([(clique, counts, sigma)])`` and
    ``answer(clique)``, flat counts.
    """
    spent, measured = [], []

    def ask(clique, cost):
        measured.append((clique, *measure(marginal(codes, sizes, clique), cost, rng)))
        spent.append(cost)

    for column in range(len(sizes)):
        ask((column,), COLUMNS * rho / len(sizes))
    model.estimate(measured)
    share = (1 - COLUMNS) * rho / rounds
    for _ in range(rounds):
        taken = [clique for clique, *_ in measured]
        pairs = [pair for pair in combinations(range(len(sizes)), 2) if model.fits([*taken, pair])]
        scores = [
            np.abs(marginal(codes, sizes, pair) - model.answer(pair)).sum() - sizes[pair[0]] * sizes[pair[1]]
            for pair in pairs
        ]
        spent.append(SELECTION * share)
        ask(pairs[choose(scores, spent[-1], rng)], (1 - SELECTION) * share)
        model.estimate(measured)
    return model, spent


class Graphical:
    """mbi's graphical model of columns 0, 1, ...: estimated by mirror descent, each time from where it stood."""

    def __init__(self, sizes, iterations, megabytes):
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_enable_compilation_cache", False)  # as mbi advises
        import mbi

        self.mbi, self.iterations, self.megabytes, self.found = mbi, iterations, megabytes, None
        self.domain = mbi.Domain(range(len(sizes)), [int(size) for size in sizes])

    def fits(self, cliques):
        return self.mbi.junction_tree.hypothetical_model_size(self.domain, cliques) <= self.megabytes

    def estimate(self, measured):
        told = [self.mbi.LinearMeasurement(counts, clique, sigma) for clique, counts, sigma in measured]
        self.found = self.mbi.estimation.MirrorDescent().estimate(
            self.domain, told, iters=self.iterations, warm_start=self.found
        )

    def answer(self, clique):
        return np.asarray(self.found.project(clique).datavector())

    def rows(self):
        """As many rows as the model's noisy total says."""
        made = self.found.synthetic_data().to_dict()
        return np.stack([made[column] for column in range(len(self.domain))], axis=1)


def main(source, target, told):
    ask = json.loads(told)
    with np.load(source) as arrays:
        codes, sizes = arrays["codes"], arrays["sizes"]
    settings = dict(ask["settings"])
    rounds = settings.pop("rounds")
    np.random.seed(ask["seed"])  # noqa: NPY002, mbi draws its rows from it
    rho = ask["rho"] / ask["k"] ** 2
    model, _ = fit(codes, sizes, rho, rounds, Graphical(sizes, **settings), np.random.default_rng(ask["seed"]))
    np.savez_compressed(target, codes=model.rows().astype(np.int64))


if __name__ == "__main__":
    main(*sys.argv[1:])
