"""Sampling on a GPU with few kernel launches: the loop over all positions is one CUDA graph, replayed for each batch.

One position of a prior takes about a hundred kernels of a few microseconds each, and to launch them takes longer. A
network's walk never reads a value back from the device, and its kernels depend only on shapes. So the whole loop is captured
once, including the prior's caches. A prior whose walk does read values (`ngram`: the number of distinct contexts) is not
`capturable`. Capturing costs about as much time as one walk, and some kilobytes of memory per kernel: it pays from the third
batch on.
"""

from __future__ import annotations

from itertools import chain

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from tessera.autoregression import sampling as walks
from tessera.core.contracts import ExactPrior, Sampling
from tessera.core.errors import InputError


class Replay:
    """`prior.sample` for batches of `n` images: the same codes from the same generator. Only for `capturable` priors.

    The graph reads the weights from the memory where they were when it was captured. They may change in place, but a prior
    that was moved to another device or type needs a new graph. If `known` is True, each batch comes with known codes and
    their mask.

    Raises:
        InputError: the prior is not on a CUDA device, or `sampling` is out of range.
    """

    def __init__(self, prior: ExactPrior, n: int, sampling: Sampling = Sampling(), known: bool = False) -> None:  # noqa: B008
        device = next(chain(prior.parameters(), prior.buffers())).device
        if device.type != "cuda":
            raise InputError(
                f"only walks on a CUDA device are captured, and this prior is on {device}: use its `sample`"
            )
        walks.require_range(sampling)
        prior.conditioning.require_guidance(sampling.guidance)
        self.prior, self.n, shape = prior, n, (n, prior.space.length)
        self.uniforms = torch.zeros(shape, dtype=torch.float64, device=device)
        self.conditions = prior.conditioning.nothing(n, device) if prior.conditioning else None
        self.known = torch.zeros(shape, dtype=torch.int64, device=device) if known else None
        self.known_mask = torch.zeros(shape, dtype=torch.bool, device=device) if known else None
        given = (self.uniforms, sampling, self.conditions, self.known, self.known_mask)
        self.cuda_graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # run once without capture: libraries set themselves up at first use
                walks.walked(prior, prior.walk, *given)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.cuda_graph):
                self.codes, self.sound = walks.walked(prior, prior.walk, *given)

    @torch.no_grad()
    def sample(
        self,
        generator: Generator,
        conditions: Int[Tensor, "n c"] | None = None,
        known: Int[Tensor, "n t"] | None = None,
        known_mask: Bool[Tensor, "n t"] | None = None,
    ) -> Int[Tensor, "n t"]:
        """
        Raises:
            InputError: conditions or known codes are out of range or of the wrong shape; or known codes are given although the
                graph was captured without them, or the other way round.
        """
        self.prior.conditioning.require(conditions, self.n)
        walks.require_known(self.prior, self.n, known, known_mask)
        if (known is None) != (self.known is None):
            raise InputError("known codes must be given exactly where the walk was captured with them")
        uniforms = torch.rand(
            self.uniforms.shape, generator=generator, dtype=torch.float64, device=generator.device
        )  # on the generator's device as in `prior.sample`, so that the codes are the same
        given = zip((self.uniforms, self.conditions, self.known, self.known_mask), (uniforms, conditions, known, known_mask),
                    strict=True)  # fmt: skip
        for kept, new in given:
            if kept is not None and new is not None:
                kept.copy_(new)
        self.cuda_graph.replay()
        walks.require_sound(self.sound)
        return self.codes.clone()
