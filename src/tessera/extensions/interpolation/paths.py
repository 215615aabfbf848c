"""Interpolation by a tokenizer's codes or latents: blends of indices, code vectors and z, on the straight line or on the
sphere, level by level, or guided by a prior.

Each walk maps fractions of the way, 0 to 1, to images; at 0 and 1 they are the reconstructions of the two images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from tessera.core.contracts import ExactPrior, Prior, Tokenizer

EXACT = "donot_use_mm_for_euclid_dist"  # 0 between equal vectors


class Ends(NamedTuple):
    """The two images: names, what a prior is told of them, latents and codes."""

    names: list[str]
    conditions: Int[Tensor, "2 c"] | None  # None where no prior is asked, or an unconditional one
    z: tuple[Float[Tensor, "2 d h w"], ...]
    codes: Int[Tensor, "2 t"]


Walk = Callable[[Tokenizer, Ends, Float[Tensor, " frames"]], Float[Tensor, "frames c h w"]]  # at fractions 0 to 1


def index(tokenizer: Tokenizer, ends: Ends, fraction: Tensor) -> Float[Tensor, "frames c h w"]:
    first, last = ends.codes.double()
    return tokenizer.decode(torch.lerp(first, last, fraction.double()[:, None]).round().long())


def embedding(tokenizer: Tokenizer, ends: Ends, fraction: Tensor) -> Float[Tensor, "frames c h w"]:
    return tokenizer.decode_vectors(blended(tokenizer.vectors(ends.codes), fraction))


def latent(tokenizer: Tokenizer, ends: Ends, fraction: Tensor) -> Float[Tensor, "frames c h w"]:
    return decoded(tokenizer, blended(ends.z, fraction))


def slerp(tokenizer: Tokenizer, ends: Ends, fraction: Tensor) -> Float[Tensor, "frames c h w"]:
    return decoded(tokenizer, tuple(spherical(z[:1], z[1:], fraction[:, None, None, None]) for z in ends.z))


def hierarchical(tokenizer: Tokenizer, ends: Ends, fraction: Tensor) -> Float[Tensor, "frames c h w"]:
    """Level l of L moves while the fraction goes from l / L to (l + 1) / L: each level ends before the next finer one starts."""
    levels = len(ends.z)
    own = [(fraction * levels - level).clamp(0, 1) for level in range(levels)]
    return decoded(tokenizer, tuple(blended((z,), part)[0] for z, part in zip(ends.z, own, strict=True)))


def refined(
    tokenizer: Tokenizer, ends: Ends, fraction: Tensor, *, prior: Prior, rng: Generator, freedom: float
) -> Float[Tensor, "frames c h w"]:
    """Chooses codes one by one, each with the largest log p(code | codes before) - cost (see `costs`). A prior without exact
    likelihood instead takes the codes of `latent`, keeps those that one of the images has at the same place, and samples the
    others."""
    conditions = None
    if ends.conditions is not None:  # those of the nearer image
        conditions = ends.conditions.to(fraction.device)[(fraction > 0.5).long()]
    if not prior.exact:
        codes = tokenizer.space.join([level.codes for level in tokenizer.quantize(blended(ends.z, fraction))])
        kept = (codes == ends.codes[0]) | (codes == ends.codes[1])
        return tokenizer.decode(prior.sample(len(codes), rng, conditions=conditions, known=codes, known_mask=kept))
    parts = zip(tokenizer.codebooks, tokenizer.space.split(ends.codes), strict=True)
    cost = [costs(book, part.flatten(1), fraction, freedom) for book, part in parts]
    codes = ends.codes[:1].repeat(len(fraction), 1)
    exact = cast("ExactPrior", prior)
    walk, order = exact.walk(len(fraction), conditions), list(exact.order)
    logits = next(walk)
    for turn, t in enumerate(order):
        grid, place = tokenizer.space.locate(t)
        # clamp: a code with probability 0 can still win if it is the only one of finite cost
        codes[:, t] = (logits.double().clamp(min=-1e6) - cost[grid][:, place]).argmax(1)
        if turn + 1 < len(order):
            logits = walk.send(codes[:, t])
    walk.close()
    return tokenizer.decode(codes)


def costs(
    book: Float[Tensor, "k d"], ends: Int[Tensor, "2 places"], fraction: Tensor, freedom: float
) -> Float[Tensor, "frames places k"]:
    """|v - e|^2 / 2 s^2 for each code vector e, where v is the blend of the ends' code vectors and s is `freedom` times the
    distance of v to the nearer one. If the ends agree, and at the ends themselves, all other codes have infinite cost."""
    first, last = book.detach().double()[ends]
    part = fraction.double()[:, None, None]
    squares = torch.cdist(torch.lerp(first, last, part), book.detach().double(), compute_mode=EXACT).square()
    variance = (freedom * torch.minimum(part, 1 - part) * (last - first).norm(dim=1, keepdim=True)).square()
    return torch.where(squares == 0, 0.0, squares / (2 * variance))


# blending and decoding


def decoded(tokenizer: Tokenizer, z: tuple[Tensor, ...]) -> Float[Tensor, "frames c h w"]:
    return tokenizer.decode_vectors(tuple(level.z_q for level in tokenizer.quantize(z)))


def blended(pairs: tuple[Float[Tensor, "2 d h w"], ...], fraction: Tensor) -> tuple[Float[Tensor, "frames d h w"], ...]:
    """(1 - a) z_1 + a z_2 for each fraction a, level by level; exact at 0 and 1."""
    return tuple(torch.lerp(pair[:1], pair[1:], fraction[:, None, None, None]) for pair in pairs)


def spherical(
    first: Float[Tensor, "1 d h w"], last: Float[Tensor, "1 d h w"], fraction: Float[Tensor, "frames 1 1 1"]
) -> Float[Tensor, "frames d h w"]:
    """At each place the direction moves at constant speed along the great circle (Shoemake 1985), and the length changes
    linearly. If the great circle is not unique (equal or opposite directions, or zero), the path is the straight line."""
    a, b, fraction = first.double(), last.double(), fraction.double()
    sizes = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    u, v = (z / size.clamp(min=1e-30) for z, size in zip((a, b), sizes, strict=True))
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    straight = (angle.sin() < 1e-6) | (sizes[0] == 0) | (sizes[1] == 0)
    turned = (((1 - fraction) * angle).sin() * u + (fraction * angle).sin() * v) / angle.sin().clamp(min=1e-6)
    return torch.where(straight, torch.lerp(a, b, fraction), turned * torch.lerp(*sizes, fraction)).to(first.dtype)
