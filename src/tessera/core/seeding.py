"""Randomness is an argument: named, independent generators, all derived from the one `seed` of params.yaml.

A named stream (`generator(seed, "prior", "shuffle")`) is independent of all others and of the order in which they are made. A
new random number in one place therefore changes nothing elsewhere.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream `names` (63, because torch's generators take signed integers)."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream `names`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for the stream `names`, for code that does not need torch."""
    return np.random.default_rng(derive(seed, *names))


def seed_globally(seed: int, *names: object) -> None:
    """Seed torch's global generators for the stream `names`. Initialisation and dropout use no other generators.

    The training loop calls it before each step with the number of the step, so a resumed run gets the same random numbers as an
    uninterrupted one.
    """
    import torch

    torch.manual_seed(derive(seed, *names))
