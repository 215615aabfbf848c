"""Samples hidden codes by a prior's joint likelihood: Metropolis within Gibbs (Hastings 1970; Tierney 1994). Its stationary
distribution is p(hidden codes | known codes), although the prior predicts each code only from the codes before it."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from tessera.autoregression.sampling import sample_codes
from tessera.core.contracts import ExactPrior


class Sweeps(Protocol):
    """Params of the chains."""

    temperature: float  # p is the prior's to the power of 1 / temperature
    sweeps: int  # visits to each hidden code, if `updates` allows
    updates: int  # most visits of a chain, over all sweeps; each costs a forward pass
    proposals: int  # m of `proposal`
    exploration: float  # of `proposal`


class Chains(NamedTuple):
    codes: Int[Tensor, "n t"]
    proposed: int  # proposals that differ from the present code
    accepted: int


@torch.no_grad()
def gibbs(
    prior: ExactPrior, codes: Int[Tensor, "n t"], hidden: Bool[Tensor, "n t"], conditions: Int[Tensor, "n c"] | None,
    config: Sweeps, rng: Generator,
) -> Chains:  # fmt: skip
    """Visits hidden codes in the prior's order. At each it proposes another value x' and accepts it with probability
    min(1, p(x') q(x) / (p(x) q(x'))), where p is the prior's joint probability of all codes. q (`proposal`) depends only on
    the codes before, which are the same for both values, so p(hidden | known) is stationary.

    There is one chain per image. Every image has its own list of hidden codes (`visits`); chains with fewer wait."""
    order = torch.as_tensor(list(prior.order), device=codes.device)
    listed = hidden[:, order]
    places, count = order[(~listed).long().argsort(dim=1, stable=True)], listed.sum(1)  # hidden codes first
    codes, known, proposed, accepted = codes.clone(), conditionals(prior, codes, conditions), 0, 0
    for which in visits(count, config.sweeps, config.updates, rng):
        numbers = torch.rand(2, len(codes), generator=rng, dtype=torch.float64, device=rng.device).to(codes.device)
        rows = (which >= 0).nonzero()[:, 0]
        at = places[rows, which[rows]]
        q = proposal(known[rows, at] / config.temperature, config.proposals, config.exploration)
        offered, present = sample_codes(q, numbers[0, rows]), codes[rows, at]
        gain = (q.gather(1, present[:, None]) - q.gather(1, offered[:, None]))[:, 0]
        moved = (offered != present).nonzero()[:, 0]  # equal proposals would change nothing
        if not len(moved):
            continue
        rows, at, offered, gain = rows[moved], at[moved], offered[moved], gain[moved]
        candidate = codes[rows].scatter(1, at[:, None], offered[:, None])
        then = conditionals(prior, candidate, None if conditions is None else conditions[rows])
        ratio = (_joint(then, candidate) - _joint(known[rows], codes[rows])) / config.temperature
        yes = acceptance(ratio + gain, numbers[1, rows])
        codes[rows[yes]], known[rows[yes]] = candidate[yes], then[yes]
        proposed, accepted = proposed + len(rows), accepted + int(yes.sum())
    return Chains(codes, proposed, accepted)


def visits(count: Int[Tensor, " n"], sweeps: int, updates: int, rng: Generator) -> Int[Tensor, "s n"]:
    """Index of the hidden code, among its `count`, that each chain visits in each turn; -1: the chain waits.

    Sweeps are in order. If `updates` shorten a sweep, it visits codes that are evenly spread over all hidden ones, from a
    random start (systematic sampling: none twice, all equally often). The first codes alone would leave the lower part of
    each image unchanged."""
    longest = int(count.max())
    whole, rest = divmod(min(sweeps * longest, updates), max(1, longest))
    turns = torch.arange(longest, device=count.device)[:, None]
    sweep = torch.where(turns < count, turns, -1)
    starts = torch.rand(len(count), generator=rng, dtype=torch.float64, device=rng.device).to(count.device)
    spread = ((turns[:rest] + starts) * count / rest).long().minimum(count - 1)  # the sum may round up
    return torch.cat([sweep] * whole + [torch.where(count > rest, spread, sweep[:rest])])


def proposal(log_p: Float[Tensor, "n k"], m: int, exploration: float) -> Float[Tensor, "n k"]:
    """log q: one of the m likeliest codes in proportion to p, or with probability `exploration` any code in proportion to p.
    `log_p` need not be normalised."""
    p = log_p.softmax(1)
    likeliest = torch.zeros_like(p).scatter(1, p.topk(min(m, p.shape[1]), dim=1).indices, 1.0) * p
    return ((1 - exploration) * likeliest / likeliest.sum(1, keepdim=True) + exploration * p).log()


def acceptance(log_ratio: Float[Tensor, " n"], uniforms: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """True with probability min(1, ratio); False if the ratio is NaN."""
    return uniforms.log() < log_ratio


def conditionals(
    prior: ExactPrior, codes: Int[Tensor, "n t"], conditions: Int[Tensor, "n c"] | None
) -> Float[Tensor, "n t k"]:
    """log p of every code at every position given the codes before; minus infinity beyond the end of a smaller codebook."""
    largest = max(prior.space.sizes)
    grids = [grid.double().log_softmax(-1) for grid in prior.logits(codes, conditions)]
    return torch.cat([F.pad(grid, (0, largest - grid.shape[2]), value=-math.inf) for grid in grids], dim=1)


def _joint(log_p: Float[Tensor, "n t k"], codes: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
    return log_p.gather(2, codes[..., None])[..., 0].sum(1)
