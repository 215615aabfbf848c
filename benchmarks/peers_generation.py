"""Samples of tessera beside those of a pixel diffusion, after equal minutes: `python -m benchmarks.peers_generation`, after
`dvc repro scorer`.

All train on the training images of artifacts/dataset, on the same threads, in turns, for the same minutes of wall time:

    tessera          params.yaml as it is, or a preset, but for the epochs: the stages tokenizer, codes and prior, and loading
                     both models. The tokenizer has three fifths of the minutes, the prior what is left after it and the codes; one
                     epoch of each, trained before and not counted, says how many epochs fit. Each is evaluated as often as in
                     params.yaml. The clock stands while it is planned
    diffusion        denoising-diffusion-pytorch (PyPI) by its own Trainer and the settings of its README: U-Net of 64 channels, (1,
                     2, 4, 8), batches of 32 twice per update, rate 8e-5, averaged weights, DDIM of 250 passes. Changed: image_size
                     128 to that of the data; no FID, which needs a download; training ends by time. `amp` is true as in
                     the README, by which Accelerate computes in float32 on a CPU
    diffusion-small  the same by the network and the rate of the annotated code that its README links to (dim = the image size,
                     (1, 2, 4), Adam 1e-3; huggingface.co/blog/annotated-diffusion) and the Trainer's smallest batch, 16. Within
                     minutes on a CPU it takes many more updates. Weights are averaged over 200 updates, not 2,000

The Trainer shuffles and flips, in as many processes as there are cores. tessera runs first, and where it took longer than the
minutes, the others have as long. The clock of the diffusion begins before its network is built and ends after the update in which
the time was over. Reading and writing images counts for nobody.

Judged are as many samples of each, unselected, by the scorer's features (EfficientNet-Lite0) against *original* test images, which
no decoder has blurred: the accuracy of the two-sample test (`tessera.two_sample`; .5 is the best) and KID (0 is the best), with
95 % intervals, for each group. A classifier trained on original training images assigns samples to groups. Within a group both
sides have as many images as the smaller. References in the place of samples: training images; uniform noise, which says where a
measure ends (KID gives noise less than blurred samples may get: read it beside the accuracy and the sheet); and reconstructions
of the test images by each tokenizer, below which its samples can hardly come.

After each run three files are written anew: a table (CSV), a page (Markdown), whose first lines say who is ahead, and a sheet of
samples (PNG). Runs are kept in .scratch/peers_generation; one that is there is not repeated, so a command that was killed goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from benchmarks.clock import spent
from benchmarks.optimizers import task_of, training_of
from stages import codes, prior, samples, tokenizer
from stages.features import Settings as OfFeatures
from tessera import groups, presets, two_sample
from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator, seed_globally
from tessera.evaluation.frechet import LEAST
from tessera.features import kernel
from tessera.images import arrays, pictures
from tessera.runtime import process, provenance
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies.pages import markdown
from tessera.training.loop import fit
from tessera.training.settings import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = Path(".scratch/peers_generation")
DONE, SAMPLES, DECODED = "run.json", "samples.npy", "reconstruction.npy"
OURS, TRAIN, NOISE = "tessera", "training images", "noise"
OF_TOKENIZER = 0.6  # of the minutes
MARGIN = 0.98  # of the minutes are planned: stages also write files
PACKAGE, INSTALL = "denoising_diffusion_pytorch", "python -m pip install -e '.[peers]'"
SMALLEST_SET = 100  # images, of the Trainer
LEVELS = 1000  # of noise, as in the README
NEVER = 10**9
SHOWN, COLUMNS = 40, 10  # images of each block of the sheet
MEASURES = ("accuracy", "kid")
SPENT = ("seconds", "cpu_seconds", "seconds_per_sample", "cpu_seconds_per_sample")

Raw = dict[str, Any]


class Case(NamedTuple):
    """What every peer is given. `raw`: params.yaml with the preset. `passes`: of a diffusion, per sample."""

    raw: Raw
    threads: int
    samples: int
    passes: int

    @property
    def seed(self) -> int:
        return self.raw["seed"]

    @property
    def pixels(self) -> UInt8[np.ndarray, "n h w c"]:
        """The training images."""
        return files.load_array(files.ARTIFACTS / "dataset" / "train.npy")


class Made(NamedTuple):
    """What a run made, and what its training and its sampling took. `reconstruction`: the test images through its tokenizer, if it
    has one. `setting`: in words."""

    samples: UInt8[np.ndarray, "n h w c"]
    reconstruction: UInt8[np.ndarray, "m h w c"] | None
    training: Clock
    sampling: Clock
    setting: str


Peer = Callable[[Case, float, Path], Made]  # what is given, seconds, folder of its own


class Clock:
    """Counts the seconds of its blocks: by the wall, and those of all cores (`cpu`), which other programs lengthen less."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._begun = time.perf_counter(), spent()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._begun
        self.seconds, self.cpu = self.seconds + time.perf_counter() - wall, self.cpu + spent() - cpu


