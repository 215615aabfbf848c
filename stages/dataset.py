"""dataset: source -> artifacts/dataset/, artifacts/targets/ (the same images, larger), metrics/dataset.json, plots/dataset/

Turns a `Source` into arrays: square, opaque images of one size, without duplicates, in three disjoint splits.

    render       one image -> uint8 [S,S,C] at image_size and at target_size
    divide       families and labels -> split of each row
    near_pairs   which images have a near duplicate of another family, and which have one in train

Memory does not grow with the size of the images: each is decoded once and written to an array on disk, beside the artefacts
(so the disk must hold everything twice while the stage runs). RAM holds about 2 kB per image: a digest, the names, an 8x8
thumbnail. `runtime.threads` processes divide the images, and their number changes no byte. No torch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field, model_validator

from tessera.core import files, seams
from tessera.core.contracts import SPLITS, Source
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.decoding import squares
from tessera.decoding.collection import Collection
from tessera.decoding.forks import spread
from tessera.images import arrays, pictures
from tessera.images.arrays import batches
from tessera.runtime import process
from tessera.runtime.stage import enter

THUMBNAIL = 8  # side in pixels of the thumbnails on which near duplicates are found
BLOCK = 256  # rows processed at once
LEAST = 4  # images per split: KID compares subsets of half of a split, and of at least two images
DIRECTIONS = 3  # in which images are sorted to find near duplicates
SPREAD = 4096  # images whose spread decides these directions, at most
COMPARED = 4096  # images that a block is compared with at once
ROUNDED = 0.1  # more than the rounding of float32 can move an image in a direction
MOST_CELLS = 1000  # in each direction
SHOWN = 50  # broken images named in an error
Rendered = bytes | str  # of one image: its digest, or what is wrong with it
KEPT_FIRST = {"test": 0, "val": 1}  # precedence among identical images in several splits; train comes last


class Split(Strict):
    by: Literal["family", "vendor_and_family", "random"] = Field(
        description="unit of the split: whole families, the drawings of a family by one vendor, or single images",
        examples=["family"],
    )
    train: float = Field(gt=0, lt=1, description="fraction of the rows")
    val: float = Field(gt=0, lt=1, description="fraction of the rows")
    test: float = Field(gt=0, lt=1, description="fraction of the rows")
    withheld: list[Annotated[str, Field(pattern=r"[^\s_][\s_]+[^\s_]")]] = Field(
        description="words, such as `woman_mage`: images whose name has all of one entry stand in test, whatever their family; "
        "so training never sees these words together", examples=[[]],
    )  # fmt: skip

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, got {self.train + self.val + self.test:g}")
        return self


class Settings(Strict):
    name: str
    source: str = Field(min_length=1, description="local file or folder with the data, a DVC dependency")
    image_size: int = Field(ge=4, le=1024, description="side in pixels")
    target_size: int = Field(ge=4, le=2048, description="side in pixels of the larger copies (super-resolution)")
    colour: Literal["rgb", "grey"] = Field(description="channels of the images")
    aspect: squares.Aspect = Field(description="how images are made square")
    near_duplicate_rmse: float = Field(ge=0, le=255, description="grey levels: two images of different families with a "
                                       "smaller RMSE on 8x8 thumbnails are near duplicates")  # fmt: skip
    split: Split

    @model_validator(mode="after")
    def _larger(self) -> Settings:
        if self.target_size < self.image_size:
            raise ValueError(f"target_size must be at least image_size {self.image_size}, got {self.target_size}")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Settings:
        if self.split.by == "vendor_and_family" and not getattr(seams.plugin("datasets", self.name), "VENDORS", False):
            raise ValueError(
                f"split.by must be family or random while name is {self.name}, which knows no vendors, got vendor_and_family; "
                "set it, or name to emoji"
            )
        return self


def main(run: Run) -> None:
    dataset, seed, folder = run.params.section("dataset", Settings), run.params.seed, run.folder("dataset")
    plugin, config = seams.plugin("datasets", dataset.name), run.params.config("dataset")
    source = plugin.load(config, Path(dataset.source), numpy_generator(seed, "dataset", "load"))
    log(source.notes)  # before the images are decoded, so that missing files are noticed at once
    prepared = prepare(
        source,
        dataset,
        numpy_generator(seed, "dataset", "split"),
        process.threads(),
        lambda rows: run.runtime.progress(iterable=rows, total=len(source.images), desc="dataset", unit="image"),
    )
    prepared.save(folder, run.folder("targets"))
    files.write_table(folder / "table.csv", prepared.table)
    files.write_json(folder / "facts.json", facts(source))
    files.write_metrics("dataset", prepared.metrics)
    train = run.images("train")
    shown = train[arrays.evenly(len(train), 60)]
    files.write_picture(files.PLOTS / "dataset" / "examples.png", pictures.sheet(shown, columns=12))
    log(prepared.notes)


def facts(source: Source) -> dict[str, Any]:
    """Names of the values of each label column of the table: of `label` under `label_names`, and so on."""
    return {f"{column}_names": names for column, (_, names) in label_columns(source).items()}


def label_columns(source: Source) -> dict[str, tuple[Sequence[int] | None, list[str]]]:
    """Label column of the table -> its value for each image, and the names of the values. `label` is always there (None, []: the
    set has no labels); a `Collection` has `vendor` too."""
    columns = {"label": (source.labels, list(source.label_names))}
    if isinstance(source, Collection):
        columns["vendor"] = source.vendors, list(source.vendor_names)
    return columns


def log(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"dataset: {note}", flush=True)


class Prepared(NamedTuple):
    """`images` and `targets` lie on disk in the order of the source. `rows` holds the indices of the images of each split.

    `table` has the columns split, name, family, label, label_name, in the order train, val, test (label -1 and an empty
    label_name if the set has no labels); of several vendors also vendor and vendor_name. `notes` are lines for the log.
    """

    images: UInt8[np.ndarray, "n s s c"]
    targets: UInt8[np.ndarray, "n t t c"]
    rows: dict[str, Int[np.ndarray, " m"]]
    table: pd.DataFrame
    metrics: dict[str, Any]
    notes: tuple[str, ...]

    def save(self, images: Path, targets: Path) -> None:
        """Write `<split>.npy` of every split into both folders."""
        for split, rows in self.rows.items():
            for folder, pixels in ((images, self.images), (targets, self.targets)):
                shape = (len(rows), *pixels.shape[1:])
                with files.streamed_array(folder / f"{split}.npy", shape, np.uint8) as array:
                    for where in batches(len(rows), BLOCK):
                        array[where] = pixels[rows[where]]


def prepare(
    source: Source,
    dataset: Settings,
    generator: np.random.Generator,
    processes: int = 1,
    progress: Callable[[Iterable[Rendered]], Iterable[Rendered]] = iter,
) -> Prepared:
    """Render every image, drop exact duplicates, divide the rest into splits, and count near duplicates.

    Args:
        generator: decides the split, and nothing else.
        processes: number of processes that divide the images; changes no result.
        progress: wraps an iterable that gives one value an image.

    Raises:
        InputError: the source is empty, images cannot be read (the message names up to `SHOWN`; see `readable` for those of
            several vendors), a split would be too small, or the disk is full.
    """
    _require_contract(source, dataset)
    withheld = has_words(source.names, dataset.split.withheld)
    images, targets, found = _render_all(source, dataset, processes, progress)
    whole = readable(found, source)
    own = np.array([split or "train" for split in source.splits or [None] * len(images)])
    # of equal images one that is withheld is kept: else training had it under another name
    kept, across = unique(
        [digest for digest in found if isinstance(digest, bytes)], np.where(withheld, "test", own)[whole]
    )
    kept = whole[kept]
    table = _table(source, kept)
    lead = int((kept < source.lead).sum()) if isinstance(source, Collection) else None
    splits = divide(_units(table, dataset), table["label"].to_numpy(), own[kept], dataset.split, generator, lead)
    table["split"] = splits = withhold(splits, withheld[kept])
    rows = {split: np.flatnonzero(splits == split) for split in SPLITS}
    families = pd.factorize(table["family"])[0]
    near, near_train = near_pairs(thumbnails(images, kept), families, splits == "train", dataset.near_duplicate_rmse)
    metrics: dict[str, Any] = {
        "rows": {split: len(where) for split, where in rows.items()},
        "families": len(set(families)),
        "classes": len(source.label_names),
        "duplicates_removed": len(whole) - len(kept),
        "near_duplicates": {
            "images": near.sum(),
            "val_near_train": near_train[rows["val"]].sum(),
            "test_near_train": near_train[rows["test"]].sum(),
        },
    }
    if dataset.split.withheld:
        metrics["withheld"] = int(withheld[kept].sum())
    notes = _notes(across, families, splits, dataset)
    if isinstance(source, Collection):
        metrics["vendors"] = of_vendors(source, whole, table)
        metrics["families_in_train"] = _in_train(families, rows)
        notes += _of_vendors(metrics["vendors"], [what for what in found if isinstance(what, str)])
    in_order = table.iloc[np.concatenate(list(rows.values()))].reset_index(drop=True)
    where = {split: kept[places] for split, places in rows.items()}
    return Prepared(images, targets, where, in_order, metrics, notes)


def _units(table: pd.DataFrame, dataset: Settings) -> pd.Series:
    """What stays in one split."""
    if dataset.split.by == "vendor_and_family":
        return table["vendor_name"] + "/" + table["family"]
    return table["family"]


def _table(source: Source, kept: Int[np.ndarray, " m"]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "split": "",
        "name": [str(source.names[i]) for i in kept],
        "family": [str(source.families[i]) for i in kept],
    }
    for column, (values, names) in label_columns(source).items():
        of_kept = [values[i] if values is not None else -1 for i in kept]
        columns[column] = np.array(of_kept, np.int64)
        columns[f"{column}_name"] = [str(names[value]) if value >= 0 else "" for value in of_kept]
    return pd.DataFrame(columns)


# several vendors


def readable(found: Sequence[Rendered], source: Source) -> Int[np.ndarray, " m"]:
    """Indices of the images that could be rendered. Of a `Collection` those that are `optional` may be broken, unless all of
    their vendor are.

    Raises:
        InputError: any other image is broken. The message names up to `SHOWN`.
    """
    whole = np.array([isinstance(what, bytes) for what in found])
    optional = np.zeros(len(whole), bool)
    if isinstance(source, Collection):
        vendors = np.asarray(source.vendors)
        optional = np.asarray(source.optional) & np.isin(vendors, vendors[whole])
    if broken := [what for what, may in zip(found, optional, strict=True) if isinstance(what, str) and not may]:
        raise InputError(_all_broken(broken, len(whole)))
    return np.flatnonzero(whole)


def of_vendors(source: Collection, whole: Int[np.ndarray, " m"], table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Vendor -> counts. `found` are all of its drawings; it is the sum of `images`, which are in the table, and of those that are
    left out: without a class, twice, broken, and with the very pixels of an earlier image (`duplicates`)."""
    vendors = np.asarray(source.vendors)
    counts = {}
    for i, vendor in enumerate(source.vendor_names):
        rows, of_whole, given = table[table["vendor"] == i], (vendors[whole] == i).sum(), (vendors == i).sum()
        out = {**source.left_out[vendor], "broken": int(given - of_whole), "duplicates": int(of_whole - len(rows))}
        counts[vendor] = {
            "found": sum(out.values()) + len(rows),
            **out,
            "images": len(rows),
            "families": rows["family"].nunique(),
        }
    return counts


