"""Samples as negatives: a trained prior is tuned to tell training images from its own samples.

Direct discriminative optimization (DDO; Zheng et al. 2025, arXiv 2503.01103). A discriminator needs no network of its own: that
of a prior p against a frozen reference p_ref, from which p starts and the samples are, is

    d(x) = sigmoid(beta (log p(x) - log p_ref(x)))                                      (eq. 8, and beta of eq. 13)

and p is trained by the loss of that discriminator,

    -mean of log d(x) over images - alpha mean of log(1 - d(x)) over samples            (eq. 13)

For alpha = beta = 1 its minimum over all p is the law of the images (theorem 3.1), whatever p_ref is. beta below 1 goes beyond it,
in the direction from p_ref to the images (theorem 3.3: p is in proportion to p_ref^(1 - 1/beta) p_images^(1/beta)), so it is for
short trainings. log p is that of the whole image, the sum over its codes, as in the paper: the more codes there are, the smaller is
a good beta. There is no dropout in either log p, as in the paper: masks of one of them would be noise in their difference.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Prior
from tessera.core.params import Strict
from tessera.training.settings import Training


class Negatives(Strict):
    rounds: int = Field(ge=0, le=100, description="how often samples are drawn and the prior is trained against them; 0: never",
                        examples=[0])  # fmt: skip
    samples: int = Field(ge=1, description="samples in each round that the prior is trained against", examples=[8])
    alpha: float = Field(gt=0, description="weight of the samples' term", examples=[1.0])
    beta: float = Field(gt=0, description="factor of the log-likelihood ratio, in nats per image", examples=[0.5])
    training: Training


class Discriminator(nn.Module):
    """The objective of a round: `prior`, initialised with the weights of the reference, is trained in place."""

    def __init__(self, prior: Prior, alpha: float, beta: float) -> None:
        super().__init__()
        self.prior = prior
        self.alpha, self.beta = alpha, beta

    def forward(
        self,
        codes: Int[Tensor, "2*b t"],
        conditions: Int[Tensor, "2*b c"] | None,
        reference: Float[Tensor, " 2*b"],
    ) -> dict[str, Tensor]:
        """Loss terms of `codes`, first b of images, then b of samples; `reference` is log p_ref of each in nats."""
        log_ratio = self.prior.log_prob(codes, conditions) - reference
        real, negatives = log_ratio.chunk(2)
        return losses(real, negatives, self.alpha, self.beta)


def losses(
    real: Float[Tensor, " n"], negatives: Float[Tensor, " m"], alpha: float, beta: float
) -> dict[str, Float[Tensor, ""]]:
    """The two terms of eq. 13 in nats, from log p - log p_ref of images and of samples."""
    return {"real": -F.logsigmoid(beta * real).mean(), "negatives": -alpha * F.logsigmoid(-beta * negatives).mean()}


def untrained_loss(alpha: float) -> float:
    """The sum of `losses` of p = p_ref, which tells nothing from nothing."""
    return (1 + alpha) * math.log(2)


def accuracy(real: Float[Tensor, " n"], negatives: Float[Tensor, " m"]) -> float:
    """The mean of the fractions of images and of samples that the sign of log p - log p_ref is right about, from 0 to 1; a ratio
    of 0 is half right. So it does not depend on how many there are of each."""
    right = [(torch.sign(ratio).double().mean() + 1) / 2 for ratio in (real, -negatives)]
    return float(sum(right) / 2)
