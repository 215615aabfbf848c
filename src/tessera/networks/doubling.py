"""The transposed 4x4 convolution that doubles height and width, with a faster way back on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

KERNEL, STRIDE, PADDING = 4, 2, 1
NARROW = 4  # output channels up to which four plain convolutions in one are faster: images, not features


class Doubling(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of kernel 4, stride 2, padding 1: [B,C,H,W] to [B,C',2H,2W]; the same output and gradients.

    It is the gradient of a plain convolution, so its own gradient is that convolution. In training on a CPU that one is
    taken, since the library runs plain convolutions at up to four times the rate of transposed ones. Of few output
    channels, such as those of an image, the output itself is put together from a plain one: `_interleaved`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL, stride=STRIDE, padding=PADDING)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:  # type: ignore[override]  # one size
        if x.device.type != "cpu":
            return super().forward(x)
        assert self.bias is not None
        inputs = [x, self.weight, self.bias]
        if torch.is_autocast_enabled("cpu"):  # which has no effect on the way back
            inputs = [value.to(torch.get_autocast_dtype("cpu")) for value in inputs]
        return _Doubled.apply(*inputs) if torch.is_grad_enabled() else _doubled(*inputs)


def _doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape[1] <= NARROW:
        return _interleaved(x, weight, bias)
    return F.conv_transpose2d(x, weight, bias, stride=STRIDE, padding=PADDING)


def _interleaved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Even and odd rows and columns of the output are each a 2x2 convolution of the input with some of the taps (Shi et al.
    2016, arXiv 1609.07009): output row 2i sees rows i-1 and i by taps 3 and 1, row 2i+1 rows i and i+1 by taps 2 and 0."""
    height, width, channels = *x.shape[2:], weight.shape[1]
    taps = torch.tensor([[3, 1], [2, 0]])
    # [parity of row, parity of column, output, input, 2, 2]
    parts = weight[:, :, taps[:, None, :, None], taps[None, :, None, :]].permute(2, 3, 1, 0, 4, 5)
    both = F.conv2d(x, parts.flatten(0, 2).contiguous(memory_format=torch.channels_last), bias.repeat(4), padding=1)
    y = x.new_empty(len(x), STRIDE * height, STRIDE * width, channels).permute(0, 3, 1, 2)
    for (row, column), part in zip(itertools.product(range(2), repeat=2), both.split(channels, dim=1), strict=True):
        y[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return y


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _doubled(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        # as the convolution that takes the output's gradient to the input's: the input is what that one puts out
        sides = [STRIDE] * 2, [PADDING] * 2, [1] * 2
        of_x = F.conv2d(gradient, weight, stride=STRIDE, padding=PADDING) if for_x else None
        _, of_weight, _ = (
            torch.ops.aten.convolution_backward(
                x, gradient, weight, None, *sides, False, [0, 0], 1, (False, True, False)
            )
            if for_weight
            else (None, None, None)
        )
        return of_x, of_weight, gradient.sum((0, 2, 3)) if for_bias else None