def _in_train(families: Int[np.ndarray, " n"], rows: dict[str, Int[np.ndarray, " m"]]) -> dict[str, int]:
    """Of val and test, the number of images whose family has images in train: 0 where families are divided whole."""
    return {split: int(np.isin(families[rows[split]], families[rows["train"]]).sum()) for split in ("val", "test")}


def _of_vendors(counts: dict[str, dict[str, int]], broken: Sequence[str]) -> tuple[str, ...]:
    notes = [f"{vendor}: " + ", ".join(f"{n} {what}" for what, n in of.items()) for vendor, of in counts.items()]
    more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return (*notes, *([f"left out are {len(broken)} broken: {'; '.join(broken[:SHOWN])}{more}"] if broken else []))


def _require_contract(source: Source, dataset: Settings) -> None:
    n = len(source.images)
    if n == 0:
        raise InputError(f"dataset.source {dataset.source!r} holds no images; {dataset.name} found none in it")
    assert len(source.names) == len(source.families) == n, "one name and one family an image"
    assert source.labels is None or len(source.labels) == n, "one label an image, or none at all"
    assert all(0 <= label < len(source.label_names) for label in source.labels or ()), "labels index label_names"
    assert source.labels is not None or not source.label_names, "label_names without labels"
    assert source.splits is None or set(source.splits) <= {*SPLITS, None}, f"splits are named {SPLITS}"
    assert source.splits is None or len(source.splits) == n, "one split an image, or none at all"


