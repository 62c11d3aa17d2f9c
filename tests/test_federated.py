"""Federations: members in this process answer the very bytes that they would answer over a network."""

import numpy as np
import pytest
import torch
from support import Oscillator, addressed_noise

import simpe
from simpe import PrivateData, Strategy
from simpe.config import make_config
from simpe.federated import commands
from simpe.federated.member import Member, Room
from simpe.rows import Arrays

STRATEGY = Strategy(start=5, places=6, children=2)


def rows(seed=5, n=90):
    generator = torch.Generator().manual_seed(seed)
    return Oscillator().render(Oscillator.space.sample(n, generator)).numpy()


def agreement(out, trust="central", epsilon=4.0, steps=2, classes="0,1", **federation):
    return make_config(
        simulator="support:Oscillator",
        epsilon=epsilon,
        samples=30,
        steps=steps,
        classes=classes,
        out=out,
        strategy=STRATEGY,
        federation={"trust": trust, "clients": 3, "rows": 100, **federation},
    )


def members(config, parts=((0, 20), (20, 61), (61, 90)), tmp_path=None, **options):
    whole = rows()
    found = []
    for number, (start, stop) in enumerate(parts):
        own = Arrays(whole[start:stop], np.arange(start, stop) % 2, None)
        ledger = None if tmp_path is None else tmp_path / f"{number}.jsonl"
        found.append(Member(config, [own], ledger=ledger, **options))
    return found


def test_central_votes_are_those_of_one_data_set(tmp_path):
    config = agreement(tmp_path / "run")
    release = commands.start(config, Room(members(config)), noise=addressed_noise)
    private = PrivateData(
        rows(), np.arange(90) % 2, budget=simpe.Budget(4.0), classes=["0", "1"], noise=addressed_noise
    )
    alone = simpe.evolve(Oscillator(), None, private, samples=30, steps=2, strategy=STRATEGY)
    assert torch.equal(release.samples, alone.samples)


@pytest.mark.parametrize("unit", ["row", "client"])
@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_every_model_makes_a_release(tmp_path, trust, unit):
    config = agreement(tmp_path / "run", trust, unit=unit)
    release = commands.start(config, Room(members(config)))
    assert release.certificate["private"]
    assert release.certificate["parties"]["trust"] == trust
    assert len(release.samples) == 30
