"""Which judge of samples to trust: `python -m benchmarks.judges`, after `dvc repro samples`; docs/studies/judges.md has the page.

Judges are measures of a set of images against real ones. Each is shown sets of known order:

- the ladder of damage (`tessera.ladder`), made from training images, and those images undamaged;
- samples of priors that are better and better: histogram, ngram, pixelsnail after 1 and 5 epochs, the prior in artifacts/;
- samples of that prior at lower temperatures, which are dull; and training images of which there are few, each many times.

Real images are those of test and val; both sides are decoded from codes. A draw takes other real images, damage and samples.
`--votes FILE` adds the votes of people, from the tab Judge of the playground. `--sizes` asks instead at which input sizes of
EfficientNet-Lite0 the ladder of test images is in order. Prints Markdown tables; `--table FILE` also writes every value as CSV.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import nn
from torch.nn import functional as F

from stages import prior as training
from tessera import groups, ladder, presets, two_sample
from tessera.core import files, models
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import SPLITS, Sampling
from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.core.seeding import derive, generator, numpy_generator, seed_globally
from tessera.core.space import CodeSpace
from tessera.evaluation.two_sample import Images, criticised
from tessera.extractors import efficientnet
from tessera.features import clipped, kernel, neighbours
from tessera.images import arrays
from tessera.playground import judge as people
from tessera.runtime.devices import Runtime
from tessera.runtime.settings import Settings
from tessera.studies.pages import markdown
from tessera.training import loop

BATCH, POOL, CRITICISED = 128, 1000, 365  # images of a forward pass; of each set; that the critic is shown
NEIGHBOURS, PENALTY, FOLDS, RESAMPLINGS, SMALLEST = 5, 0.01, 5, 1000, 30
REPEATED = 10  # times that each of the copies is there
TEMPERATURES = (0.9, 0.7, 0.5)
EPOCHS = (1, 5)  # of the priors that are trained here
HIGH = ("precision", "recall", "density", "coverage", "clipped density", "clipped coverage")  # the higher the better


class Set(NamedTuple):
    """Images as codes, and a family of each: a sample is a family of its own. `side`, of damaged images: those of different sides
    share no code."""

    codes: Int[np.ndarray, "n t"]
    families: Shaped[np.ndarray, " n"]
    side: Int[np.ndarray, " n"] | None = None


class Seen(NamedTuple):
    """What judges see of a set: codes, features by network, families, groups, and bits per code."""

    codes: Int[np.ndarray, "n t"]
    features: dict[str, Float[np.ndarray, "n f"]]
    families: Shaped[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    bits: Float[np.ndarray, " n"]
    side: Int[np.ndarray, " n"] | None = None

    def rows(self, chosen: Int[np.ndarray, " m"]) -> Seen:
        features = {name: each[chosen] for name, each in self.features.items()}
        side = None if self.side is None else self.side[chosen]
        return Seen(self.codes[chosen], features, self.families[chosen], self.groups[chosen], self.bits[chosen], side)


class Workspace:
    """Artefacts of a run, read by path, so that it need not be the one of params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / files.ARTIFACTS
        self.tokenizer = models.load(self.folder / "tokenizer")
        self.space = CodeSpace.of_facts(files.read_json(self.folder / "codes" / "facts.json"))
        self.table = files.read_table(
            self.folder / "dataset" / "table.csv", text=("split", "name", "family", "label_name")
        )
        names = files.read_json(self.folder / "dataset" / "facts.json")["label_names"]
        self.group_names, of_label = groups.of_labels(names, read()["features"]["groups"]) if names else ([], None)
        labels = self.table["label"].to_numpy("int64") if names else None
        self.group = of_label[labels] if of_label is not None else np.zeros(len(self.table), np.int64)

    def codes(self, split: str) -> Int[np.ndarray, "n t"]:
        return np.asarray(files.load_array(self.folder / "codes" / f"{split}.npy")).astype(np.int64)

    def images(self, *splits: str) -> ladder.Images:
        """Those of the splits, one after the other, as the ladder takes them."""
        where = np.concatenate([np.flatnonzero(self.table["split"] == split) for split in splits])
        rows = self.table.iloc[where]
        codes = np.concatenate([self.codes(split) for split in splits])
        return ladder.Images(codes, rows["name"].to_numpy(str), rows["family"].to_numpy(str), self.group[where])

    def decoded(self, codes: Int[np.ndarray, "n t"]) -> UInt8[np.ndarray, "n h w c"]:
        return arrays.decoded(self.tokenizer, torch.from_numpy(codes), BATCH)


