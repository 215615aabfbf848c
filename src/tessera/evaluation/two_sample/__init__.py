"""Can samples be told from held-out images? Two classifiers try, on images that they were not trained on.

Classifier two-sample tests (Lopez-Paz and Oquab 2017, arXiv 1610.06545; `tessera.two_sample`): an accuracy of 1/2 says that this
judge finds no difference, 1 that it is never mistaken. There are two judges. `features` is a logistic regression on the scorer's
features of decoded images, both sides by the same tokenizer. `critic` is a small convolutional network on code vectors: it
sees no pixel, so that what the decoder blurs or adds cannot help it. Real training images in the place of samples say what
an accuracy is worth: families differ, so it may be above 1/2 for them too. Samples of the baseline are what `features` must find.

A judge that finds nothing may be blind. The critic counts (`critic_counts` 1) only where it also tells from real images those
of which one random half comes from another image of the same group; then the lower end of its interval is above 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field

from tessera import critic, forks, ladder
from tessera.core.contracts import Device, Report, Tokenizer
from tessera.core.run import Run
from tessera.core.seeding import derive
from tessera.images import pictures
from tessera.images.arrays import evenly
from tessera.two_sample import accuracy, cross_fitted, split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL = {"val": "reconstruction_val", "test": "reconstruction"}  # split -> its decoded images in `run.features`
FEATURES, CRITIC = JUDGES = ("features", "critic")
SAMPLES, TRAIN, BASELINE, HALVES = "samples", "train", "baseline", "halves"
COLUMNS, BINS, GAP = 12, 20, 24
METRICS = tuple(
    f"{split}.*.{name}"
    for split in REAL
    for name in (
        *(f"{judge}{end}" for judge in JUDGES for end in ("", "_low", "_high", f"_{TRAIN}")),
        f"{CRITIC}_{HALVES}",
        f"{CRITIC}_counts",
    )
)


class Config(critic.Config):
    count: int = Field(ge=4, description="images of each side, at most; of a larger split, spread evenly over it",
                       examples=[6])  # fmt: skip
    penalty: float = Field(gt=0, description="C of the logistic regression, the inverse of the weight of |w|^2 / 2",
                           examples=[0.01])  # fmt: skip
    folds: int = Field(ge=2, le=20, description="folds, of whole families; each is predicted by classifiers trained on "
                       "the others. A set of fewer families is not measured", examples=[2])  # fmt: skip
    shown: int = Field(ge=1, le=256, description="samples in each block of the picture", examples=[4])


class Images(NamedTuple):
    """One side of a test: codes [N,T], features of the decoded images [N,F] (None: not known), families [N], and the indices of
    each group's images."""

    codes: Int[np.ndarray, "n t"]
    features: Float[np.ndarray, "n f"] | None
    families: Shaped[np.ndarray, " n"]
    groups: Mapping[str, Int[np.ndarray, " m"]]

    def at(self, rows: Int[np.ndarray, " k"]) -> Images:
        features = None if self.features is None else np.asarray(self.features[rows])
        groups = {name: np.flatnonzero(np.isin(rows, members)) for name, members in self.groups.items()}
        return Images(np.asarray(self.codes[rows]), features, self.families[rows], groups)

    def some(self, count: int) -> Images:
        """At most `count`, spread evenly."""
        return self.at(evenly(len(self.families), count))


class Scores(NamedTuple):
    """Probability of being false, by a judge that was not trained on them, of false images and of real ones."""

    false: Float[np.ndarray, " n"]
    real: Float[np.ndarray, " m"]


Verdict = Scores | str  # or why there are none
Judged = tuple[str, str, str]  # split, set, judge


def measure(config: Config, run: Run) -> Report:
    """Metrics per split and group: accuracies of both judges, with 95 % intervals of the samples'. Table: all sets.

    The logistic regression is fitted anew for each group. The critic, which takes longer, is trained once per set, on its images
    of all groups, and its accuracy within a group is read off. Pictures, of validation: `surest`, the samples that the critic
    is surest are false, and under them those that fool it most; `scores`, the histograms of both judges."""
    found: dict[Judged, Mapping[str, Verdict]] = {}
    for judged in forks.each(partial(_of_split, config, run), list(REAL), run.device):
        found |= judged
    rows = [
        {"split": at, "group": group, "of": of, "judge": judge, **_row(verdict)}
        for (at, of, judge), groups in found.items()
        for group, verdict in groups.items()
    ]
    table = pd.DataFrame(rows)
    return Report(_metrics(table), {"accuracy": table}, _pictures(found, run, config))


