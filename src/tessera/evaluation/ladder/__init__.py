"""The rung of the samples: how damaged real images must be to be as far from real images as the samples are.

`tessera.ladder` damages the codes of real images more and more. Each damaged set is decoded and compared with the
reconstructions of the images that it was made from, by KID on the scorer's features (`features.kernel`) and by a two-sample
test (`tessera.two_sample`); so are the samples, the baseline, and real training images in their place. All are decoded, so
the decoder's blur is on both sides.

The rung of a set is its KID on the scale of the damaged sets: 1 is the distance of the first rung, 0 is KID 0 or below, and
between two rungs it is linear in KID. A rung is relative to its tokenizer, scorer and images: across tokenizers and data sets
compare the KID and the accuracy beside it. Dull samples can have a low KID, so read the accuracy beside the rung.

Everything is measured on val, by which values are chosen, and on test, for all images and for each group. Intervals (95 %)
resample families, the same ones for all rungs, so that differences of neighbouring rungs have intervals too. They say how
well a figure is known of all images that could have been in the split. A second interval of the rung, `given`, says how well it
is known of the images of this split: only the samples and the draws of the damage are resampled. It is the one to compare two
priors by, since both are judged by the same images.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from pydantic import Field, model_validator

from tessera import forks, ladder, two_sample
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features import kernel
from tessera.images import arrays, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL = {"val": "reconstruction_val", "test": "reconstruction"}  # split -> features of its reconstructions
TRAIN = "reconstruction_train"  # real training images in the place of samples
METRICS = tuple(
    f"{split}.*.{name}"
    for split in REAL
    for name in ("images", "in_order", "ordered", "rung", "rung_low", "rung_high", "rung_given_low",
                 "rung_given_high", "kid*", "accuracy", "train_rung",
                 "train_kid*", "train_accuracy")
)  # fmt: skip


class Config(Strict):
    count: int = Field(ge=8, description="images of a split, at most, and samples, evenly spaced; memory grows with its square",
                       examples=[8])  # fmt: skip
    repetitions: int = Field(
        ge=1, le=100, description="damaged sets for each rung; its KID is their mean", examples=[2]
    )
    resamplings: int = Field(ge=100, le=100000, description="of families, for intervals", examples=[100])
    penalty: float = Field(gt=0, description="C of the logistic regression: the inverse of the weight of |w|^2 / 2",
                           examples=[0.01])  # fmt: skip
    folds: int = Field(ge=2, le=20, description="of the two-sample test", examples=[2])
    smallest: int = Field(ge=4, description="images that a set must have in a group to be compared there", examples=[4])
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    shown: int = Field(ge=1, le=64, description="test images in the picture", examples=[2])

    @model_validator(mode="after")
    def _measurable(self) -> Config:
        if self.smallest > self.count:
            raise ValueError(
                f"smallest must be at most count, got {self.smallest} and {self.count}: no set would have images enough to be "
                "compared; lower smallest or raise count"
            )
        return self


class Set(NamedTuple):
    """Features of images, their families, and the members of each group. `side`, of damaged images: none shares a code with an
    image, damaged or not, of the other side."""

    features: Float[np.ndarray, "n f"]
    families: Shaped[np.ndarray, " n"]
    groups: dict[str, Int[np.ndarray, " _"]]
    side: Int[np.ndarray, " n"] | None = None

    def within(self, group: str) -> Set:
        """The members of a group."""
        own = self.groups[group]
        return Set(self.features[own], self.families[own], {}, None if self.side is None else self.side[own])

    @property
    def related(self) -> Bool[np.ndarray, "n n"] | None:
        """Which images may share codes with which real ones, or among themselves."""
        return None if self.side is None else self.side[:, None] == self.side


class Measured(NamedTuple):
    """KID of a set, its values [R] with the families of both sets resampled, and with those of the split as they are (`given`), and
    the accuracy of the two-sample test."""

    kid: float
    resampled: Float[np.ndarray, " r"]
    given: Float[np.ndarray, " r"]
    accuracy: two_sample.Accuracy
    images: int


class Real(NamedTuple):
    """Of the real images of a group: how often each counts in each resampling, and the kernel's mean within them, as they are and
    resampled."""

    images: Set
    weights: Float[np.ndarray, "r n"]
    within: float
    resampled: Float[np.ndarray, " r"]


def measure(config: Config, run: Run) -> Report:
    """Metrics of the samples for each split and group: their rung and its interval, KID, accuracy, and those of training images;
    of a group that is not measured, the number of real images.
    `in_order`: each rung has a larger KID than the one before; without it there is no rung. `ordered`: also each difference
    is above 0 at 95 %. Table `rungs` has the damaged sets, `sets` everything else; picture `damage` shows images on each rung
    beside samples, `scale` where the samples stand."""
    reason = why_not(config, run)
    if reason is not None:
        print(f"evaluation@ladder does not apply: {reason}", flush=True)
        return Report({"applies": 0})
    metrics, rungs, sets, kids, damage = zip(
        *forks.each(partial(_of_split, config, run), list(REAL), run.device), strict=True
    )
    tables = {"rungs": pd.DataFrame(list(chain(*rungs))), "sets": pd.DataFrame(list(chain(*sets)))}
    pictured = {"damage": damage[-1], "scale": scale(tables["rungs"], tables["sets"], kids[-1])}
    return Report(dict(zip(REAL, metrics, strict=True)), tables, pictured)


class Found(NamedTuple):
    """Of one split: the metrics of each group, rows of the tables `rungs` and `sets`, KID's name, the picture `damage`."""

    metrics: dict[str, Any]
    rungs: list[dict[str, Any]]
    sets: list[dict[str, Any]]
    kid: str
    damage: UInt8[np.ndarray, "height width c"]


