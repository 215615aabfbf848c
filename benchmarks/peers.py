"""Tokenizers of other packages beside tessera's, after equal minutes of training: `python -m benchmarks.peers emoji --minutes 2 5`.

All have the same images and splits, the same bits per image, the same threads, and the same seconds of training alone: reading
images, building a network, evaluating it and the first step, in which libraries prepare, do not count. On one thread they are
seconds of the processor (`time.process_time`), which other work on the machine does not take away; on more, seconds of the
clock. Peers take turns, in reverse order every second time. The test split is read at the end. Needs the extra `peers`; a peer
whose package is missing is named and left out.

    tessera         params.yaml as it is, but the images, K and augmentation of `SETS`
    tessera-fsq     the same with our quantizer fsq, at the levels of vq-fsq
    vq-...          its network, optimizer and loss, with a quantizer of vector-quantize-pytorch in the place of ours:
    vq-ema          as the first example of its README (decay 0.8, commitment 1), by straight-through
    vq-rotation     the same with the rotation trick, which is the package's default
    vq-restarts     vq-ema with the README's remedies for unused codes: k-means at the start, codes of fewer than 2 latents expire
    vq-simvq        as its README: rotation trick
    vq-fsq          as its README; levels whose product is K, where the paper's table would have fewer codes (240 for 256)
    pythae          VQVAE by pythae's own trainer, with what its repository publishes (examples/scripts/configs; mnist, cifar10):
                    Adam, batch 100, rate 1e-3 for grey images and 1e-4 for colour, EMA of decay 0.99, latents of 16, images in
                    [0, 1], the squared error summed; weights of the epoch with the best validation loss. Its networks for CIFAR-10
                    have 8x8 codes. Those for MNIST have 4x4: two strides, of the third layer and of its mirror, are 1, not 2
    pythae-1e-3     the same at rate 1e-3, which it publishes for MNIST and CelebA, where `pythae` has another

Nobody knows how many steps fit into the minutes, so the schedule of our recipe follows the time: the learning rate is that of the
fraction of the minutes that has passed, and warm-up takes its steps or a tenth of the minutes, whichever ends first. A number of
steps measured beforehand would end too soon or too late wherever the speed of the machine changes. The last weights count. pythae
publishes a constant rate. Our steps are those of `training/loop.py`, without checkpoints and progress bar. Freed memory is kept for
all (`runtime/process.py`).

Bits are checked, not believed: scores are of images decoded from the integers alone that a peer emits, whose grid and range must be
those asked for. `memory_mib` is the most that torch holds while a network is built and takes two steps. pythae holds the training
images in float32, the others do not.

A CSV gets one row for each training when it ends. A training that has its row is not repeated, so a table that was killed goes on
where it was. Then the medians over repeats are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_mib
from stages import dataset, tokenizer
from tessera import presets, scores, statistics
from tessera.core import files, models, seams
from tessera.core.contracts import SPLITS, Quantized, Source
from tessera.core.errors import InputError, NonFiniteError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator, seed_globally
from tessera.images import arrays
from tessera.runtime import process
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies.pages import markdown, short
from tessera.training.loop import WARM_UP, learning_rate, optimizer_of
from tessera.training.settings import Training

INSTALL = "python -m pip install -e '.[peers]'"
PARTS = 1 << 20  # of the minutes, in which a schedule counts
SCORED = 256  # images per forward pass without gradients
MEASURED = 2  # steps whose memory is measured
KEY = ("set", "split", "minutes", "repeat", "peer", "threads")
SCORES = ("psnr_db", "psnr_db_per_image", "ssim", "usage", "perplexity")
SPENT = ("images_per_second", "steps", "memory_mib")
COLUMNS = (*KEY, "values", "bits", "parameters", "seconds", *SPENT, *SCORES, "changed")


# images


class Images(NamedTuple):
    """Where a set lies, K, and the values of params.yaml that it needs."""

    source: str
    codebook_size: int
    values: dict[str, Any]


PLAIN = {"tokenizer.augmentation.flip": 0.0, "tokenizer.augmentation.shift": 0}  # as in the presets of these sets
GREY = {"dataset.image_size": 28, "dataset.target_size": 28, "dataset.colour": "grey"}
HUB = {"dataset.name": "huggingface", "dataset.huggingface.label_column": "label"}
SETS = {
    "emoji": Images("data/noto-emoji.parquet", 256, {}),
    "fashion-mnist": Images("/usr/share/datasets/fashion-mnist", 256, {**PLAIN, **GREY, "dataset.name": "idx"}),
    "cifar10": Images("data/cifar10", 512, {**PLAIN, **HUB, "dataset.huggingface.image_column": "img"}),
    "mnist": Images("data/mnist", 128, {**PLAIN, **GREY, **HUB, "dataset.huggingface.image_column": "image"}),
}


class Case(NamedTuple):
    """What every peer is given. `pixels` are uint8 [N,H,W,C] of each split, `grid` the (height, width) of the codes asked for."""

    params: Params
    pixels: dict[str, np.ndarray]
    codebook_size: int
    grid: tuple[int, int]

    @property
    def run(self) -> Run:
        return Run(self.params, runtime=Runtime(self.params.section("runtime", Settings)))

    @property
    def shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.pixels["train"].shape
        return channels, height, width

    @property
    def bits(self) -> float:
        return math.prod(self.grid) * math.log2(self.codebook_size)


def case_of(name: str, data: str | None, codebook_size: int | None, threads: int) -> Case:
    """
    Raises:
        InputError: the data cannot be read, or params.yaml asks for what is not done here.
    """
    own = SETS[name]
    k = codebook_size or own.codebook_size
    values = {**own.values, "dataset.source": data or own.source, "dataset.near_duplicate_rmse": 0.0}
    machine = {"runtime.device": "cpu", "runtime.threads": threads}
    params = Params(presets.applied(read(), {**values, **machine, "quantizer.codebook_size": k}))
    require_done_here(params.section("tokenizer", tokenizer.Settings).training)
    settings, source = params.section("dataset", dataset.Settings), source_of(params)
    prepared = dataset.prepare(source, settings, numpy_generator(params.seed, "dataset", "split"))
    pixels = {split: np.array(prepared.images[prepared.rows[split]]) for split in SPLITS}
    side = settings.image_size // params.config("tokenizer").downsampling
    return Case(params, pixels, k, (side, side))


def require_done_here(training: Training) -> None:
    """
    Raises:
        InputError: training by the time lacks what `training` asks for.
    """
    for name, wrong in {"schedule": "restarts", "precision": "fp16"}.items():
        if getattr(training, name) == wrong:
            raise InputError(
                f"tokenizer.training.{name}: must not be {wrong} where minutes are compared; choose another"
            )
    if training.weight_ema:
        raise InputError(
            f"tokenizer.training.weight_ema: must be 0 where minutes are compared, got {training.weight_ema}"
        )


def source_of(params: Params) -> Source:
    path = Path(params.value("dataset.source"))
    plugin = seams.plugin("datasets", params.value("dataset.name"))
    return plugin.load(params.config("dataset"), path, numpy_generator(params.seed, "dataset", "load"))


# training


class Clock:
    """Seconds of training alone, and the steps and images in them. It starts at the end of the first step.

    Attributes:
        limit: seconds after which the training is over.
        most: steps after which it is over, if that is earlier.
        now: what counts the seconds.
    """

    def __init__(self, limit: float, most: float = math.inf, now: Callable[[], float] = time.perf_counter) -> None:
        self.limit, self.most, self._now = limit, most, now
        self.steps = self.images = 0
        self._started, self._spent, self._since = False, 0.0, None

    @property
    def seconds(self) -> float:
        return self._spent + (self._now() - self._since if self._since is not None else 0.0)

    @property
    def done(self) -> float:
        """Fraction of the time that has passed."""
        return min(1.0, self.seconds / self.limit)

    @property
    def over(self) -> bool:
        return self.done >= 1 or self.steps >= self.most

    def count(self, images: int) -> None:
        """A step on so many images has ended."""
        if self._started:
            self.steps, self.images = self.steps + 1, self.images + images
        else:
            self._started, self._since = True, self._now()

    def stop(self) -> None:
        self._spent, self._since = self.seconds, None

    def go_on(self) -> None:
        if self._started and self._since is None:
            self._since = self._now()


class Rate:
    """The learning rate of a training that ends at a time: that of `training.loop.learning_rate`, where time stands for steps."""

    def __init__(self, training: Training) -> None:
        self._training, self._warm = training, True
        self._by_time = training.model_copy(update={"warmup_steps": 0, "epochs": PARTS})
        self._begun = 0.0  # fraction of the time at which warm-up ended

    def __call__(self, taken: int, done: float) -> float:
        """After `taken` steps, at the fraction `done` of the time."""
        if self._warm and taken < self._training.warmup_steps and done < WARM_UP:
            return self._training.lr * max((taken + 1) / self._training.warmup_steps, done / WARM_UP)
        if self._warm:
            self._warm, self._begun = False, done
        return learning_rate(int(PARTS * (done - self._begun) / (1 - self._begun)), self._by_time, 1)


class Trained(NamedTuple):
    """A trained peer in eval mode. `encode`: images [B,C,H,W] in [-1, 1] to codes [B,h,w]; `decode`: such codes to images."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    parameters: int