# tessera


class Pace(NamedTuple):
    """Seconds of a training: of an epoch, of one evaluation, and of all that comes once."""

    epoch: float
    evaluation: float
    once: float


def pace(kind: str, raw: Raw) -> Pace:
    """Of the training of the stage `kind`, by one epoch of it, which leaves nothing.

    Raises:
        InputError: it is none that is trained.
    """
    begun, at, evaluations = time.perf_counter(), [], []
    run = run_of(raw)
    task = task_of(kind, run)
    if not any(parameter.requires_grad for parameter in task.objective.parameters()):
        raise InputError(f"{kind}.name: must be one that is trained, got {raw[kind]['name']!r}; choose another")

    def batch(*given: Any) -> tuple[Any, ...]:
        at.append(time.perf_counter())
        return task.batch(*given)

    def evaluate(objective: Any) -> dict[str, float]:
        before = time.perf_counter()
        row = task.evaluate(objective)
        evaluations.append(time.perf_counter() - before)
        return row

    once = training_of(kind, run.params).model_copy(update={"epochs": 1, "evaluate_every": 1})
    fit(task._replace(batch=batch, evaluate=evaluate, snapshot=None), once, run.params.seed, run.runtime)
    each = float(np.diff(at)[1:].mean()) if len(at) > 2 else (time.perf_counter() - begun) / len(at)
    evaluation = float(np.mean(evaluations))
    besides = time.perf_counter() - begun - len(at) * each - evaluation
    return Pace(len(at) * each, evaluation, max(0.0, besides))


def fitting(found: Pace, seconds: float, training: Training) -> tuple[int, int]:
    """Epochs that fit into the seconds, at least 1, and the epochs between evaluations, of which there are about as many as
    `training` has."""
    evaluations = math.ceil(training.epochs / training.evaluate_every)
    left = seconds - found.once - evaluations * found.evaluation
    epochs = max(1, int(left / found.epoch))
    return epochs, max(1, round(epochs / evaluations))


def planned(kind: str, raw: Raw, seconds: float) -> Raw:
    """`raw` with as many epochs of the training of the stage `kind` as fit into the seconds."""
    training = Training.model_validate(raw[kind]["training"])
    epochs, every = fitting(pace(kind, raw), seconds, training)
    changed = {f"{kind}.training.epochs": epochs, f"{kind}.training.evaluate_every": every}
    return presets.changed(raw, changed)


def run_of(raw: Raw) -> Run:
    params = Params(raw)
    return Run(params, runtime=Runtime(params.section("runtime", Settings)))


