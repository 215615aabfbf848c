"""Gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", arXiv 1606.05328):
p(codes | conditions) = product over grids of p(grid | earlier grids, conditions), each its own network, as in VQ-VAE-2 (Razavi et
al. 2019, sec. 3.2).

Two stacks see all codes before the current one in raster order, without a blind spot (paper, fig. 2). The *vertical*
stack sees all rows above. The *horizontal* stack sees the codes to the left and, through a 1x1 link in each layer, the
vertical stack.

Causality comes from shifted inputs and half kernels. The input of the vertical stack is shifted down by one row, that of
the horizontal stack right by one column. Kernels are padded and cropped so that they reach only up and left. The paper
masks whole kernels instead. With a mask nearly half of the products are with zero. A mask must also be written into the
weights after each optimizer step, unseen by code that averages, shares or saves them, or copied in each forward pass.

Sampling caches activations: one code costs one position per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.condition import ConditionMap
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Prior
from tessera.core.params import Strict
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped


class Config(Strict):
    channels: int = Field(ge=1, description="channels of each stack, and of embedded codes", examples=[6])
    layers: int = Field(ge=1, description="gated layers of each grid's network", examples=[3])
    kernel_size: int = Field(ge=3, le=15, description="side of the whole kernel in codes, odd", examples=[3])
    dropout: float = Field(ge=0, lt=1, description="dropout probability of activations in both stacks", examples=[0.1])
    condition_blocks: int = Field(ge=0, description="residual blocks on embedded earlier grids, if there are any",
                                  examples=[1])  # fmt: skip

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, to be centred on a code, got {value}")
        return value


class GatedPixelCNN(Autoregressive):
    """See `core.contracts.Prior`. Dropout acts only in `losses`, and only in training mode."""

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning, config.dropout)
        networks = [GatedNetwork(size, config.channels, config.layers, config.kernel_size) for size in space.sizes]
        self.networks = cast("Sequence[GatedNetwork]", nn.ModuleList(networks))
        self.conditions = nn.ModuleList(
            ConditionMap(config.channels, space, index, conditioning, config.condition_blocks)
            for index in range(len(space.grids))
        )

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        parts, logits = self.space.split(codes), []
        for index, (network, condition) in enumerate(zip(self.networks, self.conditions, strict=True)):
            logits.append(network(parts[index], condition(parts[:index], conditions, dropout), dropout))
        return tuple(logits)

    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        """The cached walk, grid by grid."""
        earlier: list[Tensor] = []
        for network, condition in zip(self.networks, self.conditions, strict=True):
            earlier.append((yield from network.walk(n, condition(earlier, conditions))))


def gate(x: Float[Tensor, "b 2*c ..."]) -> Float[Tensor, "b c ..."]:
    """tanh(first half of the channels) * sigmoid(second half) (paper, eq. 2)."""
    filtered, opening = x.chunk(2, dim=1)
    opening = torch.sigmoid(opening)
    # tanh(a) = 2 sigmoid(2a) - 1, so tanh(a) b interpolates from -b to b at sigmoid(2a). On CPU a tanh costs 7 sigmoids
    return torch.lerp(-opening, opening, torch.sigmoid(2 * filtered))


class GatedLayer(nn.Module):
    """One layer of both stacks (fig. 2 right): both are gated, only the horizontal stack is residual.

    The condition is a map that both stacks use. It is known before any code of the grid. It enters the vertical stack
    directly (V * s of eq. 4) and the horizontal stack through the link.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.reach = reach = kernel_size // 2  # rows above, and columns to each side or to the left
        self.vertical = nn.Conv2d(channels, 2 * channels, (reach + 1, kernel_size), padding=(reach, reach))
        self.condition = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, reach + 1), padding=(0, reach), bias=False)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)  # a bias here would only add to those of later layers

    def forward(
        self,
        vertical: Float[Tensor, "b c h w"],
        horizontal: Float[Tensor, "b c h w"],
        condition: Float[Tensor, "#b c h w"],
        dropout: float,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        height, width = vertical.shape[2:]
        # pad both sides, then crop the outputs that look ahead: cheaper than a copy padded on one side
        above = self.vertical(vertical)[:, :, :height] + self.condition(condition)
        left = self.horizontal(horizontal)[:, :, :, :width] + self.link(above)
        horizontal = horizontal + self.out(dropped(gate(left), dropout))
        return dropped(gate(above), dropout), horizontal


class GatedNetwork(nn.Module):
    """p(codes of one grid | condition): a product over positions in raster order, categorical over `codebook_size`.

    Args:
        channels: C, of both stacks, of the embedded codes, and of the condition map [1 or B,C,h,w].
        kernel_size: odd. A layer reaches kernel_size // 2 rows up and as many columns left, in rows above also right.
    """

    def __init__(self, codebook_size: int, channels: int, layers: int, kernel_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, channels)
        gated = [GatedLayer(channels, kernel_size) for _ in range(layers)]
        self.layers = cast("Sequence[GatedLayer]", nn.ModuleList(gated))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, codebook_size, 1)
        )

    def forward(
        self, codes: Int[Tensor, "b h w"], condition: Float[Tensor, "#b c h w"], dropout: float = 0.0
    ) -> Float[Tensor, "b h*w k"]:
        """Logits of each code given the codes before it; `dropout` is a probability, 0 outside training."""
        return self.from_embedded(self.embedding(codes).permute(0, 3, 1, 2), condition, dropout)

    def from_embedded(
        self, embedded: Float[Tensor, "b c h w"], condition: Float[Tensor, "#b c h w"], dropout: float = 0.0
    ) -> Float[Tensor, "b h*w k"]:
        """Logits from embedded codes, through which gradients can flow."""
        vertical = F.pad(embedded[:, :, :-1], (0, 0, 1, 0))
        horizontal = F.pad(embedded[:, :, :, :-1], (1, 0))
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, condition, dropout)
        return self.head(horizontal).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def walk(self, n: int, condition: Float[Tensor, "#n c h w"]) -> CodeWalk:
        """Walk `n` grids position by position: yields logits [n,K], receives the codes sampled there, returns all codes.

        One code costs one position per layer, as in one forward pass over the finished grids: the vertical stack is
        computed once per row, the horizontal one once per position. The cache lives only in this call.
        """
        height, width = condition.shape[2:]
        rows = [_Rows(layer, n, width) for layer in self.layers]
        columns = _Columns(self.layers, n, width)
        sampled: list[Tensor] = []
        embedded = condition.new_zeros(n, width, self.embedding.embedding_dim)  # embedded codes of the row above
        for y in range(height):
            vertical, links = embedded.transpose(1, 2)[:, :, None], []
            for row in rows:
                vertical, link = row.advance(vertical, condition[:, :, y : y + 1])
                links.append(link[:, :, 0].unbind(2))
            left = torch.zeros_like(embedded[:, 0])
            embedded = torch.empty_like(embedded)
            for x in range(width):
                hidden = columns.advance(left, x, links)
                sampled.append((yield self.head(hidden[:, :, None, None])[:, :, 0, 0]))
                left = embedded[:, x] = self.embedding(sampled[-1])
        return torch.stack(sampled, dim=1).unflatten(1, (height, width))