def _of_split(config: Config, run: Run, split: str) -> Found:
    made = Split(config, run, split)
    found = Found({}, [], [], made.kid, made.picture())
    for group in made.real.groups:
        reason = made.too_few(made.real, group) or made.unpaired(group)
        if reason is not None:
            found.sets.append({"split": split, "group": group, "set": REAL[split], "said": reason})
            found.metrics[group] = {"images": len(made.real.groups[group])}
            continue
        measured = made.rungs(group)
        found.metrics[group], own = headline(measured, dict(made.sets(group)), made.kid)
        found.rungs.extend({"split": split, "group": group, **row} for row in rows_of_rungs(measured, made.kid))
        found.sets.extend({"split": split, "group": group, **row} for row in own)
    return found


def why_not(config: Config, run: Run) -> str | None:
    """Why there is no ladder on val and test, or None."""
    for split, of in REAL.items():
        families = run.families(of)[run.groups(of)["all"]]
        reason = ladder.why_not(run.space, families[arrays.evenly(len(families), config.count)])
        if reason is None and min(len(families), config.count) < config.smallest:
            reason = (
                f"{split} has {len(families)} images, of which evaluation.ladder.count {config.count} are taken, and "
                f"evaluation.ladder.smallest is {config.smallest}"
            )
        if reason is not None:
            return reason
    return None


