"""Style transfer: one image's content in another image's style, without training.

`adain` gives the content's z the channel statistics of the style's z (Huang & Belongie 2017, arXiv 1703.06868, eq. 8), then
quantizes. `palette` replaces each code of the content by the nearest code that the style image uses. `hierarchy` takes the
coarse codes of one image and the finer codes of the other; the tokenizer determines which of the two levels holds content.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from tessera import scores, statistics
from tessera.core.contracts import Report, Tokenizer
from tessera.core.params import Strict
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.features import neighbours
from tessera.images import arrays, pictures
from tessera.levels import levels_of

Name = Literal["adain", "palette", "hierarchy"]
MEASURES = ["edges", "edges_unrelated", "colours_before", "colours_after", "codes_before", "codes_after"]
BINS = 4  # per colour channel
EPSILON = 1e-5  # added to variances, as in the authors' code


class Config(Strict):
    contents: int = Field(ge=1, description="test images whose content is kept, sampled by the seed", examples=[2])
    styles: int = Field(ge=1, description="test images whose style is taken, sampled by the seed", examples=[2])
    methods: list[Name] = Field(
        min_length=1, description="methods of transfer", examples=[["adain", "palette", "hierarchy"]]
    )
    coarse: Literal["content", "style"] = Field(
        description="of hierarchy: the image with the coarse codes; the other has the finer ones", examples=["content"]
    )


class Images(NamedTuple):
    """Latents and codes of images."""

    z: tuple[Float[Tensor, "n d h w"], ...]
    codes: Int[Tensor, "n t"]

    def only(self, index: int) -> Images:
        return Images(tuple(z[index : index + 1] for z in self.z), self.codes[index : index + 1])


Method = Callable[[Tokenizer, Images, Images], Int[Tensor, "1 t"]]  # tokenizer, content, style -> codes


@torch.no_grad()
def measure(config: Config, run: Run) -> Report:
    """All metrics compare with reconstructions, so that the reconstruction error does not count. `edges`: SSIM (uniform windows
    of 7x7) between the edges of result and content; 1 if the content is kept. `edges_unrelated`: the same with the style image
    as the result, the value if nothing is kept. `colours_after` and `codes_after`: total variation distance, 0 to 1, between the
    histograms of result and style (for codes the mean over grids); `_before`: the same with the content as the result."""
    tokenizer, pixels, names = run.tokenizer(), run.images("test"), run.table("test")["name"]
    chosen = sampled(run, config.contents + config.styles)
    x = arrays.to_model(pixels[chosen], run.runtime.device)
    seen = Images(tokenizer.latents(x), tokenizer.encode(x))
    plain = arrays.to_pixels(tokenizer.decode(seen.codes))
    methods, reasons = available(config, tokenizer)
    rows = []
    results: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for pair in itertools.product(range(config.contents), range(config.contents, len(chosen))):
        titles = dict(zip(("content", "style"), names[chosen[list(pair)]], strict=True))
        for name, method in methods.items():
            codes = method(tokenizer, *map(seen.only, pair))
            results[name].append(arrays.to_pixels(tokenizer.decode(codes))[0])
            own, folded = np.stack([results[name][-1], *plain[list(pair)]]), torch.cat([codes, seen.codes[list(pair)]])
            rows.append({"method": name, **titles, **judged(own, folded.cpu().numpy(), tokenizer)})
    sheets = {name: picture(plain[: config.contents], plain[config.contents :], own) for name, own in results.items()}
    table = pd.DataFrame(rows, columns=["method", "content", "style", *MEASURES])
    means = {name: table[table["method"] == name][MEASURES].mean().to_dict() for name in methods}
    ways = pd.DataFrame([{"method": name, "why_not": reasons.get(name, "")} for name in dict.fromkeys(config.methods)])
    return Report(means | {name: {"applies": 0} for name in reasons}, {"pairs": table, "methods": ways}, sheets)


def sampled(run: Run, count: int) -> Int[np.ndarray, " c"]:
    """Test images sampled by the seed, from as many different families as possible, since the tone variants of an emoji have
    the same content. If there are fewer images than `count`, they repeat."""
    order = numpy_generator(run.params.seed, "style_transfer").permutation(len(run.images("test")))
    again = run.table("test")["family"].iloc[order].duplicated().to_numpy()
    return np.resize(np.concatenate([order[~again], order[again]]), count)


def available(config: Config, tokenizer: Tokenizer) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that apply to this tokenizer, and the reasons why others do not."""
    levels, reasons = tokenizer.space.placed(levels_of(tokenizer)), {}
    if all(level.height * level.width == 1 for level in levels):
        reasons["adain"] = "one code per image has no statistics over places"
    if len(levels) == 1:
        reasons["hierarchy"] = "the tokenizer decodes one level of codes only"
    reasons = {name: reasons[name] for name in config.methods if name in reasons}
    for name, reason in reasons.items():
        print(f"extensions@style_transfer: {name} does not apply: {reason}", flush=True)
    found: dict[str, Method] = {name: METHODS[name] for name in dict.fromkeys(config.methods) if name not in reasons}
    if "hierarchy" in found and config.coarse == "style":
        found["hierarchy"] = lambda tokenizer, content, style: hierarchy(tokenizer, style, content)
    return found, reasons


