"""Autoregressive sampling: truncation of logits, sampling of a code, and the loop over positions, the same for all priors.

A prior is walked as a coroutine: it yields the logits [n,K] of the next position and receives its codes [n]. Cached and
naive sampling differ only in their walks, so both use the same random numbers. A test can send its own codes and compare
the yielded logits with one full forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Generator as Coroutine
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from tessera.autoregression.forks import spread
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import ExactPrior, Prior, Sampling
from tessera.core.errors import InputError
from tessera.images.arrays import batches

PART = 16  # fewest images per core

CodeWalk = Coroutine[Tensor, Tensor, Any]  # yields logits [n,K] of a position, receives its codes [n]
StartWalk = Callable[[int, Tensor | None], CodeWalk]  # starts a walk of n images with these conditions


def truncate(logits: Float[Tensor, "n k"], sampling: Sampling) -> Float[Tensor, "n k"]:
    """Logits / temperature, with minus infinity for codes that are cut off. First all but the `top_k` likeliest codes are cut
    off. Then, after renormalising, all outside the nucleus: the smallest set of likeliest codes with a probability of at
    least `top_p` (Holtzman et al. 2020, eq. 2-3). On a tie the lower index is kept first. At least one code always stays.

    Raises:
        InputError: a value of `sampling` is out of range.
    """
    require_range(sampling)
    logits = logits / sampling.temperature
    if not sampling.top_k and sampling.top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ordered = ordered[:, : sampling.top_k or None]
    if sampling.top_p < 1:  # at 1, rounding would decide about the unlikeliest codes
        cumulative = ordered.softmax(-1).cumsum(-1)
        ordered[:, 1:].masked_fill_(cumulative[:, :-1] >= sampling.top_p, -math.inf)
    return torch.full_like(logits, -math.inf).scatter_(1, order[:, : ordered.shape[1]], ordered)


def require_range(sampling: Sampling) -> None:
    guidance = all(strength >= 0 for strength in sampling.guidance.values())
    if not (sampling.temperature > 0 and sampling.top_k >= 0 and 0 < sampling.top_p <= 1 and guidance):
        raise InputError(f"sampling needs temperature > 0, top_k >= 0, 0 < top_p <= 1, guidance >= 0, got {sampling}")


def sample_codes(logits: Float[Tensor, "n k"], uniforms: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Samples one code per row by the inverse of the cumulative distribution: the first k with P(code <= k) > u.

    `uniforms` are in [0, 1). All computation is in float64. A code of probability 0 (minus infinity) is never sampled. The
    last cumulative value need not be 1: u is scaled by it, and u * x < x also after rounding for u <= 1 - 2**-53.

    Raises:
        ValueError: a row holds NaN, or only minus infinity.
    """
    codes, sound = sample_unchecked(logits, uniforms)
    require_sound(sound)
    return codes


def sample_unchecked(
    logits: Float[Tensor, "n k"], uniforms: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Bool[Tensor, ""]]:
    """`sample_codes`, and whether all rows were distributions; code 0 is returned for a row that was not. A GPU works ahead of
    the program, which waits whenever it reads a value, so a walk reads this value only once, at its end."""
    probabilities = logits.double().softmax(-1)
    # 0 instead of the running sum where the probability is 0: no u is below it, in any order of summation
    cumulative = probabilities.cumsum(-1).mul_(probabilities > 0)
    total = cumulative.amax(-1, keepdim=True)
    return (cumulative > uniforms[:, None] * total).byte().argmax(-1), (total > 0).all()  # argmax takes the first True


def require_sound(sound: Bool[Tensor, ""]) -> None:
    if not bool(sound):
        raise ValueError("logits must be numbers, at least one of each row finite")


def sample(
    prior: ExactPrior,
    start: StartWalk,
    n: int,
    generator: Generator,
    sampling: Sampling,
    conditions: Int[Tensor, "n c"] | None = None,
    known: Int[Tensor, "n t"] | None = None,
    known_mask: Bool[Tensor, "n t"] | None = None,
) -> Int[Tensor, "n t"]:
    """Samples codes of `prior` position by position. Where `known_mask` is True, `known` codes are kept, and later positions
    see them.

    All uniform numbers are sampled first, one per image and position, known or not. So the random numbers of a position do
    not depend on known codes, on how logits are computed, or on the device.

    Raises:
        InputError: conditions, known codes or `sampling` are out of range or have a wrong shape.
    """
    prior.conditioning.require(conditions, n)
    prior.conditioning.require_guidance(sampling.guidance)
    require_range(sampling)
    require_known(prior, n, known, known_mask)
    uniforms = torch.rand(n, prior.space.length, generator=generator, dtype=torch.float64, device=generator.device)
    codes, sound = shared(prior, start, uniforms, sampling, conditions, known, known_mask)
    require_sound(sound)
    return codes


