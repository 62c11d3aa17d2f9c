"""The noise is the discrete Gaussian, exactly, and from the operating system's randomness.

Statistical tests reject at p < 1e-8; with fewer than fifty of them a false alarm is rarer than 1e-6. Each is also
held against noise of two thirds and three halves of the scale, which it must reject.
"""

import math
import random
import secrets
from bisect import bisect_right

import mpmath
import numpy as np
import opendp.prelude as dp
import pytest
import torch
from scipy import stats

from simpe.privacy import mechanism
from simpe.privacy.mechanism import (
    FINEST,
    MAX_SIGMA,
    SKELLAM_TAIL,
    TAIL,
    discrete_gaussian,
    skellam,
    skellam_support,
    support,
)

ALARM = 1e-8
SIGMAS = [0.3, 1.0, 3.7306, 40.0]


def pmf(sigma, reach):
    """Exact to 30 digits: P(X = x) for x in -reach..reach."""
    with mpmath.workdps(30):
        weights = [mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for x in range(reach + 1)]
        total = weights[0] + 2 * mpmath.fsum(weights[1:])
        half = [float(w / total) for w in weights]
    return np.arange(-reach, reach + 1), np.array(half[:0:-1] + half)


def p_value_of_law(draws, sigma):
    """Chi-square of the draws against the exact law; cells that expect fewer than 25 draws are pooled."""
    x, p = pmf(sigma, math.ceil(8 * sigma) + 2)
    expected = p * len(draws)
    core = x[expected >= 25]
    observed = np.append([np.sum(draws == v) for v in core], np.sum(~np.isin(draws, core)))
    kept = expected[expected >= 25]
    expected = np.append(kept, len(draws) - kept.sum())
    statistic = np.sum((observed - expected) ** 2 / expected.clip(1))
    return stats.chi2.sf(statistic, len(core))


def p_value_of_tail(draws, sigma, multiple):
    """Two-sided exact binomial test of how many draws lie beyond a multiple of sigma."""
    x, p = pmf(sigma, math.ceil(12 * sigma) + 2)
    beyond = int(np.sum(np.abs(draws) > multiple * sigma))
    return stats.binomtest(beyond, len(draws), float(p[np.abs(x) > multiple * sigma].sum())).pvalue


@pytest.mark.parametrize("lead", [64, 8, 1])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_draws_follow_the_exact_law_and_those_of_another_scale_do_not(sigma, lead):
    n = 200_000 if lead == 64 else 20_000
    assert p_value_of_law(discrete_gaussian(sigma, n, lead=lead), sigma) > ALARM
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma):
        assert p_value_of_law(discrete_gaussian(wrong, n, lead=lead), sigma) < ALARM


@pytest.mark.parametrize(("sigma", "multiple"), [(1.0, 3), (3.7306, 4), (40.0, 4)])
def test_tails_are_as_heavy_as_they_should_be(sigma, multiple):
    assert p_value_of_tail(discrete_gaussian(sigma, 1_000_000), sigma, multiple) > ALARM
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma):
        assert p_value_of_tail(discrete_gaussian(wrong, 1_000_000), sigma, multiple) < ALARM


def test_a_rounded_continuous_gaussian_is_told_apart():
    rounded = np.rint(np.random.default_rng(0).normal(0, 1, 200_000))
    assert p_value_of_law(rounded, 1.0) < ALARM


