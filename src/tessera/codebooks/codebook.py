"""What quantizers with a codebook share: nearest code, gradient estimators, initialisation, EMA step, restarts.

Functions on z [N,D] and codebook [K,D], and two modules that hold a codebook, without host synchronisation from the second
training step on; with several ranks, statistics are summed over them, so that every rank ends with the codebook that one
process with the whole batch would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core import collectives
from tessera.core.errors import NonFiniteError
from tessera.core.params import Strict

if TYPE_CHECKING:
    from tessera.core.params import Params

CHUNK = 1 << 22  # entries of the [N,K] score matrix held at once: bounds the memory, not the result
CACHED = 1 << 19  # of them on a CPU: what its cores' caches hold
DOUBLINGS = 60  # of the noise that parts equal codes: from a rounding error of any latents to more than all of them
SAMPLE = 16  # latents that `centre` looks at
KNOWN = 1e-3  # distance to its code, as a share of the draws' root mean square, under which a latent has one of its own
ROUNDING = 1e-5  # of a mean of many equal latents, as a share of their length
HASH = 6364136223846793005  # multiplier of Knuth's MMIX generator: odd, with bits all over
LEAST = 1e-30  # EMA count, below which the last code vector stands
RANDOM = ("normal", "uniform")  # initialisations that see no latent


# latents


def to_rows(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b*h*w d"]:
    """In float32 at least: half precision would choose other codes."""
    return z.to(torch.promote_types(z.dtype, torch.float32)).permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_map(rows: Float[Tensor, "b*h*w d"], like: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """The inverse of `to_rows`, for latents shaped as `like`."""
    b, d, h, w = like.shape
    return rows.view(b, h, w, d).permute(0, 3, 1, 2)


def nearest(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """Index of the nearest code vector in Euclidean distance (van den Oord et al. 2017, eq. 1); of equally near ones, where
    their scores are exact, the lowest.

    argmin |z - e|^2 = argmin |e|^2 - 2 z.e: |z|^2 and the root change no order. Latents far from the origin, compared with
    how far apart they lie, are counted from their `centre`, and the code vectors with them: their squares would be so large
    that float32 has no digits left for the differences.
    """
    middle = centre(z)
    far = not readable(z) or bool(middle.square().sum() > (_some(z) - middle).square().sum(1).nanmedian())
    codebook = codebook - middle if far else codebook
    half = 0.5 * codebook.square().sum(1, keepdim=True)
    rows = max(1, (min(CACHED, CHUNK) if z.is_cpu else CHUNK) // len(codebook))
    parts = (part - middle if far else part for part in z.split(rows))
    return torch.cat([_first_maximum(torch.addmm(half, codebook, part.t(), beta=-1)) for part in parts])


def centre(z: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """A point amid the latents: of each channel the (lower) median of a few of them, evenly spaced.

    Of latents and not of the code vectors, of which most may be dead, and far from where the others are. A median and not a
    mean: a number that is there, to which differences are exact where the numbers lie on a lattice, so that equal distances
    stay equal; and it leaves out the latents of an image that are not finite. It serves one cloud of latents: where a few lie
    in another, far from it, those are compared with as few digits as without.
    """
    some = _some(z)
    return torch.where(some.isfinite(), some, torch.nan).nanmedian(0).values.nan_to_num(0.0)


def _some(z: Float[Tensor, "n d"]) -> Float[Tensor, "s d"]:
    return z[:: max(1, -(-len(z) // SAMPLE))]


def readable(tensor: Tensor) -> bool:
    """Whether Python may look at a value at no cost: on a GPU it would wait for all work that goes before."""
    return tensor.is_cpu


def _first_maximum(scores: Float[Tensor, "k n"]) -> Int[Tensor, " n"]:
    """Where each column is largest; the lowest index of equal ones.

    On a CPU `argmax` compares one score after the other, and max pooling of a channels-last image many channels at once, in
    a seventh of the time. So the columns are the channels of an image k high; its width is there for the threads to share.
    """
    if not scores.is_cpu:
        return scores.argmax(0)
    k, n = scores.shape
    width = math.gcd(n, 8)
    image = scores.view(1, k, width, n // width).permute(0, 3, 1, 2)
    _, places = F.max_pool2d(image, (k, 1), return_indices=True)
    return places.permute(0, 2, 3, 1).flatten() >> (width.bit_length() - 1)  # by a power of two: a division is slow


def blind_to_length(loss: str, params: Params) -> Iterator[str]:
    """Rule of a loss term in units of the latents, which would be met by their length where the codes do not depend on it."""
    quantizer = params.config("quantizer")
    if getattr(quantizer, "distance", "euclidean") == "cosine":
        yield (
            f"losses.{loss}.weight: must be 0 with quantizer.distance cosine, to which the length of a latent is nothing: "
            f"the term would be met by shrinking or stretching latents, got {params.raw['losses'][loss]['weight']}; set "
            "quantizer.distance to euclidean"
        )


# the gradient of z_q, handed to z


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q forward, the gradient of z_q handed to z unchanged (van den Oord et al. 2017, sec. 3.2).

    It is z_q to the last bit, as `decode` gives it, and copies nothing; the usual z + sg(z_q - z) is neither.
    """
    return _StraightThrough.apply(z, z_q.detach())


