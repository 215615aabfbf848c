"""Drawing by name: does a prior that is told words and a vendor show what the words say, as that vendor would draw it?

A *held-out* image is a test image of a family that other vendors drew in training and its own vendor did not: `dataset.split.by`
is `vendor_and_family`. The prior is told its name and its vendor. Judges on the scorer's features (`tessera.recognition`) and,
where classes are few, on pixels (`tessera.pixel_recognition`) say what the samples show:

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
for each, and judges of attributes see whether its tone and its gender are right.

Figures are means over held-out images, of which each weighs alike; intervals (95 %) resample families. `near_copies` is the
fraction of samples whose codes are no farther from a training image's, or an augmented copy's, than the `quantile` of the test
images' (`tessera.near_copies`). Held-out images with the very codes of a training image are left out, and those of whose name the
prior knows no word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from tessera.conditions import names as names_of
from tessera.core.conditioning import WORDS
from tessera.core.contracts import Report, Sampling
from tessera.core.errors import listed
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import generator, numpy_generator
from tessera.features import kernel
from tessera.features.neighbours import nearest, subset
from tessera.images import arrays, pictures
from tessera.near_copies import near_fraction, nearest_codes
from tessera.pixel_recognition import Config as Network
from tessera.pixel_recognition import Drawings, PixelRecogniser
from tessera.recognition import HEADS, Examples, Recogniser
from tessera.words import Vocabulary, split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETS = ORIGINALS, RECONSTRUCTIONS, SAMPLES, OTHER, RETRIEVED = (
    "originals",
    "reconstructions",
    "samples",
    "other_concept",
    "retrieved",
)
VENDOR = "vendor"
NETWORK = "network"  # the head that sees pixels
BY = "top_5_and_vendor"  # guidance is chosen
FIGURES = ("top_1", "top_5", "vendor_right", "top_1_and_vendor", "top_5_and_vendor")
COMPOSITIONS, EVERY, ALL = "compositions", "every", "all"
SHOWN = 8  # samples of each concept in a picture, at most
COMPARED = 5000  # test images, at most, whose distance to the training images in codes says what is near
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
    *(f"attributes.{of}.*" for of in (ORIGINALS, RECONSTRUCTIONS, SAMPLES, COMPOSITIONS)),
)


class Config(Strict):
    count: int = Field(ge=1, description="held-out images of each vendor, at most, chosen by the seed", examples=[4])
    samples: int = Field(ge=1, le=64, description="samples for each of them", examples=[2])
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[8])
    temperature: float = Field(gt=0, description="divides the logits", examples=[1.0])
    guidance: dict[Literal["words", "vendor"], Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]] = (
        Field(
            description="of each, strengths to choose from on the validation split, by how often concept (of five) and vendor are "
            "right together: 1 is p(codes | words, vendor), 0 forgets it, more exaggerates it; 1 where it is not named",
            examples=[{"words": [1.0]}],
        )
    )
    choice: int = Field(ge=1, description="held-out validation images of each vendor, at most, one sample each, by which guidance "
                        "is chosen", examples=[4])  # fmt: skip
    attributes: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], Annotated[list[str], Field(min_length=2)]] = Field(
        description="what a name may say beside the concept: the values of each, as names have them",
        examples=[{"size": ["small", "large"]}],
    )  # fmt: skip
    compositions: list[str] = Field(
        description="names to compose, where {attribute} stands for each of its values; those whose words all stand together in "
        "training names are left out", examples=[["{size} circle"]]
    )  # fmt: skip
    dimensions: int = Field(ge=1, description="principal components of the features that judges see", examples=[8])
    penalty: float = Field(gt=0, description="C of the judges' logistic regression, the inverse of the weight of |w|^2 / 2",
                           examples=[1.0])  # fmt: skip
    iterations: int = Field(ge=1, description="of L-BFGS for it, at most; with a thousand classes it need not converge",
                            examples=[100])  # fmt: skip
    network: Network = Field(description="that judges of few classes may have, of vendors and attributes")
    quantile: float = Field(gt=0, lt=1, description="of the test images' distances in codes; a sample no farther is a near-copy",
                            examples=[0.25])  # fmt: skip
    resamplings: int = Field(ge=100, le=100000, description="of families, for intervals", examples=[100])
    shown: int = Field(
        ge=1, le=64, description="concepts in each picture, chosen by the seed; and the worst", examples=[2]
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if EVERY in self.attributes:
            raise ValueError(f"attributes must not name one {EVERY!r}, which stands for all of them")
        for name in self.compositions:
            held = placeholders(name)
            if not held or not held <= self.attributes.keys():
                raise ValueError(
                    f"compositions must each hold at least one of {listed(f'{{{each}}}' for each in self.attributes)} and no "
                    f"other, got {name!r}"
                )
        return self


def placeholders(name: str) -> set[str]:
    """Attributes that a composition holds. A brace that is not closed is one, of no attribute."""
    try:
        return {field for _, field, _, _ in Formatter().parse(name) if field is not None}
    except ValueError:
        return {name}


class Images(NamedTuple):
    """Real drawings, sorted by vendor and name, so that their order in the data set does not matter. `rows` are their indices in
    their split; `names` are without the vendor."""

    rows: Int[np.ndarray, " n"]
    vendors: Shaped[np.ndarray, " n"]
    names: Shaped[np.ndarray, " n"]
    concepts: Shaped[np.ndarray, " n"]
    labels: Shaped[np.ndarray, " n"]
    features: Float[np.ndarray, "n f"]
    codes: Int[np.ndarray, "n t"]

    def at(self, where: Shaped[np.ndarray, " m"]) -> Images:
        return Images(*(each[where] for each in self))


def images(run: Run, split: str) -> Images:
    table = run.table(split)
    vendors, called = table["vendor_name"].to_numpy(str), np.array(names_of(table), str)
    rows = np.lexsort((called, vendors))
    concepts, labels = (table[column].to_numpy(str) for column in ("family", "label_name"))
    everything = Images(
        np.arange(len(table)), vendors, called, concepts, labels, np.asarray(run.features(split)), np.asarray(run.codes(split))
    )  # fmt: skip
    return everything.at(rows)


# what is asked for


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


def unseen(test: Images, train: Images) -> Shaped[np.ndarray, " n"]:
    """Which test images are of a concept that other vendors drew in training, and their own vendor, which drew others, did not."""
    who: dict[str, set[str]] = {}
    for concept, vendor in zip(train.concepts, train.vendors, strict=True):
        who.setdefault(concept, set()).add(vendor)
    pairs, seen = zip(test.concepts, test.vendors, strict=True), set(train.vendors)
    return np.array([concept in who and vendor in seen - who[concept] for concept, vendor in pairs], bool)


def same_codes(test: Images, train: Images) -> Shaped[np.ndarray, " n"]:
    """Which test images have the very codes of a training image."""
    known = {codes.tobytes() for codes in np.ascontiguousarray(train.codes)}
    return np.array([codes.tobytes() in known for codes in np.ascontiguousarray(test.codes)], bool)


def chosen(vendors: Shaped[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " m"]:
    """At most `count` images of each vendor."""
    found = []
    for vendor in np.unique(vendors):
        own = np.flatnonzero(vendors == vendor)
        found.append(own[subset(numpy_generator(seed, "words", "held_out", vendor), len(own), count)])
    return np.concatenate(found)


def partners(held_out: Images, seed: int) -> Int[np.ndarray, " n"]:
    """Of each held-out image a random other one, of the same vendor and another concept; -1 where there is none."""
    found = np.full(len(held_out.rows), -1)
    rng = numpy_generator(seed, "words", "partners")
    for at, (vendor, concept) in enumerate(zip(held_out.vendors, held_out.concepts, strict=True)):
        others = np.flatnonzero((held_out.vendors == vendor) & (held_out.concepts != concept))
        if len(others):
            found[at] = rng.choice(others)
    return found


def of_others(wanted: Images, at: int, train: Images) -> Int[np.ndarray, " m"]:
    """Training drawings by other vendors than that of image `at`: of its name, or of its concept where none has that name."""
    alike = (train.concepts == wanted.concepts[at]) & (train.vendors != wanted.vendors[at])
    named = alike & (train.names == wanted.names[at])
    return np.flatnonzero(named if named.any() else alike)


def retrieved(held_out: Images, train: Images) -> Int[np.ndarray, " n"]:
    """Of each held-out image, the training drawing of `of_others` that is nearest to it in features."""
    found = np.zeros(len(held_out.rows), np.int64)
    for at in range(len(found)):
        others = of_others(held_out, at, train)
        (index,), _ = nearest(held_out.features[at : at + 1], train.features[others])
        found[at] = others[index]
    return found


def values_of(names: Iterable[str], values: Sequence[str]) -> Shaped[np.ndarray, " n"]:
    """Which of `values` each name has, as whole words (`dark skin tone` is no part of `medium-dark skin tone`); empty where it has
    none or several."""
    patterns = {value: re.compile(rf"(?<![\w-]){re.escape(value)}(?![\w-])") for value in values}
    found = []
    for name in names:
        held = [(value, len(pattern.findall(name))) for value, pattern in patterns.items() if pattern.search(name)]
        found.append(held[0][0] if len(held) == 1 and held[0][1] == 1 else "")
    return np.array(found, str)


def composed(config: Config, known: Iterable[str]) -> dict[str, str]:
    """The compositions with all values of their attributes, of which two words stand together in no name of `known`: name -> the
    composition that it is of."""
    together = {pair for name in known for pair in _pairs(name)}
    found = {}
    for template in config.compositions:
        held = sorted(placeholders(template))
        for values in itertools.product(*(config.attributes[name] for name in held)):
            name = template.format(**dict(zip(held, values, strict=True)))
            if not _pairs(name) <= together:
                found[name] = template
    return found


def _pairs(name: str) -> set[tuple[str, str]]:
    return set(itertools.combinations(sorted(set(split(name))), 2))


# samples


class Samples(NamedTuple):
    """Samples [n, samples per request, ...]: codes, decoded images and their features."""

    codes: Int[np.ndarray, "n s t"]
    pixels: UInt8[np.ndarray, "n s h w c"]
    features: Float[np.ndarray, "n s f"]

    @property
    def seen(self) -> Seen:
        return Seen(self.pixels, self.features)


class Sampler:
    """Samples for names and vendors. The random numbers of a batch depend on (seed, `of`, batch) alone.

    Attributes:
        guidance: condition -> its strength, at first the first that there is to choose from.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.guidance: dict[str, float] = {name: strengths[0] for name, strengths in config.guidance.items()}
        self.prior = run.prior().to(run.device)
        self.tokenizer, self.scorer = run.tokenizer().to(run.device), run.scorer().to(run.device)
        self.vocabulary = Vocabulary.of_conditioning(self.prior.conditioning)

    def knows(self, names: Iterable[str]) -> Shaped[np.ndarray, " n"]:
        """Of which names the prior knows a word."""
        return np.asarray((self.vocabulary.ids(names) < len(self.vocabulary.words)).any(1))

    @torch.no_grad()
    def __call__(self, names: Sequence[str], vendors: Sequence[str], of: str, each: int) -> Samples:
        """`each` samples of every name by the vendor beside it."""
        sampling = Sampling(self.config.temperature, guidance=self.guidance)
        conditions = self._conditions(names, vendors).repeat_interleave(each, 0).to(self.run.device)
        parts = []
        for index, where in enumerate(arrays.batches(len(conditions), self.config.batch_size)):
            rng = generator(self.run.params.seed, "words", of, index)
            parts.append(self.prior.sample(where.stop - where.start, rng, sampling, conditions[where]).cpu())
        return self._seen(torch.cat(parts).numpy().astype(np.int32), (len(names), each))

    def _conditions(self, names: Sequence[str], vendors: Sequence[str]) -> Int[Tensor, "n c"]:
        """Vendor and words; words that the prior does not know are left out, and of other conditions nothing is said."""
        conditioning = self.prior.conditioning
        found = conditioning.nothing(len(names))
        of_vendor = conditioning[VENDOR].names.index
        given = {WORDS: self.vocabulary.ids(names), VENDOR: np.array([[of_vendor(vendor)] for vendor in vendors])}
        for part, columns in zip(conditioning, conditioning.split(found), strict=True):
            if part.name in given:
                columns.copy_(torch.from_numpy(given[part.name]))
        return found

    def by_each(self, names: Sequence[str], vendors: Sequence[str]) -> Samples | None:
        """One sample of each name by each of the vendors [names, vendors, ...]; None where there is no name."""
        if not names:
            return None
        told = list(itertools.product(names, vendors))
        found = self([name for name, _ in told], [vendor for _, vendor in told], COMPOSITIONS, 1)
        return Samples(*(each.reshape(len(names), len(vendors), *each.shape[2:]) for each in found))

    def _seen(self, codes: Int[np.ndarray, "m t"], shape: tuple[int, int]) -> Samples:
        """Codes decoded, and seen by the scorer."""
        size = self.config.batch_size
        pixels = arrays.decoded(self.tokenizer, codes.astype(np.int64), size, self.run.device)
        found = (codes, pixels, self.features(pixels))
        return Samples(*(each.reshape(*shape, *each.shape[1:]) for each in found))

    def features(self, pixels: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n f"]:
        return arrays.mapped(self.scorer, pixels, self.config.batch_size, self.run.device)


# what judges say


class Seen(NamedTuple):
    """What judges see of images [n, s each]."""

    pixels: UInt8[np.ndarray, "n s h w c"]
    features: Float[np.ndarray, "n s f"]

    def at(self, where: Shaped[np.ndarray, " m"]) -> Seen:
        return Seen(self.pixels[where], self.features[where])

    @property
    def flat(self) -> tuple[UInt8[np.ndarray, "m h w c"], Float[np.ndarray, "m f"]]:
        return self.pixels.reshape(-1, *self.pixels.shape[2:]), self.features.reshape(-1, self.features.shape[2])


def real(images: Images, run: Run, split: str) -> Seen:
    """Of each image one, as it is."""
    return Seen(np.asarray(run.images(split)[images.rows])[:, None], images.features[:, None])


def reconstructed(images: Images, run: Run, split: str) -> Seen:
    """Of each image of val or test one, through the tokenizer."""
    features = run.features({"val": "reconstruction_val", "test": "reconstruction"}[split])
    pixels = run.images(split, "reconstruction")[images.rows]
    return Seen(np.asarray(pixels)[:, None], np.asarray(features)[images.rows][:, None])


class Judge:
    """A recogniser on features, or one on pixels where that is better on validation images.

    Attributes:
        accuracy: head -> fraction of the validation images, as they are and through the tokenizer, that it recognises.
    """

    def __init__(self, by_features: Recogniser, by_pixels: PixelRecogniser | None) -> None:
        self._by_features = by_features
        self.head, self.classes = by_features.head, by_features.classes
        self.accuracy = dict(by_features.accuracy)
        if by_pixels is not None:
            self._by_pixels = by_pixels
            self.accuracy[NETWORK] = by_pixels.accuracy
            if by_pixels.accuracy > self.accuracy[self.head]:
                self.head = NETWORK

    def places(self, seen: Seen, wanted: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, "n s"]:
        """The place of the wanted class among all, as each of its images has it: 1 is the first."""
        pixels, features = seen.flat
        each = np.repeat(wanted, seen.features.shape[1])
        found = (
            self._by_pixels.places(pixels, each) if self.head == NETWORK else self._by_features.places(features, each)
        )
        return found.reshape(seen.features.shape[:2])


class Judges:
    """Of concepts for each vendor, of vendors, and of each attribute. `table` says which head each has."""

    def __init__(self, train: Images, val: Images, vendors: Sequence[str], config: Config, run: Run) -> None:
        self._config, self._run = config, run
        self._rows: list[dict[str, Any]] = []
        self.vendors = self._trained("vendors", ALL, (train, train.vendors), (val, val.vendors), True)
        self.concepts = {}
        for vendor in vendors:
            others, own = train.at(train.vendors != vendor), val.at(val.vendors == vendor)
            self.concepts[vendor] = self._trained(
                "concepts", vendor, (others, others.concepts), (own, own.concepts), False
            )
        self.attributes = {}
        for name, values in config.attributes.items():
            of_train, of_val = (values_of(each.names, values) for each in (train, val))
            if len(there := set(of_train) - {""}) < 2:
                print(f"evaluation.words: attribute {name} is not judged: training names have {len(there)} of its values",
                      flush=True)  # fmt: skip
                continue
            has, held = of_train != "", of_val != ""
            self.attributes[name] = self._trained(
                name, ALL, (train.at(has), of_train[has]), (val.at(held), of_val[held]), True
            )
        self.table = pd.DataFrame(self._rows)

    def _trained(
        self, judge: str, of: str, train: tuple[Images, Shaped[np.ndarray, " n"]],
        val: tuple[Images, Shaped[np.ndarray, " m"]], few: bool,
    ) -> Judge:  # fmt: skip
        """Images and the class of each. `few`: classes are few enough for a network."""
        (images, classes), (held, held_classes), own = train, val, self._config
        again = reconstructed(held, self._run, "val").features[:, 0]
        by_features = Recogniser(
            Examples(images.features, classes),
            Examples(np.concatenate([held.features, again]), np.tile(held_classes, 2)),
            own.dimensions,
            own.penalty,
            own.iterations,
        )
        by_pixels = None
        if few:
            drawings = (self._drawings(images, "train", classes), self._drawings(held, "val", held_classes))
            by_pixels = PixelRecogniser(*drawings, own.network, self._run.params.seed, self._run.device)
        made = Judge(by_features, by_pixels)
        validation = {f"validation_{head}": made.accuracy.get(head, np.nan) for head in (*HEADS, NETWORK)}
        self._rows.append({"judge": judge, "of": of, "images": len(classes), "classes": len(made.classes),
                           "head": made.head, **validation})  # fmt: skip
        return made

    def _drawings(self, images: Images, split: str, classes: Shaped[np.ndarray, " n"]) -> Drawings:
        originals, again = (self._run.images(split, folder)[images.rows] for folder in ("dataset", "reconstruction"))
        return Drawings(np.asarray(originals), np.asarray(again), classes)

    def judged(self, asked: Images, seen: Seen) -> pd.DataFrame:
        """Of each image of `asked`: mean over those `seen` for it of `FIGURES`, and of the place of its concept."""
        shape = seen.features.shape[:2]
        place = np.zeros(shape)
        for vendor, judge in self.concepts.items():
            own = np.flatnonzero(asked.vendors == vendor)
            place[own] = judge.places(seen.at(own), asked.concepts[own])
        right = (self.vendors.places(seen, asked.vendors) == 1).astype(float)
        found = {"place": place, "top_1": place <= 1.0, "top_5": place <= 5.0, "vendor_right": right}
        found |= {f"{top}_and_vendor": np.where(found[top], right, 0.0) for top in ("top_1", "top_5")}
        return pd.DataFrame({name: values.mean(1) for name, values in found.items()})

    def attributes_right(self, names: Shaped[np.ndarray, " n"], seen: Seen) -> pd.DataFrame:
        """Of each name: the fraction of what is `seen` for it by which each attribute is right, nan where the name does not have
        it; and in `EVERY` of all attributes at once, of names that have all."""
        shape = seen.features.shape[:2]
        found, every = {}, np.ones(shape)
        for name, judge in self.attributes.items():
            values = values_of(names, self._config.attributes[name])
            right = np.full(shape, np.nan)
            has = np.isin(values, judge.classes)
            right[has] = judge.places(seen.at(has), values[has]) == 1
            every = every * right
            found[name] = right.mean(1)
        return pd.DataFrame({**found, EVERY: every.mean(1)} if found else {})


# the measure


def measure(config: Config, run: Run) -> Report:
    """Metrics for all vendors and for each, and of attributes. Tables: `accuracy` has every set with intervals, `concepts` every
    held-out image, `attributes` and `compositions` likewise, `judges` the heads, `guidance` what it was chosen by. Pictures:
    `held_out`, concepts chosen by the seed; `worst`, those whose concept comes last in the judge's order, among those whose
    original it recognises; `compositions`."""
    train, val, test = (images(run, split) for split in ("train", "val", "test"))
    sampler, copies = Sampler(config, run), Copies(run, test, config.quantile)
    new = test.at(unseen(test, train))
    known = same_codes(new, train)
    nameless = ~sampler.knows(new.names)
    left_out = {"same_codes": int(known.sum()), "without_words": int((nameless & ~known).sum())}
    new = new.at(~known & ~nameless)
    if not len(new.rows):
        print(f"evaluation@words does not apply: no held-out image is left ({left_out})", flush=True)
        return Report({"applies": 0})
    held_out = new.at(chosen(new.vendors, config.count, run.params.seed))
    vendors = [str(vendor) for vendor in np.unique(train.vendors)]
    made_of = composed(config, np.unique(train.names))
    for name in made_of:
        sampler.vocabulary.asked(name)  # an error names what is not known
    of_validation = to_choose_by(val, train, sampler)
    asked = np.unique(np.concatenate([held_out.vendors, of_validation.vendors]))
    judges = Judges(train, val, [str(vendor) for vendor in asked], config, run)
    choice = choose_guidance(of_validation, judges, sampler)
    samples = sampler(held_out.names.tolist(), held_out.vendors.tolist(), SAMPLES, config.samples)
    made_up = sampler.by_each(list(made_of), vendors)
    judged = of_sets(judges, held_out, train, samples, sampler)
    accuracy = intervals(judged, held_out, config.resamplings, run.params.seed)
    right = of_attributes(judges, test, held_out, samples, made_of, made_up, run)
    attributes = attribute_intervals(right, judges, config.resamplings, run.params.seed)
    far = copies.distances(samples.codes)
    metrics: dict[str, Any] = {
        "held_out": len(held_out.rows),
        **left_out,
        **_metrics(accuracy, held_out, lambda rows: copies.fraction(far[rows])),
        "attributes": _of_attributes(attributes),
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


class Right(NamedTuple):
    """Of the attributes of names: a row for each name (`Judges.attributes_right`), and the family of each."""

    right: pd.DataFrame
    families: Shaped[np.ndarray, " n"]


def of_attributes(
    judges: Judges,
    test: Images,
    held_out: Images,
    samples: Samples,
    names: Mapping[str, str],
    made_up: Samples | None,
    run: Run,
) -> dict[str, Right]:
    """Set -> which attributes are right: of all test images, of the samples for held-out ones, of the compositions `names`."""
    found = {
        ORIGINALS: Right(judges.attributes_right(test.names, real(test, run, "test")), test.concepts),
        RECONSTRUCTIONS: Right(judges.attributes_right(test.names, reconstructed(test, run, "test")), test.concepts),
        SAMPLES: Right(judges.attributes_right(held_out.names, samples.seen), held_out.concepts),
    }
    if made_up is not None:
        right = judges.attributes_right(np.array(list(names)), made_up.seen)
        found[COMPOSITIONS] = Right(right, np.array(list(names.values())))
    return found


class Copies:
    """Near-copies of training images, augmented ones included, by codes."""

    def __init__(self, run: Run, test: Images, quantile: float) -> None:
        self.quantile, self._references = quantile, (run.codes("train"), *run.augmented_codes())
        self._unseen = nearest_codes(test.codes[arrays.evenly(len(test.codes), COMPARED)], *self._references)

    def distances(self, codes: Int[np.ndarray, "n s t"]) -> Float[np.ndarray, "n s"]:
        """To the nearest training image, as a fraction of the codes."""
        return nearest_codes(codes.reshape(-1, codes.shape[2]), *self._references).reshape(codes.shape[:2])

    def fraction(self, distances: Float[np.ndarray, "n s"]) -> float:
        return near_fraction(distances, self._unseen, self.quantile)


# what is reported


def members(held_out: Images) -> dict[str, Int[np.ndarray, " m"]]:
    """Indices of all held-out images, and of each vendor's."""
    of_vendors = {str(vendor): np.flatnonzero(held_out.vendors == vendor) for vendor in np.unique(held_out.vendors)}
    return {ALL: np.arange(len(held_out.rows))} | of_vendors


def intervals(judged: Mapping[str, pd.DataFrame], held_out: Images, resamplings: int, seed: int) -> pd.DataFrame:
    """A row for all vendors and for each, and each set: the mean of each figure over the held-out images, with its interval."""
    rows = []
    for of, own in members(held_out).items():
        weights = kernel.resampled(held_out.concepts[own], resamplings, numpy_generator(seed, "words", "intervals", of))
        for name, frame in judged.items():
            there = np.isin(own, frame.index)
            if there.any():
                found = frame.loc[own[there], list(FIGURES)]
                row = {"of": of, "set": name, "images": len(found),
                       "families": len(np.unique(held_out.concepts[own[there]]))}  # fmt: skip
                rows.append(row | _means(found, weights[:, there]))
    return pd.DataFrame(rows)


def attribute_intervals(right: Mapping[str, Right], judges: Judges, resamplings: int, seed: int) -> pd.DataFrame:
    """A row for each set and attribute: of how many names, how often right, with its interval, and what guessing gives."""
    chance = {name: 1 / len(judge.classes) for name, judge in judges.attributes.items()}
    chance[EVERY] = float(np.prod(list(chance.values())))
    rows = []
    for name, (found, families) in right.items():
        weights = kernel.resampled(families, resamplings, numpy_generator(seed, "words", "attributes", name))
        for attribute in found.columns:
            there = found[attribute].notna().to_numpy()
            if there.any():
                values = _means(found.loc[there, [attribute]].set_axis(["right"], axis=1), weights[:, there])
                rows.append({"set": name, "attribute": attribute, "names": int(there.sum()), **values,
                             "chance": chance[attribute]})  # fmt: skip
    return pd.DataFrame(rows)


def _means(values: pd.DataFrame, weights: Float[np.ndarray, "r n"]) -> dict[str, float]:
    found: dict[str, float] = {}
    with np.errstate(invalid="ignore"):  # a resampling may hold none of these images
        resampled = weights @ values.to_numpy(np.float64) / weights.sum(1, keepdims=True)
    for at, (name, column) in enumerate(values.items()):
        value, low, high = kernel.interval(float(column.mean()), resampled[:, at])
        found |= {str(name): value, f"{name}_low": low, f"{name}_high": high}
    return found


def _metrics(
    accuracy: pd.DataFrame, held_out: Images, near: Callable[[Int[np.ndarray, " m"]], float]
) -> dict[str, Any]:
    """Under `all` and `vendors`; `top_5_of_reconstructions` is that of the samples over that of the reconstructions."""
    found: dict[str, Any] = {"vendors": {}}
    for of, own in members(held_out).items():
        rows = accuracy[accuracy["of"] == of].set_index("set")
        values: dict[str, Any] = {"held_out": len(own), "near_copies": near(own)}
        for name in rows.index:
            values[name] = {figure: float(rows.loc[name, figure]) for figure in FIGURES}
        for figure in FIGURES:
            values[SAMPLES] |= {
                f"{figure}_{end}": float(rows.loc[SAMPLES, f"{figure}_{end}"]) for end in ("low", "high")
            }
        if values[RECONSTRUCTIONS]["top_5"] > 0:
            values["top_5_of_reconstructions"] = values[SAMPLES]["top_5"] / values[RECONSTRUCTIONS]["top_5"]
        if of == ALL:
            found[ALL] = values
        else:
            found["vendors"][of.replace(".", "_")] = values  # a dot would divide the metric's name
    return found


def _of_attributes(attributes: pd.DataFrame) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in attributes.itertuples():
        found.setdefault(row.set, {})[row.attribute] = float(row.right)
    return found


def of_concepts(judged: Mapping[str, pd.DataFrame], held_out: Images) -> pd.DataFrame:
    """A row for each held-out image; `place` is that of its concept among all, the mean over its samples: 1 is the first."""
    table = pd.DataFrame(
        {
            "vendor": held_out.vendors,
            "name": held_out.names,
            "concept": held_out.concepts,
            "label_name": held_out.labels,
        }
    )
    table = table.join(judged[SAMPLES])
    for name in (ORIGINALS, RECONSTRUCTIONS, RETRIEVED):
        table = table.join(judged[name][["top_5", "vendor_right"]].add_prefix(f"{name}_"))
    return table


# pictures


def some(held_out: Images, count: int, seed: int) -> Int[np.ndarray, " c"]:
    """Held-out images of `count` concepts, chosen by the seed."""
    return _of_each_concept(numpy_generator(seed, "words", "shown").permutation(len(held_out.rows)), held_out, count)


def worst(judged: Mapping[str, pd.DataFrame], held_out: Images, count: int) -> Int[np.ndarray, " c"]:
    """Held-out images of `count` concepts, whose samples have their concept at the last place, the last first; only of those whose
    original has it among the first five: of others the judge cannot know."""
    order = np.argsort(-judged[SAMPLES]["place"].to_numpy(), kind="stable")
    return _of_each_concept(order[judged[ORIGINALS]["top_5"].to_numpy()[order] == 1], held_out, count)


def _of_each_concept(order: Int[np.ndarray, " n"], held_out: Images, count: int) -> Int[np.ndarray, " c"]:
    """The first image of each concept, `count` at most."""
    _, first = np.unique(held_out.concepts[order], return_index=True)
    return order[np.sort(first)[:count]]


def picture(rows: Int[np.ndarray, " c"], held_out: Images, train: Images, samples: Samples, run: Run) -> Figure:
    """A row for each held-out image: itself; training drawings of the name, or else of the concept, one by each other vendor; its
    samples, unselected."""
    originals, drawings = run.images("test"), run.images("train")
    vendors, shown = np.unique(train.vendors), samples.pixels[:, :SHOWN]
    lines = []
    for at in rows:
        others = of_others(held_out, at, train)
        strip = np.full((len(vendors) - 1, *originals.shape[1:]), 255, np.uint8)
        for column, vendor in enumerate(vendor for vendor in vendors if vendor != held_out.vendors[at]):
            if len(own := others[train.vendors[others] == vendor]):
                strip[column] = drawings[train.rows[own[0]]]
        lines.append((np.asarray(originals[held_out.rows[at]])[None], strip, shown[at]))
    titles = [f"{held_out.names[at]}\n{held_out.vendors[at]}" for at in rows]
    return _figure(titles, {"original": 1, "other vendors": len(vendors) - 1, "samples": shown.shape[1]}, lines)


def of_names(
    names: Sequence[str], vendors: Sequence[str], pixels: UInt8[np.ndarray, "n v h w c"], count: int, seed: int
) -> Figure:
    """A row for each of `count` compositions, chosen by the seed: a sample for every vendor, in their order."""
    rows = subset(numpy_generator(seed, "words", "compositions"), len(names), count)
    return _figure([names[at] for at in rows], {", ".join(vendors): len(vendors)}, [(pixels[at],) for at in rows])


def _figure(
    titles: Sequence[str], columns: Mapping[str, int], lines: Sequence[tuple[UInt8[np.ndarray, "n h w c"], ...]]
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.62 * sum(columns.values()), 0.4 + 0.66 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), len(columns), width_ratios=list(columns.values()), squeeze=False)
    for title, strips, row in zip(titles, lines, axes, strict=True):
        for axis, strip in zip(row, strips, strict=True):
            axis.imshow(
                pictures.sheet(strip, len(strip)).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    return figure
