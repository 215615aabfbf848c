"""codes: dataset, tokenizer -> artifacts/codes/ of all splits and of augmented copies of the training images, metrics/codes.json;
and clusters and neighbours of the images, which a prior may be told

Encodes images batch by batch, in constant memory, on any number of processes. The metrics are the rate of the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tessera import augmentation, neighbours, statistics
from tessera.augmentation import Augmentation
from tessera.core import files
from tessera.core.contracts import Tokenizer
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run
from tessera.core.seeding import derive, generator
from tessera.images import arrays
from tessera.neighbours import Neighbours
from tessera.runtime.stage import enter

if TYPE_CHECKING:
    from numpy.typing import DTypeLike
    from sklearn.cluster import KMeans

Where = slice | tuple[int, slice]  # images in an array of codes [N,T]; or copy and images in an array [copies,N,T]


STARTS = 4  # of k-means, of which the best is kept
LEAST = 4  # training images of a cluster in the mean: a small set has fewer clusters than it was asked for
MOST = 256  # the same, of those that centres are sought among, as in faiss, so that the time of k-means does not grow with the set
BLOCK = 65_536  # images that are assigned at once


class Clusters(Strict):
    count: int = Field(
        ge=0, le=10_000, description="clusters of the images, which a prior may be told; 0: none", examples=[0]
    )
    grid: int = Field(ge=1, le=64, description="side of the grid to which latents are averaged before they are clustered",
                      examples=[2])  # fmt: skip


class Settings(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")
    copies: int = Field(ge=0, description="augmented copies of the training images that are encoded too, from weak to "
                        "strong augmentation; 0: none")  # fmt: skip
    augmentation: Augmentation
    clusters: Clusters
    neighbours: Neighbours


def main(run: Run) -> None:
    tokenizer, folder = run.tokenizer(), run.folder("codes")
    encode(tokenizer, run, folder)
    if run.runtime.main:
        own = run.params.section("codes", Settings)
        clusters = fewer_clusters(own.clusters.count, len(run.images("train")))
        counts = {"clusters": clusters, "neighbours": own.neighbours.count}
        told = {name: count for name, count in counts.items() if count}
        files.write_json(folder / "facts.json", tokenizer.space.facts | told)
        sizes = write_clusters(tokenizer, run, folder, clusters) if clusters else {}
        kept = write_neighbours(tokenizer, run, folder) if own.neighbours.count else {}
        files.write_metrics("codes", metrics(run) | sizes | kept)


def encode(tokenizer: Tokenizer, run: Run, folder: Path) -> None:
    """Write `<split>.npy` [N,T] int32 for every split, and `augmented.npy` [copies,N,T] for randomly changed training images,
    from weak to strong changes (`strengths`), in the smallest type that holds the codes: they are most of what is stored.
    On a small set, a prior that sees each image in only one form memorises it."""
    own, length = run.params.section("codes", Settings), tokenizer.space.length
    for split in SPLITS:
        _write(folder / f"{split}.npy", "int32", (len(run.images(split)), length), _encoded(tokenizer, run, split), run)

    def copies() -> Iterator[tuple[tuple[int, slice], np.ndarray]]:
        for copy, strength in enumerate(strengths(own.copies)):
            rng = generator(run.params.seed, "codes", "augmentation", copy)
            change = partial(augmentation.augmented, how=own.augmentation, generator=rng, strength=strength)
            yield from (((copy, where), codes) for where, codes in _encoded(tokenizer, run, "train", change))

    smallest = np.min_scalar_type(max(tokenizer.space.sizes) - 1)  # uint8 for up to 256 codes, uint16 for up to 65,536
    _write(folder / "augmented.npy", smallest, (own.copies, len(run.images("train")), length), copies(), run)


def metrics(run: Run) -> dict[str, float]:
    """The rate: codes per image, bits if all K codes are equally likely, and bits by the code frequencies of `val`."""
    entropy = statistics.order_zero_bits(run.codes("val"), run.space)
    return {
        "codes_per_image": len(entropy),
        "bits_per_image": run.space.bits,
        "entropy_bits_per_image": float(entropy.sum()),
    }


def fewer_clusters(count: int, images: int) -> int:
    """`count`, or fewer where there are so few training images; the log says so."""
    if count <= (most := max(1, images // LEAST)):
        return count
    print(f"codes.clusters.count: {most} instead of {count}, since the train split has {images} images", flush=True)
    return most


def write_clusters(tokenizer: Tokenizer, run: Run, folder: Path, count: int) -> dict[str, Any]:
    """Write `clusters/<split>.npy` [N] int64, and return the sizes of the smallest and the largest cluster of training images. A
    prior that is told the cluster draws from few images where clusters are small, and then recites them."""
    own = run.params.section("codes", Settings)
    features = {split: pooled_latents(tokenizer, run, split, own.clusters.grid) for split in SPLITS}
    found = clustered(features, count, derive(run.params.seed, "codes", "clusters"))
    for split, clusters in found.items():
        files.save_array(folder / "clusters" / f"{split}.npy", clusters)
    sizes = np.bincount(found["train"], minlength=count)
    return {"clusters": {"smallest": int(sizes.min()), "largest": int(sizes.max())}}


def write_neighbours(tokenizer: Tokenizer, run: Run, folder: Path) -> dict[str, Any]:
    """Write `neighbours/<split>.npy` [N,k] int32, the near training images of each image, and `neighbours/features.npy` [n,F]
    float32, of the training images; and return which fraction of the variance of the latents the features have."""
    from threadpoolctl import threadpool_limits

    own = run.params.section("codes", Settings).neighbours
    latents = {split: pooled_latents(tokenizer, run, split, own.grid) for split in SPLITS}
    families = {split: run.table(split)["family"].to_numpy(str) for split in SPLITS}
    with threadpool_limits(1):  # sums of several threads differ in the last bit
        found = neighbours.reduced(latents, own.dimensions)
        train = found.features["train"], families["train"]
        near = {
            split: neighbours.nearest_of_other_families(found.features[split], families[split], *train, own.count)
            for split in SPLITS
        }
    files.save_array(folder / "neighbours" / "features.npy", found.features["train"])
    for split, places in near.items():
        files.save_array(folder / "neighbours" / f"{split}.npy", places)
    return {"neighbours": {"variance": found.variance}}


def pooled_latents(tokenizer: Tokenizer, run: Run, split: str, grid: int) -> Float[np.ndarray, "n f"]:
    """Latents of all levels before quantization, each averaged to at most `grid` x `grid` places. The network that scores has no
    part in them, so that no prior is conditioned on its judge."""
    own = run.params.section("codes", Settings)

    def features(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        pooled = []
        for z in tokenizer.latents(x):
            height, width = (min(grid, side) for side in z.shape[2:])
            pooled.append(F.adaptive_avg_pool2d(z.float(), (height, width)).flatten(1))
        return torch.cat(pooled, dim=1)

    return arrays.mapped(features, run.images(split), own.batch_size, run.runtime.device)


def clustered(features: dict[str, Float[np.ndarray, "n f"]], count: int, seed: int) -> dict[str, Int[np.ndarray, " n"]]:
    """The cluster of each image of every split: that of the nearest centre. Centres are found by k-means (Lloyd) on standardised
    features of the training images, of a large set on `MOST` for each cluster, evenly spaced. Clusters are numbered by the number
    of their training images, the largest first.

    Raises:
        InputError: there are more clusters than different images among these.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    train = features["train"]
    seen = train[arrays.evenly(len(train), MOST * count)].astype(np.float64)
    if count > (there := len(np.unique(seen, axis=0))):
        raise InputError(f"codes.clusters.count: must be at most {there}, as many as are different of the {len(seen)} training "
                         f"images among which centres are sought, got {count}")  # fmt: skip
    mean, deviation = seen.mean(0), seen.std(0)
    deviation[deviation == 0] = 1  # a feature that never varies
    with threadpool_limits(1):  # sums of several threads differ in the last bit
        model = KMeans(count, n_init=STARTS, random_state=seed % 2**32).fit((seen - mean) / deviation)
        found = {split: _nearest(model, array, mean, deviation) for split, array in features.items()}
    number = np.empty(count, np.int64)
    number[np.argsort(-np.bincount(found["train"], minlength=count), kind="stable")] = np.arange(count)
    return {split: number[clusters] for split, clusters in found.items()}


