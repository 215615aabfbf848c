"""features: dataset, scorer, reconstruction, samples -> artifacts/features/, metrics/features.json, plots/features/

Every set of images as the scorer sees it, and the group of each image: what every evaluation reads. A sheet shows samples of
each group beside real images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from pydantic import Field, field_validator

from tessera import groups
from tessera.core import files, models
from tessera.core.errors import InputError, listed
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run
from tessera.images import pictures
from tessera.images.arrays import evenly, map_batches
from tessera.runtime.stage import enter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN, COLUMNS = 40, 10  # images of each block of the sheet
REAL = "real/"  # no set of samples has this name


class Settings(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")
    decoded: int = Field(ge=8, description="reconstructions of training images, at most: the classifier of groups is trained "
                         "on them, and samples are compared with them, also to find copies")  # fmt: skip
    groups: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], list[str]] = Field(
        description="figures are printed for each group: its name, and patterns of its labels; other labels are `rest`"
    )
    smallest_group: int = Field(
        ge=2, description="images that a group must have in val and in test for figures of its own"
    )
    vendor: str = Field(
        description="whose images samples are compared with, by name; empty: those of all", examples=[""]
    )

    @field_validator("groups")
    @classmethod
    def _free(cls, found: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in found.keys() & {groups.ALL, groups.REST}:
            raise ValueError(
                f"must not name a group {name!r}, which stands for {'all images' if name == groups.ALL else 'other labels'}"
            )
        return found


def main(run: Run) -> None:
    own = run.params.section("features", Settings)
    ours, scorer = of_vendor(run, own), run.scorer()
    features: dict[str, Float[np.ndarray, "n f"]] = {}
    for of, pixels in images(run, own.decoded).items():
        path, shape = run.folder("features") / f"{of}.npy", (len(pixels), scorer.dim)
        with files.streamed_array(path, shape, "float32") as out:
            broken = 0
            for where, batch in map_batches(scorer, pixels, own.batch_size, run.runtime.device):
                out[where] = batch.cpu().numpy()
                broken += int((~np.isfinite(out[where]).all(1)).sum())
            require_finite(broken, len(pixels), of, run)
        features[of] = files.load_array(path)
    for of, family in families(run, features).items():
        files.save_array(run.folder("features") / "families" / f"{of}.npy", family)
    facts = {"distance": scorer.distance, **grouped(features, ours, own, run)}
    files.write_json(run.folder("features") / "facts.json", facts)
    files.write_metrics("features", metrics(facts, run))
    files.write_picture(files.PLOTS / "features" / "groups.png", picture(run))


def images(run: Run, decoded: int) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    """Of every set; of the reconstructions of training images as many as `decoded`, evenly spaced."""
    pixels = {split: run.images(split) for split in SPLITS}
    pixels["reconstruction"] = run.images("test", "reconstruction")
    pixels["reconstruction_val"] = run.images("val", "reconstruction")
    train = run.images("train", "reconstruction")
    pixels["reconstruction_train"] = train[evenly(len(train), decoded)]
    return pixels | {of: run.samples(of) for of in run.sample_sets}


def require_finite(broken: int, images: int, of: str, run: Run) -> None:
    """
    Raises:
        InputError: `broken` images of a set have a feature that is NaN or infinite; one of them would spoil every mean.
    """
    if broken:
        scorer = models.read_recipe(run.folder("scorer")).name
        raise InputError(
            f"{of}: features must be finite, and those of {broken} of {images} images by the scorer {scorer} are not (NaN or "
            "infinite), so its weights are broken: run `dvc repro -f scorer`, or choose another scorer.name"
        )


def families(run: Run, features: dict[str, Float[np.ndarray, "n f"]]) -> dict[str, Shaped[np.ndarray, " n"]]:
    """The family of each image of every set, text; a sample, of which none is known, is a family of its own. That of a real image
    begins with `REAL`, that of a sample with the name of its set: they are never equal, whatever a data set calls its own."""
    found = {}
    for of, array in features.items():
        split = {"reconstruction": "test"}.get(of, of.removeprefix("reconstruction_"))
        if split in SPLITS:
            known = run.table(split)["family"].to_numpy(str)
            found[of] = np.strings.add(REAL, known[evenly(len(known), len(array))])
        else:
            found[of] = np.array([f"{of}/{index}" for index in range(len(array))])
    return found


def grouped(
    features: dict[str, Float[np.ndarray, "n f"]], ours: dict[str, Bool[np.ndarray, " n"]], own: Settings, run: Run
) -> dict[str, Any]:
    """Write the group of each image, by its label; of samples without labels, as a classifier of reconstructed training images
    predicts it from the features; `groups.OTHERS` of images by other vendors than samples are compared with. Returns the names of
    the groups, those with figures of their own, and the classifier's accuracy on the reconstructed test images."""
    if not run.label_names:
        for of, compared in ours.items():
            files.save_array(run.folder("features") / "groups" / f"{of}.npy", np.where(compared, 0, groups.OTHERS))
        return {"groups": [], "shown": [], "small": []}
    names, of_label = groups.of_labels(run.label_names, own.groups)
    known: dict[str, Int[np.ndarray, " n"]] = {split: of_label[run.required_labels(split)] for split in SPLITS}
    train = known["train"][evenly(len(known["train"]), own.decoded)]
    known |= {"reconstruction": known["test"], "reconstruction_val": known["val"], "reconstruction_train": train}
    assign = groups.Assigner(features["reconstruction_train"], train)
    right = float((assign(features["reconstruction"]) == known["test"]).mean())
    for of in run.sample_sets:
        labels = run.sample_labels(of)
        known[of] = assign(features[of]) if labels is None else of_label[labels]
    known |= {of: np.where(compared, known[of], groups.OTHERS) for of, compared in ours.items()}
    for of, group in known.items():
        files.save_array(run.folder("features") / "groups" / f"{of}.npy", group)
    counts = {split: np.bincount(known[split] + 1, minlength=len(names) + 1)[1:] for split in ("val", "test")}
    small = [name for at, name in enumerate(names) if min(found[at] for found in counts.values()) < own.smallest_group]
    if small:
        print(f"features: no figures for groups of fewer than {own.smallest_group} images in val or test: {', '.join(small)}",
              flush=True)  # fmt: skip
    shown = [name for name in names if name not in small]
    return {"groups": names, "shown": shown if len(names) > 1 else [], "small": small, "accuracy": right}


