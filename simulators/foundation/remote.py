"""Text and images over an API that speaks as OpenAI's does, at any address: a provider's, or a server of one's own.

What is sent are public prompts, and samples that the model made itself and noisy votes chose: post-processing. Nothing
private is ever given to these sources, so nothing private can be sent.

Every answer that was paid for is kept in a file, under the hash of what was asked, seed included: a run that is resumed
asks again, is answered from the file, and so is the same run. Without the file it is another run, which the ledger
refuses to go on with.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simpe.embedders.images import Photographs
from simpe.errors import InputError
from simpe.protocols import Embedder
from simpe.rendering import Blocks, Slow
from simpe.simulators.foundation.text import LENGTH, Draft, Text, check_template, templates_of
from simpe.space import Opaque, ParameterSpace, Params

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key, where no other is named."""

_INSTALL = "pip install 'simpe[api]'"
_LONGEST = 32 << 20  # bytes of a reply
_CHUNK = 1 << 16
_TRIES = 3  # of a request whose reply is of no use
_OVERHEAD = 200  # tokens of a request besides its words, at most
_REFUSED = {401: "refused the key", 403: "refused the key", 404: "knows no such model or path"}


@dataclass(frozen=True)
class Request:
    """What is asked: ``path`` of the API, "chat" or "images"; ``body``, which goes as JSON, or with ``image`` (a PNG)
    as a form; ``seed``, which tells equal requests apart; ``most``, what it can cost at most; and ``form`` of what is
    kept of the reply."""

    path: str
    body: Mapping[str, Any]
    seed: int
    image: bytes | None = None
    most: float = 0.0
    form: str = ""

    def key(self, base_url: str) -> str:
        """SHA-256 of what is asked, and of whom."""
        asked = json.dumps([base_url, self.path, self.body, self.seed, self.form], sort_keys=True).encode()
        return hashlib.sha256(asked + b"\0" + (self.image or b"")).hexdigest()


Use = Callable[[Any], tuple[Any, float | None]]
"""Takes the JSON of a reply: what is kept of it, which fits into JSON, and what it cost, or None where it does not say.
Raises _Useless."""


class _Useless(Exception):
    """Why a reply is of no use."""


