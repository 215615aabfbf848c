"""tokenizer: dataset, perceptual -> artifacts/tokenizer/, plots/tokenizer.csv, plots/tokenizer/

Trains a tokenizer: the objective, the metrics of validation, and the snapshots kept of chosen epochs. Then, if asked, tunes its
decoder alone on codes of which some are replaced.

Uses contracts only: it knows no plug-in by name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from tessera import augmentation, perturbation, scores, statistics
from tessera.augmentation import Augmentation
from tessera.codebooks import delay
from tessera.core import files, models, seams
from tessera.core.contracts import Device, Loss, Output, PostHocQuantizer, Quantized, Tokenizer
from tessera.core.errors import InputError
from tessera.core.params import Params, Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, seed_globally
from tessera.images import arrays, pictures
from tessera.levels import evaluating
from tessera.runtime.stage import enter
from tessera.training.loop import LOOKED_AT, Fitted, Row, Task, fit
from tessera.training.settings import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FITTED_ON = 1_000_000  # latents for a post-hoc codebook, at most
SHOWN = 16  # images whose reconstructions are kept at the snapshot epochs


TUNING = "tokenizer.tuning"  # of the decoder: the name of its training
CURVE = "tokenizer/tuning"  # the rows of its evaluations, below plots/


class TuningTraining(Training):
    epochs: int = Field(ge=0, description="passes over the train split; 0: no tuning", examples=[0])


class TuningSettings(Strict):
    rate: float = Field(gt=0, le=1, description="fraction of an image's codes that are replaced", examples=[0.3])
    neighbours: int = Field(ge=1, description="number of nearest codes that can replace a code", examples=[2])
    training: TuningTraining

    @model_validator(mode="after")
    def _stops(self) -> TuningSettings:
        if self.training.patience:
            raise ValueError(
                f"training.patience must be 0, since the last epoch of the tuning is kept, got "
                f"{self.training.patience}; set it to 0"
            )
        return self


class Settings(Strict):
    name: str
    keep: Literal["best", "best_usage", "last"] = Field(description="the epoch whose weights the next stages use")
    keep_every: int = Field(ge=0, description="also keep the weights of every n-th epoch; 0: none")
    snapshot_epochs: list[Annotated[int, Field(ge=0)]] = Field(
        description="epochs whose codebook and reconstructions are kept; 0: before training"
    )
    augmentation: Augmentation
    unquantized: float = Field(ge=0, le=0.9, description="first fraction of training, in which the decoder sees the latents "
                               "themselves; 0: quantization from the start", examples=[0.0])  # fmt: skip
    training: Training
    tuning: TuningSettings

    @model_validator(mode="after")
    def _stops(self) -> Settings:
        if self.unquantized and self.training.patience:
            raise ValueError(
                "training.patience must be 0 while unquantized is above 0, since no epoch before quantization counts as better, "
                f"got {self.training.patience}; set it to 0"
            )
        if self.keep == "last" and self.training.patience:
            raise ValueError(
                f"training.patience must be 0 while keep is last, by which every epoch is better than those before, got "
                f"{self.training.patience}; set it to 0, or keep to best"
            )
        return self


class QuantizerSettings(Strict):
    name: str


def main(run: Run) -> None:
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    data = Data.of(run)
    objective = initialised(recipe, run)
    fitted = train(objective, data, run)
    tokenizer = with_codebook(objective.tokenizer, recipe, data, run)
    found = metrics(fitted, tokenizer, data)
    tuned = tune(with_terms(objective, tokenizer, run), data, run) if tunes(run.params) else None
    if run.runtime.main:
        found |= {} if tuned is None else {"tuning": tuned.gains}
        notes = fitted.notes if tuned is None else (*fitted.notes, *tuned.fitted.notes)
        run.save_model("tokenizer", tokenizer, recipe, found, notes=notes)
        files.write_history("tokenizer", fitted.history)
        if tuned is not None:
            files.write_history(CURVE, tuned.fitted.history)
        write_snapshots(fitted, data)


class Objective(nn.Module):
    """Image terms of `losses:` times their weights, and the quantizer's own terms, which are already weighted."""

    def __init__(self, tokenizer: Tokenizer, terms: dict[str, tuple[float, Loss]]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.terms = nn.ModuleDict({name: cast("nn.Module", term) for name, (_, term) in terms.items()})
        self.weights = {name: weight for name, (weight, _) in terms.items()}

    def forward(self, x: Float[Tensor, "b c h w"], quantized: bool = True) -> dict[str, Tensor]:
        """`quantized`: whether a quantizer that begins late (`tokenizer.unquantized`) has its time come."""
        if quantized:
            for quantizer in delay.delayed(self.tokenizer).values():
                quantizer.begin()
        return self.losses(x, self.tokenizer(x))

    def losses(self, x: Float[Tensor, "b c h w"], output: Output) -> dict[str, Tensor]:
        losses = {name: self.weights[name] * term(x, output) for name, term in self.terms.items()}
        for level in output.quantized:
            for name, value in level.losses.items():
                losses[name] = losses.get(name, 0) + value
        return losses


def loss_terms(run: Run, tokenizer: Tokenizer) -> dict[str, tuple[float, Loss]]:
    """The losses of params.yaml by name, each with its weight. A term of weight 0 is not built and costs nothing."""
    configs = {name: run.params.config("losses", name) for name in run.params.keys("losses")}
    return {
        name: (config.weight, seams.plugin("losses", name).build(config, run, tokenizer))
        for name, config in configs.items()
        if config.weight
    }


def initialised(recipe: models.Recipe, run: Run) -> Objective:
    """The tokenizer of `recipe`, freshly initialised, with its loss terms. A post-hoc quantizer is left out, because the result
    of training must not depend on it."""
    seed_globally(run.params.seed, "tokenizer", "initialisation")
    tokenizer = models.build(recipe._replace(quantizer=None) if run.params.post_hoc else recipe)
    if run.params.section("tokenizer", Settings).unquantized:
        delay.delay(tokenizer)
    return Objective(tokenizer, loss_terms(run, tokenizer))


class Data:
    """Training batches, and the fixed images on which the curves are computed."""

    def __init__(
        self,
        pixels: dict[str, UInt8[np.ndarray, "n h w c"]],
        augmentation: Augmentation,
        batch_size: int,
        device: Device,
        unquantized: float = 0.0,
    ) -> None:
        self.unquantized = unquantized
        self.pixels, self.augmentation, self.batch_size, self.device = pixels, augmentation, batch_size, device
        # equally many training and validation images: fewer images have a lower perplexity
        count = min(LOOKED_AT, *(len(array) for array in pixels.values()))
        self.looked_at = {split: array[arrays.evenly(len(array), count)] for split, array in pixels.items()}
        self.shown = self.looked_at["val"][arrays.evenly(len(self.looked_at["val"]), SHOWN)]

    @classmethod
    def of(cls, run: Run) -> Data:
        own = run.params.section("tokenizer", Settings)
        pixels = {split: run.images(split) for split in ("train", "val")}
        return cls(pixels, own.augmentation, own.training.batch_size, run.runtime.device, own.unquantized)

    def batch(
        self, indices: np.ndarray, generator: Generator, done: float = 0.0
    ) -> tuple[Tensor] | tuple[Tensor, bool]:
        x = arrays.to_model(self.pixels["train"][np.sort(indices)], self.device)  # sorted: a memory map reads forward
        x = augmentation.augmented(x, self.augmentation, generator)
        return (x, done >= self.unquantized) if self.unquantized else (x,)


def train(objective: Objective, data: Data, run: Run) -> Fitted:
    """Train the objective in place. A tokenizer without weights (`pixels`) is only evaluated."""
    own = run.params.section("tokenizer", Settings)
    late = [str(epoch) for epoch in own.snapshot_epochs if epoch > own.training.epochs]
    if late and run.runtime.main:
        print(
            f"tokenizer.snapshot_epochs: {', '.join(late)} are left out, since there are {own.training.epochs} epochs"
        )
    if any(parameter.requires_grad for parameter in objective.tokenizer.parameters()):
        fitted = fit(task(objective, data, own), own.training, run.params.seed, run.runtime)
        delay.undelay(objective.tokenizer)
        return fitted
    print(f"tokenizer.name = {own.name} has nothing to train: tokenizer.training, quantizer and losses are not read")
    with torch.no_grad():
        row = _evaluate(objective.to(run.runtime.device).eval(), data)
    objective.to("cpu")
    return Fitted([{"epoch": 0, **row}], 0, {})


def with_codebook(tokenizer: Tokenizer, recipe: models.Recipe, data: Data, run: Run) -> Tokenizer:
    """The trained tokenizer. A post-hoc quantizer is added here, fitted to the latents of training images in random order, at
    most a million latents."""
    if not run.params.post_hoc:
        return tokenizer
    whole: Tokenizer = models.build(recipe)
    whole.load_state_dict(tokenizer.state_dict(), strict=False)  # all weights except the quantizer's
    rng = generator(run.params.seed, "tokenizer", "codebook")
    quantizers = [cast("PostHocQuantizer", module) for module in whole.modules() if hasattr(module, "fit")]
    for level, quantizer in enumerate(quantizers):
        quantizer.fit(_latents(tokenizer.to(run.runtime.device), level, data, rng), rng)
    return whole.to("cpu").eval()


@torch.no_grad()
def _latents(tokenizer: Tokenizer, level: int, data: Data, rng: Generator) -> Float[Tensor, "n d"]:
    found, rows = [], 0
    order = torch.randperm(len(data.pixels["train"]), generator=rng).numpy()
    for where in arrays.batches(len(order), data.batch_size):
        x = arrays.to_model(data.pixels["train"][np.sort(order[where])], data.device)
        found.append(tokenizer.latents(x)[level].permute(0, 2, 3, 1).flatten(0, 2).cpu())
        rows += len(found[-1])
        if rows >= FITTED_ON:
            break
    return torch.cat(found)[:FITTED_ON]


# tuning of the decoder


def tunes(params: Params) -> bool:
    """Whether the decoder is tuned after training."""
    return params.section("tokenizer", Settings).tuning.training.epochs > 0


class Tuned(NamedTuple):
    """`gains`: PSNR of validation images in dB, `before` and `after`, from their own codes and from codes of which some are
    replaced."""

    fitted: Fitted
    gains: dict[str, dict[str, float]]


class Tuning(nn.Module):
    """The terms of `losses:` on images decoded from replaced codes. Terms of latents and codes have no gradient here, and those
    that the quantizer gives are left out."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        z_q: tuple[Tensor, ...],
        latents: tuple[Tensor, ...],
        quantized: tuple[Quantized, ...],
    ) -> dict[str, Tensor]:
        return self.objective.losses(x, Output(self.objective.tokenizer.decode_vectors(z_q), latents, quantized))


def with_terms(objective: Objective, tokenizer: Tokenizer, run: Run) -> Objective:
    """The objective of `tokenizer`: that of the training, or, where the quantizer was added since, another one whose terms have
    the trained weights."""
    if objective.tokenizer is tokenizer:
        return objective
    seed_globally(run.params.seed, TUNING, "initialisation")
    whole = Objective(tokenizer, loss_terms(run, tokenizer))
    whole.terms.load_state_dict(objective.terms.state_dict())
    return whole


def tune(objective: Objective, data: Data, run: Run) -> Tuned:
    """Train the decoder of the objective's tokenizer in place, so that it mends the errors that a prior makes: of the codes of
    training images some are replaced by near neighbours, and the target is the image itself. Encoder and codebook, and so the
    codes of every image, stay as they are. The last epoch is kept.

    Raises:
        InputError: there is nothing to train between code vectors and image, or no loss to train it by.
    """
    own = run.params.section("tokenizer", Settings).tuning
    if not objective.weights:
        raise InputError(
            f"losses: one must have a weight above 0 where {TUNING}.training.epochs is, got none; give mse one"
        )
    objective.zero_grad()  # gradients that the training left would count when those of the tuning are clipped
    freeze_all_but_decoder(objective.tokenizer)
    tokenizer = objective.tokenizer.to(run.runtime.device)
    replacing = Replacing(tokenizer, own, run.params.seed)
    before = _mended(tokenizer, replacing, data)
    fitted = fit(tuning_task(Tuning(objective), replacing, data), own.training, run.params.seed, run.runtime)
    after = _mended(tokenizer.to(run.runtime.device), replacing, data)
    tokenizer.to("cpu")
    return Tuned(fitted, {name: {"before": before[name], "after": after[name]} for name in before})


def freeze_all_but_decoder(tokenizer: Tokenizer) -> None:
    """Only parameters that code vectors meet on their way to an image keep a gradient.

    Raises:
        InputError: there are none.
    """
    parameters = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    with evaluating(tokenizer), torch.no_grad():
        z_q = tokenizer.vectors(torch.zeros(1, tokenizer.space.length, dtype=torch.int64))
    with evaluating(tokenizer), torch.enable_grad():
        image = tokenizer.decode_vectors(z_q)
        reached = torch.autograd.grad(image.sum(), parameters, allow_unused=True) if image.requires_grad else ()
    decoder = [p for p, gradient in zip(parameters, reached, strict=False) if gradient is not None]
    if not decoder:
        raise InputError(
            f"{TUNING}.training.epochs: must be 0 for a tokenizer whose decoder has no weights; set it to 0, or choose another "
            "tokenizer"
        )
    tokenizer.requires_grad_(False)
    for parameter in decoder:
        parameter.requires_grad_(True)


class Replacing:
    """Codes of images, some of them replaced by near neighbours in the codebook."""

    def __init__(self, tokenizer: Tokenizer, own: TuningSettings, seed: int) -> None:
        self.tokenizer, self.rate, self.seed = tokenizer, own.rate, seed
        self.near = perturbation.tables(tokenizer, own.neighbours)

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "b c h w"], generator: Generator
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Quantized, ...]]:
        """Code vectors of replaced codes, and latents and quantized latents of `x`, each level by level. Nothing changes: neither
        the statistics of the codebook nor those of the encoder."""
        with evaluating(self.tokenizer):
            latents = self.tokenizer.latents(x)
            quantized = self.tokenizer.quantize(latents)
            space = self.tokenizer.space
            codes = space.join([level.codes for level in quantized])
            where = torch.rand(codes.shape, generator=generator).numpy() < self.rate
            choices = torch.rand(codes.shape, generator=generator, dtype=torch.float64).numpy()
            changed = perturbation.replaced(codes.cpu().numpy(), space, self.near, where, choices)
            z_q = self.tokenizer.vectors(torch.from_numpy(changed).to(codes.device))
        return z_q, latents, tuple(level._replace(losses={}, reported={}) for level in quantized)


def tuning_task(objective: Tuning, replacing: Replacing, data: Data) -> Task:
    """The training for `fit`."""

    def batch(indices: np.ndarray, generator: Generator, done: float) -> tuple[Any, ...]:
        x, *_ = data.batch(indices, generator)
        return x, *replacing(x, generator)

    def evaluate(objective: Tuning) -> Row:
        found = _mended(objective.objective.tokenizer, replacing, data)
        return {f"val_{name}": value for name, value in found.items()}

    return Task(
        name=TUNING,
        objective=objective,
        examples=len(data.pixels["train"]),
        batch=batch,
        evaluate=evaluate,
        score=lambda row: row["epoch"],
        curve=CURVE,
    )


@torch.no_grad()
def _mended(tokenizer: Tokenizer, replacing: Replacing, data: Data) -> Row:
    """PSNR in dB of the mean error over validation images: `psnr_db` from their own codes, and `psnr_db_replaced` from codes of
    which some are replaced, the same ones each time."""
    pixels, errors = data.looked_at["val"], defaultdict(list)
    rng = generator(replacing.seed, TUNING, "replaced")
    with evaluating(tokenizer):
        for where in arrays.batches(len(pixels), data.batch_size):
            x = arrays.to_model(pixels[where], data.device)
            z_q, _, quantized = replacing(x, rng)
            own = tokenizer.vectors(tokenizer.space.join([level.codes for level in quantized]))
            for name, vectors in {"psnr_db": own, "psnr_db_replaced": z_q}.items():
                decoded = arrays.to_pixels(tokenizer.decode_vectors(vectors))
                errors[name].append(scores.mse(decoded, pixels[where]))
    return {name: float(scores.psnr_db(np.concatenate(parts).mean())) for name, parts in errors.items()}


def task(objective: Objective, data: Data, section: Settings) -> Task:
    """The training for `fit`."""
    if section.keep == "best_usage" and not objective.tokenizer.space.grids:
        raise InputError("tokenizer.keep: must be best or last, got 'best_usage': there are no codes while a tokenizer trains "
                         "whose quantizer is fitted afterwards")  # fmt: skip
    every, epochs = section.keep_every, section.training.epochs
    kept = set(range(every, epochs + 1, every)) if every else set()
    better: Callable[[Row], float] = {
        "best": lambda row: -row["val_total"],
        "best_usage": lambda row: row["val_usage"],
        "last": lambda row: row["epoch"],
    }[section.keep]

    def score(row: Row) -> float:
        """An epoch before quantization is no tokenizer, however good its pictures are."""
        return better(row) if row.get("quantized", 1.0) else -math.inf

    def snapshot(objective: Objective, epoch: int) -> dict[str, Tensor]:
        taken = _snapshot(objective, data) if epoch in section.snapshot_epochs else {}
        if epoch in kept:
            state = delay.state_without_delay(objective.tokenizer)
            taken |= {f"weights/{name}": value for name, value in state.items()}
        return taken

    return Task(
        name="tokenizer",
        objective=objective,
        examples=len(data.pixels["train"]),
        batch=data.batch,
        evaluate=lambda objective: _evaluate(objective, data),
        score=score,
        snapshot=snapshot,
        snapshot_epochs={*section.snapshot_epochs, *kept},
    )


def _snapshot(objective: Objective, data: Data) -> dict[str, Tensor]:
    reconstruction = objective.tokenizer(arrays.to_model(data.shown, data.device)).reconstruction
    books = {f"codebook_{index}": book for index, book in enumerate(objective.tokenizer.codebooks)}
    return {"reconstruction": torch.from_numpy(arrays.to_pixels(reconstruction)), **books}


def _evaluate(objective: Objective, data: Data) -> Row:
    """One row of the history: all loss terms and scores of `val`, and the scores of `train` in eval mode. The training loop adds
    the mean loss terms of `train`."""
    train = _scores(objective, data, data.looked_at["train"])
    val = _scores(objective, data, data.looked_at["val"])
    row = {f"val_{name}": value for name, value in val.items()}
    if late := delay.delayed(objective.tokenizer):
        row["quantized"] = float(all(bool(quantizer.begun) for quantizer in late.values()))
    seen = ("usage", "perplexity", "codebook_error", "mse_pixels", "psnr_db", "ssim")
    return row | {f"train_{name}": train[name] for name in seen if name in train}


def _scores(objective: Objective, data: Data, pixels: UInt8[np.ndarray, "n h w c"]) -> Row:
    """All loss terms, their `total`, the reported terms, and scores of codes and pictures over all of `pixels`: `psnr_db` of the
    mean squared error, `ssim` with uniform windows (`scores`)."""
    sums: dict[str, float] = defaultdict(float)
    reported: dict[str, float] = defaultdict(float)
    codes, errors, similar = [], [], []
    for where in arrays.batches(len(pixels), data.batch_size):
        x = arrays.to_model(pixels[where], data.device)
        output = objective.tokenizer(x)
        for name, value in objective.losses(x, output).items():
            sums[name] += float(value) * len(x)
        for name, value in [item for level in output.quantized for item in level.reported.items()]:
            reported[name] += float(value) * len(x)
        decoded = arrays.to_pixels(output.reconstruction)
        codes.append(objective.tokenizer.space.join(level.codes for level in output.quantized).cpu().numpy())
        errors.append(scores.mse(decoded, pixels[where]))
        similar.append(scores.ssim(decoded, pixels[where]))
    row = {name: value / len(pixels) for name, value in sums.items()}
    row["total"] = sum(row.values())
    row |= {name: value / len(pixels) for name, value in reported.items()}
    row["mse_pixels"] = float(np.concatenate(errors).mean())
    row["psnr_db"] = float(scores.psnr_db(row["mse_pixels"]))
    row["ssim"] = float(np.concatenate(similar).mean())
    return row | _code_scores(np.concatenate(codes), objective.tokenizer)


def _code_scores(codes: Int[np.ndarray, "n t"], tokenizer: Tokenizer) -> Row:
    """Usage and perplexity over all codes, mean over the grids; empty if there are no grids."""
    if not tokenizer.space.grids:
        return {}
    folded = tokenizer.space.split(codes)
    fractions = [statistics.frequencies(grid, k) for grid, k in zip(folded, tokenizer.space.sizes, strict=True)]
    return {
        "usage": float(np.mean([statistics.usage(p) for p in fractions])),
        "perplexity": float(np.mean([statistics.perplexity(p) for p in fractions])),
    }


def metrics(fitted: Fitted, tokenizer: Tokenizer, data: Data) -> dict[str, Any]:
    """Loss and codebook scores of the kept epoch. Scores of pictures over whole splits are metrics of `reconstruction`."""
    row = next(row for row in fitted.history if row["epoch"] == fitted.epoch)
    if "val_usage" not in row:  # the codebook was fitted afterwards
        with torch.no_grad():
            scored = _scores(Objective(tokenizer.to(data.device), {}), data, data.looked_at["val"])
        row = row | {f"val_{name}": scored[name] for name in ("usage", "perplexity")}
        tokenizer.to("cpu")
    return {
        "epoch": fitted.epoch,
        "val": {name: row[f"val_{name}"] for name in ("total", "usage", "perplexity")},
        "train": {"total": row["train_total"]} if "train_total" in row else {},
    }


def write_snapshots(fitted: Fitted, data: Data) -> None:
    """Write pictures of the snapshot epochs (a row of reconstructions each, under the originals; the codebook on its two main
    directions), their codebooks as `artifacts/tokenizer/snapshots.safetensors`, and the weights of every n-th epoch if asked."""
    epochs = sorted({int(name.partition("/")[0]) for name in fitted.snapshots})
    books: dict[str, Tensor] = {}
    rows = [data.shown]
    for epoch in epochs:
        taken = {n.partition("/")[2]: t for n, t in fitted.snapshots.items() if n.startswith(f"{epoch}/")}
        weights = {name.removeprefix("weights/"): t for name, t in taken.items() if name.startswith("weights/")}
        if weights:
            models.save_weights(files.ARTIFACTS / "tokenizer" / "epochs" / f"{epoch:04d}.safetensors", weights)
        if "reconstruction" in taken:
            rows.append(taken["reconstruction"].numpy())
            books |= {f"{epoch}/{name}": t for name, t in taken.items() if name.startswith("codebook_")}
    models.save_weights(files.ARTIFACTS / "tokenizer" / "snapshots.safetensors", books)
    folder = files.PLOTS / "tokenizer"
    files.write_picture(folder / "reconstructions.png", pictures.sheet(np.concatenate(rows), len(data.shown)))
    if books:
        files.write_picture(folder / "codebook.png", _codebooks({n: t.numpy() for n, t in books.items()}))


def _codebooks(books: dict[str, Float[np.ndarray, "k d"]]) -> Figure:
    """Code vectors of each snapshot on the two principal directions of the last one, so that motion is visible."""
    from matplotlib.figure import Figure

    grids = sorted({name.partition("/")[2] for name in books})
    epochs = sorted({int(name.partition("/")[0]) for name in books})
    figure = Figure(figsize=(2.6 * len(epochs), 2.8 * len(grids)))
    axes = figure.subplots(len(grids), len(epochs), squeeze=False, sharex="row", sharey="row")
    for row, grid in enumerate(grids):
        last = books[f"{epochs[-1]}/{grid}"]
        centre = last.mean(0)
        _, _, directions = np.linalg.svd(last - centre, full_matrices=False)
        for column, epoch in enumerate(epochs):
            points = (books[f"{epoch}/{grid}"] - centre) @ directions[:2].T
            points = np.pad(points, [(0, 0), (0, 2 - points.shape[1])])  # one-dimensional code vectors lie on a line
            axes[row, column].scatter(*points.T, s=6, alpha=0.7, linewidths=0)
            axes[row, column].set_title(f"{grid.replace('_', ' ')}, epoch {epoch}", fontsize=9)
            axes[row, column].set_aspect("equal", "box")
    return figure


def after_training(params: Params) -> tuple[str, ...]:
    """Sections that only the work after all training depends on: the decoder is tuned on codes of the fitted codebook."""
    return ("quantizer",) if params.post_hoc and not tunes(params) else ()


if __name__ == "__main__":
    enter(main, trains=True, after_training=after_training)