class Split:
    """What is compared on one split."""

    def __init__(self, config: Config, run: Run, split: str) -> None:
        self.config, self.run, self.split = config, run, split
        self.tokenizer, self.scorer = run.tokenizer(), run.scorer()
        self.kid = "kid" if run.distance == "fid" else f"kid_{run.distance.removeprefix('fd_')}"
        every = run.groups(REAL[split])["all"]
        chosen = every[arrays.evenly(len(every), config.count)]
        self.real = self._set(REAL[split], chosen)
        names = [name for name in self.real.groups if name != "all"]
        group = np.zeros(len(chosen), np.int64)
        for at, name in enumerate(names):
            group[self.real.groups[name]] = at + 1
        table = run.table(split)
        codes = np.asarray(run.codes(split)[chosen])
        self.images = ladder.Images(codes, table["name"].to_numpy(str)[chosen], self.real.families, group)
        self._first: dict[str, UInt8[np.ndarray, "n h w c"]] = {}  # pixels for the picture
        self.damaged = {rung: list(self._damaged(rung)) for rung in ladder.rungs(run.space)}
        self._real = cache(self._real_of)

    def _set(self, of: str, chosen: Int[np.ndarray, " n"]) -> Set:
        members = {name: np.flatnonzero(np.isin(chosen, rows)) for name, rows in self.run.groups(of).items()}
        return Set(np.asarray(self.run.features(of)[chosen]), self.run.families(of)[chosen], members)

    def _damaged(self, rung: str) -> Iterator[Set]:
        for number in range(self.config.repetitions):
            codes, side = ladder.damaged(self.images, self.run.space, rung, self.run.params.seed, number)
            pixels = self._decoded(codes)
            if number == 0:
                self._first[rung] = pixels[arrays.evenly(len(pixels), self.config.shown)]
            features = arrays.mapped(self.scorer, pixels, self.config.batch_size, self.run.device)
            yield Set(features, self.real.families, self.real.groups, side)

    def rungs(self, group: str) -> dict[str, Measured]:
        """Each rung in a group: KID is the mean over the repetitions, the accuracy that of the first."""
        found = {}
        for rung, repetitions in self.damaged.items():
            sets = [of.within(group) for of in repetitions]
            each = [self._measured(of, group, of if of is sets[0] else None) for of in sets]
            kids = np.array([one.kid for one in each])
            lots = numpy_generator(self.run.params.seed, "ladder", "draws", self.split, group, rung)
            given = lots.choice(kids, (self.config.resamplings, len(kids))).mean(1)
            resampled = np.mean([one.resampled for one in each], axis=0)
            found[rung] = each[0]._replace(kid=float(kids.mean()), resampled=resampled, given=given)
        return found

    def too_few(self, of: Set, group: str) -> str | None:
        """Why a set says nothing of a group, or None: a two-sample test needs two families, one for each fold."""
        members = of.groups.get(group, np.zeros(0, np.int64))
        if len(members) < self.config.smallest:
            return "too few images"
        return "one family" if len(np.unique(of.families[members])) < 2 else None

    def unpaired(self, group: str) -> str | None:
        """Why a group has no ladder, or None: an image is compared with those of the other side, and with few families a resampling
        holds those of one side alone."""
        if (have := len(np.unique(self.real.families[self.real.groups[group]]))) < ladder.FEWEST:
            return f"{have} families, fewer than {ladder.FEWEST}"
        related = (of.within(group).related for repetitions in self.damaged.values() for of in repetitions)
        alone = any(each is not None and each.all() for each in related)
        return (
            "all images are on one side of the ladder, since their families are in other groups too" if alone else None
        )

    def sets(self, group: str) -> Iterator[tuple[str, Measured | str]]:
        """Samples and what stands beside them; where that says nothing of the group, why."""
        for of in ("samples", TRAIN, *(of for of in self.run.sample_sets if of != "samples")):
            whole = self._set(of, np.arange(len(self.run.features(of))))
            reason = self.too_few(whole, group)
            if reason is None:
                fake = whole.within(group)
                yield of, self._measured(_spread(fake, self.config.count), group, fake)
            else:
                yield of, reason

    def _real_of(self, group: str) -> Real:
        images = self.real.within(group)
        generator = numpy_generator(self.run.params.seed, "ladder", "families", self.split, group)
        weights = kernel.resampled(images.families, self.config.resamplings, generator)
        pairs, ones = kernel.within(images.features, images.families), np.ones((1, len(images.features)))
        return Real(images, weights, float(kernel.mean(pairs, ones, ones)[0]), kernel.mean(pairs, weights, weights))

    def _measured(self, fake: Set, group: str, told_apart: Set | None) -> Measured:
        """KID of `fake`; accuracy of as many images of `told_apart` as there are real ones."""
        config, (real, theirs, real_within, real_resampled) = self.config, self._real(group)
        families = (fake.families, real.families)
        within = kernel.within(fake.features, fake.families, fake.related)
        between = kernel.between(fake.features, real.features, families, fake.related)
        one, as_they_are = np.ones((1, len(fake.features))), np.ones((1, len(real.features)))
        value = real_within + (kernel.mean(within, one, one) - 2 * kernel.mean(between, one, as_they_are))[0]
        ours = theirs if fake.side is not None else self._resampled(fake, group)
        own = kernel.mean(within, ours, ours)
        resampled = real_resampled + own - 2 * kernel.mean(between, ours, theirs)
        given = real_within + own - 2 * kernel.mean(between, ours, np.broadcast_to(as_they_are, theirs.shape))
        accuracy = two_sample.Accuracy(np.nan, np.nan, np.nan)
        if told_apart is not None:
            few, many = _spread(told_apart, len(real.features)), _spread(real, len(told_apart.features))
            if min(len(np.unique(of.families)) for of in (few, many)) < 2:  # none is left for a second fold
                few, many = told_apart, real
            pair = (few.families, many.families)
            folds = min(config.folds, *(len(np.unique(of)) for of in pair))
            accuracy = two_sample.accuracy(
                *two_sample.cross_fitted(few.features, many.features, pair, config.penalty, folds)
            )
        return Measured(float(value), resampled, given, accuracy, len(fake.features))

    def _resampled(self, fake: Set, group: str) -> Float[np.ndarray, "r n"]:
        """How often each image counts; families that the real images have too, as with a random split, count as there. (A damaged
        set has the families of the images that it was made from.)"""
        real, theirs = self._real(group)[:2]
        generator = numpy_generator(self.run.params.seed, "ladder", "samples", self.split, group)
        found = kernel.resampled(fake.families, self.config.resamplings, generator)
        place = {family: at for at, family in enumerate(real.families)}
        for at, family in enumerate(fake.families):
            if family in place:
                found[:, at] = theirs[:, place[family]]
        return found

    def _decoded(self, codes: Int[np.ndarray, "n t"]) -> UInt8[np.ndarray, "n h w c"]:
        return arrays.decoded(self.tokenizer, codes.astype(np.int64), self.config.batch_size, self.run.device)

    def picture(self) -> UInt8[np.ndarray, "height width c"]:
        """A row for each of some images: its reconstruction, the image on each rung, and, apart, a sample."""
        chosen = arrays.evenly(len(self.images.codes), self.config.shown)
        columns = [self._decoded(self.images.codes[chosen]), *self._first.values()]
        columns.append(np.full_like(columns[0], 255))
        samples = self.run.samples()
        columns.append(np.asarray(samples[arrays.evenly(len(samples), len(chosen))]))
        return pictures.sheet(np.stack(columns, 1).reshape(-1, *columns[0].shape[1:]), len(columns))