@dataclass
class Api:
    """An API and how it may be used.

    - ``base_url``: such as "https://api.openai.com/v1". ``model``: its name there.
    - ``cache``: the file of what was answered, made if it is not there. Keep it with the run.
    - ``key``: environment variable that holds the key; "" where none is needed. The key is never stored.
    - ``workers``: requests at a time; ``per_minute``: requests begun in a minute, at most, 0 for no limit.
    - ``timeout``: seconds for a reply; ``retries``: of a request that fails in passing (no connection, too many
      requests, the server's fault), with growing pauses, or those that the server asks for.
    - ``cap``: what all requests together, those in the cache too, may cost, in the currency of the prices; None for
      no limit.

    Raises InputError where something does not fit, or the variable of the key is not set.
    """

    base_url: str
    model: str
    cache: str | Path
    key: str = KEY
    workers: int = 8
    per_minute: float = 0.0
    timeout: float = 120.0
    retries: int = 6
    cap: float | None = None
    _lock: Any = field(default_factory=threading.RLock, repr=False)
    _next: float = 0.0
    _reserved: float = 0.0

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.base_url)
            plain = address.scheme in ("http", "https") and address.hostname and not address.username
        except ValueError:
            plain = False
        if not plain or address.query or address.fragment:
            raise InputError("base_url must be an address such as https://api.openai.com/v1, without a key in it")
        if not self.model:
            raise InputError("model is missing: name one that the API has")
        if not (1 <= self.workers <= 256 and self.per_minute >= 0 and self.timeout > 0 and 0 <= self.retries <= 100):
            raise InputError("workers must lie between 1 and 256, retries between 0 and 100, timeout above 0")
        if self.cap is not None and not self.cap >= 0:
            raise InputError(f"cap must not be negative, got {self.cap}")
        if self.key and not os.environ.get(self.key):
            raise InputError(f"the environment variable {self.key} is not set: put the API's key there")

    def ask(self, requests: Sequence[Request], use: Use, progress: Blocks) -> list[Any]:
        """What is kept of the reply to each request: from the cache, or asked for, several at a time.

        ``progress`` is told how many requests were answered, and of how many.

        Raises InputError where the API fails for good or the cap is reached; what was answered by then is kept.
        """
        keys = [request.key(self.base_url) for request in requests]
        known = {key: kept for key in set(keys) if (kept := self._cached(key)) is not None}
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        if new:
            with self._client() as client:
                pool = ThreadPoolExecutor(self.workers)
                try:
                    jobs = {key: pool.submit(self._answer, client, key, request, use) for key, request in new.items()}
                    for done, (key, job) in enumerate(jobs.items()):
                        progress(done, len(jobs))
                        known[key] = job.result()
                    progress(len(jobs), len(jobs))
                finally:
                    pool.shutdown(cancel_futures=True)
        return [known[key] for key in keys]

    @property
    def spent(self) -> float:
        """What everything in the cache has cost."""
        found: float = self._execute("SELECT COALESCE(SUM(cost), 0) FROM costs")[0]
        return found

    def _answer(self, client: Any, key: str, request: Request, use: Use) -> Any:
        reason = ""
        for attempt in range(_TRIES):
            self._reserve(request.most)
            cost = 0.0
            try:
                self._wait()
                reply = self._reply(client, request, attempt)
                cost = request.most  # where the reply does not say
                kept, said = use(reply)
                cost = cost if said is None else said
                self._keep(key, kept)
                return kept
            except _Useless as error:
                reason, cost = str(error), request.most  # the worst is assumed
            finally:
                self._settle(request.most, cost)
        raise InputError(f"the API's reply {reason}, {_TRIES} times; what was answered is kept: simpe resume DIR")

    def _reply(self, client: Any, request: Request, attempt: int) -> Any:
        """The JSON of a reply, read up to a limit of size and time."""
        import openai

        until = time.monotonic() + self.timeout
        received = bytearray()
        later = "; what was answered is kept: simpe resume DIR"
        try:
            with _begin(client, request, attempt) as response:
                for chunk in response.iter_bytes(_CHUNK):
                    received += chunk
                    if len(received) > _LONGEST:
                        raise _Useless(f"is longer than {_LONGEST >> 20} MB")
                    if time.monotonic() > until:
                        raise InputError(f"the API took longer than {self.timeout:g} s for a reply{later}")
        except (InputError, _Useless):
            raise
        except openai.APITimeoutError:
            raise InputError(f"the API took longer than {self.timeout:g} s for a reply{later}") from None
        except openai.APIStatusError as error:  # its own words may repeat the key
            status = f"(status {error.status_code})"
            if error.status_code in _REFUSED:
                what = f"{_REFUSED[error.status_code]} {status}; see base_url, the model and the variable {self.key}"
                raise InputError(f"the API {what}") from None
            raise InputError(f"the API refuses requests {status}{later}") from None
        except openai.APIConnectionError:
            raise InputError(f"the API at {self.base_url} cannot be reached{later}") from None
        except Exception:  # the connection ended in the middle of the reply
            raise _Useless("is truncated") from None
        try:
            return json.loads(received)
        except (ValueError, RecursionError):
            raise _Useless("is empty" if not received.strip() else "is truncated, or no JSON") from None

    def _client(self) -> Any:
        try:
            import openai
        except ImportError:
            raise InputError(f"an API is asked with the package openai: {_INSTALL}") from None
        key = os.environ.get(self.key, "") if self.key else ""
        return openai.OpenAI(
            api_key=key or "none", base_url=self.base_url, timeout=self.timeout, max_retries=self.retries
        )

    def _wait(self) -> None:
        """Until the next request may begin."""
        if not self.per_minute:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + 60 / self.per_minute
        time.sleep(begin - now)

    def _reserve(self, most: float) -> None:
        with self._lock:
            spent = self.spent
            if self.cap is not None and spent + self._reserved + most > self.cap:
                raise InputError(
                    f"the next request could cost more than the cap of {self.cap:g} leaves ({spent:.4g} is spent); "
                    "raise cap in private/config.toml, then: simpe resume DIR"
                )
            self._reserved += most

    def _settle(self, most: float, cost: float) -> None:
        with self._lock:
            self._reserved -= most
            self._execute("INSERT INTO costs VALUES (?)", cost)

    def _cached(self, key: str) -> Any:
        row = self._execute("SELECT kept FROM replies WHERE key = ?", key)
        return None if row is None else json.loads(row[0])

    def _keep(self, key: str, kept: Any) -> None:
        self._execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, json.dumps(kept))

    def _execute(self, statement: str, *values: Any) -> Any:
        """The first row that a statement on the cache finds."""
        try:
            with self._lock:
                return self._store.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise InputError(f"{self.cache}: cannot keep replies there ({error}); free space or mend it") from None

    @cached_property
    def _store(self) -> sqlite3.Connection:
        store = sqlite3.connect(self.cache, timeout=60, check_same_thread=False, isolation_level=None)
        store.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, kept TEXT)")
        store.execute("CREATE TABLE IF NOT EXISTS costs (cost REAL)")
        return store


