"""What a list of charges costs: never less than the truth, and hardly more."""

import math

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive, logsumexp

from simpe.privacy import accounting
from simpe.privacy.accounting import Budget, Charge, calibrate, delta_of, delta_of_zcdp, epsilon_of


def exact(counts, epsilon):
    """delta by brute force: the law of every sum of lattice points, one sigma after the other; no grid, no FFT."""
    losses, masses = np.zeros(1), np.ones(1)
    for sigma, n in counts:
        reach = math.ceil(14 * sigma) + 5
        y = np.arange(-reach, reach + 1.0)
        one = np.exp(-(y**2) / (2 * sigma**2))
        one, law = one / one.sum(), np.ones(1)
        for _ in range(n):
            law = np.convolve(law, one)
        sums = np.arange(len(law)) - n * reach
        losses = (losses[:, None] + (n + 2 * sums) / (2 * sigma**2)).ravel()
        masses = (masses[:, None] * law).ravel()
    above = losses > epsilon
    return math.fsum(masses[above] * -np.expm1(epsilon - losses[above]))


def exact_in_mpmath(sigma, n, epsilon):
    """The same for equal sigmas in 60 digits, for deltas that float64 sums cannot show."""
    with mpmath.workdps(60):
        scale = 2 * mpmath.mpf(sigma) ** 2
        reach = math.ceil(25 * sigma) + 6
        one = [mpmath.exp(-(mpmath.mpf(y) ** 2) / scale) for y in range(-reach, reach + 1)]
        total, law = mpmath.fsum(one), [mpmath.mpf(1)]
        for _ in range(n):
            longer = [mpmath.mpf(0)] * (len(law) + len(one) - 1)
            for i, a in enumerate(law):
                for j, b in enumerate(one):
                    longer[i + j] += a * b / total
            law = longer
        delta = mpmath.mpf(0)
        for i, mass in enumerate(law):
            loss = (n + 2 * (i - n * reach)) / scale
            if loss > epsilon:
                delta += mass * (1 - mpmath.exp(epsilon - loss))
        return delta


def charges(counts):
    return [Charge(sigma) for sigma, n in counts for _ in range(n)]


def balle_wang(sigma, epsilon):
    normal = mpmath.ncdf
    return float(
        normal(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * normal(-1 / (2 * sigma) - epsilon * sigma)
    )


def test_the_discrete_law_costs_more_than_the_gaussian_formula_says():
    assert balle_wang(3.7306, 1.0) == pytest.approx(1e-5, rel=1e-3)
    assert delta_of([Charge(3.7306)], 1.0) == pytest.approx(1.0347e-5, rel=1e-4)
    assert float(exact_in_mpmath(3.7306, 1, 1.0)) == pytest.approx(1.0347e-5, rel=1e-4)


BULK = st.floats(-1.0, 6.0)  # epsilon, in standard deviations of the loss above its mean
SCALE = st.one_of(st.floats(0.2, 2.0), st.floats(2.0, 12.0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SCALE, st.integers(1, 6)), min_size=1, max_size=2), BULK)
def test_never_below_brute_force_and_never_a_thousandth_above(counts, deviations):
    variance = sum(n / sigma**2 for sigma, n in counts)
    epsilon = max(1e-6, variance / 2 + deviations * math.sqrt(variance))
    truth, bound = exact(counts, epsilon), delta_of(charges(counts), epsilon)
    assert bound >= truth * (1 - 1e-12)
    # Where few lattice points matter, a loss within rounding of epsilon itself can double a tiny delta.
    if truth > 1e-12 and min(sigma for sigma, _ in counts) > 0.7:
        assert bound <= truth * 1.001


@pytest.mark.parametrize("twin", [lambda c: c.sigma * 1.001, lambda c: c.sigma + 1e-3])
def test_brute_force_notices_a_thousandth_less_noise(twin):
    honest = [Charge(3.7306)] * 4
    assert delta_of([Charge(twin(c)) for c in honest], 2.0) < exact([(3.7306, 4)], 2.0)


