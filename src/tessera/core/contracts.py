"""The contracts of every seam, and the words of the project. Read this page first.

A *seam* is a folder of `tessera`. Each file in it is one alternative, and params.yaml chooses a file by its name.
A plug-in file exports two names. One is `Config`, a strict model of the plug-in's own sub-section of params.yaml and of the
shared keys that the plug-in reads. The other is one function, which depends on the seam:

    datasets     load(config, source: Path, generator) -> Source
    quantizers   build(config, dim: int | None) -> Quantizer              post-hoc quantizers also have `fit`
    tokenizers   build(config, image_shape, make_quantizer) -> Tokenizer
    losses       build(config, run, tokenizer) -> Loss
    priors       build(config, space, conditioning) -> Prior              closed-form priors also have `fit`
    extractors   build(config, image_shape, classes) -> Extractor
    upsamplers   build(config, image_shape, vectors) -> Upsampler
    diagnostics, evaluation, extensions
                 measure(config, run) -> Report;  requires(run) -> str | None (optional): why it does not apply;
                 METRICS (optional): names of its metrics, where `*` stands for text without dots, that thresholds may name

A `Config` may have one method, `rule(params) -> Iterable[str]`. It returns violations of rules across sections, and is called
before any work, if the plug-in is chosen.

Words: a *code* is an integer. *Codes* [B,T] are the sequence of codes of each image. *Grids* give the shape in which they
fold; grids and codebook sizes together are a `core.space.CodeSpace`. A *global code* is about the whole image, has no place in
it and is not decoded. The *codebook* holds the K code vectors of dimension D.
*z* and *z_q* are the latent before and after quantization. A *prior* is the model of codes; a *condition* is what it is told of an
image, such as its label. A *reconstruction* is decoded from
the codes of a real image, a *sample* from codes of a prior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

if TYPE_CHECKING:  # modules that read only codes, features or metrics must not pay for importing torch
    import numpy as np
    import pandas as pd
    import torch
    from jaxtyping import Bool, Float, Int, UInt8
    from matplotlib.figure import Figure
    from torch import Generator, Tensor, nn

    from tessera.core.conditioning import Conditioning
    from tessera.core.space import CodeSpace

Grid = tuple[int, int]  # (height, width) of one grid of codes
Grids = tuple[Grid, ...]  # level by level, then depth by depth, coarse first; T is the sum of height * width
ImageShape = tuple[int, int, int]  # (channels, height, width)
SPLITS = ("train", "val", "test")
Device: TypeAlias = "str | torch.device"


class Source(NamedTuple):
    """The images that a dataset plug-in loads, before any resizing.

    `images[i]` is uint8 [H,W] (grey), [H,W,3] or [H,W,4] (RGBA), of any size. It is decoded when it is indexed, and raises
    `ValueError` with the image's name if the file is corrupt. Images with equal `families[i]` are variants of one another
    and stay in one split. `labels` are class indices into `label_names`, or None. `splits[i]` is the split that the data set
    assigns to an image (a name in `SPLITS`), or None if the data set has no splits. `notes` are lines for the log: what was
    read from where, and what was not read.
    """

    images: Sequence[UInt8[np.ndarray, ...]]
    names: Sequence[str]
    families: Sequence[str]
    labels: Sequence[int] | None
    label_names: Sequence[str]
    splits: Sequence[str | None] | None
    notes: Sequence[str] = ()


class Model(Protocol):
    """The part of `torch.nn.Module` that plug-ins which are networks offer; their classes are modules."""

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
    """The output of a quantizer for z. `z_q` carries the gradient of the estimator. `losses` are named terms, already weighted;
    their sum is minimised. `reported` terms are not minimised: `codebook_error` is |z - e|^2, the codebook term of VQ-VAE,
    and is there even if no gradient trains the codebook."""

    z_q: Float[Tensor, "b d h w"]
    codes: Int[Tensor, "b r h w"]
    losses: dict[str, Float[Tensor, ""]]
    reported: dict[str, Float[Tensor, ""]] = {}  # noqa: RUF012  it is never changed


class Quantizer(Model, Protocol):
    """Quantizes latents. Computes in float32 even under autocast. Its running statistics change only in training mode.

    `dim` is D, the number of latent channels that the quantizer takes; the tokenizer reads it. `codebook_sizes` has one entry
    per depth R (1, or the depth of a residual quantizer). `codebooks` are the code vectors [K,D], one tensor per depth. A
    *post-hoc* quantizer also has `fit(latents [N,D], generator)`, which is called once with the latents of a finished
    autoencoder. Before that its code vectors are zeros.
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
    """One forward pass of a tokenizer. `latents` and `quantized` have one entry per level, coarse first."""

    reconstruction: Float[Tensor, "b c h w"]
    latents: tuple[Tensor, ...]
    quantized: tuple[Quantized, ...]