def _notes(across: int, codes: np.ndarray, splits: np.ndarray, dataset: Settings) -> tuple[str, ...]:
    notes = []
    if across:
        notes.append(f"{across} images stand in several of the source's own splits; kept in test, or else in val")
    shared = pd.Series(splits).groupby(codes).nunique().gt(1).sum()
    if shared and dataset.split.by == "family":
        notes.append(f"{shared} families stand in several of the source's own splits, which are left as they are")
    return tuple(notes)


# pixels


def _render_all(
    source: Source, dataset: Settings, processes: int, progress: Callable[[Iterable[Rendered]], Iterable[Rendered]]
) -> tuple[np.ndarray, np.ndarray, list[Rendered]]:
    n, channels = len(source.images), 1 if dataset.colour == "grey" else 3
    images = _on_disk((n, dataset.image_size, dataset.image_size, channels))
    targets = _on_disk((n, dataset.target_size, dataset.target_size, channels))

    def work(i: int) -> Rendered:
        """Write one image to both arrays, which all processes share."""
        try:
            images[i], targets[i] = render(source.images[i], dataset, f"image {source.names[i]!r} of {dataset.source}")
        except InputError as error:  # go on, so that one message names all broken images
            return str(error)
        return hashlib.blake2b(images[i].tobytes(), digest_size=16).digest()

    return images, targets, list(progress(spread(work, n, processes)))