@pytest.mark.parametrize("sigma", [2_000.0, 20_000.0, 100_000.0])
@pytest.mark.parametrize("deviations", [0.5, 1.0, 3.0])
def test_noise_of_more_lattice_points_than_the_grid_is_not_undercharged(sigma, deviations):
    truth = exact([(sigma, 1)], deviations / sigma)
    assert truth <= delta_of([Charge(sigma)], deviations / sigma) <= truth * 1.001


@pytest.mark.parametrize(("steps", "epsilon"), [(1000, 0.1), (100, 0.01), (20, 0.001), (1000, 0.001)])
def test_many_steps_at_a_small_budget_get_as_much_noise_as_the_continuous_gaussian(steps, epsilon):
    """At these scales the two laws differ by far less than a thousandth."""
    sigma = calibrate(Budget(epsilon, 1e-6), [1.0] * steps)[0]
    assert 0.998e-6 < balle_wang(sigma / math.sqrt(steps), epsilon) <= 1.00001e-6


@pytest.mark.parametrize(
    ("sigma", "n", "epsilon"),
    [(0.1, 1, 50.0001), (0.1, 1, 55.0), (0.1, 4, 200.02), (0.3, 2, 40.0), (1.0, 2, 11.0), (2.0, 1, 5.5), (3.0, 1, 4.0)],
)
def test_deltas_too_small_for_float64_sums_are_not_undercharged(sigma, n, epsilon):
    truth = exact_in_mpmath(sigma, n, epsilon)
    assert truth < 1e-9
    assert delta_of([Charge(sigma)] * n, epsilon) >= truth * (1 - mpmath.mpf(10) ** -12)


def exact_of_pair(first, second, epsilon):
    """Hockey-stick divergence between two explicit laws, dict outcome -> mass."""
    return math.fsum(max(0.0, p - math.exp(epsilon) * second.get(x, 0.0)) for x, p in first.items())


def noisy(centre, sigma):
    reach = math.ceil(12 * sigma) + 3
    x = np.arange(-reach, reach + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    p /= p.sum()
    grids = np.meshgrid(*[x + c for c in centre], indexing="ij")
    mass = math.prod(np.meshgrid(*[p] * len(centre), indexing="ij"))
    return dict(zip(zip(*(g.ravel().tolist() for g in grids), strict=True), mass.ravel().tolist(), strict=True))


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("epsilon", [0.1, 0.7, 2.0])
def test_the_relations_bound_the_divergence_between_real_outputs(sigma, epsilon):
    """Two bins: a unit votes for the first, the second, or nobody; outputs are compared, not formulas."""
    first, second, nobody = noisy((1, 0), sigma), noisy((0, 1), sigma), noisy((0, 0), sigma)
    added = delta_of([Charge(sigma)], epsilon)
    replaced = delta_of([Charge(sigma)], epsilon, "replace_one")
    for a, b in [(first, nobody), (nobody, second)]:
        assert exact_of_pair(a, b, epsilon) == pytest.approx(added, rel=1e-6)
        assert exact_of_pair(a, b, epsilon) < replaced
    assert exact_of_pair(first, second, epsilon) == pytest.approx(replaced, rel=1e-6)
    assert exact_of_pair(first, second, epsilon) > added  # the broken twin: charging one pair
    assert replaced == delta_of([Charge(sigma)] * 2, epsilon)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_choosing_the_next_query_by_the_last_result_costs_no_more(sigma):
    """Adaptive: the second query reads the unit or not, in either sign, as the first noisy count says."""
    epsilon, reach = 1.0, math.ceil(12 * sigma) + 3
    x = np.arange(-reach, reach + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    p = dict(zip(x.tolist(), (p / p.sum()).tolist(), strict=True))

    def law(unit, ask):
        return {(a + unit, b + ask(a + unit) * unit): pa * pb for a, pa in p.items() for b, pb in p.items()}

    for ask in (lambda a: 1, lambda a: a > 0, lambda a: a % 2, lambda a: 0):
        cost = exact_of_pair(law(1, ask), law(0, ask), epsilon)
        assert cost <= delta_of([Charge(sigma)] * 2, epsilon) * (1 + 1e-9)
    assert exact_of_pair(law(1, lambda a: 1), law(0, lambda a: 1), epsilon) > delta_of([Charge(sigma)], epsilon)


@pytest.mark.parametrize(("sigma", "n", "epsilon"), [(3.7306, 1, 1.0), (2.0, 3, 1.5), (0.8, 2, 3.0), (10.0, 20, 2.0)])
def test_dp_accounting_brackets_the_bound(sigma, n, epsilon):
    def theirs(pessimistic):
        one = pld.from_discrete_gaussian_mechanism(sigma, pessimistic_estimate=pessimistic)
        return one.self_compose(n).get_delta_for_epsilon(epsilon)

    ours = delta_of([Charge(sigma)] * n, epsilon)
    assert theirs(False) <= ours <= theirs(True) * (1 + 1e-6)
    assert delta_of([Charge(sigma)] * (n + 1), epsilon) > theirs(True)


def test_zcdp_converts_as_opendp_does():
    size = 8
    charge = Charge(size * 4.0, size, one_bin=False)
    assert charge.rho == pytest.approx(0.03125)
    assert epsilon_of([charge], 1e-3) == pytest.approx(0.68800246, abs=2e-8)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 50.0), st.floats(1e-3, 100.0))
