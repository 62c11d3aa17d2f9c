"""The engine: what it converges to, what it replays, and what it never does."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from support import Oscillator, Patches, addressed_noise, no_noise

import simpe
from simpe import Budget, Categorical, Continuous, InputError, Parallel, ParameterSpace, PrivateData, Strategy, evolve
from simpe.evolution import Info, Setup, init, step
from simpe.population import Population
from simpe.scheduling import MAX_NOISE_MULTIPLIER, Schedule, places, schedule
from simpe.stages import Mixture, flatten
from simpe.voting import nearest


def patches(n=400, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    p = {
        "level": torch.from_numpy(rng.normal(200, 5, n)),
        "edge": torch.from_numpy(rng.normal(20, 2, n)),
        "label": torch.from_numpy(label),
    }
    return Patches().render(p), np.array(["left", "right"])[label]


def distance(a, b):
    a, b = a.flatten(1).float(), b.flatten(1).float()
    return float((a - b[nearest(a, b)[:, 0]]).norm(dim=1).mean())


@pytest.mark.parametrize("elitist", [True, False])
@pytest.mark.parametrize("lookahead", [0, 3])
def test_without_noise_the_release_comes_close_to_the_rows_and_random_does_not(series, elitist, lookahead):
    private = PrivateData(series, budget=Budget(1.0), noise=no_noise)
    strategy = Strategy(
        elitist=elitist, lookahead=lookahead, places=20, start=20, children=5, decay=0.5, release_strength=0.02
    )
    release = evolve(Oscillator(), None, private, samples=200, steps=8, strategy=strategy)
    random = Oscillator.space.sample(200, torch.Generator().manual_seed(0))
    start = distance(Oscillator().render(random), torch.from_numpy(series))
    end = distance(release.samples, torch.from_numpy(series))
    assert end < 0.4 * start


def test_classes_keep_to_themselves_and_their_shares():
    images, labels = patches()
    private = PrivateData(images, labels, budget=Budget(50.0), noise=no_noise)
    release = evolve(Patches(), None, private, samples=100, strategy=Strategy(release_strength=0.02, decay=0.5))
    assert release.labels is not None
    share = float((release.labels == 1).float().mean())
    assert abs(share - float((labels == "right").mean())) <= 0.01
    bright = release.samples.float()
    right = release.labels == 1
    assert bool((bright[right][:, :, 2:].mean((1, 2)) > bright[right][:, :, :2].mean((1, 2))).all())
    assert set(np.load(io.BytesIO(release.files()["samples.npz"]))["labels"]) == {"left", "right"}


def test_the_same_seed_and_noise_give_the_same_release_and_another_seed_does_not(series):
    def once(seed):
        return evolve(
            Oscillator(), None, PrivateData(series, budget=Budget(1.0), noise=addressed_noise), samples=50, seed=seed
        )

    assert torch.equal(once(1).samples, once(1).samples)
    assert not torch.equal(once(1).samples, once(2).samples)


def test_secret_noise_differs_from_run_to_run_at_one_seed(series):
    def once():
        private = PrivateData(series, budget=Budget(1.0))
        evolve(Oscillator(), None, private, samples=5, seed=1, steps=1)
        return private.ledger.releases()[-1]["counts"]

    assert once() != once()


def test_all_charges_together_use_the_budget_and_no_more(series):
    for relation in ("add_remove", "replace_one"):
        private = PrivateData(series, budget=Budget(0.7, 1e-5, relation))
        release = evolve(Oscillator(), None, private, samples=5, steps=3)
        assert 0.699 < release.certificate["spent_epsilon"] <= 0.7
        with pytest.raises(simpe.BudgetExceeded):
            private.class_counts(1000.0, address="one more")


def test_a_certificate_of_test_noise_says_that_nothing_is_private(series):
    release = evolve(Oscillator(), None, PrivateData(series, budget=Budget(1.0), noise=no_noise), samples=5, steps=1)
    assert release.certificate["private"] is False
    assert "NOT PRIVATE" in release.certificate["statement"]
    exact = evolve(Oscillator(), None, PrivateData(series, budget=Budget(1.0)), samples=5, steps=1)
    assert exact.certificate["private"] is True


def test_where_nothing_survives_the_choice_is_uniform_and_said(series):
    def drowned(sigma, n, address):
        return np.full(n, -10_000 if "votes" in address else 0, dtype=np.int64)

    private = PrivateData(series, budget=Budget(1.0), noise=drowned)
    private.declare(("",))
    private.run = "x"
    setup = Setup(
        Oscillator(), flatten, Schedule(1.0, (1.0, 1.0)), Strategy(places=4), ("",), 10, 0, torch.device("cpu")
    )
    private.budget = Budget(100.0)
    _, info = step(setup, private, init(setup, private))
    assert info.uniform == (0,)
    assert len(info.survivors.unique()) == 4
    release = evolve(Oscillator(), None, PrivateData(series, budget=Budget(1.0), noise=drowned), samples=30)
    assert len(release.samples) == 30
    assert bool(release.samples.isfinite().all())


def test_empty_classes_and_invalid_labels_are_no_error():
    images, _ = patches(50)
    labels = np.array(["left"] * 40 + ["neither"] * 10)
    release = evolve(Patches(), None, PrivateData(images, labels, budget=Budget(2.0)), samples=40)
    assert release.labels is not None
    assert len(release.samples) == 40
    nobody = PrivateData(images, np.array(["neither"] * 50), budget=Budget(2.0))
    assert len(evolve(Patches(), None, nobody, samples=40).samples) == 40


def test_rows_with_labels_need_declared_classes(series):
    with pytest.raises(InputError, match="--classes"):
        evolve(Oscillator(), None, PrivateData(series, np.arange(60), budget=Budget(1.0)))


def test_units_with_many_rows_are_counted_by_zcdp(series):
    private = PrivateData(series, budget=Budget(2.0), units=np.arange(60) // 3, k=3)
    release = evolve(Oscillator(), None, private, samples=20, steps=2)
    assert release.certificate["accounting"] == "zCDP"
    assert release.certificate["unit"] == "unit"
    assert release.certificate["k"] == 3
    assert all(charge["sensitivity"] > 1 for charge in release.certificate["charges"])
    assert release.certificate["spent_epsilon"] <= 2


def test_voting_for_several_neighbours_is_counted_as_many_bins(series):
    release = evolve(
        Oscillator(), None, PrivateData(series, budget=Budget(2.0)), samples=5, strategy=Strategy(neighbours=3)
    )
    assert [charge["one_bin"] for charge in release.certificate["charges"]] == [True, False, False, False, False]


def test_no_row_is_read_when_the_budget_does_not_admit_the_charge(series):
    private = PrivateData(series, budget=Budget(1.0))
    private.declare(("",))
    with pytest.raises(simpe.BudgetExceeded):
        private.noisy_sum(lambda rows: pytest.fail("rows were read"), 1, 0.5, address="greedy")
    assert private.ledger.releases() == []


def test_a_numpy_renderer_spread_over_processes_gives_the_same_release():
    images, labels = patches()

    def once(simulator):
        private = PrivateData(images, labels, budget=Budget(2.0), noise=addressed_noise)
        return evolve(simulator, None, private, samples=30, steps=2)

    alone = once(Patches())
    with Parallel(Patches(), processes=2) as simulator:
        together = once(simulator)
    assert torch.equal(alone.samples, together.samples)
    assert alone.certificate["public_inputs"] == together.certificate["public_inputs"]


def test_own_random_and_variation_replace_those_of_the_space(series):
    class Fixed(Oscillator):
        def random(self, n, generator):
            p = self.space.sample(n, generator)
            return p | {"damping": torch.full((n,), 0.5)}

        def variation(self, p, strength, generator):
            return self.space.perturb(p, strength, generator) | {"damping": p["damping"]}

    release = evolve(Fixed(), None, PrivateData(series, budget=Budget(1.0)), samples=10)
    assert bool((release.params["damping"] == 0.5).all())


class Pages:
    """Images that a model would draw: one number a class at random, and Variation knows the class too."""

    classes = ("dark", "bright")
    space = ParameterSpace(image=simpe.Opaque((4, 4)))

    def random_of(self, labels, generator):
        level = torch.randint(0, 20, labels.shape, generator=generator) + 200 * labels
        return {"image": level.to(torch.uint8)[:, None, None].expand(-1, 4, 4).contiguous()}

    def variation(self, p, strength, generator):
        step = torch.randint(0, 5, p["label"].shape, generator=generator) * (strength > 0)
        grey = p["image"][:, 0, 0] + torch.where(p["label"] == 1, step, 0).to(torch.uint8)
        return {"image": grey[:, None, None].expand(-1, 4, 4).contiguous()}

    def render(self, p):
        return p["image"]


def test_random_and_variation_may_depend_on_the_class():
    labels = np.array(["dark", "bright"] * 20)
    images = np.where(labels == "dark", 10, 215).astype(np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    release = evolve(
        Pages(), None, PrivateData(images, labels, budget=Budget(2.0), noise=no_noise), samples=30, steps=3
    )
    dark = release.samples[release.labels == 0]
    assert len(dark) == 15
    assert int(dark.max()) < 20, "a variation of another class"
    assert int(release.samples[release.labels == 1].min()) >= 200


def test_a_simulator_that_draws_by_class_passes_its_check():
    assert [finding for finding in simpe.check_simulator(Pages()) if not finding.ok] == []


def test_parents_stay_with_their_children_only_when_elitist(series):
    for elitist in (True, False):
        private = PrivateData(series, budget=Budget(100.0), noise=no_noise)
        private.declare(("",))
        setup = Setup(
            Oscillator(), flatten, Schedule(1.0, (1.0, 1.0)), Strategy(elitist=elitist, places=4), ("",), 10, 0,
            torch.device("cpu"),
        )  # fmt: skip
        state, info = step(setup, private, init(setup, private))
        before = info.candidates.params["phase"][info.survivors]
        _, info = step(setup, private, state)
        kept = torch.isin(before, info.candidates.params["phase"])
        assert bool(kept.all()) is elitist
        assert len(info.candidates) == (16 if elitist else 4)


@pytest.mark.parametrize("epsilon", [0.001, 0.01, 0.2, 1, 10, 100, 1000])
def test_defaults_are_complete_for_every_budget(epsilon, series):
    release = evolve(Oscillator(), None, PrivateData(series, budget=Budget(epsilon)), samples=10)
    assert 1 <= len(release.certificate["charges"]) - 1 <= 4
    assert release.certificate["spent_epsilon"] <= epsilon


def test_steps_that_the_budget_cannot_bear_are_refused_only_when_given():
    assert schedule(Budget(0.001)).steps == 4
    with pytest.raises(InputError, match="--steps"):
        schedule(Budget(0.001), 900)
    with pytest.raises(InputError, match="--steps"):
        schedule(Budget(1.0), 0)
    assert schedule(Budget(0.001), 2).vote_noise[0] < MAX_NOISE_MULTIPLIER


def test_places_follow_the_noise():
    strategy = Strategy(clear=2, votes=4)
    assert places([6000, 600, 5, -20, 0], 7.5, [1000, 1000, 10, 10, 0], strategy) == [400, 40, 1, 1, 0]
    assert places([6000], 0.1, [10_000], strategy) == [1500]
    assert places([6000], 0.1, [100], strategy) == [100]
    assert places([6000], 7.5, [1000], dataclasses.replace(strategy, places=33)) == [33]


def test_pictures_show_every_class_and_every_step():
    images, labels = patches()
    release = evolve(Patches(), None, PrivateData(images, labels, budget=Budget(2.0)), samples=60, steps=3)
    assert len(release.evolution) == 3
    assert all(len(row) == len(release.evolution[0]) for row in release.evolution)
    for t, params in enumerate(release.survivors, start=1):
        assert {len(values) for values in params.values()} == {len(release.history[f"votes_{t}"])}
    assert len(release.survivors) == 3
    files = release.files()
    assert files["grid.png"][:4] == files["evolution.png"][:4] == b"\x89PNG"


def test_evolution_follows_one_lineage(series):
    private = PrivateData(series, budget=Budget(5.0), noise=no_noise)
    release = evolve(Oscillator(), None, private, samples=60, steps=3, strategy=Strategy(places=8))
    first, last = release.evolution[0], release.evolution[-1]
    # What the rows vote for grows nearer from step to step, slot by slot and on the whole.
    rows = torch.from_numpy(series)
    assert distance(last, rows) <= distance(first, rows)
    assert math.isfinite(distance(last, rows))


def test_a_space_of_categories_alone_works(series):
    class Menu:
        space = ParameterSpace(choice=Categorical(7))

        def render(self, p):
            return torch.from_numpy(series)[:7][p["choice"]]

    release = evolve(Menu(), None, PrivateData(series, budget=Budget(2.0)), samples=10)
    assert release.samples.shape == (10, 32)


def test_the_certificate_counts_releases_that_no_plan_announced(series):
    private = PrivateData(series, budget=Budget(3.0), noise=no_noise)
    private.declare(("",))
    private.class_counts(20.0, address="mine")
    release = evolve(Oscillator(), None, private, samples=5, steps=2)
    assert release.certificate["accounting"] == "zCDP"
    assert release.certificate["scope"].startswith("everything")
    assert [charge["sigma"] for charge in release.certificate["other_charges_on_the_ledger"]] == [20.0]


class Line:
    """Places on a line, which know no classes."""

    space = ParameterSpace(x=Continuous(0, 1))

    def render(self, p):
        return p["x"][:, None].float()


def on_a_line(n=600):
    """Two classes that overlap in the middle third of a line."""
    x = np.random.default_rng(1).random((n, 1), dtype=np.float32) * 2 / 3
    labels = np.arange(n) % 2
    return x + labels[:, None].astype(np.float32) / 3, labels.astype(str)


def test_a_class_with_few_places_is_spread_wider_and_one_with_enough_is_not():
    """Few's 40 rows have 10 places, many's 800 have 200: at least the 100 that need no more width."""
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.random((40, 1)), rng.random((800, 1))]).astype(np.float32)
    labels = np.repeat(["few", "many"], [40, 800])

    def spread(wider):
        """How far samples lie from their class's nearest survivor, class by class."""
        seen = []
        release = evolve(
            Line(), None, PrivateData(rows, labels, budget=Budget(50.0), classes=("few", "many"), noise=no_noise),
            samples=21_000, strategy=Strategy(release_strength=1e-3, release_places=wider),
            watch=lambda info, steps: seen.append(info),
        )  # fmt: skip
        last = seen[-1].candidates.take(seen[-1].survivors)
        assert torch.bincount(last.labels).tolist() == [10, 200]
        moved = []
        for label in (0, 1):
            places = last.params["x"].ravel()[last.labels == label].sort().values.double()
            made = release.params["x"].ravel()[release.labels == label].double()
            moved.append(float((made[:, None] - places).abs().amin(1).median()))
        return moved

    plain, wider = spread(0), spread(100)
    assert wider[0] / plain[0] == pytest.approx(10 ** (1 / 4), rel=0.2)  # 10 places of 100
    assert wider[1] / plain[1] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("own", "places", "wanted"),
    [
        (0.2, math.inf, 0.2), (0.2, 500, 0.2), (0.2, 100, 0.2), (0.2, 6.25, 0.4), (0.5, 1, 1.0), (2.0, 1, 2.0),
        (0.2, 0, 0.632),
    ],
)  # fmt: skip
def test_the_release_widens_by_the_fourth_root_and_not_beyond_the_prior(own, places, wanted):
    strategy = Strategy(release_strength=own, release_places=100)
    setup = Setup(
        Oscillator(), flatten, Schedule(1.0, (1.0,)), strategy, ("",), 10, 0, torch.device("cpu")
    )  # fmt: skip
    assert setup.spread_strength(4, places) == pytest.approx(wanted, abs=1e-3)


