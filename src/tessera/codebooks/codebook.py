"""Codebooks of quantizers: nearest code, gradient estimators, initialisation, EMA step, restarts.

Functions take z [N,D] and a codebook [K,D]; two modules hold a codebook. Nothing waits for the device from the second
training step on. With several ranks, statistics are summed over ranks, so every rank gets the codebook that one process
would get from the whole batch.
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

CHUNK = 1 << 22  # most entries of the [N,K] score matrix in memory at once; does not change results
CACHED = 1 << 19  # the same on a CPU: as many as fit the caches of its cores
FEWEST = 64  # latents searched at once, at least: with fewer, the product with a large codebook waits for memory
DOUBLINGS = 60  # of the noise that separates equal codes: from a rounding error to beyond the size of any latents
SAMPLE = 16  # latents that `centre` reads
KNOWN = 1e-3  # a latent nearer to its code vector than this, relative to the RMS over sampled latents, has its own code
ROUNDING = 1e-5  # rounding error of a mean of many equal latents, relative to their length
HASH = 6364136223846793005  # multiplier of Knuth's MMIX generator: odd, with bits set throughout
LEAST = 1e-30  # EMA count below which a code vector stays as it is
RANDOM = ("normal", "uniform")  # initialisations without latents


# latents


def to_rows(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b*h*w d"]:
    """Latents as rows, at least in float32: half precision would give other codes."""
    return z.to(torch.promote_types(z.dtype, torch.float32)).permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_map(rows: Float[Tensor, "b*h*w d"], like: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """The inverse of `to_rows`, for latents shaped as `like`."""
    b, d, h, w = like.shape
    return rows.view(b, h, w, d).permute(0, 3, 1, 2)


def nearest(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """Index of the nearest code vector in Euclidean distance (van den Oord et al. 2017, eq. 1). On a tie with exact scores,
    the lowest index.

    argmin |z - e|^2 = argmin |e|^2 - 2 z.e, since |z|^2 and the root do not change the order. If latents are farther from
    the origin than from each other, latents and code vectors are centred at `centre(z)`. Otherwise their squares would be
    so large that float32 had no digits left for the differences.
    """
    middle = centre(z)
    far = not readable(z) or bool(middle.square().sum() > (_some(z) - middle).square().sum(1).nanmedian())
    codebook = codebook - middle if far else codebook
    half = 0.5 * codebook.square().sum(1, keepdim=True)
    rows = max(FEWEST, (CACHED if z.is_cpu else CHUNK) // len(codebook))
    parts = (part - middle if far else part for part in z.split(rows))
    return torch.cat([_first_maximum(torch.addmm(half, codebook, part.t(), beta=-1)) for part in parts])


def centre(z: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """A point amid the latents: the (lower) median of each channel over a few evenly spaced latents.

    It uses latents, not code vectors: most code vectors can be dead and far away. It is a median, not a mean. A median is one
    of the values, so differences from it are exact if values lie on a lattice, and equal distances stay equal. Latents that
    are not finite are left out. Centring helps one cloud of latents; a few latents in another cloud far away gain no digits.
    """
    some = _some(z)
    return torch.where(some.isfinite(), some, torch.nan).nanmedian(0).values.nan_to_num(0.0)


def _some(z: Float[Tensor, "n d"]) -> Float[Tensor, "s d"]:
    return z[:: max(1, -(-len(z) // SAMPLE))]


def readable(tensor: Tensor) -> bool:
    """Whether Python can read a value at no cost. On a GPU it would wait for all earlier work."""
    return tensor.is_cpu


def _first_maximum(scores: Float[Tensor, "k n"]) -> Int[Tensor, " n"]:
    """Index of the largest value of each column; on a tie the lowest.

    On a CPU `argmax` compares one score at a time. Max pooling of a channels-last image compares many channels at once, in a
    seventh of the time. So the columns become the channels of an image of height k, with a width that threads can divide.
    """
    if not scores.is_cpu:
        return scores.argmax(0)
    k, n = scores.shape
    width = math.gcd(n, 8)
    image = scores.view(1, k, width, n // width).permute(0, 3, 1, 2)
    _, places = F.max_pool2d(image, (k, 1), return_indices=True)
    return places.permute(0, 2, 3, 1).flatten() >> (width.bit_length() - 1)  # / width: `//` is slow


def blind_to_length(loss: str, params: Params) -> Iterator[str]:
    """Rule of a loss term in units of the latents: if codes ignore the length of latents, scaling them would satisfy it."""
    quantizer = params.config("quantizer")
    if getattr(quantizer, "distance", "euclidean") == "cosine":
        yield (
            f"losses.{loss}.weight: must be 0 with quantizer.distance cosine, which ignores the length of latents: "
            f"shrinking or stretching them would satisfy the term, got {params.raw['losses'][loss]['weight']}; set "
            "quantizer.distance to euclidean"
        )


# estimators of the gradient of z from that of z_q


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q in the forward pass; backward, the gradient of z_q is passed to z unchanged (van den Oord et al. 2017, sec. 3.2).

    The output equals z_q to the last bit, as `decode` gives it, without a copy. The usual z + sg(z_q - z) has neither
    property.
    """
    return _StraightThrough.apply(z, z_q.detach())


