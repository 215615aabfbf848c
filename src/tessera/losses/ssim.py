"""1 - SSIM, the structural similarity of images (Wang et al. 2004, "Image quality assessment", eq. 13), by the library
pytorch_msssim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import Field
from pytorch_msssim import ssim
from torch import Tensor, nn

from tessera import scores
from tessera.core.contracts import Loss, Output, Tokenizer
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.run import Run


class Config(Strict):
    weight: float = Field(ge=0, description="weight of the term; 0: not built", examples=[1.0])


class SSIM(nn.Module):
    """1 - `scores.ssim_gaussian` without rounding to 8 bits: Gaussian windows of 11x11 pixels, sigma 1.5 (paper, section
    III.C). The metric `ssim` has other windows. Intensities are between 0 and 1, colour channels are separate, and the mean
    is over all windows within the image. From 0 (equal) to 2. A smaller image gets the largest odd window that fits."""

    def forward(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]:
        window = scores.odd_window(scores.GAUSSIAN, *x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):  # variances are differences of squares
            images, decoded = (x.float() + 1) / 2, (output.reconstruction.float() + 1) / 2
            return 1 - ssim(images, decoded, data_range=1.0, win_size=window)


def build(config: Config, run: Run, tokenizer: Tokenizer) -> Loss:
    return SSIM()