def test_the_zcdp_delta_is_the_best_over_a_grid_of_alphas(rho, epsilon):
    excess = np.exp(np.linspace(-20, 20, 20_001))
    alpha = 1 + excess
    logs = excess * (alpha * rho - epsilon) - alpha * np.log1p(1 / excess) - np.log(excess)
    best = min(1.0, float(np.exp(logs.min())))
    assert best * (1 - 1e-2) <= delta_of_zcdp(rho, epsilon) <= max(best * (1 + 1e-4), 1e-300)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("vector", [(2, 2, 1), (3,), (1, 1, 1)])
def test_zcdp_bounds_the_exact_divergence_of_many_bins(vector, epsilon):
    sigma, size = 3.0, 3
    shifts = [(c, 1) for c in vector]
    reach = 60
    x = np.arange(-reach, reach + 1.0)
    losses, masses = np.zeros(1), np.ones(1)
    for c, _ in shifts:
        p = np.exp(-(x**2) / (2 * sigma**2))
        losses = (losses[:, None] + (2 * c * x + c * c) / (2 * sigma**2)).ravel()
        masses = (masses[:, None] * p / p.sum()).ravel()
        kept = masses > 1e-22
        losses, masses = losses[kept], masses[kept]
    truth = math.fsum(masses * np.maximum(0, -np.expm1(np.minimum(0, epsilon - losses))))
    assert truth <= delta_of([Charge(sigma, size, one_bin=False)], epsilon)
    if len(vector) == 1:
        assert truth > delta_of([Charge(sigma, 1, one_bin=False)], epsilon)  # the broken twin: S too small