class _Rotation(torch.autograd.Function):
    SMALL = 1e-6  # norms and 1 + cosine below this leave the rotation undefined

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, z_q: Tensor) -> Tensor:
        ctx.save_for_backward(z, z_q)
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        """lambda R^T g, with R^T g = g - r (r.g) 2 + 2 u (v.g) for the unit vectors u of z, v of z_q, r of u + v."""
        z, z_q = ctx.saved_tensors  # type: ignore[attr-defined]  # missing in torch's stubs
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
    return torch.einsum("nd,nd->n", a, b)  # a matrix product: without the [N,D] intermediate of vecdot


def rotation(z: Float[Tensor, "n d"], z_q: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """z_q in the forward pass; backward, the rotation trick (Fifty et al. 2024, arXiv 2410.06424, section 4): the gradient is
    transformed by the rotation and scaling that take z to z_q.

    The forward pass is lambda R z with lambda = |z_q| / |z| and the rotation R from z to z_q (two Householder reflections),
    both taken as constants. The product equals z_q, so only the backward pass computes. R is undefined where z or z_q nearly
    vanishes or where they are opposite; there the gradient passes unchanged.
    """
    return _Rotation.apply(z, z_q.detach())


Estimator = Literal["straight_through", "rotation"]
ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}


# initialisation and statistics of code vectors


def random_codes(k: int, dim: int, how: str) -> Float[Tensor, "k d"]:
    """Code vectors sampled from torch's global generator before any latent is seen: U(-1/K, 1/K) for `uniform`, else
    N(0, 1)."""
    return torch.empty(k, dim).uniform_(-1 / k, 1 / k) if how == "uniform" else torch.randn(k, dim)


