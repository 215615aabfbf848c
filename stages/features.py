"""features: dataset, scorer, reconstruction, samples -> artifacts/features/, what every evaluation reads"""

from __future__ import annotations

from pydantic import Field

from tessera.core import files
from tessera.core.params import Strict
from tessera.core.run import SPLITS, Run
from tessera.images.arrays import map_batches
from tessera.runtime.stage import enter


class Settings(Strict):
    batch_size: int = Field(ge=1, description="images per forward pass")


def main(run: Run) -> None:
    extractor, batch_size = run.scorer(), run.params.section("features", Settings).batch_size
    pixels = {split: run.images(split) for split in SPLITS}
    pixels |= {"reconstruction": run.images("test", "reconstruction")}
    pixels |= {of: run.samples(of) for of in run.sample_sets}
    for name, images in pixels.items():
        path, shape = run.folder("features") / f"{name}.npy", (len(images), extractor.dim)
        with files.streamed_array(path, shape, "float32") as features:
            for where, batch in map_batches(extractor, images, batch_size, run.runtime.device):
                features[where] = batch.cpu().numpy()
    files.write_json(run.folder("features") / "facts.json", {"distance": extractor.distance})


if __name__ == "__main__":
    enter(main)
