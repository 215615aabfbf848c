"""Randomness is an argument: named, independent generators, all derived from the one `seed` of params.yaml.

Naming a stream (`generator(seed, "prior", "shuffle")`) keeps it independent of every other and of the order in which
they are made: adding a draw in one place changes no other place.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called `names` (63, since torch's generators take signed integers)."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream called `names`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for the stream called `names`; what needs no torch uses this one."""
    return np.random.default_rng(derive(seed, *names))


def seed_globally(seed: int, *names: object) -> None:
    """Seed torch's global generators for the stream called `names`: initialisation and dropout read no other.

    Called before each training step with the step's number, it makes a resumed run draw what an uninterrupted one draws.
    """
    import torch

    torch.manual_seed(derive(seed, *names))
