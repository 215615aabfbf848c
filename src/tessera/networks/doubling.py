"""The transposed 4x4 convolution that doubles height and width, with a faster backward pass on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

KERNEL, STRIDE, PADDING = 4, 2, 1
NARROW = 4  # most output channels for which `_interleaved` is faster: those of images, not of features


class Doubling(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with kernel 4, stride 2, padding 1: [B,C,H,W] to [B,C',2H,2W], with the same output and gradients.

    A transposed convolution is the gradient of a plain convolution, so its own gradient is that plain convolution. Training
    on a CPU uses the plain one, which runs at up to four times the rate. For few output channels, such as those of an image,
    the forward pass uses plain convolutions too (`_interleaved`).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL, stride=STRIDE, padding=PADDING)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:  # type: ignore[override]  # one size
        if x.device.type != "cpu":
            return super().forward(x)
        assert self.bias is not None
        inputs = [x, self.weight, self.bias]
        if torch.is_autocast_enabled("cpu"):  # autocast has no effect on the backward pass of a Function
            inputs = [value.to(torch.get_autocast_dtype("cpu")) for value in inputs]
        return _Doubled.apply(*inputs) if torch.is_grad_enabled() else _doubled(*inputs)


def _doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape[1] <= NARROW:
        return _interleaved(x, weight, bias)
    return F.conv_transpose2d(x, weight, bias, stride=STRIDE, padding=PADDING)


def _interleaved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Even and odd rows and columns of the output are each a 2x2 convolution of the input with some of the taps (Shi et al.
    2016, arXiv 1609.07009). Output row 2i reads rows i-1 and i with taps 3 and 1, row 2i+1 rows i and i+1 with taps 2 and 0."""
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
        # the plain convolution takes `gradient` as input; for its weights, x is the gradient of its output
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
