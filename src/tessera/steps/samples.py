"""Drawing samples: codes from a prior, images from the tokenizer's decoder. Sheets show them unselected."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from tessera.core import images, models, pictures
from tessera.core.contracts import Sampling
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator

SHOWN, COLUMNS = 96, 12


def baseline(run: Run) -> Any:
    """The closed-form prior `samples.baseline`, fitted on the training codes: what a prior must be better than."""
    recipe = models.prior_recipe(run.params, run.grids, run.codebook_sizes, 0, run.params.samples.baseline)
    prior = models.build(recipe)
    prior.fit(torch.from_numpy(run.codes("train").astype(np.int64)), None)
    return prior.eval()


def draw(of: str, prior: Any, tokenizer: Any, run: Run) -> dict[str, np.ndarray]:
    """`codes` [N,T] int32, `images` uint8 [N,H,W,C], and `labels` [N] for a conditional prior, drawn with the
    frequencies of the training labels. The stream of each batch depends on (seed, `of`, batch) alone."""
    own = run.params.samples
    sampling = Sampling(own.temperature, own.top_k, own.top_p, own.guidance)
    labels = None
    if prior.classes:
        labels = numpy_generator(run.params.seed, of, "labels").choice(run.labels("train"), own.count)
    codes, pixels = [], []
    bar = run.runtime.progress(total=own.count, desc=of)
    for index, where in enumerate(images.batches(own.count, own.batch_size)):
        n = where.stop - where.start
        given = torch.from_numpy(labels[where]).to(run.runtime.device) if labels is not None else None
        with torch.no_grad():
            drawn = prior.sample(n, generator(run.params.seed, of, index), sampling, labels=given)
            pixels.append(images.to_pixels(tokenizer.decode(drawn)))
        codes.append(drawn.cpu().numpy().astype(np.int32))
        bar.update(n)
    bar.close()
    arrays = {"codes": np.concatenate(codes), "images": np.concatenate(pixels)}
    return arrays | ({"labels": labels} if labels is not None else {})


def draw_without_prior(of: str, tokenizer: Any, run: Run) -> dict[str, np.ndarray]:
    """`images` of a tokenizer with `sample(n, generator)`: a VAE decodes N(0, I), the prior that it was trained with."""
    own = run.params.samples
    pixels = [
        images.to_pixels(tokenizer.sample(where.stop - where.start, generator(run.params.seed, of, index)))
        for index, where in enumerate(images.batches(own.count, own.batch_size))
    ]
    return {"images": np.concatenate(pixels)}


def picture(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "height width c"]:
    """The first samples, as they came."""
    return pictures.sheet(pixels[:SHOWN], COLUMNS)
