"""Stages, mixtures, and how a budget is split over steps: fixed, geometric, or adapted within a pool."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from support import Oscillator, Patches, addressed_noise, no_noise

import simpe
from simpe import (
    Budget,
    BudgetExceeded,
    Charge,
    Continuous,
    InputError,
    Ledger,
    Mixture,
    Opaque,
    ParameterSpace,
    PrivateData,
    Stage,
    Strategy,
    check_simulator,
    delta_of,
    epsilon_of,
    evolve,
    runs,
    schedule,
)
from simpe.config import read_config
from simpe.report import of_release


class Flat:
    """Plain patches: cannot draw what the private rows look like, so votes should leave it."""

    classes = ("left", "right")
    space = ParameterSpace(level=Continuous(0, 255))

    def render(self, p):
        return p["level"].round().to(torch.uint8)[:, None, None].expand(-1, 4, 4).contiguous()


class Brush:
    """Goes on from any 4 x 4 image, by touching its pixels up."""

    classes = ("left", "right")
    space = ParameterSpace(image=Opaque((4, 4)))

    def random_of(self, labels, generator):
        return {"image": torch.randint(0, 256, (len(labels), 4, 4), generator=generator, dtype=torch.uint8)}

    def variation(self, p, strength, generator):
        touch = torch.randn(p["image"].shape, generator=generator) * 20 * strength
        return {"image": (p["image"] + touch).round().clamp(0, 255).to(torch.uint8)}

    def adopt(self, samples, p):
        return {"image": samples}

    def render(self, p):
        return p["image"]


def halves(n=200, seed=0):
    """Images that Patches can draw: (n, 4, 4), with labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    p = {
        "level": torch.from_numpy(rng.normal(200, 5, n)),
        "edge": torch.from_numpy(rng.normal(20, 2, n)),
        "label": torch.from_numpy(label),
    }
    return np.asarray(Patches().render(p)), np.array(["left", "right"])[label]


def door(epsilon=2.0, noise=no_noise, **options):
    images, labels = halves()
    return PrivateData(images, labels, budget=Budget(epsilon), noise=noise, **options)


FEW = Strategy(places=6, start=10)


# --- stages


def test_a_stage_goes_on_from_the_survivors_of_the_one_before():
    both = evolve(Patches(), None, door(), samples=40, steps=2, strategy=FEW, then=[Stage(Brush(), strategy=FEW)])
    assert both.params.keys() == {"image"}
    assert torch.equal(both.samples, both.params["image"])
    assert both.history["stages"].tolist() == [0, 0, 1, 1]
    assert both.history["sources"].tolist() == ["Patches", "Brush"]
    assert both.history["source_shares"].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    images = torch.from_numpy(halves()[0]).flatten(1).float()

    def far(samples):
        return float(torch.cdist(images, samples.flatten(1).float()).min(dim=1).values.mean())

    random = evolve(Brush(), None, door(), samples=40, steps=4, strategy=FEW)
    assert far(both.samples) < far(random.samples) / 2, "the second stage began anew"


def test_what_is_adopted_competes_with_its_variations_and_keeps_its_class():
    class Watchful(Brush):
        def adopt(self, samples, p):
            self.seen = samples.clone(), p["label"].clone()
            return {"image": samples}

    brush, infos = Watchful(), []
    evolve(
        Patches(), None, door(), samples=40, steps=1, strategy=FEW, then=[Stage(brush, steps=1, strategy=FEW)],
        watch=lambda info, steps: infos.append((info, steps)),
    )  # fmt: skip
    (first, _), (second, steps) = infos
    assert steps == 2
    assert second.stage == 1
    samples, labels = brush.seen
    assert torch.equal(second.candidates.params["image"][: len(samples)], samples)
    assert torch.equal(second.candidates.labels[: len(samples)], labels)
    assert len(second.candidates) == 2 * 6 * (1 + FEW.children)
    # Parents point into the step before, over the border too.
    assert set(second.candidates.parents.tolist()) <= set(first.survivors.tolist())
    assert torch.equal(first.candidates.labels[second.candidates.parents], second.candidates.labels)


