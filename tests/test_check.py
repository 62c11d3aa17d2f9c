"""The checker lets good plug-ins pass, and each of its checks has a broken twin that it alone catches."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simpe.check import Finding, check_embedder, check_simulator, fit
from simpe.embedders.images import PixelsAndGradients
from simpe.errors import InputError
from simpe.rendering import Parallel
from simpe.simulators.digits import Digits
from simpe.space import Categorical, Continuous, Integer, ParameterSpace

TIME = torch.linspace(0, 5, 256)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The tensors here are small: a second thread costs more than it brings, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Oscillator:
    def __init__(self, fastest=20.0):
        self.space = ParameterSpace(
            amplitude=Continuous(0.1, 10, log=True),
            frequency=Continuous(0.1, fastest, log=True),
            damping=Continuous(0, 2),
            phase=Continuous(0, 2 * math.pi, wraps=True),
        )

    def render(self, p):
        t = TIME.to(p["phase"].device)
        return (
            p["amplitude"][:, None]
            * torch.exp(-p["damping"][:, None] * t)
            * torch.sin(p["frequency"][:, None] * t + p["phase"][:, None])
        )


class Spots:
    """Grey images of one spot; has every optional attribute, each kind of parameter and a constraint."""

    classes = ("soft", "hard")
    space = ParameterSpace(
        x=Continuous(0, 1),
        y=Continuous(0, 1),
        width=Integer(2, 6),
        shape=Categorical(("round", "square")),
        offsets=Continuous(-1, 1, size=2),
        constraints=[lambda p: p["x"] + p["y"] <= 1.5],
    )

    def __init__(self):
        self.embedder = PixelsAndGradients()

    def random(self, n, generator):
        return self.space.sample(n, generator)

    def variation(self, p, strength, generator):
        return self.space.perturb(p, strength, generator)

    def draw(self, p):
        """In 0..1, (n, 16, 16)."""
        grid = torch.arange(16.0)
        across = (grid - 16 * p["x"][:, None] - p["offsets"][:, :1])[:, None, :]
        down = (grid - 16 * p["y"][:, None] - p["offsets"][:, 1:])[:, :, None]
        circle, square = (across**2 + down**2).sqrt(), torch.maximum(across.abs(), down.abs())
        reach = torch.where(p["shape"][:, None, None] == 0, circle, square)
        edge = 1 + p["label"][:, None, None]
        return (0.5 + (p["width"][:, None, None] - reach) * edge).clamp(0, 1)

    def render(self, p):
        return (self.draw(p) * 255).round().to(torch.uint8)

    def public_inputs(self):
        return {"simulator": "spots"}


def failures(findings):
    return {f.check: f.message for f in findings if not f.ok}


@pytest.mark.parametrize("make", [Oscillator, Spots, Digits], ids=lambda make: make.__name__)
def test_good_simulator_passes(make):
    simulator = make()
    findings = check_simulator(simulator)
    assert failures(findings) == {}
    assert any(f.check.startswith("embedder: ") for f in findings) == hasattr(simulator, "embedder")
    assert findings == check_simulator(simulator), "checking is reproducible, and leaves no trace"


def test_processes_pass():
    with Parallel(Spots(), 1) as simulator:
        simulator._pool = SimpleNamespace(map=lambda _, jobs: map(_render, jobs), shutdown=lambda: None)
        assert failures(check_simulator(simulator)) == {}


def _render(job):
    return Spots().render({name: torch.from_numpy(value) for name, value in job.items()}).numpy()


def test_checking_leaves_the_global_generators_alone():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    check_simulator(Spots())
    assert draw() == expected


SIMULATOR_TWINS = {}


def twin(check, mistake, twins=SIMULATOR_TWINS):
    """Register a broken plug-in, the one check that should catch it, and a phrase of the message."""

    def register(make):
        twins[make.__name__] = (make, check, mistake)
        return make

    return register


@twin("space", "ParameterSpace")
class SpaceIsADict(Spots):
    def __init__(self):
        self.space = dict(Spots.space)


@twin("space", "declare space")
class NoSpace:
    def render(self, p):
        return p["x"]


@twin("space", "pass an instance")
def a_class():
    return Spots


@twin("space", "ZeroDivisionError")
class SpaceRaises(Spots):
    @property
    def space(self):
        return 1 / 0


@twin("classes", "tuple of names")
class ClassesAreAString(Spots):
    classes = "ab"


@twin("classes", "as strings")
class ClassesAreNumbers(Spots):
    classes = (0, 1)


@twin("classes", "names must differ")
class ClassTwice(Spots):
    classes = ("a", "a")


@twin("public inputs", "not JSON")
class PublicInputsHoldAnArray(Spots):
    def public_inputs(self):
        return {"weights": np.zeros(3)}


@twin("public inputs", "return a dict")
class PublicInputsAreAList(Spots):
    def public_inputs(self):
        return ["spots"]


@twin("public inputs", "no times")
class PublicInputsChange(Spots):
    calls = 0

    def public_inputs(self):
        self.calls += 1
        return {"time": self.calls}


@twin("description", "begin the names of caches with _")
class Cache(Oscillator):
    def render(self, p):
        self.last = p["phase"]
        return super().render(p)


@twin("random", "clamp, or widen the space")
class RandomOutOfRange(Spots):
    def random(self, n, generator):
        p = super().random(n, generator)
        return {**p, "x": p["x"] + 2}


@twin("random", "torch.int64")
class RandomOfAnotherDtype(Spots):
    def random(self, n, generator):
        p = super().random(n, generator)
        return {**p, "width": p["width"].float()}


@twin("random", "(1,)")
class RandomOfAnotherLength(Spots):
    def random(self, n, generator):
        return super().random(64, generator)


@twin("random", "return a dict with the parameters")
class RandomForgets(Spots):
    def random(self, n, generator):
        p = super().random(n, generator)
        del p["y"]
        return p


@twin("random", "constraint")
class RandomIgnoresConstraints(Spots):
    def random(self, n, generator):
        return {name: parameter.sample(n, generator) for name, parameter in self.space.items()}


@twin("random", "IndexError")
class RandomRaises(Spots):
    def random(self, n, generator):
        return [][n]


@twin("random reproducible", "global generator of torch")
class RandomIsGlobal(Spots):
    def random(self, n, generator):
        p = super().random(n, generator)
        return {**p, "shape": torch.randint(2, (n,))}


@twin("random reproducible", "from nothing else")
class RandomKeepsAGenerator(Spots):
    def __init__(self):
        super().__init__()
        self._own = torch.Generator().manual_seed(0)

    def random(self, n, generator):
        return super().random(n, self._own)


@twin("random reproducible", "ignores the generator")
class RandomIsAlwaysTheSame(Spots):
    def random(self, n, generator):
        return super().random(n, torch.Generator().manual_seed(0))


@twin("variation", "clamp")
class VariationLeavesTheRange(Spots):
    def variation(self, p, strength, generator):
        noise = torch.randn(p["x"].shape, generator=generator)
        return {**p, "x": p["x"] + strength * noise}


@twin("variation", "changed nothing")
class VariationReturnsItsParents(Spots):
    def variation(self, p, strength, generator):
        super().variation(p, strength, generator)
        return p


@twin("variation inputs", "make new tensors")
class VariationInPlace(Spots):
    def variation(self, p, strength, generator):
        p.update(super().variation(p, strength, generator))
        return p


@twin("variation reproducible", "global generator of numpy.random")
class VariationIsGlobal(Spots):
    def variation(self, p, strength, generator):
        if np.random.random() < 0:  # noqa: NPY002
            return p
        return super().variation(p, strength, generator)


@twin("variation reproducible", "from nothing else")
class VariationKeepsAGenerator(Spots):
    def __init__(self):
        super().__init__()
        self._own = torch.Generator().manual_seed(0)

    def variation(self, p, strength, generator):
        return super().variation(p, strength, self._own)


@twin("variation reproducible", "ignores the generator")
class VariationIsAlwaysTheSame(Spots):
    def variation(self, p, strength, generator):
        return super().variation(p, strength, torch.Generator().manual_seed(0))


@twin("strength 0", "by the strength")
class ChoiceIgnoresStrength(Spots):
    def variation(self, p, strength, generator):
        moved = super().variation(p, strength, generator)
        return {**moved, "shape": self.space["shape"].perturb(p["shape"], 0.3, generator)}


@twin("strength", "scale the move")
class StrengthIsASwitch(Spots):
    def variation(self, p, strength, generator):
        return super().variation(p, float(strength > 0), generator)


@twin("render", "define render")
class NoRender:
    space = Spots.space


@twin("render", "nothing else")
class RenderReadsWhatIsNotThere(Spots):
    def render(self, p):
        return p["height"]


@twin("render", "render of 1 rows raised")
class RenderNeedsManyRows(Spots):
    def render(self, p):
        return super().render(p) + 0 * p["x"][1].to(torch.uint8)


@twin("render", "return a tensor or a NumPy array")
class RenderReturnsAList(Spots):
    def render(self, p):
        return list(super().render(p))


@twin("device", "device=p[...].device")
class OnAnotherDevice(Spots):
    def render(self, p):
        return super().render(p).to("meta")


@twin("shape", "one sample a row")
class OneScalarARow(Spots):
    def render(self, p):
        return super().render(p).sum((1, 2))


@twin("shape", "squeeze()")
class Squeezed(Spots):
    def render(self, p):
        return super().render(p).squeeze()


@twin("dtype", "to one dtype")
class DtypeHangsOnTheBatch(Oscillator):
    def render(self, p):
        samples = super().render(p)
        return samples.double() if len(samples) == 1 else samples


@twin("dtype", "images are uint8")
class Booleans(Spots):
    def render(self, p):
        return super().render(p) > 127


@twin("dtype", "channels last")
class ChannelsFirst(Spots):
    def render(self, p):
        return super().render(p)[:, None].repeat(1, 3, 1, 1)


@twin("dtype", "if grey")
class GreyWithAChannel(Spots):
    def render(self, p):
        return super().render(p)[..., None]


@twin("range", "by 255")
class NotScaled(Spots):
    def render(self, p):
        return self.draw(p).round().to(torch.uint8)


@twin("finite", "division by 0")
class NotFinite(Oscillator):
    def render(self, p):
        return super().render(p) / (p["damping"] > 0.1)[:, None]


@twin("gradient", "no_grad")
class CarriesAGradient(Oscillator):
    def __init__(self):
        super().__init__()
        self._gain = torch.ones(1, requires_grad=True)

    def render(self, p):
        return super().render(p) * self._gain


@twin("inputs", "x = x + 1")
class ClampsInPlace(Spots):
    def render(self, p):
        p["x"].clamp_(0.2, 0.8)
        return super().render(p)


@twin("inputs", "copy it")
class AddsAnEntry(Spots):
    def render(self, p):
        p["edge"] = p["x"]
        return super().render(p)


@twin("outputs", "not a buffer")
class ReturnsItsBuffer(Oscillator):
    def __init__(self):
        super().__init__()
        self._buffer = np.zeros((64, 256), dtype=np.float32)

    def render(self, p):
        samples = self._buffer[: len(p["phase"])]
        samples[:] = super().render(p).numpy()
        return samples


@twin("global randomness", "make the randomness a parameter")
class DrawsFromTheGlobalGenerator(Oscillator):
    def render(self, p):
        return super().render(p) + 0.1 * torch.randn(256)


@twin("global randomness", "numpy.random")
class SeedsTheGlobalGenerator(Spots):
    def render(self, p):
        np.random.seed(0)  # noqa: NPY002
        return super().render(p)


@twin("deterministic", "make the randomness a parameter")
class DrawsFromItsOwnGenerator(Oscillator):
    def __init__(self):
        super().__init__()
        self._rng = np.random.default_rng(0)

    def render(self, p):
        return super().render(p) + torch.from_numpy(self._rng.normal(size=256)).float()


@twin("rows", "no mean, max, sort")
class ScalesByTheBatch(Oscillator):
    def render(self, p):
        samples = super().render(p)
        return samples / samples.abs().max()


@twin("rows", "index over the batch")
class NumbersTheRows(Oscillator):
    def render(self, p):
        return super().render(p) + torch.arange(len(p["phase"]))[:, None]


@twin("state", "first batch")
class LearnsFromTheFirstBatch(Oscillator):
    _scale = None

    def render(self, p):
        samples = super().render(p)
        self._scale = samples.std() if self._scale is None else self._scale
        return samples / self._scale


@twin("parameters", "offsets never changed a sample")
class IgnoresAParameter(Spots):
    def draw(self, p):
        return super().draw({**p, "offsets": torch.zeros_like(p["offsets"])})


@twin("labels", "class 'third'")
class OneClassTooMany(Spots):
    classes = ("soft", "hard", *(f"extra {i}" for i in range(70)), "third")

    def render(self, p):
        if (p["label"] > 71).any():
            return super().render(p)[:, :8]
        return super().render(p)


@twin("embedder: dtype", ".float()")
class EmbedderOfItsOwn(Spots):
    def __init__(self):
        self.embedder = lambda x: x.flatten(1).double()


@twin("embedder", "RuntimeError: no weights")
class EmbedderCannotBeHad(Spots):
    def __init__(self):
        pass

    @property
    def embedder(self):
        raise RuntimeError("no weights")


@pytest.mark.parametrize("name", SIMULATOR_TWINS)
def test_broken_simulator_is_caught(name):
    make, check, mistake = SIMULATOR_TWINS[name]
    found = failures(check_simulator(make()))
    assert found.keys() == {check}, found
    assert mistake in found[check]
    assert "\n" not in found[check]


def test_every_check_of_simulators_has_a_twin():
    names = {f.check for f in check_simulator(Spots()) if not f.check.startswith("embedder: ")}
    assert names <= {check for _, check, _ in SIMULATOR_TWINS.values()}


def test_rounding_between_batches_is_told_but_allowed():
    class Sloppy(Oscillator):
        def render(self, p):
            samples = super().render(p)
            return samples * (1 + 1e-7 * (len(samples) > 1))

    (rows,) = (f for f in check_simulator(Sloppy()) if f.check == "rows")
    assert rows.ok
    assert "not bit for bit" in rows.message


# --- embedders

EMBEDDER_TWINS = {}
IMAGES = torch.randint(0, 256, (40, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def flat(x):
    return x.flatten(1).float() / 255


def broken(check, mistake):
    return twin(check, mistake, EMBEDDER_TWINS)


class Embedder:
    def __call__(self, x):
        return flat(x)


@broken("public inputs", "not JSON")
class EmbedderListsAnArray(Embedder):
    def public_inputs(self):
        return {"weights": np.zeros(3)}


@broken("description", "begin the names of caches with _")
class EmbedderCaches(Embedder):
    def __call__(self, x):
        self.last = x
        return flat(x)


@broken("embed", "ValueError: too small")
class EmbedderRaises:
    def __call__(self, x):
        raise ValueError("too small")


@broken("embed", "return a tensor")
class EmbedderReturnsNumPy:
    def __call__(self, x):
        return flat(x).numpy()


@broken("embed", "pass an instance")
def an_embedder_class():
    return PixelsAndGradients


@broken("shape", "flatten(1)")
class EmbedderKeepsImages:
    def __call__(self, x):
        return x.float()


@broken("shape", "squeeze()")
class EmbedderSqueezes:
    def __call__(self, x):
        return flat(x).squeeze()


@broken("dtype", ".float()")
class EmbedderOfDoubles:
    def __call__(self, x):
        return flat(x).double()


@broken("device", "follow the device")
class EmbedderElsewhere:
    def __call__(self, x):
        return flat(x).to("meta")


@broken("gradient", "no_grad")
class EmbedderWithAGradient:
    def __init__(self):
        self._scale = torch.ones(1, requires_grad=True)

    def __call__(self, x):
        return flat(x) * self._scale


@broken("finite", "log(0)")
class EmbedderOfLogs:
    def __call__(self, x):
        return flat(x).log()


@broken("inputs", "x = x / 255")
class EmbedderInPlace:
    def __call__(self, x):
        return flat(x.clamp_(10, 200))


@broken("outputs", "not a buffer")
class EmbedderReturnsItsBuffer:
    def __init__(self):
        self._buffer = torch.zeros(256, 144)

    def __call__(self, x):
        return self._buffer[: len(x)].copy_(flat(x))


@broken("global randomness", ".eval()")
def dropout():
    return torch.nn.Sequential(torch.nn.Flatten(), _Float(), torch.nn.Dropout())


class _Float(torch.nn.Module):
    def forward(self, x):
        return x.float() / 255


@broken("deterministic", ".eval()")
class EmbedderKeepsARunningMean:
    _mean = 0.0

    def __call__(self, x):
        self._mean = 0.9 * self._mean + 0.1 * float(flat(x).mean())
        return flat(x) - self._mean


@broken("rows", "by the mean or maximum of the batch")
class EmbedderCentresTheBatch:
    def __call__(self, x):
        return flat(x) - flat(x).double().mean(0).float()


@broken("embed", ".eval()")
def batch_norm():
    norm = torch.nn.BatchNorm1d(144, affine=False, track_running_stats=False)
    return torch.nn.Sequential(torch.nn.Flatten(), _Float(), norm)


@broken("rows", "fixed slices")
class EmbedderRoundsByPlace:
    def __call__(self, x):
        place = torch.arange(len(x)) % 2
        return flat(x) * (1 + 2e-7 * place)[:, None]


@broken("state", "public knowledge")
class EmbedderFitsTheFirstBatch:
    _mean = None

    def __call__(self, x):
        self._mean = flat(x).mean(0) if self._mean is None else self._mean
        return flat(x) - self._mean


@broken("varies", "votes say nothing")
class EmbedderIsConstant:
    def __call__(self, x):
        return torch.zeros(len(x), 4)


@pytest.mark.parametrize("name", EMBEDDER_TWINS)
def test_broken_embedder_is_caught(name):
    make, check, mistake = EMBEDDER_TWINS[name]
    found = failures(check_embedder(make(), IMAGES))
    assert found.keys() == {check}, found
    assert mistake in found[check]


def test_every_check_of_embedders_has_a_twin():
    names = {f.check for f in check_embedder(flat, IMAGES)}
    assert names <= {check for _, check, _ in EMBEDDER_TWINS.values()}


@pytest.mark.parametrize("samples", [None, IMAGES, IMAGES.numpy()], ids=["any", "tensor", "numpy"])
def test_good_embedder_passes(samples):
    assert failures(check_embedder(flat, samples)) == {}
    assert failures(check_embedder(PixelsAndGradients(), samples)) == {}


def test_embedder_of_series_is_tried_on_series():
    def spectrum(x):
        assert x.is_floating_point()
        return x[:, ::2] - x[:, 1::2]

    assert failures(check_embedder(spectrum)) == {}


def test_too_few_samples():
    with pytest.raises(ValueError, match="at least 4"):
        check_embedder(flat, IMAGES[:3])
    with pytest.raises(ValueError, match="at least 4"):
        check_simulator(Spots(), n=3)


def test_finding_reads_well():
    assert str(Finding("rows", True)) == "ok   rows"
    assert str(Finding("rows", False, "no")) == "FAIL rows: no"


# --- fit


def public_oscillations(n=120):
    space = ParameterSpace(
        amplitude=Continuous(0.8, 1.2),
        frequency=Continuous(6, 10),
        damping=Continuous(0.2, 0.5),
        phase=Continuous(0, 2 * math.pi, wraps=True),
    )
    return Oscillator().render(space.sample(n, torch.Generator().manual_seed(7)))


def test_fit_tells_an_expressive_simulator_from_a_crippled_one():
    samples = public_oscillations()
    good, crippled = fit(Oscillator(), samples), fit(Oscillator(fastest=3.0), samples)
    assert good.closed > 0.9
    assert good.random > 2 * good.held_out > good.fitted
    assert "expressive enough" in good.verdict
    assert crippled.closed < 0.2
    assert "not expressive enough" in crippled.verdict
    assert ("frequency", "upper") in [end[:2] for end in crippled.ends]
    assert good.held_out == crippled.held_out
    assert good == fit(Oscillator(), samples), "reproducible"
    assert "other real samples" in str(good)
    assert "widen it?" in str(crippled)
    assert str(crippled).endswith(crippled.verdict)


def test_fit_measures_what_it_says():
    """The distances against a reference that knows nothing of the engine, on a simulator that renders one point."""

    class Point:
        space = ParameterSpace(x=Continuous(-1e-6, 1e-6), y=Continuous(-1e-6, 1e-6))

        def render(self, p):
            return torch.stack([p["x"], p["y"]], 1)

    samples = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    found = fit(Point(), samples, steps=2)
    near = np.linalg.norm(samples, axis=1)
    pairs = np.linalg.norm(samples[:, None] - samples, axis=2)
    assert found.targets == 20
    assert len(found.farthest) == 10
    # The farthest are the ten most distant of some half.
    assert found.farthest == tuple(sorted(found.farthest, key=lambda i: -near[i]))
    assert near.min() < found.fitted < near.max()
    assert found.fitted == pytest.approx(found.random, abs=1e-4)
    assert np.sort(pairs, axis=1)[:, 1].mean() < found.held_out < near.max()


def test_fit_within_classes_and_at_another_size():
    spots = Spots()
    p = spots.space.sample(80, torch.Generator().manual_seed(3))
    label = torch.arange(80) % 2
    images = spots.render({**p, "label": label})
    small = (images.reshape(80, 8, 2, 8, 2).float().mean((2, 4))).round().to(torch.uint8)
    names = np.array(spots.classes)[label.numpy()]
    found = fit(spots, small.numpy(), names, steps=6)
    assert found.targets == 40
    assert found.closed > 0.9
    assert fit(spots, images, names, most=20, steps=2).targets == 10


def test_fit_names_what_does_not_fit():
    with pytest.raises(InputError, match="at least 8"):
        fit(Oscillator(), public_oscillations(7))
    with pytest.raises(InputError, match="one shape"):
        fit(Oscillator(), public_oscillations()[:, :100])
    with pytest.raises(InputError, match="one dtype"):
        fit(Oscillator(), IMAGES)
    with pytest.raises(InputError, match="labels"):
        fit(Spots(), IMAGES, ["soft"])
    with pytest.raises(InputError, match="classes"):
        fit(Spots(), IMAGES, ["other"] * len(IMAGES))
