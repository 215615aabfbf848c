"""Muon: the momentum of each weight matrix is orthogonalised before the matrix moves by it (Jordan et al. 2024, "Muon: An optimizer
for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/), at AdamW's learning rate (Liu et al. 2025,
"Muon is scalable for LLM training", arXiv 2502.16982). All other parameters move by AdamW. Three iterations by the polynomials of
Amsel et al. (2025, "The Polar Express", arXiv 2505.16932) come as near to an orthogonal matrix as the five of Jordan et al.

`torch.optim.Muon` takes parameters of two dimensions alone, one after another, and computes in bfloat16 on every machine. Here
convolutions are matrices too, and matrices of one shape are orthogonalised together, in the precision that is fast for them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tessera.core import processor

MOMENTUM = 0.95
# Of x, x^3 and x^5, one row for each iteration: of all polynomials of this form each is the one that stays nearest to 1 on the
# interval to which those before it map [0.01, 1], so that no three map it nearer to 1: to [0.73, 1.27] (Amsel et al., theorem 4.1)
COEFFICIENTS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
MARGIN = 1.02  # matrices are divided by their norm times this: just above 1 the polynomials are so steep that rounding would count
UPDATE_RMS = 0.2  # of AdamW's updates, in learning rates (Liu et al. 2025, sec. 2.2)
SMALLEST = 1e-7  # a smaller norm counts as this: a gradient of zero stays zero
NARROW = 128  # rows or columns up to which float32 is as fast as bfloat16 on a CPU: its products take microseconds
NAMES = ("weight", "direction", "original1")  # of matrices; the last two hold the direction under weight normalisation
NO_PRODUCTS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)  # layers that do not multiply by their weights
HEAD = re.compile(r"(^|\.)heads?\.")  # in the name of a parameter: it makes logits
PARAMETRIZED = ".parametrizations."  # in the name of a parameter: the layer that it belongs to comes before


class Matrix(NamedTuple):
    """A parameter that is `parts` matrices, one below the other."""

    parameter: nn.Parameter
    parts: int

    def view(self, tensor: Tensor) -> Float[Tensor, "parts rows columns"]:
        """`tensor`, of the parameter's shape, as matrices: [out,in,kh,kw] of a convolution becomes [1,out,in*kh*kw]. Columns are in
        the order of the parameter's memory, so that of the parameter it is a view. That order does not change what an entry is
        orthogonalised to."""
        inner = sorted(range(1, tensor.dim()), key=self.parameter.stride, reverse=True)
        return tensor.permute(0, *inner).reshape(self.parts, len(tensor) // self.parts, -1)


def matrices(model: nn.Module) -> list[Matrix]:
    """The parameters of `model` that are orthogonalised: the weights of linear, convolutional and recurrent layers.

    The weights of a convolution are one matrix [out,in*kh*kw], since it multiplies patches. Those of a transposed convolution are
    [in,out*kh*kw], the matrix of the plain convolution whose gradient it is. Each group of a grouped convolution and each gate of a
    recurrent layer is a matrix of its own. Under weight normalisation the direction is the matrix; the gain is a vector.

    All else is left out: vectors (biases, gains, norms, depthwise kernels); tables whose rows are looked up or added (embeddings,
    positions, codebooks); and layers named `head`, as both papers leave out the layer that makes logits. Their other exception,
    the first layer, is an embedding there; the first and the last convolution of a tokenizer, on pixels, take part. Measured by
    one seed at lr 0.005: `pixelsnail` had 6.16 bits after 120 steps without its head, 6.48 with it; `vqvae` had 19.50 dB after
    250 steps without these convolutions, 19.66 with them. A layer of another kind takes part if its matrix has one of `NAMES`.
    """
    return [matrix for name, parameter in model.named_parameters() for matrix in _matrix(model, name, parameter)]


def _matrix(model: nn.Module, name: str, parameter: nn.Parameter) -> Iterator[Matrix]:
    path, _, own = name.rpartition(".")
    layer = model.get_submodule(f".{path}.".partition(PARAMETRIZED)[0].strip("."))
    recurrent = isinstance(layer, nn.RNNBase) and own.startswith("weight")
    if parameter.dim() < 2 or HEAD.search(name) or isinstance(layer, NO_PRODUCTS) or not (recurrent or own in NAMES):
        return
    gates = max(1, len(parameter) // cast("int", layer.hidden_size)) if recurrent else 1  # 1: the projection of an LSTM
    matrix = Matrix(parameter, gates * cast("int", getattr(layer, "groups", 1)))
    if matrix.view(parameter).data_ptr() != parameter.data_ptr():
        raise ValueError(
            f"{name}: a weight {list(parameter.shape)} must be contiguous or channels_last in memory, got strides "
            f"{parameter.stride()}; call .contiguous() when the layer is built"
        )
    if min(matrix.view(parameter).shape[1:]) > 1:
        yield matrix


def precision(matrices: Float[Tensor, "n rows columns"]) -> torch.dtype:
    """The type in which `matrices` are orthogonalised: bfloat16, as in both papers, if they are of float32 and bfloat16 is faster:
    on a GPU, and on a CPU that multiplies bfloat16 in hardware if they are not narrow. Else their own."""
    if matrices.dtype != torch.float32:
        return matrices.dtype
    wide = min(matrices.shape[1:]) > NARROW and processor.multiplies_bfloat16()
    return torch.bfloat16 if wide or matrices.device.type != "cpu" else torch.float32


def orthogonalised(x: Float[Tensor, "n rows columns"], dtype: torch.dtype) -> Float[Tensor, "n rows columns"]:
    """U S' V^T for each matrix U S V^T, in `dtype`. The singular values S' lie between 0.73 and 1.27, but for those that were below
    a hundredth of the norm: iterations x <- p x, where p = a I + b (x x^T) + c (x x^T)^2, of other coefficients each time."""
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=SMALLEST)
    x = torch.div(x, MARGIN * norm, out=torch.empty_like(x, dtype=dtype))
    tall = x.shape[1] > x.shape[2]  # then p stands on the right, of x^T x: the smaller of the two products

    def gram(x: Tensor) -> Tensor:
        return x.mT @ x if tall else x @ x.mT

    def applied(factor: Tensor, x: Tensor) -> Tensor:
        return x @ factor if tall else factor @ x

    if dtype == torch.bfloat16:
        for coefficients in COEFFICIENTS:
            x = applied(_factor(gram(x), coefficients), x)
        return x
    # x x^T <- p (x x^T) p: all but two products are then of small square matrices. In bfloat16 they would not be exact enough
    square = gram(x)
    first, *others = COEFFICIENTS
    product = factor = _factor(square, first)
    for coefficients in others:
        square = factor @ square @ factor
        factor = _factor(square, coefficients)
        product = factor @ product
    return applied(product, x)


def _factor(
    gram: Float[Tensor, "n rows rows"], coefficients: tuple[float, float, float]
) -> Float[Tensor, "n rows rows"]:
    """p of `orthogonalised`."""
    a, b, c = coefficients
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


class Muon(torch.optim.Optimizer):
    """Muon for the `matrices` of a model, AdamW for its other parameters, as one optimizer of two groups.

    B <- 0.95 B + 0.05 G, and W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(rows, columns)) O, where O is 0.05 G + 0.95 times the
    new B (Nesterov), orthogonalised. By this factor the entries of an update have the root mean square of AdamW's, so that one `lr`
    and one `weight_decay` serve both groups (arXiv 2502.16982, eq. 4; `match_rms_adamw` of `torch.optim.Muon`).

    Args:
        model: every parameter that requires a gradient is optimised.
        lr: learning rate of both groups.
        weight_decay: decoupled, of both groups.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        self._matrices = {matrix.parameter: matrix for matrix in matrices(model) if matrix.parameter.requires_grad}
        self._shapes = {parameter: matrix.view(parameter).shape[1:] for parameter, matrix in self._matrices.items()}
        others = [p for p in model.parameters() if p.requires_grad and p not in self._matrices]
        self._adamw = torch.optim.AdamW([{"params": others}], lr=lr, weight_decay=weight_decay, fused=True)
        groups = [*self._adamw.param_groups, {"params": list(self._matrices)}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = torch.enable_grad()(closure)() if closure is not None else None
        others, own = self.param_groups
        self._adamw.param_groups, self._adamw.state = [others], self.state  # new objects after each `load_state_dict`
        self._adamw.step()
        for alike in self._by_shape(own["params"]):
            directions = self._directions(alike)
            scale = UPDATE_RMS * math.sqrt(max(directions.shape[1:]))
            updates = orthogonalised(directions, precision(directions)).split([matrix.parts for matrix in alike])
            for matrix, update in zip(alike, updates, strict=True):
                if own["weight_decay"]:
                    matrix.parameter.mul_(1 - own["lr"] * own["weight_decay"])
                matrix.view(matrix.parameter).add_(update, alpha=-own["lr"] * scale)
        return loss

    def _by_shape(self, parameters: Iterable[nn.Parameter]) -> Iterable[list[Matrix]]:
        """Matrices that have a gradient, those together that can be multiplied together."""
        found: dict[Any, list[Matrix]] = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is not None:
                found[self._shapes[parameter], parameter.dtype].append(self._matrices[parameter])
        return found.values()

    def _directions(self, alike: list[Matrix]) -> Float[Tensor, "n rows columns"]:
        """Nesterov's: what each momentum would be if the gradient came once more."""
        views = []
        for matrix in alike:
            state, gradient = self.state[matrix.parameter], matrix.parameter.grad
            assert gradient is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(matrix.parameter)
            momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
            views.append((matrix.view(gradient), matrix.view(momentum)))
        first, _ = views[0]
        directions = first.new_empty(sum(matrix.parts for matrix in alike), *first.shape[1:])
        places = directions.split([matrix.parts for matrix in alike])
        for place, (gradient, momentum) in zip(places, views, strict=True):
            torch.lerp(gradient, momentum, MOMENTUM, out=place)
        return directions