Train = Callable[[Case, Clock, int], Trained]  # case, clock, seed


def train_ours(case: Case, clock: Clock, seed: int) -> Trained:
    """The tokenizer of params.yaml."""
    seed_globally(seed, "peers", "initialisation")
    return trained(models.build(models.tokenizer_recipe(case.params, case.shape)), case, clock, seed)


def with_fsq(case: Case) -> Case:
    """`case` with the quantizer fsq, of K codes."""
    own = {"quantizer.name": "fsq", "quantizer.fsq.levels": list(LEVELS[case.codebook_size])}
    return case._replace(params=Params(presets.changed(case.params.raw, own)))


def train_our_fsq(case: Case, clock: Clock, seed: int) -> Trained:
    return train_ours(with_fsq(case), clock, seed)


def train_with_theirs(name: str, case: Case, clock: Clock, seed: int) -> Trained:
    """The same with the quantizer `name` of `THEIRS`."""
    seed_globally(seed, "peers", "initialisation")
    plugin = seams.plugin("tokenizers", case.params.value("tokenizer.name"))
    own = Theirs(name, case.codebook_size, case.params.value("quantizer.code_dim"))
    return trained(plugin.build(case.params.config("tokenizer"), case.shape, lambda dim=None: own), case, clock, seed)


def trained(model: Any, case: Case, clock: Clock, seed: int) -> Trained:
    """Train `model`, a `Tokenizer` of one grid, by the recipe of params.yaml until the time is over.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    run = case.run
    own = case.params.section("tokenizer", tokenizer.Settings)
    data = tokenizer.Data(case.pixels, own.augmentation, own.training.batch_size, run.runtime.device)
    objective = tokenizer.Objective(model, tokenizer.loss_terms(run, model)).train()
    optimizer, rate = optimizer_of(objective, own.training), Rate(own.training)
    clip, half = own.training.clip_norm or math.inf, own.training.precision == "bf16"
    for taken, indices in enumerate(batches(len(case.pixels["train"]), own.training.batch_size, seed)):
        for group in optimizer.param_groups:
            group["lr"] = rate(taken, clock.done)
        x = data.batch(indices, generator(seed, "peers", "batch", taken), clock.done)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            total = sum(objective(*x).values())
        if not math.isfinite(loss := total.item()):
            raise NonFiniteError(f"step {taken}: the loss is {loss}")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), clip)
        optimizer.step()
        clock.count(len(indices))
        if clock.over:
            break
    clock.stop()
    objective.eval()
    (grid,) = model.space.grids
    parameters = sum(p.numel() for p in model.parameters())
    return Trained(
        lambda x: model.encode(x).unflatten(1, grid), lambda codes: model.decode(codes.flatten(1)), parameters
    )


def batches(n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of one batch after another, each epoch in an order of its own; what does not fill a batch is left out."""
    size = min(size, n)
    for epoch in itertools.count():
        order = numpy_generator(seed, "peers", "order", epoch).permutation(n)
        yield from (order[start : start + size] for start in range(0, n - size + 1, size))


