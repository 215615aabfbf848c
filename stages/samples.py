"""samples: prior, tokenizer, codes -> artifacts/samples/ and sheets: of the prior, of the baseline, and of N(0, I) if the
tokenizer can decode it

Samples codes from a prior, and decodes them by the tokenizer. Sheets show the images unselected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int, UInt8
from pydantic import Field, model_validator

from tessera import conditions
from tessera.core import files, models
from tessera.core.conditioning import UNCONDITIONAL, Conditioning
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


class Asked(Strict):
    """What samples are drawn for, each the name of a class or its number, or words; empty: as often as in training."""

    label: str = Field(description="of the data set", examples=[""])
    vendor: str = Field(description="of a data set of several", examples=[""])
    words: str = Field(description="as in a name: woman firefighter", examples=[""])
    cluster: str = Field(description="number of a cluster", examples=[""])
    neighbour: str = Field(description="a training image that they shall be near to, by name or number", examples=[""])


class Guidance(Strict):
    """Strength of each condition: 1 is p(codes | conditions), 0 ignores it, more exaggerates it."""

    label: float = Field(ge=0, description="of the label", examples=[1.0])
    vendor: float = Field(ge=0, description="of the vendor", examples=[1.0])
    words: float = Field(ge=0, description="of the words", examples=[1.0])
    cluster: float = Field(ge=0, description="of the cluster", examples=[1.0])
    neighbour: float = Field(ge=0, description="of the neighbour", examples=[1.0])

    @model_validator(mode="before")
    @classmethod
    def _each(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError(f"holds a strength for each condition, such as samples.guidance.label, got {value!r}")
        return value


class Settings(Strict):
    count: int = Field(ge=4, description="samples drawn")
    batch_size: int = Field(ge=1, description="samples drawn at once")
    temperature: float = Field(gt=0, description="divides the logits")
    top_k: int = Field(ge=0, description="draw among the k likeliest codes; 0: all")
    top_p: float = Field(gt=0, le=1, description="draw among the fewest codes of this probability; 1: all")
    conditions: Asked
    guidance: Guidance
    baseline: str = Field(description="closed-form prior whose samples stand beside, a file of priors/")
    rejection: Rejection


class Sampled(NamedTuple):
    """One set of samples. `codes` and `conditions` are None of images without a prior, and `conditions` of an unconditional one."""

    images: UInt8[np.ndarray, "n h w c"]
    codes: Int[np.ndarray, "n t"] | None = None
    conditioning: Conditioning = UNCONDITIONAL
    conditions: Int[np.ndarray, "n c"] | None = None

    def save(self, folder: Path) -> None:
        files.save_array(folder / "images.npy", self.images)
        if self.codes is not None:
            files.save_array(folder / "codes.npy", self.codes)
        if self.conditions is not None:
            files.write_table(folder / "conditions.csv", conditions.described(self.conditioning, self.conditions))


def main(run: Run) -> None:
    tokenizer = run.tokenizer().to(run.runtime.device)
    sets = {SAMPLES: run.prior(), BASELINE: baseline(run)}
    sampled = {of: sample_set(of, prior.to(run.runtime.device), tokenizer, run) for of, prior in sets.items()}
    if hasattr(tokenizer, "sample"):
        sampled["gaussian"] = sample_without_prior("gaussian", cast("GenerativeTokenizer", tokenizer), run)
    for of, found in sampled.items():
        found.save(run.folder("samples") / of)
        files.write_picture(files.PLOTS / "samples" / f"{of}.png", picture(found.images))
    own = run.params.section("samples", Settings)
    sampling = Sampling(own.temperature, own.top_k, own.top_p, guidance(own, sets[SAMPLES]))
    files.write_json(run.folder("samples") / "facts.json", {"sets": list(sampled), "sampling": sampling._asdict()})


def baseline(run: Run) -> Prior:
    """The closed-form prior `samples.baseline`, fitted on the training codes: what a prior must be better than."""
    recipe = models.prior_recipe(run.params, run.space, UNCONDITIONAL, run.params.section("samples", Settings).baseline)
    prior: ClosedFormPrior = models.build(recipe)
    prior.fit(torch.from_numpy(run.codes("train").astype(np.int64)), None)
    return prior.eval()


def sample_set(of: str, prior: Prior, tokenizer: Tokenizer, run: Run) -> Sampled:
    """`codes` [N,T] int32, `images` uint8 [N,H,W,C], and `conditions` for a conditional prior. The stream of each batch depends on
    (seed, `of`, batch) alone."""
    own = run.params.section("samples", Settings)
    sampling = Sampling(own.temperature, own.top_k, own.top_p, guidance(own, prior))
    given = asked_for(own, prior, own.count, run, of)
    sample = sampler(prior, sampling, run.runtime.device, own)
    if of != BASELINE and own.rejection.candidates > 1:
        codes = accepted_codes(of, prior, sample, given, tokenizer, run)
    else:
        codes = sampled_codes(sample, own.count, given, run, of)
    images = arrays.decoded(tokenizer, codes.astype(np.int64), own.batch_size, run.runtime.device)
    return Sampled(images, codes, prior.conditioning, given)


def sampled_codes(
    sample: Callable[..., Any], count: int, given: Int[np.ndarray, "n c"] | None, run: Run, *stream: str
) -> Int[np.ndarray, "n t"]:
    """Codes [N,T] int32, batch by batch."""
    own, codes = run.params.section("samples", Settings), []
    bar = run.runtime.progress(total=count, desc=" ".join(stream))
    for index, where in enumerate(arrays.batches(count, own.batch_size)):
        n = where.stop - where.start
        rows = None if given is None else torch.from_numpy(given[where]).to(run.runtime.device)
        with torch.no_grad():
            sampled = sample(n, generator(run.params.seed, *stream, index), conditions=rows)
        codes.append(sampled.cpu().numpy().astype(np.int32))
        bar.update(n)
    bar.close()
    return np.concatenate(codes)


def accepted_codes(
    of: str,
    prior: Prior,
    sample: Callable[..., Any],
    given: Int[np.ndarray, "n c"] | None,
    tokenizer: Tokenizer,
    run: Run,
) -> Int[np.ndarray, "n t"]:
    """`samples.rejection`: `candidates` times as many codes, of which a critic accepts `count`, as many as wanted for the same
    conditions. It is trained on training images against samples of its own."""
    own, seed = run.params.section("samples", Settings), run.params.seed
    rounds, training = own.rejection.candidates, run.codes("train")
    real = training[arrays.evenly(len(training), own.rejection.count)]
    each = None if given is None else np.tile(given, (rounds, 1))
    candidates = sampled_codes(sample, rounds * own.count, each, run, of)
    others = asked_for(own, prior, len(real), run, of, "critic")
    false = sampled_codes(sample, len(real), others, run, of, "critic")
    seed_of_critic = derive(seed, of, "critic")
    odds = log_odds(real, false, candidates, tokenizer, own.rejection, seed_of_critic, run.runtime.device)
    strata = (
        np.zeros(own.count, np.int64) if given is None else np.unique(given, axis=0, return_inverse=True)[1].ravel()
    )
    found = accepted(odds, strata, numpy_generator(seed, of, "rejection"))
    print(f"{of}: {own.count} of {len(candidates)} candidates are accepted by the critic, {found.certain:.0%} of them with "
          "certainty", flush=True)  # fmt: skip
    return candidates[found.indices]


def guidance(own: Settings, prior: Prior) -> dict[str, float]:
    """Of the conditions that the prior has."""
    return {name: strength for name, strength in own.guidance.model_dump().items() if name in prior.conditioning}


def asked_for(own: Settings, prior: Prior, count: int, run: Run, *stream: str) -> Int[np.ndarray, "n c"] | None:
    """The conditions of every sample: as `samples.conditions` asks, and else as often as in training. Nothing is said of one whose
    guidance is 0; None for an unconditional prior."""
    told = prior.conditioning
    asked = {
        name: text for name, text in own.conditions.model_dump().items() if text and told
    }  # the baseline is told nothing
    found = conditions.as_in_training(run, told, count, numpy_generator(run.params.seed, *stream, "labels"), asked)
    if found is None:
        return None
    for part, columns in zip(told, told.split(found), strict=True):
        if own.guidance.model_dump()[part.name] == 0:
            columns[:] = part.none
    return found


def sampler(prior: Prior, sampling: Sampling, device: torch.device, own: Settings) -> Callable[..., Any]:
    """`(n, generator, conditions=)` -> codes [n,T] of a batch. On a CUDA device whole batches are replays of one captured walk,
    where the prior can be captured and the batches pay for it: the same codes, without the launches that take most of the time."""
    plain = partial(prior.sample, sampling=sampling)
    if device.type != "cuda" or not prior.capturable or own.count < PAYS * own.batch_size:
        return plain
    replay = Replay(cast("ExactPrior", prior), own.batch_size, sampling)
    return lambda n, generator, conditions: (
        replay.sample(generator, conditions) if n == own.batch_size else plain(n, generator, conditions=conditions)
    )


def sample_without_prior(of: str, tokenizer: GenerativeTokenizer, run: Run) -> Sampled:
    """Images of a tokenizer with `sample(n, generator)`: a VAE decodes N(0, I), the prior that it was trained with."""
    own = run.params.section("samples", Settings)
    pixels = [
        arrays.to_pixels(tokenizer.sample(where.stop - where.start, generator(run.params.seed, of, index)))
        for index, where in enumerate(arrays.batches(own.count, own.batch_size))
    ]
    return Sampled(np.concatenate(pixels))


def picture(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "height width c"]:
    """The first samples, as they came."""
    return pictures.sheet(pixels[:SHOWN], COLUMNS)


if __name__ == "__main__":
    enter(main)