def tessera(case: Case, seconds: float, folder: Path) -> Made:
    """Its stages from the tokenizer to the samples, in `folder`."""
    (folder / files.ARTIFACTS).mkdir()
    for name in ("dataset", "perceptual"):  # the second is read where a loss asks for it
        (folder / files.ARTIFACTS / name).symlink_to((files.ARTIFACTS / name).resolve())
    clock, left = Clock(), MARGIN * seconds
    with contextlib.chdir(folder):
        raw = planned("tokenizer", case.raw, OF_TOKENIZER * left)
        with clock:
            tokenizer.main(run_of(raw))
            codes.main(run_of(raw))
        raw = planned("prior", raw, left - clock.seconds)
        with clock:
            prior.main(run_of(raw))
            run = run_of(raw)
            models = run.prior(), run.tokenizer()
        with (sampling := Clock()):
            made = samples.sample_set("samples", *models, run).images
        decoded = arrays.decoded(models[1], run.codes("test").astype(np.int64), raw["reconstruction"]["batch_size"])
    epochs = {kind: raw[kind]["training"]["epochs"] for kind in ("tokenizer", "prior")}
    setting = ", ".join(f"{kind} {raw[kind]['name']} {number} epochs" for kind, number in epochs.items())
    return Made(made, decoded, clock, sampling, setting)


# denoising-diffusion-pytorch


class Setting(NamedTuple):
    """Of its U-Net and its Trainer, by their own names but for `average_every`, which is ema_update_every."""

    dim: int
    dim_mults: tuple[int, ...]
    train_batch_size: int
    gradient_accumulate_every: int
    train_lr: float
    average_every: int


README = Setting(64, (1, 2, 4, 8), 32, 2, 8e-5, 10)
SMALL = Setting(32, (1, 2, 4), 16, 1, 1e-3, 1)


def package() -> Any:
    """
    Raises:
        InputError: denoising-diffusion-pytorch is not installed.
    """
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        raise InputError(f"denoising-diffusion-pytorch cannot be imported ({error}). Run `{INSTALL}`, or leave it out: "
                         f"--peers {OURS}") from None  # fmt: skip


def require_fit(pixels: UInt8[np.ndarray, "n h w c"], setting: Setting) -> None:
    """
    Raises:
        InputError: the Trainer does not take so few images, or the U-Net none of this size.
    """
    factor = 2 ** (len(setting.dim_mults) - 1)
    if len(pixels) < SMALLEST_SET:
        raise InputError(
            f"the Trainer of a diffusion needs at least {SMALLEST_SET} training images, got {len(pixels)}; take a "
            f"larger dataset.source, or --peers {OURS}"
        )
    if any(side % factor for side in pixels.shape[1:3]):
        raise InputError(
            f"dataset.image_size: must be divisible by {factor} for this U-Net, got {pixels.shape[1]}; change it, or "
            f"--peers {OURS}"
        )