# vector-quantize-pytorch


README = {"decay": 0.8, "commitment_weight": 1.0}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {  # peer -> class, and its values
    "vq-ema": ("VectorQuantize", {**README, "rotation_trick": False}),
    "vq-rotation": ("VectorQuantize", {**README, "rotation_trick": True}),
    "vq-restarts": (
        "VectorQuantize",
        {**README, "rotation_trick": False, "kmeans_init": True, "threshold_ema_dead_code": 2},
    ),
    "vq-simvq": ("SimVQ", {"rotation_trick": True}),
    "vq-fsq": ("FSQ", {}),
}
LEVELS = {128: (8, 4, 4), 256: (8, 8, 4), 512: (8, 8, 8), 1024: (8, 8, 4, 4)}  # K -> levels of FSQ


class Theirs(nn.Module):
    """A quantizer of vector-quantize-pytorch with what `vqvae` asks of a `core.contracts.Quantizer`."""

    def __init__(self, name: str, k: int, dim: int) -> None:
        super().__init__()
        kind, values = THEIRS[name]
        made = getattr(importlib.import_module("vector_quantize_pytorch"), kind)
        if kind == "FSQ":
            self.inner = made(levels=list(LEVELS[k]), **values)
        else:
            images = {"VectorQuantize": "accept_image_fmap", "SimVQ": "channel_first"}[kind]
            self.inner = made(dim=dim, codebook_size=k, **{images: True}, **values)
        self.dim = self.inner.dim if kind == "FSQ" else dim
        self.codebook_sizes = (k,)

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z_q, codes, *losses = self.inner(z.float())
        return Quantized(
            z_q, codes[:, None].long(), {"commitment": sum(loss.sum() for loss in losses)} if losses else {}
        )

    def decode(self, codes: Tensor) -> Tensor:
        look_up = getattr(self.inner, "get_output_from_indices", None) or self.inner.indices_to_codes
        return look_up(codes[:, 0])


