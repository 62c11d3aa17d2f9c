"""Random stays in range; Variation moves by its strength, stays in range, and keeps constraints."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpe import Categorical, Continuous, Integer, ParameterSpace


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


bounds = st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 1e3)).map(lambda b: (b[0], b[0] + b[1]))


@given(bounds, st.booleans(), st.floats(0, 3), st.integers(0, 99))
def test_continuous_stays_in_range(ends, wraps, strength, seed):
    parameter = Continuous(*ends, wraps=wraps)
    x = parameter.sample(50, generator(seed))
    y = parameter.perturb(x, strength, generator(seed + 1))
    assert x.dtype == y.dtype == torch.float32
    assert bool(parameter.contains(x).all())
    assert bool(parameter.contains(y).all())


@given(st.integers(-50, 50), st.integers(1, 60), st.floats(0, 3), st.integers(0, 99))
def test_integer_stays_in_range_and_reaches_both_ends(low, width, strength, seed):
    parameter = Integer(low, low + width)
    x = parameter.sample(5000, generator(seed))
    y = parameter.perturb(x, strength, generator(seed + 1))
    assert x.dtype == y.dtype == torch.int64
    # Missing an end in 5,000 draws of at most 61 values: below 2 exp(-5000 / 61) < 1e-35.
    assert (x.min(), x.max()) == (low, low + width)
    assert bool(parameter.contains(y).all())


def test_strength_is_in_prior_standard_deviations():
    for parameter in (Continuous(-5, 5), Continuous(1, math.e, log=True)):
        middle = torch.full((100_000,), 0.0 if not parameter.log else math.exp(0.5))
        moved = parameter.perturb(middle, 0.3, generator()).double()
        moved = moved.log() - 0.5 if parameter.log else moved / 10
        # The standard error of a standard deviation is 0.3 / sqrt(12) / sqrt(2 n): 6 of them, false alarm < 1e-8.
        expected = 0.3 / math.sqrt(12)
        assert abs(float(moved.std()) - expected) < 6 * expected / math.sqrt(2 * 100_000)


def test_log_is_uniform_in_the_logarithm_and_linear_is_not():
    x = Continuous(0.01, 100, log=True).sample(40_000, generator())
    below = float((x < 1).float().mean())
    assert abs(below - 0.5) < 6 * 0.5 / 200  # binomial, 6 standard errors
    assert float((Continuous(0.01, 100).sample(40_000, generator()) < 1).float().mean()) < 0.05


def test_wrapping_crosses_the_seam_and_reflection_does_not():
    near = torch.full((10_000,), 0.99)
    wrapped = Continuous(0, 1, wraps=True).perturb(near, 0.1, generator())
    reflected = Continuous(0, 1).perturb(near, 0.1, generator())
    assert float((wrapped < 0.2).float().mean()) > 0.2
    assert float(reflected.min()) > 0.7


def test_categorical_is_redrawn_with_probability_strength_squared():
    parameter = Categorical(10_000)
    x = parameter.sample(100_000, generator())
    moved = (parameter.perturb(x, 0.5, generator(1)) != x).float().mean()
    assert abs(float(moved) - 0.25 * (1 - 1e-4)) < 6 * math.sqrt(0.25 * 0.75 / 100_000)


@pytest.mark.parametrize("parameter", [Continuous(0, 1), Continuous(0, 1, size=3), Integer(0, 9), Categorical("abc")])
def test_strength_zero_moves_nothing(parameter):
    x = parameter.sample(100, generator())
    assert torch.allclose(parameter.perturb(x, 0.0, generator(1)).double(), x.double(), atol=1e-6)


def test_vectors_have_one_column_a_component():
    assert Continuous(0, 1, size=7).sample(5, generator()).shape == (5, 7)


def ordered():
    return ParameterSpace(
        constraints=[lambda p: p["low"] <= p["high"]], low=Continuous(0, 1), high=Continuous(0, 1), n=Integer(1, 3)
    )


@given(st.integers(0, 200), st.floats(0, 2))
def test_constraints_hold_after_random_and_variation(seed, strength):
    space = ordered()
    p = space.sample(200, generator(seed))
    moved = space.perturb(p, strength, generator(seed + 1))
    assert bool((p["low"] <= p["high"]).all())
    assert bool((moved["low"] <= moved["high"]).all())
    assert bool(space.contains(moved).all())


def test_contains_sees_a_violated_constraint():
    p = ordered().sample(4, generator())
    p["low"][2], p["high"][2] = 0.9, 0.1
    assert ordered().contains(p).tolist() == [True, True, False, True]


def test_a_constraint_that_cannot_hold_is_said():
    space = ParameterSpace(constraints=[lambda p: p["x"] > 2], x=Continuous(0, 1))
    with pytest.raises(ValueError, match="constraints rejected"):
        space.sample(10, generator())


def test_the_same_generator_gives_the_same_draw():
    space = ordered()
    for one, two in zip(space.sample(9, generator(3)).values(), space.sample(9, generator(3)).values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Continuous(1, 1),
        lambda: Continuous(0, math.inf),
        lambda: Continuous(0, 1, log=True),
        lambda: Continuous(0, 1, size=0),
        lambda: Integer(2, 2),
        lambda: Categorical(0),
        lambda: ParameterSpace(),
        lambda: ParameterSpace(label=Categorical(2)),
    ],
)
def test_impossible_parameters_are_refused(make):
    with pytest.raises(ValueError):
        make()
