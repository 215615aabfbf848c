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
from jaxtyping import Int, UInt8
from pydantic import Field

from tessera.core import files, models
from tessera.core.contracts import ClosedFormPrior, ExactPrior, GenerativeTokenizer, Prior, Sampling, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, generator, numpy_generator
from tessera.cuda_graphs import Replay
from tessera.images import arrays, pictures
from tessera.rejection import Rejection, accepted, log_odds
from tessera.runtime.stage import enter

SHOWN, COLUMNS = 96, 12
SAMPLES, BASELINE = "samples", "baseline"
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
    rejection: Rejection


def main(run: Run) -> None:
    tokenizer = run.tokenizer().to(run.runtime.device)
    sets = {SAMPLES: run.prior(), BASELINE: baseline(run)}
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
    labels = training_labels(prior, own.count, run, of)
    sample = sampler(prior, sampling, run.runtime.device, own)
    if of != BASELINE and own.rejection.candidates > 1:
        codes = accepted_codes(of, prior, sample, labels, tokenizer, run)
    else:
        codes = sampled_codes(sample, own.count, labels, run, of)
    images = arrays.decoded(tokenizer, codes.astype(np.int64), own.batch_size, run.runtime.device)
    return {"codes": codes, "images": images} | ({"labels": labels} if labels is not None else {})


def training_labels(prior: Prior, count: int, run: Run, *stream: str) -> Int[np.ndarray, " n"] | None:
    """`count` labels for a conditional prior, with the frequencies of the training labels."""
    if not prior.classes:
        return None
    return numpy_generator(run.params.seed, *stream, "labels").choice(run.required_labels("train"), count)


def sampled_codes(
    sample: Callable[..., Any], count: int, labels: Int[np.ndarray, " n"] | None, run: Run, *stream: str
) -> Int[np.ndarray, "n t"]:
    """Codes [N,T] int32, batch by batch."""
    own, codes = run.params.section("samples", Settings), []
    bar = run.runtime.progress(total=count, desc=" ".join(stream))
    for index, where in enumerate(arrays.batches(count, own.batch_size)):
        n = where.stop - where.start
        given = torch.from_numpy(labels[where]).to(run.runtime.device) if labels is not None else None
        with torch.no_grad():
            sampled = sample(n, generator(run.params.seed, *stream, index), labels=given)
        codes.append(sampled.cpu().numpy().astype(np.int32))
        bar.update(n)
    bar.close()
    return np.concatenate(codes)


def accepted_codes(
    of: str,
    prior: Prior,
    sample: Callable[..., Any],
    labels: Int[np.ndarray, " n"] | None,
    tokenizer: Tokenizer,
    run: Run,
) -> Int[np.ndarray, "n t"]:
    """`samples.rejection`: `candidates` times as many codes, of which a critic accepts `count`, of each label as many as wanted.
    It is trained on training images against samples of its own."""
    own, seed = run.params.section("samples", Settings), run.params.seed
    rounds, training = own.rejection.candidates, run.codes("train")
    real = training[arrays.evenly(len(training), own.rejection.count)]
    each = None if labels is None else np.tile(labels, rounds)
    candidates = sampled_codes(sample, rounds * own.count, each, run, of)
    others = training_labels(prior, len(real), run, of, "critic")
    false = sampled_codes(sample, len(real), others, run, of, "critic")
    seed_of_critic = derive(seed, of, "critic")
    odds = log_odds(real, false, candidates, tokenizer, own.rejection, seed_of_critic, run.runtime.device)
    strata = np.zeros(own.count, np.int64) if labels is None else labels
    found = accepted(odds, strata, numpy_generator(seed, of, "rejection"))
    print(f"{of}: {own.count} of {len(candidates)} candidates are accepted by the critic, {found.certain:.0%} of them with "
          "certainty", flush=True)  # fmt: skip
    return candidates[found.indices]


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
