"""The transposed 4x4 convolution that doubles height and width, with a faster way back on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

KERNEL, STRIDE, PADDING = 4, 2, 1


class Doubling(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of kernel 4, stride 2, padding 1: [B,C,H,W] to [B,C',2H,2W]; the same output and gradients.

    It is the gradient of a plain convolution, so its own gradient is that convolution. In training on a CPU that one is
    taken, since the library runs plain convolutions at up to four times the rate of transposed ones.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL, stride=STRIDE, padding=PADDING)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:
        ours = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        return _Doubled.apply(x, self.weight, self.bias) if ours else super().forward(x)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, bias, stride=STRIDE, padding=PADDING)

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