# the methods


def adain(tokenizer: Tokenizer, content: Images, style: Images) -> Int[Tensor, "1 t"]:
    levels = tokenizer.quantize(tuple(map(restyled, content.z, style.z)))
    return tokenizer.space.join(level.codes for level in levels)


def restyled(content: Float[Tensor, "1 d h w"], style: Float[Tensor, "1 d h w"]) -> Float[Tensor, "1 d h w"]:
    """sigma(y) (x - mu(x)) / sigma(x) + mu(y), where mu and sigma of each channel are over the places."""
    (variance, mean), (wanted, towards) = (
        torch.var_mean(z, dim=(2, 3), correction=0, keepdim=True) for z in (content, style)
    )
    return (content - mean) * ((wanted + EPSILON) / (variance + EPSILON)).sqrt() + towards


def palette(tokenizer: Tokenizer, content: Images, style: Images) -> Int[Tensor, "1 t"]:
    """Replaces each code of the content by the code with the nearest code vector among those that the style uses in the same
    grid. It compares code vectors, not z, since quantizers transform z differently before they choose."""
    parts = []
    grids = (tokenizer.space.split(image.codes) for image in (content, style))
    for own, other, book in zip(*grids, tokenizer.codebooks, strict=True):
        allowed, vectors = other.unique(), book.detach().float().cpu().numpy()
        rows, _ = neighbours.nearest(vectors[own.flatten().cpu().numpy()], vectors[allowed.cpu().numpy()])
        parts.append(allowed[torch.from_numpy(rows).to(allowed.device)].view_as(own))
    return tokenizer.space.join(parts)


def hierarchy(tokenizer: Tokenizer, coarse: Images, fine: Images) -> Int[Tensor, "1 t"]:
    first = levels_of(tokenizer)[0].depth  # grids of the first level
    space = tokenizer.space
    return space.join(space.split(coarse.codes)[:first] + space.split(fine.codes)[first:])


METHODS: dict[str, Method] = {"adain": adain, "palette": palette, "hierarchy": hierarchy}


# metrics


def judged(
    pixels: UInt8[np.ndarray, "3 h w c"], codes: Int[np.ndarray, "3 t"], tokenizer: Tokenizer
) -> dict[str, float]:
    """The values of `MEASURES` for a result, its content and its style."""
    sides, colours = edges(pixels), [colour_histogram(image) for image in pixels]
    kept, unrelated = scores.ssim(sides[[0, 2]], sides[[1, 1]])
    folded = zip(tokenizer.space.split(codes), tokenizer.space.sizes, strict=True)
    fractions = [[statistics.frequencies(image, size) for image in grid] for grid, size in folded]
    found = {"edges": kept, "edges_unrelated": unrelated}
    for which, name in enumerate(("after", "before")):
        found[f"colours_{name}"] = total_variation(colours[which], colours[2])
        found[f"codes_{name}"] = float(np.mean([total_variation(grid[which], grid[2]) for grid in fractions]))
    return found


def edges(pixels: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 1"]:
    """Edge strength of the mean over channels, by the Sobel filter; 255 is an edge from black to white."""
    from skimage.filters import sobel

    strength = [sobel(image.mean(2) / 255) for image in pixels]
    return np.rint(255 * np.clip(strength, 0, 1)).astype(np.uint8)[..., None]


def colour_histogram(image: UInt8[np.ndarray, "h w c"]) -> Float[np.ndarray, " b"]:
    """Fraction of the pixels in each of BINS ** C bins of colour."""
    bins = (image.reshape(-1, image.shape[-1]).astype(np.int64) * BINS) // 256
    return statistics.frequencies(bins @ BINS ** np.arange(image.shape[-1]), BINS ** image.shape[-1])


def total_variation(p: Float[np.ndarray, " k"], q: Float[np.ndarray, " k"]) -> float:
    """Half of sum |p - q|: 0 for equal histograms, 1 for disjoint ones."""
    return float(np.abs(p - q).sum() / 2)


def picture(
    contents: UInt8[np.ndarray, "a h w c"],
    styles: UInt8[np.ndarray, "b h w c"],
    results: list[UInt8[np.ndarray, "h w c"]],
) -> UInt8[np.ndarray, "height width c"]:
    """A sheet of images: contents at the left, styles on top."""
    rows = [np.full_like(styles[:1], 255), styles]
    for row, content in enumerate(contents):
        rows += [content[None], np.stack(results[row * len(styles) : (row + 1) * len(styles)])]
    return pictures.sheet(np.concatenate(rows), columns=1 + len(styles))
