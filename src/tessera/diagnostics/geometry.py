"""The geometry of the codebook: clusters, spacing, dimension, and its evolution in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field

from tessera import statistics
from tessera.core import models
from tessera.core.contracts import Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, numpy_generator
from tessera.images import arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Float[np.ndarray, "n d"]
Plane = Float[np.ndarray, "n 2"]


class Config(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[4])
    codes: int = Field(ge=8, description="most code vectors, the most used of a larger codebook", examples=[64])
    clusters: int = Field(ge=2, le=10, description="clusters of k-means, shown as colours", examples=[2])
    perplexity: float = Field(gt=0, description="of t-SNE: effective number of neighbours of a point", examples=[3.0])
    iterations: int = Field(ge=250, description="most iterations of t-SNE", examples=[250])


def measure(config: Config, run: Run) -> Report:
    """Measures each grid's codebook; the frequency of codes is that in the validation images.

    `silhouette` (Rousseeuw 1987) of k-means is near 1 for clusters far apart. It is not 0 without clusters, since k-means
    always finds some, so compare it with `silhouette_gaussian`, that of Gaussian points with the same covariance.
    `neighbour_distance`: mean distance to the nearest other code vector, divided by the mean distance of two. Near 0,
    neighbours are interchangeable, and a prior spends bits on choices that do not affect the image. `effective_dimension`:
    see `participation_ratio`."""
    tokenizer = run.tokenizer()
    codes = tokenizer.space.split(arrays.mapped(tokenizer.encode, run.images("val"), config.batch_size, run.device))
    metrics, tables, histories, planes = {}, [], [], []
    for grid, (own, tensor) in enumerate(zip(codes, tokenizer.codebooks, strict=True)):
        fraction = statistics.frequencies(own, len(tensor))
        chosen = np.sort(np.argsort(-fraction, kind="stable")[: config.codes])
        book = tensor.detach().float().cpu().numpy()[chosen]
        table, metrics[f"grid_{grid}"] = described(book, config, derive(run.params.seed, "geometry", grid))
        history, plane = evolution(book, {epoch: was[chosen] for epoch, was in _snapshots(run, grid).items()})
        tables.append(table.assign(fraction=fraction[chosen], code=chosen, grid=grid))
        histories.append(history.assign(grid=grid))
        planes.append(plane)
    maps = [{"t-SNE": table[["x", "y"]].to_numpy()} for table in tables]
    plotted = {"codebook": _picture(maps, tables, 4.2), "evolution": _picture(planes, tables, 2.2)}
    return Report(metrics, {"codebook": pd.concat(tables), "evolution": pd.concat(histories)}, plotted)


def _snapshots(run: Run, grid: int) -> dict[int, Points]:
    """The grid's codebook by epoch, as saved by the stage `tokenizer`; empty for a post-hoc quantizer."""
    path = run.folder("tokenizer") / "snapshots.safetensors"
    stored = models.load_weights(path) if path.exists() else {}  # a tokenizer trained elsewhere has none
    own = [name for name in stored if name.endswith(f"/codebook_{grid}")]
    return {int(name.partition("/")[0]): stored[name].float().numpy() for name in own}


