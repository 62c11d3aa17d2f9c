"""What a real CUDA device must show. Run it where there is one: pytest -m gpu -rA

Last run: never, as no machine with a GPU was at hand; so nothing was measured. Whoever runs it first writes here on
which GPU, with which torch, what failed, and the figures that it prints.
"""

import time

import pytest
import torch
from device_runs import RUNS, SOURCES, drawn, finished
from test_voting import KINDS, data, reference

from simpe import voting
from simpe.rendering import render, vary
from simpe.rows import embed
from simpe.stages import flatten
from simpe.voting import nearest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here"),
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("d", [3, 64, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_votes_are_the_float64_brute_force(kind, d, metric):
    generator = torch.Generator().manual_seed(d)
    rows, candidates = data(kind, 60, d, generator), data(kind, 75, d, generator)
    rows, candidates = rows.to(GPU), candidates.to(GPU)
    pairs = torch.cartesian_prod(torch.arange(60, device=GPU), torch.arange(75, device=GPU))
    apart = voting._distances(rows[pairs[:, 0]], candidates[pairs[:, 1]], metric).view(60, 75)
    brute = apart.argsort(dim=1, stable=True)[:, :3]
    assert torch.equal(nearest(rows, candidates, 3, metric), brute)
    if metric == "l2":  # a root may differ in its last bit, nothing else
        assert torch.equal(brute.cpu(), reference(rows.cpu(), candidates.cpu(), 3))


@pytest.mark.parametrize("d", [64, 512, 2048])
def test_votes_over_many_blocks_are_those_of_the_cpu_and_a_row_is_alone(d):
    generator = torch.Generator().manual_seed(d)
    rows, candidates = (torch.randn(n, d, generator=generator) for n in (9_000, 20_000))
    found = nearest(rows.to(GPU), candidates.to(GPU)).cpu()
    assert torch.equal(found[:500], nearest(rows[:500], candidates))
    assert torch.equal(found[1:], nearest(rows[1:].to(GPU), candidates.to(GPU)).cpu())


@pytest.mark.parametrize("d", [64, 512, 2048])
def test_scores_of_matrix_units_are_within_their_bound(d):
    generator = torch.Generator().manual_seed(d)
    candidates, rows = (torch.randn(2000, d, generator=generator).to(GPU) for _ in range(2))
    prepared = voting._Candidates(candidates, "l2")
    x = prepared.values.new_ones((len(rows), prepared.values.shape[1]))
    norm, _ = prepared._scale(rows, out=x)
    with voting._cut_products(GPU):
        scores = torch.mm(prepared.values[: len(candidates)], x.T)
    exact = torch.mm(prepared.values[: len(candidates)].double(), x.T.double())
    nothing = torch.zeros_like(norm)
    share = (scores - exact).abs() / voting._error(norm, nothing, nothing[0], d)
    print(f"{d} dimensions: the largest error is {float(share.max()):.3f} of its bound")
    assert float(share.max()) <= 1
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_draws_the_same_and_renders_nearly_the_same(name):
    simulator = SOURCES[name]()
    population = drawn(simulator)
    there = vary(simulator, population.to(GPU), 0.5, torch.Generator().manual_seed(2))
    at_home = vary(simulator, population, 0.5, torch.Generator().manual_seed(2))
    assert there.digest() == at_home.digest()
    samples, expected = render(simulator, there), render(simulator, at_home)
    assert samples.device.type == "cuda"
    assert samples.dtype == expected.dtype
    off = (samples.cpu().double() - expected.double()).abs()
    scale = 255 if samples.dtype == torch.uint8 else float(expected.abs().max())
    print(f"{name}: off by {float(off.mean()) / scale:.1e} on average, {float(off.max()) / scale:.1e} at most")
    assert float(off.mean()) / scale < 1e-3
    embedder = getattr(simulator, "embedder", None) or flatten
    ours, theirs = embed(samples, embedder, GPU), embed(samples.cpu(), embedder, CPU)
    assert torch.allclose(ours.cpu(), theirs, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_depends_on_itself_alone(name):
    simulator = SOURCES[name]()
    population = drawn(simulator, 40).to(GPU)
    samples = render(simulator, population)
    few = population.repeat(torch.arange(0, 40, 3, device=GPU))
    assert torch.equal(render(simulator, few), samples[::3])
    embedder = getattr(simulator, "embedder", None) or flatten
    assert torch.equal(embed(samples[::3], embedder, GPU), embed(samples, embedder, GPU)[::3])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_repeats_to_the_bit(name):
    assert finished(name, GPU).files() == finished(name, GPU).files()


def test_what_it_takes():
    """No bound: the figures are for the note above."""
    generator = torch.Generator().manual_seed(0)
    for d in (64, 512, 2048):
        rows, candidates = (torch.randn(60_000, d, generator=generator).to(GPU) for _ in range(2))
        for what in (lambda: nearest(rows, candidates), lambda: _bare(rows, candidates)):  # noqa: B023
            seconds = []
            for _ in range(4):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                what()
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begin)
            print(f"60,000 x 60,000, {d} dimensions: {sorted(seconds[1:])[1]:.3f} s")
    print(f"peak memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB; {torch.cuda.get_device_name()}")


def _bare(rows, candidates):
    """The product alone, in float32, and its minima."""
    return [(candidates @ part.T).amin(0) for part in torch.split(rows, 4096)]
