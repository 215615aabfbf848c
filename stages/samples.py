"""samples: prior, tokenizer, codes -> artifacts/samples/ and sheets: of the prior, of the baseline, and of N(0, I) if the
tokenizer can decode it

Samples codes from a prior, and decodes them by the tokenizer. Sheets show the images unselected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field

from tessera.core import files, models
from tessera.core.contracts import ClosedFormPrior, ExactPrior, GenerativeTokenizer, Prior, Sampling, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator
from tessera.cuda_graphs import Replay
from tessera.images import arrays, pictures
from tessera.runtime.stage import enter

SHOWN, COLUMNS = 96, 12
PAYS = 3  # whole batches, from which on a captured walk is worth its capture


class Settings(Strict):
    count: int = Field(ge=4, description="samples drawn")
    batch_size: int = Field(ge=1, description="samples drawn at once")
    temperature: float = Field(gt=0, description="divides the logits")
    top_k: int = Field(ge=0, description="draw among the k likeliest codes; 0: all")
    top_p: float = Field(gt=0, le=1, description="draw among the fewest codes of this probability; 1: all")
    guidance: float = Field(ge=0, description="of a conditional prior: 1 is p(codes | label), 0 forgets the label, more "
                            "exaggerates it")  # fmt: skip
    baseline: str = Field(description="closed-form prior whose samples stand beside, a file of priors/")


def main(run: Run) -> None:
    tokenizer = run.tokenizer().to(run.runtime.device)
    sets = {"samples": run.prior(), "baseline": baseline(run)}
    sampled = {of: sample_set(of, prior.to(run.runtime.device), tokenizer, run) for of, prior in sets.items()}
    if hasattr(tokenizer, "sample"):
        sampled["gaussian"] = sample_without_prior("gaussian", cast("GenerativeTokenizer", tokenizer), run)
    for of, kinds in sampled.items():
        for kind, array in kinds.items():
            files.save_array(run.folder("samples") / of / f"{kind}.npy", array)
        files.write_picture(files.PLOTS / "samples" / f"{of}.png", picture(kinds["images"]))
    files.write_json(run.folder("samples") / "facts.json", {"sets": list(sampled)})


def baseline(run: Run) -> Prior:
    """The closed-form prior `samples.baseline`, fitted on the training codes: what a prior must be better than."""
    recipe = models.prior_recipe(run.params, run.space, 0, run.params.section("samples", Settings).baseline)
    prior: ClosedFormPrior = models.build(recipe)
    prior.fit(torch.from_numpy(run.codes("train").astype(np.int64)), None)
    return prior.eval()


def sample_set(of: str, prior: Prior, tokenizer: Tokenizer, run: Run) -> dict[str, np.ndarray]:
    """`codes` [N,T] int32, `images` uint8 [N,H,W,C], and `labels` [N] for a conditional prior, drawn with the
    frequencies of the training labels. The stream of each batch depends on (seed, `of`, batch) alone."""
    own = run.params.section("samples", Settings)
    sampling = Sampling(own.temperature, own.top_k, own.top_p, own.guidance)
    labels = None
    if prior.classes:
        labels = numpy_generator(run.params.seed, of, "labels").choice(run.required_labels("train"), own.count)
    sample = sampler(prior, sampling, run.runtime.device, own)
    codes, pixels = [], []
    bar = run.runtime.progress(total=own.count, desc=of)
    for index, where in enumerate(arrays.batches(own.count, own.batch_size)):
        n = where.stop - where.start
        given = torch.from_numpy(labels[where]).to(run.runtime.device) if labels is not None else None
        with torch.no_grad():
            sampled = sample(n, generator(run.params.seed, of, index), labels=given)
            pixels.append(arrays.to_pixels(tokenizer.decode(sampled)))
        codes.append(sampled.cpu().numpy().astype(np.int32))
        bar.update(n)
    bar.close()
    found = {"codes": np.concatenate(codes), "images": np.concatenate(pixels)}
    return found | ({"labels": labels} if labels is not None else {})


def sampler(prior: Prior, sampling: Sampling, device: torch.device, own: Settings) -> Callable[..., Any]:
    """`(n, generator, labels=)` -> codes [n,T] of a batch. On a CUDA device whole batches are replays of one captured walk, where
    the prior can be captured and the batches pay for it: the same codes, without the launches that take most of the time."""
    plain = partial(prior.sample, sampling=sampling)
    if device.type != "cuda" or not prior.capturable or own.count < PAYS * own.batch_size:
        return plain
    replay = Replay(cast("ExactPrior", prior), own.batch_size, sampling)
    return lambda n, generator, labels: (
        replay.sample(generator, labels) if n == own.batch_size else plain(n, generator, labels=labels)
    )


def sample_without_prior(of: str, tokenizer: GenerativeTokenizer, run: Run) -> dict[str, np.ndarray]:
    """`images` of a tokenizer with `sample(n, generator)`: a VAE decodes N(0, I), the prior that it was trained with."""
    own = run.params.section("samples", Settings)
    pixels = [
        arrays.to_pixels(tokenizer.sample(where.stop - where.start, generator(run.params.seed, of, index)))
        for index, where in enumerate(arrays.batches(own.count, own.batch_size))
    ]
    return {"images": np.concatenate(pixels)}


def picture(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "height width c"]:
    """The first samples, as they came."""
    return pictures.sheet(pixels[:SHOWN], COLUMNS)


if __name__ == "__main__":
    enter(main)