def test_a_source_of_the_same_kind_takes_the_parameters_as_they_are():
    release = evolve(Patches(), None, door(), samples=20, steps=1, strategy=FEW, then=[Stage(Patches(), strategy=FEW)])
    assert release.params.keys() == Patches.space.keys()


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (lambda: Stage(Flat()), "Flat cannot go on from the samples of Patches"),
        (lambda: Stage(Brush(), share=0.5, strategy=Strategy(marginals=0.5)), "marginals"),
        (lambda: Stage(Tall()), "make them alike"),
        (lambda: Stage(Broken()), "stage 2: adopt failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_spent(stage, said):
    private = door()
    with pytest.raises(InputError, match=said):
        evolve(Patches(), None, private, samples=20, steps=1, strategy=FEW, then=[stage()])
    assert private.ledger.releases() == []
    assert private.ledger.runs() == 0


class Tall(Brush):
    """Makes samples of another size."""

    embedder = staticmethod(lambda samples: samples.flatten(1)[:, :16].float())

    def render(self, p):
        return p["image"].repeat_interleave(2, dim=1)


class Broken(Brush):
    """Fails when it is handed samples."""

    def adopt(self, samples, p):
        return {"image": samples // (1 // 2)} if 1 // 0 else {}


def test_shares_are_of_the_precision_of_all_votes():
    private = door(noise=no_noise)
    evolve(Patches(), None, private, samples=20, steps=2, strategy=FEW, then=[Stage(Brush(), share=0.8, strategy=FEW)])
    precision = {r["address"]: r["charge"]["sigma"] ** -2 for r in private.ledger.releases()}
    assert list(precision) == ["0/counts", "0/0/votes", "0/1/votes", "1/0/votes", "1/1/votes"]
    total = sum(precision.values())
    assert precision["0/counts"] / total == pytest.approx(0.05)
    assert precision["0/0/votes"] == pytest.approx(precision["0/1/votes"])
    assert (precision["1/0/votes"] + precision["1/1/votes"]) / total == pytest.approx(0.95 * 0.8)
    charges = [Charge(**r["charge"]) for r in private.ledger.releases()]
    assert 1.99 < epsilon_of(charges, 1e-6) <= 2
    with pytest.raises(InputError, match="leave some to the first"):
        evolve(Patches(), None, door(), samples=20, then=[Stage(Brush(), share=0.6), Stage(Brush(), share=0.5)])


def test_one_certificate_covers_all_stages():
    release = evolve(Patches(), None, door(), samples=20, steps=1, strategy=FEW, then=[Stage(Brush(), strategy=FEW)])
    found = release.certificate
    assert [charge["release"] for charge in found["charges"]] == ["0/counts", "0/0/votes", "1/0/votes", "1/1/votes"]
    (stage,) = found["public_inputs"]["then"]
    assert stage["simulator"]["name"].endswith(":Brush")
    assert stage["steps"] == 2


def test_a_run_of_stages_resumes_anywhere_to_the_same_bits(tmp_path):
    def run(ledger, seen=None, run_id="one"):
        return evolve(
            Patches(), None, door(noise=addressed_noise, ledger=Ledger(ledger)), samples=30, steps=2, strategy=FEW,
            then=[Stage(Brush(), strategy=FEW)], run_id=run_id, watch=seen,
        )  # fmt: skip

    whole = run(tmp_path / "whole")

    class Stop(Exception):
        pass

    for steps in range(1, 5):
        ledger, left = tmp_path / f"cut {steps}", [steps]

        def stop(info, steps, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise Stop

        with pytest.raises(Stop):
            run(ledger, stop)
        again = run(ledger)
        assert torch.equal(again.samples, whole.samples)
        assert again.history.keys() == whole.history.keys()
        assert all(np.array_equal(again.history[name], whole.history[name]) for name in whole.history)


# --- mixtures


def test_votes_decide_which_source_of_a_mixture_lives():
    mixture = Mixture([Flat(), Patches()], ["flat", "patches"])
    release = evolve(mixture, None, door(), samples=40, steps=3, strategy=FEW)
    assert release.history["sources"].tolist() == ["flat", "patches"]
    shares = release.history["source_shares"]
    assert shares.sum(axis=1) == pytest.approx(1)
    assert shares[-1, 1] > 0.9
    assert (release.params["source"] == 1).double().mean() > 0.9
    # ... and it is the votes: the other way round they decide the other way.
    dull = np.full((200, 4, 4), 90, np.uint8) + np.arange(200, dtype=np.uint8)[:, None, None] % 8
    private = PrivateData(dull, np.array(["left", "right"] * 100), budget=Budget(2.0), noise=no_noise)
    assert evolve(mixture, None, private, samples=40, steps=3, strategy=FEW).history["source_shares"][-1, 0] > 0.9


def test_each_candidate_of_a_mixture_is_its_own_source_s():
    mixture = Mixture([Flat(), Patches()])
    labels = torch.arange(20) % 2
    p = mixture.random_of(labels, torch.Generator().manual_seed(0))
    assert p["source"].bincount().tolist() == [10, 10]
    p |= {"label": labels}
    samples = mixture.render(p)
    for i, source in enumerate((Flat(), Patches())):
        mine = p["source"] == i
        own = {name: p[f"{i}_{name}"][mine] for name in source.space} | {"label": labels[mine]}
        assert torch.equal(samples[mine], torch.as_tensor(source.render(own)))
    moved = mixture.variation(p, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(moved["source"], p["source"])
    for i, name in ((0, "0_level"), (1, "1_level"), (1, "1_edge")):
        mine = p["source"] == i
        assert torch.equal(moved[name][~mine], p[name][~mine]), "an idle parameter moved"
        assert not torch.equal(moved[name][mine], p[name][mine])


def test_a_mixture_passes_the_check_of_a_simulator():
    assert [finding for finding in check_simulator(Mixture([Flat(), Patches()])) if not finding.ok] == []


def test_a_mixture_may_follow_where_one_of_its_sources_can():
    mixture = Mixture([Flat(), Brush()])
    release = evolve(Patches(), None, door(), samples=20, steps=1, strategy=FEW, then=[Stage(mixture, strategy=FEW)])
    assert bool((release.params["source"] == 1).all())
    with pytest.raises(InputError, match="Mixture cannot go on"):
        evolve(Patches(), None, door(), samples=20, then=[Stage(Mixture([Flat(), Patches()]))])


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (lambda: [Flat()], "at least two"),
        (lambda: [Flat(), Oscillator(), Brush(), Other()], "different classes"),
        (lambda: [Flat(), Exporting()], "its own export"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources, said):
    with pytest.raises(InputError, match=said):
        Mixture(sources())


class Other(Flat):
    """Draws other classes."""

    classes = ("up", "down")


class Exporting(Flat):
    """Has a format of its own."""

    def export(self, release, folder):
        """Nothing."""


def test_sources_of_different_samples_are_found_before_anything_is_spent():
    private = door()
    with pytest.raises(InputError, match="different kinds of samples"):
        evolve(Mixture([Flat(), Tall()]), None, private, samples=20)
    assert private.ledger.runs() == 0


# --- the split of a budget


@settings(deadline=None, max_examples=30)
@given(split=some.floats(0.1, 10), steps=some.integers(1, 4))
def test_a_geometric_split_multiplies_the_precision_from_step_to_step(split, steps):
    noise = schedule(Budget(1.0), steps, strategy=Strategy(split=split)).vote_noise
    precision = [z**-2 for z in noise]
    for before, after in itertools.pairwise(precision):
        assert after / before == pytest.approx(split, rel=1e-6)
    uniform = schedule(Budget(1.0), steps).vote_noise
    # The discrete Gaussian is no Gaussian, so equal precision is not exactly equal cost.
    assert sum(precision) == pytest.approx(sum(z**-2 for z in uniform), rel=0.05)


def test_an_explicit_split_is_taken_at_its_word():
    noise = schedule(Budget(1.0), strategy=Strategy(split=(1.0, 3.0))).vote_noise
    assert len(noise) == 2
    assert noise[0] ** 2 / noise[1] ** 2 == pytest.approx(3)
    with pytest.raises(InputError, match="split has 2 parts for 3 steps"):
        schedule(Budget(1.0), 3, strategy=Strategy(split=(1.0, 3.0)))
    with pytest.raises(ValueError, match="split"):
        Strategy(split=(1.0, 0.0))


# --- adapting


def drowned(sigma, n, address):
    """Votes without any signal: nothing but a little noise of mean 0, whoever votes for whom."""
    rng = np.random.default_rng(n)
    return rng.normal(0, 0.3 * sigma, n).round().astype(np.int64) if "votes" in address else np.zeros(n, np.int64)


def test_an_adaptive_stage_that_sees_nothing_hands_its_budget_on():
    def charges(adaptive, **options):
        private = door(0.05, drowned)
        release = evolve(Patches(), None, private, samples=20, steps=4, strategy=FEW, adaptive=adaptive, **options)
        found = release.certificate
        assert found["other_charges_on_the_ledger"] == [], "nothing else is on this ledger"
        assert found["spent_epsilon"] == pytest.approx(0.05, rel=1e-3)
        return {r["address"]: r["charge"]["sigma"] ** -2 for r in private.ledger.releases()}

    fixed, adapted = charges(False), charges(True)
    assert list(fixed) == ["0/counts", *(f"0/{t}/votes" for t in range(4))]
    assert list(adapted) == ["0/counts", "0/0/votes", "0/1/votes"], "one more step, with all that was left"
    assert adapted["0/1/votes"] == pytest.approx(3 * adapted["0/0/votes"], rel=1e-6)
    assert adapted["0/0/votes"] < fixed["0/0/votes"], "what adapts is counted by zCDP"

    brush = Stage(Brush(), steps=2, strategy=FEW)
    staged = charges(True, then=[brush])
    assert list(staged) == ["0/counts", "0/0/votes", "1/0/votes", "1/1/votes"]
    assert staged["1/0/votes"] == pytest.approx(staged["0/0/votes"] * 2.5, rel=1e-6)
    assert staged["1/1/votes"] == pytest.approx(staged["0/0/votes"] * 2.5, rel=1e-6)


def test_an_adaptive_run_with_clear_votes_takes_all_its_steps_and_says_how_it_is_counted():
    private = door(20.0)
    release = evolve(Patches(), None, private, samples=20, steps=3, strategy=FEW, adaptive=True)
    assert len(private.ledger.releases()) == 4
    assert release.certificate["accounting"] == "zCDP"
    assert release.certificate["public_inputs"]["adaptive"] is True
    assert release.certificate["spent_epsilon"] <= 20
    alone = evolve(Patches(), None, door(20.0), samples=20, steps=3, strategy=FEW)
    assert alone.certificate["accounting"] == "privacy loss distribution"


def test_the_estimate_of_the_signal_is_right():
    infos = []
    evolve(
        Patches(), None, door(2.0, None), samples=400, steps=1, strategy=dataclasses.replace(FEW, start=100),
        watch=lambda info, steps: infos.append(info),
    )  # fmt: skip
    # 200 votes over 1,200 candidates: their mean square is at most 200^2 / 1200 and at least 200 / 1200.
    (info,) = infos
    assert info.signal <= math.sqrt(200**2 / 1200) / info.noise + 0.7


def adaptive_run(ledger, plan):
    with ledger.locked():
        key = ledger.key()
        ledger.bind(key, {"fingerprint": "x", "unit": "row", "k": 1, "relation": "add_remove", "delta": 1e-5})
        ledger.open_run("run", {"adaptive": True}, lambda: {str(i): charge for i, charge in enumerate(plan)})


def draw(ledger, address, charge, budget):
    with ledger.locked():
        ledger.admit("run", address, charge, budget)
        ledger.append({"type": "release", "run": "run", "address": address, "charge": dataclasses.asdict(charge)})


@settings(deadline=None, max_examples=60)
@given(
    plan=some.lists(some.floats(2, 200), min_size=1, max_size=5),
    asked=some.lists(some.floats(1, 400), min_size=1, max_size=8),
)
def test_the_filter_admits_what_composition_allows_and_no_more(plan, asked):
    planned = [Charge(sigma) for sigma in plan]
    # The budget is just what the plan costs, so nothing fits beside it.
    epsilon = epsilon_of(planned, 1e-5, adaptive=True)
    budget, ledger, admitted = Budget(max(1e-3, epsilon), 1e-5), Ledger(), []
    adaptive_run(ledger, planned)
    pool = math.fsum(charge.rho for charge in planned)
    for i, sigma in enumerate(asked):
        charge = Charge(sigma)
        fits = math.fsum(c.rho for c in [*admitted, charge]) <= pool and len(admitted) < len(planned)
        if fits:
            draw(ledger, f"step {i}", charge, budget)
            admitted.append(charge)
        else:
            with pytest.raises(BudgetExceeded):
                draw(ledger, f"step {i}", charge, budget)
    assert ledger.adaptive
    assert ledger.committed() == planned
    assert delta_of(admitted, budget.epsilon, adaptive=True) <= budget.delta


def test_what_was_planned_is_no_excuse_once_the_pool_is_empty():
    planned, ledger = [Charge(10.0)] * 4, Ledger()
    adaptive_run(ledger, planned)
    budget = Budget(epsilon_of(planned, 1e-5, adaptive=True), 1e-5)
    draw(ledger, "0", Charge(5.0), budget)  # as much as four steps of the plan
    with pytest.raises(BudgetExceeded):
        draw(ledger, "1", Charge(10.0), budget)


def test_a_run_that_does_not_adapt_has_no_pool():
    planned, ledger = [Charge(10.0)] * 4, Ledger()
    with ledger.locked():
        ledger.bind(ledger.key(), {"fingerprint": "x", "unit": "row", "k": 1, "relation": "add_remove", "delta": 1e-5})
        ledger.open_run("run", {}, lambda: {str(i): charge for i, charge in enumerate(planned)})
    budget = Budget(epsilon_of(planned, 1e-5, adaptive=True), 1e-5)
    with pytest.raises(BudgetExceeded):
        draw(ledger, "other", Charge(10.0), budget)


def test_the_report_shows_stages_and_sources(tmp_path):
    release = evolve(
        Mixture([Flat(), Patches()], ["flat", "patches"]), None, door(), samples=20, steps=1, strategy=FEW,
        then=[Stage(Brush(), steps=1, strategy=FEW)],
    )  # fmt: skip
    release.save(tmp_path / "run")
    page = of_release(tmp_path / "run" / "release")
    assert "votes of stage 2, step 1" in page
    assert "survivors by source" in page
    assert "Brush 100 %" in page
    plain = evolve(Patches(), None, door(), samples=20, steps=1, strategy=FEW)
    plain.save(tmp_path / "plain")
    assert "survivors by source" not in of_release(tmp_path / "plain" / "release")


def test_a_configuration_holds_stages_and_mixtures_and_resumes(tmp_path, monkeypatch):
    images, labels = halves()
    np.savez(tmp_path / "rows.npz", images=images, labels=labels)
    config = tmp_path / "config.toml"
    config.write_text(f"""
simulator = "mixture"
private = "{tmp_path / "rows.npz"}"
epsilon = 2.0
samples = 20
steps = 1
out = "{tmp_path / "run"}"
classes = ["left", "right"]
adaptive = true

[[options.sources]]
simulator = "test_stages:Flat"

[[options.sources]]
simulator = "support:Patches"

[strategy]
places = 4
split = [1.0]

[[then]]
simulator = "test_stages:Brush"
steps = 2
share = 0.5
strategy = {{places = 4, split = 2.0}}
""")
    monkeypatch.chdir(Path(__file__).parent)

    def killed(info, steps):
        if info.stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.start(read_config(config), watch=killed, noise=addressed_noise)
    monkeypatch.chdir(tmp_path)
    release = runs.resume(tmp_path / "run", noise=addressed_noise)
    assert release is not None
    assert release.history["sources"].tolist() == ["test_stages:Flat", "support:Patches", "Brush"]
    assert release.certificate["public_inputs"]["then"][0]["share"] == 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[[then]]\nsimulator = 'digits'\nshare = 1.5", "then.0.share"),
        ("[[then]]\nsimulator = 'digits'\nstep = 1", "then.0.step is not an option"),
        ("[[then]]\nsimulator = 'mixture'", "a mixture needs options.sources"),
        ("[strategy]\nsplit = -1.0", "split"),
    ],
)
def test_mistakes_in_stages_are_told_in_a_line(tmp_path, more, said):
    (tmp_path / "c.toml").write_text(f"private = 'sklearn'\nepsilon = 1.0\nout = 'x'\n{more}\n")
    with pytest.raises(InputError, match=said) as raised:
        read_config(tmp_path / "c.toml")
    assert "\n" not in str(raised.value)


class Knowing(Brush):
    """Asks for the votes, and notes what it was told and when it varied."""

    def __init__(self, notes, told=False):
        self.notes, self.told = notes, told

    def after(self, p, counts):
        self.notes.append((p["image"].clone(), p["label"].clone(), counts.clone()))
        return Knowing(self.notes, told=True)

    def variation(self, p, strength, generator):
        self.notes.append(self.told)
        return super().variation(p, strength, generator)

    def public_inputs(self):
        return {}


def test_a_source_is_told_the_noisy_counts_of_its_own_candidates():
    """What it is told is on the ledger, and never the exact votes; another source's candidates are not its own."""
    notes, private = [], door(noise=addressed_noise)
    plan = {"steps": 2, "strategy": Strategy(places=5, start=4, children=2), "then": [Stage(Knowing(notes), steps=2)]}
    evolve(Brush(), None, private, samples=20, **plan)
    told = [note for note in notes if isinstance(note, tuple)]
    assert [note for note in notes if not isinstance(note, tuple)][-3:] == [False, True, True]
    released = {record["address"]: record["counts"] for record in private.ledger.releases()}
    assert len(told) == 2
    for step, (images, labels, counts) in enumerate(told):
        assert len(images) == len(labels) == len(counts)
        assert counts.tolist() == released[f"1/{step}/votes"]
        assert min(released[f"1/{step}/votes"]) < 0, "noise, which no vote is"


def test_a_mixture_tells_each_source_of_its_own_candidates_alone():
    notes = ([], [])
    mixture = Mixture([Knowing(notes[0]), Flat(), Knowing(notes[1])])
    evolve(mixture, None, door(), samples=20, steps=2, strategy=Strategy(places=6, start=4, children=2))
    shown = []
    for own in notes:
        images, labels, counts = next(note for note in own if isinstance(note, tuple))
        assert 0 < len(images) == len(labels) == len(counts)
        assert True in own
        shown.append({image.numpy().tobytes() for image in images})
    assert not shown[0] & shown[1]


def test_names_are_exported():
    assert {"Stage", "Mixture"} <= set(simpe.__all__)