def _nearest(
    model: KMeans,
    features: Float[np.ndarray, "n f"],
    mean: Float[np.ndarray, " f"],
    deviation: Float[np.ndarray, " f"],
) -> Int[np.ndarray, " n"]:
    """The centre nearest to each image, in constant memory."""
    parts = [model.predict((features[where] - mean) / deviation) for where in arrays.batches(len(features), BLOCK)]
    return np.concatenate(parts)


def strengths(copies: int) -> tuple[float, ...]:
    """The strength of each copy: 1/copies, 2/copies ... 1."""
    return tuple((copy + 1) / copies for copy in range(copies))


def _write(
    path: Path, dtype: DTypeLike, shape: tuple[int, ...], pieces: Iterator[tuple[Where, np.ndarray]], run: Run
) -> None:
    """Write the pieces on one process: memory maps of one file on several machines could lose each other's pages."""
    if run.runtime.main:
        with files.streamed_array(path, shape, dtype) as stored:
            for where, codes in pieces:
                stored[where] = codes
    else:
        for _ in pieces:
            pass


def _encoded(
    tokenizer: Tokenizer, run: Run, split: str, change: Callable[[Tensor], Tensor] = lambda x: x
) -> Iterator[tuple[slice, Int[np.ndarray, "b t"]]]:
    """Yield (slice, codes of these images) for every batch of a split, on the process that writes. The ranks encode in turn the
    same batches that one process would encode, so the codes are equal to the bit."""
    pixels, runtime, codes = run.images(split), run.runtime, None
    turns = arrays.batches(len(pixels), run.params.section("codes", Settings).batch_size)
    while batches := list(islice(turns, runtime.ranks)):
        for rank, where in enumerate(batches):
            if rank == runtime.rank:
                with torch.no_grad():
                    x = change(arrays.to_model(pixels[where], runtime.device))
                    codes = tokenizer.encode(x).cpu().numpy()
            else:  # use up the random numbers of another rank's images; they do not depend on the size of the images
                change(torch.empty(where.stop - where.start, pixels.shape[-1], 1, 1))
        found = runtime.gathered(codes) if runtime.ranks > 1 else [codes]
        if runtime.main:
            yield from zip(batches, found, strict=False)  # in the last round some ranks have no batch


if __name__ == "__main__":
    enter(main, distributed=True)