def _all_broken(errors: list[str], n: int) -> str:
    if len(errors) == 1:
        return errors[0]
    more = [f"and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
    return "\n  ".join([f"{len(errors)} of {n} images cannot be used:", *errors[:SHOWN], *more])


def _on_disk(shape: tuple[int, ...]) -> UInt8[np.ndarray, ...]:
    """An array in an unnamed file, which is deleted when the process ends, even if it is killed.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    files.ARTIFACTS.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=files.ARTIFACTS) as stream:
            if hasattr(os, "posix_fallocate"):  # a full disk is then an error here, not a bus error at a later write
                os.posix_fallocate(stream.fileno(), 0, math.prod(shape))
            else:
                stream.truncate(math.prod(shape))
            return np.asarray(np.memmap(stream, np.uint8, "r+", shape=shape))
    except OSError as error:
        size = f"{math.prod(shape) / 2**20:.0f} MiB"
        raise InputError(f"no {size} of working space in {files.ARTIFACTS} ({error.strerror}). Free space") from error


def render(
    pixels: UInt8[np.ndarray, ...], dataset: Settings, title: str = "the image"
) -> tuple[UInt8[np.ndarray, "s s c"], UInt8[np.ndarray, "t t c"]]:
    """One image, opaque, in `dataset.colour`, made square by `dataset.aspect`, at `image_size` and at `target_size`.

    Raises:
        InputError: padded to a square, the image would have too many pixels.
    """
    remedy = "Set dataset.aspect to crop, or remove it"
    image = squares.square(pixels, dataset.colour, dataset.aspect, title, remedy)
    return squares.resized(image, dataset.image_size), squares.resized(image, dataset.target_size)


# duplicates


def unique(digests: Sequence[bytes], own: Sequence[str] | np.ndarray) -> tuple[Int[np.ndarray, " m"], int]:
    """Indices of the images to keep, ascending, and the number of images that are in several of the source's own splits.

    The first of identical images is kept. If they are in different splits, it is the first in test, or else the first in val:
    an image of the test split must not be trained on.
    """
    first: dict[bytes, int] = {}
    across: set[bytes] = set()
    for i, digest in enumerate(digests):
        kept = first.setdefault(digest, i)
        if own[kept] != own[i]:
            across.add(digest)
        if KEPT_FIRST.get(own[i], len(KEPT_FIRST)) < KEPT_FIRST.get(own[kept], len(KEPT_FIRST)):
            first[digest] = i
    return np.array(sorted(first.values())), len(across)


def thumbnails(images: UInt8[np.ndarray, "n s s c"], rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
    """Averages over an 8x8 grid of equal areas, not rounded, flattened."""
    average = _area_weights(images.shape[1], THUMBNAIL)
    result = np.empty((len(rows), THUMBNAIL * THUMBNAIL * images.shape[3]), np.float32)
    for where in batches(len(rows), BLOCK):
        pixels = images[rows[where]].astype(np.float32)
        small = np.einsum("ih,nhwc,jw->nijc", average, pixels, average, optimize=True)
        result[where] = small.reshape(len(small), -1)
    return result


def _area_weights(size: int, fields: int) -> Float[np.ndarray, "fields size"]:
    """Row i: weight of each of `size` pixels in the average over area i. A pixel on a border counts in part for both areas."""
    edges, pixel = np.arange(fields + 1) * size / fields, np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (overlap.clip(0) * fields / size).astype(np.float32)


def near_pairs(
    small: Float[np.ndarray, "n d"], families: Int[np.ndarray, " n"], train: Bool[np.ndarray, " n"], rmse: float
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which images have another image of a different family at a root mean squared error below `rmse`, and which have such
    an image in train.

    A projection to orthonormal directions makes no distance larger. So the images are sorted into cells, as wide as the largest
    distance, by the `DIRECTIONS` in which they differ most (principal components), and those of a cell are compared only with
    its own and with the cells around it: with 1.2 % of all images, of 12,000 photographs (CIFAR-10). The time still grows as
    the square of their number.
    """
    widest = rmse * math.sqrt(small.shape[1])
    keys, around = _cells(small, widest)
    order = np.argsort(keys, kind="stable")
    keys, small, families, train = keys[order], small[order], families[order], train[order]
    near, near_train = np.zeros((2, len(order)), bool)
    for cell in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(keys)) + 1):
        touching = keys[cell[0]] + around
        low, high = np.searchsorted(keys, touching - 1, "left"), np.searchsorted(keys, touching + 1, "right")
        there = np.concatenate([np.arange(*bounds) for bounds in zip(low, high, strict=True)])
        for rows, others in itertools.product(_blocks(cell, BLOCK), _blocks(there, COMPARED)):
            a, b = small[rows].astype(np.float64), small[others].astype(np.float64)
            squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
            close = (squared < rmse**2 * small.shape[1]) & (families[rows, None] != families[others])
            near[order[rows]] |= close.any(1)
            near_train[order[rows]] |= (close & train[others]).any(1)
    return near, near_train