def reference(sigma, bits, reach, word):
    """Inverse of the distribution function of |X| in mpmath: the first m with word < 2^bits P(|X| <= m)."""
    with mpmath.workprec(bits + 400):
        weights = [mpmath.exp(-(mpmath.mpf(m) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for m in range(reach + 1)]
        sums, total = [], weights[0]
        for weight in [*weights[1:], 0]:
            sums.append(total)
            total += 2 * weight
        thresholds = [int(mpmath.floor(s / total * 2**bits)) for s in sums[:-1]] + [2**bits]
    return thresholds, bisect_right(thresholds[:-1], word)


def feed(word, bits, lead, sign):
    """The sampler's words for a single draw: leading bits, then (if they cannot decide) all bits, then signs."""
    whole = word.to_bytes(bits // 8, "big")
    asked = []

    def words(size):
        asked.append(size)
        if len(asked) == 1:
            return whole[:8]
        return whole if size == bits // 8 else bytes([sign << 7])

    return words


@pytest.mark.parametrize("lead", [64, 8, 1])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 3.7306])
def test_the_table_inverts_the_distribution_function_at_every_threshold(sigma, lead):
    reach = support(sigma)
    bits = mechanism._bits(sigma, reach)
    thresholds, _ = reference(sigma, bits, reach, 0)
    words = {0, 2**bits - 1, *(secrets.randbits(bits) for _ in range(20))}
    words |= {t + d for t in thresholds[:-1] for d in (-1, 0)}
    for word in words:
        expected = bisect_right(thresholds[:-1], word)
        for sign in (0, 1):
            drawn = discrete_gaussian(sigma, 1, words=feed(word, bits, lead, sign), lead=lead)
            assert drawn.tolist() == [-expected if sign else expected]


@pytest.mark.parametrize("sigma", [FINEST, 0.0577, 0.1, 0.3, 1.0, 40.0])
@pytest.mark.parametrize("size", [1, 8])
def test_no_probability_in_the_table_is_off_by_more_than_the_margin(sigma, size):
    """Against the exact law: a table of 192 bits gives 0 to what small noise reaches, so a ratio of infinity."""
    sigma, reach = sigma * size, support(sigma * size, size)
    bits = mechanism._bits(sigma, reach)
    stored = mechanism._table(sigma, reach, 64)[1]
    entries = [int.from_bytes(stored[i : i + bits // 8], "big") for i in range(0, len(stored), bits // 8)]
    entries[-1] += 1
    with mpmath.workprec(bits + 100):
        weights = [mpmath.exp(-(mpmath.mpf(m) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for m in range(reach + 1)]
        total = 2 * mpmath.fsum(weights) - 1
        for m in range(1, reach + 1):
            exact = 2 * weights[m] / total * 2**bits
            assert abs((entries[m] - entries[m - 1]) / exact - 1) < 2.0**-78


@pytest.mark.parametrize(
    ("sigma", "size"), [(0.02, 1), (0.3, 1), (1.0, 1), (3.7306, 1), (40.0, 1), (64.0, 16), (5.0, 16)]
)
def test_the_support_cuts_off_less_than_it_claims(sigma, size):
    reach = support(sigma, size)

    def lost(reach):
        """Mass outside after a shift by S, over the S^2 bins that one unit can touch: exact sum."""
        with mpmath.workdps(60):
            scale = 2 * mpmath.mpf(sigma) ** 2
            total = 1 + 2 * mpmath.nsum(lambda x: mpmath.exp(-(x**2) / scale), [1, math.ceil(40 * sigma) + 5])
            first = reach + 1 - size
            beyond = mpmath.fsum(mpmath.exp(-(mpmath.mpf(x) ** 2) / scale) for x in range(first, first + 400))
            return size**2 * 2 * beyond / total

    assert lost(reach) <= TAIL
    assert lost(size + math.ceil(6 * sigma)) > TAIL or sigma < 0.1  # six sigma would not be enough


def p_value_of_two_samples(a, b, sigma):
    """Chi-square of homogeneity over the values, those beyond three sigma pooled."""
    edges = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    table = [np.histogram(np.clip(s, edges[0], edges[-1]), np.append(edges, edges[-1] + 1))[0] for s in (a, b)]
    table = np.array(table)[:, np.sum(table, axis=0) > 20]
    return stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("sigma", [1.0, 3.7306])
def test_opendp_draws_the_same_law(sigma):
    dp.enable_features("contrib")
    theirs = dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float), scale=sigma)
    theirs = np.array(theirs([0] * 60_000))
    assert p_value_of_two_samples(discrete_gaussian(sigma, 60_000), theirs, sigma) > ALARM
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma):
        assert p_value_of_two_samples(discrete_gaussian(wrong, 60_000), theirs, sigma) < ALARM


def p_value_of_signs(draws):
    return stats.binomtest(int(np.sum(draws > 0)), int(np.sum(draws != 0))).pvalue


def test_signs_are_fair():
    draws = discrete_gaussian(3.7306, 200_000)
    assert p_value_of_signs(draws) > ALARM
    assert p_value_of_signs(np.append(draws, np.abs(draws[:10_000]))) < ALARM


def p_value_of_lag(draws, lag):
    """Correlation of draws, and of their magnitudes, with those some places later."""
    pairs = [(draws[lag:], draws[:-lag]), (np.abs(draws[lag:]), np.abs(draws[:-lag]))]
    return min(stats.pearsonr(*pair).pvalue for pair in pairs)


def test_consecutive_draws_are_independent():
    draws = discrete_gaussian(3.7306, 200_000)
    for lag in (1, 2, 8):
        assert p_value_of_lag(draws, lag) > ALARM
    assert p_value_of_lag(np.repeat(draws[::20], 20), 1) < ALARM


def test_seeds_of_numpy_torch_and_random_do_not_repeat_the_noise():
    def seeded(draw):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        random.seed(0)
        return draw().tolist()

    assert seeded(lambda: discrete_gaussian(40.0, 64)) != seeded(lambda: discrete_gaussian(40.0, 64))
    torch_noise = lambda: torch.randn(64)  # noqa: E731
    assert seeded(torch_noise) == seeded(torch_noise)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, MAX_SIGMA * 1.01, FINEST / 2, 1e-300])
def test_a_scale_that_the_table_cannot_hold_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        discrete_gaussian(sigma, 1)


def test_no_draws_are_no_draws():
    assert discrete_gaussian(1.0, 0).shape == (0,)
    assert discrete_gaussian(1.0, 7).dtype == np.int64


def p_value_of_skellam(draws, variance):
    """Chi-square of the draws against SciPy's law; cells that expect fewer than 25 draws are pooled."""
    x = np.arange(-60, 61) if variance < 100 else np.arange(-200, 201)
    expected = stats.skellam.pmf(x, variance / 2, variance / 2) * len(draws)
    core, kept = x[expected >= 25], expected[expected >= 25]
    observed = np.append([np.sum(draws == v) for v in core], np.sum(~np.isin(draws, core)))
    kept = np.append(kept, len(draws) - kept.sum())
    return stats.chi2.sf(np.sum((observed - kept) ** 2 / kept.clip(1)), len(core))


@pytest.mark.parametrize("lead", [64, 4])
@pytest.mark.parametrize("variance", [1.0, 3.3, 400.0])
def test_skellam_draws_follow_the_law_and_those_of_another_do_not(variance, lead):
    n = 200_000 if lead == 64 else 20_000
    assert p_value_of_skellam(skellam(variance, n, lead=lead), variance) > ALARM
    for wrong in (4 / 9 * variance, 9 / 4 * variance):
        other = skellam(wrong, n, lead=lead) if wrong >= 1 else np.zeros(n)
        assert p_value_of_skellam(other, variance) < ALARM
    if variance < 4:  # of the same variance, but lighter tails
        assert p_value_of_skellam(discrete_gaussian(variance**0.5, 200_000), variance) < ALARM


def test_a_sum_of_skellam_shares_is_skellam_and_one_share_less_is_not():
    shares = [skellam(2.5, 200_000) for _ in range(10)]
    assert p_value_of_skellam(np.sum(shares, axis=0), 25.0) > ALARM
    assert p_value_of_skellam(np.sum(shares[1:], axis=0), 25.0) < ALARM


@pytest.mark.parametrize("variance", [1.0, 3.3, 100.0])
def test_no_skellam_probability_is_off_by_more_than_the_margin(variance):
    reach = skellam_support(variance)
    leading, stored = mechanism._skellam_table(variance, reach, 64)
    size = len(stored) // len(leading)
    function = [int.from_bytes(stored[i * size : (i + 1) * size], "big") for i in range(reach)]
    with mpmath.workdps(100):
        scale = mpmath.exp(-mpmath.mpf(variance))
        exact = [scale * mpmath.besseli(m, mpmath.mpf(variance)) * (1 if m == 0 else 2) for m in range(reach + 1)]
        for m in range(reach):
            mass = mpmath.mpf(function[m] - (function[m - 1] if m else 0)) / mpmath.mpf(2) ** (8 * size)
            assert abs(mass / exact[m] - 1) < mpmath.mpf(2) ** -78
        beyond = 1 - mpmath.fsum(exact)
        assert 0 < beyond < SKELLAM_TAIL


@pytest.mark.parametrize("variance", [0.5, math.inf, math.nan, 2 * MAX_SIGMA**2])
def test_a_variance_that_the_table_cannot_hold_is_refused(variance):
    with pytest.raises(ValueError, match="variance"):
        skellam(variance, 1)
