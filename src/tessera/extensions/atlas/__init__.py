"""The codebook as pictures: what each code looks like all over a grid, as the only one of its kind, and where it occurs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera import scores
from tessera.codes import statistics
from tessera.core.contracts import Grid, Report, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.images import arrays, pictures


class Config(Strict):
    order: Literal["use", "direction"] = Field(
        description="codes by how often they occur, or along the principal direction of their vectors", examples=["use"]
    )
    codes: int = Field(ge=1, description="codes shown of a grid, the most used", examples=[8])
    count: int = Field(ge=1, description="training images in which codes are counted, at most", examples=[12])
    contexts: int = Field(ge=1, description="of these, at most, the mean surrounds a single code", examples=[4])
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[16])


class Page(NamedTuple):
    """One grid of a tokenizer, and the code maps [m,T] whose mean surrounds a single code."""

    tokenizer: Tokenizer
    grid: int
    context: Int[Tensor, "m t"]
    batch_size: int

    @property
    def shape(self) -> Grid:
        return self.tokenizer.space.grids[self.grid]


class Windows(NamedTuple):
    """Of each code its most frequent context: the codes left, right, above and below. `fraction`: of the code's occurrences;
    `place`: image, row and column of the first of them. Of a code that never occurs both are 0."""

    fraction: Float[np.ndarray, " k"]
    place: Int[np.ndarray, "k 3"]


@torch.no_grad()
def measure(config: Config, run: Run) -> Report:
    """Each grid has three pictures: `whole`, all of it one code; `single`, one code amid the mean of training images;
    `context`, the code amid the neighbours that it has most often, as decoded there (white: it never occurs). In `whole`
    and `single` the other grids are the mean of training images too; of `single` and `context` the surroundings are cut out.

    Means over the shown codes that occur: `context_fraction`, of a code's occurrences those in its most frequent context;
    `context_rmse`, in grey levels, how much a code's own place differs between there and `whole`: 0 where a code always
    looks alike; `spill`, of the change that a single code makes the fraction outside its own place.
    """
    tokenizer, codes = run.tokenizer(), run.codes("train")
    codes = np.asarray(codes[arrays.evenly(len(codes), config.count)]).astype(np.int64)
    context = torch.from_numpy(codes[arrays.evenly(len(codes), config.contexts)]).to(run.runtime.device)
    metrics, tables = {}, []
    sheets: dict[str, np.ndarray] = {}
    for grid, own in enumerate(tokenizer.space.split(codes)):
        book = tokenizer.codebooks[grid].float().cpu().numpy()
        fraction = statistics.frequencies(own, len(book))
        shown = ordered(book, fraction, config.codes, config.order)
        cells, table = entries(Page(tokenizer, grid, context, config.batch_size), shown, codes)
        table.insert(0, "fraction", fraction[shown])
        used, names = table[table["fraction"] > 0], ("context_fraction", "context_rmse", "spill")
        metrics[f"grid_{grid}"] = {
            "shown": len(shown),
            "used": len(used),
            **{name: used[name].mean() for name in names},
        }
        tables.append(table.assign(code=shown, grid=grid))
        columns = int(np.ceil(np.sqrt(len(shown))))
        sheets |= {f"grid_{grid}_{name}": pictures.sheet(own, columns) for name, own in cells.items()}
    return Report(metrics, {"codes": pd.concat(tables)}, sheets)


def ordered(
    book: Float[np.ndarray, "k d"], fraction: Float[np.ndarray, " k"], count: int, order: str
) -> Int[np.ndarray, " c"]:
    """The `count` most used codes, by use, of equals the lower first; or along the principal direction of their vectors."""
    shown = np.argsort(-fraction, kind="stable")[:count]
    if order == "use":
        return shown
    centred = book[shown] - book[shown].mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    direction *= np.sign(direction[np.abs(direction).argmax()])  # either sign would do, but the same each time
    return shown[np.argsort(centred @ direction, kind="stable")]


def entries(
    page: Page, shown: Int[np.ndarray, " c"], codes: Int[np.ndarray, "n t"]
) -> tuple[dict[str, UInt8[np.ndarray, "c h w 3"]], pd.DataFrame]:
    """The cells of the pictures, and a row of the table, of each code."""
    height, width = page.shape
    reach = int(min(page.shape) > 2)  # of smaller grids the place itself is all there is to cut out
    centre = np.tile([height // 2, width // 2], (len(shown), 1))
    windows = frequent(page.tokenizer.space.split(codes)[page.grid], page.tokenizer.space.sizes[page.grid])
    place, occurs = windows.place[shown], windows.fraction[shown] > 0
    whole, single = filled(page, shown, everywhere=True), filled(page, shown, everywhere=False)
    there = decoded(page, codes[place[:, 0]])
    own = scores.mse(cut(there, page.shape, place[:, 1:], 0), cut(whole, page.shape, place[:, 1:], 0))
    context = cut(there, page.shape, place[:, 1:], reach)
    context[~occurs] = 255
    table = pd.DataFrame({
        "context_fraction": windows.fraction[shown],
        "context_rmse": np.where(occurs, 255 * np.sqrt(own), 0.0),
        "spill": spill(single, mean(page), page.shape, centre),
    })  # fmt: skip
    return {"whole": whole, "single": cut(single, page.shape, centre, reach), "context": context}, table


def frequent(grid: Int[np.ndarray, "n h w"], k: int) -> Windows:
    """Of contexts that are equally frequent the one that occurs first; beyond the edge is a neighbour of its own."""
    n, h, w = grid.shape
    wide = np.pad(grid, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    around = wide[:, 1:-1, :-2], wide[:, 1:-1, 2:], wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]
    found, first, counts = np.unique(
        np.stack([grid, *around], -1).reshape(-1, 5), axis=0, return_index=True, return_counts=True
    )
    code = found[:, 0]
    order = np.lexsort((first, -counts, code))
    codes, at = np.unique(code[order], return_index=True)
    best = order[at]
    fraction, place = np.zeros(k), np.zeros((k, 3), np.int64)
    fraction[codes] = counts[best] / np.bincount(code, weights=counts)[codes]
    place[codes] = np.stack(np.unravel_index(first[best], (n, h, w)), 1)
    return Windows(fraction, place)


def filled(page: Page, shown: Int[np.ndarray, " c"], everywhere: bool) -> UInt8[np.ndarray, "c h w 3"]:
    """Each code all over the grid or at its centre, everything else the mean of z_q over the context."""
    height, width = page.shape
    where = torch.full((height, width), everywhere)
    where[height // 2, width // 2] = True
    m, found = len(page.context), []
    for batch in arrays.batches(len(shown), max(1, page.batch_size // m)):
        count = len(shown[batch])
        parts = [part.clone() for part in page.tokenizer.space.split(page.context.repeat(count, 1))]
        of_each = torch.from_numpy(shown[batch]).to(page.context.device).repeat_interleave(m)
        parts[page.grid][:, where] = of_each[:, None]
        levels = page.tokenizer.vectors(page.tokenizer.space.join(parts))
        found.append(mean_decoded(page, levels, count))
    return np.concatenate(found)


def mean(page: Page) -> UInt8[np.ndarray, "1 h w 3"]:
    return mean_decoded(page, page.tokenizer.vectors(page.context), 1)


def mean_decoded(page: Page, levels: tuple[Float[Tensor, "n d h w"], ...], count: int) -> UInt8[np.ndarray, "c h w 3"]:
    """Of `count` stacks of z_q as high as the context the mean of each, decoded."""
    return arrays.to_pixels(page.tokenizer.decode_vectors(tuple(z.unflatten(0, (count, -1)).mean(1) for z in levels)))


def decoded(page: Page, codes: Int[np.ndarray, "n t"]) -> UInt8[np.ndarray, "n h w 3"]:
    return arrays.decoded(page.tokenizer, codes, page.batch_size, page.context.device)


def cut(
    pixels: UInt8[np.ndarray, "n h w c"], grid: Grid, place: Int[np.ndarray, "n 2"], reach: int
) -> UInt8[np.ndarray, "n a b c"]:
    """Of each image what belongs to the code at its place, and to `reach` neighbours each way; beyond the edge is white."""
    high, wide = pixels.shape[1] // grid[0], pixels.shape[2] // grid[1]  # pixels of a code
    edges = ((0, 0), (reach * high,) * 2, (reach * wide,) * 2, (0, 0))
    padded, side = np.pad(pixels, edges, constant_values=255), 2 * reach + 1
    starts = zip(padded, place * [high, wide], strict=True)
    return np.stack([image[top : top + side * high, left : left + side * wide] for image, (top, left) in starts])


def spill(
    single: UInt8[np.ndarray, "n h w c"], mean: UInt8[np.ndarray, "1 h w c"], grid: Grid, place: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
    """Of the squared change against the mean the fraction outside the code's own place, 0 to 1; 0 where nothing changes."""
    change = np.square(single.astype(np.float64) - mean)
    total, inside = change.sum((1, 2, 3)), cut(change, grid, place, 0).sum((1, 2, 3))
    return np.divide(total - inside, total, out=np.zeros_like(total), where=total > 0)
