"""tessera: a reproducible pipeline for discrete image representations.

`tessera.load("artifacts/tokenizer")` and `tessera.load("artifacts/prior")` load trained models.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def load(folder: str, device: str = "cpu") -> Any:
    """The model saved in `folder` (`artifacts/tokenizer`, `artifacts/prior`, ...), in eval mode."""
    from tessera.core import models

    return models.load(folder, device)