def _spread(of: Set, count: int) -> Set:
    """At most `count` images, evenly spaced."""
    chosen = arrays.evenly(len(of.features), count)
    return Set(of.features[chosen], of.families[chosen], {}, None if of.side is None else of.side[chosen])


def headline(
    rungs: dict[str, Measured], sets: dict[str, Measured | str], kid: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of a group, and the rows of its sets."""
    found: dict[str, float] = {
        "in_order": float(in_order(rungs)),
        "ordered": float(min(low for _, low in differences(rungs)) > 0),
    }
    rows = []
    for of, measured in sets.items():
        if isinstance(measured, str):
            rows.append({"set": of, "said": measured})
            continue
        row: dict[str, Any] = {"set": of, "images": measured.images, kid: measured.kid, **_interval(kid, measured)}
        row |= {"accuracy": measured.accuracy.value, "accuracy_low": measured.accuracy.low}
        row |= {"accuracy_high": measured.accuracy.high, "said": "no rung"}
        if in_order(rungs):
            at, given = (rung(measured, rungs, which) for which in ("resampled", "given"))
            row |= {"rung": at.value, "rung_low": at.low, "rung_high": at.high}
            row |= {"rung_given_low": given.low, "rung_given_high": given.high}
            row["said"] = f">{len(rungs)}" if at.value >= len(rungs) else f"{at.value:.1f}"
        rows.append(row)
        before = {"samples": "", TRAIN: "train_"}.get(of)
        if before is not None:
            of_rung = [f"rung{which}" for which in ("", "_low", "_high", "_given_low", "_given_high")]
            keys = (*of_rung, kid, "accuracy") if not before else ("rung", kid, "accuracy")
            found |= {f"{before}{key}": row[key] for key in keys if key in row}
    return found, rows


def in_order(rungs: dict[str, Measured]) -> bool:
    """Whether each rung is farther from the real images than the one before, and the first at all."""
    return all(value > 0 for value, _ in differences(rungs))


def differences(rungs: dict[str, Measured]) -> list[tuple[float, float]]:
    """KID of each rung less that of the one before (of the first, itself), and the 2.5th percentile of its resampled values."""
    found, before, before_resampled = [], 0.0, np.zeros(1)
    for measured in rungs.values():
        low = float(np.nanquantile(measured.resampled - before_resampled, 0.025))
        found.append((measured.kid - before, low))
        before, before_resampled = measured.kid, measured.resampled
    return found


def rung(measured: Measured, rungs: dict[str, Measured], which: str = "resampled") -> kernel.Interval:
    """The rung of a set, from 0 to the number of rungs, and its interval: both ladder and set are resampled, `which` says how. A
    resampled ladder that is out of order counts with the running maximum of its rungs."""
    value = _interpolated(np.array([measured.kid]), np.array([[of.kid] for of in rungs.values()]))
    resampled = _interpolated(getattr(measured, which), np.array([getattr(of, which) for of in rungs.values()]))
    return kernel.interval(float(value[0]), resampled)


def _interpolated(values: Float[np.ndarray, " r"], scale: Float[np.ndarray, "k r"]) -> Float[np.ndarray, " r"]:
    """Linear between neighbouring rungs; 0 at or below KID 0, their number at or above the last."""
    scale = np.maximum.accumulate(np.concatenate([np.zeros((1, scale.shape[1])), scale]))
    return np.array(
        [np.interp(value, column, np.arange(len(column))) for value, column in zip(values, scale.T, strict=True)]
    )


def rows_of_rungs(rungs: dict[str, Measured], kid: str) -> Iterator[dict[str, Any]]:
    for (name, measured), (difference, low) in zip(rungs.items(), differences(rungs), strict=True):
        yield {"rung": name, "images": measured.images, kid: measured.kid, **_interval(kid, measured),
               "difference": difference, "difference_low": low, "accuracy": measured.accuracy.value,
               "accuracy_low": measured.accuracy.low, "accuracy_high": measured.accuracy.high}  # fmt: skip


def _interval(kid: str, measured: Measured) -> dict[str, float]:
    interval = kernel.interval(measured.kid, measured.resampled)
    return {f"{kid}_low": interval.low, f"{kid}_high": interval.high}


def scale(rungs: pd.DataFrame, sets: pd.DataFrame, kid: str) -> Figure:
    """KID of each rung, a panel for each group of test, and at which KID the samples and what stands beside them are."""
    import seaborn as sns
    from matplotlib.figure import Figure

    rungs, sets = (table[table["split"] == "test"] for table in (rungs, sets))
    groups = list(dict.fromkeys(rungs["group"]))
    figure = Figure(figsize=(4.6 * len(groups), 3.6), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, group in zip(axes, groups, strict=True):
        own = rungs[rungs["group"] == group]
        ends = [own[kid] - own[f"{kid}_low"], own[f"{kid}_high"] - own[kid]]
        axis.errorbar(range(1, len(own) + 1), own[kid], ends, fmt="o-", color="black", capsize=3, label="damaged")
        others = sets[(sets["group"] == group) & sets[kid].notna()] if kid in sets else sets[:0]
        for (_, row), colour in zip(others.iterrows(), sns.color_palette(), strict=False):
            axis.axhline(row[kid], color=colour, linestyle="--", label=f"{row['set']} ({row['said']})")
            axis.axhspan(row[f"{kid}_low"], row[f"{kid}_high"], color=colour, alpha=0.12, linewidth=0)
        axis.set_xticks(range(1, len(own) + 1), own["rung"].str.replace("_", " "), rotation=20)
        # a power of ten, else ticks of smaller powers crowd around 0
        first = max(1e-6, float(own[kid].iloc[0]))
        axis.set_yscale("symlog", linthresh=10.0 ** round(np.log10(first)))
        axis.set(title=f"{group}, test", xlabel="rung of damage", ylabel=kid)
        axis.legend(fontsize=7, frameon=False)
    return figure
