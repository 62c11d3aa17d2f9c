"""What the tests of devices run: each source and each kind of run, small, on a device and on the CPU."""

import functools
from dataclasses import replace

import torch
from support import Oscillator, addressed_noise

from simpe import Budget, PrivateData, Stage, Strategy, evolve
from simpe.population import Population
from simpe.rendering import random, render
from simpe.simulators.avatars import Avatars
from simpe.simulators.digits import Digits
from simpe.simulators.drawtext import DrawText
from simpe.simulators.faces.simulator import Faces
from simpe.simulators.gallery import Gallery
from simpe.simulators.given import Given
from simpe.simulators.network.sessions import Sessions
from simpe.simulators.network.traces import Traces
from simpe.stages import Mixture


def noise_images():
    return torch.randint(256, (40, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mixture():
    return Mixture([Digits(size=8, shapes="strokes"), Digits(size=8, shapes="typefaces")])


SOURCES = {
    "digits": lambda: Digits(size=8),
    "draw-text": DrawText,
    "avatars": lambda: Avatars(size=32, frame="face"),
    "faces": Faces,
    "gallery": lambda: Gallery(noise_images()),
    "given": lambda: Given(noise_images()),
    "flows": Traces,
    "sessions": Sessions,
    "mixture": mixture,
}
RUNS = {
    "as it is": (Oscillator, 3, {"steps": 2}),
    "lookahead": (Oscillator, 3, {"steps": 2, "strategy": Strategy(lookahead=2)}),
    "as published": (Oscillator, 3, {"steps": 2, "strategy": Strategy(elitist=False, start=1)}),
    "three votes": (Oscillator, 3, {"steps": 2, "strategy": Strategy(neighbours=3, metric="cosine")}),
    "marginals": (Oscillator, 3, {"steps": 1, "strategy": Strategy(marginals=0.5, support=3)}),
    "stages": (Oscillator, 3, {"steps": 2, "adaptive": True, "then": [Stage(Oscillator(), steps=2)]}),
    "digits": (SOURCES["digits"], 10, {"steps": 2}),
    "given": (SOURCES["given"], 1, {}),
    "mixture": (mixture, 10, {"steps": 2}),
    "flows": (Traces, 1, {"steps": 1, "strategy": replace(Traces().strategy, support=3)}),
}


def drawn(simulator, n=20, classes=3):
    """What Random draws, on the CPU."""
    labels = torch.arange(n) % classes
    params = random(simulator, labels, torch.Generator().manual_seed(1))
    return Population(params, labels, torch.full_like(labels, -1))


@functools.cache
def private_rows(name):
    simulator, classes, _ = RUNS[name]
    population = drawn(simulator(), 120, classes)
    return render(simulator(), population).numpy(), population.labels.numpy() if classes > 1 else None


def finished(name, device):
    """The release of a run on a device, its noise a test's."""
    simulator, classes, options = RUNS[name]
    samples, labels = private_rows(name)
    names = [str(i) for i in range(classes)] if classes > 1 else None
    private = PrivateData(samples, labels, budget=Budget(20.0), classes=names, noise=addressed_noise)
    return evolve(simulator(), None, private, samples=40, seed=3, device=device, **options)
