"""A tokenizer as two ONNX files, `encoder.onnx` and `decoder.onnx`, for browsers and programs without torch.

Needs the packages of the extra `onnx`, which are imported only here. What was tried (torch 2.15, onnx 1.23, onnxscript 0.7,
onnxruntime 1.32): `torch.onnx.export(dynamo=True)` alone takes the number of images of its example for a constant, without a word,
since `len` of a tensor fixes it; and the older exporter (`dynamo=False`) writes a decoder that is a constant. `torch.export` in
its strict mode, and then the exporter with `dynamo=True`, gets both right.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tessera.codebooks import codebook
from tessera.core import files
from tessera.core.contracts import Tokenizer
from tessera.core.errors import InputError, listed
from tessera.images import arrays
from tessera.networks.doubling import PADDING, STRIDE, Doubling

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int, UInt8

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20  # version of ONNX's operators
BATCH = 64  # images at a time in the comparison


class Agreement(NamedTuple):
    """How the ONNX files differ from torch on some images.

    Attributes:
        images: their number.
        codes, other_codes: codes of all of them, and those that differ.
        values, other_values: 8-bit values of the images decoded from torch's codes, and those that differ.
        largest: largest difference of a decoded value in [-1, 1].
    """

    images: int
    codes: int
    other_codes: int
    values: int
    other_values: int
    largest: float


def require_packages() -> None:
    """
    Raises:
        InputError: a package of the extra `onnx` is not installed.
    """
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise InputError(
            f"--onnx needs {listed(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed. Run "
            "`python -m pip install 'tessera[onnx]'` (in a clone: `python -m pip install -e '.[onnx]'`)"
        )


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `encoder.onnx` (`images` float32 [n,C,H,W] in [-1, 1] to `codes` int64 [n,T]) and `decoder.onnx` (the other way; as
    those of the tokenizer, its images may leave [-1, 1] a little). n is free."""
    image, codes = torch.zeros(2, *tokenizer.image_shape), torch.zeros(2, tokenizer.space.length, dtype=torch.int64)
    _write(_Encoder(tokenizer), image, ("images", "codes"), folder / ENCODER)
    _write(_Decoder(tokenizer), codes, ("codes", "images"), folder / DECODER)


def compare(tokenizer: Tokenizer, folder: Path, pixels: UInt8[np.ndarray, "n h w c"]) -> Agreement:
    """The files in `folder`, run by onnxruntime on a CPU, beside `tokenizer`."""
    import onnxruntime

    encoder, decoder = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in (ENCODER, DECODER)
    )
    parts = [
        _compared(tokenizer, encoder, decoder, arrays.to_model(pixels[where]))
        for where in arrays.batches(len(pixels), BATCH)
    ]
    return Agreement(
        images=len(pixels),
        codes=sum(part.codes for part in parts),
        other_codes=sum(part.other_codes for part in parts),
        values=sum(part.values for part in parts),
        other_values=sum(part.other_values for part in parts),
        largest=max(part.largest for part in parts),
    )


@torch.no_grad()
def _compared(tokenizer: Tokenizer, encoder: Any, decoder: Any, x: Float[Tensor, "b c h w"]) -> Agreement:
    codes = tokenizer.encode(x)
    images = tokenizer.decode(codes)
    (found,) = encoder.run(None, {"images": x.contiguous().numpy()})
    (decoded,) = decoder.run(None, {"codes": codes.numpy()})
    shown, other = arrays.to_pixels(images), arrays.to_pixels(torch.from_numpy(decoded))
    return Agreement(
        images=len(x),
        codes=codes.numel(),
        other_codes=int((found != codes.numpy()).sum()),
        values=shown.size,
        other_values=int((other != shown).sum()),
        largest=float((torch.from_numpy(decoded) - images).abs().max()),
    )


class _Encoder(nn.Module):
    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Float[Tensor, "n c h w"]) -> Int[Tensor, "n t"]:
        return self.tokenizer.encode(images)


class _Decoder(_Encoder):
    def forward(self, codes: Int[Tensor, "n t"]) -> Float[Tensor, "n c h w"]:
        return self.tokenizer.decode(codes)


def _write(module: nn.Module, example: Tensor, names: tuple[str, str], path: Path) -> None:
    import onnx

    with _in_plain_operations(), torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of deprecations inside the exporter
        program = torch.export.export(
            module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=True
        )
        exported = torch.onnx.export(
            program, dynamo=True, input_names=names[:1], output_names=names[1:], opset_version=OPSET, verbose=False
        )
    assert exported is not None, "the exporter returns a program where it writes no file"
    model = exported.model_proto
    _anonymous(model)
    onnx.checker.check_model(model, full_check=True)
    with files.writing(path, "wb") as stream:
        stream.write(model.SerializeToString(deterministic=True))


def _anonymous(model: Any) -> None:
    """Take out what the exporter notes of this machine (stack traces with paths), and shapes that follow from the inputs'."""
    del model.graph.value_info[:]
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"


@contextlib.contextmanager
def _in_plain_operations() -> Iterator[None]:
    """While models are exported, the nearest code and the doubling of a grid are computed by operations that every runtime has:
    the trained models have faster ones, which read values while they compute."""
    search, doubled = codebook.nearest, Doubling.forward
    codebook.nearest, Doubling.forward = _nearest, _transposed  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        codebook.nearest, Doubling.forward = search, doubled  # type: ignore[method-assign]


def _nearest(z: Float[Tensor, "n d"], book: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """As `codebooks.codebook.nearest`: argmax of z.e - |e|^2 / 2, on a tie the lowest index."""
    return (z @ book.t() - 0.5 * book.square().sum(1)).argmax(1)


def _transposed(self: Doubling, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:
    return nn.functional.conv_transpose2d(x, self.weight, self.bias, stride=STRIDE, padding=PADDING)