# pythae


PYTHAE = {
    "latent_dim": 16, "use_ema": True, "decay": 0.99, "commitment_loss_factor": 0.25, "quantization_loss_factor": 1.0,
}  # fmt: skip
PYTHAE_BATCH = 100
PYTHAE_RATES = {1: 1e-3, 3: 1e-4}  # channels of the images -> learning rate
ENDLESS = 1 << 30  # epochs


class TimeUp(Exception):  # noqa: N818  no error
    """Ends a training that is not ours."""


def pythae_model(case: Case) -> Any:
    """pythae's VQVAE for grey images of 28x28 or colour images of 32x32."""
    from pythae.models import VQVAE, VQVAEConfig
    from pythae.models.nn.benchmarks import cifar, mnist

    config = VQVAEConfig(input_dim=case.shape, num_embeddings=case.codebook_size, **PYTHAE)
    if case.shape[0] == 3:
        return VQVAE(config, cifar.Encoder_ResNet_VQVAE_CIFAR(config), cifar.Decoder_ResNet_VQVAE_CIFAR(config))
    encoder, decoder = mnist.Encoder_ResNet_VQVAE_MNIST(config), mnist.Decoder_ResNet_VQVAE_MNIST(config)
    for layer in (encoder.layers[2][0], decoder.layers[1]):
        layer.stride = (1, 1)
    return VQVAE(config, encoder, decoder)


def train_pythae(lr: float | None, case: Case, clock: Clock, seed: int) -> Trained:
    """By pythae's own trainer. `lr` None: that published for images of so many channels."""
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    seed_globally(seed, "peers", "initialisation")
    model = pythae_model(case)
    with tempfile.TemporaryDirectory() as folder, quietly():
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=ENDLESS, learning_rate=lr or PYTHAE_RATES[case.shape[0]], seed=seed % 2**32,
            per_device_train_batch_size=PYTHAE_BATCH, per_device_eval_batch_size=PYTHAE_BATCH, no_cuda=True,
        )  # fmt: skip
        watch = pythae_watch(clock, len(case.pixels["train"]))
        train, val = (pythae_images(case.pixels[split]) for split in ("train", "val"))
        trainer = BaseTrainer(model, train, val, training_config=config, callbacks=[watch])
        with contextlib.suppress(TimeUp):
            trainer.train()
        clock.stop()
        if watch.kept and watch.least < trainer.eval_step(0):  # a best epoch is better than the last weights
            model.load_state_dict(watch.kept)
    model.eval()
    return Trained(
        lambda x: model.quantizer(model.encoder((x + 1) / 2).embedding.permute(0, 2, 3, 1)).quantized_indices[:, 0],
        lambda codes: 2 * model.decoder(model.quantizer.embeddings[codes].permute(0, 3, 1, 2)).reconstruction - 1,
        sum(p.numel() for p in model.parameters()),
    )


