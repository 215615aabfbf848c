"""Stacked recurrent layers over a sequence of vectors, whole or one position at a time.

GRU: Cho et al. 2014, arXiv 1406.1078. LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tessera.nn.condition import dropped

Cell = Literal["gru", "lstm"]
State = Tensor | tuple[Tensor, Tensor]  # of one layer: h, or (h, c)
WHOLE: dict[Cell, type[nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """[B,T,dim] to [B,T,hidden]; output t depends on inputs <= t. The state before the first input is zero."""

    def __init__(self, cell: Cell, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.hidden = hidden
        # one module a layer: dropout is an argument of `forward` then, and no matter of training mode
        self.layers = nn.ModuleList(
            WHOLE[cell](hidden if index else dim, hidden, batch_first=True) for index in range(layers)
        )

    def forward(
        self, x: Float[Tensor, "b t dim"], context: int = 0, dropout: float = 0.0
    ) -> Float[Tensor, "b t hidden"]:
        """`dropout` is a probability, 0 outside training: of what enters a layer and of what leaves the last, never of
        what goes from one position to the next (Zaremba et al. 2014, arXiv 1409.2329, eq. 4)."""
        for layer in self.layers:
            x = _truncated(layer, dropped(x, dropout), context)
        return dropped(x, dropout)

    def walk(self, n: int) -> Walk:
        """The same network on `n` sequences, a position at a time, without dropout."""
        return Walk(self, n)


def _truncated(layer: nn.RNNBase, x: Float[Tensor, "b t c"], context: int) -> Float[Tensor, "b t hidden"]:
    """One layer over the whole sequence. Back-propagation through time is truncated (Williams & Peng 1990): the state is
    handed on every `context` positions (0: never) without its gradient. Outputs are the same for every context."""
    state, outputs = None, []
    for chunk in x.split(context or x.shape[1], dim=1):
        output, state = layer(chunk, state)
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        outputs.append(output)
    return torch.cat(outputs, dim=1)


class Walk:
    """The state of all layers between two positions. It lives in this object alone, so that walks do not disturb each
    other. Cells are called one by one: on CPU a whole layer over one position costs up to twice as much."""

    def __init__(self, network: Recurrent, n: int) -> None:
        self.weights = [(layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
                        for layer in network.layers]  # fmt: skip
        zero = self.weights[0][0].new_zeros(n, network.hidden)
        self.lstm = isinstance(network.layers[0], nn.LSTM)
        self.states: list[State] = [(zero, zero) if self.lstm else zero for _ in network.layers]

    def advance(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n hidden"]:
        """From the input of the next position: the output of the last layer there."""
        for index, (state, weights) in enumerate(zip(self.states, self.weights, strict=True)):
            if self.lstm:
                self.states[index] = torch.lstm_cell(x, state, *weights)
                x = self.states[index][0]
            else:
                x = self.states[index] = torch.gru_cell(x, state, *weights)
        return x