class _Rotation(torch.autograd.Function):
    SMALL = 1e-6  # norms, and 1 + cosine, under which no rotation is defined

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, z_q: Tensor) -> Tensor:
        ctx.save_for_backward(z, z_q)
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        """lambda R^T g, with R^T g = g - r (r.g) 2 + 2 u (v.g) for the unit vectors u of z, v of z_q, r of u + v."""
        z, z_q = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's stubs have it on no context
        u_norm, v_norm = (torch.linalg.vector_norm(x, dim=1) for x in (z, z_q))
        inverse_u, inverse_v = (1 / norm.clamp(min=_Rotation.SMALL) for norm in (u_norm, v_norm))
        ug, vg = _dots(z, gradient) * inverse_u, _dots(z_q, gradient) * inverse_v
        one_plus_cosine = 1 + _dots(z, z_q) * inverse_u * inverse_v  # |u + v|^2 / 2
        reflected = (ug + vg) / one_plus_cosine.clamp(min=_Rotation.SMALL)
        scale = v_norm * inverse_u
        defined = (u_norm > _Rotation.SMALL) & (v_norm > _Rotation.SMALL) & (one_plus_cosine > _Rotation.SMALL)
        along_z = torch.where(defined, scale * (2 * vg - reflected) * inverse_u, 0)
        along_z_q = torch.where(defined, -scale * reflected * inverse_v, 0)
        turned = gradient * torch.where(defined, scale, 1)[:, None]
        return turned.addcmul_(z, along_z[:, None]).addcmul_(z_q, along_z_q[:, None]), None