def pythae_watch(clock: Clock, examples: int) -> Any:
    """A callback of pythae's trainer that runs the clock, and keeps the weights of the epoch with the least validation loss."""
    from pythae.trainers.training_callbacks import TrainingCallback

    class Watch(TrainingCallback):
        def __init__(self) -> None:
            self.least, self.kept, self._left = math.inf, {}, 0

        def on_train_step_begin(self, training_config: Any, **_: Any) -> None:  # of an epoch
            self._left = examples
            clock.go_on()

        def on_train_step_end(self, training_config: Any, **_: Any) -> None:  # of a batch
            images = min(PYTHAE_BATCH, self._left)
            self._left -= images
            clock.count(images)
            if clock.over:
                raise TimeUp

        def on_eval_step_begin(self, training_config: Any, **_: Any) -> None:  # of the validation split
            clock.stop()

        def on_log(self, training_config: Any, logs: dict[str, float], model: nn.Module, **_: Any) -> None:
            if logs["eval_epoch_loss"] < self.least:
                self.least = logs["eval_epoch_loss"]
                self.kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    return Watch()


def pythae_images(pixels: np.ndarray) -> Any:
    from pythae.data.datasets import BaseDataset

    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).contiguous()
    return BaseDataset(x, torch.ones(len(x)))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No log of each epoch and no progress bar."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


# peers


class Peer(NamedTuple):
    """`package` is its name on PyPI, or "" for tessera; `decides` what its results depend on beside the images; `changed`
    what of it is not as its authors have it, or where it was put."""

    package: str
    train: Train
    decides: Callable[[Case], Any]
    changed: Callable[[Case], str]


def recipe(case: Case, *sections: str) -> dict[str, Any]:
    """The values of sections of params.yaml without alternatives that are not chosen, nor pictures and weights to keep."""
    chosen = case.params.chosen()
    own = {name: value for name, value in chosen["tokenizer"].items() if not name.startswith(("keep", "snapshot"))}
    return {**{name: chosen[name] for name in sections}, "tokenizer": own, "losses": chosen["losses"]}


def their_values(name: str, case: Case) -> Any:
    dim = case.params.value("quantizer.code_dim")
    return recipe(case), dim, LEVELS[case.codebook_size], THEIRS[name]


def where_theirs_is(name: str, case: Case) -> str:
    kind, values = THEIRS[name]
    given = {"levels": list(LEVELS[case.codebook_size])} if kind == "FSQ" else {}
    return f"{kind}({', '.join(f'{key}={value}' for key, value in {**given, **values}.items())}) in tessera's network"


def pythae_values(lr: float | None, case: Case) -> Any:
    return PYTHAE, PYTHAE_BATCH, lr or PYTHAE_RATES[case.shape[0]]


def pythae_changed(case: Case) -> str:
    return "nothing" if case.shape[0] == 3 else "two strides of its networks for MNIST: 7x7 codes, not 4x4"


PEERS = {
    "tessera": Peer("", train_ours, lambda case: recipe(case, "quantizer"), lambda case: "nothing"),
    "tessera-fsq": Peer(
        "",
        train_our_fsq,
        lambda case: recipe(with_fsq(case), "quantizer"),
        lambda case: f"quantizer.name=fsq, quantizer.fsq.levels={list(LEVELS[case.codebook_size])}",
    ),
    **{
        name: Peer(
            "vector-quantize-pytorch",
            partial(train_with_theirs, name),
            partial(their_values, name),
            partial(where_theirs_is, name),
        )
        for name in THEIRS
    },
    "pythae": Peer("pythae", partial(train_pythae, None), partial(pythae_values, None), pythae_changed),
    "pythae-1e-3": Peer("pythae", partial(train_pythae, 1e-3), partial(pythae_values, 1e-3), pythae_changed),
}