def until(end: float, trainer: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches of a Trainer, which takes the update that it is at as its last when the time `end` is over."""
    for batch in batches:
        if time.perf_counter() >= end:
            trainer.train_num_steps = trainer.step + 1
        yield batch


def diffusion(setting: Setting, case: Case, seconds: float, folder: Path) -> Made:
    """Trained by the Trainer of the package on PNG files in `folder`, and sampled from the averaged weights in batches of the
    same size, as the Trainer does."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    theirs, pixels = package(), case.pixels
    require_fit(pixels, setting)
    (folder / "images").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(folder / "images" / f"{index:06d}.png")
    AcceleratorState._reset_state()  # otherwise the precision of the training before could not be changed
    PartialState(cpu=True)
    seed_globally(case.seed, "peers_generation", setting)
    with (clock := Clock()):
        end = time.perf_counter() + seconds
        network = theirs.Unet(dim=setting.dim, dim_mults=setting.dim_mults, channels=pixels.shape[3], flash_attn=True)
        model = theirs.GaussianDiffusion(
            network, image_size=pixels.shape[1], timesteps=LEVELS, sampling_timesteps=case.passes
        )
        trainer = theirs.Trainer(
            model,
            str(folder / "images"),
            train_batch_size=setting.train_batch_size,
            gradient_accumulate_every=setting.gradient_accumulate_every,
            train_lr=setting.train_lr,
            train_num_steps=NEVER,
            ema_decay=0.995,
            ema_update_every=setting.average_every,
            amp=True,
            calculate_fid=False,
            save_and_sample_every=NEVER,
            results_folder=str(folder / "results"),
        )
        batches = trainer.dl
        trainer.dl = until(end, trainer, batches)
        trainer.train()
        batches.close()  # ends the processes that read images
    averaged = trainer.ema.ema_model.eval()
    with (sampling := Clock()):
        made = [
            arrays.to_pixels(averaged.sample(batch_size=where.stop - where.start) * 2 - 1)
            for where in arrays.batches(case.samples, setting.train_batch_size)
        ]
    way = f"DDIM {case.passes}" if case.passes < LEVELS else f"DDPM {LEVELS}"
    size = sum(parameter.numel() for parameter in network.parameters())
    words = f"U-Net {size / 1e6:.1f} M, {trainer.step} updates of {setting.train_batch_size}"
    many = f" x {setting.gradient_accumulate_every}" if setting.gradient_accumulate_every > 1 else ""
    return Made(np.concatenate(made), None, clock, sampling, f"{words}{many}, {way}")


SETTINGS = {"diffusion": README, "diffusion-small": SMALL}
PEERS: dict[str, Peer] = {OURS: tessera, **{name: partial(diffusion, setting) for name, setting in SETTINGS.items()}}


# runs


class Result(NamedTuple):
    """A finished run: its peer, its minutes, the facts of run.json, and its folder."""

    peer: str
    minutes: float
    facts: dict[str, Any]
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.peer}, {self.minutes:g} min"

    def images(self, name: str) -> UInt8[np.ndarray, "n h w c"] | None:
        path = self.folder / name
        return np.asarray(files.load_array(path)) if path.exists() else None


def own_folder(peer: str, minutes: float, case: Case) -> Path:
    """Another one for each peer, minutes, values and training images: a run is kept under what it was made from."""
    shared = {"samples": case.samples, "threads": case.threads, "seed": case.seed}
    if peer == OURS:
        names = ("tokenizer", "quantizer", "losses", "codes", "prior", "samples")
        values: dict[str, Any] = {name: case.raw[name] for name in names}
    else:
        values = {"passes": case.passes, "setting": SETTINGS[peer]}
    data = files.sha256(files.ARTIFACTS / "dataset" / "train.npy")
    text = json.dumps([peer, minutes, shared, values, data], sort_keys=True)
    return KEPT / f"{peer}-{minutes:g}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def kept(peer: str, minutes: float, case: Case) -> Result | None:
    folder = own_folder(peer, minutes, case)
    done = folder / DONE
    return Result(peer, minutes, files.read_json(done), folder) if done.exists() else None


def make(peer: str, minutes: float, case: Case) -> Result:
    """Run it, for as long as tessera took where that was longer, and keep it. A run that was killed begins anew."""
    folder, ours = own_folder(peer, minutes, case), kept(OURS, minutes, case)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seconds = 60 * minutes
    if peer != OURS and ours is not None:
        seconds = max(seconds, ours.facts["seconds"])
    made = PEERS[peer](case, seconds, folder.resolve())
    files.save_array(folder / SAMPLES, made.samples)
    if made.reconstruction is not None:
        files.save_array(folder / DECODED, made.reconstruction)
    number = len(made.samples)
    took = (made.training.seconds, made.training.cpu, made.sampling.seconds / number, made.sampling.cpu / number)
    facts = {**dict(zip(SPENT, took, strict=True)), "setting": made.setting}
    files.write_json(folder / DONE, facts)
    return Result(peer, minutes, facts, folder)


# judging


