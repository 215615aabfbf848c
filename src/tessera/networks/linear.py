"""x W^T + b on the last axis, in the way that is fast on every CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, ROWS = 16, 512  # from which on torch convolves by oneDNN, whatever the number of threads, and it pays


def linear(
    x: Float[Tensor, "*shape i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*shape o"]:
    """`F.linear`, on a CPU in float32 as a 1x1 convolution where there are many rows.

    torch multiplies float32 matrices by MKL, which leaves half of the vector width of some processors unused, and convolves by
    oneDNN, which uses it all: `python -m benchmarks.linear`. Nothing is copied: the rows of an example are the height of an image
    whose channels are last in memory.
    """
    convolved = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and x.dim() > 2
        and len(x) >= BATCH
        and x.numel() >= ROWS * x.shape[-1] > 0
    )
    if not convolved:
        return F.linear(x, weight, bias)
    rows = x.reshape(len(x), -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    made = F.conv2d(rows, weight[:, :, None, None], bias)
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Float[Tensor, "*shape i"]) -> Float[Tensor, "*shape o"]:
        return linear(input, self.weight, self.bias)
