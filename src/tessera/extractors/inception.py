"""InceptionV3 as the FID of the literature uses it (Heusel et al. 2017): on its features the distance is called `fid`.

Network and weights are torch-fidelity's (github.com/toshas/torch-fidelity, Apache 2.0), converted from the original
TensorFlow graph, and agree with it. It is not trained here; `load_pretrained` reads the weights once, and they are
saved with the run like those of any model. Of fewer images than its 2048 features a covariance is singular: compare
`fid` with its train-test floor at the same number of images, and believe `kid` rather.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tessera import pretrained
from tessera.core.contracts import ImageShape, PretrainedExtractor
from tessera.core.errors import InputError
from tessera.core.params import Strict

PRETRAINED = True  # the same weights in every section that chooses it
DIFFERENTIABLE = False  # its input is 8-bit
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
FILE = URL.rpartition("/")[2]


class Config(Strict):
    weights: str = Field(description="local file of torch-fidelity's weights; empty: downloaded once "
                         "into torch's cache", examples=[""])  # fmt: skip
    weights_sha256: str = Field(pattern="^[0-9a-f]{8,64}$", description="first digits of the SHA-256 of that file: "
                                "what `fid` means is pinned by content; 6726825d is torch-fidelity's",
                                examples=["6726825d"])  # fmt: skip


def architecture() -> nn.Module:
    """torch-fidelity's network without its constructor, which wants the weights and unpickles them. The library is loaded
    here: it takes as long as torch, and every check of params.yaml reads this file."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Architecture(fidelity.FeatureExtractorInceptionV3):  # type: ignore[misc]  # a library without types
        def __init__(self) -> None:
            FeatureExtractorBase.__init__(self, "inception-v3-compat", ["2048"])
            self.feature_extractor_internal_dtype = torch.float32
            self.Conv2d_1a_3x3 = fidelity.BasicConv2d(3, 32, kernel_size=3, stride=2)
            self.Conv2d_2a_3x3 = fidelity.BasicConv2d(32, 32, kernel_size=3)
            self.Conv2d_2b_3x3 = fidelity.BasicConv2d(32, 64, kernel_size=3, padding=1)
            self.MaxPool_1 = nn.MaxPool2d(kernel_size=3, stride=2)
            self.Conv2d_3b_1x1 = fidelity.BasicConv2d(64, 80, kernel_size=1)
            self.Conv2d_4a_3x3 = fidelity.BasicConv2d(80, 192, kernel_size=3)
            self.MaxPool_2 = nn.MaxPool2d(kernel_size=3, stride=2)
            self.Mixed_5b = fidelity.InceptionA(192, pool_features=32)
            self.Mixed_5c = fidelity.InceptionA(256, pool_features=64)
            self.Mixed_5d = fidelity.InceptionA(288, pool_features=64)
            self.Mixed_6a = fidelity.InceptionB(288)
            self.Mixed_6b = fidelity.InceptionC(768, channels_7x7=128)
            self.Mixed_6c = fidelity.InceptionC(768, channels_7x7=160)
            self.Mixed_6d = fidelity.InceptionC(768, channels_7x7=160)
            self.Mixed_6e = fidelity.InceptionC(768, channels_7x7=192)
            self.Mixed_7a = fidelity.InceptionD(768)
            self.Mixed_7b = fidelity.InceptionE_1(1280)
            self.Mixed_7c = fidelity.InceptionE_2(2048)
            self.AvgPool = nn.AdaptiveAvgPool2d(output_size=(1, 1))
            self.fc = nn.Linear(2048, 1008)  # not used for features; part of the weights file

    return Architecture()


class Inception(nn.Module):
    """See `core.contracts.Extractor`. It has no `losses`: there is nothing to train. Only ever in evaluation mode."""

    dim, distance = 2048, "fid"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self.network = architecture()
        self.requires_grad_(False).eval()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2048"]:
        """Features of the 8-bit images, grey ones repeated to three channels."""
        pixels = x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return self.network(pixels.expand(-1, 3, -1, -1))[0]

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # its batch statistics are part of what `fid` means

    def load_pretrained(self) -> None:
        """
        Raises:
            InputError: the weights are missing and cannot be downloaded, are not what `weights_sha256` pins, or do not fit.
        """
        path = Path(self._config.weights) if self._config.weights else _downloaded()
        state = pretrained.read(path, self._config.weights_sha256, _remedy)
        pretrained.require_fit(self.network.state_dict(), state, "torch-fidelity's InceptionV3", _remedy)
        self.network.load_state_dict(state)


def _downloaded() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), progress=False)
        except OSError as error:
            raise InputError(_remedy(f"is empty, and {FILE} cannot be downloaded ({error})")) from None
    return path


def _remedy(problem: str) -> str:
    return (
        f"inception.weights: {problem}. Get {URL}, put {FILE} beside params.yaml and set it to {FILE}; or choose "
        "name: classifier, which needs no download"
    )


def build(config: Config, image_shape: ImageShape, classes: int) -> PretrainedExtractor:
    return Inception(config)