def _dots(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return torch.einsum("nd,nd->n", a, b)  # as a product of matrices: no [N,D] array in between, as vecdot makes


def rotation(z: Float[Tensor, "n d"], z_q: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """z_q forward; backward the gradient turned and rescaled as z is onto z_q (Fifty et al. 2024, arXiv 2410.06424,
    section 4).

    Forward is lambda R z with lambda = |z_q| / |z| and the rotation R from z to z_q, by two Householder reflections, all
    taken as constants; that product is z_q, so only the backward pass computes. Where z or z_q nearly vanishes, or they are
    opposite, R is not defined, and the gradient is handed on unchanged.
    """
    return _Rotation.apply(z, z_q.detach())


Estimator = Literal["straight_through", "rotation"]
ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}


# where code vectors come from


def random_codes(k: int, dim: int, how: str) -> Float[Tensor, "k d"]:
    """Code vectors before any latent is seen, drawn from torch's global generator: each number from U(-1/K, 1/K) for
    `uniform`, else from N(0, 1)."""
    return torch.empty(k, dim).uniform_(-1 / k, 1 / k) if how == "uniform" else torch.randn(k, dim)


def initial_codes(z: Float[Tensor, "n d"], k: int, how: str) -> Float[Tensor, "k d"]:
    """K distinct code vectors to start from, drawn by torch's global generator: `latents` distinct rows of z, or `kmeans` on
    z started from those. Where fewer than K rows of z differ, each is taken equally often, and all copies but one are
    `parted` from it by noise. z is the joined batch of all ranks, and rank 0 draws."""
    found = _distinct_rows(z, k)
    codes = _from_rank_0(parted(found.repeat(-(-k // len(found)), 1)[:k]))
    return _from_rank_0(parted(kmeans(z, codes))) if how == "kmeans" else codes


def parted(codes: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """The codes, of which those that equal an earlier one are moved, since copies would never part again: by normal noise of
    a hundredth of the standard deviation of each channel, doubled until all differ."""
    scale = 1e-2 * codes.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1e-2 * codes.abs().mean().clamp(min=1e-3))  # of equal codes, or one number
    for doublings in range(DOUBLINGS):
        repeated = repeats(codes)
        if not repeated.any():
            break
        moved = codes + 2**doublings * scale * torch.randn_like(codes)
        codes = torch.where(repeated[:, None], moved, codes)
    return codes


def kmeans(z: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], iterations: int = 10) -> Float[Tensor, "k d"]:
    """Lloyd's iterations from `codes`, on the z of all ranks; a cluster that empties keeps its centre."""
    for _ in range(iterations):
        counts, sums = statistics(z, nearest(z, codes), len(codes))
        collectives.add_up(counts, sums)
        codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes)
    return codes


def statistics(
    z: Float[Tensor, "n d"], codes: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """How many latents chose each code, and their sum. No one-hot matrix: index_add costs N*D, not N*K*D."""
    counts = z.new_zeros(k).index_add_(0, codes, torch.ones_like(codes, dtype=z.dtype))
    return counts, z.new_zeros(k, z.shape[1]).index_add_(0, codes, z)


def _from_rank_0(tensor: Tensor) -> Tensor:
    if collectives.ranks() > 1:
        tensor = tensor.contiguous()
        collectives.take_from_rank_0(tensor)
    return tensor


def _joined_rows(z: Float[Tensor, "n d"], where: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
    """Rows of the joined batch, rank after rank, at indices that are the same on every rank. Each rank fills in its own
    rows: K*D numbers travel, however large the batch."""
    if collectives.ranks() == 1:
        return z[where]
    own = where - collectives.rank() * len(z)
    here = (own >= 0) & (own < len(z))
    rows = torch.where(here[:, None], z[own.clamp(0, len(z) - 1)], 0)
    collectives.add_up(rows)
    return rows


def _distinct_rows(z: Float[Tensor, "n d"], k: int) -> Float[Tensor, "u d"]:
    """The first K distinct rows of the joined batch in a random order, or all that differ: the same on every rank."""
    order = _from_rank_0(torch.randperm(len(z) * collectives.ranks(), device="cpu").to(z.device))
    hashes = z.new_zeros(collectives.ranks(), len(z), dtype=torch.int64)
    hashes[collectives.rank()] = row_hashes(z)
    collectives.add_up(hashes)  # of zeros and each rank's own
    return _joined_rows(z, order[~_repeated(hashes.flatten()[order])][:k])


def row_hashes(rows: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """A number for each row, the same for equal rows; rows that differ have the same only by a rare chance. Their bits as
    digits of a number in base `HASH`, modulo 2^64."""
    digits = (rows + 0.0).contiguous().view(torch.int32)  # + 0: -0 equals 0
    return (digits * torch.full_like(digits[0], HASH, dtype=torch.int64).cumprod(0)).sum(1)


def repeats(rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Which rows equal an earlier one."""
    return _repeated(row_hashes(rows))


def _repeated(numbers: Shaped[Tensor, " n"]) -> Bool[Tensor, " n"]:
    ascending, order = numbers.sort(stable=True)
    found = torch.zeros_like(numbers, dtype=torch.bool)
    return found.scatter_(0, order[1:], ascending[1:] == ascending[:-1])


def ema_codes(counts: Float[Tensor, " k"], sums: Float[Tensor, "k d"], epsilon: float) -> Float[Tensor, "k d"]:
    """Code vectors m_i / N_i from their running statistics (van den Oord et al. 2017, eq. 8), with Laplace smoothing of
    the counts by `epsilon`. Without, a code that nobody chooses stays: m_i and N_i shrink alike. With it, such a code slides
    to the origin once N_i is below epsilon, after log(epsilon) / log(decay) steps."""
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return sums / smoothed[:, None]


def dead(counts: Float[Tensor, " k"], below: float) -> Bool[Tensor, " k"]:
    """Codes whose running count is under `below` times the mean count."""
    return counts < below * counts.mean()


# modules that hold a codebook


class Settings(Strict):
    """What codebooks that are trained with the autoencoder share."""

    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    decay: float = Field(ge=0, lt=1, description="EMA rate per step (gamma of eq. 6); under `gradient` of the counts "
                         "that tell which codes are dead", examples=[0.9])  # fmt: skip
    initialisation: Literal["normal", "uniform", "latents", "kmeans"] = Field(
        description="first code vectors: N(0, 1), or U(-1/K, 1/K), or latents of the first batch, or k-means on them",
        examples=["latents"],
    )
    restart: Literal["none", "dead"] = Field(
        description="dead: a code hardly used is put on a latent of the batch, with its EMA statistics",
        examples=["dead"],
    )
    restart_below: float = Field(ge=0, lt=1, description="share of the mean use under which a code is dead",
                                 examples=[0.1])  # fmt: skip


class EMASettings(Settings):
    smoothing: float = Field(
        ge=0, le=1, description="epsilon added to the EMA counts; 0: a code that no latent chooses stays where it is, else "
        "it slides to the origin once its count is below, where latents may choose it again", examples=[1e-5])  # fmt: skip


class Codebook(nn.Module):
    """K code vectors, and the running `counts` N_i [K] of how often each is chosen.

    `codes` [K,D] is a buffer or a parameter, as the subclass moves it. `prepare` before a training batch is quantized,
    `update` after, with the codebook as it stood.
    """

    codes: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("counts", torch.ones(settings.codebook_size))
        self.register_buffer("initialised", torch.tensor(settings.initialisation in RANDOM))
        self._ready = False  # the buffer's value, once it is True: reading it again would wait for the device

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        """The code vectors as latents are compared with them."""
        return (self.codes,)

    def prepare(self, rows: Float[Tensor, "n d"]) -> None:
        """Take the first code vectors from the first training batch.

        Raises:
            NonFiniteError: that batch is not finite, on whichever rank: all of them stop, and none waits for another.
        """
        if self._ready or self.initialised:
            self._ready = True
            return
        wrong = (~torch.isfinite(rows)).any().float()
        collectives.add_up(wrong)
        if wrong:
            raise NonFiniteError("the latents z are not finite")
        everywhere = torch.ones_like(self.counts, dtype=torch.bool)
        found = initial_codes(rows.detach(), len(self.counts), self.settings.initialisation)
        self.place(everywhere, found, len(rows) * collectives.ranks() / len(self.counts))
        self.initialised.fill_(True)
        self._ready = True

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "n d"], chosen: Int[Tensor, " n"]) -> None:
        """Count the choices, move, then restart dead codes. A batch that is not finite changes nothing; the loss tells."""
        counts, sums = statistics(rows, chosen, len(self.counts))
        collectives.add_up(counts, sums)
        finite = torch.isfinite(sums).all()
        self.counts.lerp_(torch.where(finite, counts, self.counts), 1 - self.settings.decay)
        self.move(sums, finite)
        if self.settings.restart == "dead":
            self.restart(dead(self.counts, self.settings.restart_below) & finite, rows, chosen)

    def restart(self, is_dead: Bool[Tensor, " k"], rows: Float[Tensor, "n d"], chosen: Int[Tensor, " n"]) -> None:
        """Each dead code draws a latent of the joined batch, and is put on it, with the count of a code of mean use.

        But where two draws are equal, one of the codes stays, and draws again after the next batch; and so does one whose
        latent has a code of its own already: else two codes would share what one is enough for.
        """
        rng = _from_rank_0(
            torch.randint(len(rows) * collectives.ranks(), (len(is_dead),), device="cpu").to(rows.device)
        )
        if readable(is_dead) and not is_dead.any():
            return
        found, codes = _joined_rows(rows, rng), self.codebooks[0].detach()
        distance = torch.linalg.vector_norm(found - codes[_joined_rows(chosen[:, None], rng)[:, 0]], dim=1)
        near = KNOWN * distance.square().mean().sqrt()
        own = (distance <= near) | (distance <= ROUNDING * torch.linalg.vector_norm(found, dim=1))
        twice = _repeated(torch.where(is_dead, row_hashes(found), 0))
        self.place(is_dead & ~own & ~twice, found, self.counts.mean())

    def move(self, sums: Float[Tensor, "k d"], finite: Bool[Tensor, ""]) -> None:
        """A step of the code vectors towards the batch's sums, if it is `finite`; none where a gradient moves them."""

    @torch.no_grad()
    def place(self, where: Bool[Tensor, " k"], codes: Float[Tensor, "k d"], count: Tensor | float) -> None:
        """Put the code vectors at `where` on `codes`, as if each had been chosen `count` times."""
        self.codes.copy_(torch.where(where[:, None], codes, self.codes))
        self.counts.copy_(torch.where(where, torch.as_tensor(count, dtype=self.counts.dtype), self.counts))


class EMACodebook(Codebook):
    """Code vectors that are running means of the latents that chose them (van den Oord et al. 2017, eq. 6-8).

    Buffers: `codes` [K,D], `counts` N_i [K], `sums` m_i [K,D]. `unit`: kept on the unit sphere.
    """

    settings: EMASettings
    sums: Tensor

    def __init__(self, settings: EMASettings, dim: int, unit: bool = False) -> None:
        super().__init__(settings)
        self.unit = unit
        codes = random_codes(settings.codebook_size, dim, settings.initialisation)
        self.register_buffer("codes", F.normalize(codes) if unit else codes)
        self.register_buffer("sums", self.codes.clone())

    def move(self, sums: Float[Tensor, "k d"], finite: Bool[Tensor, ""]) -> None:
        self.sums.lerp_(torch.where(finite, sums, self.sums), 1 - self.settings.decay)
        codes = ema_codes(self.counts, self.sums, self.settings.smoothing)
        # not by a count that has all but underflowed
        moved = finite & (self.counts > LEAST)[:, None]
        self.codes.copy_(torch.where(moved, F.normalize(codes) if self.unit else codes, self.codes))

    @torch.no_grad()
    def place(self, where: Bool[Tensor, " k"], codes: Float[Tensor, "k d"], count: Tensor | float) -> None:
        """With its old sums a code would be back at its old place, and dead again, one step later."""
        super().place(where, F.normalize(codes) if self.unit else codes, count)
        self.sums.copy_(torch.where(where[:, None], self.codes * self.counts[:, None], self.sums))


class GradientCodebook(Codebook):
    """Code vectors that are parameters, moved by the optimizer; only their use is counted, for the restarts."""

    def __init__(self, settings: Settings, dim: int) -> None:
        super().__init__(settings)
        self.codes = nn.Parameter(random_codes(settings.codebook_size, dim, settings.initialisation))
