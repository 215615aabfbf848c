"""Transformer blocks (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as in GPT-2): causal or in both directions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.nn.condition import dropped

RATIO = 4  # width of the MLP, in channels


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), on [B,T,C].

    `dropout` is a probability, 0 outside training: of what each of the two adds (Vaswani et al. 2017, sec. 5.4).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, RATIO * channels), nn.GELU(), nn.Linear(RATIO * channels, channels)
        )

    def forward(self, x: Float[Tensor, "b t c"], causal: bool = True, dropout: float = 0.0) -> Float[Tensor, "b t c"]:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + dropped(self.out(attended.transpose(1, 2).flatten(2)), dropout)
        return x + dropped(self.mlp(self.norm_mlp(x)), dropout)