SHARED = Strategy(shared=True, release_strength=0.0)


def test_classes_that_share_candidates_get_what_their_own_rows_voted_for():
    rows, labels = on_a_line()
    private = PrivateData(rows, labels, budget=Budget(5.0), classes=("0", "1"), noise=no_noise)
    seen = []
    release = evolve(Line(), None, private, samples=400, strategy=SHARED, watch=lambda info, steps: seen.append(info))
    last = seen[-1]
    places = last.candidates.params["x"].ravel().numpy()
    for label in ("0", "1"):  # ten lines of reference: who of the last candidates is nearest to the rows of a class
        own = rows[labels == label].ravel()
        nearest = np.abs(own[:, None] - places[None].astype(np.float32)).argmin(1)
        votes = np.bincount(nearest, minlength=len(places))[last.survivors.numpy()]
        np.testing.assert_array_equal(last.by_class[int(label)].numpy(), votes)
        made = release.params["x"].ravel()[release.labels == int(label)].numpy()
        assert set(made) <= set(places[last.survivors.numpy()][votes > 0])
    assert torch.equal(last.counts, last.by_class.sum(0))
    assert (release.samples[release.labels == 0] < 0.7).all()  # the other class's places would be up to 1
    assert (release.samples[release.labels == 1] > 0.3).all()
    assert torch.bincount(release.labels).tolist() == [200, 200]


