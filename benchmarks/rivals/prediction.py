"""Private prediction: a language model reads the private texts themselves, and writes by what all of them say together.

Token by token (Amin et al., "Private prediction for large-scale synthetic text generation", Findings of EMNLP 2024):
each private text of a class stands in a prompt of its own; the logits that the model gives after each are clipped and
summed; and the next token is drawn from the softmax of the sum, which is an exponential mechanism. Simpler than theirs
in two ways, so that the proof stays short: a class is one batch, and every token is paid for (they get tokens on which
a model without private texts agrees for nothing, by the sparse vector technique).

**Guarantee.** (epsilon, delta)-DP for adding or removing one text, whose label is part of it; labels, ``clip``,
``tokens`` and what the model says without private texts are public.

1. A text's clipped logits lie in [-clip, clip], and depend on this text and the tokens drawn so far alone. Adding the
   text adds ``weight`` times them to the scores of its class. The log-probability of a token then moves by that, less a
   number that is the same for all tokens: by at most 2 clip weight more for one token than for another. A draw of such
   bounded range is (clip weight)^2 / 2-zCDP (Dong, Durfee and Rogers, ICML 2020; Cesar and Rogers, ALT 2021).
2. Which tokens are candidates, when a text ends and how often a class begins anew depends on drawn tokens and public
   logits alone. A class draws ``tokens`` tokens at most, so with adaptive composition it costs
   tokens (clip weight)^2 / 2 = 1 / (2 sigma^2).
3. A text belongs to one class and another class's tokens do not depend on it: the classes cost no more together.

The whole is one charge of rho = 1 / (2 sigma^2) on a ledger of simpe, admitted before a text is read. Rows are read in
blocks of one shape, yet (1) holds up to the rounding of floating point, in which the tokens are drawn, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from simpe.privacy.accounting import Budget, Charge, calibrate
from simpe.privacy.ledger import Ledger
from simpe.simulators.foundation.language import LocalText

CLIP = 5.0  # nats
TOKENS = 48  # that a class draws
WORDS = 32  # tokens of a private text that are read
RUN, ADDRESS = "private prediction", "tokens"


def clipped(logits: Tensor, clip: float) -> Tensor:
    """Logits (rows, tokens) moved so that a row's largest is ``clip``, and none less than -``clip``."""
    return (logits - logits.max(dim=1, keepdim=True).values + clip).clamp(min=-clip)


def charged(budget: Budget, tokens: int, clip: float) -> tuple[Charge, float]:
    """The one charge that uses up the budget, and the weight of a text's clipped logits that it pays for."""
    (sigma,) = calibrate(budget, (1.0,), one_bin=False)
    return Charge(sigma, 1, one_bin=False), 1 / (sigma * clip * np.sqrt(tokens))


class Readers:
    """The network after each of some texts, and after the tokens that were drawn since.

    ``frame``: tokens before and behind a text. Texts are cut at ``words`` tokens; all rows get one length.
    """

    def __init__(self, source: LocalText, texts: Sequence[str], frame: tuple[list[int], list[int]], words: int):
        self._tokenizer, self._network = source._loaded
        before, behind = frame
        cut = [self._tokenizer.encode(text, add_special_tokens=False)[:words] for text in texts]
        rows = [before + text + behind for text in cut]
        rows += [before + behind] * (-len(rows) % source.batch or (not rows) * source.batch)  # blocks of one shape
        self.count, size = len(texts), len(before) + words + len(behind)
        ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])
        self._size, self._masks, self._caches, found = size, list(mask.split(source.batch)), [], []
        for block, seen in zip(ids.split(source.batch), self._masks, strict=True):
            out = self._forward(block, seen, None)
            self._caches.append(out.past_key_values)
            found.append(out.logits[:, -1].float())
        self._begin = self.logits = torch.cat(found)[: self.count]  # (texts, vocabulary)

    def feed(self, token: int) -> None:
        """Let all read one more token."""
        found = []
        for i, cache in enumerate(self._caches):
            self._masks[i] = torch.cat([self._masks[i], torch.ones_like(self._masks[i][:, :1])], dim=1)
            block = torch.full((len(self._masks[i]), 1), token)
            found.append(self._forward(block, self._masks[i], cache).logits[:, -1].float())
        self.logits = torch.cat(found)[: self.count]

    def rewind(self) -> None:
        """Forget what was fed."""
        for i, cache in enumerate(self._caches):
            fed = self._masks[i].shape[1] - self._size
            if fed:
                cache.crop(-fed)
            self._masks[i] = self._masks[i][:, : self._size]
        self.logits = self._begin

    def _forward(self, ids: Tensor, mask: Tensor, cache: object) -> object:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.no_grad():
            return self._network(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip


def draw(scores: Tensor, rng: np.random.Generator) -> int:
    """An index with probability in proportion to exp(score), by Gumbel noise."""
    return int(np.argmax(scores.numpy() + rng.gumbel(size=len(scores))))


def write(
    source: LocalText, texts: Sequence[str], label: str, weight: float, clip: float, tokens: int,
    rng: np.random.Generator,
) -> list[str]:  # fmt: skip
    """The whole texts among ``tokens`` tokens drawn for a class."""
    tokenizer, kinds = source._loaded[0], source._kinds
    kind = f"A {source.about} ({label}):" if label else f"A {source.about}:"
    frame = tokenizer.encode(kind, add_special_tokens=False), tokenizer.encode("\n" + kind, add_special_tokens=False)
    private = Readers(source, texts, frame, WORDS)
    public = Readers(source, [""], frame, WORDS)
    names = tokenizer.convert_ids_to_tokens(list(range(public.logits.shape[1])))
    ends = torch.tensor([i in kinds.ends or "Ċ" in (name or "") for i, name in enumerate(names)])  # Ċ: a line's end
    found, own, most = [], [], source.length // 4 + 1
    for _ in range(tokens):
        allowed = kinds.text if own else kinds.text & ~ends
        among = public.logits[0].masked_fill(~allowed, -torch.inf).topk(source.top).indices
        scores = weight * clipped(private.logits[:, among], clip).double().sum(0)
        token = int(among[draw(scores, rng)])
        if ends[token] or len(own) + 1 >= most:
            found.append(" ".join(tokenizer.decode(own).split()))
            own = []
            private.rewind()
            public.rewind()
        else:
            own.append(token)
            private.feed(token)
            public.feed(token)
    return [text for text in found if text]


def synthesise(
    source: LocalText, texts: Sequence[str], labels: Sequence[str], budget: Budget, ledger: Ledger,
    rng: np.random.Generator, clip: float = CLIP, tokens: int = TOKENS,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Texts of the source's classes, and their labels; as many as end within ``tokens`` tokens of each class.

    Raises BudgetExceeded before any text is read where the ledger has no room for the charge.
    """
    charge, weight = charged(budget, tokens, clip)
    with ledger.locked():
        ledger.bind(ledger.key(), {"unit": "row", "k": 1, "relation": budget.relation, "delta": budget.delta})
        ledger.open_run(RUN, {"budget": asdict(budget)}, lambda: {ADDRESS: charge})
        ledger.admit(RUN, ADDRESS, charge, budget)
        made, named = [], []
        for label, seeded in zip(source.classes, rng.spawn(len(source.classes)), strict=True):
            own = [text for text, its in zip(texts, labels, strict=True) if its == label]
            new = write(source, own, label, weight, clip, tokens, seeded)
            made, named = made + new, named + [label] * len(new)
        record = {"run": RUN, "address": ADDRESS, "charge": asdict(charge), "texts": made}
        ledger.append({"type": "release", **record})
    return made, named
