"""Text: what votes do for a small language model, in how well its texts teach a classifier.

    python benchmarks/text.py [--kind simpe] [--epsilon 1] [--rows 1500] [--seed 0]

Each row of the table (`compare.py` assembles it) is such a command: it writes benchmarks/results/text/NAME.json, and a
row that has its JSON is not made again. A run of simpe that was stopped goes on (runs/benchmark).

The private texts are messages that a grammar of public words makes, of four kinds whose names say little: a source of
texts must find out what they are about. Scores are the accuracy, on other messages of the grammar, of a linear
classifier and of the nearest neighbour in the sentence embedding. Kinds: simpe; random (Random alone, no private data);
prediction (a rival that lets the same model read the private texts: benchmarks/rivals/prediction.py).
"""

import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from rivals import prediction

import simpe
from simpe.privacy.ledger import Ledger
from simpe.simulators.foundation.language import LocalText
from simpe.simulators.foundation.text import classify, encode

RESULTS = Path(__file__).parent / "results" / "text"
LENGTH = 120
CLASSES = ("accounts", "logistics", "workshop", "front desk")
KEYWORDS = ("invoice", "parcel", "repair", "appointment", "customer", "price", "delay", "thanks")
_WHO = ("My neighbour", "Our office", "The school", "A customer", "My sister", "The team", "Somebody")
_WHEN = ("this morning", "last week", "yesterday", "on Monday", "two days ago", "after the holidays")
_DID = {
    "accounts": (
        ("was charged twice for", "cannot find the invoice of", "wants a refund for", "paid too much for"),
        ("the subscription", "the last order", "the insurance", "the gift card"),
    ),
    "logistics": (
        ("still waits for", "received the wrong", "never got", "signed for a broken"),
        ("parcel from the courier", "box of books", "delivery of furniture", "package from the warehouse"),
    ),
    "workshop": (
        ("asked us to repair", "needs a new part for", "brought back", "cannot switch on"),
        ("the washing machine", "an old bicycle", "the laptop screen", "the lawn mower"),
    ),
    "front desk": (
        ("would like to book", "had to cancel", "came too early for", "asked to move"),
        ("a table for six", "the meeting room", "an appointment with the doctor", "the guided tour"),
    ),
}


def messages(n, seed):
    """n messages, and their kinds: one in ten of the last, three in ten of each other."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(len(CLASSES), n, p=[0.3, 0.3, 0.3, 0.1])
    texts = []
    for kind in kinds:
        did, what = _DID[CLASSES[kind]]
        texts.append(f"{rng.choice(_WHO)} {rng.choice(did)} {rng.choice(what)} {rng.choice(_WHEN)}.")
    return texts, np.array(CLASSES)[kinds]


def made(args, source, texts, labels):
    """Texts of a row as samples, the kind of each, and settings."""
    if args.kind == "random":
        kinds = np.resize(np.arange(len(CLASSES)), args.samples)
        generator = torch.Generator().manual_seed(args.seed)
        return source.random_of(torch.from_numpy(kinds), generator)["text"], kinds, {}
    budget = simpe.Budget(args.epsilon, 1e-6)
    if args.kind == "prediction":
        found, named = prediction.synthesise(
            source, texts, labels, budget, Ledger(), np.random.default_rng(), tokens=args.tokens
        )
        kinds = np.array([CLASSES.index(name) for name in named])
        return encode(found, LENGTH), kinds, {"tokens": args.tokens, "clip": prediction.CLIP, "texts": found}
    folder = Path("runs/benchmark") / f"text-{args.epsilon:g}-{args.rows}-{args.samples}-{args.steps}-{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / "ledger.jsonl"  # a run that was stopped is replayed from it
    private = simpe.PrivateData(encode(texts, LENGTH), labels, budget=budget, classes=CLASSES, ledger=ledger)
    release = simpe.evolve(
        source, None, private, samples=args.samples, steps=args.steps, seed=args.seed, run_id="benchmark"
    )
    return release.samples, release.labels.numpy(), {"steps": args.steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("simpe", "random", "prediction"), default="simpe")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=prediction.TOKENS, help="that prediction draws of a class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    budget = [] if args.kind == "random" else [f"eps{args.epsilon:g}"]
    path = RESULTS / f"{'-'.join([args.kind, *budget, f'rows{args.rows}', f'seed{args.seed}'])}.json"
    if path.exists():
        print(f"{path} is there already")
        return
    torch.set_num_threads(1)
    source = LocalText(classes=CLASSES, about="short message at work", keywords=KEYWORDS, length=LENGTH)
    texts, labels = messages(args.rows, args.seed)
    real, truth = messages(1000, args.seed + 1000)
    tests = source.embedder(encode(real, LENGTH)).numpy()
    source._loaded  # noqa: B018, so that no row counts it
    began = time.time()
    samples, kinds, settings = made(args, source, texts, labels)
    seconds = round(time.time() - began)
    scores = classify(source.embedder(samples).numpy(), np.array(CLASSES)[kinds], tests, truth)
    row = {"what": args.kind, "rows": args.rows, "samples": len(kinds), "seed": args.seed}
    row |= {"epsilon": args.epsilon} if budget else {}
    row |= settings | scores | {"seconds": seconds, "date": datetime.date.today().isoformat()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
