"""dataset: source -> artifacts/dataset/, artifacts/targets/ (the same, larger), metrics/dataset.json, plots/dataset/"""

from collections.abc import Sequence
from pathlib import Path

from tessera.core import files, images, pictures, seams
from tessera.core.run import Run
from tessera.core.seeding import numpy_generator
from tessera.runtime.stage import enter
from tessera.steps import dataset as step


def main(run: Run) -> None:
    dataset, seed, folder = run.params.dataset, run.params.seed, run.folder("dataset")
    plugin, config = seams.plugin("datasets", dataset.name), run.params.config("dataset")
    source = plugin.load(config, Path(dataset.source), numpy_generator(seed, "dataset", "load"))
    log(source.notes)  # before the images are decoded: what is missing is seen at once
    prepared = step.prepare(
        source,
        dataset,
        numpy_generator(seed, "dataset", "split"),
        lambda rows: run.runtime.progress(iterable=rows, desc="dataset", unit="image"),
    )
    prepared.save(folder, run.folder("targets"))
    files.write_table(folder / "table.csv", prepared.table)
    files.write_json(folder / "facts.json", {"label_names": list(source.label_names)})
    files.write_metrics("dataset", prepared.metrics)
    train = run.images("train")
    shown = train[images.evenly(len(train), 60)]
    files.write_picture(files.PLOTS / "dataset" / "examples.png", pictures.sheet(shown, columns=12))
    log(prepared.notes)


def log(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"dataset: {note}", flush=True)


if __name__ == "__main__":
    enter(main)
