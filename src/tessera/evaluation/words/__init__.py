"""Drawing by name: does a prior that is told words and a vendor show what the words say, as that vendor would draw it?

A *held-out* image is a test image of a family that other vendors drew in training and its own vendor did not: `dataset.split.by`
is `vendor_and_family`. The prior is told its name and its vendor. Judges on the scorer's features (`recognition`) and,
where classes are few, on pixels (`pixel_recognition`) say what the samples show:

- of concepts, one for each vendor, trained on real drawings of the *other* vendors in the training split. A concept is a family:
  its tones and genders are judged apart. `top_1` and `top_5`: the concept asked for is the first, or among the first five, of all;
- of vendors, trained on all real drawings of the training split. `vendor_right`: the vendor asked for is the first.
  `top_1_and_vendor` and `top_5_and_vendor`: both are right, of one image;
- of each of `attributes`, such as tone and gender, trained on real drawings whose name has exactly one of its values.

Images of the validation split, as they are and through the tokenizer, decide which head a judge has; those that are held out, as on
test, decide with which guidance samples are drawn.

The same judges see, in the place of samples: the held-out `originals` (the ceiling), their `reconstructions` (the ceiling of what
passes the tokenizer), samples for a random other concept of the same vendor (`other_concept`, the floor), and `retrieved`, for each
held-out image the reconstruction of another vendor's training drawing of the same name, of all the one nearest to the original in
features: more than anyone could know who has not seen the original, and of the wrong vendor.

`compositions` are names of words of which two stand together in no training name, such as woman and ninja. Every vendor is asked
for each, and judges of attributes see whether its tone and its gender are right. Those that vendors did draw
(`dataset.split.withheld` keeps their drawings out of training) are `compositions_drawn`: each vendor is asked for what it drew,
and what the judges say of these drawings and of their reconstructions are the ceilings. The judges of compositions have seen
the drawings of these by the other vendors, else a teacher were a woman to them.

Figures are means over held-out images, of which each weighs alike; intervals (95 %) resample families. `near_copies` is the
fraction of samples whose codes are no farther from a training image's, or an augmented copy's, than the `quantile` of the test
images' (`tessera.near_copies`). Held-out images with the very codes of a training image are left out, and those of whose name the
prior knows no word.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tessera.core.conditioning import WORDS
from tessera.core.contracts import Report
from tessera.core.errors import listed
from tessera.core.run import Run
from tessera.evaluation.words.config import (
    ALL,
    COMPOSED,
    COMPOSED_ORIGINALS,
    COMPOSED_RECONSTRUCTIONS,
    COMPOSITIONS,
    FIGURES,
    ORIGINALS,
    OTHER,
    RECONSTRUCTIONS,
    RETRIEVED,
    SAMPLES,
    SETS,
    VENDOR,
    Config,
)
from tessera.evaluation.words.figures import of_names, picture, some, worst
from tessera.evaluation.words.held_out import (
    Apart,
    Images,
    chosen,
    composed,
    images,
    partners,
    retrieved,
    same_codes,
    unseen,
)
from tessera.evaluation.words.judges import Judges, Seen, real, reconstructed
from tessera.evaluation.words.samples import Copies, Sampler, Samples
from tessera.evaluation.words.tables import (
    Right,
    attribute_intervals,
    intervals,
    metrics_of,
    metrics_of_attributes,
    of_concepts,
)

BY = "top_5_and_vendor"  # guidance is chosen
WITH_CEILINGS = (COMPOSED, COMPOSED_ORIGINALS, COMPOSED_RECONSTRUCTIONS)


METRICS = (
    "held_out",
    "same_codes",
    "without_words",
    *(
        f"{of}.{name}"
        for of in (ALL, "vendors.*")
        for name in (
            "held_out",
            "near_copies",
            "top_5_of_reconstructions",
            *(f"{each}.{figure}" for each in SETS for figure in FIGURES),
            *(f"{SAMPLES}.{figure}_{end}" for figure in FIGURES for end in ("low", "high")),
        )
    ),
    "guidance.*",
    f"{COMPOSITIONS}.names",
    f"{COMPOSITIONS}.near_copies",
    *(f"attributes.{of}.*" for of in (ORIGINALS, RECONSTRUCTIONS, SAMPLES, COMPOSITIONS, *WITH_CEILINGS)),
)


def requires(run: Run) -> str | None:
    """Why there is nothing to measure, or None."""
    if "vendor_name" not in run.table("test"):
        return "the data set has no vendors; dataset.name emoji reads several"
    told = run.prior().conditioning
    if missing := [name for name in (WORDS, VENDOR) if name not in told]:
        return f"the prior is not told {' and '.join(missing)}; see prior.conditions"
    if needed := [part.name for part in told if part.name not in (WORDS, VENDOR) and not part.dropout]:
        return f"the prior never went without {listed(needed)} in training; set prior.conditions.{needed[0]} above 0, or to none"
    if not unseen(images(run, "test"), images(run, "train")).any():
        return (
            "no test image is of a concept that its vendor did not draw in training, and others did; set dataset.split.by to "
            "vendor_and_family"
        )
    return None


def measure(config: Config, run: Run) -> Report:
    """Metrics for all vendors and for each, and of attributes. Tables: `accuracy` has every set with intervals, `concepts` every
    held-out image, `attributes` and `compositions` likewise, `judges` the heads, `guidance` what it was chosen by. Pictures:
    `held_out`, concepts chosen by the seed; `worst`, those whose concept comes last in the judge's order, among those whose
    original it recognises; `compositions`."""
    train, val, test = (images(run, split) for split in ("train", "val", "test"))
    sampler, copies = Sampler(config, run), Copies(run, test, config.quantile)
    held_out, left_out = to_ask_for(test, train, sampler)
    if not len(held_out.rows):
        print(f"evaluation@words does not apply: no held-out image is left ({left_out})", flush=True)
        return Report({"applies": 0})
    vendors = [str(vendor) for vendor in np.unique(train.vendors)]
    made_of = composed(config, np.unique(train.names))
    for name in made_of:
        sampler.vocabulary.asked(name)  # an error names what is not known
    of_validation = to_choose_by(val, train, sampler)
    asked = np.unique(np.concatenate([held_out.vendors, of_validation.vendors]))
    apart = Apart(np.unique(train.names))
    compositions = test.at(apart.of(test.names) & np.isin(test.vendors, vendors))
    judges = Judges(train, val, compositions, [str(vendor) for vendor in asked], config, run)
    choice = choose_guidance(of_validation, judges, sampler)
    samples = sampler(held_out.names.tolist(), held_out.vendors.tolist(), SAMPLES, config.samples)
    made_up = sampler.by_each(list(made_of), vendors)
    judged = of_sets(judges, held_out, train, samples, sampler)
    accuracy = intervals(judged, held_out, config.resamplings, run.params.seed)
    right = of_attributes(judges, apart, test, held_out, samples, made_of, vendors, made_up, run)
    attributes = attribute_intervals(right, judges, config.resamplings, run.params.seed)
    far = copies.distances(samples.codes)
    metrics: dict[str, Any] = {
        "held_out": len(held_out.rows),
        **left_out,
        **metrics_of(accuracy, held_out, lambda rows: copies.fraction(far[rows])),
        "attributes": metrics_of_attributes(attributes),
        COMPOSITIONS: {"names": len(made_of)},
        "guidance": sampler.guidance,
    }
    tables = {
        "accuracy": accuracy,
        "guidance": choice,
        "concepts": of_concepts(judged, held_out),
        "judges": judges.table,
    }
    shown = {"held_out": some(held_out, config.shown, run.params.seed), "worst": worst(judged, held_out, config.shown)}
    pictured = {name: picture(rows, held_out, train, samples, run) for name, rows in shown.items() if len(rows)}
    if judges.attributes:
        tables["attributes"] = attributes
    if made_up is not None:
        metrics[COMPOSITIONS]["near_copies"] = copies.fraction(copies.distances(made_up.codes))
        tables[COMPOSITIONS] = right[COMPOSITIONS].right.assign(name=list(made_of), composition=list(made_of.values()))
        pictured[COMPOSITIONS] = of_names(list(made_of), vendors, made_up.pixels, config.shown, run.params.seed)
    return Report(metrics, tables, pictured)


def to_ask_for(test: Images, train: Images, sampler: Sampler) -> tuple[Images, dict[str, int]]:
    """Held-out images of the test split, at most `count` of each vendor; and how many are left out for what reason."""
    new = test.at(unseen(test, train))
    known = same_codes(new, train)
    nameless = ~sampler.knows(new.names)
    left_out = {"same_codes": int(known.sum()), "without_words": int((nameless & ~known).sum())}
    new = new.at(~known & ~nameless)
    if len(new.rows):
        new = new.at(chosen(new.vendors, sampler.config.count, sampler.run.params.seed))
    return new, left_out


def to_choose_by(val: Images, train: Images, sampler: Sampler) -> Images:
    """Held-out images of the validation split, at most `choice` of each vendor."""
    new = val.at(unseen(val, train))
    new = new.at(~same_codes(new, train) & sampler.knows(new.names))
    return new.at(chosen(new.vendors, sampler.config.choice, sampler.run.params.seed)) if len(new.rows) else new


def choose_guidance(held_out: Images, judges: Judges, sampler: Sampler) -> pd.DataFrame:
    """Sets the sampler's guidance to that of which concept and vendor are most often right together; on a tie, and where there is
    no held-out image, to the first. A row for each of all combinations, samples of the same random numbers."""
    strengths, rows = sampler.config.guidance, []
    for values in itertools.product(*strengths.values()):
        sampler.guidance = dict(zip(strengths, values, strict=True))
        row: dict[str, float] = {**sampler.guidance, "images": len(held_out.rows)}
        if len(held_out.rows) and max(map(len, strengths.values()), default=1) > 1:
            found = sampler(held_out.names.tolist(), held_out.vendors.tolist(), "choice", 1)
            row |= judges.judged(held_out, found.seen)[list(FIGURES)].mean().to_dict()
        rows.append(row)
    table = pd.DataFrame(rows)
    best = table[BY].idxmax() if BY in table else 0
    sampler.guidance = {name: float(table.loc[best, name]) for name in strengths}
    return table


def of_sets(
    judges: Judges, held_out: Images, train: Images, samples: Samples, sampler: Sampler
) -> dict[str, pd.DataFrame]:
    """Set -> what judges say of it, by the index of the held-out image; of `OTHER` only of those that have a partner."""
    run = sampler.run
    partner = partners(held_out, run.params.seed)
    has = np.flatnonzero(partner >= 0)
    others = train.rows[retrieved(held_out, train)]
    again = np.asarray(run.images("train", "reconstruction")[others])
    return {
        ORIGINALS: judges.judged(held_out, real(held_out, run, "test")),
        RECONSTRUCTIONS: judges.judged(held_out, reconstructed(held_out, run, "test")),
        SAMPLES: judges.judged(held_out, samples.seen),
        OTHER: judges.judged(held_out.at(has), samples.seen.at(partner[has])).set_index(has),
        RETRIEVED: judges.judged(held_out, Seen(again[:, None], sampler.features(again)[:, None])),
    }


def of_attributes(
    judges: Judges,
    apart: Apart,
    test: Images,
    held_out: Images,
    samples: Samples,
    names: Mapping[str, str],
    vendors: Sequence[str],
    made_up: Samples | None,
    run: Run,
) -> dict[str, Right]:
    """Set -> which attributes are right: of all test images but compositions, of the samples for held-out ones, of the
    compositions `names`."""
    called = np.array(list(names), str)
    asked, plain = ~apart.of(held_out.names), test.at(~apart.of(test.names))
    wanted = test.at(np.isin(test.names, called) & np.isin(test.vendors, vendors))

    def right(of: Images, seen: Seen) -> Right:
        return Right(judges.attributes_right(of.names, of.vendors[:, None], seen), of.concepts)

    found = {
        ORIGINALS: right(plain, real(plain, run, "test")),
        RECONSTRUCTIONS: right(plain, reconstructed(plain, run, "test")),
        SAMPLES: right(held_out.at(asked), samples.seen.at(asked)),
    }
    if made_up is not None:
        every = np.tile(vendors, (len(called), 1))
        all_right = judges.compositions_right(called, every, made_up.seen)
        found[COMPOSITIONS] = Right(all_right, np.array(list(names.values())))
    if made_up is not None and len(wanted.rows):
        row, column = (
            np.array([places.index(value) for value in values])
            for places, values in ((called.tolist(), wanted.names), (list(vendors), wanted.vendors))
        )
        sets = {
            COMPOSED: Seen(*(each[row, column][:, None] for each in made_up.seen)),
            COMPOSED_ORIGINALS: real(wanted, run, "test"),
            COMPOSED_RECONSTRUCTIONS: reconstructed(wanted, run, "test"),
        }
        for name, seen in sets.items():
            said = judges.compositions_right(wanted.names, wanted.vendors[:, None], seen)
            found[name] = Right(said, wanted.concepts)
    return {name: each for name, each in found.items() if len(each.families)}
