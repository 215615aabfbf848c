"""The shape of the codebook: clusters, crowding, dimension, and how it came to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field

from tessera.codes import statistics
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
    codes: int = Field(ge=8, description="code vectors looked at; of a larger codebook those most used", examples=[64])
    clusters: int = Field(ge=2, le=10, description="of k-means, which are the colours", examples=[2])
    perplexity: float = Field(gt=0, description="of t-SNE: about how many neighbours a point has", examples=[3.0])
    iterations: int = Field(ge=250, description="of t-SNE, at most", examples=[250])


def measure(config: Config, run: Run) -> Report:
    """Of each grid's codebook; how often a code is used, validation images say.

    `silhouette` (Rousseeuw 1987) of k-means: near 1 for clusters far apart, but never 0 for none, since k-means finds its
    own; beside it stands that of Gaussian points of the same covariance. `neighbour_distance`: mean distance to the nearest
    other code vector, over the mean distance of two; near 0, neighbours can stand for each other, and to name the right one
    costs a prior bits that no picture needs. `effective_dimension`: see `participation_ratio`."""
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
    """Its codebook by epoch, as the stage `tokenizer` keeps it; none of a quantizer that was fitted afterwards."""
    path = run.folder("tokenizer") / "snapshots.safetensors"
    stored = models.load_weights(path) if path.exists() else {}  # a tokenizer trained elsewhere comes without
    own = [name for name in stored if name.endswith(f"/codebook_{grid}")]
    return {int(name.partition("/")[0]): stored[name].float().numpy() for name in own}


def described(book: Points, config: Config, seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """A row for each code vector, and the codebook's own numbers."""
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
    """Mean distance of two of the points, and of each the distance to the nearest other one."""
    from scipy.spatial.distance import pdist, squareform

    pairs = pdist(points.astype(np.float64))
    return float(pairs.mean()), (squareform(pairs) + np.diag(np.full(len(points), np.inf))).min(1)


def participation_ratio(points: Points) -> float:
    """(sum v)^2 / sum v^2 of the variances v along principal axes: D where all are equal, 1 on a line, 0 of one point."""
    covariance = np.atleast_2d(np.cov(points.astype(np.float64), rowvar=False))
    squares = float(np.square(covariance).sum())  # tr(C^2)
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0


def clusters(points: Points, k: int, seed: int) -> tuple[Int[np.ndarray, " n"], float]:
    """The best k-means of ten starts, and its silhouette; 0 where there are too few distinct points for one."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    k = min(k, len(np.unique(points, axis=0)), len(points) - 1)
    if k < 2:
        return np.zeros(len(points), int), 0.0
    found = KMeans(k, n_init=10, random_state=seed % 2**32).fit_predict(points)
    return found, float(silhouette_score(points, found))


def embedded(points: Points, perplexity: float, iterations: int, seed: int) -> Plane:
    """t-SNE (van der Maaten & Hinton 2008), started from the two principal directions: neighbours stay near, but distances
    between groups, and their sizes, mean nothing."""
    from sklearn.manifold import TSNE

    start = (points - points.mean(0)) @ axes(points)
    start = (start / (start[:, 0].std() or 1.0) * 1e-4).astype(np.float32)
    few = min(perplexity, (len(points) - 1) / 3)
    return TSNE(perplexity=few, max_iter=iterations, init=start, random_state=seed % 2**32).fit_transform(points)


def axes(points: Points) -> Float[np.ndarray, "d 2"]:
    """The two principal directions; the second is zero where D = 1."""
    directions = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][:2]
    return np.pad(directions, [(0, 2 - len(directions)), (0, 0)]).T


def evolution(kept: Points, taken: dict[int, Points]) -> tuple[pd.DataFrame, dict[str, Plane]]:
    """The numbers of each snapshot, and all snapshots on one plane: the two principal directions of the kept codebook. That
    is linear: a length means the same in every panel, and a code that rests stays in its place; t-SNE would keep neither.
    `moved`: mean distance to the kept places, over the mean distance of two of these."""
    (apart, _), plane, rows, points = spacing(kept), axes(kept), [], {}
    for title, book in [*((f"epoch {epoch}", book) for epoch, book in sorted(taken.items())), ("kept", kept)]:
        moved = np.linalg.norm(book - kept, axis=1).mean() / apart if apart else 0.0
        rows.append({"snapshot": title, **spread(book), "moved": moved})
        points[title] = (book - kept.mean(0)) @ plane
    return pd.DataFrame(rows), points


def _picture(rows: list[dict[str, Plane]], tables: list[pd.DataFrame], side: float) -> Figure:
    """A row of panels for each grid. Colours are the clusters of the kept codebook, areas the use of a code."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * len(rows[0]), (side + 0.2) * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex="row", sharey="row")
    for grid, (row, points, codes) in enumerate(zip(panels, rows, tables, strict=True)):
        size = 8 + 20 * codes["fraction"] * len(codes)  # a code of mean use adds 20
        for axis, (title, places) in zip(row, points.items(), strict=True):
            axis.scatter(*places.T, s=size, c=codes["cluster"], cmap="tab10", vmin=0, vmax=9, alpha=0.65, linewidths=0)
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.set_title(f"grid {grid}, {title}", fontsize=8)
    return figure