def _blocks(rows: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " m"]]:
    return np.split(rows, range(size, len(rows), size))


def _cells(small: Float[np.ndarray, "n d"], width: float) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """The cell of each image, as one number: cells that touch in the last direction differ by 1. And the differences of the
    numbers of the cells that touch in the other directions, 0 included."""
    some = small[arrays.evenly(len(small), SPREAD)].astype(np.float64)
    _, directions = np.linalg.eigh(np.cov(some.T))
    places = small @ directions[:, -DIRECTIONS:].astype(np.float32)
    places -= places.min(0)
    width = max(width + ROUNDED, places.max() / MOST_CELLS)
    cells = (places / width).astype(np.int64)
    strides = np.cumprod([1, *(cells.max(0)[::-1] + 3)])[
        DIRECTIONS - 1 :: -1
    ]  # + 3: the last cell and the next first do not touch
    around = [np.dot(offset, strides[:-1]) for offset in itertools.product((-1, 0, 1), repeat=DIRECTIONS - 1)]
    return cells @ strides, np.array(around)


# splits


def divide(
    units: Sequence[str],
    labels: Int[np.ndarray, " n"],
    own: Sequence[str],
    split: Split,
    generator: np.random.Generator,
    lead: int | None = None,
) -> np.ndarray:
    """The split of each row. Rows in the source's own val and test stay there (`own`; all other rows are "train"). A split that
    the source lacks is taken from the rest, in proportion to the fractions of `split`. Rows of one unit, say a family, stay in
    one split; under `by: random` each row is a unit.

    The first `lead` rows are divided as if there were no others. Later rows follow the unit that they are of, and those
    of other units are divided then. So figures on the first rows compare with those of a run on them alone.

    Raises:
        InputError: a split would have fewer than `LEAST` images.
    """
    result = np.array(own, dtype=object)
    free = np.flatnonzero(result == "train")
    wanted = ["train", *(name for name in ("val", "test") if name not in set(result))]
    fractions = np.array([getattr(split, name) for name in wanted])
    fractions /= fractions.sum()
    by = np.arange(len(result)) if split.by == "random" else np.asarray(units, dtype=str)
    first = free if lead is None else free[free < lead]
    result[first] = np.array(wanted, object)[_assigned(by[first], labels[first], fractions, generator)]
    placed = dict(zip(by[first], result[first], strict=True))
    follows = np.array([row >= len(first) and unit in placed for row, unit in enumerate(by[free])], bool)
    result[free[follows]] = [placed[unit] for unit in by[free[follows]]]
    rest = free[len(first) :][~follows[len(first) :]]
    result[rest] = np.array(wanted, object)[_assigned(by[rest], labels[rest], fractions, generator)]
    _require_rows(result, own, len(set(by[free])), split)
    return result


