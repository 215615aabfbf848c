"""A recurrent network over the sequence of codes: each code given the conditions and all codes before it, of all grids.

It has the form of a language model (Graves 2013, arXiv 1308.0850, sec. 2; dropout as in Zaremba et al. 2014, arXiv
1409.2329): the input is the embedded code t - 1, the output the distribution of code t. The size of the state does not
depend on the length of the sequence, and sampling a code costs one cell per layer. Unlike a convolution, the network must
carry the row above through its state.

GRU: Cho et al. 2014, arXiv 1406.1078. LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from tessera.autoregression.base import Autoregressive
from tessera.autoregression.condition import embedding_of
from tessera.autoregression.sampling import CodeWalk
from tessera.core.conditioning import Conditioning
from tessera.core.contracts import Prior
from tessera.core.params import Strict
from tessera.core.space import CodeSpace
from tessera.networks.dropout import dropped


class Config(Strict):
    cell: Cell = Field(description="recurrent cell of each layer", examples=["gru"])
    embedding: int = Field(
        ge=1, le=4096, description="channels of embedded codes, positions and conditions", examples=[6]
    )
    hidden: int = Field(ge=1, le=4096, description="channels of the state of each layer", examples=[8])
    layers: int = Field(ge=1, le=64, description="stacked recurrent layers", examples=[2])
    context: int = Field(ge=0, description="length in codes of truncated back-propagation through time; "
                         "0: the whole sequence", examples=[3])  # fmt: skip
    dropout: float = Field(ge=0, lt=1, description="dropout probability of each layer's input and of the last output",
                           examples=[0.1])  # fmt: skip


class RNN(Autoregressive):
    """See `core.contracts.Prior`. The grids form one sequence; each has its own embedding and head."""

    def __init__(self, config: Config, space: CodeSpace, conditioning: Conditioning) -> None:
        super().__init__(space, conditioning, config.dropout)
        self.context = config.context
        channels = config.embedding
        self.embeddings = nn.ModuleList(nn.Embedding(size, channels) for size in space.sizes)
        self.start = nn.Parameter(torch.randn(channels))  # input at the first position
        self.positions = nn.Parameter(torch.randn(space.length, channels) / 8)
        self.given = embedding_of(conditioning, channels)
        self.network = Recurrent(config.cell, channels, config.hidden, config.layers)
        self.heads = nn.ModuleList(nn.Linear(config.hidden, size) for size in space.sizes)

    def predict(
        self, codes: Int[Tensor, "b t"], conditions: Int[Tensor, "b c"] | None, dropout: float
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        parts = codes.split(self.space.lengths, dim=1)
        embedded = [embedding(part) for embedding, part in zip(self.embeddings, parts, strict=True)]
        return self.from_embedded(torch.cat(embedded, dim=1), conditions, dropout)

    def from_embedded(
        self, embedded: Float[Tensor, "b t c"], conditions: Int[Tensor, "b c"] | None, dropout: float = 0.0
    ) -> tuple[Float[Tensor, "b n k"], ...]:
        """Logits from embedded codes, through which gradients can flow. The last code is not used."""
        before = torch.cat([self.start.expand(len(embedded), 1, -1), embedded[:, :-1]], dim=1)
        hidden = self.network(before + self._given(conditions), self.context, dropout).split(self.space.lengths, dim=1)
        return tuple(head(part) for head, part in zip(self.heads, hidden, strict=True))

    def _given(self, conditions: Int[Tensor, "b c"] | None) -> Float[Tensor, "#b t c"]:
        """Embeddings of position and conditions, which are added to the input of each position."""
        return self.positions[None] if self.given is None else self.positions + self.given(conditions)[:, None]

    @torch.no_grad()
    def walk(self, n: int, conditions: Int[Tensor, "n c"] | None) -> CodeWalk:
        """The walk keeps the state: a code costs one cell per layer."""
        walk, given, before = self.network.walk(n), iter(self._given(conditions).unbind(1)), self.start.expand(n, -1)
        for embedding, head, length in zip(self.embeddings, self.heads, self.space.lengths, strict=True):
            for _ in range(length):
                before = embedding((yield head(walk.advance(before + next(given)))))


def build(config: Config, space: CodeSpace, conditioning: Conditioning) -> Prior:
    return RNN(config, space, conditioning)


Cell = Literal["gru", "lstm"]
State = Tensor | tuple[Tensor, Tensor]  # of one layer: h, or (h, c)
WHOLE: dict[Cell, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """[B,T,dim] to [B,T,hidden]; output t depends on inputs <= t. The initial state is zero."""

    def __init__(self, cell: Cell, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.hidden = hidden
        # one module per layer, so that dropout can be an argument of `forward` and not depend on training mode
        whole = [WHOLE[cell](hidden if index else dim, hidden, batch_first=True) for index in range(layers)]
        self.layers = cast("Sequence[nn.GRU | nn.LSTM]", nn.ModuleList(whole))

    def forward(
        self, x: Float[Tensor, "b t dim"], context: int = 0, dropout: float = 0.0
    ) -> Float[Tensor, "b t hidden"]:
        """`dropout` is a probability, 0 outside training. It acts on the input of each layer and on the last output, never
        on the state between positions (Zaremba et al. 2014, arXiv 1409.2329, eq. 4)."""
        for layer in self.layers:
            x = _truncated(layer, dropped(x, dropout), context)
        return dropped(x, dropout)

    def walk(self, n: int) -> Walk:
        """The same network on `n` sequences, one position at a time, without dropout."""
        return Walk(self, n)


def _truncated(layer: nn.RNNBase, x: Float[Tensor, "b t c"], context: int) -> Float[Tensor, "b t hidden"]:
    """One layer over the whole sequence. Back-propagation through time is truncated (Williams & Peng 1990): every `context`
    positions (0: never) the state is detached. Outputs do not depend on `context`."""
    state, outputs = None, []
    for chunk in x.split(context or x.shape[1], dim=1):
        output, state = layer(chunk, state)
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        outputs.append(output)
    return torch.cat(outputs, dim=1)


class Walk:
    """The state of all layers between two positions. Each walk holds its own state, so walks do not affect each other.
    Cells are called one by one: on CPU a whole layer over one position costs up to twice as much."""

    def __init__(self, network: Recurrent, n: int) -> None:
        self.weights = [layer.all_weights[0] for layer in network.layers]  # two weights, then their biases
        zero = self.weights[0][0].new_zeros(n, network.hidden)
        self.states: list[State] = [(zero, zero) if isinstance(layer, nn.LSTM) else zero for layer in network.layers]

    def advance(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n hidden"]:
        """Output of the last layer at the next position, from its input."""
        for index, (state, weights) in enumerate(zip(self.states, self.weights, strict=True)):
            if isinstance(state, tuple):
                self.states[index] = x, _ = torch.lstm_cell(x, state, *weights)
            else:
                self.states[index] = x = torch.gru_cell(x, state, *weights)
        return x