SOME = st.lists(SCALE.map(Charge), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(SOME, st.floats(0.05, 20.0), st.booleans(), st.sampled_from(["add_remove", "replace_one"]))
def test_delta_falls_with_epsilon_and_grows_with_every_charge(some, epsilon, adaptive, relation):
    delta = delta_of(some, epsilon, relation, adaptive)
    slack = 1e-6
    assert delta_of(some, epsilon * 1.1, relation, adaptive) <= delta * (1 + slack) + 1e-17
    assert delta_of([*some, Charge(1.0)], epsilon, relation, adaptive) >= delta * (1 - slack) - 1e-17
    assert delta_of(some[::-1], epsilon, relation, adaptive) == pytest.approx(delta, rel=1e-8, abs=1e-25)


@settings(max_examples=25, deadline=None)
@given(SOME, st.sampled_from([1e-9, 1e-6, 1e-3]), st.booleans())
def test_epsilon_of_is_the_inverse_of_delta_of(some, delta, adaptive):
    epsilon = epsilon_of(some, delta, adaptive=adaptive)
    assert delta_of(some, epsilon, adaptive=adaptive) <= delta
    assert epsilon < 1e-9 or delta_of(some, epsilon * 0.999, adaptive=adaptive) > delta


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("one_bin", [True, False])
@pytest.mark.parametrize("epsilon", [0.001, 0.1, 1.0, 10.0, 100.0, 1000.0])
def test_calibrated_noise_is_affordable_and_a_thousandth_less_is_not(epsilon, one_bin, relation):
    shares = [0.05, 0.3, 0.3, 0.35]
    budget = Budget(epsilon, 1e-6, relation)
    sigmas = calibrate(budget, shares, one_bin=one_bin)

    def cost(factor):
        return delta_of([Charge(s * factor, 1, one_bin) for s in sigmas], epsilon, relation)

    assert cost(1) <= budget.delta
    assert cost(0.999) > budget.delta
    precision = np.array(sigmas) ** -2
    assert precision / precision.sum() == pytest.approx(np.array(shares))


def test_what_was_spent_leaves_less_and_counts_as_adaptive():
    budget = Budget(1.0, 1e-6)
    spent = [Charge(20.0)]
    alone, beside = calibrate(budget, [1.0, 2.0]), calibrate(budget, [1.0, 2.0], spent=spent)
    assert all(a < b for a, b in zip(alone, beside, strict=True))
    together = [*spent, *map(Charge, beside)]
    assert delta_of(together, 1.0, adaptive=True) <= 1e-6
    assert delta_of([*spent, *(Charge(s * 0.999) for s in beside)], 1.0, adaptive=True) > 1e-6
    with pytest.raises(ValueError, match="nothing is left"):
        calibrate(budget, [1.0], spent=[Charge(1.0)])


@pytest.mark.parametrize("shares", [[], [0.0], [1.0, -1.0]])
def test_shares_must_be_positive(shares):
    with pytest.raises(ValueError, match="shares"):
        calibrate(Budget(1.0), shares)


def test_one_many_bin_charge_or_adaptivity_makes_the_whole_list_zcdp():
    mixed = [Charge(5.0), Charge(8 * 5.0, 8, one_bin=False)]
    assert delta_of(mixed, 1.0) == delta_of([Charge(5.0)] * 2, 1.0, adaptive=True)
    assert delta_of([Charge(5.0)] * 2, 1.0) < delta_of(mixed, 1.0)


def test_nothing_costs_nothing_and_the_truncated_tail_is_charged():
    assert delta_of([], 1.0) == 0.0
    assert delta_of([Charge(10.0)], 500.0) >= 2 * accounting.TAIL


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", None])
def test_a_budget_needs_a_positive_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        Budget(epsilon)


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan, "1e-6", None])
def test_a_budget_needs_a_delta_between_0_and_1(delta):
    with pytest.raises(ValueError, match="delta"):
        Budget(1.0, delta)


def test_a_budget_knows_two_relations():
    with pytest.raises(ValueError, match="relation"):
        Budget(1.0, 1e-6, "bounded")


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"sigma": math.nan},
        {"sigma": math.inf},
        {"sigma": 1.0, "sensitivity": 0, "one_bin": False},
        {"sigma": 1.0, "sensitivity": 2},
    ],
)
def test_a_charge_needs_a_positive_scale_and_an_integer_sensitivity(bad):
    with pytest.raises(ValueError, match=r"sigma|sensitivity"):
        Charge(**bad)


@pytest.mark.parametrize("sensitivity", [math.nan, 1.5, True])
def test_a_sensitivity_that_is_no_integer_is_refused(sensitivity):
    with pytest.raises(ValueError, match="sensitivity"):
        Charge(1.0, sensitivity, one_bin=False)


