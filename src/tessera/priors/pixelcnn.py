"""PixelCNN with masked convolutions (van den Oord, Kalchbrenner & Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", arXiv
1601.06759, sec. 3.4-3.5 and table 1): the original model, with its blind spot.

Consecutive grids of one shape share a network: they are the *channels* of a place, as red, green and blue are of a pixel.
Codes are ordered place by place in raster order, and channel by channel at each place. Features are split into one group
per channel. Group g sees all groups of earlier places. At its own place it sees groups < g (mask A, first layer only) or
<= g (mask B).

The receptive field widens by only kernel_size // 2 columns per row upwards. Codes above and far to the right are
therefore never seen, for any number of layers. This is the *blind spot*, which the two stacks of `gated_pixelcnn` avoid.

Sampling caches activations: one code costs one group of one place per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.condition import ConditionMap
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Grids, Prior
from tessera.core.errors import InputError
from tessera.core.params import Strict
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped

Widths = tuple[int, ...]  # features of each group, one group per grid
Convolve = Callable[["MaskedConv2d", Tensor], Tensor]  # applies a layer to whole maps, or at one place


class Config(Strict):
    channels: int = Field(ge=1, description="h; a layer has 2h features, embedded codes have h channels", examples=[6])
    layers: int = Field(ge=1, description="masked residual blocks of each network", examples=[3])
    kernel_size: int = Field(ge=3, le=15, description="side of the whole kernel in codes, odd", examples=[3])
    first_kernel_size: int = Field(ge=3, le=15, description="side of the first layer's kernel, odd", examples=[5])
    dropout: float = Field(ge=0, lt=1, description="dropout probability of each masked block's output", examples=[0.1])
    condition_blocks: int = Field(ge=0, description="residual blocks on embedded earlier grids, if there are any",
                                  examples=[1])  # fmt: skip

    @field_validator("kernel_size", "first_kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, to be centred on a code, got {value}")
        return value


class PixelCNN(Autoregressive):
    """See `core.contracts.Prior`. Dropout acts only in `losses`, and only in training mode.

    A *stack* is a run of consecutive grids of one shape, which share a network.
    """

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning, config.dropout)
        self.stacks = stacks(space.grids)
        shape = (config.channels, config.layers, config.first_kernel_size, config.kernel_size)
        networks = [MaskedNetwork(space.sizes[stack], *shape) for stack in self.stacks]
        self.networks = cast("Sequence[MaskedNetwork]", nn.ModuleList(networks))
        self.conditions = nn.ModuleList(
            ConditionMap(config.channels, space, stack.start, conditioning, config.condition_blocks)
            for stack in self.stacks
        )

    @property
    def order(self) -> list[int]:
        """Stack by stack, then place by place, then grid by grid at each place."""
        order: list[int] = []
        for stack in self.stacks:
            count = sum(self.space.lengths[stack])
            stride = self.space.lengths[stack.start]  # from a place to the same one in the next grid
            order += [len(order) + t for place in range(stride) for t in range(place, count, stride)]
        return order

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        parts, logits = self.space.split(codes), []
        for stack, network, condition in zip(self.stacks, self.networks, self.conditions, strict=True):
            logits += network(parts[stack], condition(parts[: stack.start], conditions, dropout), dropout)
        return tuple(logits)

    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        """The cached walk, stack by stack."""
        earlier: list[Tensor] = []
        for network, condition in zip(self.networks, self.conditions, strict=True):
            earlier += yield from network.walk(n, condition(earlier, conditions))


def stacks(grids: Grids) -> list[slice]:
    """Consecutive grids of one shape, as slices of `grids`."""
    lengths = [len(list(alike)) for _, alike in groupby(grids)]
    return [slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)]


def readable(kernel_size: int, inputs: Widths, outputs: Widths, itself: bool) -> Bool[Tensor, "o i rows columns"]:
    """True where a kernel may look (sec. 3.4, fig. 2 right). It has the rows above and, last, the row of its centre, but no
    rows below. `itself`: whether a group sees itself at its own place (mask B) or only earlier groups (mask A)."""
    reach = kernel_size // 2
    before = torch.arange(len(inputs)).repeat_interleave(torch.tensor(inputs))
    after = torch.arange(len(outputs)).repeat_interleave(torch.tensor(outputs))[:, None]
    seen = torch.ones(len(after), len(before), reach + 1, kernel_size, dtype=torch.bool)
    seen[:, :, reach, reach] = before <= after if itself else before < after
    seen[:, :, reach, reach + 1 :] = False
    return seen


class MaskedConv2d(nn.Conv2d):
    """A convolution under mask A (`itself` False) or mask B. It preserves height and width.

    The mask is applied in each forward pass and is a buffer outside the state dict. Weights are never overwritten, so
    the optimizer, averaging and saving see them unchanged.
    """

    mask: Tensor
    bias: Tensor

    def __init__(self, inputs: Widths, outputs: Widths, kernel_size: int, itself: bool = True) -> None:
        reach = kernel_size // 2
        super().__init__(sum(inputs), sum(outputs), (reach + 1, kernel_size), padding=(reach, reach))
        self.reach, self.inputs, self.outputs = reach, inputs, outputs
        self.register_buffer("mask", readable(kernel_size, inputs, outputs, itself), persistent=False)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        # pad below too, then crop the outputs that look ahead: cheaper than a copy padded on one side
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)[:, :, : x.shape[2]]


class MaskedBlock(nn.Module):
    """x + branch(x) on 2h features: ReLU and 1x1 to h, ReLU and k x k, ReLU and 1x1 to 2h, all under mask B (fig. 5 left).

    The condition is known before any code of these grids, so every group may see it. It enters as a bias per place.
    """

    def __init__(self, widths: Widths, kernel_size: int) -> None:
        super().__init__()
        self.reduce = MaskedConv2d(doubled(widths), widths, 1)
        self.middle = MaskedConv2d(widths, widths, kernel_size)
        self.expand = MaskedConv2d(widths, doubled(widths), 1)
        self.condition = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)

    def forward(self, x: Tensor, context: Tensor, convolve: Convolve, dropout: float = 0.0) -> Tensor:
        """`context`: output of `self.condition` at the places of x."""
        inner = convolve(self.middle, F.relu(convolve(self.reduce, F.relu(x)))) + context
        return x + dropped(convolve(self.expand, F.relu(inner)), dropout)


class MaskedNetwork(nn.Module):
    """p(codes of grids of one shape | condition): a product over places in raster order and, at each, over the grids.

    Args:
        codebook_sizes: one per grid.
        channels: h, the channels of the condition map [1 or B,h,height,width] and of the embedded codes of all grids
            together; between blocks there are 2h features.
        first_kernel_size: odd; kernel of the only layer under mask A.
        kernel_size: odd; kernel of the `layers` residual blocks.

    Raises:
        InputError: there are fewer channels than grids.
    """

    def __init__(
        self, codebook_sizes: Sequence[int], channels: int, layers: int, first_kernel_size: int, kernel_size: int
    ) -> None:
        super().__init__()
        self.codebook_sizes, self.widths = tuple(codebook_sizes), split_widths(channels, len(codebook_sizes))
        wide = doubled(self.widths)
        self.embeddings = nn.ModuleList(map(nn.Embedding, codebook_sizes, self.widths))
        self.first = MaskedConv2d(self.widths, wide, first_kernel_size, itself=False)
        blocks = [MaskedBlock(self.widths, kernel_size) for _ in range(layers)]
        self.blocks = cast("Sequence[MaskedBlock]", nn.ModuleList(blocks))
        self.hidden = MaskedConv2d(wide, wide, 1)
        self.head = MaskedConv2d(wide, self.codebook_sizes, 1)

    def forward(
        self, parts: Sequence[Int[Tensor, "b h w"]], condition: Float[Tensor, "#b c h w"], dropout: float = 0.0
    ) -> tuple[Float[Tensor, "b h*w k"], ...]:
        """Logits per grid of each code given the codes before it; `dropout` is a probability, 0 outside training."""
        embedded = [embedding(part) for embedding, part in zip(self.embeddings, parts, strict=True)]
        return self.from_embedded(torch.cat(embedded, dim=3).permute(0, 3, 1, 2), condition, dropout)

    def from_embedded(
        self, embedded: Float[Tensor, "b c h w"], condition: Float[Tensor, "#b c h w"], dropout: float = 0.0
    ) -> tuple[Float[Tensor, "b h*w k"], ...]:
        """Logits from embedded codes, through which gradients can flow. Group g has the features of grid g alone."""
        contexts = [block.condition(condition) for block in self.blocks]
        logits = self.body(self.first(embedded), contexts, MaskedConv2d.__call__, dropout)
        return logits.flatten(2).transpose(1, 2).split(self.codebook_sizes, dim=2)

    def body(self, x: Tensor, contexts: Sequence[Tensor], convolve: Convolve, dropout: float = 0.0) -> Tensor:
        """From the output of the first layer to logits, for whole maps or for one group at one place."""
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context, convolve, dropout)
        return convolve(self.head, F.relu(convolve(self.hidden, F.relu(x))))

    @torch.no_grad()
    def walk(self, n: int, condition: Float[Tensor, "#n c h w"]) -> CodeWalk:
        """Walk `n` images place by place, channel by channel: yields logits [n,K], receives the codes sampled there,
        returns the grids. One code costs one group of one place per layer. The cache lives only in this call."""
        height, width = condition.shape[2:]
        rows = {layer: _Rows(layer, n, width) for layer in self.modules() if isinstance(layer, MaskedConv2d)}
        sampled: list[list[Tensor]] = [[] for _ in self.embeddings]
        for y in range(height):
            for layer in rows.values():
                layer.advance()
            contexts = [block.condition(condition[:, :, y : y + 1])[:, :, 0] for block in self.blocks]
            contexts = [context.split(self.widths, dim=1) for context in contexts]
            for x in range(width):
                for group, embedding in enumerate(self.embeddings):
                    here = [context[group][:, :, x] for context in contexts]
                    convolve = _Place(rows, x, group)
                    sampled[group].append((yield self.body(rows[self.first].look(x, group), here, convolve)))
                    rows[self.first].put(x, group, embedding(sampled[group][-1]))
        return [torch.stack(codes, dim=1).unflatten(1, (height, width)) for codes in sampled]


class _Rows:
    """Cached input of one layer, as many rows as its kernel reaches: [n, reach + 1, reach + width + reach, C]. It is zero
    beside the grid, and at unknown codes, which the mask hides anyway."""

    def __init__(self, layer: MaskedConv2d, n: int, width: int) -> None:
        self.side = 2 * layer.reach + 1
        self.reach, self.inputs = layer.reach, layer.inputs
        kernel = (layer.weight * layer.mask).permute(2, 3, 1, 0).flatten(0, 2)  # [rows * columns * C, outputs]
        self.seen = len(kernel) - layer.reach * layer.in_channels  # weights in raster order, up to the centre
        self.kernels = [part.contiguous() for part in kernel[: self.seen].split(layer.outputs, dim=1)]
        self.biases = layer.bias.split(layer.outputs)
        self.rows = kernel.new_zeros(n, layer.reach + 1, width + 2 * layer.reach, layer.in_channels)

    def advance(self) -> None:
        """Moves to the next row, whose codes are all unknown."""
        self.rows = torch.cat([self.rows[:, 1:], torch.zeros_like(self.rows[:, :1])], dim=1)

    def put(self, x: int, group: int, features: Float[Tensor, "n i"]) -> None:
        self.rows[:, -1, self.reach + x].split(self.inputs, dim=1)[group].copy_(features)

    def look(self, x: int, group: int) -> Float[Tensor, "n o"]:
        """The layer's output at column x, for one group."""
        window = self.rows[:, :, x : x + self.side].flatten(1)[:, : self.seen]
        return torch.addmm(self.biases[group], window, self.kernels[group])


class _Place:
    """Applies a layer to the features of one group at one place; earlier groups must be cached already."""

    def __init__(self, rows: dict[MaskedConv2d, _Rows], x: int, group: int) -> None:
        self.rows, self.x, self.group = rows, x, group

    def __call__(self, layer: MaskedConv2d, features: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        self.rows[layer].put(self.x, self.group, features)
        return self.rows[layer].look(self.x, self.group)


def split_widths(channels: int, groups: int) -> Widths:
    """`channels` split as evenly as possible; the first groups get one more if `groups` does not divide `channels`."""
    if channels < groups:
        raise InputError(f"channels must be at least {groups}, one for each of the grids of one shape, got {channels}")
    return tuple(len(part) for part in torch.arange(channels).tensor_split(groups))


def doubled(widths: Widths) -> Widths:
    return tuple(2 * width for width in widths)


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> Prior:
    # channels-last weights: embedded codes are channels-last, and convolutions on CPU are faster on them
    return PixelCNN(config, space, conditioning).to(memory_format=torch.channels_last)
