"""Codes by distance along the latents' manifold: medoids by shortest paths on their k-nearest-neighbour graph.

Latents of an autoencoder lie on a curved set, where two that are near in space may be far apart along it. Distances by the
graph: Isomap (Tenenbaum, de Silva & Langford 2000). Clusters of latents by geodesic distance: Yang et al. 2018, arXiv
1809.04747; they take it from the decoder's metric, here it is that of the latents as they lie. Post-hoc, as `kmeans` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tessera.core.contracts import Quantized
from tessera.core.params import Strict
from tessera.nn import clusters, codebook, graph

if TYPE_CHECKING:
    from tessera.core.params import Params

SPARE = 8  # candidates more than neighbours: those that rounding puts behind others are among them


class Config(Strict):
    codebook_size: int = Field(ge=2, le=1 << 20, description="K, number of code vectors", examples=[8])
    code_dim: int = Field(ge=1, description="D, dimension of a code vector", examples=[4])
    latents: int = Field(ge=2, description="most nodes of the graph: distinct latents, drawn at random", examples=[64])
    neighbours: int = Field(ge=1, description="k nearest that a node, or a latent to quantize, is joined to",
                            examples=[5])  # fmt: skip
    iterations: int = Field(ge=1, description="most moves of the medoids", examples=[10])

    def rule(self, params: Params) -> Iterator[str]:
        yield from clusters.rule("geodesic", self.latents, self.codebook_size)


class Geodesic(nn.Module):
    """The code vectors are medoids, nodes themselves, of a graph of latents; a node has the code of the medoid that is
    nearest along the graph.

    Any other latent z is joined to its `neighbours` nearest nodes x_j by edges |z - x_j|, and gets the code of the x_j that
    minimises |z - x_j| + (graph distance of x_j to its medoid). A node may have
    further edges, from those whose neighbour it is.

    Buffers, zeros until `fit`: `codes` [K,D]; `nodes` [latents,D], their `node_codes` and `node_distances` along the graph
    to their medoids [latents]; whether it was `fitted`. With fewer latents than nodes the last rows stay unused, at
    infinite distance.
    """

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.codebook_sizes = (config.codebook_size,)
        self.register_buffer("codes", torch.zeros(config.codebook_size, dim))
        self.register_buffer("nodes", torch.zeros(config.latents, dim))
        self.register_buffer("node_codes", torch.zeros(config.latents, dtype=torch.int64))
        self.register_buffer("node_distances", torch.zeros(config.latents))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, latents: Float[Tensor, "n d"], generator: Generator) -> None:
        """On the CPU. Prints a line where the graph is not connected.

        Raises:
            InputError: fewer distinct latents than codes, or some that are not finite; nothing is changed then.
        """
        k = self.config.codebook_size
        rows = clusters.checked("geodesic", latents, k)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # distinct, before the draw: an edge of length 0 is no edge of a sparse graph
        rows = rows[clusters.distinct("geodesic", rows, k)[: self.config.latents]]
        draws = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=generator)))
        whole = self._graph(rows.numpy())
        medoids, cells, _ = graph.k_medoids(whole, graph.seeds(whole, k, draws), self.config.iterations)
        self.codes.copy_(rows[torch.from_numpy(medoids)])
        for buffer, values in (
            (self.nodes, rows),
            (self.node_codes, cells.codes),
            (self.node_distances, cells.distances),
        ):
            buffer.zero_()[: len(rows)] = torch.as_tensor(values).to(buffer)
        self.node_distances[len(rows) :] = torch.inf
        self.fitted.fill_(True)

    def _graph(self, points: Float[np.ndarray, "n d"]) -> graph.csr_array:
        whole, sizes = graph.joined(points, graph.neighbour_graph(points, self.config.neighbours))
        if len(sizes) > 1:
            shown = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
            print(
                f"geodesic: the {self.config.neighbours}-nearest-neighbour graph of {len(points)} latents has {len(sizes)} "
                f"components ({shown} nodes); joined by their shortest links",
                flush=True,
            )
        return whole

    def assign(self, z: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The code of each latent by the rule above; a latent equal to a node has that node's code."""
        centre = codebook.centre(self.codes)
        nodes = self.nodes - centre
        half = torch.where(self.node_distances.isinf(), torch.inf, 0.5 * nodes.square().sum(1))
        rows = max(1, codebook.CHUNK // len(nodes))
        found = []
        for part in z.split(rows):
            scores = torch.addmm(half, part - centre, nodes.t(), alpha=-1)  # see codebook.nearest
            candidates = scores.topk(min(self.config.neighbours + SPARE, len(nodes)), largest=False, sorted=False)
            found.append(self._code(part, candidates.indices))
        return torch.cat(found)

    def _code(self, z: Float[Tensor, "n d"], candidates: Int[Tensor, "n c"]) -> Int[Tensor, " n"]:
        lengths = (z[:, None] - F.embedding(candidates, self.nodes)).square().sum(2).sqrt()
        lengths = torch.where(self.node_distances[candidates].isinf(), torch.inf, lengths)
        lengths, order = lengths.topk(min(self.config.neighbours, lengths.shape[1]), largest=False)
        near = candidates.gather(1, order)
        # a way of length 0 goes first: at equal distance to two medoids rounding must not choose for a node
        paths = torch.where(lengths == 0, -1, lengths + self.node_distances[near])
        return self.node_codes[near.gather(1, paths.argmin(1, keepdim=True))[:, 0]]

    @property
    def codebooks(self) -> tuple[Float[Tensor, "k d"], ...]:
        return (self.codes,)

    def decode(self, codes: Int[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(codes[:, 0], self.codes).permute(0, 3, 1, 2)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        assert self.training or self.fitted, "geodesic quantizes nothing before `fit`"
        with torch.autocast(z.device.type, enabled=False):  # half precision would choose other codes
            b, d, h, w = z.shape
            rows = z.float().permute(0, 2, 3, 1).reshape(-1, d)
            chosen = self.assign(rows.detach())
            z_q = codebook.straight_through(rows, F.embedding(chosen, self.codes))
        return Quantized(z_q.view(b, h, w, d).permute(0, 3, 1, 2), chosen.view(b, 1, h, w), {})


def build(config: Config, dim: int | None) -> Geodesic:
    """`dim`: channels of the latents where the tokenizer fixes them; None: `code_dim`."""
    return Geodesic(config, config.code_dim if dim is None else dim)