def test_classes_that_share_candidates_are_told_apart_by_their_votes_alone():
    rows, labels = on_a_line()
    infos = {}
    for shared in (True, False):
        private = PrivateData(rows, labels, budget=Budget(5.0), classes=("0", "1"), noise=no_noise)
        infos[shared] = []
        strategy = Strategy(shared=shared)
        evolve(Line(), None, private, samples=400, strategy=strategy, watch=lambda i, _, s=shared: infos[s].append(i))
    assert all(not info.candidates.labels.any() for info in infos[True])
    assert all(info.candidates.labels.any() for info in infos[False])
    # A place is worth the votes of all classes and has the noise of all, so there are about 1.4 times as few in all.
    assert infos[True][0].noise == pytest.approx(infos[False][0].noise * 2**0.5)


def test_a_row_of_shared_candidates_votes_once(series):
    """One row more moves one bin by one: with the noise off, the counts differ in one place of one class."""
    rows, labels = on_a_line(201)
    last = []
    for n in (200, 201):
        private = PrivateData(rows[:n], labels[:n], budget=Budget(5.0), classes=("0", "1"), noise=no_noise)
        evolve(Line(), None, private, samples=100, strategy=SHARED, steps=1, watch=lambda i, _: last.append(i))
        record = private.ledger.find(private.run, "0/0/votes")
        assert record["charge"]["sensitivity"] == 1
        last[-1] = np.array(record["counts"])
    places = min(map(len, last)) // 2
    assert places * 2 == len(last[0]) == len(last[1])
    assert np.abs(last[1] - last[0]).sum() == 1


