"""A rival that is trained on the private rows: a class-conditional autoencoder, by DP-SGD.

Variational (Kingma and Welling, 2014), small enough for two cores. Every image's gradient is clipped, the sum gets
Gaussian noise, and batches are Poisson samples (Abadi et al., CCS 2016); clipping, sampling and accounting are opacus's
(its PRV accountant, add/remove one image). Clipping is "ghost" clipping (Goodfellow 2015; Li et al., ICLR 2022): the
norm of an image's gradient follows from a layer's inputs and the gradient of its outputs, so that no gradient of one
image is ever written out. The noise is floating-point and from torch's generator, as opacus draws it by default;
simpe's is exact and from the operating system.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torch.utils.data import DataLoader, TensorDataset

WIDTH, LATENT = 64, 16  # few weights drown less: the noise has as many entries as the network
BATCH, EPOCHS, LEARNING_RATE, CLIP = 4096, 30, 4e-3, 2.0
ACCOUNTANT = "prv"


class Autoencoder(nn.Module):
    """Images (n, pixels) in 0..1 and one-hot classes -> logits of the pixels, mean and log-variance of the code."""

    def __init__(self, pixels: int, classes: int):
        super().__init__()
        self.classes = classes
        self.encoder = nn.Sequential(nn.Linear(pixels + classes, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT + classes, WIDTH), nn.ReLU(), nn.Linear(WIDTH, pixels))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw a code, decode."""
        mean, log_variance = self.encoder(torch.cat([images, labels], dim=1)).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(torch.cat([code, labels], dim=1)), mean, log_variance


def loss(made: tuple[Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
    """The negative evidence bound of each image, (n,)."""
    logits, mean, log_variance = made
    shape = binary_cross_entropy_with_logits(logits, images, reduction="none").sum(1)
    return shape + 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def synthesise(
    images: np.ndarray, labels: np.ndarray, classes: int, samples: int, epsilon: float, delta: float, seed: int
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Train on uint8 images (n, h, w) and int64 labels, and draw as many samples of each class.

    Returns images, labels and settings with the epsilon that opacus counts.
    """
    from opacus import PrivacyEngine

    torch.manual_seed(seed)
    rows = torch.from_numpy(images).flatten(1).float() / 255
    hot = one_hot(torch.from_numpy(labels), classes).float()
    model = Autoencoder(rows.shape[1], classes)
    engine = PrivacyEngine(accountant=ACCOUNTANT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of opacus and torch, about hooks and the generator
        model, optimizer, criterion, loader = engine.make_private_with_epsilon(
            module=model, criterion=loss, grad_sample_mode="ghost",
            optimizer=torch.optim.Adam(model.parameters(), lr=LEARNING_RATE),
            data_loader=DataLoader(TensorDataset(rows, hot), batch_size=min(BATCH, len(rows))),
            target_epsilon=epsilon, target_delta=delta, epochs=EPOCHS, max_grad_norm=CLIP,
        )  # fmt: skip
        for _ in range(EPOCHS):
            for batch, named in loader:
                if len(batch) == 0:
                    continue
                optimizer.zero_grad()
                criterion(model(batch, named), batch).backward()
                optimizer.step()
        spent = engine.get_epsilon(delta)
    made = torch.arange(samples) % classes
    with torch.no_grad():
        code = torch.cat([torch.randn(samples, LATENT), one_hot(made, classes).float()], dim=1)
        drawn = (255 * model.decoder(code).sigmoid()).round().to(torch.uint8)
    settings = {
        "guarantee": "floating-point Gaussian noise, Poisson sampling, add/remove one image",
        "epsilon": spent, "delta": delta, "noise_multiplier": optimizer.noise_multiplier, "batch": BATCH,
        "epochs": EPOCHS, "clip": CLIP, "learning_rate": LEARNING_RATE, "width": WIDTH, "latent": LATENT,
    }  # fmt: skip
    return drawn.reshape(-1, *images.shape[1:]).numpy(), made.numpy(), settings