class Tokenizer(Model, Protocol):
    """Maps images in [-1, 1] to codes and back. Each part is also a method: x -> latents -> quantize -> decode_vectors.

    A tokenizer for post-hoc quantizers is trained with `make_quantizer` None. It then has no codes (its space has no grids,
    and the levels of its output have zero depths), and decodes its latents. A generative tokenizer also has
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
    """A term of the tokenizer's objective, unweighted. Its weight stands under `losses:` in params.yaml; a term of weight 0 is
    not built. It may have weights of its own, which are trained too. The tokenizer is not one of its sub-modules."""

    def __call__(self, x: Float[Tensor, "b c h w"], output: Output) -> Float[Tensor, ""]: ...


class Sampling(NamedTuple):
    """How codes are sampled. The filters apply in this order: logits / temperature, then the `top_k` most likely codes (0: all),
    then the smallest set of codes with probability `top_p` (1: all). `guidance` is a strength for each condition that has one, 1
    for all others: 1 samples p(codes | conditions), 0 ignores the condition, and values above 1 exaggerate its effect."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: Mapping[str, float] = {}


class Likelihood(NamedTuple):
    """log p of each image in nats, and the fraction of its codes that had the highest probability when they were predicted."""

    log_prob: Float[Tensor, " b"]
    accuracy: Float[Tensor, " b"]


class Prior(Model, Protocol):
    """The model of codes p(codes) or p(codes | conditions).

    `conditioning` says what the prior is told of an image, and in which columns of `conditions` [B,C]. These must be given if
    and only if there are any; in each of them the id past the last means that nothing is said. `losses` are mean nats per code
    of `codes`; `done` is the fraction of training completed, for schedules; `inputs` are what the prior sees in the place of
    `codes`, where they are others. `likelihood` is computed without dropout. If `exact` is False, its log p is a lower bound
    (ELBO), and the names of metrics say so. `sample` keeps the codes `known` where `known_mask` is True and samples all others;
    its result depends on `generator` alone.

    An exact prior predicts one code after another, see `ExactPrior`. If a prior is `capturable`, the loop behind `sample` never
    reads a value back from the device, so a GPU can replay it as one CUDA graph (`cuda_graphs.py`).
    """

    @property
    def space(self) -> CodeSpace: ...
    @property
    def conditioning(self) -> Conditioning: ...
    @property
    def exact(self) -> bool: ...
    @property
    def capturable(self) -> bool: ...
    def losses(
        self,
        codes: Int[Tensor, "b t"],
        conditions: Int[Tensor, "b c"] | None,
        done: float = 1.0,
        inputs: Int[Tensor, "b t"] | None = None,
    ) -> dict[str, Tensor]: ...
    def likelihood(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> Likelihood: ...
    def log_prob(self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None) -> Float[Tensor, " b"]: ...
    def sample(
        self,
        n: int,
        generator: Generator,
        sampling: Sampling = ...,
        conditions: Int[Tensor, "n c"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]: ...


class ExactPrior(Prior, Protocol):
    """A prior that predicts one code after another (`autoregression/base.py`). `order` lists the positions in the order of
    sampling. `logits` has one entry [B,h*w,K] per grid. `sample` uses `walk`, a coroutine that yields logits and is sent codes."""

    @property
    def order(self) -> Sequence[int]: ...
    def logits(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None
    ) -> tuple[Float[Tensor, "b n k"], ...]: ...
    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> Coroutine[Tensor, Tensor, Any]: ...


class ClosedFormPrior(ExactPrior, Protocol):
    def fit(self, codes: Int[Tensor, "n t"], conditions: Int[Tensor, "n c"] | None) -> None: ...


class Extractor(Model, Protocol):
    """Maps images in [-1, 1] to features. `distance` names the Fréchet distance on them; only on Inception's features is it `fid`.

    An extractor that is trained here has `losses` and `accuracy`. A pretrained one loads its weights by `load_pretrained`, whose
    errors begin with the name of the plug-in. An extractor that serves the loss `perceptual` has `maps` (see there).
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


class Upsampler(Model, Protocol):
    """Maps the code vectors of images, level by level and coarse first, and their reconstructions in [-1, 1] to images of twice
    the size in [-1, 1]; it may leave that range a little."""

    def __call__(
        self, vectors: tuple[Float[Tensor, "b _ _ _"], ...], reconstruction: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c 2*h 2*w"]: ...


class Report(NamedTuple):
    """The result of a diagnostic, a measure or an extension: nested finite numbers, and tables and pictures by name (`usage`
    is written to `plots/<seam>/<plug-in>/usage.csv` or `.png`)."""

    metrics: dict[str, Any]
    tables: Mapping[str, pd.DataFrame] = {}
    pictures: Mapping[str, UInt8[np.ndarray, "h w c"] | Figure] = {}


class MakeQuantizer(Protocol):
    """Makes a quantizer of the chosen kind. None: D, or K, as the section `quantizer` says."""

    def __call__(self, dim: int | None = None, codebook_size: int | None = None) -> Quantizer: ...


class Runtime(Protocol):
    """The devices and processes that a stage computes on (`tessera.runtime.devices`)."""

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
    def live(self, curve: str, images: int, done: float) -> Any: ...
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