@torch.no_grad()
def sample_batches(
    prior: Prior,
    n: int,
    batch_size: int,
    rng: Callable[[int], Generator],
    sampling: Sampling,
    conditions: Int[Tensor, "n c"] | None = None,
    known: Int[Tensor, "n t"] | None = None,
    known_mask: Bool[Tensor, "n t"] | None = None,
) -> Int[Tensor, "n t"]:
    """`prior.sample` of `batch_size` images at a time, for any prior. `rng` makes the generator of each batch from its index,
    so that the random numbers of a batch do not depend on earlier batches."""
    given = {"conditions": conditions, "known": known, "known_mask": known_mask}
    parts = []
    for index, where in enumerate(batches(n, batch_size)):
        own = {name: each[where] for name, each in given.items() if each is not None}
        parts.append(prior.sample(where.stop - where.start, rng(index), sampling, **own))
    return torch.cat(parts)


def shared(
    prior: ExactPrior,
    start: StartWalk,
    uniforms: Float[Tensor, "n t"],
    sampling: Sampling,
    *given: Tensor | None,  # conditions [n,c], known [n,t], known_mask [n,t]
) -> tuple[Int[Tensor, "n t"], Bool[Tensor, ""]]:
    """`walked`; on a CPU each core walks a part of the images (`autoregression/forks.py`)."""
    if next(chain(prior.parameters(), prior.buffers())).device.type != "cpu":
        return walked(prior, start, uniforms, sampling, *given)

    @torch.inference_mode()  # set per thread; small operations cost up to a tenth less than under no_grad
    def walk(rows: slice) -> tuple[Tensor, Tensor]:
        return walked(prior, start, uniforms[rows], sampling, *(None if one is None else one[rows] for one in given))

    codes, sounds = zip(*spread(walk, len(uniforms), PART), strict=True)
    return torch.cat(codes), torch.stack(sounds).all()  # new tensors: inference tensors cannot be written to


def walked(
    prior: ExactPrior,
    start: StartWalk,
    uniforms: Float[Tensor, "n t"],
    sampling: Sampling,
    conditions: Int[Tensor, "n c"] | None,
    known: Int[Tensor, "n t"] | None,
    known_mask: Bool[Tensor, "n t"] | None,
) -> tuple[Int[Tensor, "n t"], Bool[Tensor, ""]]:
    """The codes of these `uniforms`, and whether all logits were sound. It reads no value from the device, so that a GPU need
    not wait between positions and the whole walk can be captured (`cuda_graphs.py`)."""
    walk = guided(start, len(uniforms), conditions, prior.conditioning, sampling.guidance)
    order, sounds = list(prior.order), []
    logits = next(walk)
    uniforms = uniforms.to(logits.device).t().contiguous()
    codes = torch.empty(uniforms.shape, dtype=torch.int64, device=logits.device)
    if known is not None and known_mask is not None:
        known, known_mask = known.to(logits.device), known_mask.to(logits.device)
    for index, t in enumerate(order):
        sampled, sound = sample_unchecked(truncate(logits.double(), sampling), uniforms[t])
        codes[t] = (
            sampled if known is None or known_mask is None else torch.where(known_mask[:, t], known[:, t], sampled)
        )
        sounds.append(sound)
        if index + 1 < len(order):
            logits = walk.send(codes[t])
    walk.close()
    return codes.t().contiguous(), torch.stack(sounds).all()


def guided(
    start: StartWalk,
    n: int,
    conditions: Int[Tensor, "n c"] | None,
    conditioning: Conditioning,
    guidance: Mapping[str, float],
) -> CodeWalk:
    """A walk under guidance, see `Guided`. The parts walk side by side."""
    if conditions is None:
        return start(n, None)
    guided = Guided.of(conditions, conditioning, guidance)
    walk = start(n * (1 + len(guided.strengths)), guided.parts)
    return _blended(walk, guided) if guided.strengths else walk