def initial_codes(z: Float[Tensor, "n d"], k: int, how: str) -> Float[Tensor, "k d"]:
    """K distinct initial code vectors, sampled by torch's global generator on rank 0. `latents`: distinct rows of z, the joined
    batch of all ranks; `kmeans`: k-means on z, started from such rows. If fewer than K rows of z differ, each is taken
    equally often, and noise separates the copies (`parted`)."""
    found = _distinct_rows(z, k)
    codes = _from_rank_0(parted(found.repeat(-(-k // len(found)), 1)[:k]))
    return _from_rank_0(parted(kmeans(z, codes))) if how == "kmeans" else codes


def parted(codes: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """The code vectors, with noise added to those that equal an earlier one: copies would stay equal in training. The noise
    is normal, with a hundredth of the standard deviation of each channel, doubled until all code vectors differ."""
    scale = 1e-2 * codes.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1e-2 * codes.abs().mean().clamp(min=1e-3))  # if all are equal
    for doublings in range(DOUBLINGS):
        repeated = repeats(codes)
        if not repeated.any():
            break
        moved = codes + 2**doublings * scale * torch.randn_like(codes)
        codes = torch.where(repeated[:, None], moved, codes)
    return codes


def kmeans(z: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], iterations: int = 10) -> Float[Tensor, "k d"]:
    """Lloyd's iterations from `codes` on the z of all ranks; an empty cluster keeps its centre."""
    for _ in range(iterations):
        counts, sums = statistics(z, nearest(z, codes), len(codes))
        collectives.add_up(counts, sums)
        codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes)
    return codes


def statistics(
    z: Float[Tensor, "n d"], codes: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """Number of latents that chose each code, and their sum. index_add costs N*D; a one-hot matrix would cost N*K*D."""
    counts = z.new_zeros(k).index_add_(0, codes, torch.ones_like(codes, dtype=z.dtype))
    return counts, z.new_zeros(k, z.shape[1]).index_add_(0, codes, z)


def _from_rank_0(tensor: Tensor) -> Tensor:
    if collectives.ranks() > 1:
        tensor = tensor.contiguous()
        collectives.take_from_rank_0(tensor)
    return tensor


def _joined_rows(z: Float[Tensor, "n d"], where: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
    """Rows of the joined batch, rank after rank, at indices that are the same on every rank. Each rank fills in its own
    rows, so only K*D numbers are sent, for any batch size."""
    if collectives.ranks() == 1:
        return z[where]
    own = where - collectives.rank() * len(z)
    here = (own >= 0) & (own < len(z))
    rows = torch.where(here[:, None], z[own.clamp(0, len(z) - 1)], 0)
    collectives.add_up(rows)
    return rows


def by_weight(fractions: Float[Tensor, " k"], weights: Float[Tensor, " n"]) -> Int[Tensor, " k"]:
    """Indices of the joined batch, rank after rank: those at which the running sum of its weights passes `fractions` of the
    whole sum. Uniform fractions, the same on every rank, give indices in proportion to the weights."""
    sums = weights.to(torch.float32 if weights.device.type == "mps" else torch.float64).cumsum(0)
    totals = sums.new_zeros(collectives.ranks())
    totals[collectives.rank()] = sums[-1]
    collectives.add_up(totals)
    edges = F.pad(totals.cumsum(0), (1, 0))  # of the parts that the ranks have, the same on every rank
    start, end = edges[collectives.rank()], edges[collectives.rank() + 1]
    targets = fractions.to(sums.dtype) * edges[-1]
    index = torch.searchsorted(sums, targets - start, right=True).clamp(max=len(sums) - 1)
    where = torch.where((targets >= start) & (targets < end), index + collectives.rank() * len(sums), 0)
    collectives.add_up(where)
    return where


def _distinct_rows(z: Float[Tensor, "n d"], k: int) -> Float[Tensor, "u d"]:
    """The first K distinct rows of the joined batch in a random order, or all distinct rows if fewer. Same on every rank."""
    order = _from_rank_0(torch.randperm(len(z) * collectives.ranks(), device="cpu").to(z.device))
    hashes = z.new_zeros(collectives.ranks(), len(z), dtype=torch.int64)
    hashes[collectives.rank()] = row_hashes(z)
    collectives.add_up(hashes)  # each rank adds its own row; the others are zero
    return _joined_rows(z, order[~_repeated(hashes.flatten()[order])][:k])


def row_hashes(rows: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """A hash of each row: equal rows have equal hashes, different rows rarely do. The bits of each value are a digit of a
    number in base `HASH`, modulo 2^64."""
    digits = (rows + 0.0).contiguous().view(torch.int32)  # + 0: -0 equals 0
    return (digits * torch.full_like(digits[0], HASH, dtype=torch.int64).cumprod(0)).sum(1)


def repeats(rows: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """True for each row that equals an earlier one."""
    return _repeated(row_hashes(rows))


def _repeated(numbers: Shaped[Tensor, " n"]) -> Bool[Tensor, " n"]:
    ascending, order = numbers.sort(stable=True)
    found = torch.zeros_like(numbers, dtype=torch.bool)
    return found.scatter_(0, order[1:], ascending[1:] == ascending[:-1])


def ema_codes(counts: Float[Tensor, " k"], sums: Float[Tensor, "k d"], epsilon: float) -> Float[Tensor, "k d"]:
    """Code vectors m_i / N_i from running statistics (van den Oord et al. 2017, eq. 8), with Laplace smoothing of the counts
    by `epsilon`. Without smoothing, the code vector of an unused code stays, since m_i and N_i shrink at the same rate. With
    it, the code vector moves to the origin once N_i is below epsilon, after log(epsilon) / log(decay) steps."""
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return sums / smoothed[:, None]


def dead(counts: Float[Tensor, " k"], below: float) -> Bool[Tensor, " k"]:
    """Codes whose running count is under `below` times the mean count."""
    return counts < below * counts.mean()


# modules that hold a codebook


class Settings(Strict):
    """Settings of codebooks that are trained with the autoencoder."""

    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    decay: float = Field(ge=0, lt=1, description="EMA decay per step (gamma of eq. 6); under `gradient` only of the "
                         "counts that decide which codes are dead", examples=[0.9])  # fmt: skip
    initialisation: Literal["normal", "uniform", "latents", "kmeans"] = Field(
        description="first code vectors: N(0, 1), U(-1/K, 1/K), latents of the first batch, or k-means on them",
        examples=["latents"],
    )
    restart: Literal["none", "dead", "error"] = Field(
        description="dead: the code vector of a rarely used code moves to a latent of the batch, with its EMA statistics; error: "
        "to one chosen in proportion to its squared distance from its code vector (Arthur & Vassilvitskii 2007, k-means++)",
        examples=["dead"],
    )
    restart_below: float = Field(ge=0, lt=1, description="fraction of the mean use below which a code is dead",
                                 examples=[0.1])  # fmt: skip


class EMASettings(Settings):
    smoothing: float = Field(
        ge=0, le=1, description="epsilon added to the EMA counts; 0: the code vector of an unused code stays; above 0: it moves "
        "to the origin once its count is below epsilon, where latents can choose it again", examples=[1e-5])  # fmt: skip


class Codebook(nn.Module):
    """K code vectors, and the running `counts` N_i [K] of how often each is chosen.

    `codes` [K,D] is a buffer or a parameter, depending on how the subclass moves it. Call `prepare` before a training batch
    is quantized, and `update` after it, with the choices.
    """

    codes: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("counts", torch.ones(settings.codebook_size))
        self.register_buffer("initialised", torch.tensor(settings.initialisation in RANDOM))
        self._ready = False  # caches the buffer once it is True: reading it again would wait for the device

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        """The code vectors in the form in which latents are compared with them."""
        return (self.codes,)

    def prepare(self, rows: Float[Tensor, "n d"]) -> None:
        """Initialises the code vectors from the first training batch.

        Raises:
            NonFiniteError: the batch is not finite on some rank. It is raised on every rank, so that none waits for another.
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
        """Counts choices, moves code vectors, then restarts dead codes. A batch that is not finite changes nothing; the loss
        reports it."""
        counts, sums = statistics(rows, chosen, len(self.counts))
        collectives.add_up(counts, sums)
        finite = torch.isfinite(sums).all()
        self.counts.lerp_(torch.where(finite, counts, self.counts), 1 - self.settings.decay)
        self.move(sums, finite)
        if self.settings.restart != "none":
            self.restart(dead(self.counts, self.settings.restart_below) & finite, rows, chosen)

    def restart(self, is_dead: Bool[Tensor, " k"], rows: Float[Tensor, "n d"], chosen: Int[Tensor, " n"]) -> None:
        """Each dead code samples a latent of the joined batch and takes its place, with the mean count. Under `restart: error`
        the probability of a latent is proportional to its squared distance from its code vector.

        If two codes sample equal latents, only one of them moves. A code does not move either if the sampled latent already
        has its own code vector: one code is enough for it. Codes that did not move sample again after the next batch.
        """
        by_error = self.settings.restart == "error"
        rng = (
            torch.rand(len(is_dead), device="cpu")
            if by_error
            else torch.randint(len(rows) * collectives.ranks(), (len(is_dead),), device="cpu")
        )
        rng = _from_rank_0(rng.to(rows.device))
        if readable(is_dead) and not is_dead.any():
            return
        codes = self.codebooks[0].detach()
        where = by_weight(rng, (rows - codes[chosen]).square().sum(1)) if by_error else rng
        found = _joined_rows(rows, where)
        distance = torch.linalg.vector_norm(found - codes[_joined_rows(chosen[:, None], where)[:, 0]], dim=1)
        near = KNOWN * distance.square().mean().sqrt()
        own = (distance <= near) | (distance <= ROUNDING * torch.linalg.vector_norm(found, dim=1))
        twice = _repeated(torch.where(is_dead, row_hashes(found), 0))
        self.place(is_dead & ~own & ~twice, found, self.counts.mean())

    def move(self, sums: Float[Tensor, "k d"], finite: Bool[Tensor, ""]) -> None:
        """Moves the code vectors towards the means of a `finite` batch; does nothing if a gradient moves them."""

    @torch.no_grad()
    def place(self, where: Bool[Tensor, " k"], codes: Float[Tensor, "k d"], count: Tensor | float) -> None:
        """Sets the code vectors at `where` to `codes`, and their counts to `count`."""
        self.codes.copy_(torch.where(where[:, None], codes, self.codes))
        self.counts.copy_(torch.where(where, torch.as_tensor(count, dtype=self.counts.dtype), self.counts))


class EMACodebook(Codebook):
    """Code vectors as running means of the latents that chose them (van den Oord et al. 2017, eq. 6-8).

    Buffers: `codes` [K,D], `counts` N_i [K], `sums` m_i [K,D]. `unit`: code vectors stay on the unit sphere.
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
        # leave out counts that have nearly underflowed
        moved = finite & (self.counts > LEAST)[:, None]
        self.codes.copy_(torch.where(moved, F.normalize(codes) if self.unit else codes, self.codes))

    @torch.no_grad()
    def place(self, where: Bool[Tensor, " k"], codes: Float[Tensor, "k d"], count: Tensor | float) -> None:
        """Also sets the sums: with the old sums a code vector would return to its old place in one step, and die again."""
        super().place(where, F.normalize(codes) if self.unit else codes, count)
        self.sums.copy_(torch.where(where[:, None], self.codes * self.counts[:, None], self.sums))


class GradientCodebook(Codebook):
    """Code vectors as parameters that the optimizer moves. `counts` only decide restarts."""

    def __init__(self, settings: Settings, dim: int) -> None:
        super().__init__(settings)
        self.codes = nn.Parameter(random_codes(settings.codebook_size, dim, settings.initialisation))
