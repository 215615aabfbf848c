"""Between two images: seven ways from one to the other, from rounding code indices to a path along the training images.

`index` rounds (1 - a) c_1 + a c_2 of the codes' indices, although these mean nothing; published are 0.72 (happy to sad face),
0.65 (heart to star) and 0.58 (sun to moon), mean SSIM of consecutive frames. `embedding` blends code vectors and decodes
blends that are no codes. `latent` blends z, then quantizes; `slerp` does so on the sphere. `hierarchical` blends z level
after level, coarse codes first. `prior` takes, around the blend, what the prior finds likely. `learned` follows the shortest
path on the nearest-neighbour graph of the training images. In each of them the ends are the reconstructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Generator, Tensor

from tessera.core import images, pictures
from tessera.core.contracts import SPLITS, Report
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import derive, generator, numpy_generator
from tessera.nn import graph, neighbours, probe, scores
from tessera.nn.sequences import flatten_levels, unflatten, whereabouts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from scipy.sparse import csr_array

Mode = Literal["index", "embedding", "latent", "slerp", "hierarchical", "prior", "learned"]
Place = tuple[str, int]  # split and row of an image
BATCH = 256  # code maps looked up at once
EXACT = "donot_use_mm_for_euclid_dist"  # 0 between equal vectors
DIRECTIONS = 64  # principal ones of code maps, at most: in more, the tree that finds neighbours compares all with all


class Config(Strict):
    frames: int = Field(ge=2, description="pictures from one image to the other, both ends included", examples=[3])
    pairs: int = Field(ge=1, description="pairs of test images, drawn by the seed", examples=[2])
    named: list[Annotated[str, Field(pattern="^[^/]+/[^/]+$")]] = Field(
        description="further pairs first/last by the images' names, of any split", examples=[["picture 1/picture 20"]]
    )
    modes: list[Mode] = Field(
        min_length=1,
        description="ways from one image to the other",
        examples=[["index", "embedding", "latent", "slerp", "hierarchical", "prior", "learned"]],
    )
    freedom: float = Field(
        gt=0,
        description="of prior: how far a code may be from the blend, in distances of the blend from the nearer image",
        examples=[0.5],
    )
    points: int = Field(ge=2, description="of learned: training images on the graph, at most", examples=[12])
    neighbours: int = Field(ge=1, description="of learned: k of the graph", examples=[3])


class Ends(NamedTuple):
    """The two images and what the tokenizer makes of them."""

    names: list[str]
    labels: list[int]  # empty where the data set has none
    z: tuple[Float[Tensor, "2 d h w"], ...]
    codes: Int[Tensor, "2 t"]


Walk = Callable[[Any, Ends, Float[Tensor, " frames"]], Float[Tensor, "frames c h w"]]  # a tokenizer's, at shares 0 to 1


@torch.no_grad()
def measure(config: Config, run: Run) -> Report:
    """Smoothness is the mean SSIM of consecutive frames, `smoothness_min` that of the roughest step of all pairs, both of the
    pairs drawn by the seed; `smoothness_named` is that of the named pairs. The two at the top are those of `latent`."""
    tokenizer, device = run.tokenizer(), run.runtime.device
    walks, reasons = available(config, run, tokenizer)
    share = torch.linspace(0, 1, config.frames, device=device)
    pairs = [("named", *pair) for pair in named(config, run)] + [("drawn", *pair) for pair in drawn(config, run)]
    rows, blocks = [], []
    for origin, *places in pairs:
        ends = loaded(run, tokenizer, places)
        for mode, walk in walks.items():
            frames = images.to_pixels(walk(tokenizer, ends, share))
            steps = scores.ssim(frames[:-1], frames[1:])
            pair = {"mode": mode, "origin": origin, "first": ends.names[0], "last": ends.names[1]}
            rows.append({**pair, "smoothness": steps.mean(), "min": steps.min()})
            blocks.append(frames)
    table = pd.DataFrame(rows, columns=["mode", "origin", "first", "last", "smoothness", "min"])
    modes = pd.DataFrame([{"mode": mode, "why_not": reasons.get(mode, "")} for mode in dict.fromkeys(config.modes)])
    return Report(summary(table, reasons), {"pairs": table, "modes": modes},
                  {"frames": picture(table, blocks)} if blocks else {})  # fmt: skip


def summary(table: pd.DataFrame, reasons: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode, rows in table.groupby("mode", sort=False):
        own, others = rows[rows["origin"] == "drawn"], rows[rows["origin"] == "named"]
        found[str(mode)] = {"smoothness": own["smoothness"].mean(), "smoothness_min": own["min"].min()}
        found[str(mode)] |= {"smoothness_named": others["smoothness"].mean()} if len(others) else {}
    top = {name: found["latent"][name] for name in ("smoothness", "smoothness_min") if "latent" in found}
    return {**top, "modes": found | {mode: {"applies": 0} for mode in reasons}}


def drawn(config: Config, run: Run) -> Iterator[tuple[Place, Place]]:
    count, draws = len(run.images("test")), numpy_generator(run.params.seed, "interpolation", "pairs")
    for _ in range(config.pairs):
        first, last = draws.choice(count, size=2, replace=count < 2)
        yield ("test", int(first)), ("test", int(last))


def named(config: Config, run: Run) -> Iterator[tuple[Place, Place]]:
    """Those of the named pairs whose two images the data set has; it says which it has not."""
    tables = {split: run.table(split)["name"] for split in reversed(SPLITS)}  # of equal names the unseen one
    known: dict[str, Place] = {}
    for split, names in tables.items():
        for row, name in enumerate(names):
            known.setdefault(name, (split, row))
    for pair in config.named:
        first, last = pair.split("/")
        if first in known and last in known:
            yield known[first], known[last]
        else:
            print(f"extensions@interpolation: the data set has no pair {pair!r}", flush=True)


def loaded(run: Run, tokenizer: Any, places: list[Place]) -> Ends:
    tables = [run.table(split).iloc[row] for split, row in places]
    x = images.to_model(np.stack([run.images(split)[row] for split, row in places]), run.runtime.device)
    labels = [int(row["label"]) for row in tables] if run.label_names else []
    return Ends([row["name"] for row in tables], labels, tokenizer.latents(x), tokenizer.encode(x))


def available(config: Config, run: Run, tokenizer: Any) -> tuple[dict[str, Walk], dict[str, str]]:
    """The ways that this tokenizer has, and why it has not the others."""
    walks: dict[str, Walk] = {"index": index, "embedding": embedding, "latent": latent, "slerp": slerp}
    wanted, reasons = set(config.modes), {}
    if len(probe.levels(tokenizer)) > 1:
        walks["hierarchical"] = hierarchical
    elif "hierarchical" in wanted:
        reasons["hierarchical"] = "the tokenizer has one level of codes only"
    if "prior" in wanted:
        draws = generator(run.params.seed, "interpolation", "prior")
        walks["prior"] = partial(refined, prior=run.prior(), draws=draws, freedom=config.freedom)
    if "learned" in wanted:
        roads = training_roads(config, run, tokenizer)
        if roads.edges is not None:
            walks["learned"] = partial(learned, roads=roads)
        else:
            reasons["learned"] = "all training images have the same codes"
    for mode, reason in reasons.items():
        print(f"extensions@interpolation: {mode} does not apply: {reason}", flush=True)
    return {mode: walks[mode] for mode in dict.fromkeys(config.modes) if mode in walks}, reasons


class Roads(NamedTuple):
    """Training images `rows` as the points of a graph, one for each of their code maps; `place` finds further code maps."""

    pixels: UInt8[np.ndarray, "n h w c"]
    rows: Int[np.ndarray, " p"]
    points: Float[np.ndarray, "p d"]
    edges: csr_array | None
    place: Callable[[Int[np.ndarray, "m t"]], Float[np.ndarray, "m d"]]


def training_roads(config: Config, run: Run, tokenizer: Any) -> Roads:
    """Points are z_q in its principal directions, where distances are nearly those of all of z_q."""
    from sklearn.decomposition import PCA

    def flat(codes: Int[np.ndarray, "m t"]) -> Float[np.ndarray, "m f"]:
        parts = (torch.from_numpy(codes[where]).long() for where in images.batches(len(codes), BATCH))
        found = (tokenizer.vectors(part.to(run.runtime.device)) for part in parts)
        return np.concatenate([torch.cat([z.flatten(1) for z in levels], 1).cpu().numpy() for levels in found])

    pixels, codes = run.images("train"), run.codes("train")
    rows = images.evenly(len(codes), config.points)
    vectors, seed = flat(codes[rows]), derive(run.params.seed, "interpolation", "directions") % 2**32
    directions = PCA(min(DIRECTIONS, *vectors.shape), svd_solver="randomized", random_state=seed).fit(vectors)
    points, first = np.unique(directions.transform(vectors), axis=0, return_index=True)  # a graph has no equal points
    edges = None
    if len(points) > 1:
        edges, _ = graph.joined(points, graph.neighbour_graph(points, config.neighbours))
    return Roads(pixels, rows[first], points, edges, lambda codes: directions.transform(flat(codes)))


# the ways


def index(tokenizer: Any, ends: Ends, share: Tensor) -> Float[Tensor, "frames c h w"]:
    first, last = ends.codes.double()
    return tokenizer.decode(torch.lerp(first, last, share.double()[:, None]).round().long())


def embedding(tokenizer: Any, ends: Ends, share: Tensor) -> Float[Tensor, "frames c h w"]:
    return tokenizer.decode_vectors(blended(tokenizer.vectors(ends.codes), share))


def latent(tokenizer: Any, ends: Ends, share: Tensor) -> Float[Tensor, "frames c h w"]:
    return decoded(tokenizer, blended(ends.z, share))


def slerp(tokenizer: Any, ends: Ends, share: Tensor) -> Float[Tensor, "frames c h w"]:
    return decoded(tokenizer, tuple(spherical(*z.split(1), share[:, None, None, None]) for z in ends.z))


def hierarchical(tokenizer: Any, ends: Ends, share: Tensor) -> Float[Tensor, "frames c h w"]:
    """Of L levels the l-th moves while the share goes from l / L to (l + 1) / L; coarse ones have arrived before finer start."""
    levels = len(ends.z)
    own = [(share * levels - level).clamp(0, 1) for level in range(levels)]
    return decoded(tokenizer, tuple(blended((z,), part)[0] for z, part in zip(ends.z, own, strict=True)))


def refined(
    tokenizer: Any, ends: Ends, share: Tensor, *, prior: Any, draws: Generator, freedom: float
) -> Float[Tensor, "frames c h w"]:
    """One code after another, each the one of greatest log p(code | those before) - cost, see `costs`. A prior that has no
    such order draws instead, given all the rest, the codes of `latent` that neither image has at their place."""
    labels = None
    if prior.classes:  # that of the nearer image
        labels = torch.tensor(ends.labels, device=share.device)[(share > 0.5).long()]
    if not prior.exact:
        codes = flatten_levels([level.codes for level in tokenizer.quantize(blended(ends.z, share))])
        kept = (codes == ends.codes[0]) | (codes == ends.codes[1])
        return tokenizer.decode(prior.sample(len(codes), draws, labels=labels, known=codes, known_mask=kept))
    parts = zip(tokenizer.codebooks, unflatten(ends.codes, tokenizer.grids), strict=True)
    cost = [costs(book, part.flatten(1), share, freedom) for book, part in parts]
    codes = ends.codes[:1].repeat(len(share), 1)
    walk, order = prior.steps(len(share), labels), list(prior.order)
    logits = next(walk)
    for step, t in enumerate(order):
        grid, place = whereabouts(t, tokenizer.grids)
        # a code that the prior holds impossible stays possible where it is the only one without cost
        codes[:, t] = (logits.double().clamp(min=-1e6) - cost[grid][:, place]).argmax(1)
        if step + 1 < len(order):
            logits = walk.send(codes[:, t])
    walk.close()
    return tokenizer.decode(codes)


def costs(
    book: Float[Tensor, "k d"], ends: Int[Tensor, "2 places"], share: Tensor, freedom: float
) -> Float[Tensor, "frames places k"]:
    """|v - e|^2 / 2 s^2 of each code vector e: v is the blend of the ends' code vectors, and s its distance from the nearer of
    the two, times `freedom`. Where the ends agree, and at the ends themselves, no other code is possible."""
    first, last = book.detach().double()[ends]
    part = share.double()[:, None, None]
    squares = torch.cdist(torch.lerp(first, last, part), book.detach().double(), compute_mode=EXACT).square()
    variance = (freedom * torch.minimum(part, 1 - part) * (last - first).norm(dim=1, keepdim=True)).square()
    return torch.where(squares == 0, 0.0, squares / (2 * variance))


def learned(tokenizer: Any, ends: Ends, share: Tensor, *, roads: Roads) -> Float[Tensor, "frames c h w"]:
    """From the first image to the nearest training image, along the graph to the one nearest to the last, to the last; on
    each stretch z is blended, at constant speed over the whole of it."""
    first, last = neighbours.nearest(roads.place(ends.codes.cpu().numpy()), roads.points)[0]
    visited = shortest(roads.edges, first, last)
    between = tokenizer.latents(images.to_model(roads.pixels[roads.rows[visited]], share.device))
    stops = [torch.cat([z[:1], middle, z[1:]]) for z, middle in zip(ends.z, between, strict=True)]
    stretch = sum(z.diff(dim=0).double().square().flatten(1).sum(1) for z in stops).sqrt()
    way = torch.cat([stretch.new_zeros(1), stretch.cumsum(0)])
    reached = share.double() * way[-1]
    start = (torch.searchsorted(way, reached, right=True) - 1).clamp(0, len(stretch) - 1)
    part = ((reached - way[start]) / stretch[start].clamp(min=1e-12)).clamp(0, 1).float()[:, None, None, None]
    return decoded(tokenizer, tuple(torch.lerp(z[start], z[start + 1], part) for z in stops))


def shortest(edges: csr_array, first: int, last: int) -> list[int]:
    """The points on the shortest path of a connected graph, both ends included."""
    from scipy.sparse.csgraph import dijkstra

    before = dijkstra(edges, indices=first, return_predecessors=True)[1]
    path = [int(last)]
    while path[-1] != first:
        path.append(int(before[path[-1]]))
    return path[::-1]


def decoded(tokenizer: Any, z: tuple[Tensor, ...]) -> Float[Tensor, "frames c h w"]:
    return tokenizer.decode_vectors(tuple(level.z_q for level in tokenizer.quantize(z)))


def blended(pairs: tuple[Float[Tensor, "2 d h w"], ...], share: Tensor) -> tuple[Float[Tensor, "frames d h w"], ...]:
    """(1 - a) z_1 + a z_2 for each share a, level by level; exact at 0 and 1."""
    return tuple(torch.lerp(pair[:1], pair[1:], share[:, None, None, None]) for pair in pairs)


def spherical(
    first: Float[Tensor, "1 d h w"], last: Float[Tensor, "1 d h w"], share: Float[Tensor, "frames 1 1 1"]
) -> Float[Tensor, "frames d h w"]:
    """At each place the direction turns at constant speed along the great circle (Shoemake 1985), the length changes
    linearly. Where there is no one great circle, between equal or opposite directions or at zero, the straight line."""
    a, b, share = first.double(), last.double(), share.double()
    sizes = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    u, v = (z / size.clamp(min=1e-30) for z, size in zip((a, b), sizes, strict=True))
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    straight = (angle.sin() < 1e-6) | (sizes[0] == 0) | (sizes[1] == 0)
    turned = (((1 - share) * angle).sin() * u + (share * angle).sin() * v) / angle.sin().clamp(min=1e-6)
    return torch.where(straight, torch.lerp(a, b, share), turned * torch.lerp(*sizes, share)).to(first.dtype)


def picture(table: pd.DataFrame, strips: list[UInt8[np.ndarray, "frames h w c"]]) -> Figure:
    """A block for each pair, two beside each other, with a row for each mode. Places are in pixels, of which a sheet keeps its
    own: resampled, the file would be three times as large."""
    from matplotlib.figure import Figure

    modes, dpi = list(table["mode"].unique()), 110
    starts = range(0, len(table), len(modes))
    sheets = [pictures.sheet(np.concatenate(strips[at : at + len(modes)]), len(strips[0])) for at in starts]
    height, width, _ = sheets[0].shape
    columns, rows, left, top = min(2, len(sheets)), -(-len(sheets) // 2), 100, 30
    whole = np.array([columns * (left + width), rows * (top + height)])
    figure = Figure(figsize=whole / dpi, dpi=dpi)
    for number, (sheet, at) in enumerate(zip(sheets, starts, strict=True)):
        row, column = divmod(number, columns)
        corner = np.array([column * (left + width) + left, (rows - 1 - row) * (top + height)])
        axis = figure.add_axes((*(corner / whole), *([width, height] / whole)), frame_on=False)
        shown = sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
        axis.set_yticks((np.arange(len(modes)) + 0.5) * height / len(modes), modes, fontsize=8)
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.set_title(f"{table['first'][at]} to {table['last'][at]}", fontsize=9)
    return figure