# networks


def scorer(size: int, weights: str, shape: tuple[int, int, int]) -> Any:
    values = read()["scorer"]["efficientnet"] | {"input_size": size, "weights": weights}
    network = efficientnet.build(efficientnet.Config.model_validate(values), shape, 0)
    network.load_pretrained()
    return network


class Denoiser(nn.Module):
    """A small denoising autoencoder; its code is the feature vector (arXiv 2403.05352, where networks are larger)."""

    NOISE, CHANNELS, FEATURES, EPOCHS, RATE = 0.3, 32, 64, 12, 2e-3  # noise: standard deviation, of images in [-1, 1]

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        c, side = self.CHANNELS, -(-size // 8)
        self.size, self.map = size, (4 * c, side, side)
        self.encoder = nn.Sequential(
            *(layer for n, m in ((channels, c), (c, 2 * c), (2 * c, 4 * c))
              for layer in (nn.Conv2d(n, m, 3, 2, 1), nn.BatchNorm2d(m), nn.SiLU())),
            nn.Flatten(), nn.Linear(4 * c * side * side, self.FEATURES),
        )  # fmt: skip
        self.spread = nn.Linear(self.FEATURES, 4 * c * side * side)
        self.decoder = nn.Sequential(
            *(layer for n, m in ((4 * c, 2 * c), (2 * c, c), (c, c))
              for layer in (nn.Upsample(scale_factor=2), nn.Conv2d(n, m, 3, 1, 1), nn.BatchNorm2d(m), nn.SiLU())),
            nn.Conv2d(c, channels, 3, 1, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        decoded = self.decoder(self.spread(self(x)).view(-1, *self.map))
        return decoded[..., : self.size, : self.size]


def denoiser(pixels: UInt8[np.ndarray, "n h w c"], seed: int) -> Denoiser:
    """Trained on these images."""
    seed_globally(seed, "judges", "denoiser")
    rng = generator(seed, "judges", "denoiser", "noise")
    network = Denoiser(pixels.shape[3], pixels.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=Denoiser.RATE)
    x = arrays.to_model(pixels)
    for _ in range(Denoiser.EPOCHS):
        for where in torch.randperm(len(x), generator=rng).split(64):
            if len(where) < 2:
                continue  # batch statistics need two images
            noisy = x[where] + Denoiser.NOISE * torch.randn(x[where].shape, generator=rng)
            optimizer.zero_grad()
            F.mse_loss(network.restored(noisy), x[where]).backward()
            optimizer.step()
    return network.eval()


# sets


def damaged(images: ladder.Images, space: CodeSpace, seed: int, repetitions: int) -> dict[str, list[Set]]:
    def made(rung: str, repetition: int) -> Set:
        codes, side = ladder.damaged(images, space, rung, seed, repetition)
        return Set(codes, images.families, side)

    return {rung: [made(rung, repetition) for repetition in range(repetitions)] for rung in ladder.rungs(space)}


def priors(space: Workspace, params: Params, runtime: Runtime) -> Iterator[tuple[str, Any]]:
    """Worst first, without the one of artifacts/. Those with epochs are trained as that one, but for so long."""
    train = space.codes("train")
    for name in ("histogram", "ngram"):
        prior = models.build(models.prior_recipe(params, space.space, UNCONDITIONAL, name))
        prior.fit(torch.from_numpy(train), None)
        yield name, prior.eval()
    augmented = files.load_array(space.folder / "codes" / "augmented.npy")
    own = params.section("prior", training.Settings)
    data = training.Data(
        {"train": train, "val": space.codes("val")}, augmented, dict.fromkeys(SPLITS), UNCONDITIONAL, own, torch.device("cpu")
    )  # fmt: skip
    for epochs in EPOCHS:
        seed_globally(params.seed, "judges", "prior", epochs)
        objective = training.Objective(models.build(models.prior_recipe(params, space.space, UNCONDITIONAL)))
        changed = own.training.model_copy(update={"epochs": epochs, "evaluate_every": epochs})
        loop.fit(training.task(objective, data), changed, params.seed, runtime)
        yield f"{own.name} {epochs}", objective.prior.eval()


@torch.no_grad()
def sampled(prior: Any, name: str, count: int, seed: int, temperature: float = 1.0) -> Set:
    sampling = Sampling(temperature)
    codes = [
        prior.sample(where.stop - where.start, generator(seed, "judges", name, index), sampling=sampling)
        for index, where in enumerate(arrays.batches(count, 250))
    ]
    return Set(np.concatenate([each.numpy() for each in codes]), alone(name, count))


def alone(name: str, count: int) -> Shaped[np.ndarray, " n"]:
    return np.array([f"{name} {index}" for index in range(count)])


class Gallery:
    """All sets, as judges see them."""

    def __init__(self, space: Workspace, options: argparse.Namespace) -> None:
        runtime = {"runtime.threads": options.threads, "runtime.device": "cpu"}
        params = Params(presets.applied(read(), runtime))
        seed = params.seed
        machine = Runtime(params.section("runtime", Settings))
        self.space, self.prior = space, models.load(space.folder / "prior")
        pixels = files.load_array(space.folder / "dataset" / "train.npy")
        shape = (pixels.shape[3], *pixels.shape[1:3])
        self.networks = {"efficientnet": scorer(options.size, options.weights, shape)}
        if options.classifier:
            self.networks["classifier"] = models.load(options.classifier)
        self.networks["denoiser"] = denoiser(np.asarray(pixels), seed)
        train, real = space.images("train"), space.images("test", "val")
        chosen = numpy_generator(seed, "judges", "train").permutation(len(train.codes))[: options.pool]
        self._assigner: Any = None
        plain = self.seen(Set(train.codes, train.families))
        self._assigner = groups.Assigner(plain.features["efficientnet"], train.groups)
        real_set = Set(real.codes, real.families)
        self.real = self.seen(real_set, real.groups)
        self.sets: dict[str, list[Seen]] = {"train": [plain._replace(groups=train.groups)]}
        part = ladder.Images(*(each[chosen] for each in train))
        held_out = damaged(real, space.space, seed, options.repetitions)
        for rung, each in damaged(part, space.space, seed, options.repetitions).items():
            # the prior has seen the training images: bits are of damaged test and val images
            self.sets[rung] = [
                self.seen(one, part.groups, bits_of=other.codes, bit_groups=real.groups)
                for one, other in zip(each, held_out[rung], strict=True)
            ]
        few = chosen[: max(2, len(chosen) // REPEATED)]
        repeated = np.tile(few, REPEATED)
        self.sets["copies"] = [self.sets["train"][0].rows(repeated)]
        self.ladder = ("train", *ladder.rungs(space.space))
        self.priors = []
        for name, prior in priors(space, params, machine):
            self.add(name, sampled(prior, name, options.pool, seed))
        committed = np.asarray(files.load_array(space.folder / "samples" / "samples" / "codes.npy")).astype(np.int64)
        self.add("committed", Set(committed, alone("committed", len(committed))))
        self.dull = ["committed"]
        for temperature in TEMPERATURES:
            name = f"temperature {temperature}"
            self.sets[name] = [self.seen(sampled(self.prior, name, options.pool, seed, temperature))]
            self.dull.append(name)

    def add(self, name: str, made: Set) -> None:
        self.sets[name] = [self.seen(made)]
        self.priors.append(name)
        print(f"sampled: {name}", file=sys.stderr, flush=True)

    def seen(
        self,
        made: Set,
        group: Int[np.ndarray, " n"] | None = None,
        bits_of: Int[np.ndarray, "m t"] | None = None,
        bit_groups: Int[np.ndarray, " m"] | None = None,
    ) -> Seen:
        """Samples are assigned to groups by EfficientNet's features. `bits_of`: images of the groups `bit_groups` whose bits
        stand for those of the set, drawn with its groups."""
        pixels = self.space.decoded(made.codes)
        features = {name: arrays.mapped(network, pixels, BATCH) for name, network in self.networks.items()}
        if group is None:
            group = self._assigner(features["efficientnet"]) if self._assigner else np.zeros(len(pixels), np.int64)
        bits = self.bits(made.codes if bits_of is None else bits_of)
        if bits_of is not None:
            assert bit_groups is not None
            spread_rows = [
                np.resize(np.flatnonzero(bit_groups == each), int((group == each).sum())) for each in np.unique(group)
            ]
            spread = np.zeros(len(group))
            for each, rows in zip(np.unique(group), spread_rows, strict=True):
                spread[group == each] = bits[rows]
            bits = spread
        return Seen(made.codes, features, made.families, group, bits, made.side)

    @torch.no_grad()
    def bits(self, codes: Int[np.ndarray, "n t"]) -> Float[np.ndarray, " n"]:
        """Bits per code under the prior in artifacts/."""
        parts = [self.prior.log_prob(torch.from_numpy(codes[w]), None) for w in arrays.batches(len(codes), BATCH)]
        return -torch.cat(parts).numpy() / np.log(2) / codes.shape[1]


# judges


def frechet(a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> float:
    """`features.frechet.distance` of sets smaller than their features are long, in the time that it needs: the trace of
    (S S')^(1/2) is the sum of the singular values of the product of both centred sets, [n,m] instead of [f,f]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    left, right = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    root = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.square(left).sum() + np.square(right).sum() - 2 * root)


def one_nearest(fake: Seen, real: Seen, of: str) -> float:
    """Accuracy of the 1-nearest-neighbour two-sample test (arXiv 1610.06545, section 2; leave-one-out), the mean of both
    sets' accuracies. The neighbour is of another family: variants of one image would find each other."""
    points = np.concatenate([fake.features[of], real.features[of]])
    families = np.concatenate([fake.families, real.families])
    side = np.repeat([1, 0], [len(fake.families), len(real.families)])
    far = neighbours.distances(points, points)
    far[families[:, None] == families] = np.inf
    right = side[far.argmin(1)] == side
    return float((right[side == 1].mean() + right[side == 0].mean()) / 2)


def kid(fake: Seen, real: Seen, of: str) -> float:
    families = (fake.families, real.families)
    related = None if fake.side is None else fake.side[:, None] == fake.side
    found = kernel.pairs(fake.features[of], real.features[of], families, None, related)
    return float(kernel.estimate(found, np.ones((1, len(families[0]))), np.ones((1, len(families[1]))))[0])


def overlap(real: Float[np.ndarray, "n f"], fake: Float[np.ndarray, "m f"], k: int) -> dict[str, float]:
    """Precision and recall (arXiv 1904.06991, eq. 2 and 3), density and coverage (arXiv 2002.09797, eq. 4 and 6): a ball
    reaches from a point to its k-th nearest in the same set."""
    between = neighbours.distances(real, fake)
    in_real = between <= neighbours.radii(real, k)[:, None]
    in_fake = between <= neighbours.radii(fake, k)[None, :]
    return {
        "precision": float(in_real.any(0).mean()),
        "recall": float(in_fake.any(1).mean()),
        "density": float(in_real.sum(0).mean() / k),
        "coverage": float(in_real.any(1).mean()),
    }


def judged(fake: Seen, real: Seen) -> dict[str, float]:
    """What each judge says of a set."""
    found = {}
    for of in fake.features:
        found[f"fd {of}"] = frechet(fake.features[of], real.features[of])
        if of != "denoiser":
            found[f"kid {of}"] = kid(fake, real, of)
    of = "efficientnet"
    k = min(NEIGHBOURS, len(fake.families) // 2, len(real.families) // 2)
    found |= overlap(real.features[of], fake.features[of], k)
    ours, theirs = (clipped.directions(each.features[of]) for each in (fake, real))
    values = clipped.clipped(theirs, ours, real.families, k)
    found |= {"clipped density": values.density, "clipped coverage": values.coverage}
    families = (fake.families, real.families)
    folds = min(FOLDS, *(len(np.unique(each)) for each in families))
    if folds > 1:
        fitted = two_sample.cross_fitted(fake.features[of], real.features[of], families, PENALTY, folds)
        found["two-sample"] = two_sample.accuracy(*fitted).value
    found["1-nearest"] = one_nearest(fake, real, of)
    found["bits"] = float(fake.bits.mean())
    return found


def members(seen: Seen, group: int | None) -> Int[np.ndarray, " m"]:
    return np.arange(len(seen.groups)) if group is None else np.flatnonzero(seen.groups == group)


def named(space: Workspace) -> dict[str, int | None]:
    """Groups by name, and `all`."""
    return {"all": None} | {name: at for at, name in enumerate(space.group_names)}


def values(gallery: Gallery, counts: Sequence[int], repetitions: int, smallest: int, seed: int) -> pd.DataFrame:
    """One row for each group, number of images, set, repetition and judge; see `of_group` and `of_critic`."""
    rows = [
        row for name in named(gallery.space) for row in of_group(gallery, name, counts, repetitions, smallest, seed)
    ]
    return pd.DataFrame([*rows, *of_critic(gallery, CRITICISED, repetitions, smallest, seed)])


def of_group(
    gallery: Gallery, name: str, counts: Sequence[int], repetitions: int, smallest: int, seed: int
) -> Iterator[dict[str, Any]]:
    """All judges but the critic, within a group; no more images than test and val have there."""
    group = named(gallery.space)[name]
    have = members(gallery.real, group)
    for count in sorted({min(count, len(have)) for count in counts if len(have) >= smallest}):
        for repetition in range(repetitions):
            rng = numpy_generator(seed, "judges", name, count, repetition)
            real = gallery.real.rows(rng.choice(have, count, replace=False))
            for of, each in gallery.sets.items():
                own = members(each[repetition % len(each)], group)
                if len(own) < smallest:
                    continue
                fake = each[repetition % len(each)].rows(rng.choice(own, min(count, len(own)), replace=False))
                place = {"group": name, "images": count, "repetition": repetition, "set": of}
                yield from ({**place, "judge": judge, "value": value} for judge, value in judged(fake, real).items())
        print(f"judged: {name}, {count} images", file=sys.stderr, flush=True)


def of_critic(gallery: Gallery, count: int, repetitions: int, smallest: int, seed: int) -> Iterator[dict[str, Any]]:
    """The critic on codes, trained on all groups, for all images and, with the same critics, within each group."""
    config = Params(read()).config("evaluation", "two_sample")
    for repetition in range(repetitions):
        rng = numpy_generator(seed, "judges", "critic", repetition)
        real = gallery.real.rows(
            rng.choice(len(gallery.real.groups), min(count, len(gallery.real.groups)), replace=False)
        )
        for of, each in gallery.sets.items():
            fake = each[repetition % len(each)]
            fake = fake.rows(rng.choice(len(fake.groups), min(count, len(fake.groups)), replace=False))
            sides = (Images(side.codes, None, side.families, {}) for side in (fake, real))
            scores = criticised(
                *sides, gallery.space.tokenizer, config, derive(seed, "judges", "critic", repetition, of)
            )
            for name, group in named(gallery.space).items():
                own = [one[members(side, group)] for one, side in zip(scores, (fake, real), strict=True)]
                if min(map(len, own)) >= smallest:
                    place = {"group": name, "images": count, "repetition": repetition, "set": of, "judge": "critic"}
                    yield {**place, "value": two_sample.accuracy(*own).value}
        print(f"judged: critic, repetition {repetition}", file=sys.stderr, flush=True)


# what the values say


def badness(table: pd.DataFrame) -> pd.DataFrame:
    """Values with the sign that makes more of them worse, judges' sets by draws."""
    sign = np.where(table["judge"].isin(HIGH), -1.0, 1.0)
    return table.assign(value=table["value"] * sign).pivot_table("value", "repetition", "set")


def order(worse: pd.DataFrame, sets: Sequence[str]) -> str:
    """`yes`: each set is worse than the one before it in every draw; `mean`: only in the mean of draws; `no`, and which pair."""
    differences = {f"{b} < {a}": worse[b] - worse[a] for a, b in pairwise(each for each in sets if each in worse)}
    if all((each > 0).all() for each in differences.values()):
        return "yes"
    wrong = [name for name, each in differences.items() if each.mean() <= 0]
    return "no: " + ", ".join(wrong) if wrong else "mean"


def likes(worse: pd.DataFrame, favourites: Sequence[str], real: str) -> str:
    """Those of `favourites` that are better than `real` in every draw."""
    return ", ".join(each for each in favourites if each in worse and (worse[each] < worse[real]).all()) or "-"


def verdicts(table: pd.DataFrame, gallery: Gallery) -> pd.DataFrame:
    rows = []
    for (group, images, judge), part in table.groupby(["group", "images", "judge"], sort=False):
        worse = badness(part)
        rows.append({
            "group": group, "images": images, "judge": judge,
            "ladder": order(worse, gallery.ladder),
            "priors": order(worse, gallery.priors[::-1]),
            "copies better than train": likes(worse, ["copies"], "train"),
            "dull better than temperature 1": likes(worse, gallery.dull[1:], gallery.dull[0]),
            "better than train": likes(worse, [*gallery.priors, *gallery.dull[1:], *gallery.ladder[1:]], "train"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over draws."""
    grouped = table.groupby(["group", "images", "judge", "set"], sort=False)["value"]
    return grouped.agg(["mean", "std", "count"]).reset_index().rename(columns={"count": "repetitions"})


# input sizes


def sizes(space: Workspace, options: argparse.Namespace) -> pd.DataFrame:
    """KID of each rung of the test images against their reconstructions, mean of `--repetitions` repetitions, by input size and
    group; `difference`: the lower end of the 95 % interval of its difference to the rung before it."""
    seed, images = read()["seed"], space.images("test")
    where = arrays.evenly(len(images.codes), options.pool)
    images = ladder.Images(*(each[where] for each in images))
    pixels = space.decoded(images.codes)
    shape = (pixels.shape[3], *pixels.shape[1:3])
    made = {
        rung: [ladder.damaged(images, space.space, rung, seed, repetition) for repetition in range(options.repetitions)]
        for rung in ladder.rungs(space.space)
    }
    shown = {rung: [space.decoded(one.codes) for one in each] for rung, each in made.items()}
    rows = []
    for size in options.sizes:
        network = scorer(size, options.weights, shape)
        see: Callable[[Any], Any] = lambda x, network=network: arrays.mapped(network, x, BATCH)  # noqa: E731
        real, fake = see(pixels), {rung: [see(one) for one in each] for rung, each in shown.items()}
        for name, group in named(space).items():
            own = np.arange(len(images.groups)) if group is None else np.flatnonzero(images.groups == group)
            if len(own) < options.smallest:
                continue
            families = images.families[own]
            weights = kernel.resampled(families, RESAMPLINGS, numpy_generator(seed, "judges", "sizes", name))
            ones, before = np.ones((1, len(own))), None
            for rung, each in fake.items():
                value, resampled = [], []
                for features, damage in zip(each, made[rung], strict=True):
                    related = damage.side[own][:, None] == damage.side[own]
                    found = kernel.pairs(features[own], real[own], (families, families), related, related)
                    value.append(float(kernel.estimate(found, ones, ones)[0]))
                    resampled.append(kernel.estimate(found, weights, weights))
                now = np.mean(resampled, 0)
                interval = kernel.interval(float(np.mean(value)), now)
                least = float("nan") if before is None else float(np.nanquantile(now - before, 0.025))
                rows.append({"size": size, "group": name, "images": len(own), "rung": rung, "kid": interval.value,
                             "low": interval.low, "high": interval.high, "difference": least})  # fmt: skip
                before = now
    return pd.DataFrame(rows)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Of each size and group: are all differences of neighbouring rungs above 0 at 95 %, and which are not?"""
    rows = []
    for (size, group), part in table.groupby(["size", "group"], sort=False):
        wrong = part.loc[part["difference"] <= 0, "rung"]
        rows.append({"size": size, "group": group, "images": int(part["images"].iloc[0]),
                     "in order": "yes" if wrong.empty else "no: " + ", ".join(wrong)})  # fmt: skip
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder with artifacts/ (default: this one)")
    parser.add_argument("--classifier", type=Path, help="folder of a trained classifier (scorer.name=classifier); without it "
                        "there is no column of it")  # fmt: skip
    parser.add_argument("--weights", default="", help="of EfficientNet-Lite0; empty: those of the package")
    parser.add_argument("--size", type=int, default=efficientnet.PINNED, help="input size of EfficientNet-Lite0")
    parser.add_argument("--sizes", type=int, nargs="+", help="only the table of these input sizes")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 365, 730], help="images on each side")
    parser.add_argument("--pool", type=int, default=POOL, help=f"images of each set at most (default {POOL})")
    parser.add_argument("--repetitions", type=int, default=3, help="default 3")
    parser.add_argument("--smallest", type=int, default=SMALLEST, help="images that a set must have in a group")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--votes", type=Path, help=f"votes of people, {people.VOTES}")
    parser.add_argument("--table", type=Path, help="CSV of all values")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        space = Workspace(options.workspace)
        if options.sizes:
            table = sizes(space, options)
            shown = [in_order(table)]
        else:
            gallery = Gallery(space, options)
            found = values(gallery, options.images, options.repetitions, options.smallest, read()["seed"])
            table, shown = summary(found), [verdicts(found, gallery)]
            if options.votes:
                votes = people.votes(path=options.votes)
                table = pd.concat([table, summary(people.by_session(votes))], ignore_index=True)
                shown.append(people.summary(votes).round(3))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.table:
        files.write_table(options.table, table)
    for each in shown:
        print(markdown(each))
    return 0


if __name__ == "__main__":
    sys.exit(main())
