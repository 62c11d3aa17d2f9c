"""Images by diffusion models, which diffusers runs: unconditional or by class, and from text.

Random denoises noise. Variation of an image adds noise to it, as much as its strength says, and denoises that, as
Private Evolution varies images with a foundation model (Lin et al., ICLR 2024, 5; SDEdit: Meng et al., ICLR 2022).
Sampling is by DDIM without noise of its own (Song et al., ICLR 2021) where the model is unconditional, so all that is
random in an image is the noise that it begins with, and that follows from a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simpe.embedders.images import Photographs, PixelsAndGradients
from simpe.errors import InputError
from simpe.protocols import Embedder
from simpe.rendering import Slow
from simpe.simulators.foundation import models
from simpe.simulators.foundation.text import templates_of
from simpe.space import Opaque, ParameterSpace, Params

_INSTALL = "pip install 'simpe[diffusion]'"
_MAKING = "making images"


class _Images(Slow):
    """What the sources of images here share: batches, seeds, and images as parameters."""

    classes: tuple[str, ...]
    size: tuple[int, int]
    colour: bool
    batch: int

    def _settle(self, size: tuple[int, int], colour: bool, embedder: Embedder | None = None) -> None:
        self.size, self.colour = size, colour
        self.space = ParameterSpace(image=Opaque((*size, 3) if colour else size, torch.uint8))
        own: Any = Photographs() if colour else PixelsAndGradients()
        self.embedder: Embedder = embedder or own

    def random_of(self, labels: Tensor, generator: torch.Generator) -> Params:
        """Random: an image for each label."""
        return {"image": self._all(None, labels.cpu(), 1.0, generator)}

    def variation(self, p: Params, strength: float, generator: torch.Generator) -> Params:
        """Variation: each image with noise up to ``strength``, in [0, 1], of the way, denoised; as it is at 0."""
        if strength <= 0:
            return {"image": p["image"].clone()}
        made = self._all(p["image"].cpu(), p["label"].cpu(), min(1.0, strength), generator)
        return {"image": made.to(p["image"].device)}

    def render(self, p: Params) -> Tensor:
        """The images, uint8 (n, h, w) or (n, h, w, 3)."""
        return p["image"]

    def adopt(self, samples: Tensor, p: Params) -> Params:
        """Images that another source made, to be varied by this one.

        Raises InputError where they have another size, or colours where these have none.
        """
        wanted = (*self.size, 3) if self.colour else self.size
        if samples.dtype != torch.uint8 or tuple(samples.shape[1:]) != wanted:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (wanted, samples.shape[1:]))
            raise InputError(f"the model makes images of {ours}, and cannot go on from {theirs}; give one of that size")
        return {"image": samples}

    def _all(self, images: Tensor | None, labels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        seeds = torch.randint(2**62, (len(labels),), generator=generator).tolist()
        made = []
        with torch.no_grad():
            for part in _parts(len(labels), self.batch):
                self.progress(_MAKING, part.start, len(labels))
                with models.working(_MAKING):
                    given = None if images is None else images[part]
                    made.append(self._block(given, labels[part], strength, seeds[part]))
        self.progress(_MAKING, len(labels), max(1, len(labels)))
        return torch.cat(
            [torch.zeros((0, *self.space.sample(0, generator)["image"].shape[1:]), dtype=torch.uint8), *made]
        )

    def _block(self, images: Tensor | None, labels: Tensor, strength: float, seeds: Sequence[int]) -> Tensor:
        """Images uint8 of one batch: new ones, or changed ones."""
        raise NotImplementedError

    def _bytes(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> uint8, without colours where these have none."""
        levels = (images.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        if self.colour:
            return levels.contiguous()
        return levels[..., 0] if levels.shape[3] == 1 else levels.float().mean(3).round().to(torch.uint8)

    def _levels(self, images: Tensor) -> Tensor:
        """The way back, with as many channels as there are."""
        return (images[..., None] if images.ndim == 3 else images).permute(0, 3, 1, 2).float() / 255

    def _named(self, model: str | Path, place: Path | None) -> dict[str, Any]:
        if place is not None:
            return {"files": models.fingerprint(place)}
        return {"hub": str(model)}


class Diffusion(_Images):
    """Images of a diffusion model without text: of the classes that it was trained with, or of none.

    >>> source = Diffusion("ddpm-digits", classes="0123456789")

    - ``model``: a folder as diffusers saves a DDPM or DDIM pipeline (``unet/`` and ``scheduler/``), or the id of one on
      the Hugging Face hub.
    - ``classes``: in label order, as the model was trained with them; a model without classes draws any for all.
    - ``steps``: of denoising, from pure noise. ``batch``: images made side by side.
    - ``dtype``: float32, bfloat16 or float16. ``device``: cpu or cuda.
    - ``colour``: whether its images have colours; says how a folder of private images is read.

    An image follows from its seed and, by rounding, from what is computed beside it; so a run is resumed on a machine
    of the same kind.

    Raises InputError where a file of the model is missing, or it is of another kind.
    """

    def __init__(
        self,
        model: str | Path,
        classes: Sequence[str] = (),
        steps: int = 25,
        batch: int = 64,
        dtype: str = "float32",
        device: str = "cpu",
        colour: bool = False,
        embedder: Embedder | None = None,
    ):
        models.check_device(dtype, device)
        if not (1 <= steps <= 1000 and 1 <= batch <= 65536):
            raise InputError("steps must lie between 1 and 1000, batch between 1 and 65536")
        self._place = models.located(
            model, ("unet/config.json", "unet/*.safetensors", "scheduler/scheduler_config.json")
        )
        self._model = model
        self.classes = tuple(classes)
        self.steps, self.batch = steps, batch
        self.dtype, self.device = dtype, device
        config = self._loaded[0].config
        if config.in_channels != config.out_channels or config.in_channels not in (1, 3):
            raise InputError(
                f"{model}: has {config.in_channels} channels in and {config.out_channels} out; needs 1 or 3"
            )
        if colour != (config.in_channels == 3):
            raise InputError(
                f"{model}: makes images with{'' if config.in_channels == 3 else 'out'} colours; set colour"
            )
        self._kinds: int = config.num_class_embeds or 0
        if 0 < self._kinds < len(self.classes):
            raise InputError(f"{model}: knows {self._kinds} classes, not {len(self.classes)}")
        side = config.sample_size
        if side is None:
            raise InputError(f"{model}: does not say the size of its images (sample_size in unet/config.json)")
        self._settle((side, side) if isinstance(side, int) else (int(side[0]), int(side[1])), colour, embedder)

    def public_inputs(self) -> dict[str, Any]:
        """The model by the SHA-256 of its files, and how it is sampled."""
        how = {name: getattr(self, name) for name in ("steps", "batch", "dtype")}
        named = self._named(self._model, self._place)
        return {"simulator": "diffusion", "model": named, **how, "classes": list(self.classes)}

    def _block(self, images: Tensor | None, labels: Tensor, strength: float, seeds: Sequence[int]) -> Tensor:
        network, scheduler = self._loaded
        scheduler.set_timesteps(self.steps)
        going = max(1, round(self.steps * strength))
        times = scheduler.timesteps[self.steps - going :]
        channels = 3 if self.colour else 1
        noise = torch.stack([torch.randn((channels, *self.size), generator=g) for g in _generators(seeds)])
        x = noise if images is None else scheduler.add_noise(self._levels(images) * 2 - 1, noise, times[:1])
        kinds = {"class_labels": labels.to(self.device)} if self._kinds else {}
        for time in times:
            taken = x.to(self.device, network.dtype)
            x = scheduler.step(network(taken, time, **kinds).sample.float().cpu(), time, x, eta=0.0).prev_sample
        return self._bytes(x / 2 + 0.5)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Network and scheduler."""
        with models.loading(self._model, "diffusion model", _INSTALL):
            import diffusers

            models.quiet(diffusers)
            where = {"pretrained_model_name_or_path": str(self._model), "local_files_only": self._place is not None}
            network = diffusers.UNet2DModel.from_pretrained(**where, subfolder="unet", use_safetensors=True)
            scheduler = diffusers.DDIMScheduler.from_pretrained(**where, subfolder="scheduler")
            return network.eval().to(self.device, getattr(torch, self.dtype)), scheduler


class TextToImage(_Images):
    """Images of a diffusion model that reads text, such as Stable Diffusion.

    - ``model``: a folder as diffusers saves such a pipeline, or the id of one on the Hugging Face hub.
    - ``prompt``: what is asked for, with the field {label}; one for all classes, or one for each.
    - ``size``: pixels along each side, a multiple of 8; None takes the model's own.
    - ``guidance``: how closely it keeps to the prompt. The rest are those of :class:`Diffusion`; without ``colour``,
      images are made grey.

    Random is text-to-image and Variation image-to-image, with the prompt of the class.

    Raises InputError where a file of the model is missing, it is of another kind, or the prompt does not fit.
    """

    def __init__(
        self,
        model: str | Path,
        prompt: str | Mapping[str, str],
        classes: Sequence[str] = (),
        size: int | None = None,
        steps: int = 25,
        guidance: float = 7.5,
        batch: int = 8,
        dtype: str = "float32",
        device: str = "cpu",
        colour: bool = True,
        embedder: Embedder | None = None,
    ):
        models.check_device(dtype, device)
        if not (1 <= steps <= 1000 and 1 <= batch <= 65536 and guidance >= 0):
            raise InputError("steps must lie between 1 and 1000, batch between 1 and 65536, guidance at 0 or above")
        self._place = models.located(model, ("model_index.json", "unet/*.safetensors", "vae/*.safetensors"))
        self._model, self.prompt = model, prompt
        self.classes = tuple(classes)
        self._prompts = templates_of("prompt", prompt, self.classes or ("",), ("label",))
        self.steps, self.guidance, self.batch = steps, guidance, batch
        self.dtype, self.device = dtype, device
        pipeline = self._loaded[0]
        unit = pipeline.vae_scale_factor
        side = pipeline.unet.config.sample_size * unit if size is None else size
        if side % unit or side < unit:
            raise InputError(f"size {side}: this model makes images whose side is a multiple of {unit} pixels")
        self._settle((side, side), colour, embedder)

    def public_inputs(self) -> dict[str, Any]:
        """The model by the SHA-256 of its files, and how it is asked."""
        how = {name: getattr(self, name) for name in ("steps", "guidance", "batch", "dtype", "colour")}
        prompt = self.prompt if isinstance(self.prompt, str) else dict(self.prompt)
        named = self._named(self._model, self._place)
        classes, size = list(self.classes), list(self.size)
        return {"simulator": "text-to-image", "model": named, "prompt": prompt, **how, "classes": classes, "size": size}

    def _block(self, images: Tensor | None, labels: Tensor, strength: float, seeds: Sequence[int]) -> Tensor:
        draw, change = self._loaded
        names = [self.classes[label] if self.classes else "" for label in labels.tolist()]
        asked: dict[str, Any] = {
            "prompt": [self._prompts[i].format(label=name) for i, name in zip(labels.tolist(), names, strict=True)],
            "generator": list(_generators(seeds)),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "output_type": "pt",
        }
        if images is None:
            return self._bytes(draw(height=self.size[0], width=self.size[1], **asked).images)
        given = self._levels(images).expand(-1, 3, -1, -1)
        return self._bytes(change(image=given, strength=max(strength, 1 / self.steps), **asked).images)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The pipelines of text-to-image and image-to-image, which share their weights."""
        with models.loading(self._model, "text-to-image model", _INSTALL):
            import diffusers

            models.quiet(diffusers)
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
                str(self._model), use_safetensors=True, local_files_only=self._place is not None
            ).to(self.device, getattr(torch, self.dtype))
            pipeline.set_progress_bar_config(disable=True)
            change = diffusers.AutoPipelineForImage2Image.from_pipe(pipeline)
            change.set_progress_bar_config(disable=True)
            return pipeline, change


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _generators(seeds: Sequence[int]) -> Iterator[torch.Generator]:
    return (torch.Generator().manual_seed(seed) for seed in seeds)
