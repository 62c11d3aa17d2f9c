"""One code path for every device: proved without a GPU, on a device that is not there (see pretend.py)."""

import numpy as np
import pytest
import torch
from device_runs import RUNS, SOURCES, drawn, finished
from pretend import DEVICE
from support import Oscillator, no_noise
from test_voting import KINDS, data

from simpe import Budget, PrivateData, check_simulator, evolve, marginals, runs, voting
from simpe.embedders import images
from simpe.embedders.efficientnet import EfficientNet
from simpe.embedders.ocr import OCR
from simpe.errors import InputError
from simpe.rendering import render, vary
from simpe.rows import embed
from simpe.stages import flatten
from simpe.voting import nearest

CPU = torch.device("cpu")


# --- the device is as strict as CUDA: what a test below would miss otherwise


def here():
    return torch.arange(4.0, device=DEVICE)


FAULTS = {
    "two devices": lambda: here() + torch.ones(4),
    "two devices, joined": lambda: torch.cat([here(), torch.ones(4)]),
    "two devices, multiplied": lambda: torch.mm(here()[None], torch.ones(4, 1)),
    "two devices, chosen from": lambda: torch.where(here() > 1, here(), torch.ones(4)),
    "a result elsewhere": lambda: torch.add(here(), 1, out=torch.empty(4)),
    "a CPU tensor by an index of the device": lambda: torch.ones(4)[here().long()],
    "a CPU tensor written by an index of the device": lambda: torch.ones(4).index_fill_(0, here().long(), 0),
    "a CPU table gathered": lambda: torch.ones(4).index_select(0, here().long()),
    "a CPU generator": lambda: torch.rand(4, generator=torch.Generator(), device=DEVICE),
    "a CPU generator, in place": lambda: here().normal_(generator=torch.Generator()),
    "NumPy": lambda: here().numpy(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cuda_refuses_is_refused(fault):
    with pytest.raises((RuntimeError, TypeError)):
        FAULTS[fault]()


def test_what_cuda_allows_is_allowed():
    x = here()
    assert x.device == DEVICE
    assert x.cpu().device == CPU
    assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]  # a number alone may come from anywhere
    assert x[torch.tensor([3, 1])].tolist() == [3, 1]  # so may an index
    x[x > 1] = 7.0
    assert x.cpu().tolist() == [0, 1, 7, 7]
    assert float(x.sum()) == 15


# --- sources and embedders


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_the_same_on_a_device(name):
    simulator = SOURCES[name]()
    population = drawn(simulator)
    moved = population.to(DEVICE)
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    there, at_home = (vary(simulator, p, 0.5, g) for p, g in zip((moved, population), generators, strict=True))
    assert all(value.device == DEVICE for value in there.params.values())
    assert there.digest() == at_home.digest()  # public draws do not know the device
    samples, expected = render(simulator, there), render(simulator, at_home)
    assert samples.device == DEVICE
    assert torch.equal(samples.cpu(), expected)
    embedder = getattr(simulator, "embedder", None) or flatten
    assert torch.equal(embed(samples, embedder, DEVICE).cpu(), embed(expected, embedder, CPU))
    if hasattr(simulator, "adopt"):
        p = {**there.params, "label": there.labels}
        adopted = simulator.adopt(samples, p)
        again = simulator.adopt(expected, {name: value.cpu() for name, value in p.items()})
        assert all(value.device == DEVICE and torch.equal(value.cpu(), again[n]) for n, value in adopted.items())
    if hasattr(simulator, "marginals"):
        assert torch.equal(simulator.marginals.cells(samples).cpu(), simulator.marginals.cells(expected))


EMBEDDERS = {
    "pixels and gradients": images.PixelsAndGradients,
    "at another size": lambda: images.PixelsAndGradients(size=16),
    "photographs": images.Photographs,
    "efficientnet": lambda: EfficientNet(48),
    "ocr": OCR,
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_follows_the_device(name):
    embedder = EMBEDDERS[name]()
    pictures = torch.randint(256, (10, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = embedder(pictures.to(DEVICE))
    assert found.device == DEVICE
    assert torch.equal(found.cpu(), embedder(pictures))


# --- runs


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_device_is_that_on_the_cpu(name):
    assert finished(name, DEVICE).files() == finished(name, CPU).files()


class Homebound(Oscillator):
    """The broken twin: it makes a tensor without saying where."""

    def render(self, p):
        t = torch.linspace(0, 5, 32)
        wave = torch.sin(p["frequency"][:, None] * t + p["phase"][:, None])
        return p["amplitude"][:, None] * torch.exp(-p["damping"][:, None] * t) * wave


def test_a_simulator_that_stays_at_home_is_found_before_anything_is_spent():
    private = PrivateData(np.zeros((50, 32), np.float32), budget=Budget(1), noise=no_noise)
    with pytest.raises(InputError, match=r"render failed.*expected all tensors to be on"):
        evolve(Homebound(), None, private, samples=10, device=DEVICE)
    assert private.ledger.releases() == []
    assert evolve(Homebound(), None, private, samples=10).samples.shape == (10, 32)


def test_the_checker_passes_and_names_it():
    assert all(finding.ok for finding in check_simulator(Oscillator(), n=16, device=DEVICE))
    assert all(finding.ok for finding in check_simulator(Homebound(), n=16))
    (found,) = [finding for finding in check_simulator(Homebound(), n=16, device=DEVICE) if not finding.ok]
    assert found.check == "render"
    assert "make tensors on the device of the input" in found.message


def test_labels_that_stay_at_home_are_caught():
    """What the query of the marginals once did, on a GPU alone."""
    asked = marginals.query(marginals.Marginals(), places=2, classes=2)
    there = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(RuntimeError, match="expected all tensors"):
        asked.of({marginals.PLACE: there, marginals.LABEL: there.cpu()})
    assert asked.of({marginals.PLACE: there, marginals.LABEL: there}).device == DEVICE


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:1"])
def test_a_device_that_cannot_be_used_is_one_line(name):
    if name != "mps" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(InputError, match=rf"--device {name[:4].rstrip(':')}.*use --device cpu"):
        runs.device_of(name)
    private = PrivateData(np.zeros((50, 32), np.float32), budget=Budget(1), noise=no_noise)
    with pytest.raises(InputError, match="use --device cpu"):
        evolve(Oscillator(), None, private, samples=10, device=name)
    assert private.ledger.releases() == []


# --- votes


@pytest.mark.parametrize("d", [3, 64, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_votes_on_a_device_are_those_on_the_cpu(kind, d):
    generator = torch.Generator().manual_seed(d)
    rows, candidates = data(kind, 60, d, generator), data(kind, 75, d, generator)
    for k, metric in ((1, "l2"), (3, "cosine")):
        found = nearest(rows.to(DEVICE), candidates.to(DEVICE), k, metric)
        assert found.device == DEVICE
        assert torch.equal(found.cpu(), nearest(rows, candidates, k, metric))


def test_products_of_cut_values_may_use_tf32_and_no_others_may():
    before = torch.get_float32_matmul_precision()
    with voting._cut_products(DEVICE):
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == before == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


def matrix_unit(x, c, terms, bits=24):
    """Products (n,) of rows as a GPU's matrix unit sums them at worst: ``terms`` at a time beside the sum so far, each
    cut where the largest of them ends, and the sum cut to float32's ``bits`` (after Fasi et al., 2021)."""
    products, total = x * c, np.zeros(len(x))
    for start in range(0, x.shape[1], terms):
        some = np.concatenate([products[:, start : start + terms], total[:, None]], axis=1)
        grain = 2.0 ** (np.frexp(np.abs(some).max(axis=1))[1] - bits)
        total = np.trunc(some / grain[:, None]).sum(axis=1) * grain
        grain = 2.0 ** (np.frexp(total)[1] - bits)
        total = np.trunc(total / grain) * grain
    return total


def worst(x, c, terms, bits):
    """The largest error of a product in parts of its bound, with nothing cut off the values."""
    error = np.abs(matrix_unit(x, c, terms, bits) - (x * c).sum(axis=1))
    norm = torch.from_numpy(np.linalg.norm(x, axis=1)).to(DEVICE)
    lost = torch.zeros(len(x), dtype=torch.float64)
    bound = voting._error(norm, lost.to(DEVICE), lost.max().to(DEVICE), x.shape[1])
    return float((torch.from_numpy(error) / bound.cpu()).max())


@pytest.mark.parametrize("terms", [4, 8, 16])
@pytest.mark.parametrize("d", [16, 96, 512])
def test_a_matrix_unit_s_sums_stay_within_the_bound(d, terms):
    generator = np.random.default_rng(d)
    for same_sign in (False, True):
        x, c = (generator.standard_normal((200, d)) for _ in range(2))
        x, c = (np.abs(v) if same_sign else v for v in (x, c))
        x, c = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, c))
        x, c = (torch.from_numpy(v).bfloat16().double().numpy() for v in (x, c))
        assert worst(x, c, terms, 24) <= 1
        if same_sign:
            assert worst(x, c, terms, 15) > 1  # the broken twin: a sum that is kept in half precision's bits