class _Rows:
    """The vertical stack of one layer, one row of all grids at a time. It caches the rows that the kernel reaches."""

    def __init__(self, layer: GatedLayer, n: int, width: int) -> None:
        self.layer = layer
        rows = layer.vertical.weight.new_zeros(n, layer.vertical.in_channels, layer.reach + 1, width)
        self.rows = rows.contiguous(memory_format=torch.channels_last)

    def advance(
        self, row: Float[Tensor, "n c 1 w"], condition: Float[Tensor, "#n c 1 w"]
    ) -> tuple[Float[Tensor, "n c 1 w"], Float[Tensor, "n 2*c 1 w"]]:
        """From the next input row of this layer: the input row of the next layer, and the link's term of the horizontal stack.

        Convolutions are used on purpose: on CPU they are twice as fast here as matrix products of the same size.
        """
        layer, vertical = self.layer, self.layer.vertical
        self.rows = torch.cat([self.rows[:, :, 1:], row], dim=2)
        above = F.conv2d(self.rows, vertical.weight, vertical.bias, padding=(0, layer.reach))
        above += layer.condition(condition)
        return gate(above), layer.link(above)


class _Columns:
    """The horizontal stack of all layers, one position of all grids at a time.

    Each layer's input is cached as [n, reach + width, C], so the kernel's window at a position is a slice, not a copy.
    A new row overwrites the last one; the columns left of the grid stay zero.
    """

    def __init__(self, layers: Sequence[GatedLayer], n: int, width: int) -> None:
        channels, reach = layers[0].out.in_channels, layers[0].reach
        # [2C,C,1,columns] -> [columns * C, 2C], in the order of a window
        self.kernels = [layer.horizontal.weight.permute(3, 1, 0, 2).flatten(0, 1).flatten(1) for layer in layers]
        self.out = [layer.out.weight.flatten(1).t().contiguous() for layer in layers]
        inputs = [self.out[0].new_zeros(n, (reach + width) * channels) for _ in range(len(layers) + 1)]
        span = (reach + 1) * channels
        self.windows = [[row[:, x * channels :][:, :span] for row in inputs[:-1]] for x in range(width)]
        self.inputs = [[row[:, (reach + x) * channels :][:, :channels] for row in inputs] for x in range(width)]

    def advance(self, embedded: Float[Tensor, "n c"], x: int, links: list[tuple[Tensor, ...]]) -> Float[Tensor, "n c"]:
        """Output of the last layer at column `x`, from the embedded code to its left and the links of this row."""
        inputs = self.inputs[x]
        inputs[0].copy_(embedded)
        for before, after, window, kernel, out, link in zip(
            inputs, inputs[1:], self.windows[x], self.kernels, self.out, links, strict=False
        ):
            torch.addmm(before, gate(torch.addmm(link[x], window, kernel)), out, out=after)
        return inputs[-1]


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> Prior:
    # channels-last weights: embedded codes are channels-last, and convolutions on CPU are faster on them
    return GatedPixelCNN(config, space, conditioning).to(memory_format=torch.channels_last)