def _begin(client: Any, request: Request, attempt: int) -> Any:
    """A reply that is being received, in a context."""
    if request.path == "chat":
        asked = {**request.body, "seed": request.seed + attempt}
        return client.chat.completions.with_streaming_response.create(**asked)
    images = client.images.with_streaming_response
    if request.image is None:
        return images.generate(**request.body)
    return images.edit(image=("image.png", request.image, "image/png"), **request.body)


class RemoteText(Text):
    """Texts of a language model behind an API.

    ``api``: an :class:`Api`, or its fields as a mapping. ``prices``: of a million tokens asked, and answered; a
    cap needs them. ``parameters``: what else each request holds; without them a temperature of 1 and as many tokens
    as a text can need. The rest are those of :class:`Text`. The API is told a seed, and need not heed it.

    Raises InputError where something does not fit.
    """

    def __init__(
        self,
        api: Api | Mapping[str, Any],
        prices: tuple[float, float] = (0.0, 0.0),
        parameters: Mapping[str, Any] | None = None,
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
        self._api = _api(api)
        self.parameters = dict(parameters or {"temperature": 1.0, "max_tokens": length})
        if len(prices) != 2 or min(prices) < 0:
            raise InputError("prices are two: of a million tokens asked, and of a million answered")
        self._prices = (prices[0] / 1e6, prices[1] / 1e6)
        limits = [self.parameters[name] for name in ("max_tokens", "max_completion_tokens") if name in self.parameters]
        if self._api.cap is not None and not (limits and max(prices) > 0):
            raise InputError("a cap needs prices, and max_tokens or max_completion_tokens among the parameters")
        self._most = max(limits, default=0)

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """An answer to each prompt."""
        asked = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            body = {"model": self._api.model, "messages": [{"role": "user", "content": prompt}]}
            most = (len(prompt.encode()) + _OVERHEAD) * self._prices[0] + self._most * self._prices[1]
            asked.append(Request("chat", {**self.parameters, **body}, seed, most=most))
        found: list[str] = self._api.ask(asked, self._use, partial(self.progress, "asking the API for texts"))
        return found

    def fill(self, drafts: Sequence[Draft], labels: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Each draft with its blanks filled in."""
        more = " Answer with the whole text and nothing else."
        return self.write(
            [self.to_fill(draft, label, more) for draft, label in zip(drafts, labels, strict=True)], seeds
        )

    def public_inputs(self) -> dict[str, Any]:
        """The API's address, its model, and what it is asked."""
        return {"simulator": "text-api", **_named(self._api), "parameters": self.parameters, **super().public_inputs()}

    def _use(self, reply: Any) -> tuple[str, float | None]:
        try:
            text = reply["choices"][0]["message"]["content"]
        except (TypeError, KeyError, IndexError):
            raise _Useless("is of the wrong type") from None
        if not isinstance(text, str):
            raise _Useless("is of the wrong type")
        if not text.strip():
            raise _Useless("is empty")
        usage = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        asked, answered = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(asked, int) and isinstance(answered, int) and min(asked, answered) >= 0):
            return text, None
        return text, asked * self._prices[0] + answered * self._prices[1]


class RemoteImages(Slow):
    """Images of a model behind an API: Random asks for one, Variation for a change of one.

    - ``api``: an :class:`Api`, or its fields as a mapping.
    - ``size``: pixels along each side of a sample. ``asked``: along each side of what the API makes, which is
      averaged down.
    - ``prompt``: what Random asks, with the field {label}; one for all classes, or one for each. ``change``: what
      Variation asks, with {label} too. The API has no strength; a change is made at any above 0.
    - ``classes``: in label order; none where images have no labels. ``colour``: False for grey samples.
    - ``price``: of an image, which a cap needs. ``parameters``: what else each request holds.

    Samples are uint8 (n, size, size, 3), or (n, size, size) where grey.

    Raises InputError where something does not fit.
    """

    def __init__(
        self,
        api: Api | Mapping[str, Any],
        size: int,
        prompt: str | Mapping[str, str],
        change: str = "The same kind of picture, a little different.",
        asked: int = 1024,
        classes: Sequence[str] = (),
        colour: bool = True,
        price: float = 0.0,
        parameters: Mapping[str, Any] | None = None,
    ):
        if not 4 <= size <= asked <= 4096:
            raise InputError(f"size must lie between 4 and what is asked for ({asked}), got {size}")
        self.classes = tuple(classes)
        self.prompt, self.change = prompt, change
        self._prompts = templates_of("prompt", prompt, self.classes or ("",), ("label",))
        check_template("change", change, ("label",))
        self._api = _api(api)
        if self._api.cap is not None and not price > 0:
            raise InputError("a cap needs the price of an image")
        self.price = price
        self.size, self.asked, self.colour = (size, size), asked, colour
        self.parameters = dict(parameters or {})
        self.space = ParameterSpace(image=Opaque((size, size, 3) if colour else (size, size), torch.uint8))
        self.embedder = Photographs() if colour else None

    def random_of(self, labels: Tensor, generator: torch.Generator) -> Params:
        """Random: an image for each label."""
        prompts = [self._prompts[label].format(label=self._name(label)) for label in labels.tolist()]
        return {"image": self._images(prompts, [None] * len(prompts), generator)}

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation: the images changed; as they are at strength 0."""
        if strength <= 0:
            return {"image": p["image"].clone()}
        prompts = [self.change.format(label=self._name(label)) for label in p["label"].tolist()]
        given = [self._png(image) for image in p["image"].cpu().numpy()]
        return {"image": self._images(prompts, given, generator).to(p["image"].device)}

    def render(self, p: Params) -> Tensor:
        """The images."""
        return p["image"]

    def adopt(self, samples: Tensor, p: Params) -> Params:
        """Images that another source made.

        Raises InputError where they have another shape.
        """
        if (
            samples.dtype != torch.uint8
            or samples.shape[1:] != self.space.sample(0, torch.Generator())["image"].shape[1:]
        ):
            raise InputError(f"a source of {self.size[0]} x {self.size[1]} images can go on from such images alone")
        return {"image": samples}

    def public_inputs(self) -> dict[str, Any]:
        """The API's address, its model, and what it is asked."""
        asked: dict[str, Any] = {
            "prompt": self.prompt,
            "change": self.change,
            "asked": self.asked,
            "size": list(self.size),
        }
        asked |= {"classes": list(self.classes), "parameters": self.parameters}
        return {"simulator": "images-api", **_named(self._api), **asked, "colour": self.colour}

    def _images(self, prompts: Sequence[str], given: Sequence[bytes | None], generator: torch.Generator) -> Tensor:
        seeds = torch.randint(2**31 - 1, (len(prompts),), generator=generator).tolist()
        shape, form = f"{self.asked}x{self.asked}", f"{self.size} {self.colour}"
        asked = []
        for prompt, image, seed in zip(prompts, given, seeds, strict=True):
            body = {**self.parameters, "model": self._api.model, "prompt": prompt, "size": shape, "n": 1}
            asked.append(Request("images", body, seed, image, self.price, form))
        replies = self._api.ask(asked, self._use, partial(self.progress, "asking the API for images"))
        made = [base64.b64decode(kept) for kept in replies]
        images = [np.asarray(Image.open(io.BytesIO(png))) for png in made]
        shape_of_one = self.space.sample(0, generator)["image"].shape[1:]
        return torch.from_numpy(np.stack(images)) if images else torch.zeros((0, *shape_of_one), dtype=torch.uint8)

    def _use(self, reply: Any) -> tuple[str, float]:
        """A PNG of the sample, in base 64."""
        try:
            sent = reply["data"][0]["b64_json"]
        except (TypeError, KeyError, IndexError):
            raise _Useless("is of the wrong type") from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                image = Image.open(io.BytesIO(base64.b64decode(sent, validate=True)), formats=("PNG", "JPEG", "WEBP"))
                size = image.size
                small = image.convert("RGB" if self.colour else "L").resize(self.size, Image.Resampling.BOX)
        except Exception:  # Pillow has many
            raise _Useless("holds no image") from None
        if size != (self.asked, self.asked):
            raise InputError(
                f"the API made an image of {size[0]} x {size[1]}, not {self.asked} x {self.asked}; set asked"
            )
        return self._encoded(small), self.price

    def _png(self, sample: np.ndarray) -> bytes:
        image = Image.fromarray(sample).convert("RGB").resize((self.asked, self.asked), Image.Resampling.BICUBIC)
        return base64.b64decode(self._encoded(image))

    @staticmethod
    def _encoded(image: Image.Image) -> str:
        file = io.BytesIO()
        image.save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode()

    def _name(self, label: int) -> str:
        return self.classes[label] if self.classes else ""


def _api(api: Api | Mapping[str, Any]) -> Api:
    try:
        return api if isinstance(api, Api) else Api(**api)
    except TypeError:
        fields = "base_url, model, cache, key, workers, per_minute, timeout, retries, cap"
        raise InputError(f"api: its fields are {fields}; the first three must be given") from None


def _named(api: Api) -> dict[str, Any]:
    return {"base_url": api.base_url, "model": api.model}
