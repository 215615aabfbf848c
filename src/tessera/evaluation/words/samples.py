"""Samples for names and vendors, and which of them are near-copies."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from tessera.core.conditioning import WORDS
from tessera.core.contracts import Sampling
from tessera.core.run import Run
from tessera.core.seeding import generator
from tessera.evaluation.words.config import COMPOSITIONS, VENDOR, Config
from tessera.evaluation.words.held_out import Images
from tessera.evaluation.words.judges import Seen
from tessera.images import arrays
from tessera.near_copies import near_fraction, nearest_codes
from tessera.words import Vocabulary

COMPARED = 5000  # test images, at most, whose distance to the training images in codes says what is near


class Samples(NamedTuple):
    """Samples [n, samples per request, ...]: codes, decoded images and their features."""

    codes: Int[np.ndarray, "n s t"]
    pixels: UInt8[np.ndarray, "n s h w c"]
    features: Float[np.ndarray, "n s f"]

    @property
    def seen(self) -> Seen:
        return Seen(self.pixels, self.features)


class Sampler:
    """Samples for names and vendors. The random numbers of a batch depend on (seed, `of`, batch) alone.

    Attributes:
        guidance: condition -> its strength, at first the first that there is to choose from.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.guidance: dict[str, float] = {name: strengths[0] for name, strengths in config.guidance.items()}
        self.prior = run.prior().to(run.device)
        self.tokenizer, self.scorer = run.tokenizer().to(run.device), run.scorer().to(run.device)
        self.vocabulary = Vocabulary.of_conditioning(self.prior.conditioning)

    def knows(self, names: Iterable[str]) -> Shaped[np.ndarray, " n"]:
        """Of which names the prior knows a word."""
        return np.asarray((self.vocabulary.ids(names) < len(self.vocabulary.words)).any(1))

    @torch.no_grad()
    def __call__(self, names: Sequence[str], vendors: Sequence[str], of: str, each: int) -> Samples:
        """`each` samples of every name by the vendor beside it."""
        sampling = Sampling(self.config.temperature, guidance=self.guidance)
        conditions = self._conditions(names, vendors).repeat_interleave(each, 0).to(self.run.device)
        parts = []
        for index, where in enumerate(arrays.batches(len(conditions), self.config.batch_size)):
            rng = generator(self.run.params.seed, "words", of, index)
            parts.append(self.prior.sample(where.stop - where.start, rng, sampling, conditions[where]).cpu())
        return self._seen(torch.cat(parts).numpy().astype(np.int32), (len(names), each))

    def _conditions(self, names: Sequence[str], vendors: Sequence[str]) -> Int[Tensor, "n c"]:
        """Vendor and words; words that the prior does not know are left out, and of other conditions nothing is said."""
        conditioning = self.prior.conditioning
        found = conditioning.nothing(len(names))
        of_vendor = conditioning[VENDOR].names.index
        given = {WORDS: self.vocabulary.ids(names), VENDOR: np.array([[of_vendor(vendor)] for vendor in vendors])}
        for part, columns in zip(conditioning, conditioning.split(found), strict=True):
            if part.name in given:
                columns.copy_(torch.from_numpy(given[part.name]))
        return found

    def by_each(self, names: Sequence[str], vendors: Sequence[str]) -> Samples | None:
        """One sample of each name by each of the vendors [names, vendors, ...]; None where there is no name."""
        if not names:
            return None
        told = list(itertools.product(names, vendors))
        found = self([name for name, _ in told], [vendor for _, vendor in told], COMPOSITIONS, 1)
        return Samples(*(each.reshape(len(names), len(vendors), *each.shape[2:]) for each in found))

    def _seen(self, codes: Int[np.ndarray, "m t"], shape: tuple[int, int]) -> Samples:
        """Codes decoded, and seen by the scorer."""
        size = self.config.batch_size
        pixels = arrays.decoded(self.tokenizer, codes.astype(np.int64), size, self.run.device)
        found = (codes, pixels, self.features(pixels))
        return Samples(*(each.reshape(*shape, *each.shape[1:]) for each in found))

    def features(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n f"]:
        return arrays.mapped(self.scorer, pixels, self.config.batch_size, self.run.device)


class Copies:
    """Near-copies of training images, augmented ones included, by codes."""

    def __init__(self, run: Run, test: Images, quantile: float) -> None:
        self.quantile, self._references = quantile, (run.codes("train"), *run.augmented_codes())
        self._unseen = nearest_codes(test.codes[arrays.evenly(len(test.codes), COMPARED)], *self._references)

    def distances(self, codes: Int[np.ndarray, "n s t"]) -> Float[np.ndarray, "n s"]:
        """To the nearest training image, as a fraction of the codes."""
        return nearest_codes(codes.reshape(-1, codes.shape[2]), *self._references).reshape(codes.shape[:2])

    def fraction(self, distances: Float[np.ndarray, "n s"]) -> float:
        return near_fraction(distances, self._unseen, self.quantile)