class Guided(NamedTuple):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) of several conditions. With strengths g_i

        logits = l(all) + sum over i of (g_i - 1) (l(all) - l(all but i))

    l(all) - l(all but i) is log p(condition i | codes, all other conditions) up to a constant: of each condition the classifier
    that the prior implies is raised to the power of g_i. Where all g_i are 1 this is the prior's own law, with one condition it
    is the formula of the paper. The sum of Liu et al. 2022 (arXiv 2206.01714, eq. 11), in which each condition is given alone,
    would not be that law, since the vendor and the words of a drawing are not independent.

    A condition of strength 0 is left out for good, and one of strength 1 costs nothing: so `parts` are 1 + m times the rows, the
    first of all conditions, then without each of the m that have another strength.
    """

    parts: Int[Tensor, "parts*n c"]
    strengths: tuple[float, ...]

    @classmethod
    def of(cls, conditions: Int[Tensor, "n c"], conditioning: Conditioning, guidance: Mapping[str, float]) -> Guided:
        if ignored := [name for name, strength in guidance.items() if strength == 0]:
            conditions = conditioning.without(conditions, ignored)
        strengths = {name: strength for name, strength in guidance.items() if strength not in (0, 1)}
        parts = [conditions, *(conditioning.without(conditions, [name]) for name in strengths)]
        return cls(torch.cat(parts) if strengths else conditions, tuple(strengths.values()))

    def blended(self, logits: Float[Tensor, parts * n * k]) -> Float[Tensor, n * k]:
        """From the logits of `parts`, in float64. A code that is impossible in one of them stays so."""
        given, *others = logits.double().chunk(1 + len(self.strengths))
        first, *rest = zip(self.strengths, others, strict=True)
        found = first[1] + first[0] * (given - first[1])
        for strength, other in rest:
            found = found + (strength - 1) * (given - other)
        possible = given.isfinite()
        for other in others:
            possible = possible & other.isfinite()  # infinity - infinity is NaN
        return torch.where(possible, found, -math.inf)


def _blended(walk: CodeWalk, guided: Guided) -> CodeWalk:
    logits = next(walk)
    while True:
        codes = yield guided.blended(logits)
        try:
            logits = walk.send(codes.repeat(1 + len(guided.strengths)))
        except StopIteration:
            return


def require_known(
    prior: Prior, n: int, known: Int[Tensor, "n t"] | None, known_mask: Bool[Tensor, "n t"] | None
) -> None:
    """Checks shapes, types and known codes. Codes outside the mask may have any value, such as -1."""
    if known is None and known_mask is None:
        return
    if known is None or known_mask is None:
        raise InputError("known and known_mask must be given together or not at all")
    want = (n, prior.space.length)
    for name, given, dtype in (("known", known, torch.int64), ("known_mask", known_mask, torch.bool)):
        if tuple(given.shape) != want or given.dtype != dtype:
            raise InputError(f"{name} must be {dtype} of shape {want}, got {given.dtype} of {tuple(given.shape)}")
    parts = zip(prior.space.split(known), prior.space.split(known_mask), prior.space.sizes, strict=True)
    for codes, where, size in parts:
        if bool(((codes < 0) | (codes >= size))[where].any()):
            raise InputError(f"known codes must be from 0 to {size - 1}, as many as the codebook has")


def naive_walk(prior: ExactPrior, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
    """One full forward pass per position: T times the work, but simple. A cached walk must give the same logits."""
    device = next(chain(prior.parameters(), prior.buffers())).device
    codes = torch.zeros(n, prior.space.length, dtype=torch.int64, device=device)
    for t in prior.order:
        grid, place = prior.space.locate(t)
        codes[:, t] = yield prior.logits(codes, conditions)[grid][:, place]


@torch.no_grad()
def naive_sample(
    prior: ExactPrior,
    n: int,
    generator: Generator,
    sampling: Sampling = Sampling(),  # noqa: B008  a NamedTuple does not change
    **given: Any,
) -> Tensor:
    """The codes that `prior.sample` must return, from `prior.logits` alone; for tests and benchmarks."""
    return sample(prior, partial(naive_walk, prior), n, generator, sampling, **given)
