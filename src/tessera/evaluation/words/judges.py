"""What judges say of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped, UInt8

from tessera.core.run import Run
from tessera.evaluation.words.config import ALL, EVERY, Config
from tessera.evaluation.words.held_out import Images, values_of
from tessera.evaluation.words.pixel_recognition import Drawings, PixelRecogniser
from tessera.evaluation.words.recognition import HEADS, Examples, Recogniser

FOLDERS = ("dataset", "reconstruction")
NETWORK = "network"  # the head that sees pixels
UNKNOWN = ""  # vendor of all, where a judge must not be told it


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

    def places(
        self, seen: Seen, by: Shaped[np.ndarray, "n s"], wanted: Shaped[np.ndarray, " n"]
    ) -> Int[np.ndarray, "n s"]:
        """The place of the wanted class among all, as each of its images, drawn by whom `by` says, has it: 1 is the first."""
        pixels, features = seen.flat
        each = np.repeat(wanted, seen.features.shape[1])
        if self.head == NETWORK:
            return self._by_pixels.places(pixels, by.ravel(), each).reshape(by.shape)
        return self._by_features.places(features, each).reshape(by.shape)


class Known(NamedTuple):
    """Real drawings of one split that a judge learns from or is chosen by, and the class of each."""

    images: Images
    split: str
    classes: Shaped[np.ndarray, " n"]

    def at(self, where: Shaped[np.ndarray, " m"]) -> Known:
        return Known(self.images.at(where), self.split, self.classes[where])


class Judges:
    """Of concepts for each vendor, of vendors, and of each attribute; the latter are told the vendor, whose palette they know.
    `table` says which head each has.

    Those of attributes have seen no composition. A judge that has seen women teach, and no man, takes teachers for women. So
    `composed` has judges of attributes for each vendor who have seen the compositions of the *other* vendors too, if there are
    drawings of them: `compositions`.
    """

    def __init__(
        self, train: Images, val: Images, compositions: Images, vendors: Sequence[str], config: Config, run: Run
    ) -> None:
        self._config, self._run = config, run
        self._rows: list[dict[str, Any]] = []
        unknown = (each._replace(vendors=np.full(len(each.vendors), UNKNOWN)) for each in (train, val))
        learned, held = (
            Known(images, split, classes)
            for images, split, classes in zip(unknown, ("train", "val"), (train.vendors, val.vendors), strict=True)
        )
        self.vendors = self._trained("vendors", ALL, [learned], held, True)
        self.concepts = {}
        for vendor in vendors:
            others, own = train.at(train.vendors != vendor), val.at(val.vendors == vendor)
            learned, held = Known(others, "train", others.concepts), Known(own, "val", own.concepts)
            self.concepts[vendor] = self._trained("concepts", vendor, [learned], held, False)
        self.attributes: dict[str, Judge] = {}
        self.composed: dict[str, dict[str, Judge]] = {}
        for name, values in config.attributes.items():
            parts = [
                named(Known(each, split, values_of(each.names, values)))
                for each, split in ((train, "train"), (val, "val"), (compositions, "test"))
            ]
            self._of_attribute(name, *parts)
        self.table = pd.DataFrame(self._rows)

    def _of_attribute(self, name: str, train: Known, val: Known, compositions: Known) -> None:
        if len(there := set(train.classes)) < 2:
            print(f"evaluation.words: attribute {name} is not judged: training names have {len(there)} of its values",
                  flush=True)  # fmt: skip
            return
        self.attributes[name] = self._trained(name, ALL, [train], val, True)
        for vendor in np.unique(train.images.vendors).tolist():
            others = compositions.at(compositions.images.vendors != vendor)
            if not len(others.classes):
                continue
            found = self._trained(name, f"compositions, {vendor}", [train, others], val, True)
            self.composed.setdefault(vendor, {})[name] = found

    def _trained(self, judge: str, of: str, learned: Sequence[Known], held: Known, few: bool) -> Judge:
        """`few`: classes are few enough for a network."""
        own, classes = self._config, np.concatenate([each.classes for each in learned])
        again = reconstructed(held.images, self._run, held.split).features[:, 0]
        by_features = Recogniser(
            Examples(np.concatenate([each.images.features for each in learned]), classes),
            Examples(np.concatenate([held.images.features, again]), np.tile(held.classes, 2)),
            own.dimensions,
            own.penalty,
            own.iterations,
        )
        by_pixels = None
        if few:
            drawings = (self._drawings(learned), self._drawings([held]))
            by_pixels = PixelRecogniser(*drawings, own.network, self._run.params.seed, self._run.device)
        made = Judge(by_features, by_pixels)
        validation = {f"validation_{head}": made.accuracy.get(head, np.nan) for head in (*HEADS, NETWORK)}
        self._rows.append({"judge": judge, "of": of, "images": len(classes), "classes": len(made.classes),
                           "head": made.head, **validation})  # fmt: skip
        return made

    def _drawings(self, known: Sequence[Known]) -> Drawings:
        parts = [
            (
                *(np.asarray(self._run.images(each.split, folder)[each.images.rows]) for folder in FOLDERS),
                each.classes,
                each.images.vendors,
            )
            for each in known
        ]
        return Drawings(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def judged(self, asked: Images, seen: Seen) -> pd.DataFrame:
        """Of each image of `asked`: mean over those `seen` for it of `FIGURES`, and of the place of its concept."""
        shape = seen.features.shape[:2]
        place = np.zeros(shape)
        for vendor, judge in self.concepts.items():
            own = np.flatnonzero(asked.vendors == vendor)
            place[own] = judge.places(seen.at(own), np.full((len(own), shape[1]), vendor), asked.concepts[own])
        right = (self.vendors.places(seen, np.full(shape, UNKNOWN), asked.vendors) == 1).astype(float)
        found = {"place": place, "top_1": place <= 1.0, "top_5": place <= 5.0, "vendor_right": right}
        found |= {f"{top}_and_vendor": np.where(found[top], right, 0.0) for top in ("top_1", "top_5")}
        return pd.DataFrame({name: values.mean(1) for name, values in found.items()})

    def attributes_right(
        self, names: Shaped[np.ndarray, " n"], vendors: Shaped[np.ndarray, "n s"], seen: Seen
    ) -> pd.DataFrame:
        """Of each name: the fraction of what is `seen` for it, as drawn by `vendors`, by which each attribute is right, nan where
        the name does not have it; and in `EVERY` of all attributes at once, of names that have all."""
        return self._right(names, vendors, seen, {})

    def compositions_right(
        self, names: Shaped[np.ndarray, " n"], vendors: Shaped[np.ndarray, "n s"], seen: Seen
    ) -> pd.DataFrame:
        """The same by the judges of compositions, that of the vendor of each image."""
        return self._right(names, vendors, seen, self.composed)

    def _right(
        self,
        names: Shaped[np.ndarray, " n"],
        vendors: Shaped[np.ndarray, "n s"],
        seen: Seen,
        own: Mapping[str, Mapping[str, Judge]],
    ) -> pd.DataFrame:
        shape = seen.features.shape[:2]
        vendors = np.broadcast_to(vendors, shape)
        found, every = {}, np.ones(shape)
        for name, values in self._config.attributes.items():
            if name not in self.attributes:
                continue
            wanted, right = values_of(names, values), np.full(shape, np.nan)
            for vendor in np.unique(vendors):
                judge = own.get(vendor, {}).get(name, self.attributes[name])
                row, column = np.nonzero((vendors == vendor) & np.isin(wanted, judge.classes)[:, None])
                each = Seen(*(part[row, column][:, None] for part in seen))
                right[row, column] = judge.places(each, vendors[row, column][:, None], wanted[row])[:, 0] == 1
            every = every * right
            found[name] = right.mean(1)
        return pd.DataFrame({**found, EVERY: every.mean(1)} if found else {})


def named(known: Known) -> Known:
    """Those whose name has a value of the attribute."""
    return known.at(known.classes != "")
