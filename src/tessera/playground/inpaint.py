"""Tab Inpaint: what the methods of the extension `inpainting` put under a mask that a person has drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from tessera.core.contracts import Prior
from tessera.core.errors import InputError
from tessera.extensions import inpainting
from tessera.extensions.inpainting import masks
from tessera.playground import cells
from tessera.playground.workspace import Picture, Workspace

ORDER = ("raster", "gibbs", "masked", "autoencoder", "biharmonic")
MOST = 8  # fill-ins of each method
UPDATES = 12  # most visits of gibbs to hidden codes, unless more are asked for: each takes a forward pass
MOST_UPDATES = 256
COVERED = 0.25  # of a pixel of the image that must be painted over for it to be hidden
SIDE = 160


class Filled(NamedTuple):
    """Fill-ins by method [S,H,W,C], where S is 1 of methods that do not sample; and why other methods are left out."""

    found: dict[str, UInt8[np.ndarray, "s h w c"]]
    reasons: dict[str, str]


def hidden(alpha: UInt8[np.ndarray, "y x"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask in pixels of the image, from the opacity of what was painted over its enlargement."""
    painted = Image.fromarray(np.where(alpha > 0, 255, 0).astype(np.uint8))
    return np.asarray(painted.resize((width, height), Image.Resampling.BOX)) > COVERED * 255


def filled(
    space: Workspace, picture: Picture, mask: Bool[np.ndarray, "h w"], samples: int, seed: int, updates: int = UPDATES
) -> Iterator[Filled]:
    """What the methods fill in: first that of the quick ones, then that of all. `updates`: visits of
    gibbs, at most.

    Raises:
        InputError: nothing is hidden, or everything; or params.yaml has no values for the methods.
    """
    if not mask.any() or mask.all():
        raise InputError("nothing is painted over: paint over a part first" if not mask.any() else
                         "all is painted over, and nothing is left to go by: leave a part")  # fmt: skip
    if not 1 <= samples <= MOST:
        raise InputError(f"between 1 and {MOST} fill-ins can be drawn, got {samples}")
    if not 1 <= updates <= MOST_UPDATES:
        raise InputError(f"gibbs can visit hidden codes between 1 and {MOST_UPDATES} times, got {updates}")
    if "inpainting" not in space.params.keys("extensions"):
        raise InputError(
            "params.yaml has no extensions.inpainting, whose values the methods need; write it there again"
        )
    config = space.params.config("extensions", "inpainting")
    config = config.model_copy(update={"samples": samples, "updates": updates})
    tokenizer, prior, pixels, region = space.tokenizer(), space.prior(), picture.pixels[None], mask[None]
    smooth = masks.biharmonic(pixels, region)
    told = space.told(picture, prior.conditioning, hidden=True)
    scene = covered = masks.seen(tokenizer, pixels, region, None, told, space.device)
    if config.under == "biharmonic":
        scene = masks.seen(tokenizer, pixels, region, smooth, told, space.device)
    bidirectional, reasons = _bidirectional(space, prior)
    found = {"autoencoder": masks.decoded(tokenizer, covered, covered.known), "biharmonic": smooth}
    yield Filled(dict(found), reasons)
    for method, (codes, _) in inpainting.fill_ins(config, scene, prior, bidirectional, seed, "playground").items():
        found[method] = np.concatenate([masks.decoded(tokenizer, scene, own) for own in codes])
    yield Filled({name: found[name] for name in ORDER if name in found}, reasons)


def _bidirectional(space: Workspace, prior: Prior) -> tuple[Prior | None, dict[str, str]]:
    """The prior that sees all known codes, and why methods are left out."""
    if not prior.exact:
        return prior, dict.fromkeys(inpainting.EXACT, "since the prior has no exact likelihood")
    if not space.there("infiller"):
        unused = space.unused("infiller")
        why = (
            f"since {unused}: `dvc exp run -S infiller.enabled=true`"
            if unused
            else "for want of its network: `dvc repro infiller`"
        )
        return None, {"masked": f"{why} makes it"}
    return space.infiller(), {}


def shown(filled: Filled, method: str) -> list[Image.Image]:
    return [cells.enlarged(pixels, SIDE) for pixels in filled.found.get(method, ())]


def given(picture: Picture, mask: Bool[np.ndarray, "h w"]) -> Image.Image:
    """The picture with grey where it is hidden."""
    return cells.enlarged(np.where(mask[..., None], np.uint8(inpainting.GREY), picture.pixels), SIDE)


def editable(picture: Picture) -> Image.Image:
    return cells.enlarged(picture.pixels).convert("RGB")
