"""Tab Style: the content of one picture in the style of another, by the methods of the extension `style_transfer`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from tessera.core.errors import InputError
from tessera.extensions import style_transfer
from tessera.images import arrays
from tessera.playground.workspace import TWO_LEVELS, Picture, Workspace


class Styled(NamedTuple):
    """Results by method, their measures (`style_transfer.measure`), and why other methods do not apply."""

    found: dict[str, UInt8[np.ndarray, "h w c"]]
    measures: dict[str, dict[str, float]]
    reasons: dict[str, str]


@torch.no_grad()
def styled(space: Workspace, content: Picture, style: Picture) -> Styled:
    if "style_transfer" not in space.params.keys("extensions"):
        raise InputError(
            "params.yaml has no extensions.style_transfer, whose values the methods need; write it there again"
        )
    config = space.params.config("extensions", "style_transfer")
    config = config.model_copy(update={"methods": list(style_transfer.METHODS)})
    tokenizer = space.tokenizer()
    methods, reasons = style_transfer.available(config, tokenizer)
    if "hierarchy" in reasons:
        reasons["hierarchy"] += f": {TWO_LEVELS} trains one of two"
    x = arrays.to_model(np.stack([content.pixels, style.pixels]), space.device)
    seen = style_transfer.Images(tokenizer.latents(x), tokenizer.encode(x))
    plain = arrays.to_pixels(tokenizer.decode(seen.codes))
    found, measures = {}, {}
    for name, method in methods.items():
        codes = method(tokenizer, seen.only(0), seen.only(1))
        (found[name],) = arrays.to_pixels(tokenizer.decode(codes))
        both = np.stack([found[name], *plain]), torch.cat([codes, seen.codes]).cpu().numpy()
        measures[name] = style_transfer.judged(*both, tokenizer)
    return Styled(found, measures, reasons)