def described(book: Points, config: Config, seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """A row for each code vector, and the metrics of the codebook."""
    cluster, silhouette = clusters(book, config.clusters, seed)
    covariance, rng = np.atleast_2d(np.cov(book, rowvar=False)), numpy_generator(seed, "gaussian")
    gaussian = rng.multivariate_normal(book.mean(0), covariance, len(book), method="svd")
    x, y = embedded(book, config.perplexity, config.iterations, seed).T
    table = pd.DataFrame({"cluster": cluster, "nearest": spacing(book)[1], "x": x, "y": y})
    chance = clusters(gaussian, config.clusters, seed)[1]
    return table, {"silhouette": silhouette, "silhouette_gaussian": chance, **spread(book)}


def spread(book: Points) -> dict[str, float]:
    apart, nearest = spacing(book)
    relative = float(nearest.mean()) / apart if apart else 0.0
    return {"neighbour_distance": relative, "effective_dimension": participation_ratio(book)}


def spacing(points: Points) -> tuple[float, Float[np.ndarray, " n"]]:
    """Mean distance of two points, and each point's distance to its nearest other point."""
    from scipy.spatial.distance import pdist, squareform

    pairs = pdist(points.astype(np.float64))
    return float(pairs.mean()), (squareform(pairs) + np.diag(np.full(len(points), np.inf))).min(1)


def participation_ratio(points: Points) -> float:
    """(sum v)^2 / sum v^2 of the variances v along principal axes: D if all are equal, 1 on a line, 0 for equal points."""
    covariance = np.atleast_2d(np.cov(points.astype(np.float64), rowvar=False))
    squares = float(np.square(covariance).sum())  # tr(C^2)
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0


def clusters(points: Points, k: int, seed: int) -> tuple[Int[np.ndarray, " n"], float]:
    """Clusters of the best k-means of ten starts, and its silhouette; 0 if there are too few distinct points."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    k = min(k, len(np.unique(points, axis=0)), len(points) - 1)
    if k < 2:
        return np.zeros(len(points), int), 0.0
    found = KMeans(k, n_init=10, random_state=seed % 2**32).fit_predict(points)
    return found, float(silhouette_score(points, found))


def embedded(points: Points, perplexity: float, iterations: int, seed: int) -> Plane:
    """t-SNE (van der Maaten & Hinton 2008), initialised with the two principal directions. Neighbours stay near, but distances
    between groups and sizes of groups have no meaning."""
    from sklearn.manifold import TSNE

    start = (points - points.mean(0)) @ axes(points)
    start = (start / (start[:, 0].std() or 1.0) * 1e-4).astype(np.float32)
    few = min(perplexity, (len(points) - 1) / 3)
    return TSNE(perplexity=few, max_iter=iterations, init=start, random_state=seed % 2**32).fit_transform(points)


def axes(points: Points) -> Float[np.ndarray, "d 2"]:
    """The two principal directions; the second is zero if D = 1."""
    directions = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][:2]
    return np.pad(directions, [(0, 2 - len(directions)), (0, 0)]).T


def evolution(kept: Points, taken: dict[int, Points]) -> tuple[pd.DataFrame, dict[str, Plane]]:
    """Metrics of each snapshot, and all snapshots projected on the two principal directions of the kept codebook. The
    projection is linear, unlike t-SNE: lengths are comparable between panels, and a code vector that does not move keeps its
    place. `moved`: mean distance to the kept code vectors, divided by the mean distance of two of these."""
    (apart, _), plane, rows, points = spacing(kept), axes(kept), [], {}
    for title, book in [*((f"epoch {epoch}", book) for epoch, book in sorted(taken.items())), ("kept", kept)]:
        moved = np.linalg.norm(book - kept, axis=1).mean() / apart if apart else 0.0
        rows.append({"snapshot": title, **spread(book), "moved": moved})
        points[title] = (book - kept.mean(0)) @ plane
    return pd.DataFrame(rows), points


def _picture(rows: list[dict[str, Plane]], tables: list[pd.DataFrame], side: float) -> Figure:
    """A row of panels for each grid. Colours are the clusters of the kept codebook, areas the frequencies of codes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * len(rows[0]), (side + 0.2) * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex="row", sharey="row")
    for grid, (row, points, codes) in enumerate(zip(panels, rows, tables, strict=True)):
        size = 8 + 20 * codes["fraction"] * len(codes)  # 20 for a code of mean frequency
        for axis, (title, places) in zip(row, points.items(), strict=True):
            axis.scatter(*places.T, s=size, c=codes["cluster"], cmap="tab10", vmin=0, vmax=9, alpha=0.65, linewidths=0)
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.set_title(f"grid {grid}, {title}", fontsize=8)
    return figure
