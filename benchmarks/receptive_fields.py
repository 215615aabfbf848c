"""What a code is predicted from, by either PixelCNN, measured: `python -m benchmarks.receptive_fields`.

Draws docs/results/receptive-fields.png and prints how many earlier positions are seen. A position is seen where the
gradient of the centre's logits on its embedded code is not zero; it lies in the blind spot where it is not even seen
through as many layers as it takes to cross the whole grid. A masked network has its first layer besides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from tessera.core import files
from tessera.priors.gated_pixelcnn import GatedNetwork
from tessera.priors.pixelcnn import MaskedNetwork

PATH = Path("docs/results/receptive-fields.png")
SIDE, DEPTHS, KERNEL, FIRST = 15, (1, 3, 6), 3, 7  # codes; layers; kernel sizes of params.yaml
CHANNELS, IMAGES = 8, 4  # enough of both that no path is closed by ReLUs everywhere
Logits = Callable[[Tensor, Tensor], Tensor]  # of embedded codes [b,c,h,w] and the condition: [b, h * w, K]


def gated(layers: int, kernel_size: int = KERNEL) -> Logits:
    return GatedNetwork(2, CHANNELS, layers, kernel_size).double().from_embedded


def masked(layers: int, kernel_size: int = KERNEL, first_kernel_size: int = FIRST) -> Logits:
    network = MaskedNetwork((2,), CHANNELS, layers, first_kernel_size, kernel_size).double()
    return lambda embedded, condition: network.from_embedded(embedded, condition)[0]


ARCHITECTURES = {
    f"masked, first kernel {KERNEL} x {KERNEL}": lambda layers: masked(layers, first_kernel_size=KERNEL),
    f"masked, first kernel {FIRST} x {FIRST}": masked,
    "gated": gated,
}


def seen(logits: Logits, height: int, width: int, y: int, x: int) -> Bool[np.ndarray, "h w"]:
    """Positions whose embedded codes the logits at (y, x) depend on, of random weights and inputs."""
    embedded: Float[Tensor, "b c h w"] = torch.randn(
        IMAGES, CHANNELS, height, width, dtype=torch.float64, requires_grad=True
    )
    centre = logits(embedded, torch.randn_like(embedded))[:, y * width + x]
    (gradient,) = torch.autograd.grad((centre * torch.randn_like(centre)).sum(), embedded)
    return (gradient != 0).any(1).any(0).numpy()


def plot(axis: Axes, field: Bool[np.ndarray, "h w"], blind: Bool[np.ndarray, "h w"], name: str) -> None:
    """0: not predicted from, 1: further layers see it, 2: the blind spot, 3: seen."""
    earlier = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) < SIDE * SIDE // 2
    kinds = np.where(field, 3, np.where(blind, 2, earlier))
    axis.pcolormesh(kinds, cmap=ListedColormap(COLOURS), vmin=0, vmax=3, edgecolors="white", linewidth=0.8)
    axis.add_patch(Rectangle((SIDE // 2, SIDE // 2), 1, 1, facecolor=CENTRE, edgecolor="white", linewidth=0.8))
    axis.set(aspect="equal", xticks=[], yticks=[], ylim=(SIDE // 2 + 4, 0))  # three rows of the future are enough
    axis.set_title(name, fontsize=9)
    axis.spines[:].set_visible(False)


COLOURS, CENTRE = ("#f2f2f2", "#c9d6e4", "#e07b39", "#2f6aa8"), "#1a1a1a"
MEANINGS = ("later", "earlier, seen through more layers", "earlier, never seen: blind spot", "seen")


def picture() -> Figure:
    """One row per architecture, one column per depth; prints the counts."""
    figure = Figure(figsize=(7.6, 6.9), layout="constrained")
    figure.suptitle(f"What the marked code is predicted from: {KERNEL} x {KERNEL} kernels on {SIDE} x {SIDE} codes")
    panels, centre = figure.subplots(len(ARCHITECTURES), len(DEPTHS)), SIDE // 2
    for row, (name, build) in zip(panels, ARCHITECTURES.items(), strict=True):
        blind = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) < SIDE * SIDE // 2
        blind &= ~seen(build(SIDE), SIDE, SIDE, centre, centre)
        for axis, layers in zip(row, DEPTHS, strict=True):
            field = seen(build(layers), SIDE, SIDE, centre, centre)
            count = f"{field.sum()} of {SIDE * SIDE // 2} seen"
            plot(axis, field, blind, f"{layers} layer{'s' * (layers > 1)}: {count}")
            print(f"{name}, layers {layers}: {count}, {blind.sum()} in the blind spot")
        row[0].set_ylabel(name)
    colours = [(CENTRE, "the code"), *zip(COLOURS[::-1], MEANINGS[::-1], strict=True)]
    handles = [Patch(facecolor=colour, label=meaning) for colour, meaning in colours]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.receptive_fields",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    torch.manual_seed(0)
    files.write_picture(PATH, picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
