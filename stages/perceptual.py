"""perceptual: dataset -> artifacts/perceptual/, plots/perceptual.csv, the feature network of the loss `perceptual`

It is made only where that loss asks for it. Elsewhere a file says so, the same whatever the images and the values of the section:
a tokenizer that does not use the network is never trained anew for its sake.
"""

from __future__ import annotations

from pydantic import field_validator

from tessera import feature_training
from tessera.core import seams
from tessera.core.run import Run
from tessera.runtime.stage import enter

REASON = "losses.perceptual.weight is 0, or losses.perceptual.weights names the file of another network"


class Settings(feature_training.Settings):
    @field_validator("name")
    @classmethod
    def _passes_a_gradient(cls, name: str) -> str:
        if name in seams.names("extractors") and not getattr(seams.plugin("extractors", name), "DIFFERENTIABLE", True):
            raise ValueError(f"must be a network that passes a gradient, got {name!r}; choose classifier")
        return name


def main(run: Run) -> None:
    if run.params.perceptual_network:
        feature_training.make("perceptual", run)
    elif run.runtime.main:
        run.save_unused("perceptual", REASON)


if __name__ == "__main__":
    enter(main, trains=True)