def skellam_pair(variance, shift):
    """log P(X = x) and log P(X + shift = x) for Skellam noise, by SciPy's Bessel functions."""
    x = np.arange(-math.ceil(12 * variance**0.5) - 20, math.ceil(12 * variance**0.5) + 21 + shift)
    with np.errstate(divide="ignore"):
        mine, theirs = np.log(ive(x, variance)), np.log(ive(x - shift, variance))
    held = np.isfinite(mine) & np.isfinite(theirs)
    return mine[held], theirs[held]


@pytest.mark.parametrize("variance", [4.0, 64.0, 3600.0])
@pytest.mark.parametrize("shift", [1, 5, 16])
def test_skellam_noise_diverges_no_more_than_is_charged(variance, shift):
    """The exact Renyi divergence in one dimension; that of several bins is a sum over them."""
    mine, theirs = skellam_pair(variance, shift)
    charged = Charge(variance**0.5, shift, False, "skellam").rho
    ratios = [logsumexp(a * theirs + (1 - a) * mine) / (a - 1) / (a * charged) for a in (2, 3, 5, 8, 16)]
    assert max(ratios) <= 1
    assert max(ratios) * 2 > 1 or variance < 2 * shift  # and what is charged is no idle bound
    twin = Charge((2 * variance) ** 0.5, shift, False, "skellam").rho  # as if there were twice the noise
    assert max(ratios) * charged / twin > 1 or variance < 2 * shift


@pytest.mark.parametrize("noise_multiplier", [0.6, 2.0, 8.0])
@pytest.mark.parametrize("releases", [1, 3])
def test_delta_of_skellam_noise_is_above_the_exact_one_and_near(noise_multiplier, releases):
    charge = Charge(noise_multiplier * 16, 16, False, "skellam")
    epsilon = epsilon_of([charge] * releases, 1e-6)
    mine, theirs = skellam_pair(charge.sigma**2, 16)
    loss, mass = theirs - mine, np.exp(theirs)
    if releases == 3:  # a convolution on a grid so fine that rounding down is below the difference
        step = (loss.max() - loss.min()) / 20_000
        index = np.floor((loss - loss.min()) / step).astype(int)
        law = np.bincount(index, mass)
        law = np.convolve(np.convolve(law, law), law)
        loss, mass = 3 * loss.min() + step * np.arange(len(law)), law
    found = np.sum(mass[loss > epsilon] * -np.expm1(epsilon - loss[loss > epsilon]))
    assert found <= 1e-6
    assert found > 1e-6 / 100
    half = np.sum(mass[loss > epsilon / 2] * -np.expm1(epsilon / 2 - loss[loss > epsilon / 2]))
    assert half > 1e-6  # the twin: half of that epsilon would be a lie


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0, 50.0])
def test_calibrated_skellam_noise_spends_the_budget_and_no_more(epsilon):
    budget = Budget(epsilon, 1e-6)
    noise = calibrate(budget, [1, 2, 2], law="skellam")
    charges = [accounting.charge_of(z, False, "skellam") for z in noise]
    assert 0.99e-6 < delta_of(charges, epsilon) <= 1e-6
    gaussian = calibrate(budget, [1, 2, 2], one_bin=False)
    assert 1 <= noise[0] / gaussian[0] < 1.02  # at this resolution it costs hardly more


def test_only_whole_orders_count_for_skellam_noise():
    for rho, epsilon in ((0.02, 1.0), (1.0, 8.0), (3.0, 6.0)):
        assert delta_of_zcdp(rho, epsilon, whole=True) >= delta_of_zcdp(rho, epsilon)
    assert delta_of_zcdp(1.0, 8.0, whole=True) > delta_of_zcdp(1.0, 8.0) * 1.0001


@pytest.mark.parametrize("bad", [(1.0, 1, True, "skellam"), (1.0, 1, False, "normal")])
def test_a_law_that_is_not_accounted_for_is_refused(bad):
    with pytest.raises(ValueError, match="law"):
        Charge(*bad)
