"""Rejection of samples by a critic: more are sampled than are wanted, and those that look real are accepted.

Discriminator rejection sampling (Azadi et al. 2019, arXiv 1810.06758): if a critic knows the odds r(x) = p_real(x) / p_prior(x),
and a sample of the prior is accepted with a probability in proportion to r(x), the accepted have the distribution of real
images. Here the number of candidates is fixed, so the factor follows from it: a candidate is accepted with probability
min(1, c r(x)), where c is such that as many are accepted as are wanted. The more candidates, the fewer of them are at 1, where the
law ends. The critic is trained on codes of training images against samples that are no candidates: it has seen none of those that
it judges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field

from tessera import critic
from tessera.core.contracts import Device, Tokenizer
from tessera.core.params import Strict
from tessera.images.arrays import batches


class Rejection(critic.Config):
    candidates: int = Field(ge=1, le=100, description="samples for each one that a critic accepts; 1: all are accepted, and no "
                            "critic is trained", examples=[1])  # fmt: skip
    count: int = Field(ge=2, description="training images that the critic is trained on, at most, and as many samples",
                       examples=[8])  # fmt: skip


class Settings(Strict):
    """Of the section `samples`."""

    rejection: Rejection


class Accepted(NamedTuple):
    """`indices` of the accepted candidates. `certain` is the fraction of them whose probability was 1."""

    indices: Int[np.ndarray, " m"]
    certain: float


def log_odds(
    real: Int[np.ndarray, "r t"],
    samples: Int[np.ndarray, "s t"],
    candidates: Int[np.ndarray, "n t"],
    tokenizer: Tokenizer,
    config: critic.Config,
    seed: int,
    device: Device,
) -> Float[np.ndarray, " n"]:
    """log(p_real / p_prior) of each candidate, by a critic that is trained to tell `real` codes from `samples` of the prior."""
    vectors = critic.code_vectors(tokenizer, np.concatenate([real, samples, candidates]), device)
    known = len(real) + len(samples)
    x = critic.standardised(vectors, np.arange(known))
    false = torch.from_numpy(np.repeat([0, 1], [len(real), len(samples)])).to(x)
    judge = critic.trained(x[:known], false, config, seed)
    with torch.no_grad():
        logits = [judge(x[known:][where]).double().cpu().numpy() for where in batches(len(candidates), critic.AT_ONCE)]
    return -np.concatenate(logits)


def accepted(
    log_odds: Float[np.ndarray, " n"], strata: Int[np.ndarray, " m"], generator: np.random.Generator
) -> Accepted:
    """An accepted candidate for each of `strata`, and of it. Candidates come round by round: candidate i is of `strata[i % m]`. So
    each stratum, such as a label, keeps its number of images, and odds are compared within it only."""
    of_candidate = np.tile(strata, len(log_odds) // len(strata))
    indices, certain = np.empty(len(strata), np.int64), 0
    for stratum in np.unique(strata):
        places, rows = np.flatnonzero(strata == stratum), np.flatnonzero(of_candidate == stratum)
        chances = probabilities(log_odds[rows], len(places))
        chosen = systematic(chances, len(places), generator.random())
        indices[places] = rows[chosen]
        certain += int((chances == 1).sum())
    return Accepted(indices, certain / len(strata))


def probabilities(log_odds: Float[np.ndarray, " n"], count: int) -> Float[np.ndarray, " n"]:
    """min(1, c odds) of each candidate, where c is such that they add up to `count`, which is at most n."""
    odds = np.exp(log_odds - log_odds.max())
    falling = np.sort(odds)[::-1]
    rest = falling[::-1].cumsum()[::-1]  # of all from this one on
    scales = (count - np.arange(count)) / rest[:count]  # c, if as many as come before are at 1
    fits = scales * falling[:count] <= 1
    fits[-1] = True  # one is left, and it is at most the rest
    return np.minimum(1, scales[fits.argmax()] * odds)


def systematic(chances: Float[np.ndarray, " n"], count: int, start: float) -> Int[np.ndarray, " m"]:
    """`count` different indices, each with its probability over `start`, uniform on [0, 1): those of chance 1, and of the others
    those at which the sum of their chances passes start, start + 1, ... (systematic sampling, Madow 1949, Ann. Math. Statist. 20).
    """
    certain, others = np.flatnonzero(chances >= 1), np.flatnonzero(chances < 1)
    if len(certain) == count:
        return certain
    reached, wanted = chances[others].cumsum(), count - len(certain)
    places = (start + np.arange(wanted)) / wanted * reached[-1]
    passed = np.minimum(np.searchsorted(reached, places, side="right"), len(others) - 1)
    return np.sort(np.concatenate([certain, others[passed]]))


def best(log_odds: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """For each of `count` images the index of its candidate of the highest odds: candidate i is for image i % count. The best are
    no sample of any law: they are for those who want one good picture, `accepted` is for measures."""
    return log_odds.reshape(-1, count).argmax(0) * count + np.arange(count)