def _of_split(config: Config, run: Run, at: str) -> dict[Judged, Mapping[str, Verdict]]:
    tokenizer, real = run.tokenizer(), _real(run, at)
    names = run.table(at)["name"].to_numpy(str)[run.groups(REAL[at])["all"]]
    found: dict[Judged, Mapping[str, Verdict]] = {}
    sets = {of: _in_place_of_samples(run, of) for of in (SAMPLES, TRAIN, BASELINE)}
    for of, false in sets.items():
        found[at, of, FEATURES] = by_features(false, real, config)
    for of, false in {SAMPLES: sets[SAMPLES], TRAIN: sets[TRAIN], HALVES: _of_two_halves(real, names, run)}.items():
        seed = derive(run.params.seed, "two_sample", at, of)
        found[at, of, CRITIC] = by_critic(false, real, tokenizer, config, seed, run.device)
    return found


# what is compared


def _real(run: Run, at: str) -> Images:
    of = REAL[at]
    return _compared(Images(run.codes(at), run.features(of), run.families(of), run.groups(of)))


def _in_place_of_samples(run: Run, of: str) -> Images:
    """Samples of the prior or the baseline; or the training images whose decoded images have features."""
    name = "reconstruction_train" if of == TRAIN else of
    features, codes = run.features(name), run.codes(TRAIN) if of == TRAIN else run.samples(of, "codes")
    return _compared(Images(codes[evenly(len(codes), len(features))], features, run.families(name), run.groups(name)))


def _compared(images: Images) -> Images:
    """Those that take part (`Run.groups`)."""
    every = images.groups["all"]
    return images if len(every) == len(images.families) else images.at(every)


def _of_two_halves(real: Images, names: Shaped[np.ndarray, " n"], run: Run) -> Images:
    """Each image on the first rung of the ladder of damage: with one half of another image of the same group and another
    family. No image at all where there is no ladder (one code per grid, or one family)."""
    if ladder.why_not(run.space, real.families) is not None:
        return real.at(np.zeros(0, np.int64))
    group = np.zeros(len(real.codes), np.int64)
    for index, members in enumerate(real.groups.values()):
        group[members] = index  # `all` comes first
    whole = ladder.Images(np.asarray(real.codes), names, real.families, group)
    damaged = ladder.damaged(whole, run.space, ladder.rungs(run.space)[0], run.params.seed, 0)
    return Images(damaged.codes, None, real.families, real.groups)


def _equal(false: Images, real: Images, config: Config) -> tuple[Images, Images]:
    """As many of each, spread evenly."""
    count = min(config.count, len(false.codes), len(real.codes))
    return false.some(count), real.some(count)


def _unfit(false: Images, real: Images, folds: int) -> str:
    """Why these sets cannot be compared, or nothing."""
    fewest = min(len(np.unique(side.families)) for side in (false, real))
    return f"{fewest} families in a set, fewer than {folds} folds" if fewest < folds else ""


# the judges


def by_features(false: Images, real: Images, config: Config) -> dict[str, Verdict]:
    """For each group, a logistic regression on standardised features, cross-fitted."""
    found: dict[str, Verdict] = {}
    for group in real.groups:
        a, b = _equal(false.at(false.groups[group]), real.at(real.groups[group]), config)
        assert a.features is not None
        assert b.features is not None
        found[group] = _unfit(a, b, config.folds) or Scores(
            *cross_fitted(a.features, b.features, (a.families, b.families), config.penalty, config.folds)
        )
    return found


def by_critic(
    false: Images, real: Images, tokenizer: Tokenizer, config: Config, seed: int, device: Device
) -> dict[str, Verdict]:
    """For each group, what critics say that were trained on all groups, cross-fitted."""
    a, b = _equal(false, real, config)
    if unfit := _unfit(a, b, config.folds):
        return dict.fromkeys(real.groups, unfit)
    scores = criticised(a, b, tokenizer, config, seed, device)
    return {
        group: _unfit(a.at(a.groups[group]), b.at(b.groups[group]), config.folds)
        or Scores(scores.false[a.groups[group]], scores.real[b.groups[group]])
        for group in real.groups
    }


