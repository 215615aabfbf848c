"""The contracts of every seam, and the words of the project. The page to read first.

A *seam* is a folder of `tessera`; each file in it is one alternative, chosen by its file name in `params.yaml`.
A plug-in file exports two names: `Config`, a strict model of its own sub-section of `params.yaml` and of those shared
keys of its section that it reads, and one function, listed here by seam:

    datasets     load(config, source: Path, generator) -> Source
    quantizers   build(config, dim: int | None) -> Quantizer              post-hoc ones have `fit`
    tokenizers   build(config, image_shape, make_quantizer) -> Tokenizer
    losses       build(config, run, tokenizer) -> Loss
    priors       build(config, space, classes) -> Prior                   those in closed form have `fit`
    extractors   build(config, image_shape, classes) -> Extractor
    diagnostics, evaluation, extensions
                 measure(config, run) -> Report;  requires(params) -> str | None, optional: why it does not apply

A `Config` may have one method, `rule(params) -> Iterable[str]`: what else must hold across sections, checked before any
work where the plug-in is chosen.

Words: a *code* is an integer, *codes* [B,T] are an image's sequence of them, *grids* say how they fold; grids and codebook
sizes are a `core.space.CodeSpace`. The *codebook* holds the K code vectors of dimension D. *z* and *z_q* are the latent
before and after quantization. A *prior* is the model of codes. A *reconstruction* is not a *sample*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

if TYPE_CHECKING:  # what reads only codes, features or metrics must not pay for importing torch
    import numpy as np
    import pandas as pd
    import torch
    from jaxtyping import Bool, Float, Int, UInt8
    from matplotlib.figure import Figure
    from torch import Generator, Tensor, nn

    from tessera.core.space import CodeSpace

Grid = tuple[int, int]  # (height, width) of one grid of codes
Grids = tuple[Grid, ...]  # level by level, then depth by depth, coarse first; T is the sum of height * width
ImageShape = tuple[int, int, int]  # (channels, height, width)
SPLITS = ("train", "val", "test")
Device: TypeAlias = "str | torch.device"


class Source(NamedTuple):
    """What a dataset plug-in loads: images as they are, before any resizing.

    `images[i]` is uint8 [H,W] (grey), [H,W,3] or [H,W,4] (RGBA), of any size, decoded when asked for; it raises
    `ValueError` naming the image where the file is corrupt. `families[i]` says which images are variants of one another
    (equal ids stay in one split). `labels` are class indices into `label_names`, or None. `splits[i]` is the split an
    image comes with (a name of `SPLITS`), or None where the set has none of its own. `notes` tell the reader of the log what
    was read from where, and what was not.
    """

    images: Sequence[UInt8[np.ndarray, ...]]
    names: Sequence[str]
    families: Sequence[str]
    labels: Sequence[int] | None
    label_names: Sequence[str]
    splits: Sequence[str | None] | None
    notes: Sequence[str] = ()


class Model(Protocol):
    """What tokenizers, quantizers, losses, priors and extractors have of `torch.nn.Module`, which their classes are."""

    training: bool

    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, device: Device) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...


class Quantized(NamedTuple):
    """What a quantizer makes of z. `z_q` carries the estimator's gradient; `losses` are named and already weighted, and
    are what is minimised; `reported` terms are only looked at (`codebook_error` is |z - e|^2, the codebook term of VQ-VAE,
    also where no gradient trains the codebook)."""

    z_q: Float[Tensor, "b d h w"]
    codes: Int[Tensor, "b r h w"]
    losses: dict[str, Float[Tensor, ""]]
    reported: dict[str, Float[Tensor, ""]] = {}  # noqa: RUF012  nobody changes it


class Quantizer(Model, Protocol):
    """Latents to codes. Computes in float32 also under autocast; its statistics move in training mode only.

    `dim` is D, the number of latent channels it takes (asked by the tokenizer); `codebook_sizes` has one entry per depth
    R (1, or the depth of a residual quantizer); `codebooks` are the code vectors [K,D], one per depth. A *post-hoc* one
    also has `fit(latents [N,D], generator)`, called once with latents of a finished autoencoder; before, all it knows is
    zeros.
    """

    @property
    def dim(self) -> int: ...
    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...
    def __call__(self, z: Float[Tensor, "b d h w"]) -> Quantized: ...
    def decode(self, codes: Int[Tensor, "b r h w"]) -> Float[Tensor, "b d h w"]: ...
    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]: ...


class PostHocQuantizer(Quantizer, Protocol):
    def fit(self, latents: Float[Tensor, "n d"], generator: Generator) -> None: ...


class Output(NamedTuple):
    """One forward pass of a tokenizer; latents and quantized have one entry per level, coarse first."""

    reconstruction: Float[Tensor, "b c h w"]
    latents: tuple[Tensor, ...]
    quantized: tuple[Quantized, ...]


class Tokenizer(Model, Protocol):
    """Images in [-1, 1] to codes and back, with the way between open: x -> latents -> quantize -> decode_vectors.

    One that takes post-hoc quantizers is trained with `make_quantizer` None: it has no codes then (its space has
    no grids, the levels of its output have zero depths), and decodes its latents. A generative one may have
    `sample(n, generator) -> images`, which needs no prior over codes.
    """

    @property
    def image_shape(self) -> ImageShape: ...
    @property
    def space(self) -> CodeSpace: ...
    def __call__(self, x: Float[Tensor, "b c h w"]) -> Output: ...
    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]: ...
    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]: ...
    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]: ...
    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]: ...
    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Tensor, ...]: ...
    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]: ...
    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]: ...


class GenerativeTokenizer(Tokenizer, Protocol):
    def sample(self, n: int, generator: Generator) -> Float[Tensor, "n c h w"]: ...


class Loss(Model, Protocol):
    """A term of the tokenizer's objective, unweighted; its weight stands in `losses:` of params.yaml. A term of weight 0 is
    not built. It may have weights of its own, which are trained along; the tokenizer is none of its sub-modules."""

    def __call__(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]: ...


class Sampling(NamedTuple):
    """How codes are drawn: logits / temperature, then the `top_k` likeliest (0: all), then the smallest set of
    probability `top_p` (1: all). `guidance` is of conditional priors: 1 is p(codes | label), 0 forgets the label, more
    exaggerates what it adds."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0