def test_classes_cannot_share_candidates_that_a_simulator_draws_by_class():
    rows = np.zeros((40, 4, 4), np.uint8)
    private = PrivateData(rows, np.array(Pages.classes * 20), budget=Budget(1.0))
    with pytest.raises(InputError, match="draws each class in its own way"):
        evolve(Pages(), None, private, samples=10, strategy=SHARED)
    assert not private.ledger.committed()


class Eager(Line):
    """Would rather share its candidates."""

    strategy = Strategy(shared=True)


class Late(Line):
    """Draws all classes alike but the last."""

    def random_of(self, labels, generator):
        return {"x": torch.rand(len(labels), generator=generator) / (1 + (labels == 2))}


@pytest.mark.parametrize(
    ("simulator", "then"),
    [(Mixture([Eager(), Eager(), Late()]), ()), (Eager(), (simpe.Stage(Eager(), steps=1, strategy=Strategy()),))],
)
def test_a_simulator_s_own_wish_to_share_gives_way(simulator, then):
    rows, labels = on_a_line(90)
    labels = np.array(["0", "1", "2"] * 30)
    private = PrivateData(rows, labels, budget=Budget(5.0), classes=("0", "1", "2"), noise=no_noise)
    release = evolve(simulator, None, private, samples=30, steps=1, then=then)
    assert release.certificate["public_inputs"]["strategy"]["shared"] is False
    alone = PrivateData(rows, labels, budget=Budget(5.0), classes=("0", "1", "2"), noise=no_noise)
    assert evolve(Eager(), None, alone, samples=30, steps=1).certificate["public_inputs"]["strategy"]["shared"] is True


def test_a_source_that_tells_the_last_class_alone_apart_cannot_share():
    rows, _ = on_a_line(90)
    private = PrivateData(rows, np.array(["0", "1", "2"] * 30), budget=Budget(5.0), classes=("0", "1", "2"))
    with pytest.raises(InputError, match="draws each class in its own way"):
        evolve(Late(), None, private, samples=30, strategy=SHARED)


def test_shared_votes_are_drowned_by_the_standard_error_of_all_their_bins():
    candidates = Population({"x": torch.zeros(200)}, torch.zeros(200, dtype=torch.int64), torch.zeros(200))
    info = Info(0, candidates, torch.arange(5), torch.zeros(5), 1.0, (), signal=0.06**0.5)
    assert info.drowned
    assert not dataclasses.replace(info, by_class=torch.zeros(10, 5)).drowned


@pytest.mark.parametrize("wrong", [{"elitist": False}, {"marginals": 0.5}])
def test_shared_goes_with_neither_resampling_nor_marginals(wrong):
    with pytest.raises(ValueError, match="shared"):
        Strategy(shared=True, **wrong)