def missing(package: str) -> bool:
    return bool(package) and importlib.util.find_spec(package.replace("-", "_")) is None


def chosen(names: Sequence[str], case: Case) -> list[str]:
    """The peers that can train here. Those left out are named."""
    found = []
    for name in names:
        package = PEERS[name].package
        if missing(package):
            print(f"{name} is left out: the package {package} is not installed ({INSTALL})", flush=True)
        elif name == "pythae-1e-3" and PYTHAE_RATES[case.shape[0]] == 1e-3:
            print(f"{name} is left out: pythae has this rate itself here", flush=True)
        else:
            found.append(name)
    return found


# scores


def require_bits(codes: np.ndarray, grid: tuple[int, int], codebook_size: int, name: str) -> None:
    """Check that `codes` [N,h,w] cost at most the bits asked for: one integer below `codebook_size` at each place of `grid`.

    Raises:
        InputError: they are others. The message names what.
    """
    if not np.issubdtype(codes.dtype, np.integer):
        raise InputError(f"{name}: codes must be integers, got {codes.dtype}")
    if codes.shape[1:] != grid:
        raise InputError(f"{name}: codes must have the grid {grid}, got {codes.shape[1:]}")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise InputError(f"{name}: codes must be 0 to {codebook_size - 1}, got {codes.min()} to {codes.max()}")


def scored(made: Trained, case: Case, split: str, name: str) -> dict[str, float]:
    """Scores of the images of `split`, decoded from their codes alone."""
    pixels = case.pixels[split]
    codes = arrays.mapped(made.encode, pixels, SCORED)
    require_bits(codes, case.grid, case.codebook_size, name)
    with torch.no_grad():
        parts = (torch.from_numpy(codes[where]) for where in arrays.batches(len(codes), SCORED))
        decoded = np.concatenate([arrays.to_pixels(made.decode(part)) for part in parts])
    error, used = scores.mse(decoded, pixels), statistics.frequencies(codes, case.codebook_size)
    found = (
        scores.psnr_db(error.mean()), scores.psnr_db(error).mean(), scores.ssim(decoded, pixels).mean(),
        statistics.usage(used), statistics.perplexity(used),
    )  # fmt: skip
    return dict(zip(SCORES, map(float, found), strict=True))


def measured(name: str, case: Case, minutes: float, seed: int, split: str) -> dict[str, Any]:
    """Train a peer and score it. A training that diverges has no scores, which is a result too."""
    alone = torch.get_num_threads() == 1
    clock, train = Clock(60 * minutes, now=time.process_time if alone else time.perf_counter), PEERS[name].train
    found: dict[str, Any] = {"bits": case.bits, "changed": PEERS[name].changed(case)}
    try:
        found["memory_mib"] = peak_mib(lambda: train(case, Clock(math.inf, MEASURED), seed))
        made = train(case, clock, seed)
        found |= {"parameters": made.parameters, **scored(made, case, split, name)}
    except ArithmeticError as error:  # of pythae, or our NonFiniteError
        print(f"{name} diverged: {error}", flush=True)
        clock.stop()
    rate = clock.images / clock.seconds if clock.seconds else math.nan
    return {**found, "seconds": clock.seconds, "steps": clock.steps, "images_per_second": rate}


# the table


def digest(name: str, case: Case) -> str:
    """Of all that a row depends on beside its key: images, K, the recipe, the version of the package."""
    package = PEERS[name].package
    images = {key: value for key, value in case.params.chosen()["dataset"].items() if key != "source"}
    clock = "processor" if case.params.value("runtime.threads") == 1 else "wall"
    version = importlib.metadata.version(package) if package else ""
    decides = (images, clock, case.codebook_size, case.params.seed, PEERS[name].decides(case), version)
    return hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=4).hexdigest()