class Side(NamedTuple):
    """One side of a comparison: features [N,F], families [N] and groups [N] of images."""

    features: Float[np.ndarray, "n f"]
    families: Shaped[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]

    def members(self, group: int | None) -> Int[np.ndarray, " m"]:
        """Indices of the images of a group; None: of all."""
        return np.arange(len(self.groups)) if group is None else np.flatnonzero(self.groups == group)

    def at(self, rows: Int[np.ndarray, " m"]) -> Side:
        return Side(self.features[rows], self.families[rows], self.groups[rows])


class Judge:
    """Compares images with the original test images. Groups are those of params.yaml with enough test images."""

    def __init__(self, raw: Raw, count: int) -> None:
        run = self._run = run_of(raw)
        own = run.params.section("features", OfFeatures)
        self._batch, self._scorer = own.batch_size, run.scorer()
        self._values = run.params.config("evaluation", "two_sample")
        self._resamplings = run.params.config("evaluation", "frechet").resamplings
        names, of_label = groups.of_labels(run.label_names, own.groups) if run.label_names else (["images"], None)
        known = {
            split: of_label[run.required_labels(split)]
            if of_label is not None
            else np.zeros(len(run.images(split)), int)
            for split in ("train", "test")
        }
        train = self.features(run.images("train"))
        self._assign = groups.Assigner(train, known["train"])
        self.test = Side(self.features(run.images("test")), self._families("test"), known["test"])
        self.train = Side(train, self._families("train"), known["train"]).at(arrays.evenly(len(train), count))
        shown = [name for name in names if (known["test"] == names.index(name)).sum() >= own.smallest_group]
        self.groups: dict[str, int | None] = {groups.ALL: None}
        if len(names) > 1:
            self.groups |= {name: names.index(name) for name in shown}

    @property
    def features_of(self) -> str:
        """The features, as distances name them."""
        return self._scorer.distance.removeprefix("fd_")

    def features(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n f"]:
        return arrays.mapped(self._scorer, pixels, self._batch)

    def _families(self, split: str) -> Shaped[np.ndarray, " n"]:
        return np.strings.add("real/", self._run.table(split)["family"].to_numpy(str))

    def samples(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Side:
        """Each a family of its own, its group as the classifier says."""
        features = self.features(pixels)
        return Side(features, np.array([f"sample/{at}" for at in range(len(pixels))]), self._assign(features))

    def noise(self) -> Side:
        """As many images of uniform noise as training images, in groups of the same sizes."""
        shape = (len(self.train.groups), *self._run.images("test").shape[1:])
        stream = numpy_generator(self._run.params.seed, "peers_generation", NOISE)
        return self.samples(stream.integers(0, 256, shape, np.uint8))._replace(groups=self.train.groups)

    def reconstruction(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Side:
        """Of the test images, in their order."""
        return self.test._replace(features=self.features(pixels))

    def rows(self, name: str, false: Side, paired: bool = False) -> Iterator[dict[str, Any]]:
        """A row for each group. `paired`: image i of `false` was made of test image i."""
        for group, index in self.groups.items():
            mine, real = false.members(index), self.test.members(index)
            number = min(len(mine), len(real))
            a, b = (side.at(own[arrays.evenly(len(own), number)]) for side, own in ((false, mine), (self.test, real)))
            row = {"set": name, "group": group, "images": number, "of_all": len(mine) / len(false.groups)}
            fewest = min(len(np.unique(side.families)) for side in (a, b))
            if number < LEAST or fewest < self._values.folds:
                yield {**row, "note": f"not measured: {number} images of {fewest} families"}
                continue
            families = (a.families, b.families)
            found = two_sample.cross_fitted(a.features, b.features, families, self._values.penalty, self._values.folds)
            stream = numpy_generator(self._run.params.seed, "peers_generation", name, group)
            related = np.eye(number, dtype=bool) if paired else None
            kid = kernel.kid(a.features, b.features, families, self._resamplings, stream, related)
            for measure, values in zip(MEASURES, (two_sample.accuracy(*found), kid), strict=True):
                row |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), values, strict=True))
            yield {**row, "note": ""}


