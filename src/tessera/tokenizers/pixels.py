"""The identity tokenizer: intensities are the codes, as in PixelCNN (van den Oord et al. 2016, arXiv 1601.06759)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import ImageShape, MakeQuantizer, Output, Quantized, Tokenizer
from tessera.core.params import Strict
from tessera.core.space import CodeSpace

if TYPE_CHECKING:
    from tessera.core.params import Params


class Config(Strict):
    levels: int = Field(
        ge=2, le=256, description="L, number of intensities; 2: black and white, 256: 8 bits", examples=[8]
    )

    def rule(self, params: Params) -> Iterator[str]:
        if epochs := params.value("tokenizer.tuning.training.epochs"):
            yield (
                f"tokenizer.tuning.training.epochs: must be 0 under tokenizer.name pixels, whose decoder has no weights, got "
                f"{epochs}; set it to 0, or choose another tokenizer"
            )


class Pixels(nn.Module):
    """See `core.contracts.Tokenizer`. Code i is the value -1 + 2 i / (L - 1). There is one grid per colour channel, red
    first, as the C depths of one level: 32x32 RGB images have T = 3072 codes. Nothing is trained or saved."""

    values: Tensor

    def __init__(self, config: Config, image_shape: ImageShape) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.space = CodeSpace(((height, width),) * channels, (config.levels,) * channels)
        # float64 first: -1 and 1 are exact, and 256 levels equal the values of 8-bit images
        values = torch.arange(config.levels, dtype=torch.float64).mul(2 / (config.levels - 1)).sub(1)
        self.register_buffer("values", values.float()[:, None], persistent=False)  # [L,1]

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k 1"], ...]:
        return (self.values,) * len(self.space.grids)

    def latents(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], ...]:
        return (x,)

    def quantize(self, latents: tuple[Tensor, ...]) -> tuple[Quantized, ...]:
        """Nearest intensities; values outside [-1, 1] get the outermost. The gradient of z_q is passed to x unchanged."""
        (x,) = latents
        codes = x.detach().clamp(-1, 1).add(1).mul((len(self.values) - 1) / 2).round().long()
        # x - sg(x) is exactly 0, so this equals the intensity that `vectors` gives, to the last bit
        return (Quantized(self._intensities(codes) + (x - x.detach()), codes, {}),)

    def vectors(self, codes: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b c h w"], ...]:
        return (self._intensities(torch.stack(self.space.split(codes), dim=1)),)

    def _intensities(self, codes: Int[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.embedding(codes, self.values).squeeze(-1)

    def decode_vectors(self, z_q: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        return z_q[0]

    def encode(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b t"]:
        return self.space.join([level.codes for level in self.quantize(self.latents(x))])

    def decode(self, codes: Int[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self.decode_vectors(self.vectors(codes))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Output:
        latents = self.latents(x)
        quantized = self.quantize(latents)
        return Output(self.decode_vectors((quantized[0].z_q,)), latents, quantized)


def build(config: Config, image_shape: ImageShape, make_quantizer: MakeQuantizer | None = None) -> Tokenizer:
    return Pixels(config, image_shape)  # `make_quantizer` is not used
