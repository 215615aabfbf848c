"""Weights from elsewhere: a local file, pinned by the SHA-256 of its content, and never unpickled.

A problem is a rule and the value that broke it. `remedy` makes a whole message of it: it adds the name in params.yaml in front,
and what to do behind, which only the caller knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tessera.core import files
from tessera.core.errors import InputError

Remedy = Callable[[str], str]
SHOWN = 5  # mismatches in a message, at most


def read(path: Path, sha256: str, remedy: Remedy) -> dict[str, Tensor]:
    """The state dict in a file of torch's own format, or of safetensors where its name ends so.

    Args:
        path: the file.
        sha256: first digits of the SHA-256 of its content, the value of `weights_sha256`.
        remedy: see above.

    Raises:
        InputError: there is no such file, its content is not what `sha256` pins, or it is no state dict.
    """
    if not path.is_file():
        raise InputError(remedy(f"must be a local file, got {path.as_posix()!r}"))
    digest = files.sha256(path)
    if not digest.startswith(sha256):
        rule = f"must have a SHA-256 that begins with weights_sha256 {sha256}"
        raise InputError(remedy(f"{rule}, got {path.as_posix()!r} of {digest[:16]}"))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # bytes that are no weights fail in many ways, and torch advises to unpickle them
        rule = f"must be a state dict in .pth or .safetensors, got {path.as_posix()!r}, which is none"
        raise InputError(remedy(rule)) from error


def require_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, remedy: Remedy) -> None:
    """
    Args:
        expected: the tensors of the network, by the names that they have in the file.
        found: what was read; what else it holds is left to the caller.
        source: whose weights these should be, for the message.
        remedy: see above.

    Raises:
        InputError: a tensor is missing or has another shape; the first ones are named.
    """
    wrong = []
    for name, tensor in expected.items():
        shape = getattr(found.get(name), "shape", None)
        if shape is None:
            wrong.append(f"{name} is missing")
        elif shape != tensor.shape:
            wrong.append(f"{name} has shape {tuple(shape)}, want {tuple(tensor.shape)}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(remedy(f"must be {source}, got a file where {', '.join(wrong[:SHOWN])}{more}"))