def table_of(results: Sequence[Result], judge: Judge) -> pd.DataFrame:
    """The references first, then the runs."""
    rows = [*judge.rows(TRAIN, judge.train), *judge.rows(NOISE, judge.noise())]
    for result in results:
        if (decoded := result.images(DECODED)) is not None:
            name = f"test images through the tokenizer of {result.title}"
            rows += judge.rows(name, judge.reconstruction(decoded), paired=True)
    for result in results:
        facts = {"peer": result.peer, "minutes": result.minutes, **result.facts}
        side = judge.samples(result.images(SAMPLES))
        rows += [row | facts for row in judge.rows(result.title, side)]
    wanted = ("set", "peer", "minutes", "group", "images", "of_all",
              *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")), *SPENT, "setting", "note")  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(wanted))


# what is written


def verdicts(table: pd.DataFrame) -> Iterator[str]:
    """For each number of minutes, group and other peer, whether tessera is ahead of it: lower is better."""
    runs = table[table["peer"].notna() & table["accuracy"].notna()]
    for (minutes, group), part in runs.groupby(["minutes", "group"], sort=False):
        rows = part.set_index("peer")
        for other in [name for name in rows.index if name != OURS and OURS in rows.index]:
            ours, theirs = rows.loc[OURS], rows.loc[other]
            ahead = [name for name in MEASURES if ours[name] < theirs[name]]
            apart = [name for name in ahead if ours[f"{name}_high"] < theirs[f"{name}_low"]]
            word = {2: "ahead of {} on both", 1: "ahead of {} on one of two", 0: "behind {} on both"}[len(ahead)]
            sure = f", beyond the intervals on {len(apart)}" if apart else ""
            values = ", ".join(f"{_title(name)} {ours[name]:.3f} against {theirs[name]:.3f}" for name in MEASURES)
            yield f"- {minutes:g} minutes, {group}: tessera is **{word.format(other)}**{sure} ({values})"


def _title(measure: str) -> str:
    return {"accuracy": "two-sample accuracy", "kid": "KID"}[measure]


def page(table: pd.DataFrame, features: str) -> str:
    """Verdicts, then a table for each group, then what each run took."""

    def cell(row: Mapping[str, Any], name: str) -> str:
        if row["note"]:
            return row["note"]
        return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"

    parts = ["\n".join(verdicts(table)) or "tessera is compared with nothing yet"]
    for group, part in table.groupby("group", sort=False):
        cells = [
            {"set": row["set"], "images": row["images"], "of all": f"{row['of_all']:.0%}",
             **{_title(name): cell(row, name) for name in MEASURES}}
            for row in part.to_dict("records")
        ]  # fmt: skip
        parts.append(
            f"Group {group}, against original test images, features of {features}:\n\n{markdown(pd.DataFrame(cells))}"
        )
    runs = table[table["peer"].notna()].drop_duplicates("set")
    if len(runs):
        numbers = runs[["set", *SPENT, "setting"]].rename(columns=lambda name: name.replace("_", " "))
        parts.append(markdown(numbers.round(3)))
    return "\n\n".join(parts) + "\n"


def sheet(results: Sequence[Result], run: Run) -> Figure:
    """A row for each number of minutes, a column for each peer: their first samples, as they came. The last row has test images and
    training images, evenly spaced."""
    from matplotlib.figure import Figure

    peers = list(dict.fromkeys(result.peer for result in results))
    minutes = sorted({result.minutes for result in results})
    blocks = {(minutes.index(r.minutes), peers.index(r.peer)): (r.title, r.images(SAMPLES)) for r in results}
    for column, split in enumerate(("test", "train")):
        images = run.images(split)
        blocks[len(minutes), column] = f"{split} images", np.asarray(images[arrays.evenly(len(images), SHOWN)])
    columns = max(2, len(peers))
    size = (len(minutes) + 1, columns)
    figure = Figure(figsize=(7 * columns, 3.2 * size[0]), layout="constrained")
    for place, axis in np.ndenumerate(figure.subplots(*size, squeeze=False)):
        axis.set_axis_off()
        if place in blocks:
            title, images = blocks[place]
            missing = ((0, max(0, SHOWN - len(images))), (0, 0), (0, 0), (0, 0))
            padded = np.pad(images[:SHOWN], missing, constant_values=255)
            axis.imshow(
                pictures.sheet(padded, COLUMNS).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axis.set_title(title, fontsize=11)
    return figure


def write(to: Path, results: Sequence[Result], judge: Judge, run: Run) -> str:
    """The table, the page, which is returned, and the sheet: `to` with the endings .csv, .md and .png."""
    table = table_of(results, judge)
    text = page(table, judge.features_of)
    files.write_table(Path(f"{to}.csv"), table)
    with files.writing(Path(f"{to}.md")) as stream:
        stream.write(text)
    files.write_picture(Path(f"{to}.png"), sheet(results, run))
    return text


def compare(peers: Sequence[str], minutes: Sequence[float], case: Case, to: Path) -> str:
    """Make the runs that are not kept, in turns, shortest first; write after each. Returns the page."""
    provenance.require_together("dataset", "scorer")
    for setting in [SETTINGS[peer] for peer in peers if peer in SETTINGS]:
        package()
        require_fit(case.pixels, setting)
    torch.set_num_threads(case.threads)
    run, judge = run_of(case.raw), Judge(case.raw, case.samples)
    wanted = [(peer, each) for each in sorted(minutes) for peer in PEERS if peer in peers]

    def written() -> str:
        return write(to, [found for one in wanted if (found := kept(*one, case)) is not None], judge, run)

    text = ""
    for peer, each in wanted:
        if kept(peer, each, case) is None:
            print(f"{peer}, {each:g} min: started", file=sys.stderr, flush=True)
            make(peer, each, case)
            text = written()
    return text or written()


def case_of(options: argparse.Namespace) -> Case:
    """
    Raises:
        InputError: there is no such preset, or a value is not valid.
    """
    raw = read()
    values = presets.remaining(raw, presets.overrides(options.preset)) if options.preset else {}
    values |= {"samples.count": options.samples, "runtime.threads": options.threads, "runtime.device": "cpu"}
    threads = options.threads or os.cpu_count() or 1
    return Case(presets.applied(raw, values), threads, options.samples, options.passes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers_generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 20.0], help="of training (default: 10 20)")
    parser.add_argument("--samples", type=int, default=365, help="of each peer (default: 365)")
    parser.add_argument("--passes", type=int, default=250, help="of the diffusion's network per sample: below "
                        f"{LEVELS} by DDIM, at {LEVELS} by DDPM (default: 250, its README's)")  # fmt: skip
    parser.add_argument("--preset", help="of tessera, such as bf16 (default: params.yaml as it is)")
    parser.add_argument("--threads", type=int, default=process.COMMITTED_THREADS, help="default 2; 0: one per core")
    parser.add_argument("--to", type=Path, default=files.ARTIFACTS / "peers-generation", help="files that are written, without "
                        "their endings (default: artifacts/peers-generation)")  # fmt: skip
    options = parser.parse_args(argv)
    if min(options.minutes) <= 0:
        parser.error(f"--minutes must be above 0, got {min(options.minutes):g}")
    if not 1 <= options.passes <= LEVELS:
        parser.error(f"--passes must be 1 to {LEVELS}, got {options.passes}")
    try:
        text = compare(options.peers, options.minutes, case_of(options), options.to)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