def rows_of(table: Path) -> list[dict[str, str]]:
    """
    Raises:
        InputError: the file is another table.
    """
    if not table.exists():
        return []
    found = pd.read_csv(table, dtype=str, keep_default_na=False)
    if list(found.columns) != list(COLUMNS):
        raise InputError(f"--table: {table} must have the columns {', '.join(COLUMNS)}; name another file")
    return found.to_dict("records")


def cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def add(name: str, case: Case, options: argparse.Namespace) -> None:
    """Add a row to the table for each training that has none.

    Raises:
        InputError: a row was made with other values; or a peer's codes cost other bits.
    """
    peers = chosen(options.peers, case)
    digests = {peer: digest(peer, case) for peer in peers}
    for minutes, repeat in itertools.product(options.minutes, range(options.repeats)):
        for peer in reversed(peers) if repeat % 2 else peers:
            rows = rows_of(options.table)
            key = (name, options.split, minutes, repeat, peer, options.threads)
            own = {**dict(zip(KEY, map(cell, key), strict=True)), "values": digests[peer]}
            if there := next((row for row in rows if all(row[column] == own[column] for column in KEY)), None):
                if there["values"] != own["values"]:
                    raise InputError(f"--table: {options.table} has a row of {peer} that was made with other values; "
                                     "name another file, or delete the row")  # fmt: skip
                continue
            found = measured(peer, case, minutes, case.params.seed + repeat, options.split)
            row = {**own, **{column: cell(value) for column, value in found.items()}}
            files.write_table(options.table, pd.DataFrame([*rows, row], columns=COLUMNS))
            print(f"{name}, {minutes:g} min, repeat {repeat}, {peer}: {row.get('psnr_db', 'no')} dB", flush=True)


def page(table: Path) -> str:
    """Medians over repeats as Markdown, one table for each set, split, number of threads, and time. `to_tessera` is the difference
    of `psnr_db`."""
    rows = pd.read_csv(table).sort_values("peer", key=lambda peers: peers.map(list(PEERS).index))
    rows = rows.sort_values(["set", "split", "threads", "minutes"], kind="stable")
    parts = []
    for (name, split, threads, minutes), own in rows.groupby(["set", "split", "threads", "minutes"], sort=False):
        medians = own.groupby("peer", sort=False)[["bits", "parameters", *SPENT, *SCORES]].median()
        medians.insert(0, "runs", own.groupby("peer", sort=False).size())
        if "tessera" in medians.index:
            at = medians.columns.get_loc("psnr_db") + 1
            medians.insert(at, "to_tessera", medians["psnr_db"] - medians["psnr_db"]["tessera"])
        medians["changed"] = own.groupby("peer", sort=False)["changed"].first()
        kind = "processor minutes" if threads == 1 else "minutes"
        title = f"{name}, {split} split, {minutes:g} {kind} of training on {threads} thread{'s' * (threads > 1)}"
        parts.append(f"{title}\n\n{markdown(medians.reset_index().map(short))}")
    return "\n\n".join(parts)


def positive(kind: type, text: str) -> Any:
    value = kind(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number, count = partial(positive, float), partial(positive, int)
    places = "; ".join(f"{name}: {own.source}" for name, own in SETS.items())
    parser.add_argument("set", choices=SETS, help="the images")
    parser.add_argument("--data", help=f"where they lie (default: {places})")
    parser.add_argument("--codebook-size", type=int, choices=LEVELS, help="K (default: that of the set in `SETS`)")
    parser.add_argument("--minutes", type=number, nargs="+", default=[2.0, 5.0], help="default 2 and 5")
    parser.add_argument("--repeats", type=count, default=2, help="trainings of each peer, by other seeds; default 2")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="val: to choose by; default test")
    parser.add_argument("--threads", type=count, default=process.COMMITTED_THREADS, help="default 2")
    parser.add_argument("--table", type=Path, default=files.ARTIFACTS / "peers.csv", help="default artifacts/peers.csv")
    options = parser.parse_args(argv)
    process.use_threads(options.threads)
    torch.set_num_threads(options.threads)
    process.keep_freed_memory()
    try:
        add(options.set, case_of(options.set, options.data, options.codebook_size, options.threads), options)
        print(page(options.table))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