def _assigned(
    by: np.ndarray, labels: Int[np.ndarray, " n"], fractions: Float[np.ndarray, " k"], generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """For each row one of k parts, rows with equal `by` together.

    The division is stratified by label; the label of a unit is the most frequent one of its rows. Units are assigned in
    random order, each to the part that lacks most rows. Units larger than the smallest part come first: at the end they
    would overshoot and leave another part short. What a label leaves over or short is carried on to the next label. Otherwise
    a hundred labels with two units each would all go to the first part.
    """
    result = np.zeros(len(by), int)
    groups = _groups(by)
    strata = np.array([np.bincount(labels[group] + 1).argmax() for group in groups])  # + 1, since no label is -1
    lacking = np.zeros(len(fractions))
    for stratum in np.unique(strata):
        members = [groups[i] for i in generator.permutation(np.flatnonzero(strata == stratum))]
        rows = fractions * sum(len(group) for group in members)
        lacking += rows
        for group in sorted(members, key=lambda group: len(group) <= rows.min()):
            part = int(lacking.argmax())
            result[group] = part
            lacking[part] -= len(group)
    return result


def withhold(splits: np.ndarray, withheld: Bool[np.ndarray, " n"]) -> np.ndarray:
    """`splits`, but the rows that are `withheld` stand in test.

    Raises:
        InputError: they leave too few images in another split.
    """
    result = np.where(withheld, "test", splits)
    for name in SPLITS:
        if withheld.any() and (rows := int((result == name).sum())) < LEAST:
            raise InputError(
                f"dataset.split.withheld takes {withheld.sum()} images and leaves the {name} split {rows}, which must have at "
                f"least {LEAST}; withhold fewer words"
            )
    return result


def has_words(names: Iterable[str], withheld: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Which names have all words of an entry of `withheld`, joined by blanks or underscores, as whole words: `man` is no part of
    `woman`. Underscores in names are blanks, as they are to a prior that is told words.

    Raises:
        InputError: no name has the words of an entry.
    """
    names = [unicodedata.normalize("NFKC", name).casefold().replace("_", " ") for name in names]
    found = np.zeros(len(names), bool)
    for entry in withheld:
        patterns = [
            re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
            for word in re.split(r"[\s_]+", entry.casefold().strip(" _"))
        ]
        own = np.array([all(pattern.search(name) for pattern in patterns) for name in names], bool)
        if not own.any():
            raise InputError(
                f"dataset.split.withheld: no image has the words {entry!r} in its name; correct them, or leave them out"
            )
        found |= own
    return found


def _groups(by: np.ndarray) -> list[Int[np.ndarray, " m"]]:
    """The rows of each value, in ascending order of the values."""
    if len(by) == 0:
        return []
    order = np.argsort(by, kind="stable")
    return np.split(order, np.flatnonzero(by[order][1:] != by[order][:-1]) + 1)


def _require_rows(splits: np.ndarray, own: Sequence[str], groups: int, split: Split) -> None:
    fixed = [name for name in ("val", "test") if name in set(own)]
    free = sum(name == "train" for name in own)
    for name in SPLITS:
        rows = int((splits == name).sum())
        if rows >= LEAST:
            continue
        what = f"{len(splits)} images" + (f", {groups} families to divide" if split.by == "family" else "")
        remedy = f"Take a source with more images, or raise dataset.split.{name} (now {getattr(split, name):g})"
        if split.by == "family":
            remedy += ", or set dataset.split.by to random"
        if name in fixed:  # it is not divided
            remedy = f"It is the source's own: add images to it, or rename the folder or file that is called {name}"
        elif fixed and free < LEAST * (len(SPLITS) - len(fixed)):
            remedy = (
                f"All but {free} stand in the source's own {' and '.join(fixed)}: add images for train, or rename the folder "
                "or file that is called so, or take it alone as dataset.source"
            )
        raise InputError(f"the {name} split must have at least {LEAST} images, got {rows} ({what}). {remedy}")


if __name__ == "__main__":
    enter(main)
