"""A small bidirectional prior, trained by the extension itself: plain masked discrete diffusion (Austin et al. 2021, arXiv
2107.03006) without the additions of `priors/masked.py`."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from tessera import sequences
from tessera.attention import masking
from tessera.attention.causal import Size
from tessera.core.contracts import Runtime, Sampling
from tessera.core.seeding import generator
from tessera.core.space import CodeSpace
from tessera.images import arrays
from tessera.training.loop import Task, fit
from tessera.training.settings import Training


class Bidirectional(nn.Module):
    """A small masked prior (`attention.masking`; Austin et al. 2021, arXiv 2107.03006): codes are revealed in random order,
    each given all known codes. `forward` is its bound in nats per code, from one random mask per image.

    Args:
        passes: most forward passes per sample.
    """

    def __init__(self, size: Size, passes: int, space: CodeSpace, classes: int) -> None:
        super().__init__()
        self.passes = passes
        self.network = masking.MaskedTransformer(size, space, classes)

    def forward(
        self, codes: Int[Tensor, "b t"], labels: Int[Tensor, " b"] | None, numbers: Float[Tensor, "b t+1"]
    ) -> dict[str, Tensor]:
        """`numbers`, uniform on [0, 1), determine the hidden codes."""
        masked = masking.masks(numbers[0, 0], numbers[:, 1:])
        log_prob = sequences.code_log_prob(self.network(codes, labels, masked, 0.0), codes)
        return {"nll": -masking.mean(log_prob, masked).mean()}

    @torch.no_grad()
    def sample(
        self, n: int, rng: Generator, sampling: Sampling, labels: Int[Tensor, " n"] | None,
        known: Int[Tensor, "n t"], known_mask: Bool[Tensor, "n t"],
    ) -> Int[Tensor, "n t"]:  # fmt: skip
        """See `core.contracts.Prior`."""
        codes, masked = known.clone(), ~known_mask
        unknown = masked.sum(1)
        passes = min(self.passes, int(unknown.max()))
        for index in range(1, passes + 1):
            numbers = torch.rand(2, *codes.shape, generator=rng, dtype=torch.float64, device=rng.device)
            logits = self.network(codes, labels, masked, 0.0)
            remaining = masking.left(unknown, index, passes, "random")
            where, sampled = masking.revealed(logits, masked, remaining, sampling, numbers.to(codes.device), None)
            codes, masked = torch.where(where, sampled, codes), masked & ~where
        return codes


def fitted(
    network: Bidirectional, codes: dict[str, Int[Tensor, "n t"]], labels: dict[str, Int[Tensor, " n"] | None],
    training: Training, seed: int, runtime: Runtime, owner: str,
) -> Bidirectional:  # fmt: skip
    """Trains `network` on the codes of `train` and keeps the epoch with the best bound on `val`. `owner` is the extension that
    trains it: its name is in the random streams, the checkpoint and the messages."""
    device = runtime.device

    def batch(split: str, rows: np.ndarray, rng: Generator) -> tuple[Tensor, Tensor | None, Tensor]:
        own = codes[split][rows].to(device)
        numbers = torch.rand(len(rows), own.shape[1] + 1, generator=rng).to(device)
        given = labels[split]
        return own, None if given is None else given[rows], numbers

    def evaluate(objective: Bidirectional) -> dict[str, float]:
        rng, total = generator(seed, owner, "validation"), 0.0  # the same masks each time
        for where in arrays.batches(len(codes["val"]), training.batch_size):
            rows = np.arange(len(codes["val"]))[where]
            total += float(objective(*batch("val", rows, rng))["nll"]) * len(rows)
        return {"val_nll": total / len(codes["val"])}

    task = Task(
        name=f"extensions.{owner}",
        objective=network,
        examples=len(codes["train"]),
        batch=lambda rows, rng, done: batch("train", rows, rng),
        evaluate=evaluate,
        score=lambda row: -row["val_nll"],
    )
    fit(task, training, seed, runtime)
    return network.to(device).eval()