class Likelihood(NamedTuple):
    """Of each image: log p in nats, and the share of its codes that were the likeliest where they were predicted."""

    log_prob: Float[Tensor, " b"]
    accuracy: Float[Tensor, " b"]


class Prior(Model, Protocol):
    """The model of codes p(codes) or p(codes | label).

    `classes` is the number of labels it is conditioned on, 0 if none; labels [B] are given exactly then, and the label
    `classes` stands for none: a label that was dropped. `losses` are mean nats per code; `done`, the share of the
    training that is done, is for what changes along it. `likelihood` is without dropout; where `exact` is False its
    log p is a lower bound (ELBO), and whoever prints it says so. `sample` keeps `known` codes where `known_mask` is True
    and draws all others from `generator`, which alone decides the outcome.

    Exact priors predict one code after another: see `ExactPrior`. Where a prior is `capturable`, the walk behind `sample` asks the
    device for no value, so that a GPU can replay it as one CUDA graph (`cuda_graphs.py`).
    """

    @property
    def space(self) -> CodeSpace: ...
    @property
    def classes(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def capturable(self) -> bool: ...
    def losses(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, done: float = 1.0
    ) -> dict[str, Tensor]: ...
    def likelihood(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> Likelihood: ...
    def log_prob(self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, " b"]: ...
    def sample(
        self,
        n: int,
        generator: Generator,
        sampling: Sampling = ...,
        labels: Int[Tensor, " n"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]: ...


class ExactPrior(Prior, Protocol):
    """A prior that predicts one code after another (`autoregression/base.py`): `order` are the positions in the order in
    which they are drawn, `logits` has one entry per grid [B,h*w,K], and `walk` yields logits and is sent codes, behind `sample`."""

    @property
    def order(self) -> Sequence[int]: ...
    def logits(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None
    ) -> tuple[Float[Tensor, "b n k"], ...]: ...
    def walk(self, n: int, labels: Int[Tensor, " n"] | None) -> Coroutine[Tensor, Tensor, Any]: ...


class ClosedFormPrior(ExactPrior, Protocol):
    def fit(self, codes: Int[Tensor, "n t"], labels: Int[Tensor, " n"] | None) -> None: ...


class Extractor(Model, Protocol):
    """Images in [-1, 1] to features. `distance` names the Fréchet distance on them: `fid` on Inception's features only.

    One that is trained here has `losses` and `accuracy`; another loads its weights by `load_pretrained`, whose errors begin with
    the name of the plug-in. One that serves the loss `perceptual` has `maps` (see there).
    """

    @property
    def dim(self) -> int: ...
    @property
    def distance(self) -> str: ...
    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]: ...


class TrainedExtractor(Extractor, Protocol):
    def losses(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> dict[str, Tensor]: ...
    def accuracy(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> Float[Tensor, ""]: ...


class PretrainedExtractor(Extractor, Protocol):
    def load_pretrained(self) -> None: ...


class Report(NamedTuple):
    """What a diagnostic, a measure or an extension returns: finite numbers nested by meaning, tables and pictures by name
    (`usage` becomes `plots/<seam>/<plug-in>/usage.csv` or `.png`)."""

    metrics: dict[str, Any]
    tables: Mapping[str, pd.DataFrame] = {}
    pictures: Mapping[str, UInt8[np.ndarray, "h w c"] | Figure] = {}


class MakeQuantizer(Protocol):
    def __call__(self, dim: int | None = None) -> Quantizer: ...


class Runtime(Protocol):
    """What a stage computes on (`tessera.runtime.devices`)."""

    training: bool

    @property
    def device(self) -> torch.device: ...
    @property
    def main(self) -> bool: ...
    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    def progress(self, **options: Any) -> Any: ...
    def gathered(self, value: Any) -> list[Any]: ...
    def unsupported(self, precision: str) -> str | None: ...
    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str
    ) -> tuple[nn.Module, torch.optim.Optimizer]: ...
    def autocast(self) -> AbstractContextManager[None]: ...
    def backward(self, loss: Tensor) -> None: ...
    def clip_gradients(self, parameters: Iterable[nn.Parameter], norm: float) -> Tensor: ...
    def resume(self, task: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...
    def checkpoint(
        self, task: str, pack: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]], force: bool = False
    ) -> None: ...