def of_vendor(run: Run, own: Settings) -> dict[str, Bool[np.ndarray, " n"]]:
    """Which images of each set of real images are by `features.vendor`; no set where it is empty.

    Raises:
        InputError: the data set has no such vendor, or a split has no image by it.
    """
    if not own.vendor:
        return {}
    names = run.class_names.get("vendor", ())
    if own.vendor not in names:
        there = f"there are {listed(names)}" if names else "the images of this data set have no vendors"
        raise InputError(f"features.vendor: must be a vendor of the data set or empty, got {own.vendor!r}; {there}")
    ours = {split: run.table(split)["vendor_name"].to_numpy(str) == own.vendor for split in SPLITS}
    for split, found in ours.items():
        if not found.any():
            raise InputError(
                f"features.vendor: {split} has no images by {own.vendor!r}; leave it empty, or let the data set read more"
            )
    train = ours["train"][evenly(len(ours["train"]), own.decoded)]
    return ours | {"reconstruction": ours["test"], "reconstruction_val": ours["val"], "reconstruction_train": train}


def metrics(facts: dict[str, Any], run: Run) -> dict[str, Any]:
    """How well groups are told apart, and the fraction of each group among test images and samples: a prior that draws easy groups
    alone shows here."""
    if not facts["shown"]:
        return {"groups": 0}
    found: dict[str, Any] = {"groups": len(facts["shown"]), "group_accuracy": facts["accuracy"]}
    for of in ("test", *run.sample_sets):
        members = run.groups(of)
        found[of] = {name: len(members[name]) / len(members[groups.ALL]) for name in facts["shown"]}
    return found


def picture(run: Run) -> Figure:
    """A row for each group, or one of all images where there are none: the first samples of the group, unselected, beside test
    images of it, evenly spaced, that passed the tokenizer too."""
    from matplotlib.figure import Figure

    samples, real = run.groups("samples"), run.groups("reconstruction")
    names = [name for name in samples if name != groups.ALL] or [groups.ALL]
    blocks = {}
    for name in names:
        spread = real[name][evenly(len(real[name]), SHOWN)]
        blocks[f"{name}: samples, the first"] = block(run.samples()[samples[name][:SHOWN]])
        blocks[f"{name}: test images through the tokenizer"] = block(run.images("test", "reconstruction")[spread])
    height, width = next(iter(blocks.values())).shape[:2]
    figure = Figure(figsize=(2 * width / 100, len(names) * (height / 100 + 0.3)), layout="constrained")
    for axis, (title, images) in zip(figure.subplots(len(names), 2).flat, blocks.items(), strict=True):
        axis.imshow(images.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    return figure


def block(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "height width c"]:
    """A sheet of `SHOWN` places; those for which there is no image are white."""
    missing = ((0, SHOWN - len(images)), (0, 0), (0, 0), (0, 0))
    return pictures.sheet(np.pad(images, missing, constant_values=255), COLUMNS)


if __name__ == "__main__":
    enter(main)