def criticised(
    false: Images, real: Images, tokenizer: Tokenizer, config: Config, seed: int, device: Device = "cpu"
) -> Scores:
    """Probability of being false, by critics that were not trained on an image's fold. It depends on `seed`, and not on the
    order of the images.

    Raises:
        InputError: a set has fewer families than folds.
    """
    codes, families = (np.concatenate(parts) for parts in ((false.codes, real.codes), (false.families, real.families)))
    truth = np.repeat([1, 0], [len(false.codes), len(real.codes)])
    order = np.lexsort((families, *codes.T, truth))  # batches are of sorted images, else their order would matter
    vectors = critic.code_vectors(tokenizer, codes[order], device)
    found = np.zeros(len(order))
    for fold, (train, held) in enumerate(split(families[order].astype(str), truth[order], config.folds)):
        x = critic.standardised(vectors, train)
        seed_of_fold = derive(seed, "fold", fold)
        judge = critic.trained(x[train], torch.from_numpy(truth[order][train]).to(x), config, seed_of_fold)
        with torch.no_grad():
            found[order[held]] = judge(x[torch.from_numpy(held)]).sigmoid().cpu().numpy()
    return Scores(found[: len(false.codes)], found[len(false.codes) :])


# what is reported


def _row(verdict: Verdict) -> dict[str, Any]:
    """`images`: of each side, the smaller. `note`: why there is no accuracy."""
    if isinstance(verdict, str):
        return {"images": 0, "accuracy": np.nan, "low": np.nan, "high": np.nan, "note": f"not measured: {verdict}"}
    value, low, high = accuracy(*verdict)
    return {"images": min(map(len, verdict)), "accuracy": value, "low": low, "high": high, "note": ""}


def _metrics(table: pd.DataFrame) -> dict[str, Any]:
    """What was measured of samples, training images and images of two halves; `critic_counts` in any case."""
    found: dict[str, Any] = {}
    for (at, group), part in table.groupby(["split", "group"], sort=False):
        own = found.setdefault(at, {}).setdefault(group, {})
        measured = part[part["note"] == ""].set_index(["judge", "of"])
        for judge, of in measured.index:
            value, low, high = (float(measured.loc[(judge, of), name]) for name in ("accuracy", "low", "high"))
            if of == SAMPLES:
                own |= {judge: value, f"{judge}_low": low, f"{judge}_high": high}
            elif of != BASELINE:
                own[f"{judge}_{of}"] = value
        blind = (CRITIC, HALVES) not in measured.index or measured.loc[(CRITIC, HALVES), "low"] <= 0.5
        own["critic_counts"] = int(not blind)
    return found


def _pictures(
    found: Mapping[Judged, Mapping[str, Verdict]], run: Run, config: Config
) -> dict[str, UInt8[np.ndarray, "h w c"] | Figure]:
    """Of what was measured."""
    scores = {judge: found["val", SAMPLES, judge]["all"] for judge in JUDGES}
    measured = {judge: verdict for judge, verdict in scores.items() if isinstance(verdict, Scores)}
    made: dict[str, UInt8[np.ndarray, "h w c"] | Figure] = {"scores": histograms(measured)} if measured else {}
    if CRITIC in measured:
        false, samples = measured[CRITIC].false, run.samples()
        made["surest"] = surest(np.asarray(samples[evenly(len(samples), len(false))]), false, config.shown)
    return made


def surest(
    samples: UInt8[np.ndarray, "n h w c"], false: Float[np.ndarray, " n"], count: int
) -> UInt8[np.ndarray, "height width c"]:
    """Two blocks: the `count` samples of highest probability of being false, highest first, and those of lowest, lowest first."""
    order = np.argsort(false, kind="stable")
    columns = min(COLUMNS, count, len(samples))
    blocks = [pictures.sheet(samples[rows[:count]], columns) for rows in (order[::-1], order)]
    between = np.full((GAP, *blocks[0].shape[1:]), 255, np.uint8)
    return np.concatenate([blocks[0], between, blocks[1]])


def histograms(scores: Mapping[str, Scores]) -> Figure:
    """Fractions of real images and of samples by the probability that each judge gives them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(scores), 3.4), layout="constrained")
    bins = np.linspace(0, 1, BINS + 1)
    for axis, (judge, (false, real)) in zip(np.ravel(figure.subplots(1, len(scores))), scores.items(), strict=True):
        for name, values in (("real images", real), ("samples", false)):
            axis.hist(values, bins, weights=np.full(len(values), 1 / len(values)), alpha=0.55, label=name)
        axis.set(title=judge, xlabel="probability of being a sample", ylabel="fraction of the set")
        axis.legend()
    return figure
