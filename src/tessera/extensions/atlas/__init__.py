"""The codebook as pictures: each code all over a grid, as a single code, and in its most frequent context."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera import scores, statistics
from tessera.core.contracts import Grid, Report, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.images import arrays, pictures


class Config(Strict):
    order: Literal["use", "direction"] = Field(
        description="order of codes: by frequency, or along the principal direction of their code vectors",
        examples=["use"],
    )
    codes: int = Field(ge=1, description="codes shown per grid, the most used", examples=[8])
    count: int = Field(ge=1, description="training images in which codes are counted, at most", examples=[12])
    contexts: int = Field(ge=1, description="most of these images, whose mean surrounds a single code", examples=[4])
    batch_size: int = Field(ge=1, description="images per forward pass", examples=[16])


class Page(NamedTuple):
    """One grid of a tokenizer, and the codes [m,T] of images whose mean surrounds a single code."""

    tokenizer: Tokenizer
    grid: int
    context: Int[Tensor, "m t"]
    batch_size: int

    @property
    def shape(self) -> Grid:
        return self.tokenizer.space.grids[self.grid]


class Windows(NamedTuple):
    """The most frequent context of each code, that is the codes left, right, above and below. `fraction`: fraction of the
    code's occurrences in this context; `place`: image, row and column of the first of them. Both are 0 for an unused code."""

    fraction: Float[np.ndarray, " k"]
    place: Int[np.ndarray, "k 3"]


@torch.no_grad()
def measure(config: Config, run: Run) -> Report:
    """Each grid has three pictures. `whole`: the whole grid has one code. `single`: one code in the mean of training images.
    `context`: the code in a training image with its most frequent neighbours (white if the code is unused). In `whole` and
    `single` the other grids are the mean of training images. `single` and `context` are cropped to the code's surroundings.

    A grid of global codes, which are not decoded, has none of them: it does not apply there.

    Metrics are means over the shown codes that are used. `context_fraction`: fraction of a code's occurrences in its most
    frequent context. `context_rmse`: RMSE in grey levels at the code's own place between that context and `whole`; 0 if the
    code looks the same in both. `spill`: fraction of the change from a single code that lies outside its own place.
    """
    tokenizer, codes = run.tokenizer(), run.codes("train")
    codes = np.asarray(codes[arrays.evenly(len(codes), config.count)]).astype(np.int64)
    context = torch.from_numpy(codes[arrays.evenly(len(codes), config.contexts)]).to(run.runtime.device)
    metrics: dict[str, dict[str, float]] = {}
    tables = []
    sheets: dict[str, np.ndarray] = {}
    for grid, own in enumerate(tokenizer.space.split(codes)):
        if grid < tokenizer.space.global_grids:
            metrics[f"grid_{grid}"] = {"applies": 0}
            continue
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
    """The `count` most used codes, by use (on a tie the lower code first) or along the principal direction of their vectors."""
    shown = np.argsort(-fraction, kind="stable")[:count]
    if order == "use":
        return shown
    centred = book[shown] - book[shown].mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    direction *= np.sign(direction[np.abs(direction).argmax()])  # fixes the sign, which is arbitrary
    return shown[np.argsort(centred @ direction, kind="stable")]


def entries(
    page: Page, shown: Int[np.ndarray, " c"], codes: Int[np.ndarray, "n t"]
) -> tuple[dict[str, UInt8[np.ndarray, "c h w 3"]], pd.DataFrame]:
    """The cells of the three pictures, and the table with a row per code."""
    height, width = page.shape
    reach = int(min(page.shape) > 2)  # smaller grids have no surroundings: crop to the place itself
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
    """The most frequent context of each code; on a tie the one that occurs first. Beyond the edge the neighbour is -1."""
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
    """Decodes each code all over the grid or only at its centre; all else is the mean of z_q over the context."""
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
    """Decodes the means of z_q over each of `count` consecutive groups."""
    return arrays.to_pixels(page.tokenizer.decode_vectors(tuple(z.unflatten(0, (count, -1)).mean(1) for z in levels)))


def decoded(page: Page, codes: Int[np.ndarray, "n t"]) -> UInt8[np.ndarray, "n h w 3"]:
    return arrays.decoded(page.tokenizer, codes, page.batch_size, page.context.device)


def cut(
    pixels: UInt8[np.ndarray, "n h w c"], grid: Grid, place: Int[np.ndarray, "n 2"], reach: int
) -> UInt8[np.ndarray, "n a b c"]:
    """Crops each image to the pixels of the code at `place` and of `reach` neighbours each way; beyond the edge is white."""
    high, wide = pixels.shape[1] // grid[0], pixels.shape[2] // grid[1]  # pixels per code
    edges = ((0, 0), (reach * high,) * 2, (reach * wide,) * 2, (0, 0))
    padded, side = np.pad(pixels, edges, constant_values=255), 2 * reach + 1
    starts = zip(padded, place * [high, wide], strict=True)
    return np.stack([image[top : top + side * high, left : left + side * wide] for image, (top, left) in starts])


def spill(
    single: UInt8[np.ndarray, "n h w c"], mean: UInt8[np.ndarray, "1 h w c"], grid: Grid, place: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
    """Fraction, 0 to 1, of the squared change from the mean that lies outside the code's own place; 0 without any change."""
    change = np.square(single.astype(np.float64) - mean)
    total, inside = change.sum((1, 2, 3)), cut(change, grid, place, 0).sum((1, 2, 3))
    return np.divide(total - inside, total, out=np.zeros_like(total), where=total > 0)
