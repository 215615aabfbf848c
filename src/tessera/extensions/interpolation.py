"""Between two images: blend their latents z, quantize each blend, decode."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from tessera.core import images, pictures
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.nn import scores


class Config(Strict):
    frames: int = Field(ge=2, description="pictures from one image to the other, both ends included", examples=[3])
    pairs: int = Field(ge=1, description="pairs of test images, drawn by the seed", examples=[2])


def measure(config: Config, run: Run) -> Report:
    """Smoothness is the mean SSIM of consecutive frames; `smoothness_min` that of the roughest step of all pairs."""
    tokenizer, pixels, names = run.tokenizer(), run.images("test"), run.table("test")["name"]
    draws = numpy_generator(run.params.seed, "interpolation", "pairs")
    rows, strips = [], []
    for _ in range(config.pairs):
        first, last = draws.choice(len(pixels), size=2, replace=len(pixels) < 2)
        frames = between(tokenizer, images.to_model(pixels[[first, last]], run.runtime.device), config.frames)
        steps = scores.ssim(frames[:-1], frames[1:])
        rows.append({"first": names[first], "last": names[last], "smoothness": steps.mean(), "min": steps.min()})
        strips.append(frames)
    table = pd.DataFrame(rows)
    metrics = {"smoothness": table["smoothness"].mean(), "smoothness_min": table["min"].min()}
    sheet = pictures.sheet(np.concatenate(strips), columns=config.frames)
    return Report(metrics, {"pairs": table}, {"frames": sheet})


@torch.no_grad()
def between(tokenizer: object, pair: Float[Tensor, "2 c h w"], frames: int) -> UInt8[np.ndarray, "frames h w c"]:
    """decode(quantize((1 - a) z_1 + a z_2)) for `frames` values of a from 0 to 1; the ends are the reconstructions."""
    share = torch.linspace(0, 1, frames, device=pair.device)[:, None, None, None]
    blends = tuple(torch.lerp(z[:1], z[1:], share) for z in tokenizer.latents(pair))
    z_q = tuple(level.z_q for level in tokenizer.quantize(blends))
    return images.to_pixels(tokenizer.decode_vectors(z_q))
